"""Write split.json: which clips train, which validate, which are tested."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console
from rich.table import Table

from vlmphys.layout import scan_videos
from vlmphys.splits import PROTOCOLS, PUBLISHED_RATIO, count_sides, make_split, of_categories, untested_normals, write_split


def main() -> int:
    """0: written; 2: something is wrong, as one message says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--videos", required=True, help="folder of categories in the Phys-AD layout")
    parser.add_argument("--out", required=True, help="the split file to write, for instance split.json")
    parser.add_argument("--protocol", required=True, choices=PROTOCOLS)
    parser.add_argument("--per-anomaly", type=int, help="weak: clips of each anomaly that train; None: the published number a category")
    parser.add_argument("--ratio", type=float, default=PUBLISHED_RATIO, help="ratio: share of each anomaly's clips that train")
    parser.add_argument("--val-share", type=float, default=0.1, help="share of the training clips that is held out for validation")
    parser.add_argument("--categories", help="split these alone, comma-separated; None: all that are there")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        clips = of_categories(scan_videos(options.videos), options.categories)
        content = make_split(clips, options.protocol, options.seed, options.val_share, options.per_anomaly, options.ratio)
        write_split(options.out, content)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    show(clips, content, options.out)
    return 0


def show(clips, content: dict, out: str) -> None:
    """Print, by category, how many normal and anomalous clips stand on each side, and what is amiss."""
    table = Table("category", *(f"{side} normal + anomalous" for side in ("train", "val", "test")))
    for category, counts in count_sides(clips, content).items():
        table.add_row(category, *(f"{counts[side, 0]} + {counts[side, 1]}" for side in ("train", "val", "test")))
    console = Console()
    console.print(table)
    for warning in untested_normals(clips, content):
        console.print(f"warning: {warning}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{len(clips)} clips, protocol {content['protocol']}, seed {content['seed']} -> {out}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
