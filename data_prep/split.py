"""Write split.json: which clips train, which validate, which are tested; several files for protocols that test in turns."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from vlmphys.signals import exit_status, stop_quietly

STOPPED = "stopped, nothing was written; the hashes of clips that were looked at are kept"
if __name__ == "__main__":
    stop_quietly(STOPPED)   # before the imports below, which take a second

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from vlmphys.clip_lists import check_listed, find_clips
from vlmphys.held_out import FOLDS, KFOLD, LEAVE_ANOMALY_OUT, LEAVE_CATEGORY_OUT, SEVERAL, file_of, make_splits
from vlmphys.help_text import DefaultsFormatter
from vlmphys.layout import Clip, passed_over
from vlmphys.records import counted
from vlmphys.splits import (PROTOCOLS, PUBLISHED_RATIO, check_same_settings, check_split_target, count_sides, make_split, of_categories,
                            replaced, untested_normals, write_split)

MOST_LINES = 20

console = Console(highlight=False, soft_wrap=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=DefaultsFormatter)
    parser.add_argument("--videos", required=True, help="folder of categories in the Phys-AD layout, or a list of clips: csv, jsonl, json")
    parser.add_argument("--out", required=True, help="the split file to write, for instance split.json; kfold and leave_* put what tells "
                        "their files apart behind its name")
    parser.add_argument("--protocol", required=True, choices=(*PROTOCOLS, *SEVERAL))
    parser.add_argument("--per-anomaly", type=int, help="weak, leave_anomaly_out: clips of each anomaly that train (default: the "
                        "published number a category)")
    parser.add_argument("--ratio", type=float, help=f"ratio: share of each anomaly's clips that train (default: {PUBLISHED_RATIO})")
    parser.add_argument("--folds", type=int, help=f"kfold: so many files, each clip tested in one (default: {FOLDS})")
    parser.add_argument("--leave-out", metavar="NAMES", help="leave_*: write one file without these, comma-separated (fan,gear or "
                        "fan/stuck,gear/single; default: files that leave out each in turn)")
    parser.add_argument("--val-share", type=float, default=0.1, help="share of the training clips that is held out for validation")
    parser.add_argument("--categories", help="split these alone, comma-separated (default: all that are there)")
    parser.add_argument("--seed", type=int, default=0, help="draws the clips that train and validate")
    parser.add_argument("--near-duplicates", action="store_true", help="look for clips that are one recording twice (encoded anew, cropped "
                        "a little, brightened), too: decodes each clip once, and keeps its hash beside --out; files of the same bytes are "
                        "always looked for")
    parser.add_argument("--allow-duplicates", action="store_true", help="write the split although duplicates stand on two of its sides")
    parser.add_argument("--overwrite", action="store_true", help="write over a split of another protocol, seed or other options")
    parser.add_argument("--workers", type=int, help="--near-duplicates: decoding processes, 0: decode in this process (default: one a core)")
    return parser.parse_args()


def main() -> int:
    """0: written; 2: something is wrong, as one message says; 130: stopped from the keyboard."""
    options = parse()
    return exit_status(lambda: run(options), STOPPED)


def run(options: argparse.Namespace) -> None:
    """Make, check, write, show."""
    check_options(options)
    clips = of_categories(find_clips(options.videos), options.categories)
    check_listed(options.videos, clips)
    if said := passed_over(options.videos):
        console.print(f"note: {said}", markup=False)
    contents = make_contents(clips, options)
    for path, content in contents.items():
        check_split_target(path)
        if not options.overwrite:
            check_same_settings(path, content)
    check_duplicates(clips, contents, options)
    for path, content in contents.items():
        if said := replaced(path, content):
            console.print(f"note: {path}: {said}", markup=False)
        write_split(path, content)
    for path, content in contents.items():
        show(clips, content, path)


def check_options(options: argparse.Namespace) -> None:
    """Raise ValueError for options of another protocol, which would be passed over in silence, and for a number of workers below 0."""
    for flag, value, protocols in (("--per-anomaly", options.per_anomaly, ("weak", LEAVE_ANOMALY_OUT)), ("--ratio", options.ratio, ("ratio",)),
                                   ("--folds", options.folds, (KFOLD,)), ("--leave-out", options.leave_out, (LEAVE_CATEGORY_OUT, LEAVE_ANOMALY_OUT))):
        if value is not None and options.protocol not in protocols:
            raise ValueError(f"{flag} belongs to the protocol {' or '.join(protocols)}, not to {options.protocol!r}: leave it out")
    if options.workers is not None and options.workers < 0:
        raise ValueError(f"--workers {options.workers}: must be 0 or more")


def make_contents(clips: list[Clip], options: argparse.Namespace) -> dict[Path, dict]:
    """The contents of all files to write, by path."""
    if options.protocol in PROTOCOLS:
        ratio = PUBLISHED_RATIO if options.ratio is None else options.ratio
        return {out_of(options): make_split(clips, options.protocol, options.seed, options.val_share, options.per_anomaly, ratio)}
    folds = FOLDS if options.folds is None else options.folds
    made = make_splits(clips, options.protocol, options.seed, options.val_share, folds, options.leave_out, options.per_anomaly)
    return {file_of(out_of(options), name): content for name, content in made.items()}


def out_of(options: argparse.Namespace) -> Path:
    """The file that --out names."""
    if not options.out:
        raise ValueError("--out is empty: give the name of a file, for instance split.json")
    return Path(os.path.expanduser(options.out))


def check_duplicates(clips: list[Clip], contents: dict[Path, dict], options: argparse.Namespace) -> None:
    """List duplicates that stand on two sides of a split, and, on whatever side, the same bytes under two labels; ValueError unless they are allowed,
    and then the split says how many stand on two sides."""
    # OpenCV and PyAV take longer to import than a split takes to make.
    from vlmphys.near_duplicates import HashCache, crossing, identical_pairs, near_pairs

    workers = len(os.sched_getaffinity(0)) if options.workers is None else options.workers
    out = out_of(options)
    cache = HashCache(out.with_name(f"{out.stem}.hashes.json"))
    pairs = identical_pairs(clips, cache)
    labelled = {clip.clip_id: f"{clip.category}/{clip.state}" for clip in clips}
    contradicting = [f"{pair.first} ({labelled[pair.first]}) and {pair.second} ({labelled[pair.second]}): the same file under two labels"
                     for pair in pairs if labelled[pair.first] != labelled[pair.second]]
    if options.near_duplicates:
        if not out.parent.is_dir():
            raise ValueError(f"--out {out}: its folder does not exist, and the clips' hashes are kept there; make it first")
        sides = {clip.clip_id: tuple(content["clips"][clip.clip_id] for content in contents.values()) for clip in clips}
        same = {(pair.first, pair.second) for pair in pairs}
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as bar:
            tasks = {stage: bar.add_task(stage, total=None, visible=False) for stage in ("hashes", "pictures", "pairs")}
            near, unread = near_pairs(clips, lambda first, second: sides[first] != sides[second], cache, workers,
                                      lambda stage, done, total: bar.update(tasks[stage], completed=done, total=total, visible=True))
        pairs += [pair for pair in near if (pair.first, pair.second) not in same]
        for line in unread[:MOST_LINES]:
            console.print(f"not looked at: {line}", markup=False)
        console.print(f"{counted(len(clips) - len(unread), 'clip')} looked at for near-duplicates, {len(unread)} cannot be read", markup=False)
    found = {}
    for content in contents.values():
        crossed = crossing(pairs, content)
        found.update({pair: pair.said(content) for pair in crossed if pair not in found})
        if crossed and options.allow_duplicates:
            content["options"]["duplicates_allowed"] = len(crossed)
    print_duplicates(list(found.values()))
    print_duplicates(contradicting)
    if contradicting and not options.allow_duplicates:
        raise ValueError(f"{counted(len(contradicting), 'pair')} of clips with the same bytes under two labels, one of which must be wrong: take "
                         "one of each pair away, or give --allow-duplicates; nothing was written")
    if found and not options.allow_duplicates:
        raise ValueError(f"{counted(len(found), 'pair')} of duplicates across two sides of the split, so that the test would show what was learned "
                         "by heart: take one of each pair away, or give --allow-duplicates; nothing was written")


def print_duplicates(lines: list[str]) -> None:
    """The first of these pairs, and how many more there are."""
    for line in lines[:MOST_LINES]:
        console.print(f"duplicate: {line}", markup=False)
    if len(lines) > MOST_LINES:
        console.print(f"and {len(lines) - MOST_LINES} more", markup=False)


def show(clips: list[Clip], content: dict, out: Path) -> None:
    """Print, by category, how many normal and anomalous clips stand on each side, and what is amiss."""
    table = Table("category", *(f"{side} normal + anomalous" for side in ("train", "val", "test")))
    for category, counts in count_sides(clips, content).items():
        table.add_row(category, *(f"{counts[side, 0]} + {counts[side, 1]}" for side in ("train", "val", "test")))
    console.print(table)
    tested = clips
    if content["protocol"] == LEAVE_CATEGORY_OUT:
        tested = [clip for clip in clips if clip.category in content["options"]["left_out"]]
    for warning in untested_normals(tested, content):
        console.print(f"warning: {warning}", markup=False)
    left_out = f", without {', '.join(content['options']['left_out'])}" if "left_out" in content["options"] else ""
    console.print(f"{counted(len(clips), 'clip')}, protocol {content['protocol']}{left_out}, seed {content['seed']} -> {out}")


if __name__ == "__main__":
    sys.exit(main())
