"""Run by test_engines.py under torchrun: every engine on two ranks, with a toy model whose parameters do not divide evenly.

    torchrun --nproc-per-node 2 tests/integration/engine_worker.py FOLDER

FOLDER/reference holds a checkpoint of step 3, written by PlainEngine on one rank. Writes what each engine ends with, and `findings.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from transformers.modeling_layers import GradientCheckpointingLayer

from vlmphys import checkpoint, engine as engines
from vlmphys.batches import Batch
from vlmphys.config import TrainConfig
from vlmphys.records import MAX_TURNS
from vlmphys.world import World, connect

WIDTH, INNER, WORDS, LENGTH = 5, 7, 11, 4
HALF, STEPS = 3, 5
# Small groups, so that the flat partitions are several and no parameter stays whole; without these all of a toy is one group of whole ones.
CUT = {"sub_group_size": 40, "stage3_param_persistence_threshold": 0}
DS_CONFIGS = Path(__file__).parents[2] / "ds_configs"
SHIPPED = {name: json.loads((DS_CONFIGS / f"{name}.json").read_text())["zero_optimization"] for name in ("zero1", "zero3_offload")}
SHARDING = {"zero1": SHIPPED["zero1"], "zero2": {"stage": 2}, "zero2_offload": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
            "zero3": {"stage": 3}, "zero3_cut": {"stage": 3, **CUT},
            "zero3_offload": {**SHIPPED["zero3_offload"], **CUT}}


class Layer(GradientCheckpointingLayer):
    """A frozen norm, and two projections of which one is trained in `lora` and both are otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)

    def forward(self, hidden_BLD):
        return hidden_BLD + self.down(torch.tanh(self.up(self.norm(hidden_BLD))))


class Toy(nn.Module):
    """The shape of DialogueLoss: a tower without graph, layers, a head on supervised positions, losses by turn."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.ModuleDict({"embed": nn.Embedding(WORDS, WIDTH), "tower": nn.Linear(WIDTH, WIDTH),
                                      "layers": nn.ModuleList([Layer(), Layer()]), "head": nn.Linear(WIDTH, WORDS)})

    def forward(self, input_ids_BL, frames_BTHWC, keep_N, target_N, turn_N, verdict_row_N):
        net = self.network
        with torch.no_grad():
            hidden_BLD = net["tower"](net["embed"](input_ids_BL))
        for layer in net["layers"]:
            hidden_BLD = layer(hidden_BLD)
        loss_N = functional.cross_entropy(net["head"](hidden_BLD.flatten(0, 1)[keep_N]).float(), target_N, reduction="none")
        loss_K = (loss_N[:, None] * functional.one_hot(turn_N, MAX_TURNS).to(loss_N.dtype)).sum(0)
        return loss_K, loss_K.detach()[:3], loss_K.detach()[:1]


def hands(step: int, rank: int, ranks: int) -> list[Batch]:
    """Three rows a step, one a micro-batch: on two ranks the second has nothing in the second round, and takes part without weight."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(WORDS, (3, LENGTH), generator=generator)
    found = []
    for first in range(0, 3, ranks):
        row = first + rank
        weightless = row >= 3
        keep = torch.arange(0 if weightless else LENGTH - 1 - row)
        one = ids[:1] if weightless else ids[row:row + 1]
        found.append(Batch(one, torch.zeros(1, 1, dtype=torch.uint8), keep, one[0, keep + 1], keep % MAX_TURNS,
                           torch.full_like(keep, -1), ("",), LENGTH, weightless))
    return found


def start(world: World, folder: Path, name: str, bf16: bool = False, lora: bool = False, fresh: bool = True):
    """An engine around the toy; `fresh=False` spoils what is trained, which a checkpoint must then put right."""
    torch.manual_seed(0)
    toy = Toy().requires_grad_(False)
    for part_name, part in toy.network.named_modules():
        if part_name.endswith((".up", ".down")) and not (lora and part_name.endswith(".down")):
            part.requires_grad_(True)
    trained = {key: value for key, value in toy.network.named_parameters() if value.requires_grad}
    with torch.no_grad():
        for value in trained.values():
            value.add_(0.0 if fresh else 1.0)
    values = {"engine": name, "learning_rate": 1e-2, "weight_decay": 0.1, "max_grad_norm": 0.5, "bf16": bf16,
              "per_device_train_batch_size": 1}
    if name in SHARDING:
        path = folder / f"{name}.json"
        if world.is_first:
            path.write_text(json.dumps({"zero_optimization": SHARDING[name]}))
        world.barrier()
        values |= {"engine": "deepspeed", "deepspeed": str(path)}
    return engines.start(world, toy, trained, TrainConfig(**values))


