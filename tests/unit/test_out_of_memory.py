"""A GPU's lack of memory is one sentence, and its cure keeps the global batch."""

from __future__ import annotations

import pytest
import torch

from vlmphys.config import TrainConfig
from vlmphys.out_of_memory import OTHER_SHARDING, enough_memory, smaller_batch, smaller_validation

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
