"""The folder of a table that is not finished yet (`frames.partial/`): its journal of whole shards, and the rows of those that are not whole.

progress.jsonl           what is packed, then a line for each shard that is whole and durable
frames-00003.arrow.tmp   the shard that is being written; frames-00003.arrow.batches lists where its record batches end, and the sha256 up to there
kept-<sha256>.arrow      rows that an earlier run decoded, for `takeover` to copy: whole batches of an unfinished shard, or a shard of other clips
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from vlmphys.files import fsync_file, write_atomic
from vlmphys.shard_files import BATCHES, MANIFEST
from vlmphys.shards import QUARANTINE

JOURNAL = "progress.jsonl"
KEPT = re.compile(r"kept-([0-9a-f]{64})\.arrow")
# What a folder that is not finished may hold; all else is somebody's.
OWN_FILES = re.compile(rf"\w+-\d{{5,}}\.arrow(\.tmp|{re.escape(BATCHES)})?|{KEPT.pattern}|{re.escape(JOURNAL)}|{re.escape(MANIFEST)}|"
                       rf"{re.escape(QUARANTINE)}|\..+\.tmp")
# An Arrow file is a stream of messages between this much at its beginning and a footer: what was cut off can be read as the stream.
MAGIC_BYTES = 8


def check_partial(partial: Path) -> None:
    """Raise ValueError for a folder of this name that holds anything but what an earlier run of pack.py left unfinished."""
    if partial.is_symlink() or (partial.exists() and not partial.is_dir()):
        raise ValueError(f"{partial}: is no folder that data_prep/pack.py made; move it away, or give another --out")
    strange = sorted(path.name for path in partial.iterdir() if not OWN_FILES.fullmatch(path.name)) if partial.exists() else []
    if strange:
        raise ValueError(f"{partial}: holds {strange[0]!r}, which data_prep/pack.py did not write; move it away, or give another --out")


def read_journal(partial: Path) -> tuple[dict, list[dict]]:
    """A journal's first line, empty where there is no journal, and its entries whose shards are there: {index, shard, quarantine} each."""
    journal = partial / JOURNAL
    lines = journal.read_text(encoding="utf-8").split("\n")[:-1] if journal.is_file() else []  # a last line without its end was cut off by a crash
    header, *entries = [json.loads(line) for line in lines] or [{}]
    return header, [entry for entry in entries if not entry["shard"] or _has_bytes(partial / entry["shard"]["file"], entry["shard"]["bytes"])]


