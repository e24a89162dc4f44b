"""How large a report of all of Phys-AD's test clips is, and how long it takes to open:
`python tests/bench/report_size.py [--frames simulated|noise] [--runs 1] [--out FOLDER] [--check]`.

Scores and explanations of 4,034 clips over 22 categories are drawn by seed; the film strips show simulated mechanisms in the wild appearance, with
sensor noise, at 224 pixels, or pure noise, which no JPEG compresses. Prints the size of report.html, the seconds that writing it took, and, where a
Chromium is there, the seconds to the load event (the median of five) with the browser's processor time,
console errors, requests, and what the filters leave. --check fails above
15 MB or 3 s, and for an error, a request, a script that ran out of an explanation, or a filter that shows other cards than those marked.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

from chromium import Browser, chromium_path  # noqa: E402

from vlmphys.mechanisms import load_mechanism  # noqa: E402
from vlmphys.mechanisms.clips import simulate_clip  # noqa: E402
from vlmphys.predictions import read_predictions  # noqa: E402
from vlmphys.priors import load_prior  # noqa: E402
from vlmphys.prompts import true_verdict, verdict_answer  # noqa: E402
from vlmphys.published import beside_table, published_rows_table  # noqa: E402
from vlmphys.records import stable_int  # noqa: E402
from vlmphys.report import write_html  # noqa: E402
from vlmphys.scoring import PHYS_AD_CATEGORIES, score_predictions  # noqa: E402
from vlmphys.video import frame_indices  # noqa: E402

CLIPS, PIXELS = 4034, 224
MOST_MB, MOST_SECONDS = 15.0, 3.0
SCRIPT = "<script>window.ran = true</script><img src=x onerror='window.ran = true'>"


def clips(count: int) -> list[tuple[str, str, str]]:
    """(clip id, category, state) of clips over all categories and their states, half of them normal."""
    rows = []
    for number in range(count):
        category = PHYS_AD_CATEGORIES[number % len(PHYS_AD_CATEGORIES)]
        anomalies, place = load_mechanism(category).ANOMALIES, number // len(PHYS_AD_CATEGORIES)
        state = "anomaly_free" if place % 2 == 0 else anomalies[place // 2 % len(anomalies)]
        rows.append((f"{category}/test/{state}/{number:04d}", category, state))
    return rows


def write_predictions(path: Path, rows: list[tuple[str, str, str]], seed: int) -> None:
    """Rows as predict.py writes them; one in ten explanations tries to run a script."""
    generator = np.random.default_rng(seed)
    with open(path, "w") as stream:
        for number, (clip_id, category, state) in enumerate(rows):
            label = int(state != "anomaly_free")
            score = float(generator.normal(scale=2) + (2.5 if label else -2.5))
            text = load_prior(category).texts_of(state).explanations[0]
            said = verdict_answer(true_verdict(state if (score >= 0) == bool(label) else "anomaly_free"), text)
            stream.write(json.dumps({
                "clip_id": clip_id, "category": category, "state": state, "label": label, "score": score,
                "probability": 1 / (1 + np.exp(-score)), "verdict": "anomalous" if score >= 0 else "normal",
                "explanation": said + (SCRIPT if number % 10 == 0 else ""),
                "variant": "multi_turn", "model": "bench", "grounding": "prior", "data_fingerprint": "0" * 64}) + "\n")


def frames_of(rows: list[tuple[str, str, str]], kind: str):
    """Stands in for packed frames: (8, PIXELS, PIXELS, 3) of a clip, made when they are asked for."""
    of_clip = {clip_id: (category, state) for clip_id, category, state in rows}

    def row(clip_id: str):
        seed = stable_int("report", clip_id)
        if kind == "noise":
            frames = np.random.default_rng(seed).integers(0, 256, (8, PIXELS, PIXELS, 3), dtype=np.uint8)
            return SimpleNamespace(frames_THWC=frames, frame_index=np.arange(8), source_frames=8)
        category, state = of_clip[clip_id]
        clip = simulate_clip(load_mechanism(category), category, state, seed, "wild")
        index = frame_indices(len(clip.look.jitter_F2), 8, "official")
        frames = np.stack(list(clip.frames(PIXELS, index)))
        return SimpleNamespace(frames_THWC=frames, frame_index=index, source_frames=len(clip.look.jitter_F2))
    return SimpleNamespace(clip_ids=[clip_id for clip_id, _, _ in rows], row=row)


def findings_of(predictions, seed: int) -> dict[int, dict]:
    """What a comparison of the explanations might have found: one cause in five is another state's."""
    generator = np.random.default_rng(seed)
    return {row: {"nearest": "undecided" if generator.uniform() < 0.2 else predictions.states[row]} for row in range(len(predictions))}


