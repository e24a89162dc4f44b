"""What stands in a finished folder of a table, as packing again finds it: its inputs, its settings, and which shards are what was written.

A manifest that is cut off, or gone, leaves its shards: their settings stand in their schema, their sha256 in what is left of the manifest, if there.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa

from vlmphys.files import finish_swap, read_json, swap_folder
from vlmphys.records import counted, sha256_file
from vlmphys.shard_files import MANIFEST, REPAIR, VERSION, read_manifest, schema_metadata
from vlmphys.shards import FRAMES, QUARANTINE
from vlmphys.sources import stat_now
from vlmphys.unfinished import JOURNAL, clips_in

RESTART = "or with --restart, which decodes all anew"
# A setting that nothing says any more.
UNKNOWN = "unknown"


def finish_folder(partial: Path, target: Path) -> None:
    """Give a folder that was complete, manifest and all, when a crash came the name `target`, or undo a swap that the crash cut in two."""
    if (partial / MANIFEST).is_file():
        (partial / JOURNAL).unlink(missing_ok=True)
    finish_swap(partial, target, MANIFEST)
    if (partial / MANIFEST).is_file() and ((target / MANIFEST).is_file() or is_lost(target)):
        swap_folder(partial, target)


def stored_inputs(target: Path, anew: bool = False) -> str | None:
    """What a packed folder was made from; None where there is none yet, one of another version, or, with `anew`, one without a whole manifest.

    ValueError for a stranger's folder, and, without `anew`, where the manifest of this one is damaged or missing.
    """
    foreign = f"{target}: exists and was not written by data_prep/pack.py; give another --out"
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return None
    if is_lost(target):
        if not anew:
            read_json(target / MANIFEST, f"{REPAIR}, {RESTART}")
        return None
    if not (target / MANIFEST).is_file():
        raise ValueError(foreign)
    manifest = _manifest(target)
    if manifest.get("kind") != target.name:
        raise ValueError(foreign)
    return manifest.get("inputs_sha256") if manifest.get("version") == VERSION else None


def is_lost(target: Path) -> bool:
    """Whether a folder holds shards, and nothing that is not pack.py's, but its manifest is missing or no JSON object."""
    own = re.compile(rf"{target.name}-\d{{5,}}\.arrow|{re.escape(MANIFEST)}|{re.escape(QUARANTINE)}|\..+\.tmp")
    names = [path.name for path in target.iterdir()] if target.is_dir() else []
    if not any(name.endswith(".arrow") for name in names) or not all(own.fullmatch(name) for name in names):
        return False
    try:
        return not isinstance(json.loads((target / MANIFEST).read_bytes()), dict)
    except (FileNotFoundError, ValueError):     # no JSON, or no UTF-8
        return True
    except (OSError, RecursionError):       # `read_json` says what is wrong with it
        return False


def check_version(target: Path) -> None:
    """Raise ValueError for a finished folder of frames of a version that is not known here."""
    if (target / MANIFEST).is_file() and stored_inputs(target, anew=True) is None and not is_lost(target):
        read_manifest(target, FRAMES)


def finished_clips(target: Path) -> tuple[dict[str, str], int]:
    """The settings with which the clips of a finished folder of frames were decoded, and how many are there."""
    if is_lost(target):
        shards = _readable_shards(target)
        return _lost_settings(target, shards[0]) if shards else {}, sum(len(clips_in(path)) for path in shards)
    manifest = _manifest(target) if (target / MANIFEST).is_file() else {}
    return packed_settings(manifest), manifest.get("rows", 0)


