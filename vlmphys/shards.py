"""Packed data: what pack.py wrote, opened. Frames, dialogues and the split that they belong to.

packed/
  frames/     frames-00000.arrow ...     manifest.json  quarantine.jsonl    one row a clip: pixels
  dialogues/  dialogues-00000.arrow ...  manifest.json                      one row a clip and variant: token ids, turns
  features/   (only where asked for, see `features`)
  split.json                                                                a copy of the split that was packed

Frames and dialogues are separate tables, so that other words, tokenizers or variants never decode a video again.
Shape suffixes: T frames, H W pixels, C colour channels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from vlmphys.finished import check_packed
from vlmphys.records import Split, Variant, sha256_text
from vlmphys.shard_files import REPACK, Table, schema_metadata
from vlmphys.splits import SplitFile, load_split

if TYPE_CHECKING:
    from vlmphys.features import FeaturesTable

FRAMES, DIALOGUES = "frames", "dialogues"
QUARANTINE, SPLIT = "quarantine.jsonl", "split.json"
FRAMES_PER_BATCH, DIALOGUES_PER_BATCH = 16, 256
SCALAR_COLUMNS = ("category", "state", "label", "source_sha256", "source_fps", "source_frames")


def frames_schema(meta: dict) -> pa.Schema:
    """Columns of a frames shard; `meta` holds version, frames (T), height, width, rule, fit; sets where there are several, and regions where
    pictures were cut (`regions`): then the pixels of sets 1, 2, ..., and each clip's box (x, y, width, height), stand in columns of their own."""
    nbytes = meta["frames"] * meta["height"] * meta["width"] * 3
    columns = [("clip_id", pa.string()), ("category", pa.string()), ("state", pa.string()), ("label", pa.int8()),
               ("frames", pa.binary(nbytes)), ("frame_index", pa.list_(pa.int32())), ("source_sha256", pa.string()),
               ("source_fps", pa.float64()), ("source_frames", pa.int32())]
    more = frame_sets(meta) - 1
    columns += [("more_frames", pa.binary(more * nbytes)), ("more_index", pa.list_(pa.int32(), more * meta["frames"]))] if more else []
    columns += [("box", pa.list_(pa.int32(), 4))] if "regions" in meta else []
    return pa.schema(columns, metadata=schema_metadata(meta))


def frame_sets(meta: dict) -> int:
    """How many sets of frames each clip has: 1, except where more were packed for training."""
    return meta.get("sets", 1)


def dialogues_schema(meta: dict) -> pa.Schema:
    """Columns of a dialogue shard; `meta` as in `DialogueTable`."""
    columns = [("clip_id", pa.string()), ("variant", pa.string()), ("input_ids", pa.list_(pa.int32())), ("turn", pa.list_(pa.int8())),
               ("verdict_span", pa.list_(pa.int32(), 2))]
    return pa.schema(columns, metadata=schema_metadata(meta))


