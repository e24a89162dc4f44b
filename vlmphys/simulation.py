"""A folder of simulated clips: which ones, where they lie, how they are encoded. Each clip depends on its own seed alone."""

from __future__ import annotations

import json
import multiprocessing
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import av
import cv2
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vlmphys.files import clear_disk_errors, fsync_file, json_bytes, only_writer, read_json, write_atomic
from vlmphys.mechanisms import known_mechanisms, load_mechanism
from vlmphys.mechanisms.clips import SimulatedClip, simulate_clip
from vlmphys.mechanisms.physics import FPS
from vlmphys.records import counted, shortened, stable_int

SETTINGS_FILE = "simulation.json"
PARTIAL = ".partial"        # ends the name of a clip that is being encoded
NOT_OURS = "exists and is not a simulated bench: give a new folder as --out"
SIZES = (32, 1080)
CRF = (16, 30)              # x264's constant rate factor, finest and coarsest


@dataclass(frozen=True)
class SimulationConfig:
    """What decides the pixels of a bench; written into the folder, so that a rerun can tell whether it is the same one."""

    categories: tuple[str, ...]
    clips_per_state: int
    train_clips: int
    size: int
    appearance: str
    seed: int
    version: int = 3            # of the pixels that these settings give: a change of a mechanism or of the encoding raises it

    @classmethod
    def create(cls, categories: str, clips_per_state: int, train_clips: int | None, size: int, appearance: str, seed: int) -> SimulationConfig:
        """Check what a user asked for. Raises ValueError with the value, the rule and the cure."""
        names = known_mechanisms() if categories == "all" else [name.strip() for name in categories.split(",") if name.strip()]
        if not names:
            raise ValueError(f"--categories {categories!r} names none: give 'all' or some of {shortened(known_mechanisms())}")
        for name in names:
            load_mechanism(name)
        if clips_per_state < 1:
            raise ValueError(f"--clips-per-state is {clips_per_state}: at least 1 is needed")
        if train_clips is not None and train_clips < 1:
            raise ValueError(f"--train-clips is {train_clips}: at least 1 is needed")
        if not SIZES[0] <= size <= SIZES[1] or size % 2:
            raise ValueError(f"--size is {size}: give an even number from {SIZES[0]} to {SIZES[1]} pixels")
        if seed < 0:
            raise ValueError(f"--seed is {seed}: give 0 or a number above it")
        return cls(tuple(dict.fromkeys(names)), clips_per_state, train_clips or 2 * clips_per_state, size, appearance, seed)


@dataclass(frozen=True)
class ClipJob:
    """One clip to write; `size` is its edge in pixels."""

    path: Path
    category: str
    state: str
    seed: int
    size: int
    appearance: str


def plan_clips(root: Path, config: SimulationConfig) -> list[ClipJob]:
    """All clips of a bench, in a fixed order; folders as in Phys-AD: `train`, `test/anomaly_free`, `test/<anomaly>`."""
    jobs = []
    for category in config.categories:
        states = [("train", config.train_clips), ("anomaly_free", config.clips_per_state)]
        states += [(anomaly, config.clips_per_state) for anomaly in load_mechanism(category).ANOMALIES]
        for state, count in states:
            folder = root / category / ("train" if state == "train" else f"test/{state}")
            jobs += [ClipJob(folder / f"{index:04d}.mp4", category, state, stable_int("bench", config.seed, category, state, index),
                             config.size, config.appearance) for index in range(count)]
    return jobs


def simulate_bench(root: Path, config: SimulationConfig, workers: int | None = None) -> int:
    """Write the bench into `root`, skipping clips that are there; returns how many were written.

    Raises ValueError for a folder that is not ours, that another process is writing into, or that cannot be written, and for a full disk.
    """
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if workers < 1:
        raise ValueError(f"--workers is {workers}: at least 1 is needed")
    if root.exists() and not root.is_dir():
        raise ValueError(f"{root} {NOT_OURS}")
    with only_writer(root, "simulating"), clear_disk_errors(root, "finished clips"):
        _claim_folder(root, config)
        planned = plan_clips(root, config)
        _remove_partials(planned)
        return _write_missing(root, planned, workers)


