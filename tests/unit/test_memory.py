"""The plan's formulas: counts of the published 7B model, activations against what autograd saves, offloaded states, disk."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cases7b import FSDP, FULL, LORA, OFFLOAD, QLORA, ZERO2, ZERO3, case7b, machine

from vlmphys import memory, plan
from vlmphys.cases import Case, Sharding, sharding_of
from vlmphys.config import TrainConfig

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def published():
    """The config of LanguageBind/Video-LLaVA-7B-hf."""
    from published import published_config
    return published_config()


@pytest.fixture(scope="module")
def size7b(published):
    """Counted once: full tuning."""
    return plan.model_size(FULL, published)


def test_the_published_model_is_counted(size7b):
    assert size7b.published == 7_366_279_168                                          # 7.37 B with both towers
    assert size7b.image_tower == size7b.parameters["vision tower"] == 303_179_776     # two towers: 0.61 B
    attention_and_ffn = sum(size7b.parameters[group] for group in ("LLM attention q, k, v", "LLM attention o", "LLM FFN"))
    assert attention_and_ffn == 6_476_005_376                                         # 6.476 B, o_proj included
    assert size7b.trained == attention_and_ffn - 536_870_912 == 5_939_134_464         # q, k, v and FFN alone: what is trained
    assert (size7b.tokens_per_frame, size7b.base) == (257, 7_063_099_392)


def test_lora_of_the_published_model(size7b):
    assert plan.tuned_size(size7b, LORA).trained == 286_261_248
    assert plan.tuned_size(size7b, replace(LORA, tune_o_proj=True)).trained == 319_815_680       # on all seven linears: 0.32 B
    assert plan.tuned_size(size7b, LORA).largest_trained == 128 * 11008


# Weights and states follow from counts: GB of one card and of the host, for one, eight small and eight large cards.
@pytest.mark.parametrize(("config", "settings", "gpus", "weights_gb", "states_gb", "host_states_gb"), [
    (LORA, OFFLOAD, 1, 14.70, 0.0, 3.435),        # 2 x 7.349 B; masters and gradients 4 B, moments 8 B a parameter
    (LORA, ZERO2, 8, 14.70, 0.429, 0.0),          # 12 B x 0.286 B / 8
    (FULL, OFFLOAD, 1, 14.13, 0.0, 71.27),
    (FULL, ZERO2, 8, 14.13, 8.909, 0.0),
    (FULL, ZERO3, 8, 1.766, 8.909, 0.0),
    (FULL, FSDP, 8, 3.251, 5.939, 0.0),           # masters 4 B and frozen weights 2 B / 8; moments 8 B / 8
    (LORA, FSDP, 8, 1.909, 0.286, 0.0),
    (QLORA, OFFLOAD, 1, 5.087, 0.0, 3.435)])      # 6.476 B at 0.516 B a weight, the rest and LoRA at 2 B
def test_bytes_of_the_published_model(size7b, published, config, settings, gpus, weights_gb, states_gb, host_states_gb):
    case = case7b(size7b, published, config, settings, machine(80, gpus))
    assert memory.weight_bytes(case) / 1e9 == pytest.approx(weights_gb, rel=1e-3)
    assert memory.optimizer_bytes(case) / 1e9 == pytest.approx(states_gb, rel=1e-3)
    # Without page locking: what a buffer takes there is a question of its own.
    unlocked = replace(case, sharding=replace(case.sharding, pinned=False))
    assert memory.offload_bytes(unlocked).get("optimizer states", 0) / 1e9 == pytest.approx(host_states_gb, rel=1e-3)


def test_what_fits_the_cards_that_people_have(size7b, published):
    def fits(config, settings, gpu_gib, gpus, host_gib=512):
        where = machine(gpu_gib, gpus, host_gib)
        return not plan.estimate(case7b(size7b, published, config, settings, where)).shortages(where)

    assert fits(LORA, OFFLOAD, 24, 1, host_gib=64) and not fits(LORA, OFFLOAD, 16, 1)
    assert fits(LORA, OFFLOAD, 24, 1, host_gib=24) and not fits(LORA, OFFLOAD, 24, 1, host_gib=16)      # the checkpoint: 15 GB in bf16
    assert not fits(replace(LORA, gradient_checkpointing=False), OFFLOAD, 24, 1)
    assert not fits(replace(LORA, bf16=False), OFFLOAD, 24, 1)
    assert fits(FULL, OFFLOAD, 24, 1, host_gib=192) and not fits(FULL, OFFLOAD, 24, 1, host_gib=128)
    assert not fits(FULL, ZERO2, 24, 8) and fits(FULL, ZERO2, 80, 8) and not fits(FULL, ZERO2, 80, 1)
    assert fits(FULL, ZERO3, 24, 8) and fits(FULL, FSDP, 24, 8) and not fits(FULL, FSDP, 24, 2)
    assert fits(QLORA, OFFLOAD, 12, 1) and not fits(LORA, OFFLOAD, 12, 1)
    assert not fits(LORA, ZERO2, 24, 8, host_gib=128)           # eight ranks load eight copies


def saved_bytes(network, ids):
    """What autograd keeps of a forward pass through the language model, weights left out."""
    import torch
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept, sizes = [], {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept.append(tensor)         # alive, so that no other tensor gets its address
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        network.model(input_ids=ids, use_cache=False)
    return sum(sizes.values())


@pytest.mark.parametrize("settings", [
    {}, {"bf16": True}, {"bf16": True, "tune_o_proj": True}, {"tune": "lora", "lora_r": 8}, {"tune": "lora", "lora_r": 8, "bf16": True},
    {"tune": "lora", "lora_r": 8, "lora_dropout": 0.0, "tune_o_proj": True, "bf16": True}])
def test_a_layer_keeps_what_autograd_saves(settings):
    import torch

    from vlmphys.tiny import build_random, tiny_config
    from vlmphys.train import prepare_modes
    from vlmphys.tuning import tune
    config, clips, length, found = TrainConfig(**settings), 2, 48, []
    for layers in (2, 4):
        hf = tiny_config(300, image_size=32, vision_hidden=32, vision_layers=2, text_hidden=64, text_layers=layers)
        network = build_random(hf)
        tune(network, config.tune, config.tune_o_proj, config.lora_r, config.lora_alpha, config.lora_dropout)
        network.to(torch.bfloat16 if config.bf16 else torch.float32)
        prepare_modes(network, False)
        found.append(saved_bytes(network, torch.full((clips, length), 7)))
    case = Case(plan.model_size(config, hf), config, Sharding("plain"), 1, 1, False, length, 10, 8, None)
    assert (found[1] - found[0]) / 2 == memory.layer_bytes_per_token(case) * clips * length


def test_checkpointing_keeps_one_layer_and_every_input(size7b, published):
    case = case7b(size7b, published, LORA, OFFLOAD, machine(24, 1))
    without = replace(case, config=replace(LORA, gradient_checkpointing=False))
    saved = memory.activation_bytes(without) - memory.activation_bytes(case)
    assert saved == case.positions * (31 * memory.layer_bytes_per_token(case) - 32 * 4096 * 2)


def test_the_checkpoint_is_loaded_in_the_runs_precision_and_the_first_rank_alone_writes_the_model(size7b, published):
    case = case7b(size7b, published, FULL, ZERO2, machine(80, 8))
    assert memory.loading_bytes(case) == 2 * size7b.published
    assert memory.loading_bytes(replace(case, sharding=Sharding("plain"))) == 4 * size7b.published
    phases = memory.host_phases(case)
    assert phases["loading"]["loaded checkpoint"] == 8 * 2 * size7b.published
    assert phases["writing the model"]["file in the making"] == 2 * size7b.base
    lora = case7b(size7b, published, LORA, ZERO2, machine(80, 8))
    assert memory.host_phases(lora)["writing the model"]["file in the making"] == 2 * lora.size.trained


def test_zero3_holds_the_whole_model_before_it_is_divided(size7b, published):
    case = case7b(size7b, published, FULL, ZERO3, machine(24, 8))
    assert memory.device_phases(case)["start"]["weights"] == 2 * size7b.base
    assert "start" not in memory.device_phases(case7b(size7b, published, FULL, FSDP, machine(24, 8)))


def test_validation_has_a_phase_and_keeps_one_checkpoint_more(size7b, published):
    config = replace(FULL, eval_steps=10, per_device_eval_batch_size=4)
    case = case7b(size7b, published, config, ZERO2, machine(80, 8))
    assert "validation" in memory.device_phases(case) and memory.checkpoints_kept(case) == 4
    turns = memory.device_phases(replace(case, config=replace(FULL, turn_grad_norm_steps=5)))
    assert turns["turn gradients"]["turn's own gradients"] == 6 * size7b.trained
    # The tower's pass and the language model's are those of two rows a clip.
    assert memory.validation_bytes(case) == 8 * 2906 * (16 * 4096 + 2 * (4 * 4096 + 3 * 11008))


def test_a_validation_runs_the_tower_on_both_rows_of_each_clip(size7b, published):
    def activations(**changes):
        case = case7b(size7b, published, replace(FULL, eval_steps=10, **changes), ZERO2, machine(80, 8))
        return memory.device_phases(case)["validation"]["activations"], case

    small, case = activations(per_device_eval_batch_size=1)
    large, _ = activations(per_device_eval_batch_size=32)
    assert large == 32 * small and large >= memory.tower_bytes(case, 64)
    assert large == memory.validation_bytes(case) * 32 + memory.feature_bytes(case, 64)     # the larger of the two passes
    assert activations(per_device_eval_batch_size=32, per_device_train_batch_size=16)[0] == large
    assert memory.tower_bytes(case, 64) == 64 * memory.tower_bytes(case, 1)


@pytest.mark.parametrize(("changes", "steps", "kept"), [
    ({}, None, 3), ({}, 1000, 3), ({}, 201, 2), ({}, 200, 1),       # 200 steps: only what a stop saves
    ({"save_steps": 0}, 1000, 1), ({"save_steps": 0}, None, 1), ({"save_steps": 0, "eval_steps": 10}, 1000, 1),
    ({"save_steps": 0, "eval_steps": 10, "load_best_model_at_end": True}, 20, 2),       # the best one and the new one
    ({"save_steps": 0, "eval_steps": 10, "load_best_model_at_end": True}, None, 4),
    ({"save_steps": 0, "eval_steps": 10, "load_best_model_at_end": True, "save_total_limit": 1}, 1000, 3),
    ({"eval_steps": 10}, 1000, 4)])
def test_checkpoints_that_stand_side_by_side(size7b, published, changes, steps, kept):
    case = replace(case7b(size7b, published, replace(FULL, **changes), ZERO2, machine(80, 8)), steps=steps)
    assert memory.checkpoints_kept(case) == kept
    assert memory.disk_parts(case)["checkpoints"] == kept * 12 * size7b.trained
    assert "writing a checkpoint" in memory.host_phases(case)


def test_what_is_offloaded_to_a_disk_holds_the_gradients_too(size7b, published):
    nvme = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}, "offload_param": {"device": "nvme"}}}
    case = replace(case7b(size7b, published, FULL, nvme, machine(24, 8)), ranks=8, ranks_on_node=4)
    assert memory.swapped_parts(case) == {None: {"offloaded states": 16 * size7b.trained, "offloaded weights": 2 * size7b.base}}
    nvme["zero_optimization"]["offload_optimizer"]["nvme_path"] = "/local"
    moved = replace(case, sharding=sharding_of("x.json", nvme))
    assert memory.swapped_parts(moved) == {"/local": {"offloaded states": 8 * size7b.trained},      # half of the ranks are on a machine
                                           None: {"offloaded weights": 2 * size7b.base}}
    assert memory.swapped_parts(replace(case, sharding=sharding_of("y.json", ZERO3))) == {}


def test_logits_on_supervised_positions_alone(size7b, published):
    case = case7b(size7b, published, LORA, OFFLOAD, machine(24, 1))
    assert memory.logit_bytes(case) == 300 * 32064 * 10
    assert memory.logit_bytes(case) < memory.logit_bytes(replace(case, supervised=case.tokens)) / 9


@pytest.mark.parametrize(("size", "locked"), [(1, 1), (1024, 1024), (1025, 2048), (4 * 5_939_134_464, 1 << 35)])
def test_pinned_buffers_are_powers_of_two(size, locked):
    assert memory.pinned_bytes(size) == locked


def test_offloaded_states_are_sixteen_bytes_a_parameter_and_two_copies(size7b, published):
    trained = size7b.trained
    case = case7b(size7b, published, replace(FULL, tune_o_proj=True), OFFLOAD, machine(24, 1))
    parts = memory.offload_bytes(replace(case, sharding=replace(case.sharding, pinned=False)))
    largest = 4096 * 11008 * 2
    assert sum(parts.values()) == 20 * 6_476_005_376 + largest          # 16 B, the copy of the weights, earlier micro-batches
    one = replace(case, config=replace(case.config, gradient_accumulation_steps=1), size=size7b)
    assert sum(memory.offload_bytes(replace(one, sharding=replace(one.sharding, pinned=False))).values()) == 18 * trained + largest


def test_deepspeed_json_is_read_with_deepspeeds_defaults():
    sharding = sharding_of("x.json", {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"},
                                                            "offload_optimizer": {"device": "cpu"}}})
    assert (sharding.optimizer_on, sharding.parameters_on, sharding.pinned) == ("host", "disk", False)
    assert (sharding.bucket, sharding.live, sharding.sub_group) == (500_000_000, 1_050_000_000, 1_000_000_000)
    assert sharding_of("y.json", ZERO2).buckets == 2 and sharding_of("y.json", {"zero_optimization": {"stage": 2}}).buckets == 1


def test_disk_holds_the_checkpoints_side_by_side(size7b, published):
    case = case7b(size7b, published, replace(FULL, save_total_limit=2), ZERO2, machine(80, 8))
    assert memory.disk_parts(case) == {"checkpoints": 3 * 12 * size7b.trained, "model": 2 * size7b.base}
