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
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from vlmphys.config import TrainConfig
from vlmphys.engine import MOMENTS, Lookup, PlainEngine
from vlmphys.files import fsync_file, fsync_folder, json_bytes, write_atomic
from vlmphys.records import sha256_file

MARKER = "COMPLETE"
SHARD_BYTES = 2 << 30   # host memory that the first rank needs for writing, whatever the size of the model


@dataclass(frozen=True)
class Marker:
    """What a checkpoint says of itself; its presence says that the checkpoint is whole."""

    step: int                       # optimizer steps done
    world_size: int
    engine: str
    data_fingerprint: str           # of what it was trained on, how, and from which base: a run goes on from its own checkpoints alone
    config_sha256: str
    model_fingerprint: str
    window: list[float]             # sums since the last logged step, so that the next row is the same after a resume
    files: dict[str, int] = field(default_factory=dict)     # name -> bytes
    sha256: dict[str, str] = field(default_factory=dict)    # name -> digest of these bytes


def folder_of(run: Path, step: int) -> Path:
    """Where the checkpoint of a step stands."""
    return Path(run) / "checkpoints" / f"step_{step}"


def save(engine: PlainEngine, run: Path, marker: Marker, keep: int, spare: Collection[int] = ()) -> None:
    """Write a checkpoint; every rank must call it, the first one writes. Older ones beyond `keep` are removed afterwards, except those
    of the steps in `spare`.

    Raises Agreed, on every rank, where the files cannot be written (a full disk) or do not read back as they should; the older
    checkpoints are untouched then. ValueError, on one rank, where its engine cannot hand its state out.
    """
    target = folder_of(run, marker.step)
    aside = target.with_name(target.name + ".partial")
    problems: list[str] = []
    # The first rank goes on taking what the others hand out although it could not write it: they would wait for it forever.
    state = _handed_out(engine)
    if engine.world.is_first:
        try:
            for leftover in (aside, target):
                _remove(leftover)
            aside.mkdir(parents=True)
            files = _write_shards(state, set(engine.trained), engine.shapes, aside)
            fsync_folder(aside)
            os.replace(aside, target)
            fsync_folder(target.parent)
            digests = {name: sha256_file(target / name) for name in files}
            write_atomic(target / MARKER, json_bytes({**asdict(marker), "files": files, "sha256": digests}))
        except (OSError, SafetensorError) as error:
            problems = [f"the checkpoint of step {marker.step} could not be written to {target.parent} ({error}); the older checkpoints "
                        "are untouched: free some disk space there and start the same command again"]
            shutil.rmtree(aside, ignore_errors=True)
    for _ in state:
        pass
    # Before the rotation: a rank that hears of a problem must find the older checkpoints where they were.
    engine.world.agree(problems)
    if engine.world.is_first:
        for old in complete(run)[:-keep]:
            if old not in spare:
                _remove(folder_of(run, old))
    engine.world.barrier()


def _handed_out(engine: PlainEngine) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """The engine's state. An error inside the engine (a disk that holds its moments) becomes a ValueError: it must not be taken for one
    of writing, after which the first rank would go on to tell the others, who still wait for its part of a tensor."""
    try:
        yield from engine.export_state()
    except OSError as error:
        raise ValueError(f"weights and moments could not be read back from where the engine keeps them ({error}); the older checkpoints "
                         "are untouched: see to that disk and start the same command again") from error


def remove(run: Path, step: int) -> None:
    """Delete the checkpoint of a step, if there is one."""
    _remove(folder_of(run, step))


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
    """Read names, shapes and size back: a file that was cut short is noticed now and not at the resume. Raises OSError.

    That each byte is what was written is for the digests in the marker, when a run resumes.
    """
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


def saved_elsewhere(marker: Marker, config: TrainConfig, world_size: int) -> str:
    """A remark where a checkpoint was written by another engine or number of ranks than those here; else empty."""
    if (marker.engine, marker.world_size) == (config.engine, world_size):
        return ""
    redrawn = config.tune != "full" and config.lora_dropout > 0 and marker.world_size != world_size
    return (f", written by engine {marker.engine} on {marker.world_size} rank(s); here it is {config.engine} on {world_size}: the same "
            f"clips, {'other masks of lora_dropout, losses alike on average' if redrawn else 'losses equal but for rounding'}")


def complete(run: Path) -> list[int]:
    """Steps of the complete checkpoints of a run, ascending."""
    found = []
    for folder in (Path(run) / "checkpoints").glob("step_*"):
        match = re.fullmatch(r"step_(\d+)", folder.name)
        if match and (folder / MARKER).is_file():
            found.append(int(match[1]))
    return sorted(found)


def remove_incomplete(run: Path) -> list[str]:
    """Delete what a crash left half-written; the names of the deleted folders, for the user to know."""
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


def restore(engine: PlainEngine, run: Path, step: int, identity: Mapping[str, str]) -> Marker:
    """Put the checkpoint of `step` into an engine; every rank must call it, and reads it. Returns its marker.

    Raises Agreed, on every rank, where one of them cannot read it, a byte of it has changed, or it is of another run than `identity` (the
    marker's fingerprints) says.
    """
    folder = folder_of(run, step)
    problems = []
    try:
        marker = read_marker(folder)
        check_identity(folder, marker, identity)
        if engine.world.is_first:
            check_bytes(folder, marker)
        lookup = _lookup_in(folder, marker, engine)
    except (ValueError, OSError, SafetensorError) as error:
        problems = [str(error)]
    # Before the first tensor, whose placement is a collective call with some engines.
    engine.world.agree(problems)
    engine.import_state(lookup, marker.step)
    return marker


def check_identity(folder: Path, marker: Marker, identity: Mapping[str, str]) -> None:
    """Raise ValueError where a checkpoint was made from other data, settings or another base model."""
    other = [f"{key} ({getattr(marker, key)} there, {value} here)" for key, value in identity.items() if getattr(marker, key) != value]
    if other:
        raise ValueError(f"{folder} is a checkpoint of another run: {'; '.join(other)}; remove it to go on from an earlier checkpoint, or "
                         "give a new folder with --out")


def check_bytes(folder: Path, marker: Marker) -> None:
    """Raise ValueError where a byte of a checkpoint is not what was written. Reads all of it."""
    for name, digest in marker.sha256.items():
        if sha256_file(Path(folder) / name) != digest:
            raise ValueError(f"{Path(folder) / name} is damaged (its sha256 is not that of what was written): remove the folder to go on "
                             "from an earlier checkpoint")


def _lookup_in(folder: Path, marker: Marker, engine: PlainEngine) -> Lookup:
    """What reads a tensor of a checkpoint. ValueError where the checkpoint does not hold just what the engine trains, in its shapes."""
    places: dict[str, Path] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in (Path(folder) / name for name in marker.files):
        with safe_open(path, framework="pt") as stored:
            for key in stored.keys():
                places[key], shapes[key] = path, tuple(stored.get_slice(key).get_shape())
    held = {key.partition("/")[2] for key in places}
    if held != set(engine.trained):
        odd = sorted(held ^ set(engine.trained))[0]
        raise ValueError(f"{folder} is a checkpoint of another model: {odd!r} is trained in one and not in the other")
    for key, shape in shapes.items():
        name = key.partition("/")[2]
        if shape != engine.shapes[name]:
            raise ValueError(f"{places[key]}: {name!r} is {shape}, the model's is {engine.shapes[name]}")

    def lookup(name: str, key: str) -> torch.Tensor:
        with safe_open(places[f"{key}/{name}"], framework="pt") as stored:
            return stored.get_tensor(f"{key}/{name}")
    return lookup
