"""Write videos of simulated mechanisms in the Phys-AD layout, each with its ground truth beside it.

    python data_prep/simulate.py --out videos --categories fan,gear --clips-per-state 12
    python data_prep/simulate.py --preview pictures
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from vlmphys.preview import write_preview
from vlmphys.signals import exit_status
from vlmphys.simulation import SimulationConfig, simulate_bench

CLIPS_PER_STATE, SIZE = 12, 224


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, help="folder to write; may hold an earlier, unfinished run of the same settings")
    where.add_argument("--preview", type=Path, metavar="DIR", help="write pictures instead of a bench: a contact sheet and an animation a "
                       "category, an overview of all; reads --categories, --seed and --appearance alone")
    parser.add_argument("--categories", default="all", help="comma-separated names, or 'all' (default: all)")
    # No defaults here, so that --preview, which reads none of these, can tell that one was given.
    parser.add_argument("--clips-per-state", type=int, metavar="N",
                        help=f"clips in each test folder; the train folder gets --train-clips (default: {CLIPS_PER_STATE})")
    parser.add_argument("--train-clips", type=int, metavar="N", help="normal clips in each train folder (default: twice --clips-per-state)")
    parser.add_argument("--size", type=int, help=f"width and height in pixels, even (default: {SIZE})")
    parser.add_argument("--appearance", default="physad", choices=["physad", "wild"],
                        help="as Phys-AD films it, or anything goes (default: physad)")
    parser.add_argument("--seed", type=int, default=0, help="of all that varies from clip to clip, 0 or above (default: 0)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one a CPU core)")
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
    of_a_bench = {"--clips-per-state": options.clips_per_state, "--train-clips": options.train_clips, "--size": options.size,
                  "--workers": options.workers}
    given = [option for option, value in of_a_bench.items() if value is not None]
    if options.preview is not None and given:
        raise ValueError(f"{', '.join(given)}: --preview, which writes no bench, does not read {'it' if len(given) == 1 else 'them'}: leave "
                         f"{'it' if len(given) == 1 else 'them'} out, or give --out in place of --preview")
    clips, size = (CLIPS_PER_STATE if options.clips_per_state is None else options.clips_per_state), SIZE if options.size is None else options.size
    config = SimulationConfig.create(options.categories, clips, options.train_clips, size, options.appearance, options.seed)
    if options.preview is not None:
        preview(options.preview, config)
    else:
        simulate_bench(options.out, config, options.workers)


if __name__ == "__main__":
    sys.exit(main())