def check_dropped(clip_ids: set[str], target: Path, partial: Path, drop: bool) -> list[str]:
    """What to say where packing these clips would drop others that a finished or an unfinished folder of frames holds: a line, or none.

    ValueError where these are more than half of what is packed, except with `drop`.
    """
    finished = {clip_id for folder in (target, partial) if folder.is_dir() for path in folder.glob("*.arrow") for clip_id, _ in clips_in(path)}
    begun = {clip_id for path in partial.glob("*.arrow.tmp") for clip_id, _ in clips_in(path, torn=True)} if partial.is_dir() else set()
    packed = finished | begun
    lost = packed - clip_ids
    if not lost:
        return []
    are = "is" if len(lost) == 1 else "are"
    if 2 * len(lost) > len(packed) and not drop:
        raise ValueError(f"{target}: {len(lost)} of {counted(len(packed), 'packed clip')} {are} not in this split and would be dropped, first "
                         f"{min(lost)!r}: give the split that they were packed with, another --out, or --drop to let them go: rows of files "
                         "that have only changed their names are taken over all the same")
    return [f"{counted(len(lost), 'packed clip')} {are} not in this split and will be dropped"]


def packed_settings(manifest: dict) -> dict[str, str]:
    """The settings of a finished folder of frames; those packed before the reader was noted had the default."""
    return {**schema_metadata(manifest.get("meta", {})), "reader": manifest.get("reader", "auto")}


def sound_shards(target: Path, settings: dict[str, str]) -> tuple[dict[Path, tuple[int, int] | None], tuple[str, ...]]:
    """The shards of a finished folder of frames whose bytes are right, with the `stat_now` from before they were hashed; none where it has other
    settings, or is not there.

    Where the manifest is lost, those that are whole Arrow files; the names of those whose bytes nothing proves stand in the second place.
    """
    if is_lost(target):
        facts = {path: stat_now(path) for path in _readable_shards(target)}
        facts = {path: before for path, before in facts.items() if _lost_settings(target, path) in (settings, {**settings, "reader": UNKNOWN})}
        listed = set(re.findall(rb"[0-9a-f]{64}", _left_of_manifest(target)))
        return facts, tuple(str(path) for path in facts if sha256_file(path).encode() not in listed)
    if not (target / MANIFEST).is_file():
        return {}, ()
    manifest = _manifest(target)
    lines = manifest["shards"] if manifest.get("version") == VERSION and packed_settings(manifest) == settings else []
    facts = {target / line["file"]: stat_now(target / line["file"]) for line in lines}
    return {target / line["file"]: facts[target / line["file"]] for line in lines if is_sound(target, line, True)}, ()


def is_sound(folder: Path, line: dict, read: bool) -> bool:
    """Whether a shard is there with its bytes, by their number, or with `read` by their sha256."""
    path = folder / line["file"]
    return path.is_file() and path.stat().st_size == line["bytes"] and not (read and sha256_file(path) != line["sha256"])


def _manifest(target: Path) -> dict:
    """The manifest of a folder that is not lost (see `is_lost`): its shards may be whole, so that no advice is to delete them."""
    return read_json(target / MANIFEST, f"make it readable, or move {target} away and pack again")


def _left_of_manifest(target: Path) -> bytes:
    return (target / MANIFEST).read_bytes() if (target / MANIFEST).is_file() else b""


def _readable_shards(target: Path) -> list[Path]:
    """The shards that are Arrow files to their end, and whose columns but the pixels are what Arrow allows."""
    found = []
    for path in sorted(target.glob(f"{target.name}-*.arrow")):
        try:
            with pa.memory_map(str(path)) as mapped:
                reader = pa.ipc.open_file(mapped)
                for index in range(reader.num_record_batches):
                    reader.get_batch(index).validate(full=True)
        except (pa.ArrowException, OSError):
            continue
        found.append(path)
    return found


def _lost_settings(target: Path, shard: Path) -> dict[str, str]:
    """The settings of a shard whose manifest is lost: those of its schema, and the reader where what is left of the manifest names it."""
    with pa.memory_map(str(shard)) as mapped:
        metadata = pa.ipc.open_file(mapped).schema.metadata or {}
    reader = re.search(rb'"reader": "(\w+)"', _left_of_manifest(target))
    return {**{key.decode(): value.decode() for key, value in metadata.items()}, "reader": reader.group(1).decode() if reader else UNKNOWN}