def open_journal(partial: Path, inputs: str, **more: object) -> dict[int, dict]:
    """The shards that an earlier run of the same inputs left whole, by number; all else is removed, but for kept rows.

    `more` stands in the journal's first line beside the digest of the inputs.
    """
    check_partial(partial)
    header, entries = read_journal(partial)
    done = {entry["index"]: entry for entry in entries} if header.get("inputs_sha256") == inputs else {}
    partial.mkdir(exist_ok=True)
    # The journal before all that is removed: without one, kept rows are nobody's, and are lost.
    lines = [{"inputs_sha256": inputs, **more}, *done.values()]
    write_atomic(partial / JOURNAL, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
    listed = {JOURNAL, *(entry["shard"]["file"] for entry in done.values() if entry["shard"])}
    for path in list(partial.iterdir()):
        if path.name not in listed and not KEPT.fullmatch(path.name):
            path.unlink()
    return done


def _has_bytes(path: Path, nbytes: int) -> bool:
    return path.is_file() and path.stat().st_size == nbytes


def append_durably(path: Path, value: dict) -> None:
    """Add a line to a journal; it is on the disk when this returns."""
    with open(path, "a", encoding="utf-8") as stream:
        stream.write(json.dumps(value, ensure_ascii=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def check_space(out: Path, clips: int, clip_bytes: int) -> None:
    """Raise ValueError where the disk has no room for so many clips of so many bytes."""
    needed, free = clips * clip_bytes, shutil.disk_usage(out).free
    if needed > free:
        raise ValueError(f"{out}: {clips} clips need {needed / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free; "
                         "make room, or give another --out")


def keep_rows(partial: Path, inputs: str) -> None:
    """Give what an earlier run decoded, and what the journal of these inputs does not list, the names of kept rows; nothing else is changed.

    A crash on the way leaves what this can go on from.
    """
    header, entries = read_journal(partial)
    listed = {entry["shard"]["file"]: entry["shard"]["sha256"] for entry in entries if entry["shard"]}
    for batches in sorted(partial.glob(f"*{BATCHES}")):
        if batches.name.removesuffix(BATCHES) not in listed:
            _keep_whole_batches(batches)
        batches.unlink()
    for path in list(partial.iterdir()):
        if path.name.endswith(".tmp"):
            path.unlink()
    if header.get("inputs_sha256") != inputs:
        for name, sha256 in listed.items():
            os.replace(partial / name, _kept(partial, sha256))


def kept_files(partial: Path) -> list[Path]:
    """The files of kept rows, the largest first."""
    return sorted((path for path in partial.iterdir() if KEPT.fullmatch(path.name)), key=lambda path: (-path.stat().st_size, path.name))


def _kept(partial: Path, sha256: str) -> Path:
    return partial / f"kept-{sha256}.arrow"


def _keep_whole_batches(batches: Path) -> None:
    """Cut an unfinished shard after its last batch whose bytes are as listed, and give it the name of kept rows; nothing where there is none."""
    shard = batches.with_name(batches.name.removesuffix(BATCHES))
    aside = shard.with_name(shard.name + ".tmp")
    path = aside if aside.is_file() else shard      # a shard has its own name for a moment before the journal lists it
    if not path.is_file():
        return
    digest, position, sha256 = hashlib.sha256(), 0, None
    with open(path, "rb") as stream:
        for line in _whole_lines(batches):
            piece = stream.read(line["bytes"] - position)
            digest.update(piece)
            if digest.hexdigest() != line["sha256"]:
                break
            position, sha256 = line["bytes"], line["sha256"]
    if sha256:
        os.truncate(path, position)
        fsync_file(path)
        os.replace(path, _kept(shard.parent, sha256))


def _whole_lines(batches: Path) -> Iterator[dict]:
    """The list of an unfinished shard's batches: {rows, bytes, sha256} up to the end of each; it ends where a crash tore it."""
    for line in batches.read_bytes().split(b"\n")[:-1]:
        try:
            yield json.loads(line)
        except ValueError:
            return


def stream_of(path: Path) -> tuple[pa.RecordBatchStreamReader, int]:
    """The record batches of a shard, whole or cut off after one of them, and where in memory its first byte is; no pixel is read."""
    buffer = pa.memory_map(str(path)).read_buffer()
    return pa.ipc.open_stream(buffer.slice(MAGIC_BYTES)), buffer.address


def unfinished_clips(partial: Path) -> tuple[dict[str, str], int]:
    """The settings with which the clips of an unfinished folder were decoded, and how many are there at least; nothing is changed."""
    header, entries = read_journal(partial)
    kept = {clip_id for path in (kept_files(partial) if partial.is_dir() else []) for clip_id, _ in clips_in(path)}
    begun = [line["rows"] for batches in partial.glob(f"*{BATCHES}") for line in _whole_lines(batches)]
    return header.get("settings", {}), sum(entry["shard"]["rows"] for entry in entries if entry["shard"]) + max(len(kept), *begun, 0)


def clips_in(path: Path, torn: bool = False) -> list[tuple[str, str]]:
    """(clip id, sha256 of its file) of each row of a shard, or of a file of kept rows; none where it is damaged, with `torn` those before that,
    and none in somebody's file of other columns."""
    batches = []
    try:
        stream, _ = stream_of(path)
        if not {"clip_id", "source_sha256"} <= set(stream.schema.names):
            return []
        for batch in stream:
            batch.validate(full=True)       # offsets and names: no pixel is read
            batches.append(batch)
    except pa.ArrowException:
        batches = batches if torn else []
    except PermissionError as error:
        raise ValueError(f"{path}: cannot be read (Permission denied); give yourself the right to read it") from error
    return [pair for batch in batches for pair in zip(*(batch.column(name).to_pylist() for name in ("clip_id", "source_sha256")))]
