"""A GPU whose memory did not do: one sentence with what was running, how much there was, and what to set instead of a traceback."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch

from vlmphys.cases import GIB
from vlmphys.config import TrainConfig

Result = TypeVar("Result")
OTHER_SHARDING = "a JSON of ds_configs/ that divides or offloads more (`vlmphys plan` says which one fits)"


@contextmanager
def enough_memory(doing: str, cure: str) -> Iterator[None]:
    """Raise ValueError where `doing` takes more memory than the GPU has; `cure` says what to use instead."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        peak = torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else 0.0
        raise ValueError(f"the GPU has too little memory for {doing} (torch had allocated {peak:.1f} GiB at most): use {cure}") from error


def smaller_batch(config: TrainConfig) -> str:
    """What a step can be tried with next: the next smaller micro-batch of the same global batch, else what else saves activations."""
    clips = config.per_device_train_batch_size * config.gradient_accumulation_steps
    smaller = [size for size in range(1, config.per_device_train_batch_size) if clips % size == 0]
    if smaller:
        return f"--set per_device_train_batch_size={smaller[-1]} gradient_accumulation_steps={clips // smaller[-1]}"
    return OTHER_SHARDING if config.gradient_checkpointing else "--set gradient_checkpointing=true"


def smaller_validation(config: TrainConfig) -> str:
    """What a validation can be tried with next."""
    size = config.per_device_eval_batch_size
    return f"--set per_device_eval_batch_size={size // 2}" if size > 1 else OTHER_SHARDING


def halving(size: int, say: Callable[[int], None]) -> Callable[[int, Callable[[int, int], Result]], Iterator[Result]]:
    """A way to do something to `count` things, at most `size` at a time, that halves this size for good where the memory does not do.

    What is returned takes the count and what to do with the things [start, stop); `say` is told each new size. Raises ValueError where
    not even one fits.
    """
    def pieces(count: int, work: Callable[[int, int], Result]) -> Iterator[Result]:
        nonlocal size
        start = 0
        while start < count:
            stop = min(count, start + size)
            result = None
            try:
                with enough_memory("one clip", "--dtype bf16 or 4bit, or a smaller model") if stop - start == 1 else nullcontext():
                    result = work(start, stop)
            except torch.OutOfMemoryError:
                pass        # what failed is let go of before the next try: a traceback would hold its tensors
            if result is None:
                size = (stop - start) // 2
                torch.cuda.empty_cache()
                say(size)
                continue
            start = stop
            yield result
    return pieces
