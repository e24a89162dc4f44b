"""Fine-tune on packed data: `deepspeed launch/train.py --config FILE.yaml`, or with torchrun, or with plain python."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import NoReturn


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line. `--local_rank` is what DeepSpeed's launcher adds; the environment says the same."""
    parser = argparse.ArgumentParser(
        description="Fine-tune a Video-LLaVA on packed clips. Every setting is a key of the config; see launch/README.md.")
    parser.add_argument("--config", help="YAML file, for instance launch/recipes/quickstart.yaml")
    parser.add_argument("--set", dest="overrides", metavar="key=value", action="append", nargs="+", default=[],
                        help="override a key of the config")
    parser.add_argument("--data", help="folder written by data_prep/pack.py")
    parser.add_argument("--model", help="'tiny', a Hugging Face folder, or a hub id")
    parser.add_argument("--variant", help="multi_turn, single_turn or no_physics")
    parser.add_argument("--out", help="run folder")
    parser.add_argument("--resume", choices=("auto", "never"), default="auto",
                        help="auto: go on from the newest complete checkpoint in --out (default); never: refuse a folder that is in use")
    parser.add_argument("--dry-run", type=int, nargs="?", const=1, metavar="RANKS",
                        help="read config and data, print the global batch and the number of steps on so many ranks (1), and start nothing")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> int:
    """0: trained, or finished before; 2: something is wrong, as one message says; 128 + the signal's number: stopped by it."""
    arguments = parse()
    flags = {key: getattr(arguments, key) for key in ("data", "model", "variant", "out")}
    from vlmphys.config import load_config
    from vlmphys.signals import Stopped
    try:
        config = load_config(arguments.config, [text for group in arguments.overrides for text in group], flags)
        if arguments.dry_run is not None:
            from vlmphys.plan import describe_steps
            print(describe_steps(config, arguments.dry_run))
            return 0
        from vlmphys.train import train
        train(config, arguments.resume)
    except Stopped as stopped:
        complain(f"stopped by {signal.Signals(stopped.number).name} {stopped}", met_by_all=True)
        return 128 + stopped.number
    except KeyboardInterrupt:
        complain("stopped by SIGINT at once; the same command goes on from the newest checkpoint, if there is one", met_by_all=True)
        return 128 + signal.SIGINT
    except (ValueError, FloatingPointError, OSError) as error:
        complain(f"error: {error}", met_by_all=is_met_by_all(error))
        return 2
    return 0


def is_met_by_all(error: Exception) -> bool:
    """Whether the first rank says the same: the ranks told each other of it, or this is one of several on a machine that have looked at
    the same command and files."""
    from torch import distributed

    from vlmphys.world import Agreed
    return isinstance(error, (Agreed, FloatingPointError)) or (
        not distributed.is_initialized() and int(os.environ.get("LOCAL_RANK", 0)) > 0)


def complain(message: str, met_by_all: bool) -> None:
    """Print to standard error: one line for what all ranks have met, and the rank's name before what may be its own trouble alone."""
    rank = int(os.environ.get("RANK", 0))
    if rank == 0 or not met_by_all:
        print(f"rank {rank}: {message}" if rank else message, file=sys.stderr, flush=True)


def leave(status: int) -> NoReturn:
    """End the process here and now: all files are closed, and threads that gloo and DeepSpeed still hold may abort an interpreter that
    takes itself down, which a launcher reports as a failure of work that is done (seen at the end of a run of two ranks; the like is in
    pytorch/pytorch#190489 and #179291)."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    leave(main())
