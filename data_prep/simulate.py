"""Write videos of simulated mechanisms in the Phys-AD layout, each with its ground truth beside it.

    python data_prep/simulate.py --out videos --categories fan,gear --clips-per-state 12
    python data_prep/simulate.py --preview pictures
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from vlmphys.help_text import DefaultsFormatter
from vlmphys.preview import write_preview
from vlmphys.signals import exit_status
from vlmphys.simulation import SimulationConfig, simulate_bench


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=DefaultsFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, help="folder to write; may hold an earlier, unfinished run of the same settings")
    where.add_argument("--preview", type=Path, metavar="DIR", help="write pictures instead of a bench: a contact sheet and an animation a "
                       "category, an overview of all; reads --categories, --seed and --appearance alone")
    parser.add_argument("--categories", default="all", help="comma-separated names, or 'all'")
    parser.add_argument("--clips-per-state", type=int, default=12, metavar="N", help="clips in each test folder; the train folder gets --train-clips")
    parser.add_argument("--train-clips", type=int, default=None, metavar="N",
                        help="normal clips in each train folder (default: twice --clips-per-state)")
    parser.add_argument("--size", type=int, default=224, help="width and height in pixels, even")
    parser.add_argument("--appearance", default="physad", choices=["physad", "wild"], help="as Phys-AD films it, or anything goes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=None, metavar="N", help="processes (default: one a CPU core)")
    return parser.parse_args(arguments)


def preview(folder: Path, config: SimulationConfig) -> None:
    """Write the pictures and say where they are."""
    with Progress(TextColumn("preview {task.fields[category]}"), BarColumn(), MofNCompleteColumn()) as bar:
        task = bar.add_task("preview", total=len(config.categories), category="")
        files = write_preview(folder, config.categories, config.seed, config.appearance,
                              lambda category: bar.update(task, advance=1, category=category))
    print(f"{folder}: {len(files)} pictures, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB; all on one: {files[-1]}")


def main() -> int:
    options = parse_arguments()
    return exit_status(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Preview or write. Raises ValueError where an option or a folder does not fit."""
    config = SimulationConfig.create(options.categories, options.clips_per_state, options.train_clips, options.size, options.appearance,
                                     options.seed)
    if options.preview is not None:
        preview(options.preview, config)
    else:
        simulate_bench(options.out, config, options.workers)


if __name__ == "__main__":
    sys.exit(main())
