"""Who computes gradients and updates weights: torch alone, DeepSpeed or FSDP2. The only file that trains with the latter
two (DeepSpeed's settings and CPU optimizer are in deepspeed_parts.py).

It owns all scaling. The loop hands over a loss whose sum over micro-batches **and ranks** is the loss of the optimizer
step; what an engine does to gradients by itself (DeepSpeed and FSDP average them over ranks) is undone here.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from vlmphys.batches import Batch
from vlmphys.compiling import load_op
from vlmphys.config import TrainConfig
from vlmphys.deepspeed_parts import (compiles, cpu_adam, deepspeed_settings, import_deepspeed, is_cpu_adam, offload_device, offload_folder,
                                     replay_cpu_adam, uses_disk)
from vlmphys.world import World

MOMENTS = ("exp_avg", "exp_avg_sq")
Lookup = Callable[[str, str], torch.Tensor]     # (name of a parameter, "weight" or a moment) -> the whole tensor, fp32


def loading_dtype(config: TrainConfig) -> torch.dtype:
    """The precision in which the network is best loaded.

    DeepSpeed casts every weight to bf16 and copies its fp32 masters from that (deepspeed/runtime/zero/stage_1_and_2.py and
    stage3.py), so an fp32 network would cost twice the host memory and change no bit; FSDP's masters are made the same way here.
    """
    return torch.bfloat16 if config.bf16 and config.engine in ("deepspeed", "fsdp") else torch.float32


def start(world: World, module: nn.Module, trained: dict[str, nn.Parameter], config: TrainConfig) -> PlainEngine:
    """The engine that `config.engine` names, around a module whose forward takes a batch's tensors. Weights may be cast, moved, divided."""
    return {"plain": PlainEngine, "deepspeed": DeepSpeedEngine, "fsdp": FsdpEngine}[config.engine](world, module, trained, config)


