"""The multi-turn paper's tables 1 to 3 from the seeds that launch/reproduce_paper.sh has finished, beside the published figures."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

from vlmphys.files import json_bytes, write_atomic
from vlmphys.paper import read_seed, summary, tables


def main() -> int:
    """0: printed and written; 2: something is wrong, as one message says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=Path, required=True, metavar="FOLDER", help="folders of finished seeds: OUT/seed_0 OUT/seed_1 ...")
    parser.add_argument("--out", type=Path, required=True, help="folder for tables.md and tables.json")
    options = parser.parse_args()
    try:
        seeds = [read_seed(folder) for folder in options.seeds]
        made = tables(seeds)
        try:
            options.out.mkdir(parents=True, exist_ok=True)
            write_atomic(options.out / "tables.md", "\n".join(table.markdown() for table in made).encode())
            write_atomic(options.out / "tables.json", json_bytes(summary(seeds)))
        except OSError as error:
            raise ValueError(f"--out {options.out} cannot be written ({error.strerror}): give a folder that you may write to") from error
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    console = Console()
    for table in made:
        table.show(console if console.is_terminal else Console(width=240))
        console.print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
