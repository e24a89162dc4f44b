"""Rows of clips that were decoded before, taken over from former shards: no clip whose bytes and settings are the same is decoded twice.

A row is taken from a shard whose sha256 is right, for a file whose sha256 is the row's; copied through the same writer, it gives the bytes that
decoding the clip again would give. Where everything packed is the same, and only some shards are damaged, the others are linked whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from vlmphys.files import fsync_file
from vlmphys.layout import Clip
from vlmphys.records import sha256_file
from vlmphys.shard_files import read_manifest
from vlmphys.shards import FRAMES, QUARANTINE, read_quarantine
from vlmphys.sources import stat_now
from vlmphys.standing import is_sound, sound_shards
from vlmphys.unfinished import JOURNAL, KEPT, append_durably, clips_in, kept_files, stream_of


@dataclass(frozen=True)
class Known:
    """The files that need not be decoded, as a worker is told: `keys` of their sha256, with the clip's id and category where the frames hang on
    these (`of_id`, `of_category`)."""

    of_id: bool
    of_category: bool
    keys: frozenset[tuple[str, str, str]] = frozenset()

    def key(self, clip_id: str, category: str, sha256: str) -> tuple[str, str, str]:
        """Clips with the same key have the same frames."""
        return clip_id if self.of_id else "", category if self.of_category else "", sha256


NOTHING_KNOWN = Known(False, False)


class FormerRows:
    """Rows that were decoded with the same settings, whose shards have `schema`.

    A row stands for every clip of the same bytes, whatever its id (but with `of_id`, where the id decides which frames are read) and its state;
    and of the same category where regions of interest hang on that.
    """

    def __init__(self, schema: pa.Schema, of_id: bool):
        self.schema = schema
        self.unproven: tuple[str, ...] = ()
        self._known = Known(of_id, "box" in schema.names)
        self._places: dict[tuple[str, str, str], tuple[Path, int, pa.RecordBatch, int]] = {}
        self._facts: dict[Path, tuple[int, int] | None] = {}

    def add(self, path: Path, facts: tuple[int, int] | None, needless: Container[tuple[str, str]] = ()) -> int:
        """Know the rows of a shard, without the `needless` ones, by clip id and sha256; returns how many are new.

        `facts` is the shard's `stat_now` from before it was hashed.
        """
        if stat_now(path) != facts:
            return 0
        self._facts[path] = facts
        reader, begin = stream_of(path)
        if not reader.schema.equals(self.schema, check_metadata=True):
            return 0
        before = len(self._places)
        for batch in reader:
            columns = (batch.column(name).to_pylist() for name in ("clip_id", "category", "source_sha256"))
            for row, (clip_id, category, sha256) in enumerate(zip(*columns)):
                if (clip_id, sha256) not in needless:
                    self._places.setdefault(self._known.key(clip_id, category, sha256), (path, begin, batch, row))
        return len(self._places) - before

    def known(self) -> Known:
        """What need not be decoded."""
        return replace(self._known, keys=frozenset(self._places))

    def row(self, clip: Clip, sha256: str) -> dict:
        """The row of a clip whose file has a `known` sha256; its pixels are read here. ValueError where the shard was changed since it was hashed."""
        path, begin, batch, row = self._places[self._known.key(clip.clip_id, clip.category, sha256)]
        changed = f"{path}: was cut off or replaced while rows of it were copied; run the same command again, and let nothing else write there"
        # Before anything is read: a page that a shorter file lacks would end the process.
        if stat_now(path) != self._facts[path]:
            raise ValueError(changed)
        value = {}
        for field in self.schema:
            column = batch.column(field.name)
            if pa.types.is_fixed_size_binary(field.type):
                # Read, not mapped: pages of former shards would count as this process's memory.
                offset = column.buffers()[1].address - begin + (column.offset + row) * field.type.byte_width
                value[field.name] = np.fromfile(path, np.uint8, field.type.byte_width, offset=offset)
                if value[field.name].size < field.type.byte_width:
                    raise ValueError(changed)
            else:
                value[field.name] = column[row].as_py()
        if stat_now(path) != self._facts[path]:
            raise ValueError(changed)
        return {**value, "clip_id": clip.clip_id, "category": clip.category, "state": clip.state, "label": clip.label}


def former_rows(target: Path | None, partial: Path, settings: dict[str, str], schema: pa.Schema, of_id: bool, done: dict[int, dict]) -> FormerRows:
    """The rows that the finished folder (None: not from there) and the unfinished one hold, of this one without those that stand in the shards that
    are `done`. Kept rows of no use are deleted.

    Shards are read once for their sha256: rows of a damaged one are not taken over.
    """
    rows, kept = FormerRows(schema, of_id), kept_files(partial)
    sound, unproven = sound_shards(target, settings) if target else ({}, ())
    for path, facts in sound.items():
        new = rows.add(path, facts)
        rows.unproven += (str(path),) if new and str(path) in unproven else ()
    # By their bytes, too: files may have changed names since.
    finished = {pair for entry in done.values() if entry["shard"] and kept for pair in clips_in(partial / entry["shard"]["file"])}
    for path in kept:
        facts = stat_now(path)
        if sha256_file(path) != KEPT.fullmatch(path.name).group(1) or not rows.add(path, facts, finished):
            path.unlink()
    return rows


def is_whole(folder: Path, read: bool) -> bool:
    """Whether all shards of a finished folder of frames are sound (see `is_sound`), and its list of the quarantine can be read."""
    return _quarantine(folder) is not None and all(is_sound(folder, line, read) for line in read_manifest(folder, FRAMES)["shards"])


def _quarantine(folder: Path) -> list[dict] | None:
    try:
        return read_quarantine(folder / QUARANTINE)
    except (OSError, ValueError):
        return None


def link_shards(target: Path, partial: Path, settings: dict[str, str], chunks: list[list[Clip]], done: dict[int, dict]) -> None:
    """Take over whole what is sound of a finished folder of the same clips: its shards are linked, or copied where the disk has no links.

    Nothing where its list of the quarantine is damaged: that says which clips a shard lacks.
    """
    quarantine = _quarantine(target)
    sound = sound_shards(target, settings)[0] if quarantine is not None else {}
    for line in read_manifest(target, FRAMES)["shards"] if sound else ():
        index = int(line["file"].removesuffix(".arrow").rpartition("-")[2])
        clip_ids = {clip.clip_id for clip in chunks[index]}
        bad = [one for one in quarantine if one["clip_id"] in clip_ids]
        if target / line["file"] not in sound or index in done or line["rows"] + len(bad) != len(chunks[index]):
            continue
        path = partial / line["file"]
        path.unlink(missing_ok=True)
        try:
            os.link(target / line["file"], path)
        except OSError:
            shutil.copyfile(target / line["file"], path)
            fsync_file(path)
        done[index] = {"index": index, "shard": line, "quarantine": bad}
        append_durably(partial / JOURNAL, done[index])
