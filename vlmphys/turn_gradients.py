"""The gradient that each turn causes alone: how much of an optimizer step the few tokens of a turn have to themselves.

The multi-turn paper argues that a verdict's gradient is diluted among the tokens of everything else; these are the figures. They are
taken beside the step and not from it: `torch.autograd.grad` on the bare module reaches no engine, fills no `.grad`, and the dropout
masks are those of the step. Not for engines that shard weights (ZeRO-3, FSDP), whose bare module holds only a part of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import distributed, nn

from vlmphys.batches import Batch
from vlmphys.records import MAX_TURNS
from vlmphys.world import World


def turn_gradients(module: nn.Module, trained: list[nn.Parameter], batches: list[Batch], weights_K: torch.Tensor, world: World, bf16: bool,
                   seed: Callable[[int], None]) -> Iterator[list[torch.Tensor] | None]:
    """For each turn the gradient of its own part of the loss, `weights_K[k] * loss_K[k]`, over the whole global batch; fp32, one tensor
    a trained parameter. None for a turn that weighs nothing or that the step does not have (its weight must be 0 or its loss is).

    Their sum is the gradient of the step. One turn at a time: a pass over the micro-batches and one set of fp32 gradients each, on
    every rank's device. `seed(micro_batch)` sets the dropout masks; `bf16`: run under autocast. Every rank must exhaust it.
    """
    for turn in range(MAX_TURNS):
        if not weights_K[turn] > 0:
            yield None
            continue
        total = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in trained]
        for index, batch in enumerate(batches):
            seed(index)
            here = batch.to(world.device)
            with torch.autocast(world.device.type, dtype=torch.bfloat16, enabled=bf16):
                loss_K, *_ = module(here.input_ids_BL, here.video, here.keep_N, here.target_N, here.turn_N, here.verdict_row_N)
            for sum_of, part in zip(total, torch.autograd.grad(loss_K[turn] * weights_K[turn], trained)):
                sum_of += part
        if world.size > 1:
            for gradient in total:
                distributed.all_reduce(gradient)
        yield total


def turn_gradient_norms(*arguments) -> list[float | None]:
    """The L2 norm of each of `turn_gradients`, None where there is none."""
    norms: list[float | None] = []
    for gradient in turn_gradients(*arguments):
        norms.append(None if gradient is None else torch.stack([part.norm() for part in gradient]).norm().item())
        del gradient    # before the next one is made
    return norms
