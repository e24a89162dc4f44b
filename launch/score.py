"""Score predictions: `python launch/score.py --predictions runs/NAME/predictions.jsonl --out scores --data packed`. Needs no torch."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from rich.console import Console

from vlmphys.files import read_json, write_atomic
from vlmphys.predictions import Predictions, read_labels, read_predictions
from vlmphys.priors import known_categories, load_prior
from vlmphys.prompts import verdict_answer, true_verdict
from vlmphys.report import last_losses, write_html
from vlmphys.records import label_of
from vlmphys.scoring import compare_clips, name_runs, score_predictions, scores_document
from vlmphys.tables import markdown_text, print_scores

WRITTEN = ("scores.json", "table.md", "report.html")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Figures per category and their means, from the predictions of vlmphys or of any other "
                                                 "program (JSONL or CSV with clip_id, label, score). "
                                                 "Writes scores.json, table.md and report.html.")
    parser.add_argument("--predictions", nargs="+", required=True, metavar="[NAME=]FILE", help="one file, or several to put side by side")
    parser.add_argument("--out", required=True, type=Path, help="folder for the results, of their own")
    parser.add_argument("--overwrite", action="store_true", help="write into --out although it holds other files, or scores of other "
                                                                 "predictions, which are lost")
    parser.add_argument("--labels", type=Path, help="JSONL or CSV with clip_id and label, where the predictions have none")
    parser.add_argument("--data", type=Path, help="folder written by data_prep/pack.py: film strips, checks against its split, and "
                                                   "labels where the predictions have none")
    parser.add_argument("--run", nargs="+", metavar="[NAME=]FOLDER", help="run folders, for a table of their last training losses "
                                                                          "(default: those that the predictions lie in)")
    parser.add_argument("--priors", type=Path, help="folder with further priors, for reference explanations")
    parser.add_argument("--threshold", type=float, help="score from which a clip counts as anomalous (default: 0 for log-odds, "
                                                        "0.5 where all scores of another program lie in [0, 1])")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap intervals")
    return parser.parse_args(arguments)


def reference_reader(priors: Path | None):
    """(category, state) -> the first reference explanation as an answer would put it; None where no prior has one."""
    known = set(known_categories(priors))

    @cache
    def reference_of(category: str, state: str) -> str | None:
        if category not in known:
            return None
        try:
            return verdict_answer(true_verdict(state), load_prior(category, priors).texts_of(state).explanations[0])
        except ValueError:  # another program's folder may have states that no prior knows: its clips have no reference
            return None
    return reference_of


def predictions_files(files: dict[str, Path], out: Path) -> dict[str, str]:
    """Each run's predictions file as scores.json names it: by its place as seen from the results, so that both can move together."""
    return {name: Path(os.path.relpath(os.path.realpath(path), os.path.realpath(out))).as_posix() for name, path in files.items()}


def check_out(out: Path, files: dict[str, Path]) -> None:
    """Refuse a folder that holds anything but results of these predictions: ValueError that says what stands there."""
    if not out.exists():
        return
    cure = "give another --out, or --overwrite"
    present = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    if others := [name for name in present if name not in WRITTEN]:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise ValueError(f"--out {out} holds {others[0]}{more}, which score.py did not write: {cure}")
    if "scores.json" not in present:
        return
    stored = read_json(out / "scores.json", cure)
    runs = stored["runs"].values() if isinstance(stored.get("runs"), dict) else [stored]
    earlier = [run.get("predictions_file") if isinstance(run, dict) else None for run in runs]
    if set(earlier) != set(predictions_files(files, out).values()):
        named = ", ".join(os.path.normpath(out / file) if file else "a file that it does not name" for file in earlier)
        raise ValueError(f"--out {out} holds the scores of other predictions ({named}): {cure}")


def check_fingerprints(tables: Iterable[Predictions], fingerprint: str, data: Path) -> None:
    """Refuse rows that say that they were predicted on another packed folder: its split and its frames would be shown as theirs."""
    for table in tables:
        if others := table.data_fingerprints - {fingerprint}:
            raise ValueError(f"{table.path} was predicted on other packed data (fingerprint {min(others)[:12]}) than --data {data} "
                             f"({fingerprint[:12]}): give the folder that it was predicted on, or leave --data out")


def score(arguments: argparse.Namespace) -> None:
    """Read, compute, print and write; nothing is written before all of it is computed."""
    if arguments.out.exists() and not arguments.out.is_dir():
        raise ValueError(f"--out {arguments.out} is a file: give a folder")
    files = name_runs(arguments.predictions)
    if not arguments.overwrite:
        check_out(arguments.out, files)
    labels = read_labels(arguments.labels) if arguments.labels else None
    frames = split = packed_labels = None
    quarantined: set[str] = set()
    if arguments.data:
        from vlmphys.shards import open_packed
        packed = open_packed(arguments.data)
        frames, split = packed.frames, packed.split
        packed_labels = {clip_id: label_of(state) for clip_id, (_, state) in frames.states().items()}
        quarantined = {bad["clip_id"] for bad in packed.quarantined()}
    folders = name_runs(arguments.run) if arguments.run else {name: path.parent for name, path in files.items() if path.parent.is_dir()}
    predictions = {name: read_predictions(path, labels, packed_labels) for name, path in files.items()}
    if arguments.data:
        check_fingerprints(predictions.values(), packed.fingerprint, arguments.data)
    losses = {name: last_losses(folder) for name, folder in folders.items()}
    n_common, difference = compare_clips(predictions)
    runs = {name: score_predictions(table, arguments.threshold, arguments.seed, split, quarantined) for name, table in predictions.items()}
    for name, file in predictions_files(files, arguments.out).items():
        runs[name]["predictions_file"] = file
        runs[name]["warnings"] += [difference] if difference else []
    page = write_html(runs, predictions, frames, reference_reader(arguments.priors), {name: row for name, row in losses.items() if row})
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--out {arguments.out} cannot be made ({error.strerror}): give a folder that you may write to") from error
    document = json.dumps(scores_document(runs, n_common), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    for name, text in zip(WRITTEN, (document, markdown_text(runs), page), strict=True):
        write_atomic(arguments.out / name, text.encode())
    console = Console()
    # A table cut off at 80 columns helps nobody: a pipe or a log file has room.
    print_scores(runs, console if console.is_terminal else Console(width=200))
    console.print(f"report: {arguments.out / 'report.html'}", highlight=False, soft_wrap=True)


def main() -> int:
    """0: scored; 2: something is wrong, as one message says."""
    try:
        score(parse())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