class PlainEngine:
    """torch alone: fp32 master weights, bf16 through autocast, gradients summed over ranks in one message."""

    def __init__(self, world: World, module: nn.Module, trained: dict[str, nn.Parameter], config: TrainConfig):
        self._note(world, module, trained, config)
        self._cast(config, world.device)
        self.module = module.to(world.device)
        self.optimizer = adamw(list(trained.values()), config)

    def _note(self, world: World, module: nn.Module, trained: dict[str, nn.Parameter], config: TrainConfig) -> None:
        self.world, self.module, self.trained = world, module, trained
        self.bf16, self.max_grad_norm = config.bf16, config.max_grad_norm
        # Now: ZeRO-3 leaves empty tensors behind.
        self.shapes = {name: tuple(parameter.shape) for name, parameter in trained.items()}

    def _cast(self, config: TrainConfig, device: torch.device | None) -> None:
        """fp32 for what is trained; frozen weights need no master copy."""
        names = {id(parameter) for parameter in self.trained.values()}
        for parameter in self.module.parameters():
            if not parameter.is_floating_point():
                continue    # a quantised base
            dtype = torch.bfloat16 if config.bf16 and id(parameter) not in names else torch.float32
            parameter.data = parameter.data.to(device=device, dtype=dtype)

    def forward(self, batch: Batch, last: bool) -> tuple[torch.Tensor, ...]:
        """The module's outputs for a micro-batch on this device; `last` says that it closes the optimizer step."""
        return self._run(batch)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """The module's outputs for a batch on this device, without dropout and without a graph. Every rank must call it equally often."""
        training = [part for part in self.module.modules() if part.training]
        for part in training:
            part.training = False
        try:
            return self._run(batch)
        finally:
            for part in training:
                part.training = True

    def _run(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        with torch.autocast(self.world.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            return self.module(*_inputs(batch))

    def backward(self, loss: torch.Tensor) -> None:
        """Add this loss's gradients to those of the optimizer step."""
        loss.backward()

    def step(self, learning_rate: float) -> float:
        """Sum gradients over ranks, clip their global norm, update. Returns the norm before clipping."""
        parameters = list(self.trained.values())
        self._sum_gradients(parameters)
        norm = _whole(nn.utils.clip_grad_norm_(parameters, self.max_grad_norm or float("inf")))
        set_learning_rate(self.optimizer, learning_rate)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def _sum_gradients(self, parameters: list[nn.Parameter]) -> None:
        if self.world.size > 1:
            flat = torch.cat([parameter.grad.flatten() for parameter in parameters])
            distributed.all_reduce(flat)
            for parameter, total in zip(parameters, flat.split([parameter.numel() for parameter in parameters])):
                parameter.grad.copy_(total.view_as(parameter))

    def export_state(self) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        """Each trained parameter's master weight and moments, whole, fp32, on the CPU; empty on all ranks but the first.

        Every rank must exhaust it.
        """
        for name, parameter in self.trained.items():
            state = {"weight": parameter, **{key: self.optimizer.state[parameter][key] for key in MOMENTS}}
            yield name, {key: whole for key, value in state.items() if (whole := self._for_first(_whole(value.detach()))) is not None}

    def import_state(self, lookup: Lookup, step: int) -> None:
        """Put back what `export_state` gave after optimizer step `step`. Every rank must call it."""
        for name, parameter in self.trained.items():
            state = {key: torch.zeros_like(parameter, requires_grad=False) for key in MOMENTS}
            for key, target in (("weight", parameter.detach()), *state.items()):
                _local(target).copy_(_local(_divided_like(target, lookup(name, key))))
            self.optimizer.state[parameter] = {"step": torch.tensor(float(step), device=self.world.device), **state}

    def model_weights(self, names: set[str] | None = None) -> dict[str, torch.Tensor]:
        """The network's weights as the forward pass uses them, whole, on the CPU, in one precision; all, or those named.

        Every rank must call it; one tensor is gathered at a time, and only the first rank keeps it: the others get {}.
        """
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        kept = {}
        for name, value in self.module.network.state_dict(keep_vars=True).items():
            if names is None or name in names:
                with self._gathered(value) as whole:
                    if self.world.is_first:
                        kept[name] = whole.detach().to("cpu", dtype if whole.is_floating_point() else whole.dtype, copy=True)
        return kept

    @contextmanager
    def _gathered(self, value: torch.Tensor) -> Iterator[torch.Tensor]:
        """A tensor of the network with all of its elements, while inside."""
        yield _whole(value)

    def close(self) -> None:
        """Remove what the engine keeps outside of memory; nothing can be done with it afterwards."""

    def _for_first(self, value: torch.Tensor) -> torch.Tensor | None:
        return value.to("cpu") if self.world.is_first else None


class FsdpEngine(PlainEngine):
    """torch's FSDP2: weights, gradients and moments divided among the ranks, one decoder layer whole at a time."""

    def __init__(self, world: World, module: nn.Module, trained: dict[str, nn.Parameter], config: TrainConfig):
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
        self._note(world, module, trained, config)
        # Within one layer FSDP asks for one precision of what is trained; frozen weights may have another.
        self._cast(config, None)
        mesh = init_device_mesh(world.device.type, (world.size,))
        # Gradients are added up over ranks and micro-batches in fp32.
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if config.bf16 else torch.float32, reduce_dtype=torch.float32)
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        places = {name: names[id(parameter)] for name, parameter in trained.items()}
        for part in _units(module):
            fully_shard(part, mesh=mesh, mp_policy=policy)
        for part in module.modules():
            if isinstance(part, FSDPModule):
                # A sum over ranks and no mean: the loss is divided by the count of the whole step already.
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)
        self.trained = {name: module.get_parameter(place) for name, place in places.items()}
        self.optimizer = adamw(list(self.trained.values()), config)

    def _run(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        return self.module(*_inputs(batch))

    def _sum_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Nothing: each backward pass leaves this rank's share of the sum."""


class DeepSpeedEngine(PlainEngine):
    """DeepSpeed's engine at ZeRO stage 1, 2 or 3, with optimizer and parameters on the device, on the CPU or on a disk."""

    def __init__(self, world: World, module: nn.Module, trained: dict[str, nn.Parameter], config: TrainConfig):
        deepspeed = import_deepspeed()
        self._note(world, module, trained, config)
        settings = deepspeed_settings(config)
        sharding = settings["zero_optimization"]
        self.divides_weights = sharding["stage"] == 3
        self.offload_folder = offload_folder(config) if uses_disk(sharding) else None
        if self.offload_folder:
            from deepspeed.ops.op_builder import AsyncIOBuilder
            load_op(AsyncIOBuilder(), "DeepSpeed's access to a disk", compiles(world, "async_io"),
                    "install libaio (apt-get install libaio-dev), or use ds_configs/zero3_offload.json")
        if offload_device(sharding, "offload_param") == "nvme" and world.device.type == "cpu" and not config.bf16:
            # DeepSpeed 0.19 (Init._set_dtype) takes bf16 buffers for them wherever fp16 is not supported; drop this when it asks for fp32.
            raise ValueError("deepspeed: without a GPU DeepSpeed rounds weights on a disk to bf16, which this fp32 run did not ask for: "
                             "use bf16=true, or a JSON without offload_param")
        parameters = list(trained.values())
        offload = offload_device(sharding, "offload_optimizer") != "none"
        self.adam = cpu_adam(parameters, config, world) if offload else adamw(parameters, config)
        self.engine, *_ = deepspeed.initialize(model=module, model_parameters=parameters, optimizer=self.adam, config=settings)

    def forward(self, batch: Batch, last: bool) -> tuple[torch.Tensor, ...]:
        self.engine.set_gradient_accumulation_boundary(last)
        return self._run(batch)

    def _run(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        return self.engine(*_inputs(batch))

    def backward(self, loss: torch.Tensor) -> None:
        # DeepSpeed averages gradients over ranks; the step's loss is the sum over them.
        self.engine.backward(loss * self.world.size)

    def step(self, learning_rate: float) -> float:
        set_learning_rate(self.engine.optimizer, learning_rate)
        self.engine.step()
        return float(self.engine.get_global_grad_norm())

    def export_state(self) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
        for group, flat in enumerate(self._flats()):
            with self._at_hand(group, changed=False):
                for name, parameter in self._members(group):
                    kept = {}
                    for key in ("weight", *MOMENTS):
                        if self.divides_weights:
                            # What DeepSpeed's own getters do, but with one visit to the disk for a whole group.
                            _, offset, length = self._place_in_group(parameter)
                            tensor = flat if key == "weight" else self.adam.state[flat][key]
                            piece = tensor.detach().narrow(0, offset, length).to(self.world.device)
                            whole = self.engine.optimizer._fp32_state_allgather(parameter, piece)
                        else:
                            whole = (safe_get_full_fp32_param(parameter) if key == "weight"
                                     else safe_get_full_optimizer_state(parameter, key))
                        kept[key] = self._for_first(whole.detach())
                    yield name, kept if self.world.is_first else {}

    def import_state(self, lookup: Lookup, step: int) -> None:
        # DeepSpeed's own setters work only once the moments exist, which is after a first step, and those of stage 3 fail where a
        # parameter does not divide evenly; so the pieces are put in place here.
        import deepspeed
        for group, flat in enumerate(self._flats()):
            with self._at_hand(group, changed=True):
                state = self.adam.state[flat]
                for key in MOMENTS:
                    state.setdefault(key, torch.zeros_like(flat))
                state["step"] = step if is_cpu_adam(self.adam) else torch.tensor(float(step), device=flat.device)
                for name, parameter in self._members(group):
                    values = {key: lookup(name, key) for key in ("weight", *MOMENTS)}
                    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self.divides_weights):
                        parameter.data.copy_(values["weight"])
                    placed = self._piece(parameter)
                    for key, value in values.items() if placed else ():
                        offset, start, count = placed
                        target = flat.data if key == "weight" else state[key]
                        target.narrow(0, offset, count).copy_(value.flatten().narrow(0, start, count))
        if is_cpu_adam(self.adam):
            replay_cpu_adam(self.adam, step, len(self._flats()))

    def close(self) -> None:
        if self.offload_folder:
            shutil.rmtree(self.offload_folder, ignore_errors=True)

    def _flats(self) -> list[torch.Tensor]:
        """This rank's flat fp32 partitions: one at stages 1 and 2, one for each `sub_group_size` elements at stage 3."""
        return self.engine.optimizer.fp32_partitioned_groups_flat if self.divides_weights else self.adam.param_groups[0]["params"]

    def _members(self, group: int) -> list[tuple[str, nn.Parameter]]:
        """The parameters of a flat partition, by name; the same on every rank."""
        return [(name, parameter) for name, parameter in self.trained.items()
                if not self.divides_weights or self._place_in_group(parameter)[0] == group]

    def _place_in_group(self, parameter: nn.Parameter) -> tuple[int, int, int]:
        """Stage 3: which flat partition holds this rank's piece of a parameter, from which element, and its length with padding."""
        return self.engine.optimizer.grad_position[self.engine.optimizer.get_param_id(parameter)]

    def _piece(self, parameter: nn.Parameter) -> tuple[int, int, int] | None:
        """Where this rank's piece of a parameter begins in its flat partition, where in the parameter, and its length without padding."""
        if self.divides_weights:
            _, offset, length = self._place_in_group(parameter)
            start = length * self.world.rank
            count = min(length, parameter.ds_numel - start)
            return (offset, start, count) if count > 0 else None
        mapping = parameter._hp_mapping     # None where this rank holds nothing of it
        if mapping is None:
            return None
        there, here = mapping.hp_fragment_address, mapping.lp_fragment_address
        return there.start, here.start, here.numel

    @contextmanager
    def _at_hand(self, group: int, changed: bool) -> Iterator[None]:
        """While inside, a flat partition and its moments are in memory: those that live on a disk are read, and written if `changed`."""
        zero = self.engine.optimizer
        on_disk = self.divides_weights and zero._swappable_optimizer_subgroup(group)
        if on_disk:
            zero._optimizer_states_and_gradient_swap_in(group)
        try:
            yield
        finally:
            if on_disk and changed:
                zero._optimizer_states_and_gradient_swap_out(group)
            elif on_disk:
                zero._release_swap_buffers(group)

    @contextmanager
    def _gathered(self, value: torch.Tensor) -> Iterator[torch.Tensor]:
        import deepspeed
        with deepspeed.zero.GatheredParameters([value], enabled=self.divides_weights):
            yield value


def _units(module: nn.Module) -> list[nn.Module]:
    """What FSDP gathers at once: each layer of tower and language model, then all the rest."""
    layers = [part for part in module.modules() if isinstance(part, GradientCheckpointingLayer)]
    return [*layers, module]


def _whole(value: torch.Tensor) -> torch.Tensor:
    """A tensor with all of its elements; every rank must call it where it is divided among them."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _local(value: torch.Tensor) -> torch.Tensor:
    """This rank's piece of a tensor."""
    return value.to_local() if isinstance(value, DTensor) else value


def _divided_like(target: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A whole tensor, known to every rank, divided as `target` is; no rank is asked for it."""
    if not isinstance(target, DTensor):
        return value
    return distribute_tensor(value.to(target.device), target.device_mesh, target.placements, src_data_rank=None)


def _inputs(batch: Batch) -> tuple[torch.Tensor, ...]:
    """What the module's forward takes of a batch."""
    return batch.input_ids_BL, batch.video, batch.keep_N, batch.target_N, batch.turn_N, batch.verdict_row_N


def adamw(parameters: list[nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """torch's AdamW in one fused kernel; the learning rate is set at each step."""
    return torch.optim.AdamW(parameters, lr=config.learning_rate, betas=(config.adam_beta1, config.adam_beta2), eps=config.adam_epsilon,
                             weight_decay=config.weight_decay, fused=True)


def set_learning_rate(optimizer, learning_rate: float) -> None:
    """The rate of the next update, in every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
