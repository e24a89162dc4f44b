"""The command line `vlmphys`: `plan`, `doctor`, `export`, `calibrate` and `detect`. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from vlmphys.cases import gib


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="vlmphys", description="What a run will take, what this machine can do, and what a finished run says of clips. For the rest: launch/.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    plan = commands.add_parser(
        "plan", help="memory, disk, steps and time of a run before anything is loaded",
        description="What a run takes, from its config and the model's config alone. Exit status 0: it fits; 1: it does not; 2: bad input.")
    plan.add_argument("--config", help="YAML file, for instance launch/recipes/single_4090.yaml")
    plan.add_argument("--set", dest="overrides", metavar="key=value", action="append", nargs="+", default=[],
                      help="override a key of the config")
    plan.add_argument("--gpu-gib", type=float, metavar="N", help="memory of one card, GiB   [the cards of this machine]")
    plan.add_argument("--host-gib", type=float, metavar="M", help="host memory of a machine, GiB   [what is free here]")
    plan.add_argument("--disk-gib", type=float, metavar="D",
                      help="free disk, GiB   [with --gpu-gib not looked at, else what is free here]")
    plan.add_argument("--gpus", type=int, metavar="K", help="cards of a machine   [1 with --gpu-gib, else all of this machine]")
    plan.add_argument("--machines", type=int, metavar="N", help="such machines; sharding and global batch are over all of them   [1]")
    plan.add_argument("--data", metavar="DIR", help="packed data, for lengths and steps   [the config's, where it exists]")
    plan.add_argument("--run", metavar="DIR", help="an earlier run with the same settings, for the time")
    plan.add_argument("--settings", action="store_true", help="print only the key=value words with which it fits")
    plan.add_argument("--only-batch", action="store_true", help="where it does not fit, look for a smaller micro-batch alone")
    doctor = commands.add_parser(
        "doctor", help="what this machine has, and what of vlmphys works on it",
        description="Exit status 0: bash launch/quickstart.sh would work; 1: it would not, and the table says why.")
    doctor.add_argument("--build", action="store_true", help="also compile DeepSpeed's CPU optimizer, once in each environment (.venv), about a "
                                                            "minute")
    export = commands.add_parser(
        "export", help="a finished run as a plain Hugging Face folder with a model card",
        description="Writes a new folder that VideoLlavaForConditionalGeneration.from_pretrained loads. Exit status 0: written; 2: it was "
                    "not, and one sentence says why.")
    export.add_argument("--run", required=True, metavar="DIR", help="finished run: the --out of launch/train.py")
    export.add_argument("--out", required=True, metavar="DIR", help="new folder")
    export.add_argument("--merge", action="store_true", help="whole weights, where the run trained an adapter")
    export.add_argument("--scores", metavar="FILE", help="scores.json of this run, for the card   [the one beside its predictions]")
    export.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="precision of the weights   [the run's own]")
    calibrate = commands.add_parser(
        "calibrate", help="a run's temperature and threshold from its val split",
        description="Writes calibration.json into the run folder: launch/predict.py and vlmphys detect then take probability and verdict from it. "
                    "Exit status 0: written; 2: it was not, and one sentence says why.")
    calibrate.add_argument("--run", type=Path, required=True, metavar="DIR", help="finished run: the --out of launch/train.py")
    calibrate.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder written by data_prep/pack.py; its val split is used")
    calibrate.add_argument("--predictions", type=Path, metavar="FILE", help="rows of launch/predict.py --split val   [scored now]")
    calibrate.add_argument("--target-fpr", metavar="RATE",
                           help="the share of normal clips that may be called anomalous, 0.01 say   [the highest balanced accuracy]")
    calibrate.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: the GPU where there is one")
    _add_detect(commands)
    for command in (plan, doctor, calibrate):
        command.add_argument("--json", action="store_true", help="print JSON" + ("" if command is calibrate else ", sizes in bytes"))
    return top


def _add_detect(commands) -> None:
    """The arguments of `vlmphys detect`."""
    detect = commands.add_parser(
        "detect", help="one clip, a folder, a list of paths or a watched folder: verdict, probability, reason",
        description="Exit status 0: every clip is normal; 3: one is anomalous; 2: one could not be judged, or the command could not begin.")
    detect.add_argument("target", nargs="*", metavar="FILE|FOLDER|-", help="clips and folders of clips, or - for paths on standard input, one a line")
    detect.add_argument("--run", type=Path, required=True, metavar="DIR", help="finished run: the --out of launch/train.py")
    detect.add_argument("--category", required=True, metavar="C", help="what the clips show, such as fan; auto names the likeliest of the run's")
    detect.add_argument("--priors", type=Path, metavar="DIR", help="folder of your own priors, as in training")
    detect.add_argument("--json", action="store_true", help="one line of JSON a clip instead of a panel")
    detect.add_argument("--html", type=Path, metavar="FILE", help="also write one page with film strips")
    detect.add_argument("--window", metavar="4s", help="cut each video into windows of this length; the highest score is the video's")
    detect.add_argument("--stride", metavar="2s", help="from one window's begin to the next one's   [half a window]")
    detect.add_argument("--explain", choices=["all", "anomalous", "none"], default="all", help="which clips get a reason; none is faster   [all]")
    detect.add_argument("--watch", type=Path, metavar="DIR", help="judge each clip that appears in this folder, once, also after a restart")
    detect.add_argument("--state", type=Path, metavar="FILE", help="with --watch: the journal   [DIR/detections.jsonl]")
    detect.add_argument("--settle", default="1s", metavar="1s", help="with --watch: how long a file must not have grown before it is read   [1s]")
    detect.add_argument("--until-idle", metavar="60s", help="with --watch: end when nothing has come for so long   [watch until interrupted]")
    detect.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: the GPU where there is one")
    detect.add_argument("--dtype", choices=["auto", "fp32", "bf16", "4bit"], default="auto",
                        help="as in launch/predict.py   [bf16 on a GPU, fp32 on a CPU]")


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit status; what goes wrong is one sentence on stderr and 2."""
    arguments = parser().parse_args(argv)
    try:
        return {"plan": plan, "doctor": doctor, "export": export, "calibrate": calibrate, "detect": detect}[arguments.command](arguments)
    except ValueError as error:
        return _refuse(str(error))
    except BrokenPipeError:
        # The reader has gone, as `| head` does: nothing more can be said, and what is still buffered must not fail at the end of the process.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        return _refuse(f"{error}; correct this (a full disk, a folder that may not be written, a file that is missing) and run the same "
                       "command again")
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except SafetensorError as error:
        return _refuse(f"a file of weights is damaged ({error}): put it back, or train again")