def read_quarantine(path: Path) -> list[dict]:
    """The rows of a quarantine list. Lines end with a newline alone: a clip's name may hold what else ends one (U+2028, U+0085)."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@dataclass(frozen=True)
class ClipRow:
    """One packed clip: `frames_THWC` is a read-only uint8 view of the mapped file, copy it before you keep or change it."""

    clip_id: str
    category: str
    state: str
    label: int
    frames_THWC: np.ndarray
    frame_index: np.ndarray
    source_sha256: str
    source_fps: float
    source_frames: int
    box: tuple[int, int, int, int] | None = None    # x, y, width, height of the region of interest in the source's pixels


class FramesTable(Table):
    """Pixels by clip id. `meta`: version, frames (T), height, width, rule, fit; sets, regions as in `frames_schema`."""

    kind = FRAMES
    repairable = True

    def _schema(self) -> pa.Schema:
        return frames_schema(self.meta)

    def _key(self, columns: dict, row: int) -> str:
        return columns["clip_id"][row]

    @property
    def clip_ids(self) -> list[str]:
        """Every packed clip, sorted."""
        return sorted(self._place)

    @property
    def sets(self) -> int:
        """How many sets of frames each clip has; set 0 is what predictions and validations see."""
        return frame_sets(self.meta)

    def row(self, clip_id: str, frame_set: int = 0) -> ClipRow:
        """One clip, seen at the moments of `frame_set`; no byte of its pixels is read before it is used.

        Raises ValueError for a clip that was not packed.
        """
        batch, row = self._find(clip_id)
        assert 0 <= frame_set < self.sets
        shape = self.meta["frames"], self.meta["height"], self.meta["width"], 3
        nbytes = int(np.prod(shape))
        if frame_set == 0:
            column, place, index = batch.column("frames"), row, _slice(batch.column("frame_index"), row)
        else:
            column, place = batch.column("more_frames"), row * (self.sets - 1) + frame_set - 1
            index = batch.column("more_index")[row].values.to_numpy().reshape(self.sets - 1, -1)[frame_set - 1]
        pixels = np.frombuffer(column.buffers()[1], np.uint8, nbytes, column.offset * column.type.byte_width + place * nbytes)
        value = {name: batch.column(name)[row].as_py() for name in SCALAR_COLUMNS}
        box = tuple(batch.column("box")[row].as_py()) if "regions" in self.meta else None
        return ClipRow(clip_id=clip_id, frames_THWC=pixels.reshape(shape), frame_index=index, box=box, **value)

    def states(self) -> dict[str, tuple[str, str]]:
        """(category, state) of every packed clip, by sorted clip id; pixels are not touched."""
        found = {}
        for batch in self._batches:
            columns = (batch.column(name).to_pylist() for name in ("clip_id", "category", "state"))
            found.update({clip_id: (category, state) for clip_id, category, state in zip(*columns)})
        return dict(sorted(found.items()))

    def check(self, image_size: int) -> None:
        """Raise ValueError unless the frames are squares of the size that a model takes (pixels)."""
        if (self.meta["height"], self.meta["width"]) != (image_size, image_size):
            raise ValueError(f"{self.folder}: holds frames of {self.meta['width']} x {self.meta['height']} pixels, the model takes "
                             f"{image_size} x {image_size}; pack again with data_prep/pack.py --model and this model")


@dataclass(frozen=True)
class DialogueRow:
    """One clip's dialogue in one variant: `input_ids` int32 (video tokens expanded), `turn` int8 (0 not supervised, k answer k)."""

    clip_id: str
    variant: str
    input_ids: np.ndarray
    turn: np.ndarray
    verdict_span: tuple[int, int]


class DialogueTable(Table):
    """Token ids by clip id and variant.

    `meta`: version, tokenizer_sha256, priors_sha256, prompt_ids, frames, tokens_per_frame, video_token_id, variants, seed, system,
    controls ({"shuffle_labels": seed or null}: with a seed, train clips carry permuted states on purpose).
    """

    kind = DIALOGUES
    repairable = True

    def _schema(self) -> pa.Schema:
        return dialogues_schema(self.meta)

    def _key_columns(self) -> tuple[str, ...]:
        return ("variant",)

    def _key(self, columns: dict, row: int) -> tuple[str, str]:
        return columns["clip_id"][row], columns["variant"][row]

    @property
    def keys(self) -> list[tuple[str, str]]:
        """Every (clip id, variant), sorted."""
        return sorted(self._place)

    def row(self, clip_id: str, variant: Variant | str) -> DialogueRow:
        """One dialogue; arrays are read-only views of the mapped file. Raises ValueError for a clip or variant that was not packed."""
        variant = Variant(variant).value
        if variant not in self.meta["variants"]:
            raise ValueError(f"{self.folder}: was packed with the variants {', '.join(self.meta['variants'])}, not {variant}; "
                             f"add it with data_prep/pack.py --only dialogues --variants {','.join([*self.meta['variants'], variant])}")
        batch, row = self._find((clip_id, variant))
        start, end = batch.column("verdict_span")[row].as_py()
        return DialogueRow(clip_id, variant, _slice(batch.column("input_ids"), row), _slice(batch.column("turn"), row), (start, end))

    def check(self, tokenizer_sha256: str | None = None, tokens_per_frame: int | None = None, priors_sha256: str | None = None) -> None:
        """Raise ValueError where the dialogues were made with another tokenizer, video span or prior than the one given."""
        given = {"tokenizer_sha256": tokenizer_sha256, "tokens_per_frame": tokens_per_frame, "priors_sha256": priors_sha256}
        for key, value in given.items():
            if value is not None and self.meta[key] != value:
                own, other = (str(number)[:12] for number in (self.meta[key], value))
                raise ValueError(f"{self.folder}: was packed with {key} {own}, the one in use is {other}; "
                                 "pack again with data_prep/pack.py --only dialogues, which decodes nothing")


