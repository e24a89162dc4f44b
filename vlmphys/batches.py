"""Which clips an optimizer step sees, and how they become tensors.

The order is a pure function of (seed, step): nothing needs to be stored to resume, and any number of ranks or
micro-batches sees the same global batch. Shape suffixes: B clips of a micro-batch, L positions, N supervised positions,
T frames, H W pixels, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields

import numpy as np
import torch

from vlmphys.records import MAX_TURNS, Variant, stable_int
from vlmphys.shards import Packed


class ClipOrder:
    """A seeded permutation of the train clips for each epoch, cut into global batches.

    The last batch of an epoch keeps the clips that are left over, so that every epoch holds each clip exactly once.
    """

    def __init__(self, clip_ids: list[str], global_batch: int, seed: int):
        assert clip_ids and global_batch > 0
        self.clip_ids = sorted(clip_ids)
        self.global_batch = global_batch
        self.seed = seed
        self.steps_per_epoch = math.ceil(len(self.clip_ids) / global_batch)
        self._epoch: tuple[int, np.ndarray] | None = None

    def total_steps(self, num_train_epochs: float, max_steps: int) -> int:
        """Optimizer steps of the whole run; `max_steps` of at least 1 decides alone."""
        return max_steps if max_steps > 0 else max(1, math.ceil(num_train_epochs * self.steps_per_epoch))

    def clips_of_step(self, step: int) -> list[str]:
        """The global batch of optimizer step `step`, counted from 0."""
        epoch, position = divmod(step, self.steps_per_epoch)
        held = self._epoch      # read once: at an epoch's border another thread may be putting its own here
        if held is None or held[0] != epoch:
            generator = np.random.default_rng(stable_int("clip order", self.seed, epoch))
            held = self._epoch = (epoch, generator.permutation(len(self.clip_ids)))
        start = position * self.global_batch
        return [self.clip_ids[index] for index in held[1][start:start + self.global_batch]]

    def frame_set(self, step: int, clip_id: str, sets: int) -> int:
        """Which of a clip's `sets` sets of frames optimizer step `step` sees: another one in each epoch, all of them in as many epochs."""
        return (stable_int("frame set", self.seed, clip_id) + step // self.steps_per_epoch) % sets


def deal(clips: list[str], rank: int, ranks: int, micro_batch: int) -> list[list[str]]:
    """This rank's micro-batches of a global batch: consecutive hands of `micro_batch` clips, rank by rank.

    Every rank gets the same number of hands, because a hand is a collective call; a hand may be empty at an epoch's end.
    """
    rounds = math.ceil(len(clips) / (ranks * micro_batch))
    starts = [(turn * ranks + rank) * micro_batch for turn in range(rounds)]
    return [clips[start:start + micro_batch] for start in starts]


@dataclass(frozen=True)
class Batch:
    """A micro-batch. Positions count in the flattened B x L grid; `keep_N` predicts `target_N`, so it lies one before it."""

    input_ids_BL: torch.Tensor      # int64, padded on the right
    video: torch.Tensor             # uint8 frames, B x T x H x W x C, or the tower's features, B x T x S x D fp16 (`Packed.video`)
    keep_N: torch.Tensor            # int64
    target_N: torch.Tensor          # int64, token ids
    turn_N: torch.Tensor            # int64, 0-based turn of the target
    verdict_row_N: torch.Tensor     # int64, the clip whose verdict the target is part of, or -1
    clip_ids: tuple[str, ...]
    tokens: int                     # without padding
    weightless: bool                # stands in for an empty hand: it takes part in collective calls and counts for nothing
    tokens_squared: int = 0         # sum of the clips' squared lengths, to which attention's work is proportional

    @property
    def frames_BTHWC(self) -> torch.Tensor:
        """The frames of a batch that holds pixels."""
        assert self.video.dtype == torch.uint8, "this batch holds features"
        return self.video

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The same batch in page-locked memory, from where a GPU fetches it while the host goes on."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Batch(**{name: change(value) if isinstance(value, torch.Tensor) else value for name, value in values.items()})


def collate(packed: Packed, clip_ids: list[str], variant: Variant, pad_token_id: int, weightless: bool = False,
            set_of: Callable[[str], int] = lambda clip_id: 0) -> Batch:
    """Read clips and pad them to the longest. With `weightless` no position is supervised; `set_of` says which set of a clip's frames is read.

    Padding needs no attention mask: it stands on the right, and in a causal model no real position looks to its right.
    """
    rows = [packed.dialogues.row(clip_id, variant) for clip_id in clip_ids]
    lengths = [len(row.input_ids) for row in rows]
    length = max(lengths)
    ids_BL = np.full((len(rows), length), pad_token_id, dtype=np.int64)
    keep, target, turn, verdict_row = [], [], [], []
    for index, row in enumerate(rows):
        ids_BL[index, :lengths[index]] = row.input_ids
        turns = np.asarray(row.turn)
        assert turns[0] == 0 and turns.max() <= MAX_TURNS, f"{row.clip_id}: turn ids {turns.min()}..{turns.max()}"
        positions = np.flatnonzero(turns) if not weightless else np.empty(0, dtype=np.int64)
        start, end = row.verdict_span
        keep.append(index * length + positions - 1)
        target.append(ids_BL[index, positions])
        turn.append(turns[positions].astype(np.int64) - 1)
        verdict_row.append(np.where((positions >= start) & (positions < end), index, -1))
    video = packed.video(clip_ids, [set_of(clip_id) for clip_id in clip_ids])
    keep_N, target_N, turn_N, verdict_N = (torch.from_numpy(np.concatenate(part)) for part in (keep, target, turn, verdict_row))
    return Batch(torch.from_numpy(ids_BL), torch.from_numpy(video), keep_N, target_N, turn_N, verdict_N, tuple(clip_ids),
                 0 if weightless else sum(lengths), weightless, 0 if weightless else sum(length ** 2 for length in lengths))


def load_step(packed: Packed, order: ClipOrder, step: int, rank: int, ranks: int, micro_batch: int, variant: Variant,
              pad_token_id: int) -> list[Batch]:
    """All micro-batches that `rank` computes in optimizer step `step`."""
    clips = order.clips_of_step(step)
    hands = deal(clips, rank, ranks, micro_batch)
    sets = packed.frames.sets
    return [collate(packed, hand or clips[:1], variant, pad_token_id, weightless=not hand,
                    set_of=lambda clip_id: order.frame_set(step, clip_id, sets)) for hand in hands]


class StepReader:
    """The batches of each optimizer step; with `workers` threads the coming steps are read while the current one is computed.

    `read` gives the batches of a step and depends on the step alone, so that reading ahead changes no order and no content. With a GPU
    as `device` the batches are put into page-locked memory. An error while reading surfaces at the step that it belongs to.
    """

    def __init__(self, read: Callable[[int], list[Batch]], total_steps: int, workers: int, device: torch.device):
        self._read, self._total_steps, self._workers, self._device = read, total_steps, workers, device
        # A new thread's current GPU is the first one, which is another rank's: pinning there would open a context on it.
        choose_gpu = (lambda: torch.cuda.set_device(device)) if device.type == "cuda" else None
        self._threads = ThreadPoolExecutor(workers, "reader", choose_gpu) if workers else None
        self._ahead: dict[int, Future[list[Batch]]] = {}

    def batches_of(self, step: int) -> list[Batch]:
        """The batches of optimizer step `step`, counted from 0; starts to read those that follow."""
        if self._threads is None:
            return self._fetch(step)
        for coming in range(step, min(step + self._workers + 1, self._total_steps)):
            if coming not in self._ahead:
                self._ahead[coming] = self._threads.submit(self._fetch, coming)
        return self._ahead.pop(step).result()

    def _fetch(self, step: int) -> list[Batch]:
        batches = self._read(step)
        return [batch.pinned() for batch in batches] if self._device.type == "cuda" else batches

    def close(self) -> None:
        """Forget what was read ahead and end the threads."""
        self._ahead.clear()
        if self._threads:
            self._threads.shutdown(cancel_futures=True)
