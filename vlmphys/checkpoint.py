"""Checkpoints that are complete or not there: written aside, fsynced, renamed, then marked.

A checkpoint holds the trained weights (fp32 masters) and Adam's moments, whole and by name, as safetensors: no pickle, and no trace of the
engine or the number of ranks that wrote it. The order of clips and the dropout seeds are functions of the step, so the
step is all the rest.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vlmphys.engine import Lookup, PlainEngine
from vlmphys.files import fsync_file, fsync_folder, json_bytes, write_atomic

MARKER = "COMPLETE"
SHARD_BYTES = 2 << 30   # host memory that the first rank needs for writing, whatever the size of the model


@dataclass(frozen=True)
class Marker:
    """What a checkpoint says of itself; its presence says that the checkpoint is whole."""

    step: int                       # optimizer steps done
    world_size: int
    engine: str
    data_fingerprint: str
    config_sha256: str
    window: list[float]             # sums since the last logged step, so that the next row is the same after a resume
    files: dict[str, int] = field(default_factory=dict)     # name -> bytes


def folder_of(run: Path, step: int) -> Path:
    """Where the checkpoint of a step stands."""
    return Path(run) / "checkpoints" / f"step_{step}"


def save(engine: PlainEngine, run: Path, marker: Marker, keep: int) -> None:
    """Write a checkpoint; every rank must call it, the first one writes. Older ones beyond `keep` are removed afterwards."""
    target = folder_of(run, marker.step)
    aside = target.with_name(target.name + ".partial")
    if engine.world.is_first:
        for leftover in (aside, target):
            _remove(leftover)
        aside.mkdir(parents=True)
    files = _write_shards(engine, aside)
    if engine.world.is_first:
        fsync_folder(aside)
        os.replace(aside, target)
        fsync_folder(target.parent)
        write_atomic(target / MARKER, json_bytes({**asdict(marker), "files": files}))
        for old in complete(run)[:-keep]:
            _remove(folder_of(run, old))
    engine.world.barrier()


def _remove(folder: Path) -> None:
    """Delete a checkpoint if there is one, its marker first: a removal that is cut short must not leave one that looks whole."""
    (folder / MARKER).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def _write_shards(engine: PlainEngine, folder: Path) -> dict[str, int]:
    """Stream the engine's state into files of at most about `SHARD_BYTES`; name -> bytes on the first rank."""
    files: dict[str, int] = {}
    shard: dict[str, torch.Tensor] = {}

    def flush() -> None:
        path = folder / f"state-{len(files) + 1:05d}.safetensors"
        save_file(shard, path)
        fsync_file(path)
        _verify(path, shard)
        files[path.name] = path.stat().st_size
        shard.clear()

    size = 0
    for name, tensors in engine.export_state():
        if not engine.world.is_first:
            continue
        for key, value in tensors.items():
            shard[f"{key}/{name}"] = value.contiguous()
            size += value.nbytes
        if size >= SHARD_BYTES:
            flush()
            size = 0
    if shard:
        flush()
    return files


def _verify(path: Path, written: dict[str, torch.Tensor]) -> None:
    """Read names and shapes back; an engine that hands out empty tensors, or a disk that lies, is noticed now and not at the resume."""
    with safe_open(path, framework="pt") as stored:
        for name, value in written.items():
            shape = tuple(stored.get_slice(name).get_shape())
            if shape != tuple(value.shape) or value.numel() == 0:
                raise OSError(f"{path}: {name} was written as {tuple(value.shape)} and reads back as {shape}")


def complete(run: Path) -> list[int]:
    """Steps of the complete checkpoints of a run, ascending."""
    found = []
    for folder in (Path(run) / "checkpoints").glob("step_*"):
        match = re.fullmatch(r"step_(\d+)", folder.name)
        if match and (folder / MARKER).is_file():
            found.append(int(match[1]))
    return sorted(found)


def remove_incomplete(run: Path) -> list[str]:
    """Delete what a crash left half-written; the names of the deleted folders."""
    removed = []
    for folder in sorted((Path(run) / "checkpoints").glob("step_*")):
        if not (folder / MARKER).is_file():
            _remove(folder)
            removed.append(folder.name)
    return removed


def read_marker(folder: Path) -> Marker:
    """The marker of a checkpoint folder. Raises ValueError where it is incomplete or a file has another size than was written."""
    path = Path(folder) / MARKER
    if not path.is_file():
        raise ValueError(f"{folder} is no complete checkpoint: it has no {MARKER} file")
    try:
        marker = Marker(**json.loads(path.read_text()))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): remove the folder to go on from an earlier checkpoint") from error
    for name, size in marker.files.items():
        file = Path(folder) / name
        if not file.is_file() or file.stat().st_size != size:
            raise ValueError(f"{file} is missing or damaged ({size:,} bytes expected): remove the folder to go on from an earlier "
                             "checkpoint")
    return marker


def load(engine: PlainEngine, folder: Path, marker: Marker) -> None:
    """Put a checkpoint into an engine that was just started; every rank reads it. ValueError where it is of another model."""
    places: dict[str, Path] = {}
    for name in marker.files:
        with safe_open(Path(folder) / name, framework="pt") as stored:
            places.update({key: Path(folder) / name for key in stored.keys()})
    held = {key.partition("/")[2] for key in places}
    if held != set(engine.trained):
        odd = sorted(held ^ set(engine.trained))[0]
        raise ValueError(f"{folder} is a checkpoint of another model: {odd!r} is trained in one and not in the other")
    engine.import_state(_lookup_in(places, engine), marker.step)


def _lookup_in(places: dict[str, Path], engine: PlainEngine) -> Lookup:
    def lookup(name: str, key: str) -> torch.Tensor:
        place = places[f"{key}/{name}"]
        try:
            with safe_open(place, framework="pt") as stored:
                value = stored.get_tensor(f"{key}/{name}")
        except SafetensorError as error:
            raise ValueError(f"{place} cannot be read ({error}): remove its folder to go on from an earlier checkpoint") from error
        if value.shape != engine.trained[name].shape:
            raise ValueError(f"{place}: {name!r} is {tuple(value.shape)}, the model's is {tuple(engine.trained[name].shape)}")
        return value
    return lookup
