"""What the true motion tells: a forest on the simulated trajectories, with all frames and with as few as a model sees.

    python tests/bench/oracle.py --videos videos [--frames 8,16,32]

Reads the .json beside each simulated clip. "true": all frames, exact. The other columns: uniformly sampled frames, read with the error of a
viewer of small pictures (--grain), since exact values betray a fault that no picture would show. A category whose figure falls by more than
.02 with 8 frames is named, with the number of frames that does not lose as much: its motion is faster than 8 frames can follow. "8 uneven" is
the other cure: as many frames, with gaps of one and two lengths in turn, so that no period of a motion falls on all of them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from vlmphys.files import check_target, json_bytes, read_json, write_atomic, writing
from vlmphys.frame_rules import VideoError, frame_indices
from vlmphys.layout import NORMAL_STATE, Clip, scan_videos
from vlmphys.mechanisms import known_mechanisms, load_mechanism
from vlmphys.probing import Separation, forest, out_of_fold_auroc, trajectory_statistics
from vlmphys.records import stable_int
from vlmphys.signals import exit_status

ALL = 0                     # in place of a number of frames
COUNTS = (4, 8, 16, 32)
MODEL_FRAMES = 8
UNEVEN = f"{MODEL_FRAMES} uneven"
LOSS_LIMIT, ENOUGH = 0.02, 0.99
REPEATS = 2
ANGLE_GRAIN = 2.0           # radians for a scene unit: the error of an angle that is read at half a unit from the axis


def turning_channels(category: str) -> frozenset[str]:
    """The channels that a viewer reads modulo a turn; none for a category that no mechanism here makes."""
    if category not in known_mechanisms():
        return frozenset()
    return frozenset(part.channel for part in load_mechanism(category).PARTS if part.is_turn)


def read_trajectory(clip: Clip) -> dict[str, np.ndarray]:
    """The channels of one clip, one value a frame each. Raises ValueError for a clip without its truth, or with a broken one."""
    path = clip.path.with_suffix(".json")
    truth = read_json(path, "the oracle reads benches that data_prep/simulate.py wrote, the truth beside each clip")
    channels = truth.get("trajectory")
    if not isinstance(channels, dict) or not channels:
        raise ValueError(f"{path}: holds no trajectory; write the clip anew with data_prep/simulate.py")
    try:
        values = {name: np.asarray(channels[name], dtype=float) for name in sorted(channels)}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: a channel holds no list of numbers; write the clip anew with data_prep/simulate.py") from error
    if len({one.shape for one in values.values()}) > 1 or next(iter(values.values())).ndim != 1:
        raise ValueError(f"{path}: its channels differ in length; write the clip anew with data_prep/simulate.py")
    if len(next(iter(values.values()))) < 2:
        raise ValueError(f"{path}: its trajectory has fewer than 2 frames, which show no motion; write the clip anew with data_prep/simulate.py")
    return values


def read_bench(clips: list[Clip]) -> dict[str, dict[str, np.ndarray]]:
    """The channels of all clips, by clip id, so that a bad one is told before anything is computed. Raises ValueError as `read_trajectory`,
    and where the clips of a category hold different channels."""
    trajectories = {clip.clip_id: read_trajectory(clip) for clip in clips}
    for category in sorted({clip.category for clip in clips}):
        if len({tuple(trajectories[clip.clip_id]) for clip in clips if clip.category == category}) > 1:
            raise ValueError(f"{category}: its clips hold different channels: the bench is of two versions, write it anew")
    return trajectories


def uneven_indices(n_frames: int, frames: int) -> np.ndarray:
    """`frames` frames from the first to the last, ascending, with gaps of one and of two lengths in turn. Raises VideoError as `frame_indices`."""
    frame_indices(n_frames, frames, "official")
    ends = np.cumsum([0, *(1 + gap % 2 for gap in range(frames - 1))])
    return (ends * (n_frames - 1) / ends[-1]).astype(np.int32)


def seen(channels: dict[str, np.ndarray], frames: int | str, turning: frozenset[str], grain: float, seed: int) -> dict[str, np.ndarray]:
    """The channels at `frames` frames of the official rule, or UNEVEN ones, each value with a random error of `grain` scene units; true ones
    where ALL."""
    if frames == ALL:
        return channels
    length = len(next(iter(channels.values())))
    index = uneven_indices(length, MODEL_FRAMES) if frames == UNEVEN else frame_indices(length, frames, "official")
    generator = np.random.default_rng(seed)
    return {name: values[index] + generator.normal(0.0, grain * (ANGLE_GRAIN if name in turning else 1.0), len(index))
            for name, values in channels.items()}


def separate(clips: list[Clip], trajectories: dict[str, dict[str, np.ndarray]], frames: int | str, options: argparse.Namespace) -> Separation:
    """How well the trajectories of one category's clips tell normal from anomalous; no figure where a clip has too few frames."""
    turning = turning_channels(clips[0].category)
    try:
        views = (seen(trajectories[clip.clip_id], frames, turning, options.grain, stable_int(clip.clip_id, frames, options.seed)) for clip in clips)
        features_ND = np.stack([trajectory_statistics(view, turning) for view in views])
    except VideoError as error:
        return Separation(None, f"a clip {error}")
    return out_of_fold_auroc(features_ND, [clip.state for clip in clips], partial(forest, options.seed), options.seed, REPEATS)


