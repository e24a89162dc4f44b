"""Runs of the published 7B model on machines of different sizes, for the tests of the plan and of its formulas."""

from __future__ import annotations

from dataclasses import replace

from vlmphys import plan
from vlmphys.cases import GIB, Sharding, sharding_of
from vlmphys.config import TrainConfig

OFFLOAD = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": True}, "reduce_bucket_size": 20000000,
                                 "overlap_comm": False}}
ZERO2 = {"zero_optimization": {"stage": 2, "reduce_bucket_size": 50000000, "overlap_comm": True, "contiguous_gradients": True}}
ZERO3 = {"zero_optimization": {"stage": 3, "reduce_bucket_size": 50000000, "stage3_max_live_parameters": 1e8,
                               "stage3_prefetch_bucket_size": 5e7}}
LORA = TrainConfig(model="7b", tune="lora", lora_r=128, bf16=True, gradient_checkpointing=True, per_device_train_batch_size=1,
                   gradient_accumulation_steps=16)
FULL, QLORA = replace(LORA, tune="full"), replace(LORA, tune="qlora")
FSDP = None


def machine(gpu_gib, gpus, host_gib=512):
    return plan.Machine(gpus, int(gpu_gib * GIB) if gpu_gib else None, int(host_gib * GIB), None, "as in the test")


def case7b(size, published, config, settings, where):
    """`settings`: the content of a DeepSpeed JSON, or `FSDP`."""
    data = plan.assumed_data(config, size, published)
    case = plan.case_of(config, plan.tuned_size(size, config), data, where)
    return replace(case, sharding=sharding_of("test.json", settings) if settings else Sharding("fsdp", fsdp=True))
