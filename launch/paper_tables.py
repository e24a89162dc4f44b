"""The multi-turn paper's tables 1 to 3 from the seeds that launch/reproduce_paper.sh has finished, beside the published figures."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from vlmphys.files import json_bytes, write_atomic, writing
from vlmphys.paper import read_seed, summary, tables
from vlmphys.signals import exit_status


def main() -> int:
    """0: printed and written; 2: something is wrong, as one message says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=Path, required=True, metavar="FOLDER", help="folders of finished seeds: OUT/seed_0 OUT/seed_1 ...")
    parser.add_argument("--out", type=Path, required=True, help="folder for tables.md and tables.json")
    options = parser.parse_args()
    return exit_status(lambda: write(options.seeds, options.out))


def write(folders: list[Path], out: Path) -> None:
    """Read the seeds, write and print. Raises ValueError for folders that are no finished seeds, and for an --out that cannot be written."""
    seeds = [read_seed(folder) for folder in folders]
    made = tables(seeds)
    with writing("--out", out):
        out.mkdir(parents=True, exist_ok=True)
        write_atomic(out / "tables.md", "\n".join(table.markdown() for table in made).encode())
        write_atomic(out / "tables.json", json_bytes(summary(seeds)))
    console = Console()
    for table in made:
        table.show(console if console.is_terminal else Console(width=240))
        console.print()


if __name__ == "__main__":
    sys.exit(main())