def _write_missing(root: Path, planned: list[ClipJob], workers: int) -> int:
    """Write the clips that are not there, behind a progress bar; returns how many these were."""
    total, jobs = len(planned), [job for job in planned if not job.path.exists()]
    if not jobs:
        print(f"{root}: all {total} clips are there")
        return 0
    bar = Progress(TextColumn("simulate"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    context = multiprocessing.get_context("spawn")
    with bar, context.Pool(workers, initializer=cv2.setNumThreads, initargs=(1,)) as processes:
        task, frames = bar.add_task("simulate", total=len(jobs), rate=""), 0
        for written in processes.imap_unordered(write_clip, jobs, chunksize=4):
            frames += written
            elapsed = bar.tasks[0].elapsed or 1e-9
            bar.update(task, advance=1, rate=f"{bar.tasks[0].completed / elapsed:.0f} clips/s, {frames / elapsed:.0f} frames/s")
    print(f"{root}: {counted(len(jobs), 'clip')} written, {total} in all")
    return len(jobs)


def _claim_folder(root: Path, config: SimulationConfig) -> None:
    """Make the folder ours, or refuse: one that holds other things, or a bench of other settings, is left as it is."""
    settings, wanted = root / SETTINGS_FILE, asdict(config) | {"categories": list(config.categories)}
    if settings.is_file():
        found = read_json(settings, "give another --out")
        differing = sorted(key for key in wanted if found.get(key) != wanted[key])
        if differing:
            key = differing[0]
            raise ValueError(f"{root} holds a bench with {key} = {found.get(key)!r}, not {wanted[key]!r}: give another --out, or the same settings")
        return
    begun = list(root.glob(f".{SETTINGS_FILE}.*.tmp"))      # by a run that was killed before the folder was its own
    if len(list(root.iterdir())) > len(begun):
        raise ValueError(f"{root} {NOT_OURS}")
    for path in begun:
        path.unlink()
    write_atomic(settings, json_bytes(wanted))


def _remove_partials(planned: list[ClipJob]) -> None:
    """Remove what a run that was killed had begun to write."""
    for folder in {job.path.parent for job in planned}:
        for partial in (*folder.glob(f"*{PARTIAL}"), *folder.glob(".*.json.*.tmp")):
            partial.unlink(missing_ok=True)


def write_clip(job: ClipJob) -> int:
    """Simulate, draw, encode; the video appears under its name only when it and its ground truth are complete. Returns frames written."""
    clip = simulate_clip(load_mechanism(job.category), job.category, job.state, job.seed, job.appearance)
    job.path.parent.mkdir(parents=True, exist_ok=True)
    # The process's number in the name: a worker that outlives its killed run must not give away what the next run has half written.
    partial = job.path.with_suffix(f".{os.getpid()}{PARTIAL}")
    try:
        count = encode_h264(partial, clip.frames(job.size), job.size, encoder_crf(job.seed))
        write_atomic(job.path.with_suffix(".json"), (json.dumps(ground_truth(job, clip)) + "\n").encode())
        fsync_file(partial)     # a name that outlives a power cut must not stand for an empty file: the next run would skip it
        os.replace(partial, job.path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def encoder_crf(seed: int) -> int:
    """The quality at which a clip is encoded, by lot as cameras differ: at one quality the bytes would tell how much moves, and so the label.

    From the clip's seed alone, in a stream of its own: neither the state nor what a mechanism draws moves it.
    """
    return int(np.random.default_rng(stable_int("encoder", seed)).integers(CRF[0], CRF[1], endpoint=True))


def encode_h264(path: Path, frames, size: int, crf: int) -> int:
    """Encode RGB frames as H.264 at 60 fps, one key frame at the start as x264 does by default. Returns how many there were."""
    count = 0
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.thread_count = 1
        stream.options = {"preset": "superfast", "crf": str(crf)}
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            count += 1
        container.mux(stream.encode())
    return count


def ground_truth(job: ClipJob, clip: SimulatedClip) -> dict:
    """Seed, encoder's quality, parameters, the trajectory of every channel (one value a frame) and the seconds in which the fault shows."""
    trajectory = clip.trajectory
    return {"category": job.category, "state": job.state, "seed": job.seed, "fps": FPS, "variant": clip.look.variant, "appearance": job.appearance,
            "crf": encoder_crf(job.seed), "parameters": {name: round(float(value), 5) for name, value in trajectory.parameters.items()},
            "fault_span_seconds": trajectory.fault_span_seconds,
            "trajectory": {name: np.round(values, 4).tolist() for name, values in trajectory.channels.items()}}
