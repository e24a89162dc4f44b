"""The loss: the same for any split into micro-batches, only where it is supervised, and figures that mean what their names say."""

from __future__ import annotations

import math

import pytest
import torch

from vlmphys.batches import collate
from vlmphys.loss import STATISTICS, DialogueLoss, _verdicts, readable, statistics_of, supervised_by_turn, turn_weights
from vlmphys.model import CLIP_MEAN, CLIP_STD, load_model
from vlmphys.records import MAX_TURNS, Split, Variant
from vlmphys.shards import open_packed
from vlmphys.tuning import tune

pytestmark = pytest.mark.unit
UNEQUAL = (1.0, 0.0, 0.5, 8.0)


@pytest.fixture(scope="module")
def packed(packed_folder):
    return open_packed(packed_folder)


@pytest.fixture(scope="module")
def module(tiny_model_folder):
    network = load_model(str(tiny_model_folder))
    tune(network, "full")
    return DialogueLoss(network, CLIP_MEAN, CLIP_STD)


def run(module, batch):
    return module(batch.input_ids_BL, batch.frames_BTHWC, batch.keep_N, batch.target_N, batch.turn_N, batch.verdict_row_N)


def gradients(module, batches, *objective):
    module.zero_grad()
    weights_K = turn_weights(supervised_by_turn(batches), *objective).float()
    sums = torch.zeros(len(STATISTICS), dtype=torch.float64)
    for batch in batches:
        loss_K, verdict, _ = run(module, batch)
        (loss_K * weights_K).sum().backward()
        sums += statistics_of(batch, loss_K, verdict)
    found = {name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.grad is not None}
    return readable(sums, *objective), found


@pytest.mark.parametrize("objective", [(), ("turn_mean",), ("token", UNEQUAL), ("turn_mean", UNEQUAL)], ids=str)
def test_any_split_gives_the_same_loss_and_gradients(objective, module, packed):
    clips = packed.clip_ids(Split.TRAIN)[:6]
    variant = Variant.MULTI_TURN
    whole = [collate(packed, clips, variant, 5)]
    # Ragged hands of unequal size, and an empty one that stands in.
    parts = [collate(packed, clips[:1], variant, 5), collate(packed, clips[1:6], variant, 5),
             collate(packed, clips[:1], variant, 5, weightless=True)]
    one, one_gradients = gradients(module, whole, *objective)
    many, many_gradients = gradients(module, parts, *objective)
    assert one.keys() == many.keys()
    for key, value in one.items():
        assert many[key] == pytest.approx(value, rel=1e-6), key
    assert len(one_gradients) == 12  # 2 layers x (q, k, v, gate, up, down)
    for name, value in one_gradients.items():
        assert torch.allclose(value, many_gradients[name], rtol=1e-4, atol=1e-8), name


def test_mean_of_micro_batch_means_would_be_another_loss(module, packed):
    # The mistake that the global count avoids; if it did not show here, the test above could not fail.
    variant, clips = Variant.MULTI_TURN, packed.clip_ids(Split.TRAIN)
    batches = [collate(packed, clips[:1], variant, 5), collate(packed, clips[8:], Variant.NO_PHYSICS, 5)]
    exact, _ = gradients(module, batches)
    means = [gradients(module, [batch])[0]["loss"] for batch in batches]
    assert abs(sum(means) / 2 - exact["loss"]) > 1e-3


def test_a_weightless_batch_gives_zero_gradients_to_every_trained_weight(module, packed):
    module.zero_grad()
    loss_K, verdict, _ = run(module, collate(packed, packed.clip_ids(Split.TRAIN)[:1], Variant.MULTI_TURN, 5, weightless=True))
    (loss_K * 0.1).sum().backward()
    assert loss_K.tolist() == [0.0] * MAX_TURNS and verdict.tolist() == [0.0] * 3
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    assert trained and all(parameter.grad is not None and not parameter.grad.any() for parameter in trained)


def test_text_outside_the_answers_is_no_target(module, packed):
    batch = collate(packed, packed.clip_ids(Split.TRAIN)[:2], Variant.NO_PHYSICS, 5)
    loss_K, _, _ = run(module, batch)
    assert loss_K[0] > 0 and loss_K[1:].tolist() == [0.0] * (MAX_TURNS - 1)
    counts = supervised_by_turn([batch])
    assert counts.tolist() == [len(batch.target_N), 0, 0, 0] and len(batch.target_N) < batch.input_ids_BL.numel() / 2