def advance(engine, first: int, last: int) -> list[float]:
    """The gradient norms of steps `first` to `last`."""
    norms = []
    for step in range(first, last):
        batches = hands(step, engine.world.rank, engine.world.size)
        for index, batch in enumerate(batches):
            loss_K, *_ = engine.forward(batch, last=index == len(batches) - 1)
            engine.backward(loss_K.sum() / 6)
        norms.append(engine.step(1e-2 / (step + 1)))
    return norms


def state_of(engine) -> dict[str, torch.Tensor]:
    return {f"{key}/{name}": value.clone() for name, tensors in engine.export_state() for key, value in tensors.items()}


def marker(step: int) -> checkpoint.Marker:
    return checkpoint.Marker(step, 1, "plain", "d", "c", "m", [])


def load(engine, run: Path) -> None:
    checkpoint.restore(engine, run, HALF, {"data_fingerprint": "d"})


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def examine(world: World, folder: Path, name: str, bf16: bool, lora: bool) -> dict[str, object]:
    """Train whole; train half, save, load into another engine, and go on; and go on from plain's checkpoint."""
    full = f"{name}{'_bf16' if bf16 else ''}{'_lora' if lora else ''}"
    whole = start(world, folder, name, bf16, lora)
    norms = advance(whole, 0, STEPS)
    expected = state_of(whole)
    batch = hands(0, 0, 1)[0]
    before = whole.evaluate(batch)[0]
    again = whole.evaluate(batch)[0]
    weights = whole.model_weights()
    some = whole.model_weights({"layers.0.up.weight"})

    half = start(world, folder, name, bf16, lora)
    advance(half, 0, HALF)
    checkpoint.save(half, folder / full, marker(HALF), keep=1)
    advance(half, HALF, STEPS)      # saving changes nothing of what follows
    resumed = start(world, folder, name, bf16, lora, fresh=False)
    load(resumed, folder / full)
    frozen = {key for key in weights if f"weight/{key}" not in expected}
    advance(resumed, HALF, STEPS)
    found = {"norms": norms, "saving_changes_nothing": same(expected, state_of(half)), "evaluations_agree": torch.equal(before, again),
             "resumed_is_identical": same(expected, state_of(resumed)), "weights": sorted(weights), "some": sorted(some),
             "dtypes": sorted({str(value.dtype) for value in weights.values()}), "frozen": sorted(frozen),
             "shapes": {key: list(value.shape) for key, value in weights.items()}}
    if not bf16 and not lora:
        after = start(world, folder, name, fresh=False)
        load(after, folder / "reference")
        # Once more, over what is there: a run that restores its best checkpoint does that.
        advance(after, HALF, STEPS)
        load(after, folder / "reference")
        advance(after, HALF, STEPS)
        state = state_of(after)
        if world.is_first:
            save_file(state, folder / f"{full}_after_plain.safetensors")
    if world.is_first:
        save_file(expected, folder / f"{full}.safetensors")
    return found


def main() -> None:
    folder = Path(sys.argv[1])
    world = connect(TrainConfig(engine="fsdp"))
    findings = {}
    for name in ("plain", "fsdp", *SHARDING):
        findings[name] = examine(world, folder, name, bf16=False, lora=False)
    for name in ("fsdp", "zero2", "zero3_offload"):
        findings[f"{name}_bf16_lora"] = examine(world, folder, name, bf16=True, lora=True)
    if world.is_first:
        (folder / "findings.json").write_text(json.dumps(findings))
    else:
        assert not any(found["weights"] or found["some"] for found in findings.values()), "only the first rank keeps the weights"
    world.leave()


if __name__ == "__main__":
    main()
