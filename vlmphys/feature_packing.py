"""The video tower run once over every packed clip: frames shards to features shards, in flat memory, resumed after any crash.

As the frames are (`packing`): written into `features.partial/`, one shard of CLIPS_PER_SHARD clips after the other, with a journal of
those that are whole; only a complete folder gets the name `features/`. Shape suffixes as in `tower`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vlmphys.features import DTYPE, FEATURES, FeaturesTable, clip_bytes, features_schema
from vlmphys.files import clear_disk_errors, json_bytes, swap_folder, write_atomic
from vlmphys.model import ModelFacts, load_config, normalise_frames
from vlmphys.packing import PackReport, report_of
from vlmphys.records import sha256_text
from vlmphys.shard_files import MANIFEST, VERSION, ShardWriter, manifest_of
from vlmphys.shards import FramesTable
from vlmphys.standing import finish_folder, stored_inputs
from vlmphys.tower import feature_layers, load_tower, tower_features, tower_sha256
from vlmphys.unfinished import JOURNAL, append_durably, check_space, open_journal

# A shard of the 7B model's features takes 270 MB, and what a crash costs is at most one.
CLIPS_PER_SHARD = 64
ROWS_PER_BATCH = 8
# What the tower's layers together may put out for a batch: it is the larger part of the memory that a batch takes.
BATCH_BYTES, MOST_CLIPS = 1 << 30, 32


@dataclass(frozen=True)
class TowerRun:
    """What decides the features besides the frames: the model, where its tower runs, and in which precision."""

    model: str
    facts: ModelFacts
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        """fp16 on a GPU, the precision of what is stored; fp32 on a CPU."""
        return torch.float16 if self.device.type == "cuda" else torch.float32


def device_of(name: str) -> torch.device:
    """The device behind `auto`, `cpu` or `cuda`; ValueError for a GPU that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: this machine has no usable GPU; leave --device out")
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def features_meta(frames: FramesTable, run: TowerRun) -> dict:
    """The settings as a features shard carries them; reads the tower's weights for their digest."""
    config = load_config(run.model)
    layers = feature_layers(config)
    return {"version": VERSION, "frames": frames.meta["frames"], "tokens_per_frame": run.facts.tokens_per_frame,
            "width": len(layers) * config.vision_config.hidden_size, "dtype": DTYPE.name, "layers": layers,
            "tower_sha256": tower_sha256(run.model), "image_mean": list(run.facts.image_mean), "image_std": list(run.facts.image_std),
            "frames_fingerprint": frames.fingerprint}


def fitting_batch_size(vision_config, meta: dict, dtype: torch.dtype) -> int:
    """Clips that go through the tower at a time: as many as keep the outputs of its layers within BATCH_BYTES."""
    of_clip = meta["frames"] * meta["tokens_per_frame"] * vision_config.hidden_size * (vision_config.num_hidden_layers + 1) * dtype.itemsize
    return max(1, min(MOST_CLIPS, BATCH_BYTES // of_clip))


def pack_features(frames: FramesTable, out: Path, run: TowerRun, progress: Callable[[int], None] = lambda clips_done: None) -> PackReport:
    """Write `out/features` for these frames, or go on where an earlier run stopped, or do nothing where it is all there.

    The former folder, which is made anew where its manifest is lost, stands until its successor is complete. Raises ValueError where the frames do not fit the model, where a value
    has no place in fp16, and where the disk is full.
    """
    frames.check(run.facts.image_size)
    target, partial = out / FEATURES, out / f"{FEATURES}.partial"
    finish_folder(partial, target)
    meta, clip_ids = features_meta(frames, run), frames.clip_ids
    # Where and in which precision the tower runs changes last bits: shards of two kinds are not mixed, finished features are not redone.
    inputs = sha256_text(json.dumps([meta, CLIPS_PER_SHARD, clip_ids], sort_keys=True))
    if stored_inputs(target, anew=True) == inputs:
        progress(len(clip_ids))
        return report_of(FeaturesTable.open(target).manifest, True)
    with clear_disk_errors(out, "finished shards"):
        done = open_journal(partial, sha256_text(f"{inputs} {run.device.type} {run.dtype}"))
        chunks = [clip_ids[start:start + CLIPS_PER_SHARD] for start in range(0, len(clip_ids), CLIPS_PER_SHARD)]
        missing = [index for index in range(len(chunks)) if index not in done]
        check_space(out, sum(len(chunks[index]) for index in missing), clip_bytes(meta))
        _write_shards(frames, chunks, missing, done, partial, meta, run, progress)
        manifest = manifest_of(FEATURES, meta, [done[index]["shard"] for index in range(len(chunks))], inputs_sha256=inputs,
                               computed={"device": run.device.type, "dtype": str(run.dtype).removeprefix("torch.")})
        write_atomic(partial / MANIFEST, json_bytes(manifest))
        (partial / JOURNAL).unlink()
        swap_folder(partial, target)
    return report_of(manifest, False)


def _write_shards(frames: FramesTable, chunks: list[list[str]], missing: list[int], done: dict[int, dict], partial: Path, meta: dict,
                  run: TowerRun, progress: Callable[[int], None]) -> None:
    """Make the shards that no earlier run left; the model is loaded where one is missing."""
    clips_done = sum(len(chunks[index]) for index in done)
    progress(clips_done)
    if not missing:
        return
    tower = load_tower(run.model, run.dtype)
    if tower is None:
        raise ValueError(f"model {run.model!r} holds no whole video tower: give the folder or hub id of a whole Video-LLaVA")
    tower, size = tower.to(run.device), fitting_batch_size(load_config(run.model).vision_config, meta, run.dtype)
    for index in missing:
        writer = ShardWriter(partial / f"{FEATURES}-{index:05d}.arrow", features_schema(meta), ROWS_PER_BATCH)
        try:
            for start in range(0, len(chunks[index]), size):
                clip_ids = chunks[index][start:start + size]
                for clip_id, features_TSD in zip(clip_ids, features_of(tower, frames, clip_ids, meta, run)):
                    writer.add({"clip_id": clip_id, "features": features_TSD})
                clips_done += len(clip_ids)
                progress(clips_done)
            line = writer.close()
        finally:
            writer.abort()
        done[index] = {"index": index, "shard": line}
        append_durably(partial / JOURNAL, done[index])


@torch.inference_mode()
def features_of(tower: nn.Module, frames: FramesTable, clip_ids: list[str], meta: dict, run: TowerRun) -> np.ndarray:
    """A batch of clips through the tower, B x T x S x D fp16. Raises ValueError, naming the clips, for values beyond what fp16 holds."""
    frames_BTHWC = torch.from_numpy(np.stack([frames.row(clip_id).frames_THWC for clip_id in clip_ids])).to(run.device)
    pixels_BTCHW = normalise_frames(frames_BTHWC, run.facts.image_mean, run.facts.image_std, run.dtype)
    features_BTSD = tower_features(tower, meta["layers"], pixels_BTCHW)
    assert features_BTSD.shape[1:] == (meta["frames"], meta["tokens_per_frame"], meta["width"]), features_BTSD.shape
    stored = features_BTSD.half().cpu().numpy()
    if not np.isfinite(stored).all():
        wrong = [clip_id for clip_id, values in zip(clip_ids, stored) if not np.isfinite(values).all()]
        raise ValueError(f"the tower of {run.model!r} gives values that are infinite or no number in fp16 (beyond 65504), first for "
                         f"{wrong[0]!r}: its features cannot be stored; "
                         + ("--device cpu computes in fp32, where they may fit" if run.dtype is torch.float16 else "train and predict on pixels"))
    return stored
