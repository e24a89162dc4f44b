"""What the engine needs of DeepSpeed beside its engine: its settings, where it keeps what lives on a disk, and its CPU optimizer."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlmphys.compiling import load_op
from vlmphys.config import TrainConfig, read_deepspeed_json
from vlmphys.world import World


def deepspeed_settings(config: TrainConfig) -> dict[str, Any]:
    """What DeepSpeed is told: the run's JSON, the run's own batch size, precision and clipping, and a folder for what goes to a disk."""
    settings = read_deepspeed_json(config.deepspeed)
    sharding = settings["zero_optimization"]
    for part in ("offload_optimizer", "offload_param"):
        if offload_device(sharding, part) == "nvme":
            sharding[part].setdefault("nvme_path", str(offload_folder(config)))
    return {
        **settings,
        "train_micro_batch_size_per_gpu": config.per_device_train_batch_size,
        # The loop accumulates and says where a step ends, since the last step of an epoch has fewer micro-batches: with 1
        # DeepSpeed divides nothing by a number of accumulation steps that it believes in.
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "bf16": {"enabled": config.bf16},
        "steps_per_print": 1 << 60}


def offload_folder(config: TrainConfig) -> Path:
    """Where weights and moments go that live on a disk, unless the JSON names another place. Hidden: it is no part of a run."""
    return Path(config.out).absolute() / ".offload"


def offload_device(sharding: dict[str, Any], part: str) -> str:
    """Where `offload_optimizer` or `offload_param` puts its states: none (the device), cpu or nvme."""
    return (sharding.get(part) or {}).get("device") or "none"


def uses_disk(sharding: dict[str, Any]) -> bool:
    """Whether anything lives on a disk."""
    return "nvme" in (offload_device(sharding, "offload_optimizer"), offload_device(sharding, "offload_param"))


def cpu_adam(parameters: list[nn.Parameter], config: TrainConfig, world: World):
    """DeepSpeed's AdamW for weights that live in host memory."""
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    from deepspeed.ops.op_builder import CPUAdamBuilder
    load_op(CPUAdamBuilder(), "DeepSpeed's CPU Adam", compiles(world, "cpu_adam"),
            "install a C++ compiler (g++) and ninja, or use a JSON without offload_optimizer, such as ds_configs/zero2.json")
    return DeepSpeedCPUAdam(parameters, lr=config.learning_rate, betas=(config.adam_beta1, config.adam_beta2), eps=config.adam_epsilon,
                            weight_decay=config.weight_decay, adamw_mode=True)


def compiles(world: World, op: str) -> bool:
    """Whether this rank should say that an op is being compiled: not where DeepSpeed was installed with it."""
    from deepspeed.git_version_info import installed_ops
    return world.is_first and not installed_ops.get(op)


def is_cpu_adam(optimizer) -> bool:
    """Whether this is the optimizer that `cpu_adam` gives."""
    return hasattr(optimizer, "ds_opt_adam")


def replay_cpu_adam(adam, step: int, parts: int) -> None:
    """Bring the powers of the betas inside DeepSpeed's C++ optimizer to where `step` updates would have brought them.

    It multiplies them up step by step, which in floating point differs from the power that a fresh object computes at `step`; without
    this a resumed run differs from an uninterrupted one in the last bit. A step updates `parts` flat tensors one after the other, and
    the object counts calls. The updates go to a number that nobody reads.
    """
    group = adam.param_groups[0]
    number, gradient, mean, variance = (torch.zeros(1) for _ in range(4))
    for past in (past for past in range(1, step + 1) for _ in range(parts)):
        adam.ds_opt_adam.adam_update(adam.opt_id, past, group["lr"], *group["betas"], group["eps"], group["weight_decay"],
                                     group["bias_correction"], number, gradient, mean, variance)


def import_deepspeed():
    """DeepSpeed, told which accelerator there is and to speak only of what is wrong."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed
    deepspeed.utils.logger.setLevel(logging.ERROR)
    # DeepSpeed 0.19 calls it under torch 2.13's old name; drop this line when it does not.
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor.*deprecated", category=FutureWarning)
    # A shared-memory all-reduce for inference on CPUs: never used in training, but compiled at every machine's first start.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
