"""Build the tiny base model from this repository alone: simulate, teach the tower to read frames, then the language model to read motion.

    python launch/build_tiny_base.py --out vlmphys/tiny_base

It sees mechanisms move rightly and wrongly, from seeds that no benchmark uses, and is never asked for a verdict.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vlmphys.pretrain.build import BuildConfig, build_tiny_base


def parse_arguments() -> argparse.Namespace:
    defaults = BuildConfig()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="new or empty folder for the Hugging Face files")
    parser.add_argument("--work", type=Path, default=Path("runs/tiny_base"), help="folder for what an interrupted build can take up")
    parser.add_argument("--overwrite", action="store_true", help="replace what stands in --out")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--workers", type=int, default=defaults.workers)
    parser.add_argument("--tower-clips", type=int, default=defaults.tower_clips)
    parser.add_argument("--tower-steps", type=int, default=defaults.tower_steps)
    parser.add_argument("--language-clips", type=int, default=defaults.language_clips)
    parser.add_argument("--language-steps", type=int, default=defaults.language_steps)
    parser.add_argument("--language-rounds", type=int, default=defaults.language_rounds)
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    if options.out.exists() and any(options.out.iterdir()) and not options.overwrite:
        print(f"error: {options.out} is not empty: give a new folder as --out, or --overwrite", file=sys.stderr)
        return 2
    config = BuildConfig(seed=options.seed, workers=options.workers, tower_clips=options.tower_clips, tower_steps=options.tower_steps,
                         language_clips=options.language_clips, language_steps=options.language_steps,
                         language_rounds=options.language_rounds)
    build_tiny_base(options.out, options.work, config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
