"""The feature cache: what the frozen video tower made of each packed clip, in shards beside the frames, taken in place of pixels.

packed/features/  features-00000.arrow ...  manifest.json      one row a clip: T x S x D fp16

Kept is what goes into the projector and not what comes out of it: a quarter of the bytes for the 7B model, and the projector, which is
cheap, stays free to change. The manifest ties the features to the tower by a digest of its weights, and to the frames that it saw.
Written by `feature_packing`. Shape suffixes: B clips, T frames, S tokens of a frame, D width of the tower's chosen layers together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from vlmphys.shard_files import MANIFEST, Table, schema_metadata
from vlmphys.shards import FramesTable, Packed

FEATURES = "features"
DTYPE = np.dtype(np.float16)


def clip_shape(meta: dict) -> tuple[int, int, int]:
    """T, S and D of a clip's features."""
    return meta["frames"], meta["tokens_per_frame"], meta["width"]


def clip_bytes(meta: dict) -> int:
    """Bytes of a clip's features."""
    return math.prod(clip_shape(meta)) * DTYPE.itemsize


def features_schema(meta: dict) -> pa.Schema:
    """Columns of a features shard; `meta` as in `FeaturesTable`."""
    return pa.schema([("clip_id", pa.string()), ("features", pa.binary(clip_bytes(meta)))], metadata=schema_metadata(meta))


class FeaturesTable(Table):
    """Features by clip id. `meta`: version, frames (T), tokens_per_frame (S), width (D), dtype, layers (of the tower, as its config
    names them), tower_sha256 (`tower.tower_sha256`), image_mean, image_std, frames_fingerprint (of the frames table)."""

    kind = FEATURES

    def _schema(self) -> pa.Schema:
        return features_schema(self.meta)

    def _key(self, columns: dict, row: int) -> str:
        return columns["clip_id"][row]

    @property
    def clip_ids(self) -> list[str]:
        """Every clip that has features, sorted."""
        return sorted(self._place)

    def row(self, clip_id: str) -> np.ndarray:
        """One clip's features, T x S x D fp16, a read-only view of the mapped file. Raises ValueError for a clip that has none."""
        batch, row = self._find(clip_id)
        column, nbytes = batch.column("features"), clip_bytes(self.meta)
        values = np.frombuffer(column.buffers()[1], DTYPE, nbytes // DTYPE.itemsize, (column.offset + row) * nbytes)
        return values.reshape(clip_shape(self.meta))

    def stack(self, clip_ids: Sequence[str]) -> np.ndarray:
        """Several clips' features, B x T x S x D fp16."""
        return np.stack([self.row(clip_id) for clip_id in clip_ids])

    def stale(self, frames: FramesTable) -> str | None:
        """Why these features are not of these frames, as a sentence without its cure; None where they are."""
        if self.meta["frames_fingerprint"] != frames.fingerprint or self.clip_ids != frames.clip_ids:
            return f"{self.folder} was made of other frames than those in {frames.folder}"
        return None

    def of_other_tower(self, tower_sha256: str, image_mean: Sequence[float], image_std: Sequence[float], model: str) -> str | None:
        """Why a model cannot take these features, as a sentence without its cure; None where it can."""
        if self.meta["tower_sha256"] != tower_sha256:
            return (f"{self.folder} was made with the video tower {self.meta['tower_sha256'][:12]}, that of {model} is {tower_sha256[:12]}, and "
                    "only the very same weights are allowed")
        if (self.meta["image_mean"], self.meta["image_std"]) != (list(image_mean), list(image_std)):
            return f"{self.folder} was made of pixels normalised in another way than {model} wants them (image_mean, image_std)"
        return None


def open_features(packed: Packed) -> FeaturesTable | None:
    """The features in a packed folder, whatever tower they are of; None where there are none. ValueError for damaged ones."""
    folder = packed.folder / FEATURES
    return FeaturesTable.open(folder) if (folder / MANIFEST).is_file() else None


def take_features(packed: Packed, wanted: str, model: str, image_mean: Sequence[float], image_std: Sequence[float],
                  all_sets: bool = False) -> tuple[Packed, str]:
    """The packed data with its features in place of pixels, where they are `wanted` and fit; and what is to be told of it, or "".

    `wanted`: `false` never, `true` always, `auto` where features of this very tower and these frames are there. `model`: whose tower
    counts. `all_sets`: for a training, which reads further sets of frames where they are packed. Raises ValueError with `true` where
    features are missing or do not fit, and for damaged ones except with `false`.
    """
    if wanted == "false":
        return packed, ""
    make = f"python data_prep/pack.py --out {packed.folder} --features --model {model}"
    table = open_features(packed)
    if table is None:
        if wanted == "true":
            raise ValueError(f"features is true, but {packed.folder} holds none: make them with {make}, or set features to auto or false")
        return packed, ""
    if all_sets and packed.frames.sets > 1:
        problem = f"features are of each clip's first set of frames alone, and {packed.frames.folder} holds {packed.frames.sets} sets to train on"
        if wanted == "true":
            raise ValueError(f"features is true, but {problem}: set features to false, or pack again without --frame-sets")
        return packed, f"pixels are taken: {problem}"
    from vlmphys.tower import tower_sha256  # with torch and transformers, which reading a table does not need

    problem = table.stale(packed.frames)
    problem = problem or table.of_other_tower(tower_sha256(model), image_mean, image_std, model)
    if problem and wanted == "true":
        raise ValueError(f"{problem}: make them anew with {make}, or set features to auto or false to take pixels")
    if problem:
        return packed, f"pixels are taken, because {problem}; to make features anew: {make}"
    return replace(packed, features=table), f"the video comes as features from {table.folder}: the tower is not loaded"
