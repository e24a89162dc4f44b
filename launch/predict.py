"""Predict packed clips: `python launch/predict.py --run runs/NAME --data packed --split test --out predictions.jsonl`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vlmphys.predictions import Explain
from vlmphys.records import Split, Variant


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="The log-odds of the two verdicts and an explanation for each clip, one row a clip, "
                                                 "written as it goes. Run again to go on where it stopped.")
    parser.add_argument("--run", type=Path, help="run folder of launch/train.py")
    parser.add_argument("--model", help="instead of --run, a model as it is: 'tiny', a Hugging Face folder, or a hub id")
    parser.add_argument("--variant", type=Variant, metavar="{%s}" % ",".join(Variant), help="with --model: which dialogue to ask in")
    parser.add_argument("--data", type=Path, required=True, help="folder written by data_prep/pack.py")
    parser.add_argument("--split", type=Split, default=Split.TEST, metavar="{%s}" % ",".join(Split), help="which side (default: test)")
    parser.add_argument("--out", type=Path, required=True, help="predictions.jsonl to write or to go on with")
    parser.add_argument("--ground", choices=["prior"], default="prior",
                        help="where the answers before the verdict come from: the prior (default); no_physics has none")
    parser.add_argument("--explain", type=Explain, default=Explain.ALL, metavar="{%s}" % ",".join(Explain),
                        help="which clips get an explanation (default: all); scores alone are much faster")
    parser.add_argument("--batch-size", type=int, help="clips at a time (default: what a cache of 4 GiB holds, at most 32)")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="longest explanation in tokens (default: 128)")
    parser.add_argument("--max-clips", type=int, help="only so many clips, evenly spread over categories and states")
    parser.add_argument("--dtype", choices=["auto", "fp32", "bf16"], default="auto", help="auto: bf16 on a GPU, fp32 on a CPU")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: the GPU where there is one")
    parser.add_argument("--features", choices=["auto", "true", "false"], default="auto",
                        help="what data_prep/pack.py --features stored, in place of pixels; auto: where it is there and of this very tower")
    parser.add_argument("--no-calibration", dest="calibrated", action="store_false",
                        help="probability and verdict from the raw score, whatever calibration.json the run has")
    return parser.parse_args(arguments)


def main() -> int:
    """0: every clip has its row; 2: something is wrong, as one message says; 130: interrupted."""
    arguments = vars(parse())
    arguments.pop("ground")
    from rich.console import Console
    from transformers.utils import logging
    logging.set_verbosity_error()  # the image tower's weights are not loaded, on purpose: no need to report them
    logging.disable_progress_bar()
    try:
        from vlmphys.predict import PredictOptions, predict
        predict(PredictOptions(**arguments), Console())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: the rows written so far are kept, run the same command again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
