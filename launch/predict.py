"""Predict packed clips: `python launch/predict.py --run runs/NAME --data packed --split test --out predictions.jsonl`; on several GPUs with
`deepspeed` or `torchrun` in place of `python`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from vlmphys.finished import check_packed, check_run
from vlmphys.predictions import Explain, Grounding
from vlmphys.records import Split, Variant


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line. `--local_rank` is what DeepSpeed's launcher adds; the environment says the same."""
    parser = argparse.ArgumentParser(description="The log-odds of the two verdicts and an explanation for each clip, one row a clip, "
                                                 "written as it goes. Run again to go on where it stopped.")
    parser.add_argument("--run", type=Path, help="run folder of launch/train.py")
    parser.add_argument("--model", help="instead of --run, a model as it is: 'tiny', a Hugging Face folder, or a hub id")
    parser.add_argument("--variant", type=Variant, nargs="+", default=[], metavar="{%s}" % ",".join(Variant),
                        help="with --model: which dialogue to ask in, or several, which share the video's prefill; each gets a file of its own")
    parser.add_argument("--data", type=Path, required=True, help="folder written by data_prep/pack.py")
    parser.add_argument("--split", type=Split, default=Split.TEST, metavar="{%s}" % ",".join(Split), help="which side (default: test)")
    parser.add_argument("--out", type=Path, required=True, help="predictions.jsonl to write or to go on with")
    parser.add_argument("--ground", type=Grounding, nargs="+", default=[Grounding.PRIOR], metavar="{%s}" % ",".join(Grounding),
                        help="where the answers before the verdict come from: the prior (default), the model itself, or nowhere (the verdict's "
                             "question alone); several get a file each; no_physics has none")
    parser.add_argument("--explain", type=Explain, default=Explain.ALL, metavar="{%s}" % ",".join(Explain),
                        help="which clips get an explanation (default: all); scores alone are much faster")
    parser.add_argument("--describe", action="store_true", help="a description of the motion, too, for PAEval, of the clips that are explained")
    parser.add_argument("--batch-size", type=int, help="clips at a time (default: what a cache of 4 GiB holds, at most 32)")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="longest answer of the model in tokens (default: 128)")
    parser.add_argument("--max-clips", type=int, help="only so many clips, evenly spread over categories and states")
    parser.add_argument("--dtype", choices=["auto", "fp32", "bf16", "4bit"], default="auto",
                        help="auto: bf16 on a GPU, fp32 on a CPU; 4bit: the language model's weights in 4 bits, on a GPU")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: the GPU where there is one")
    parser.add_argument("--features", choices=["auto", "true", "false"], default="auto",
                        help="what data_prep/pack.py --features stored, in place of pixels; auto: where it is there and of this very tower")
    parser.add_argument("--no-calibration", dest="calibrated", action="store_false",
                        help="probability and verdict from the raw score, whatever calibration.json the run has")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def ranks() -> dict[str, int]:
    """This process among those that a launcher started: its number, how many they are, and its number on this machine."""
    found = {}
    for name, key, default in (("rank", "RANK", "0"), ("ranks", "WORLD_SIZE", "1"), ("local_rank", "LOCAL_RANK", "0")):
        text = os.environ.get(key, default)
        if not text.isdecimal():
            raise ValueError(f"{key} is {text!r} in the environment: start the ranks with `deepspeed` or `torchrun`, or unset it")
        found[name] = int(text)
    if not 0 <= found["rank"] < found["ranks"]:
        raise ValueError(f"RANK is {found['rank']} and WORLD_SIZE {found['ranks']}: start the ranks with `deepspeed` or `torchrun`, or unset both")
    return found


def share_cores() -> None:
    """Without a GPU ranks on one machine share its cores: each would use all of them, and two ranks be slower than one."""
    import torch
    size = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or os.environ.get("WORLD_SIZE", 1))
    if size > 1 and not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // size))


def main() -> int:
    """0: every clip of this process has its row; 2: something is wrong, as one message says; 130: interrupted."""
    arguments = vars(parse())
    arguments.pop("local_rank")
    rank = os.environ.get("RANK", "0")
    from safetensors import SafetensorError
    try:
        if arguments["run"] is not None:
            check_run(arguments["run"])
        check_packed(arguments["data"])
        from rich.console import Console
        from transformers.utils import logging
        logging.set_verbosity_error()  # the image tower's weights are not loaded, on purpose: no need to report them
        logging.disable_progress_bar()
        from vlmphys.predict import PredictOptions, predict
        share_cores()
        lists = {key: tuple(arguments.pop(key)) for key in ("variant", "ground")}
        predict(PredictOptions(**arguments, **lists, **ranks()), Console())
    except (ValueError, OSError, SafetensorError) as error:
        cure = ("; the rows written so far are kept: correct this (a full disk, a folder that may not be written, a file that is missing) and run "
                "the same command again" if isinstance(error, OSError) else "")
        print(f"{'' if rank == '0' else f'rank {rank}: '}error: {error}{cure}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: the rows written so far are kept, run the same command again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