def _slice(column: pa.ListArray, row: int) -> np.ndarray:
    """One list of a list column as a view."""
    offsets = column.offsets
    start, end = offsets[row].as_py(), offsets[row + 1].as_py()
    return column.values.slice(start, end - start).to_numpy(zero_copy_only=True)


@dataclass(frozen=True)
class Packed:
    """What pack.py wrote, opened: pixels, dialogues, the split, and one hash over all three.

    `features`, where `features.take_features` put them: what the model gets in place of pixels. The hash is not over them, since they
    follow from frames and tower and say nothing new.
    """

    folder: Path
    frames: FramesTable
    dialogues: DialogueTable
    split: SplitFile
    fingerprint: str
    features: FeaturesTable | None = None

    def video(self, clip_ids: Sequence[str], sets: Sequence[int] | None = None) -> np.ndarray:
        """What the model gets of these clips' video: frames of each clip's set (None: the first), B x T x H x W x C uint8, or features,
        B x T x S x D fp16."""
        if self.features is not None:
            return self.features.stack(clip_ids)
        return np.stack([self.frames.row(clip_id, number).frames_THWC for clip_id, number in zip(clip_ids, sets or [0] * len(clip_ids))])

    def clip_ids(self, split: Split | str) -> list[str]:
        """Sorted ids of the packed clips on one side; clips in quarantine are not among them."""
        packed = set(self.frames.clip_ids)
        return [clip_id for clip_id in self.split.clip_ids(split) if clip_id in packed]

    def train_clips(self) -> list[str]:
        """Sorted ids of the packed clips that train. Raises ValueError where there is none."""
        clips = self.clip_ids(Split.TRAIN)
        if not clips:
            raise ValueError(f"{self.folder} holds no clip of the train split: check its split.json and frames/quarantine.jsonl")
        return clips

    def unread(self, split: Split | str) -> list[str]:
        """Sorted ids of the clips on one side that could not be read: the split names them, and they are not packed."""
        return sorted(set(self.split.clip_ids(split)).difference(self.frames.clip_ids))

    def quarantined(self) -> list[dict]:
        """The clips that could not be decoded: {clip_id, path, reason}. Raises ValueError where the list cannot be read."""
        path = self.frames.folder / QUARANTINE
        try:
            return read_quarantine(path)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path}: cannot be read ({error}); {REPACK}") from error

    def check(self, tokenizer_sha256: str, image_size: int, tokens_per_frame: int) -> None:
        """Raise ValueError, naming the folder and the cure, where the data does not fit a model."""
        self.frames.check(image_size)
        self.dialogues.check(tokenizer_sha256, tokens_per_frame)

    def check_bytes(self) -> None:
        """Raise ValueError, naming the first shard whose bytes changed since it was packed. Reads every byte: once a run is enough."""
        tables = (self.frames, self.dialogues, *([self.features] if self.features is not None else []))
        problem = next(chain.from_iterable(table.changed_shards() for table in tables), None)
        if problem:
            raise ValueError(problem)


def open_packed(folder: str | Path) -> Packed:
    """Open a folder that pack.py wrote. Raises ValueError, naming the file, for anything missing, damaged or mismatched."""
    folder = Path(folder)
    check_packed(folder)
    frames, dialogues, split = FramesTable.open(folder / FRAMES), DialogueTable.open(folder / DIALOGUES), load_split(folder / SPLIT)
    cure = "pack again with data_prep/pack.py --only dialogues, which decodes nothing"
    if dialogues.meta["frames"] != frames.meta["frames"]:
        raise ValueError(f"{dialogues.folder}: counts {dialogues.meta['frames']} frames a clip, {frames.folder} holds "
                         f"{frames.meta['frames']}; {cure}")
    present = set(dialogues.keys)
    for clip_id in frames.clip_ids:
        if any((clip_id, variant) not in present for variant in dialogues.meta["variants"]):
            raise ValueError(f"{dialogues.folder}: has no dialogue for the packed clip {clip_id!r}; {cure}")
    fingerprint = sha256_text("\n".join((frames.fingerprint, dialogues.fingerprint, split.sha256)))
    return Packed(folder, frames, dialogues, split, fingerprint)