def wrong_filters(browser: Browser) -> list[str]:
    """Tries every option of every filter, then pairs of them; returns those that show other cards than the marks say, or miscount."""
    problems = []
    visible = "[...document.querySelectorAll('.card')].filter(c => c.offsetParent !== null).length"
    options = {name: browser.run(f"[...document.getElementById('{name}').options].map(o => o.value)") for name in ("category", "kind", "role")}
    pairs = [{name: value} for name, values in options.items() for value in values]
    pairs += [{"kind": kind, "role": role, "category": options["category"][1]} for kind in options["kind"] for role in options["role"]]
    for chosen in pairs:
        for name in options:
            browser.choose(name, chosen.get(name, ""))
        tests = [f"c.dataset.category === {json.dumps(chosen['category'])}"] if chosen.get("category") else []
        tests += [f"c.dataset.{name}s.split(' ').includes({json.dumps(chosen[name])})" for name in ("kind", "role") if chosen.get(name)]
        wanted = browser.run(f"[...document.querySelectorAll('.card')].filter(c => {' && '.join(tests) or 'true'}).length")
        shown, said = browser.run(visible), browser.run("document.getElementById('shown').textContent")
        if shown != wanted or not said.startswith(f"{shown} of "):
            problems.append(f"{chosen}: {shown} shown, {wanted} marked, the page says {said}")
    for name in options:
        browser.choose(name, "")
    return problems


def main() -> int:
    """Print the figures; 1 where --check finds one of them too high."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--frames", choices=("simulated", "noise"), default="simulated")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--clips", type=int, default=CLIPS)
    parser.add_argument("--out", type=Path, help="keep the report and screenshots in this folder")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.out or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        rows, predictions = clips(arguments.clips), {}
        for number in range(arguments.runs):
            write_predictions(Path(scratch) / f"{number}.jsonl", rows, number)
            predictions[f"run {number}"] = read_predictions(Path(scratch) / f"{number}.jsonl")
        runs = {name: score_predictions(table) for name, table in predictions.items()}
        begun = time.perf_counter()
        page = write_html(
            runs, predictions, frames_of(rows, arguments.frames), lambda category, state: load_prior(category).texts_of(state).explanations[0],
            tables=[beside_table(runs), published_rows_table(runs)], findings={name: findings_of(table, 5) for name, table in predictions.items()})
        report = folder / "report.html"
        report.write_text(page, encoding="utf-8")
        size = report.stat().st_size / 1e6
        print(f"{arguments.clips:,} clips, {len(PHYS_AD_CATEGORIES)} categories, {arguments.runs} run(s), {page.count('<article')} cards, "
              f"{arguments.frames} frames: {size:.2f} MB, written in {time.perf_counter() - begun:.1f} s")
        failed = size > MOST_MB
        if chromium_path() is None:
            print("no chromium here: not opened")
            return int(arguments.check and failed)
        with Browser() as browser:
            before = browser.cpu_seconds()
            seconds = [browser.open(report) for _ in range(5)]
            taken = (browser.cpu_seconds() - before) / len(seconds)
            ran, wrong = browser.run("Boolean(window.ran)"), wrong_filters(browser)
            print(f"opened in {statistics.median(seconds):.2f} s (median of {', '.join(f'{value:.2f}' for value in seconds)}), {taken:.2f} s of "
                  f"processor time each; console errors: {len(browser.errors)}, requests: {len(browser.requests)}, "
                  f"a script of a text ran: {ran}, wrong filters: {len(wrong)}")
            print("\n".join([*browser.errors[:5], *browser.requests[:5], *wrong[:5]]))
            if arguments.out:
                browser.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
                for name, width, dark in (("wide_light", 1280, False), ("wide_dark", 1280, True), ("narrow_light", 390, False),
                                          ("narrow_dark", 390, True)):
                    for part, mark in (("top", "h1"), ("published", "h2:nth-of-type(3)"), ("curves", ".panels.wide"), ("states", "details"),
                                       ("clips", "#clips")):
                        top = browser.run(f"document.querySelector('{mark}').getBoundingClientRect().top + scrollY - 20")
                        browser.look(folder / f"{name}_{part}.png", width, dark, top=int(top))
            failed |= statistics.median(seconds) > MOST_SECONDS or bool(browser.errors or browser.requests or ran or wrong)
        return int(arguments.check and failed)


if __name__ == "__main__":
    sys.exit(main())
