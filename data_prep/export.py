"""Write the dialogues in the JSON of other toolkits, LLaMA-Factory's sharegpt or Video-LLaVA's: same texts as pack.py tokenises, no decoding."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from vlmphys.bridges import FORMATS, SHAREGPT
from vlmphys.clip_lists import find_clips
from vlmphys.dialogue_export import INFO, check_form, make_samples, write_samples
from vlmphys.dialogue_packing import DialogueSettings
from vlmphys.help_text import DefaultsFormatter
from vlmphys.packing import check_clips
from vlmphys.priors import load_priors
from vlmphys.records import Variant
from vlmphys.signals import exit_status
from vlmphys.splits import load_split


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=DefaultsFormatter)
    parser.add_argument("--videos", required=True, help="folder of categories in the Phys-AD layout, or a list of clips (csv, jsonl, json)")
    parser.add_argument("--split", required=True, help="file written by split.py: a file is written for each of its sides")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--format", default=SHAREGPT, choices=FORMATS, help="sharegpt: LLaMA-Factory's, with its dataset_info.json")
    parser.add_argument("--variants", default=Variant.MULTI_TURN.value, help="dialogue variants, separated by commas; files of their own")
    parser.add_argument("--relative", action="store_true", help="write video paths relative to --out instead of whole ones")
    parser.add_argument("--priors", help="folder with your own <category>.yaml files")
    parser.add_argument("--seed", type=int, default=0, help="picks the paraphrases of the questions, as in pack.py")
    parser.add_argument("--system", action="store_true", help="give dialogues Vicuna's system sentence")
    return parser.parse_args()


def main() -> int:
    """0: written; 2: something is wrong, as one message says."""
    options = parse()
    return exit_status(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Make the dialogues, write them, and say where they are."""
    settings = DialogueSettings(tuple(options.variants.split(",")), options.seed, options.system)
    split = load_split(options.split)
    clips = check_clips(find_clips(options.videos), split)
    priors = load_priors({clip.category for clip in clips}, options.priors)
    out = Path(os.path.expanduser(options.out))
    relative_to = out.absolute() if options.relative else None
    made = [make_samples(clips, split, priors, variant, settings.seed, settings.system, relative_to) for variant in settings.variants]
    check_form(out, settings.variants, options.format)
    counts: dict[str, int] = {}
    for samples in made:
        counts.update(write_samples(out, samples, options.format))
    for name, count in counts.items():
        print(f"{out / name}: {count} dialogues")
    if options.format == SHAREGPT:
        print(f"{out / INFO}: names them for LLaMA-Factory (dataset_dir: {out})")


if __name__ == "__main__":
    sys.exit(main())