@pytest.mark.parametrize(("objective", "by_hand"), [
    (("token", (1.0, 1.0, 1.0, 1.0)), (5 + 90 + 4) / (10 + 30 + 2)),
    (("token", UNEQUAL), (5 + 0.5 * 90 + 8 * 4) / (10 + 0.5 * 30 + 8 * 2)),
    (("turn_mean", (1.0, 1.0, 1.0, 1.0)), (5 / 10 + 90 / 30 + 4 / 2) / 3),
    (("turn_mean", UNEQUAL), (5 / 10 + 0.5 * 90 / 30 + 8 * 4 / 2) / 9.5)])
def test_the_objective_is_that_of_the_formulas(objective, by_hand):
    # Turn 2 is not there: it has no share in any divisor.
    counts_K, sums_K = torch.tensor([10.0, 0.0, 30.0, 2.0]).double(), torch.tensor([5.0, 0.0, 90.0, 4.0]).double()
    assert (turn_weights(counts_K, *objective) * sums_K).sum().item() == pytest.approx(by_hand)


def test_the_modes_weigh_a_short_turn_differently():
    counts_K = torch.tensor([10.0, 0.0, 30.0, 2.0]).double()
    assert turn_weights(counts_K)[[0, 2, 3]].tolist() == pytest.approx([1 / 42] * 3)
    assert (turn_weights(counts_K, "turn_mean") * counts_K).tolist() == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3])


def test_weights_that_leave_nothing_to_train_are_refused():
    with pytest.raises(ValueError, match=r"only have the turns \[1, 3, 4\]"):
        turn_weights(torch.tensor([10.0, 0.0, 30.0, 2.0]), "token", (0.0, 1.0, 0.0, 0.0))


def test_a_verdict_of_two_tokens_is_right_only_if_both_are():
    # 4 targets: clip 0 has a verdict of two tokens (first right, second wrong), clip 1 one of two right ones; clip 2 has none.
    logits_NV = torch.zeros(5, 3)
    logits_NV[torch.arange(5), torch.tensor([1, 0, 2, 1, 0])] = 10.0
    target_N = torch.tensor([1, 1, 2, 1, 0])
    rows_N = torch.tensor([0, 0, 1, 1, -1])
    loss_N = torch.nn.functional.cross_entropy(logits_NV, target_N, reduction="none")
    sums, nll_B = _verdicts(logits_NV, loss_N, target_N, rows_N, clips=3)
    loss, right, count = sums.tolist()
    assert nll_B.tolist() == pytest.approx([loss_N[:2].sum().item(), loss_N[2:4].sum().item(), 0.0])
    assert (right, count) == (1.0, 2.0) and loss == pytest.approx(loss_N[:4].sum().item())


def test_readable_divides_by_the_right_counts():
    sums = dict.fromkeys(STATISTICS, 0.0)
    sums.update(loss_turn_1=4.0, tokens_turn_1=2.0, loss_turn_4=9.0, tokens_turn_4=3.0, verdict_loss=4 * math.log(2),
                verdicts_right=3.0, verdicts=4.0)
    figures = readable(torch.tensor([sums[name] for name in STATISTICS], dtype=torch.float64))
    assert figures == {"loss": 13 / 5, "loss_turn_1": 2.0, "loss_turn_2": None, "loss_turn_3": None, "loss_turn_4": 3.0,
                       "share_turn_1": 0.4, "share_turn_2": 0.0, "share_turn_3": 0.0, "share_turn_4": 0.6,
                       "verdict_loss": pytest.approx(math.log(2)), "first_choice_accuracy": 0.75}
    assert readable(torch.tensor([sums[name] for name in STATISTICS], dtype=torch.float64), "turn_mean")["loss"] == pytest.approx(2.5)


def test_each_rows_verdict_is_that_of_the_row_alone(module, packed):
    clips = packed.clip_ids(Split.TRAIN)[:4]
    _, verdict, nll_B = run(module, collate(packed, clips, Variant.MULTI_TURN, 5))
    alone = [run(module, collate(packed, [clip], Variant.MULTI_TURN, 5))[2] for clip in clips]
    assert nll_B.shape == (4,) and not nll_B.requires_grad and nll_B.dtype == torch.float32
    assert nll_B.tolist() == pytest.approx(torch.cat(alone).tolist(), rel=1e-5)
    assert verdict[0].item() == pytest.approx(nll_B.sum().item()) and (nll_B > 0).all()
