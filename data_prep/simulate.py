"""Write videos of simulated mechanisms in the Phys-AD layout, each with its ground truth beside it.

    python data_prep/simulate.py --out videos --categories fan,gear --clips-per-state 12
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vlmphys.simulation import SimulationConfig, simulate_bench


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; may hold an earlier, unfinished run of the same settings")
    parser.add_argument("--categories", default="all", help="comma-separated names, or 'all'")
    parser.add_argument("--clips-per-state", type=int, default=12, metavar="N", help="clips in each test folder; the train folder gets --train-clips")
    parser.add_argument("--train-clips", type=int, default=None, metavar="N", help="normal clips in each train folder (default: twice --clips-per-state)")
    parser.add_argument("--size", type=int, default=224, help="width and height in pixels, even")
    parser.add_argument("--appearance", default="physad", choices=["physad", "wild"], help="as Phys-AD films it, or anything goes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=None, metavar="N", help="processes (default: one a CPU core)")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse_arguments()
    try:
        config = SimulationConfig.create(options.categories, options.clips_per_state, options.train_clips, options.size, options.appearance, options.seed)
        simulate_bench(options.out, config, options.workers)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