def _refuse(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def plan(arguments: argparse.Namespace) -> int:
    """`vlmphys plan`."""
    from vlmphys.config import load_config
    config = load_config(arguments.config, [text for group in arguments.overrides for text in group])
    from vlmphys.plan import machine_of, make_plan
    machine = machine_of(config, arguments.gpu_gib, arguments.host_gib, arguments.gpus, disk_gib=arguments.disk_gib,
                         machines=arguments.machines)
    result = make_plan(config, machine, arguments.data, arguments.run, arguments.only_batch)
    if arguments.settings:
        return _settings(result)
    _print(result, arguments.json, show_plan)
    return 0 if result["fits"] else 1


def _settings(result: dict[str, Any]) -> int:
    """The words of the fitting settings on stdout and 0, or on stderr what is short, even with the least demanding ones, and 1."""
    if result["fitting"]:
        if result["fitting"]["set"]:
            print(result["fitting"]["set"])
        return 0
    least = result["least"]
    print(f"error: it does not fit ({result['machine']['described']}): {'; '.join(result['as_given']['shortages'])}"
          + (f"; even with {least['set']}: {'; '.join(least['shortages'])}" if least["set"] else ""), file=sys.stderr)
    return 1


def doctor(arguments: argparse.Namespace) -> int:
    """`vlmphys doctor`."""
    from vlmphys.doctor import report
    result = report(arguments.build)
    _print(result, arguments.json, show_doctor)
    return 0 if result["quickstart"] else 1


def export(arguments: argparse.Namespace) -> int:
    """`vlmphys export`."""
    from rich.console import Console

    from vlmphys.export import export as write
    write(arguments.run, arguments.out, arguments.merge, arguments.scores, arguments.dtype, Console())
    return 0


def calibrate(arguments: argparse.Namespace) -> int:
    """`vlmphys calibrate`."""
    from vlmphys.finished import chance_note, check_packed, check_run
    target_fpr = rate_of(arguments.target_fpr)
    check_run(arguments.run)
    check_packed(arguments.data)
    if arguments.predictions is not None and not arguments.predictions.exists():
        raise ValueError(f"--predictions {arguments.predictions}: no such file; write it with launch/predict.py --split val, or leave it out")
    from vlmphys.calibrate import calibrate as fit
    from vlmphys.calibrate import show
    _print(fit(arguments.run, arguments.data, arguments.predictions, target_fpr, arguments.device), arguments.json, show)
    if note := chance_note(arguments.run):
        print(f"note: {note}", file=sys.stderr)
    return 0


def rate_of(text: str | None) -> float | None:
    """The share that --target-fpr gives, between 0 and 1. Raises ValueError for anything else."""
    try:
        rate = None if text is None else float(text)
    except ValueError:
        rate = 0.0
    if rate is not None and not 0 < rate < 1:
        raise ValueError(f"--target-fpr {text}: a share of the normal clips between 0 and 1 is needed, 0.01 for one in a hundred")
    return rate


def detect(arguments: argparse.Namespace) -> int:
    """`vlmphys detect`."""
    from rich.console import Console

    from vlmphys.detect import DetectOptions, detect, seconds_of
    from vlmphys.predictions import Explain
    given = {key: value for key, value in vars(arguments).items() if key != "command"}
    times = {key: given[key] if given[key] is None else seconds_of(given[key]) for key in ("window", "stride", "settle", "until_idle")}
    return detect(DetectOptions(**{**given, **times, "explain": Explain(given["explain"])}), Console())


def _print(result: dict[str, Any], as_json: bool, show) -> None:
    if as_json:
        print(json.dumps(result, indent=1))
        return
    from rich.console import Console
    show(result, Console())


def _table(title: str, *columns: str, right: tuple[str, ...] = ()):
    """An empty table; columns named in `right` are aligned there, and no cell is cut short."""
    from rich.table import Table
    table = Table(title=title, title_justify="left", show_header=any(columns))
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def show_plan(result: dict[str, Any], console) -> None:
    """A plan as tables and sentences."""
    def say(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    console.print(_parameters(result))
    console.print(_as_given(result))
    if result["options"]:
        console.print(_options(result))
    for one in result["options"]:
        if one["shortages"]:
            say(f"{Path(one['sharding']).name}: {'; '.join(one['shortages'])}")
    say(f"machine: {result['machine']['described']}")
    say(f"data: {result['data']}")
    steps = f"{result['steps']}, {result['global_batch']} clips each" if result["steps"] else f"not known, {result['steps_reason']}"
    say(f"steps: {steps}")
    time = result["time"]
    say(f"time: about {time['seconds'] / 60:.1f} minutes, at {time['reason']}" if time["seconds"] else f"time: not known, {time['reason']}")
    assumed = time["assumed"]
    if assumed["clips_per_second"] and not time["seconds"]:
        length = f"{assumed['seconds'] / 60:.0f} minutes, " if assumed["seconds"] else ""
        say(f"time, guessed: {length}{assumed['clips_per_second']:.2f} clips/s; {assumed['reason']}")
    for refusal in result["refused_files"]:
        say(f"left out: {refusal}")
    if result["fits"]:
        say(f"it fits as it is{_if_disk(result, result['as_given'])}")
        return
    say(f"it does not fit: {'; '.join(result['as_given']['shortages'])}")
    if result["fitting"]:
        say(f"this fits{_if_disk(result, result['fitting'])}: --set {result['fitting']['set']}")
    else:
        say(f"nothing fits; the least: --set {result['least']['set']}, and even then {'; '.join(result['least']['shortages'])}")


def _if_disk(result: dict[str, Any], one: dict[str, Any]) -> str:
    """The condition of what fits a machine whose disk is not known; empty where it was looked at."""
    if result["machine"]["disk"] is not None:
        return ""
    need = one["disk_total"] + sum(sum(parts.values()) for parts in one["disk_elsewhere"].values())
    return f", if {gib(need)} of disk are free"


def _parameters(result: dict[str, Any]):
    counts = result["parameters"]
    table = _table(f"parameters of {result['model']}", "part", "parameters", "trained", right=("parameters", "trained"))
    groups = {**counts["groups"], **({"LoRA": counts["trained_total"]} if "LoRA" in counts["trained"] else {})}
    for group, count in groups.items():
        table.add_row(group, f"{count:,}", f"{counts['trained'][group]:,}" if group in counts["trained"] else "frozen")
    table.add_section()
    table.add_row("all that is loaded", f"{counts['total']:,}", f"{counts['trained_total']:,}")
    table.add_row("published, with both towers", f"{counts['published_total']:,}", "")
    return table


def _as_given(result: dict[str, Any]):
    """Each place's parts in the phase in which it is fullest, and what the other phases come to."""
    given, machine = result["as_given"], result["machine"]
    table = _table(f"as given: {Path(given['sharding']).name}, batch {_batch(given)}; estimates", "where", "what", "bytes",
                   right=("bytes",))
    for where, phases, limit in (("each card", given["gpu"], machine["gpu"]), (_host(result), given["host"], machine["host"]),
                                 ("disk", {"the whole run": given["disk"]}, machine["disk"]),
                                 *((f"disk of {folder}", {"offload": parts}, None) for folder, parts in given["disk_elsewhere"].items())):
        totals = {phase: sum(parts.values()) for phase, parts in phases.items()}
        if not totals:
            continue
        fullest = max(totals, key=totals.get)
        for phase, total in totals.items():
            if phase != fullest:
                table.add_row(where, phase, gib(total), style="dim")
        known = limit is not None
        style = "bold red" if known and totals[fullest] > limit else "bold"
        table.add_row(where, fullest, gib(totals[fullest]) + (f" of {gib(limit)}" if known else ""), style=style)
        for part, size in phases[fullest].items():
            if size:
                table.add_row("", f"  {part}", gib(size))
        table.add_section()
    return table


def _host(result: dict[str, Any]) -> str:
    return "each host" if result["machine"]["machines"] > 1 else "host memory"


def _options(result: dict[str, Any]):
    """The largest micro-batch that fits with each DeepSpeed file, best first."""
    numbers = ("each card", _host(result), "disk")
    title = "the largest micro-batch that fits (micro-batch x accumulation x ranks)"
    table = _table(title, "file", "batch", *numbers, "fits", right=numbers)
    for one in result["options"]:
        table.add_row(Path(one["sharding"]).stem, _batch(one), gib(one["gpu_peak"]), gib(one["host_peak"]), gib(one["disk_total"]),
                      "no" if one["shortages"] else "yes")
    return table


def _batch(one: dict[str, Any]) -> str:
    """Micro-batch, accumulation and ranks: their product is the global batch."""
    return f"{one['per_device_train_batch_size']} x {one['gradient_accumulation_steps']} x {one['ranks']}"


def show_doctor(result: dict[str, Any], console) -> None:
    """What there is, and what works."""
    from rich.text import Text
    here = _table("this machine", "", "")
    for name, value in _machine_rows(result):
        here.add_row(name, Text(value))
    console.print(here)
    works = _table("what works here", "", "", "")
    for check in result["checks"]:
        works.add_row(check["part"], Text("yes", "green") if check["works"] else Text("no", "red"), Text(check["remark"]))
    console.print(works)


def _machine_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    cpu, memory, adam, video = result["cpu"], result["host_memory"], result["cpu_adam"], result["video"]
    gpus = [f"{gpu['name']}, {gib(gpu['free'])} of {gib(gpu['total'])} free, {'bf16' if gpu['bf16'] else 'no bf16'}"
            for gpu in result["gpus"]]
    compiled = f"{'compatible' if adam['compatible'] else 'not compatible'}, {'compiled' if adam['compiled'] else 'not compiled'}"
    return [
        ("python", f"{result['python']}, {sys.executable}"),
        *((name, version or "not installed") for name, version in result["packages"].items()),
        ("GPU", "; ".join(gpus) or "none"),
        ("CPU", f"{cpu['cores']} core(s), {cpu['name']}, {'with' if cpu['avx512_bf16'] else 'without'} avx512_bf16"),
        ("host memory", f"{gib(memory['available'])} of {gib(memory['total'])} free"),
        ("disk", f"{gib(result['free_disk'])} free in this folder"),
        ("C++ compiler", result["compiler"] or "none"), ("ninja", result["ninja"] or "none"), ("cpu_adam", adam["error"] or compiled),
        ("aio", result["aio"]["error"] or ("compatible" if result["aio"]["compatible"] else "no libaio")),
        ("bitsandbytes", result["bitsandbytes"] or "not installed"),
        ("readers", "; ".join(f"{name}: {state}" for name, state in video["readers"].items())),
        ("codecs", ", ".join(f"{name}: {'yes' if there else 'no'}" for name, there in video["codecs"].items())),
        ("H.264 encoder", video["h264_encoder"] or "none"),
        ("tiny model", f"lacks {', '.join(result['tiny_base']['missing'])}" if result["tiny_base"]["missing"] else "there")]


if __name__ == "__main__":
    sys.exit(main())
