"""How well trivial cues separate normal from anomalous clips: colour, one frame's pixels, length, file size, amount of motion.

    python tests/bench/leak_audit.py --videos videos --json leaks.json

Works on any folder in the layout, Phys-AD's own too. Each figure is an out-of-fold AUROC (vlmphys/probing.py): .5 says that the cue knows
nothing. Normal clips are those of train and of test/anomaly_free. Clips that cannot be read are listed and left out. Faults that one frame
shows by nature are named by their mechanism (VISIBLE_IN_ONE_FRAME in vlmphys/mechanisms); a category is judged by the others.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from vlmphys.cues import CUES, FILE_CUES, MOTION_CUES, STILL_CUES, ClipCues, measure_clip
from vlmphys.files import check_target, json_bytes, write_atomic, writing
from vlmphys.help_text import DefaultsFormatter
from vlmphys.layout import NORMAL_STATE, Clip, scan_videos
from vlmphys.mechanisms import visible_in_one_frame
from vlmphys.probing import Separation, chance_error, linear_probe, out_of_fold_auroc
from vlmphys.signals import exit_status
from vlmphys.splits import of_categories
from vlmphys.workers import Lost, run_in_order

SHORTCUTS = (*STILL_CUES, *FILE_CUES)
SOLVED, MEAN_LIMIT = 0.80, 0.65
READER_LIMIT_SECONDS = 120.0
WIDEST = 1000        # columns that a table may be measured for


def measure(clips: list[Clip], workers: int) -> tuple[dict[str, ClipCues], list[str]]:
    """Cues by clip id, and a sentence for each clip that cannot be read."""
    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True))
    cues, unreadable = {}, []
    with bar:
        task = bar.add_task("measure clips", total=len(clips))
        results = run_in_order(measure_clip, [str(clip.path) for clip in clips], workers, READER_LIMIT_SECONDS, retry=lambda path: None)
        for clip, result in zip(clips, results):
            bar.advance(task)
            if isinstance(result, ClipCues):
                cues[clip.clip_id] = result
            else:
                unreadable.append(f"{clip.clip_id}: {result.reason if isinstance(result, Lost) else result}")
    return cues, unreadable


def separations(clips: list[Clip], cues: dict[str, ClipCues], seed: int) -> dict[str, Separation]:
    """The AUROC of each cue over these clips, normal against anomalous."""
    states, found = [clip.state for clip in clips], {}
    for name in CUES:
        features_ND = np.stack([cues[clip.clip_id].values[name] for clip in clips])
        found[name] = out_of_fold_auroc(features_ND, states, partial(linear_probe, features_ND.shape[1]), seed)
    return found


def audit(clips: list[Clip], cues: dict[str, ClipCues], seed: int) -> dict[str, dict]:
    """By category: counts, the cues' AUROCs (None with a reason where a class is missing), and the same for each anomaly folder alone and for the
    faults of motion together, which one frame does not show by nature (None where there are none)."""
    read = [clip for clip in clips if clip.clip_id in cues]
    categories = sorted({clip.category for clip in read})
    result = {}
    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True))
    with bar:
        for category in bar.track(categories, description="fit probes"):
            own = [clip for clip in read if clip.category == category]
            counts = Counter(clip.state for clip in own)
            row = _row(own, cues, seed)
            row["anomalies"] = {state: _row([clip for clip in own if clip.state in (state, NORMAL_STATE)], cues, seed)
                                for state in sorted(counts) if state != NORMAL_STATE}
            seen = {state: reason for state, reason in visible_in_one_frame(category).items() if state in counts}
            of_motion = [clip for clip in own if clip.state not in seen]
            row["visible"] = seen
            row["motion"] = {key: row[key] for key in ("normal", "anomalous", "chance_error", "reason", "auroc")} if not seen else \
                _row(of_motion, cues, seed) if any(clip.label for clip in of_motion) else None
            result[category] = row
    return result


def _row(clips: list[Clip], cues: dict[str, ClipCues], seed: int) -> dict:
    anomalous = sum(clip.label for clip in clips)
    found = separations(clips, cues, seed)
    reason = next((one.reason for one in found.values() if one.auroc is None), "")
    error = chance_error(len(clips) - anomalous, anomalous) if not reason else None
    return {"normal": len(clips) - anomalous, "anomalous": anomalous, "chance_error": error, "reason": reason,
            "auroc": {name: one.auroc for name, one in found.items()}}


def conclusions(result: dict[str, dict]) -> dict[str, list]:
    """What is above the limits: categories whose faults of motion a shortcut solves, such faults that a still shows, cues whose mean is too high
    (shortcuts, motion cues); apart from these what chance gives as well with so few clips (`unclear`, with the band around .5); and the faults
    that one frame shows by nature, with the still that shows them best."""
    of_categories = [(category, cue, row["motion"]) for category, row in result.items() if row["motion"] for cue in SHORTCUTS]
    of_folders = [(f"{category}/{state}", cue, row) for category, entry in result.items() for state, row in entry["anomalies"].items()
                  for cue in STILL_CUES if state not in entry["visible"]]
    solved, stills = ([(place, cue, row["auroc"][cue]) for place, cue, row in rows if is_told(row, cue)] for rows in (of_categories, of_folders))
    unclear = [(place, cue, row["auroc"][cue], chance_band(row)) for place, cue, row in (*of_categories, *of_folders)
               if (row["auroc"][cue] or 0) > SOLVED and not is_told(row, cue)]
    visible = [(f"{category}/{state}", entry["visible"][state], *max(((cue, row["auroc"][cue] or 0.0) for cue in STILL_CUES), key=lambda one: one[1]))
               for category, entry in result.items() for state, row in entry["anomalies"].items() if state in entry["visible"]]
    means = [(cue, value) for cue, value in cue_means(result).items() if value > MEAN_LIMIT]
    return {"solved": solved, "stills": stills, "unclear": unclear, "visible": visible, "means": [pair for pair in means if pair[0] in SHORTCUTS],
            "motion_means": [pair for pair in means if pair[0] in MOTION_CUES]}


def chance_band(row: dict) -> float:
    """How far from .5 the AUROC of a cue that knows nothing may well lie: twice its standard error."""
    return 2 * row["chance_error"]


def is_told(row: dict, cue: str) -> bool:
    """Whether a cue is above the limit, and higher than chance makes it with this row's clips."""
    value = row["auroc"][cue]
    return value is not None and value > max(SOLVED, 0.5 + chance_band(row))