def examine(clips: list[Clip], options: argparse.Namespace) -> dict[str, dict]:
    """By category: the AUROC with all frames and at each number of `options.frames`, and of each anomaly alone at all frames and at the model's 8."""
    result, trajectories = {}, read_bench(clips)
    bar = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=Console(stderr=True))
    with bar:
        for category in bar.track(sorted({clip.category for clip in clips}), description="categories"):
            own = [clip for clip in clips if clip.category == category]
            counts = {frames: separate(own, trajectories, frames, options) for frames in columns(options.frames)}
            anomalies = {}
            for state in sorted({clip.state for clip in own} - {NORMAL_STATE}):
                some = [clip for clip in own if clip.state in (state, NORMAL_STATE)]
                anomalies[state] = {frames: separate(some, trajectories, frames, options).auroc for frames in (ALL, MODEL_FRAMES)}
            result[category] = {"auroc": {frames: one.auroc for frames, one in counts.items()}, "anomalies": anomalies,
                                "reason": next((one.reason for one in counts.values() if one.auroc is None), "")}
    return result


def columns(counts: tuple[int, ...]) -> tuple[int | str, ...]:
    """What is computed: all frames, the numbers asked for and the model's own, and that number at uneven gaps."""
    return (ALL, *sorted({*counts, MODEL_FRAMES}), UNEVEN)


def counts_of(text: str) -> tuple[int, ...]:
    """Numbers of frames, separated by commas. Raises ValueError for anything else, and for fewer than 2."""
    numbers = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) >= 2 for word in numbers):
        raise ValueError(f"--frames is {text!r}: give whole numbers from 2 on, separated by commas, such as 8,16,32")
    return tuple(int(word) for word in numbers)


def aliased(result: dict[str, dict]) -> list[str]:
    """A sentence for each category that loses more than the limit with 8 frames, with the number of frames that does not."""
    sentences = []
    for category, row in result.items():
        areas = row["auroc"]
        if areas[ALL] is None or areas[MODEL_FRAMES] is None or areas[ALL] - areas[MODEL_FRAMES] <= LOSS_LIMIT:
            continue
        numbers = sorted(frames for frames in areas if frames != UNEVEN)
        enough = [frames for frames in numbers if frames > MODEL_FRAMES and areas[frames] is not None and areas[ALL] - areas[frames] <= LOSS_LIMIT]
        cure = f"{enough[0]} frames ({areas[enough[0]]:.3f}) do" if enough else f"{numbers[-1]} frames do not either"
        if areas.get(UNEVEN) is not None:
            cure += f"; {UNEVEN} ones: {areas[UNEVEN]:.3f}"
        sentences.append(f"{category}: {MODEL_FRAMES} frames ({areas[MODEL_FRAMES]:.3f}) do not show what the true motion does ({areas[ALL]:.3f}), "
                         f"{cure}")
    return sentences


