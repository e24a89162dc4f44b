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
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vlmphys.engine import MOMENTS, Lookup, PlainEngine
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


def save(engine: PlainEngine, run: Path, marker: Marker, keep: int, spare: Collection[int] = ()) -> None:
    """Write a checkpoint; every rank must call it, the first one writes. Older ones beyond `keep` are removed afterwards, except those
    of the steps in `spare`.

    Raises OSError, on every rank, where the files cannot be written (a full disk) or do not read back as they should; the older
    checkpoints are untouched then.
    """
    target = folder_of(run, marker.step)
    aside = target.with_name(target.name + ".partial")
    problem = ""
    files: dict[str, int] = {}
    # The first rank goes on taking what the others hand out although it could not write it: they would wait for it forever.
    state = engine.export_state()
    if engine.world.is_first:
        try:
            for leftover in (aside, target):
                _remove(leftover)
            aside.mkdir(parents=True)
            files = _write_shards(state, set(engine.trained), engine.shapes, aside)
            fsync_folder(aside)
            os.replace(aside, target)
            fsync_folder(target.parent)
            write_atomic(target / MARKER, json_bytes({**asdict(marker), "files": files}))
        except (OSError, SafetensorError) as error:
            problem = (f"the checkpoint of step {marker.step} could not be written to {target.parent} ({error}); the older checkpoints are "
                       "untouched: free some disk space there and start the same command again")
            shutil.rmtree(aside, ignore_errors=True)
    for _ in state:
        pass
    # Before the rotation: a rank that hears of a problem must find the older checkpoints where they were.
    if found := engine.world.gather_texts([problem] if problem else []):
        raise OSError(found[0])
    if engine.world.is_first:
        for old in complete(run)[:-keep]:
            if old not in spare:
                _remove(folder_of(run, old))
    engine.world.barrier()


def _remove(folder: Path) -> None:
    """Delete a checkpoint if there is one, its marker first: a removal that is cut short must not leave one that looks whole."""
    (folder / MARKER).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def _write_shards(state: Iterator[tuple[str, dict[str, torch.Tensor]]], trained: set[str], shapes: dict[str, tuple[int, ...]],
                  folder: Path) -> dict[str, int]:
    """Stream an engine's state into files of at most about `SHARD_BYTES`; name -> bytes.

    Raises OSError where the state is not whole: each trained parameter once, of its own shape, in fp32.
    """
    files: dict[str, int] = {}
    shard: dict[str, torch.Tensor] = {}
    missing = set(trained)

    def flush() -> None:
        path = folder / f"state-{len(files) + 1:05d}.safetensors"
        save_file(shard, path)
        fsync_file(path)
        _verify(path, shard)
        files[path.name] = path.stat().st_size
        shard.clear()

    for name, tensors in state:
        missing.discard(name)
        for key in ("weight", *MOMENTS):
            value = tensors.get(key, torch.empty(0))
            if tuple(value.shape) != shapes[name] or value.numel() == 0 or value.dtype != torch.float32:
                raise OSError(f"{key} of {name} is {tuple(value.shape)}, {value.dtype}, instead of {shapes[name]}, torch.float32")
            shard[f"{key}/{name}"] = value.contiguous()
        if sum(value.nbytes for value in shard.values()) >= SHARD_BYTES:
            flush()
    if missing:
        raise OSError(f"{len(missing)} trained parameters were not handed out, first {sorted(missing)[0]}")
    if shard:
        flush()
    return files


def _verify(path: Path, written: dict[str, torch.Tensor]) -> None:
    """Read names, shapes and size back: a disk that lies is noticed now and not at the resume. Raises OSError."""
    with open(path, "rb") as stream:
        header = 8 + int.from_bytes(stream.read(8), "little")   # its length, then the header itself
    expected, found = header + sum(value.nbytes for value in written.values()), path.stat().st_size
    if found != expected:
        raise OSError(f"{path}: {expected:,} bytes were written, {found:,} are there")
    with safe_open(path, framework="pt") as stored:
        if set(stored.keys()) != set(written):
            raise OSError(f"{path}: {len(written)} tensors were written, {len(stored.keys())} are there")
        for name, value in written.items():
            shape = tuple(stored.get_slice(name).get_shape())
            if shape != tuple(value.shape):
                raise OSError(f"{path}: {name} was written as {tuple(value.shape)} and reads back as {shape}")


def saved_elsewhere(marker: Marker, engine: str, world_size: int) -> str:
    """A remark where a checkpoint was written by another engine or number of ranks than those here; else empty."""
    if (marker.engine, marker.world_size) == (engine, world_size):
        return ""
    return (f", written by engine {marker.engine} on {marker.world_size} rank(s); here it is {engine} on {world_size}: the same clips, "
            "losses equal but for rounding")


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
        if tuple(value.shape) != engine.shapes[name]:
            raise ValueError(f"{place}: {name!r} is {tuple(value.shape)}, the model's is {engine.shapes[name]}")
        return value
    return lookup