def cue_means(result: dict[str, dict], of_motion: bool = False) -> dict[str, float]:
    """The mean of each cue over the categories that have both classes, of all faults or of those `of_motion`; nothing where there is none."""
    chosen = [row["motion"] if of_motion else row for row in result.values()]
    rows = [row["auroc"] for row in chosen if row and not row["reason"]]
    return {cue: statistics.fmean(row[cue] for row in rows) for cue in CUES} if rows else {}


def show(result: dict[str, dict], console: Console) -> None:
    """Two tables (categories, anomaly folders) and the sentences below them."""
    categories = _table("category")
    for category, row in result.items():
        if row["reason"]:
            console.print(f"{category}: no figure, {row['reason']}", markup=False, soft_wrap=True)
            continue
        categories.add_row(category, *_cells(row), end_section=category == list(result)[-1])
        if row["visible"] and row["motion"] and not row["motion"]["reason"]:
            categories.add_row("  faults of motion", *_cells(row["motion"]), end_section=category == list(result)[-1])
    means = cue_means(result)
    if not means:
        console.print("no category has two clips of each class: nothing to separate", soft_wrap=True)
        return
    categories.add_row("mean", "", "", *(_figure(means[cue], MEAN_LIMIT) for cue in CUES))
    if motion_means := cue_means(result, of_motion=True):
        categories.add_row("mean, faults of motion", "", "", *(_figure(motion_means[cue], MEAN_LIMIT) for cue in CUES))
    _print_whole(categories, console)
    folders = _table("category/anomaly")
    for category, entry in result.items():
        for state, row in entry["anomalies"].items():
            if not row["reason"]:
                folders.add_row(f"{category}/{state}", *_cells(row))
    _print_whole(folders, console)
    _show_conclusions(conclusions(result), console)


def _table(first: str) -> Table:
    named = [Column(header, no_wrap=True) for header in (first, "clips", "chance")]
    table = Table(*named, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title="out-of-fold AUROC, normal against anomalous",
                  caption="chance: .5 and twice the standard error of a cue that knows nothing; frame difference and optical flow are motion cues, "
                  "no shortcuts")
    for cue in CUES:
        table.add_column(cue.replace(" ", "\n"), justify="right", no_wrap=True)
    return table


