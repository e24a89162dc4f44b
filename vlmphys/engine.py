"""Who computes gradients and updates weights: torch alone, or DeepSpeed. The only file that knows of either.

It owns all scaling. The loop hands over a loss whose sum over micro-batches **and ranks** is the loss of the optimizer
step; what an engine does to gradients by itself (DeepSpeed averages them over ranks) is undone here.
"""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import distributed, nn
from torch.utils import cpp_extension

from vlmphys.batches import Batch
from vlmphys.compiling import build_folder, remove_stale_lock
from vlmphys.config import TrainConfig, read_deepspeed_json

MOMENTS = ("exp_avg", "exp_avg_sq")
Lookup = Callable[[str, str], torch.Tensor]     # (name of a parameter, "weight" or a moment) -> the whole tensor, fp32


@dataclass(frozen=True)
class World:
    """This process among the others."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files and speaks to the terminal."""
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of a small tensor over all ranks, as a new tensor on the CPU. Every rank must call it."""
        if self.size == 1:
            return values.cpu()
        total = values.to(self.device, copy=True)
        distributed.all_reduce(total)
        return total.cpu()

    def gather_texts(self, texts: list[str]) -> list[str]:
        """The texts of all ranks. Every rank must call it."""
        if self.size == 1:
            return texts
        everyone: list[list[str]] = [[] for _ in range(self.size)]
        distributed.all_gather_object(everyone, texts)
        return [text for part in everyone for text in part]

    def agree(self, problems: list[str]) -> None:
        """Raise one ValueError on all ranks where any of them has a problem. Every rank must call it, and waits for the others."""
        found = self.gather_texts(problems)
        if found:
            raise ValueError("; ".join(found))

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            distributed.barrier()

    def leave(self) -> None:
        """Close the connection."""
        if distributed.is_initialized():
            distributed.destroy_process_group()


def place() -> tuple[int, bool]:
    """Number of ranks and whether this is the first, as the launcher's environment says; nothing is connected."""
    return int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0)) == 0


def connect(config: TrainConfig) -> World:
    """Join the processes that a launcher (`deepspeed`, `torchrun`) started; without one, be the only process."""
    rank, (size, _) = int(os.environ.get("RANK", 0)), place()
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        # Without this each rank would use every core, and two ranks would be slower than one.
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or size)
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_size))
    if config.engine == "deepspeed" or size > 1:
        if "MASTER_ADDR" not in os.environ:
            if size > 1:
                raise ValueError(f"WORLD_SIZE is {size}, but MASTER_ADDR is not set: start the ranks with `deepspeed` or `torchrun`, "
                                 "or unset WORLD_SIZE to train in one process")
            os.environ.update({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0",
                               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())})
        if config.engine == "deepspeed":
            _import_deepspeed().init_distributed(dist_backend="nccl" if on_gpu else "gloo", verbose=False)
        else:
            distributed.init_process_group("nccl" if on_gpu else "gloo")
    return World(rank, size, torch.device("cuda", local_rank) if on_gpu else torch.device("cpu"))


def start(world: World, module: nn.Module, trained: dict[str, nn.Parameter], config: TrainConfig) -> PlainEngine:
    """The engine that `config.engine` names, around a module whose forward takes a batch's tensors. Weights may be cast and moved."""
    return (DeepSpeedEngine if config.engine == "deepspeed" else PlainEngine)(world, module, trained, config)


