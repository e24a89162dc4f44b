"""Validation while training, in one process: scores, what is read, what is left as it was, the best step, stopping, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional

from vlmphys import validation
from vlmphys.config import from_mapping
from vlmphys.engine import start
from vlmphys.inference import judge_batch
from vlmphys.loss import DialogueLoss
from vlmphys.model import load_model, load_tokenizer, read_facts
from vlmphys.predictions import Explain
from vlmphys.records import Split, Variant, Verdict
from vlmphys.shards import DialogueTable, FramesTable, open_packed
from vlmphys.train import prepare_modes
from vlmphys.tuning import tune
from vlmphys.validation import ValClip, Validator, check_val, exact_head, figures_of
from vlmphys.world import World

pytestmark = pytest.mark.unit
ALONE = World(0, 1, torch.device("cpu"))


def settings(packed_folder, tiny_model_folder, out, **more):
    return from_mapping({"data": str(packed_folder), "model": str(tiny_model_folder), "out": str(out), "engine": "plain", "eval_steps": 2,
                         "per_device_eval_batch_size": 3, "seed": 1, **more})


def started(config):
    """A plain engine around the tiny model with weights wide enough that the scores differ from clip to clip, and its facts."""
    network = load_model(config.model)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim > 1:
                weight.mul_(6.0)
    tuned = tune(network, config.tune, lora_r=4, lora_dropout=0.5, seed=0)
    prepare_modes(network, gradient_checkpointing=True)
    facts = read_facts(config.model)
    return start(ALONE, DialogueLoss(network, facts.image_mean, facts.image_std), tuned.trained(), config), facts


def validator_of(config, packed, facts=None, first_step=0, total_steps=20, world=ALONE):
    return Validator(config, packed, facts or read_facts(config.model), world, first_step, total_steps, steps_per_epoch=3)


@pytest.fixture
def config(packed_folder, tiny_model_folder, tmp_path):
    return settings(packed_folder, tiny_model_folder, tmp_path, variant="multi_turn")


@pytest.mark.parametrize("variant", [variant.value for variant in Variant])
def test_the_scores_are_those_of_predict(variant, packed_folder, tiny_model_folder, tmp_path):
    config = settings(packed_folder, tiny_model_folder, tmp_path, variant=variant)
    packed = open_packed(packed_folder)
    engine, facts = started(config)
    validator = validator_of(config, packed, facts)
    tokenizer = load_tokenizer(config.model)
    # Verdicts of several tokens, and of unequal numbers of them, beside the tokenizer's own.
    for continuations in (validator.continuations, {Verdict.NORMAL: (40, 41), Verdict.ANOMALOUS: (42, 43, 44, 40)}):
        validator.continuations = continuations
        nll_C2 = validator.measure(engine)
        ids = [clip.clip_id for clip in validator.clips]
        engine.module.eval()
        rows = [packed.dialogues.row(clip_id, variant) for clip_id in ids]
        judged = judge_batch(engine.module.network, facts, [row.input_ids[:row.verdict_span[0]] for row in rows],
                             np.stack([packed.frames.row(clip_id).frames_THWC for clip_id in ids]), continuations, tokenizer.eos_token_id,
                             Explain.NONE)
        prepare_modes(engine.module.network, gradient_checkpointing=True)
        expected = np.array([clip.score for clip in judged])
        assert np.ptp(expected) > 0.01, "equal scores would agree without any merit"
        assert nll_C2[:, 0] - nll_C2[:, 1] == pytest.approx(expected, abs=1e-4)
        assert -nll_C2[:, 1] == pytest.approx([clip.log_anomalous for clip in judged], abs=1e-4)


def test_the_head_is_in_float32_while_validating_also_in_bf16(tiny_model_folder):
    network = load_model(str(tiny_model_folder)).bfloat16()
    hidden = torch.randn(3, network.config.text_config.hidden_size).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16), exact_head(network):
        logits = network.lm_head(hidden)
    assert torch.equal(logits, functional.linear(hidden.float(), network.lm_head.weight.float()))
    assert network.lm_head(hidden).dtype == torch.bfloat16 and "forward" not in vars(network.lm_head)


@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_validation_leaves_random_numbers_modes_and_gradients_alone_and_dropout_off(mode, packed_folder, tiny_model_folder, tmp_path):
    config = settings(packed_folder, tiny_model_folder, tmp_path, tune=mode)
    engine, facts = started(config)
    validator = validator_of(config, open_packed(packed_folder), facts)
    state, modes = torch.get_rng_state(), [part.training for part in engine.module.modules()]
    assert any(modes) and not all(modes), "the tower must be in another mode than the rest"
    first, second = validator.run(engine, 2), validator.run(engine, 4)
    assert torch.equal(state, torch.get_rng_state()) and modes == [part.training for part in engine.module.modules()]
    assert all(parameter.grad is None for parameter in engine.module.parameters())
    assert first["verdict_loss"] == second["verdict_loss"]


def test_only_clips_of_the_val_split_are_read(config, packed_folder, monkeypatch):
    packed, read = open_packed(packed_folder), set()
    for table in (FramesTable, DialogueTable):
        def row(self, clip_id, *more, original=table.row):
            read.add(clip_id)
            return original(self, clip_id, *more)
        monkeypatch.setattr(table, "row", row)
    engine, facts = started(config)
    validator_of(config, packed, facts).run(engine, 2)
    assert read == set(packed.clip_ids(Split.VAL)) and len(read) == 4


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_ranks_share_the_clips_and_call_the_engine_equally_often(ranks, config, packed_folder):
    config = replace(config, per_device_eval_batch_size=1)
    packed = open_packed(packed_folder)
    engine, facts = started(config)
    alone = validator_of(config, packed, facts).measure(engine)
    parts, calls = [], []
    for rank in range(ranks):
        world = SimpleNamespace(rank=rank, size=ranks, device=ALONE.device, is_first=rank == 0, sum=lambda values: values,
                                gather_texts=lambda texts: texts)
        counted = SimpleNamespace(module=engine.module, evaluate=lambda batch: calls.append(rank) or engine.evaluate(batch))
        parts.append(validator_of(config, packed, facts, world=world).measure(counted))
    assert {calls.count(rank) for rank in range(ranks)} == {-(-4 // ranks)}
    assert sum(parts) == pytest.approx(alone, abs=1e-5)


def test_figures_by_category_with_null_and_reason():
    clips = [ValClip("fan/0", "fan", 0), ValClip("fan/1", "fan", 1), ValClip("fan/2", "fan", 1), ValClip("gear/0", "gear", 0),
             ValClip("hinge/0", "hinge", 0), ValClip("hinge/1", "hinge", 1)]
    scores = np.array([-1.0, 2.0, -3.0, 0.5, 1.0, 1.0])
    normal_C = np.array([0.7, 3.0, 0.1, 1.0, 2.0, 2.5])
    figures = figures_of(clips, np.stack([normal_C, normal_C - scores], axis=1))
    assert figures["per_category"] == {"fan": 0.5, "gear": None, "hinge": 0.5} and figures["auroc"] == 0.5
    assert set(figures["reasons"]) == {"gear"} and "one class only" in figures["reasons"]["gear"]
    assert figures["log_odds_accuracy"] == pytest.approx(3 / 6)      # right: fan/0, fan/1, hinge/1
    assert figures["verdict_loss"] == pytest.approx((0.7 + 1.0 + 3.1 + 1.0 + 2.0 + 1.5) / 6)


def scripted(validator, aurocs, losses=None):
    """Runs the validations with these figures in place of the model's; the verdict's loss stays what it is without `losses`."""
    def run(step):
        auroc = aurocs[step // 2 - 1]
        loss = losses[step // 2 - 1] if losses else 0.5
        validator.measure = lambda engine: np.zeros((4, 2))
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(validation, "figures_of", lambda clips, nll: {
                "auroc": auroc, "per_category": {"fan": auroc}, "reasons": {}, "verdict_loss": loss, "log_odds_accuracy": 0.5, "clips": 4})
            return validator.run(None, step)
    return run


def test_best_step_early_stop_and_resume_follow_from_the_rows(config, packed_folder, tmp_path):
    config, packed = replace(config, early_stopping_patience=3), open_packed(packed_folder)
    aurocs = [0.6, 0.8, 0.8, 0.7, 0.8, 0.9]
    whole = validator_of(config, packed)
    run = scripted(whole, aurocs)
    seen = []
    for step in (2, 4, 6, 8, 10):
        assert not whole.stopped and whole.due(step) and not whole.due(step + 1)
        run(step)
        seen.append((whole.best_step, whole.without_gain, whole.keeps(step)))
    # Of equal figures and equal losses the earliest stays the best, and an equal one is no gain.
    assert seen == [(2, 0, True), (4, 0, True), (4, 1, False), (4, 2, False), (4, 3, False)]
    assert whole.stopped and whole.spare == {4}
    assert json.loads((tmp_path / "best.json").read_text()) == {"step": 4, "auroc": 0.8, "verdict_loss": 0.5}

    again = validator_of(config, packed, first_step=7)      # a checkpoint between two validations
    rows = [json.loads(line) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert (again.best_step, again.best_auroc, again.without_gain, again.stopped) == (4, 0.8, 1, False)
    run = scripted(again, aurocs)
    run(8), run(10)
    assert again.stopped and (again.best_step, again.without_gain) == (4, 3)
    assert validator_of(config, packed, first_step=10).stopped, "a run that was killed after it had decided to stop must stop at once"
    assert validator_of(config, packed, first_step=1).best_step is None
    assert not (tmp_path / "best.json").exists() and (tmp_path / "evaluations.jsonl").read_text() == ""


@pytest.mark.parametrize(("aurocs", "losses", "best", "gains"), [
    # Of equal AUROCs that with the lower loss is the best, also where an earlier validation's loss was lower still.
    ([0.8, 0.9, 0.9, 0.9], [0.1, 0.6, 0.5, 0.55], [1, 2, 3, 3], [0, 0, 0, 1]),
    # A loss that falls below all before it is a gain for early stopping, and no better step.
    ([0.8, 0.7, 0.7, 0.7], [0.5, 0.4, 0.45, 0.39], [1, 1, 1, 1], [0, 0, 1, 0]),
    # At chance nothing counts, however long; once above it, a fall back to chance counts.
    ([0.5, 0.4, 0.5, 0.5], [0.6, 0.7, 0.8, 0.9], [1, 1, 1, 1], [0, 0, 0, 0]),
    ([0.4, 0.6, 0.5, 0.5], [0.6, 0.7, 0.8, 0.9], [1, 2, 2, 2], [0, 0, 1, 2])])
def test_the_verdicts_loss_decides_between_equal_aurocs_and_holds_off_the_early_stop(aurocs, losses, best, gains, config, packed_folder):
    config, packed = replace(config, early_stopping_patience=2), open_packed(packed_folder)
    whole = validator_of(config, packed)
    run = scripted(whole, aurocs, losses)
    rows = [run(2 * number) for number in (1, 2, 3, 4)]
    assert [row["best_step"] for row in rows] == [2 * number for number in best] and [row["without_gain"] for row in rows] == gains
    assert whole.stopped == (gains[-1] == 2)
    resumed = validator_of(config, packed, first_step=8)
    assert (resumed.best_step, resumed.best_loss, resumed.lowest_loss, resumed.without_gain) == (
        whole.best_step, whole.best_loss, whole.lowest_loss, whole.without_gain)


def test_rows_or_a_best_checkpoint_that_are_gone_are_missed_at_the_resume(config, packed_folder, tmp_path):
    config, packed = replace(config, load_best_model_at_end=True), open_packed(packed_folder)
    run = scripted(validator_of(config, packed), [0.6, 0.5])
    run(2), run(4)
    with pytest.raises(ValueError, match="step_2.*is gone"):
        validator_of(config, packed, first_step=4)
    rows = tmp_path / "evaluations.jsonl"
    rows.write_text(rows.read_text().splitlines()[1] + "\n")
    with pytest.raises(ValueError, match=r"steps \[4\].*of \[2, 4\]"):
        validator_of(config, packed, first_step=4)


def test_the_last_step_is_validated_and_needs_no_checkpoint(config, packed_folder):
    validator = validator_of(config, open_packed(packed_folder), total_steps=5)
    assert validator.due(5)
    validator._take_in(5, 0.9, 0.5)
    assert validator.best_step == 5 and not validator.keeps(5)


def test_checkpoints_that_are_switched_off_stay_off_unless_the_best_is_to_be_restored(config, packed_folder):
    off = validator_of(replace(config, save_steps=0), open_packed(packed_folder))
    off._take_in(2, 0.9, 0.5)
    assert not off.keeps(2)
    restored = validator_of(replace(config, save_steps=0, load_best_model_at_end=True), open_packed(packed_folder))
    restored._take_in(2, 0.9, 0.5)
    assert restored.keeps(2)


def test_scores_that_are_not_finite_name_step_and_clips_and_write_no_row(config, packed_folder, tmp_path):
    engine, facts = started(config)
    with torch.no_grad():
        engine.module.network.lm_head.weight[7] = float("nan")
    validator = validator_of(config, open_packed(packed_folder), facts)
    with pytest.raises(FloatingPointError, match="after step 4 .*fan/train/0005"):
        validator.run(engine, 4)
    assert not (tmp_path / "evaluations.jsonl").exists() and validator.best_step is None


def test_a_val_split_that_gives_no_auroc_is_refused_with_the_cure(config, packed_folder):
    packed = open_packed(packed_folder)
    sides = packed.split.clips

    def with_val(keep):
        moved = {clip_id: side if side is not Split.VAL or keep(clip_id) else Split.TRAIN for clip_id, side in sides.items()}
        return replace(packed, split=replace(packed.split, clips=moved))

    with pytest.raises(ValueError, match="no clip of the val split: .*--val-share.*eval_steps=0"):
        check_val(config, with_val(lambda clip_id: False))
    # Both classes are there, but never in one category.
    with pytest.raises(ValueError, match=r"no category .*\(fan 1 \+ 0, hinge 0 \+ 1\): .*--val-share"):
        check_val(config, with_val(lambda clip_id: clip_id in ("fan/train/0005",) or clip_id.startswith("hinge/test")))
    assert len(check_val(config, with_val(lambda clip_id: clip_id.startswith("fan")))) == 2
    assert check_val(replace(config, eval_steps=0), with_val(lambda clip_id: False)) == []
