"""Each turn's own gradient: together they are the step's, whatever the split, and measuring leaves nothing behind."""

from __future__ import annotations

import pytest
import torch

from vlmphys.batches import collate
from vlmphys.loss import DialogueLoss, supervised_by_turn, turn_weights
from vlmphys.model import CLIP_MEAN, CLIP_STD, load_model
from vlmphys.records import Split, Variant
from vlmphys.shards import open_packed
from vlmphys.tuning import tune
from vlmphys.turn_gradients import turn_gradient_norms, turn_gradients
from vlmphys.world import World

pytestmark = pytest.mark.unit
ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def packed(packed_folder):
    return open_packed(packed_folder)


def seed(micro_batch):
    torch.manual_seed(100 + micro_batch)


@pytest.fixture(scope="module", params=["full", "lora"])
def module(request, tiny_model_folder):
    network = load_model(str(tiny_model_folder))
    # With dropout, so that other masks than the step's would give other gradients.
    tune(network, request.param, lora_r=4, lora_dropout=0.4)
    return DialogueLoss(network.train(), CLIP_MEAN, CLIP_STD)


def arguments(module, batches, *objective):
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return module, trained, batches, turn_weights(supervised_by_turn(batches), *objective).float(), ALONE, False, seed


@pytest.mark.parametrize("mode", ["token", "turn_mean"])
def test_the_turns_gradients_add_up_to_that_of_the_step(mode, module, packed):
    clips = packed.clip_ids(Split.TRAIN)[:5]
    batches = [collate(packed, clips[:2], Variant.MULTI_TURN, 5), collate(packed, clips[2:], Variant.MULTI_TURN, 5)]
    given = arguments(module, batches, mode, (1.0, 0.0, 2.0, 4.0))
    _, trained, _, weights_K, *_ = given
    parts = list(turn_gradients(*given))
    assert parts[1] is None and all(parameter.grad is None for parameter in trained)
    for index, batch in enumerate(batches):
        seed(index)
        loss_K, *_ = module(batch.input_ids_BL, batch.frames_BTHWC, batch.keep_N, batch.target_N, batch.turn_N, batch.verdict_row_N)
        (loss_K * weights_K).sum().backward()
    moved = 0
    for index, parameter in enumerate(trained):
        together = sum(part[index] for part in parts if part is not None)
        assert torch.allclose(together, parameter.grad, rtol=1e-3, atol=1e-7)
        moved += bool(together.any())
    assert moved >= len(trained) / 2, "gradients that are all 0 would add up without any merit"
    norms = turn_gradient_norms(*given)
    assert norms[1] is None
    for norm, part in zip(norms, parts):
        assert part is None or norm == pytest.approx(torch.cat([tensor.flatten() for tensor in part]).norm().item(), rel=1e-5)
    module.zero_grad()


def test_norms_do_not_depend_on_the_split_and_absent_turns_have_none(module, packed):
    module.eval()   # masks are drawn by micro-batch
    clips = packed.clip_ids(Split.TRAIN)[:4]
    whole = [collate(packed, clips, Variant.NO_PHYSICS, 5)]
    parts = [collate(packed, clips[:1], Variant.NO_PHYSICS, 5), collate(packed, clips[1:], Variant.NO_PHYSICS, 5),
             collate(packed, clips[:1], Variant.NO_PHYSICS, 5, weightless=True)]
    one, many = turn_gradient_norms(*arguments(module, whole)), turn_gradient_norms(*arguments(module, parts))
    assert one[0] > 0 and one[1:] == many[1:] == [None, None, None]
    assert many[0] == pytest.approx(one[0], rel=1e-4)
    module.train()