def show(result: dict[str, dict], console: Console) -> None:
    """A table a number of frames wide, the mean, and sentences on what falls short."""
    table = Table("category", title="out-of-fold AUROC of the true motion, normal against anomalous")
    shown = list(next(iter(result.values()))["auroc"])
    for frames in shown:
        table.add_column("true" if frames == ALL else f"{frames}", justify="right")
    table.add_column(f"anomalies, true / {MODEL_FRAMES}")
    complete = {category: row for category, row in result.items() if not row["reason"]}
    for category, row in result.items():
        if row["reason"]:
            console.print(f"{category}: {row['reason']}", markup=False, soft_wrap=True)
        each = ", ".join(f"{state} {_figure(areas[ALL])} / {_figure(areas[MODEL_FRAMES])}" for state, areas in row["anomalies"].items())
        table.add_row(category, *(_figure(row["auroc"][frames]) for frames in shown), each)
    if complete:
        table.add_section()
        table.add_row("mean", *(_figure(statistics.fmean(row["auroc"][frames] for row in complete.values())) for frames in shown))
    console.print(table)
    true = {category: row["auroc"][ALL] for category, row in result.items() if row["auroc"][ALL] is not None}
    short = [f"{category} {area:.3f}" for category, area in true.items() if area < ENOUGH]
    console.print(f"below {ENOUGH} with the true motion: {'; '.join(short) or 'none'}", highlight=False, soft_wrap=True)
    few = [(category, row["auroc"][MODEL_FRAMES]) for category, row in result.items()]
    few += [(f"{category}/{state}", areas[MODEL_FRAMES]) for category, row in result.items() for state, areas in row["anomalies"].items()]
    low = [f"{name} {area:.3f}" for name, area in few if area is not None and area < ENOUGH]
    console.print(f"below {ENOUGH} with {MODEL_FRAMES} even frames: {'; '.join(low) or 'none'}", highlight=False, soft_wrap=True)
    for sentence in aliased(result) or [f"no category loses more than {LOSS_LIMIT} with {MODEL_FRAMES} frames"]:
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--videos", required=True, help="a bench that data_prep/simulate.py wrote")
    parser.add_argument("--frames", default=",".join(map(str, COUNTS)), help="numbers of frames, evenly from the first to the last; the model's 8 "
                        "are always among them, once evenly and once with uneven gaps")
    parser.add_argument("--seed", type=int, default=0, help="of the folds and the forest")
    parser.add_argument("--grain", type=float, default=0.02, help="error of a place read from a sampled frame, in scene units "
                        "(the picture is 2 wide: .03 is a pixel of 64); angles: twice that, in radians")
    parser.add_argument("--json", type=Path, help="write all figures there too")
    options = parser.parse_args(arguments)
    return exit_status(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Examine, show, write. Raises ValueError for options that do not fit, a folder that is no bench, and a file that cannot be written."""
    options.frames = counts_of(options.frames)
    if not 0 <= options.grain < 1:
        raise ValueError(f"--grain is {options.grain}: 0 or more and below 1 is needed")
    if options.json is not None:
        check_target("--json", options.json)
    result = examine(scan_videos(options.videos), options)
    show(result, Console(highlight=False))
    if options.json is not None:
        named = {category: {**row, "auroc": _named(row["auroc"]), "anomalies": {state: _named(areas) for state, areas in row["anomalies"].items()}}
                 for category, row in result.items()}
        with writing("--json", options.json, "file"):
            write_atomic(options.json, json_bytes({"seed": options.seed, "grain": options.grain, "categories": named, "aliased": aliased(result)}))


def _named(areas: dict[int | str, float | None]) -> dict[str, float | None]:
    """The same with keys for a JSON file."""
    return {"true" if frames == ALL else str(frames): value for frames, value in areas.items()}


if __name__ == "__main__":
    sys.exit(main())