def _cells(row: dict) -> list[str]:
    return [f"{row['normal']}+{row['anomalous']}", f".5 ± {chance_band(row):.2f}",
            *(_figure(row["auroc"][cue], max(SOLVED, 0.5 + chance_band(row))) for cue in CUES)]


def _print_whole(table: Table, console: Console) -> None:
    """Print a table with every name in full: where the console is narrower than that takes, in longer lines."""
    width = Measurement.get(console, console.options.update(max_width=WIDEST), table).maximum
    wide = console if console.width >= width else Console(file=console.file, width=width, highlight=False)
    wide.print(table)


def _figure(value: float, limit: float) -> str:
    return f"[bold red]{value:.2f}[/]" if value > limit else f"{value:.2f}"


def _show_conclusions(found: dict[str, list], console: Console) -> None:
    listed = {"solved": f"categories whose faults of motion a shortcut solves (above {SOLVED:.2f})",
              "stills": f"faults of motion that one still shows (above {SOLVED:.2f})",
              "means": f"shortcuts whose mean over categories is above {MEAN_LIMIT:.2f}",
              "motion_means": f"motion cues whose mean over categories is above {MEAN_LIMIT:.2f} (no shortcuts, the amount of motion)"}
    for key, title in listed.items():
        entries = "; ".join(f"{entry[0]} {entry[-1]:.2f}" if len(entry) == 2 else f"{entry[0]} by {entry[1]} {entry[2]:.2f}" for entry in found[key])
        console.print(f"{title}: {entries or 'none'}", markup=False, highlight=False, soft_wrap=True)
    if found["unclear"]:
        entries = "; ".join(f"{place} by {cue} {area:.2f} (.5 ± {band:.2f} is chance)" for place, cue, area, band in found["unclear"])
        console.print(f"too few clips to tell (above {SOLVED:.2f}, and within what chance gives): {entries}", markup=False, highlight=False,
                      soft_wrap=True)
    if found["visible"]:
        console.print("faults that one frame shows by nature, and the still that shows them best:", highlight=False, soft_wrap=True)
    for folder, reason, cue, area in found["visible"]:
        console.print(f"  {folder}: {reason} ({cue} {area:.2f})", markup=False, highlight=False, soft_wrap=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=DefaultsFormatter, allow_abbrev=False)
    parser.add_argument("--videos", required=True, help="folder of categories in the Phys-AD layout")
    parser.add_argument("--seed", type=int, default=0, help="of the folds")
    parser.add_argument("--categories", help="comma-separated names (default: all)")
    parser.add_argument("--json", type=Path, help="write all figures there too")
    parser.add_argument("--workers", type=int, default=2, help="processes that read clips; 0: none but this one")
    options = parser.parse_args(arguments)
    return exit_status(lambda: run(options, Console(highlight=False)))


def run(options: argparse.Namespace, console: Console) -> None:
    """Measure, fit, show, write. Raises ValueError for options that do not fit, clips of which none can be read, a file that cannot be written."""
    if options.workers < 0:
        raise ValueError(f"--workers is {options.workers}: 0 or more is needed")
    if options.json is not None:
        check_target("--json", options.json)
    clips = of_categories(scan_videos(options.videos), options.categories)
    cues, unreadable = measure(clips, options.workers)
    for sentence in unreadable[:20]:
        console.print(f"left out: {sentence}", markup=False, soft_wrap=True)
    if len(unreadable) > 20:
        console.print(f"left out: {len(unreadable) - 20} more clips that cannot be read")
    if not cues:
        raise ValueError(f"none of the {len(clips)} clips of {options.videos} can be read")
    result = audit(clips, cues, options.seed)
    show(result, console)
    if options.json is not None:
        written = {"seed": options.seed, "unreadable": unreadable, "categories": result, "means": cue_means(result),
                   "means_of_motion": cue_means(result, of_motion=True), "above_limits": conclusions(result)}
        with writing("--json", options.json, "file"):
            write_atomic(options.json, json_bytes(written))


if __name__ == "__main__":
    sys.exit(main())
