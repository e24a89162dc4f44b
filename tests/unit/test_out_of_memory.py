"""A GPU's lack of memory is one sentence, and its cure keeps the global batch."""

from __future__ import annotations

import pytest
import torch

from vlmphys.config import TrainConfig
from vlmphys.out_of_memory import OTHER_SHARDING, enough_memory, halving, smaller_batch, smaller_validation

pytestmark = pytest.mark.unit


def test_what_was_running_and_what_to_set_are_told():
    with pytest.raises(ValueError, match="too little memory for optimizer step 3 .*GiB at most.*: use --set this=1"):
        with enough_memory("optimizer step 3", "--set this=1"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
    with pytest.raises(RuntimeError, match="something else"), enough_memory("optimizer step 3", "--set this=1"):
        raise RuntimeError("something else")


@pytest.mark.parametrize(("batch", "accumulation", "cure"), [
    (16, 1, "--set per_device_train_batch_size=8 gradient_accumulation_steps=2"),
    (6, 2, "--set per_device_train_batch_size=4 gradient_accumulation_steps=3"),
    (2, 8, "--set per_device_train_batch_size=1 gradient_accumulation_steps=16"), (1, 16, "--set gradient_checkpointing=true")])
def test_the_next_smaller_micro_batch_keeps_the_global_batch(batch, accumulation, cure):
    config = TrainConfig(per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation)
    assert smaller_batch(config) == cure


def test_where_nothing_is_smaller_other_sharding_is_named():
    assert smaller_batch(TrainConfig(per_device_train_batch_size=1, gradient_checkpointing=True)) == OTHER_SHARDING
    assert smaller_validation(TrainConfig(per_device_eval_batch_size=8)) == "--set per_device_eval_batch_size=4"
    assert smaller_validation(TrainConfig(per_device_eval_batch_size=1)) == OTHER_SHARDING


def test_a_batch_that_does_not_fit_is_halved_for_good_and_nothing_is_left_out():
    tried, said = [], []

    def work(start: int, stop: int) -> range:
        tried.append(stop - start)
        if stop - start > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return range(start, stop)
    pieces = halving(12, said.append)
    done = [number for count in (12, 5) for piece in pieces(count, work) for number in piece]
    assert done == [*range(12), *range(5)] and said == [6, 3] and tried == [12, 6, 3, 3, 3, 3, 3, 2]

    def never(start: int, stop: int) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(ValueError, match="too little memory for one clip .*: use --dtype bf16 or 4bit"):
        list(halving(4, said.append)(4, never))
