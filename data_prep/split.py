"""Write split.json: which clips train, which validate, which are tested; several files for protocols that test in turns."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console
from rich.table import Table

from vlmphys.held_out import LEAVE_CATEGORY_OUT, SEVERAL, file_of, make_splits
from vlmphys.clip_lists import find_clips
from vlmphys.layout import Clip
from vlmphys.splits import PROTOCOLS, PUBLISHED_RATIO, count_sides, make_split, of_categories, untested_normals, write_split

console = Console(highlight=False, soft_wrap=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--videos", required=True, help="folder of categories in the Phys-AD layout, or a list of clips: csv, jsonl, json")
    parser.add_argument("--out", required=True, help="the split file to write, for instance split.json; kfold and leave_* put what tells "
                        "their files apart behind its name")
    parser.add_argument("--protocol", required=True, choices=(*PROTOCOLS, *SEVERAL))
    parser.add_argument("--per-anomaly", type=int, help="weak, leave_anomaly_out: clips of each anomaly that train; None: the published "
                        "number a category")
    parser.add_argument("--ratio", type=float, default=PUBLISHED_RATIO, help="ratio: share of each anomaly's clips that train")
    parser.add_argument("--folds", type=int, default=5, help="kfold: so many files, each clip tested in one")
    parser.add_argument("--leave-out", metavar="NAMES", help="leave_*: write one file without these, comma-separated (fan,gear or "
                        "fan/stuck,gear/single); None: files that leave out each in turn")
    parser.add_argument("--val-share", type=float, default=0.1, help="share of the training clips that is held out for validation")
    parser.add_argument("--categories", help="split these alone, comma-separated; None: all that are there")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> int:
    """0: written; 2: something is wrong, as one message says."""
    options = parse()
    try:
        clips = of_categories(find_clips(options.videos), options.categories)
        contents = make_contents(clips, options)
        for path, content in contents.items():
            write_split(path, content)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path, content in contents.items():
        show(clips, content, path)
    return 0


def make_contents(clips: list[Clip], options: argparse.Namespace) -> dict[str, dict]:
    """The contents of all files to write, by path."""
    if options.protocol in PROTOCOLS:
        if options.leave_out is not None:
            raise ValueError(f"--leave-out belongs to the protocols leave_category_out and leave_anomaly_out, not to {options.protocol!r}")
        return {options.out: make_split(clips, options.protocol, options.seed, options.val_share, options.per_anomaly, options.ratio)}
    made = make_splits(clips, options.protocol, options.seed, options.val_share, options.folds, options.leave_out, options.per_anomaly)
    return {str(file_of(options.out, name)): content for name, content in made.items()}


def show(clips: list[Clip], content: dict, out: str) -> None:
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
    console.print(f"{len(clips)} clips, protocol {content['protocol']}{left_out}, seed {content['seed']} -> {out}")


if __name__ == "__main__":
    sys.exit(main())