class PlainEngine:
    """torch alone: fp32 master weights, bf16 through autocast, gradients summed over ranks in one message."""

    def __init__(self, world: World, module: nn.Module, trained: dict[str, nn.Parameter], config: TrainConfig):
        self.world, self.trained, self.bf16, self.max_grad_norm = world, trained, config.bf16, config.max_grad_norm
        names = {id(parameter) for parameter in trained.values()}
        for parameter in module.parameters():
            # Frozen weights need no fp32 master copy.
            dtype = torch.bfloat16 if config.bf16 and id(parameter) not in names else torch.float32
            parameter.data = parameter.data.to(world.device, dtype)
        self.module = module.to(world.device)
        self.optimizer = adamw(list(trained.values()), config)

    def forward(self, batch: Batch, last: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The module's outputs for a micro-batch on this device; `last` says that it closes the optimizer step."""
        with torch.autocast(self.world.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            return self.module(batch.input_ids_BL, batch.frames_BTHWC, batch.keep_N, batch.target_N, batch.turn_N, batch.verdict_row_N)

    def backward(self, loss: torch.Tensor) -> None:
        """Add this loss's gradients to those of the optimizer step."""
        loss.backward()

    def step(self, learning_rate: float) -> float:
        """Sum gradients over ranks, clip their global norm, update. Returns the norm before clipping."""
        parameters = list(self.trained.values())
        if self.world.size > 1:
            flat = torch.cat([parameter.grad.flatten() for parameter in parameters])
            distributed.all_reduce(flat)
            for parameter, total in zip(parameters, flat.split([parameter.numel() for parameter in parameters])):
                parameter.grad.copy_(total.view_as(parameter))
        norm = nn.utils.clip_grad_norm_(parameters, self.max_grad_norm or float("inf"))
        set_learning_rate(self.optimizer, learning_rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def export_state(self) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        """Each trained parameter's master weight and moments, whole, fp32, on the CPU. Every rank must exhaust it."""
        for name, parameter in self.trained.items():
            state = self.optimizer.state[parameter]
            yield name, {"weight": parameter.detach().cpu(), **{key: state[key].cpu() for key in MOMENTS}}

    def import_state(self, lookup: Lookup, step: int) -> None:
        """Put back what `export_state` gave after optimizer step `step`."""
        for name, parameter in self.trained.items():
            parameter.data.copy_(lookup(name, "weight"))
            moments = {key: lookup(name, key).to(parameter.device) for key in MOMENTS}
            self.optimizer.state[parameter] = {"step": torch.tensor(float(step), device=parameter.device), **moments}

    def model_weights(self) -> dict[str, torch.Tensor]:
        """The network's weights as the forward pass uses them, whole, on the CPU, in one precision. Every rank must call it."""
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        return {name: value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype, copy=True)
                for name, value in self.module.network.state_dict().items()}


class DeepSpeedEngine(PlainEngine):
    """DeepSpeed's engine at ZeRO stage 1 or 2, with the optimizer on the device or on the CPU."""

    def __init__(self, world: World, module: nn.Module, trained: dict[str, nn.Parameter], config: TrainConfig):
        deepspeed = _import_deepspeed()
        self.world, self.trained, self.bf16 = world, trained, config.bf16
        settings = read_deepspeed_json(config.deepspeed)
        offload = settings["zero_optimization"].get("offload_optimizer", {}).get("device", "none") != "none"
        parameters = list(trained.values())
        self.adam = _cpu_adam(parameters, config, world) if offload else adamw(parameters, config)
        settings.update({
            "train_micro_batch_size_per_gpu": config.per_device_train_batch_size,
            # The loop accumulates and says where a step ends, since the last step of an epoch has fewer micro-batches: with 1
            # DeepSpeed divides nothing by a number of accumulation steps that it believes in.
            "gradient_accumulation_steps": 1,
            "gradient_clipping": config.max_grad_norm,
            "bf16": {"enabled": config.bf16},
            "steps_per_print": 1 << 60})
        self.engine, *_ = deepspeed.initialize(model=module, model_parameters=parameters, optimizer=self.adam, config=settings)
        self.module = module

    def forward(self, batch: Batch, last: bool) -> tuple[torch.Tensor, torch.Tensor]:
        self.engine.set_gradient_accumulation_boundary(last)
        return self.engine(batch.input_ids_BL, batch.frames_BTHWC, batch.keep_N, batch.target_N, batch.turn_N, batch.verdict_row_N)

    def backward(self, loss: torch.Tensor) -> None:
        # DeepSpeed averages gradients over ranks; the step's loss is the sum over them.
        self.engine.backward(loss * self.world.size)

    def step(self, learning_rate: float) -> float:
        set_learning_rate(self.engine.optimizer, learning_rate)
        self.engine.step()
        return float(self.engine.get_global_grad_norm())

    def export_state(self) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
        for name, parameter in self.trained.items():
            state = {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
            state["weight"] = safe_get_full_fp32_param(parameter)
            yield name, {key: value.detach().cpu() for key, value in state.items()}

    def import_state(self, lookup: Lookup, step: int) -> None:
        # ZeRO 1 and 2 keep one flat fp32 partition a rank; `_hp_mapping` says which piece of a parameter lies where in it, and is None
        # where this rank holds none. DeepSpeed's own setters work only once the moments exist, which is after a first step.
        (flat,) = self.adam.param_groups[0]["params"]
        state = self.adam.state[flat]
        state.update({key: torch.zeros_like(flat) for key in MOMENTS})
        for name, parameter in self.trained.items():
            weight = lookup(name, "weight")
            parameter.data.copy_(weight)
            mapping = parameter._hp_mapping
            if mapping is None:
                continue
            there, here = mapping.hp_fragment_address, mapping.lp_fragment_address
            for target, value in ((flat.data, weight), *((state[key], lookup(name, key)) for key in MOMENTS)):
                target.narrow(0, there.start, there.numel).copy_(value.flatten().narrow(0, here.start, here.numel))
        state["step"] = step if _is_cpu_adam(self.adam) else torch.tensor(float(step), device=flat.device)
        if _is_cpu_adam(self.adam):
            _replay_cpu_adam(self.adam, step)


def adamw(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """torch's AdamW in one fused kernel; the learning rate is set at each step."""
    return torch.optim.AdamW(parameters, lr=config.learning_rate, betas=(config.adam_beta1, config.adam_beta2), eps=config.adam_epsilon,
                             weight_decay=config.weight_decay, fused=True)


def set_learning_rate(optimizer, learning_rate: float) -> None:
    """The rate of the next update, in every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def _cpu_adam(parameters: list[nn.Parameter], config: TrainConfig, world: World):
    """DeepSpeed's AdamW for weights that live in host memory. It is compiled at its first use on a machine, about a minute."""
    from deepspeed.git_version_info import installed_ops
    from deepspeed.ops.adam import DeepSpeedCPUAdam
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or cpp_extension.get_default_build_root())
    if not installed_ops.get("cpu_adam"):
        # Also where it is compiled already: a process that is killed while it loads the library leaves the lock, too.
        if os.environ.get("LOCAL_RANK", "0") == "0":
            remove_stale_lock(build_folder("cpu_adam"))
        if world.is_first and not any(root.glob("**/cpu_adam/cpu_adam.so")):
            print("compiling DeepSpeed's CPU optimizer: once on this machine, about a minute", flush=True)
    try:
        return DeepSpeedCPUAdam(parameters, lr=config.learning_rate, betas=(config.adam_beta1, config.adam_beta2), eps=config.adam_epsilon,
                                weight_decay=config.weight_decay, adamw_mode=True)
    except RuntimeError as error:
        raise ValueError(f"deepspeed: its CPU optimizer could not be compiled ({error.__cause__ or error}): install a C++ compiler (g++) "
                         "and ninja, or use a JSON without offload_optimizer, such as ds_configs/zero2.json") from error


def _is_cpu_adam(optimizer) -> bool:
    return hasattr(optimizer, "ds_opt_adam")


def _replay_cpu_adam(adam, step: int) -> None:
    """Bring the powers of the betas inside DeepSpeed's C++ optimizer to where `step` updates would have brought them.

    It multiplies them up step by step, which in floating point differs from the power that a fresh object computes at `step`; without
    this a resumed run differs from an uninterrupted one in the last bit. The updates go to a number that nobody reads.
    """
    group = adam.param_groups[0]
    number, gradient, mean, variance = (torch.zeros(1) for _ in range(4))
    for past in range(1, step + 1):
        adam.ds_opt_adam.adam_update(adam.opt_id, past, group["lr"], *group["betas"], group["eps"], group["weight_decay"],
                                     group["bias_correction"], number, gradient, mean, variance)


def _import_deepspeed():
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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
