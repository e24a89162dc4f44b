"""The command line `vlmphys`: `plan` and `doctor`. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import argparse
import json
import sys


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="vlmphys", description="What a run will take, and what this machine can do. Training, prediction and scoring: see launch/.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    plan = commands.add_parser("plan", help="memory, disk, steps and time of a run before anything is loaded",
                               description="What a run takes, from its config and the model's config alone. Exit status 0: it fits; 1: it does not; 2: bad input.")
    plan.add_argument("--config", help="YAML file, for instance launch/recipes/single_4090.yaml")
    plan.add_argument("--set", dest="overrides", metavar="key=value", action="append", nargs="+", default=[], help="override a key of the config")
    plan.add_argument("--gpu-gib", type=float, metavar="N", help="memory of one card, GiB   [the cards of this machine]")
    plan.add_argument("--host-gib", type=float, metavar="M", help="host memory of the machine, GiB   [what is free here]")
    plan.add_argument("--gpus", type=int, metavar="K", help="cards, all in one machine   [1 with --gpu-gib, else all of this machine]")
    plan.add_argument("--data", metavar="DIR", help="packed data, for lengths and steps   [the config's, where it exists]")
    plan.add_argument("--run", metavar="DIR", help="an earlier run with the same settings, for the time")
    doctor = commands.add_parser("doctor", help="what this machine has, and what of vlmphys works on it",
                                 description="Exit status 0: bash launch/quickstart.sh would work; 1: it would not, and the table says why.")
    doctor.add_argument("--build", action="store_true", help="also compile DeepSpeed's CPU optimizer, about a minute")
    for command in (plan, doctor):
        command.add_argument("--json", action="store_true", help="print JSON, sizes in bytes")
    return top


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status; bad input is one sentence on stderr and 2."""
    arguments = parser().parse_args(argv)
    try:
        return plan(arguments) if arguments.command == "plan" else doctor(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def plan(arguments: argparse.Namespace) -> int:
    """`vlmphys plan`."""
    from vlmphys.config import load_config
    config = load_config(arguments.config, [text for group in arguments.overrides for text in group])
    from vlmphys import plan as plans
    machine = plans.machine_of(config, arguments.gpu_gib, arguments.host_gib, arguments.gpus)
    result = plans.make_plan(config, machine, arguments.data, arguments.run)
    _print(result, arguments.json, plans.show)
    return 0 if result["fits"] else 1


def doctor(arguments: argparse.Namespace) -> int:
    """`vlmphys doctor`."""
    from vlmphys import doctor as doctors
    result = doctors.report(arguments.build)
    _print(result, arguments.json, doctors.show)
    return 0 if result["quickstart"] else 1


def _print(result: dict, as_json: bool, show) -> None:
    if as_json:
        print(json.dumps(result, indent=1))
    else:
        from rich.console import Console
        show(result, Console())


if __name__ == "__main__":
    sys.exit(main())
