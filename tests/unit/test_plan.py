"""The plan: counts of the published 7B model, activations against what autograd saves, offloaded states, the search, refusals."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest

from vlmphys import memory, plan
from vlmphys.cases import GIB, Case, Sharding, sharding_of
from vlmphys.config import TrainConfig, to_yaml

pytestmark = pytest.mark.unit

OFFLOAD = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": True}, "reduce_bucket_size": 20000000,
                                 "overlap_comm": False}}
ZERO2 = {"zero_optimization": {"stage": 2, "reduce_bucket_size": 50000000, "overlap_comm": True, "contiguous_gradients": True}}
ZERO3 = {"zero_optimization": {"stage": 3, "reduce_bucket_size": 50000000, "stage3_max_live_parameters": 1e8,
                               "stage3_prefetch_bucket_size": 5e7}}
LORA = TrainConfig(model="7b", tune="lora", lora_r=128, bf16=True, gradient_checkpointing=True, per_device_train_batch_size=1,
                   gradient_accumulation_steps=16)
FULL, QLORA = replace(LORA, tune="full"), replace(LORA, tune="qlora")
FSDP = None


@pytest.fixture(scope="module")
def published():
    """The config of LanguageBind/Video-LLaVA-7B-hf."""
    from published import published_config
    return published_config()


@pytest.fixture(scope="module")
def size7b(published):
    """Counted once: full tuning."""
    return plan.model_size(FULL, published)


def machine(gpu_gib, gpus, host_gib=512):
    return plan.Machine(gpus, int(gpu_gib * GIB) if gpu_gib else None, int(host_gib * GIB), None, "as in the test")


def case7b(size, published, config, settings, where):
    """`settings`: the content of a DeepSpeed JSON, or `FSDP`."""
    data = plan.assumed_data(config, size, published)
    case = plan.case_of(config, plan.tuned_size(size, config), data, where)
    return replace(case, sharding=sharding_of("test.json", settings) if settings else Sharding("fsdp", fsdp=True))


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
    assert memory.checkpoints_kept(replace(case, config=replace(config, save_steps=0))) == 0
    turns = memory.device_phases(replace(case, config=replace(FULL, turn_grad_norm_steps=5)))
    assert turns["turn gradients"]["turn's own gradients"] == 6 * size7b.trained
    assert memory.validation_bytes(case) == 8 * 2906 * (16 * 4096 + 2 * (4 * 4096 + 3 * 11008))


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
    assert memory.disk_parts(replace(case, steps=60, config=replace(case.config, save_steps=50)))["checkpoints"] == 12 * size7b.trained
    assert memory.disk_parts(replace(case, config=replace(case.config, save_steps=0)))["checkpoints"] == 0


# The search, on a model folder

@pytest.fixture
def repository_here(repository, monkeypatch):
    monkeypatch.chdir(repository)


@pytest.fixture(scope="module")
def folder7b(published, tmp_path_factory):
    """A folder that holds the 7B config and nothing else: no weights, no tokenizer."""
    folder = tmp_path_factory.mktemp("model7b")
    published.save_pretrained(folder)
    return str(folder)


def lora_config(folder, **changes):
    return replace(LORA, model=folder, engine="deepspeed", deepspeed="ds_configs/single_4090.json", data="no_such_folder", **changes)


def test_a_plan_from_a_config_alone(folder7b, repository_here):
    result = plan.make_plan(lora_config(folder7b), machine(24, 1, 64))
    json.dumps(result)
    assert result["fits"] and result["fitting"]["set"] == "" and result["least"] is None
    assert result["steps"] is None and "--data" in result["steps_reason"]
    assert result["time"]["seconds"] is None and "--run" in result["time"]["reason"]
    assert "none at 'no_such_folder'; assumed" in result["data"]
    files = list((plan.REPOSITORY / "ds_configs").glob("*.json"))
    assert len(result["options"]) >= 6 and len(result["options"]) + len(result["refused_files"]) == len(files)
    for one in result["options"]:
        assert one["per_device_train_batch_size"] * one["gradient_accumulation_steps"] == 16
    best = result["options"][0]
    assert not best["shortages"] and best["gpu_peak"] <= 24 * GIB
    # A larger micro-batch than the largest that fits does not fit.
    case = plan.case_of(lora_config(folder7b), plan.model_size(lora_config(folder7b)),
                        plan.Data(None, 2906, 300, 8, ""), machine(24, 1, 64))
    largest = plan.largest_micro_batch(case, machine(24, 1, 64)).case.config
    doubled = replace(case, config=replace(largest, per_device_train_batch_size=2 * largest.per_device_train_batch_size))
    assert plan.estimate(doubled).shortages(machine(24, 1, 64))


def test_where_the_config_does_not_fit_the_first_change_that_fits_is_named(folder7b, repository_here):
    config = lora_config(folder7b, gradient_checkpointing=False, per_device_train_batch_size=16, gradient_accumulation_steps=1)
    result = plan.make_plan(config, machine(20, 1, 64))
    assert not result["fits"] and "each card has 20.00 GiB" in result["as_given"]["shortages"][0]
    assert "gradient_checkpointing=true" in result["fitting"]["set"] and "per_device_train_batch_size=" in result["fitting"]["set"]
    assert "bf16" not in result["fitting"]["set"] and not result["fitting"]["shortages"]


def test_only_the_micro_batch_is_changed_where_that_is_asked(folder7b, repository_here):
    config = lora_config(folder7b, per_device_train_batch_size=16)
    config = replace(config, gradient_accumulation_steps=1)
    result = plan.make_plan(config, machine(24, 1, 64), only_batch=True)
    words = dict(word.split("=") for word in result["fitting"]["set"].split())
    assert set(words) == {"per_device_train_batch_size", "gradient_accumulation_steps"}
    assert int(words["per_device_train_batch_size"]) * int(words["gradient_accumulation_steps"]) == 16
    nothing = plan.make_plan(replace(config, tune="full"), machine(24, 1, 64), only_batch=True)
    assert nothing["fitting"] is None and "of host memory" in nothing["least"]["shortages"][0]
    assert nothing["least"]["set"] == "per_device_train_batch_size=1 gradient_accumulation_steps=16"


def test_several_cards_may_use_fsdp(folder7b, repository_here):
    config = replace(lora_config(folder7b, tune="full"), deepspeed=None, engine="fsdp")
    result = plan.make_plan(config, machine(24, 8, 512))
    assert result["fits"] and result["as_given"]["sharding"] == "fsdp" and "fsdp" in [one["sharding"] for one in result["options"]]
    other = next(one for one in result["options"] if one["sharding"].endswith("zero3.json"))
    assert "engine=deepspeed" in other["set"] and "deepspeed=ds_configs/zero3.json" in other["set"]
    alone = plan.make_plan(lora_config(folder7b), machine(24, 1, 64))
    assert "fsdp" not in [one["sharding"] for one in alone["options"]]


def test_qlora_needs_a_gpu_and_weights_that_are_not_divided(folder7b, repository_here):
    config = lora_config(folder7b, tune="qlora")
    assert plan.make_plan(config, machine(12, 1, 32))["fits"]
    assert "CUDA GPU" in plan.make_plan(config, machine(None, 0, 64))["as_given"]["shortages"][-1]
    divided = replace(config, deepspeed="ds_configs/zero3.json")
    assert "ZeRO-1 and ZeRO-2 alone" in plan.make_plan(divided, machine(24, 1, 64))["as_given"]["shortages"][-1]


def test_time_is_guessed_where_the_cards_peak_is_known(folder7b, repository_here):
    config = lora_config(folder7b, max_steps=100)
    unknown = plan.make_plan(config, machine(24, 1, 64))["time"]
    assert unknown["seconds"] is None and unknown["assumed"]["seconds"] is None and "gpu_peak_tflops" in unknown["assumed"]["reason"]
    known = plan.make_plan(config, replace(machine(24, 1, 64), card="NVIDIA GeForce RTX 4090"))["time"]
    assert known["seconds"] is None and "assumed and not measured: 30% of 165.2" in known["assumed"]["reason"]
    # 4 FLOPs a frozen weight and token, and what attention, LoRA, head and tower add to it.
    of_clip = 0.3 * 165.2e12 / known["assumed"]["clips_per_second"]
    assert 1 < of_clip / (4 * 6.476e9 * 2906) < 1.2
    assert known["assumed"]["seconds"] == pytest.approx(1600 / known["assumed"]["clips_per_second"], rel=1e-3)
    twice = plan.make_plan(replace(config, gpu_peak_tflops=330.4), machine(24, 1, 64))["time"]["assumed"]
    assert twice["clips_per_second"] == pytest.approx(2 * known["assumed"]["clips_per_second"])


def test_full_tuning_that_needs_more_host_memory_is_led_to_a_disk_or_to_lora(folder7b, repository_here):
    result = plan.make_plan(lora_config(folder7b, tune="full"), machine(24, 1, 64))
    assert not result["fits"] and "of host memory" in result["as_given"]["shortages"][0]
    assert "deepspeed=ds_configs/zero3_nvme.json" in result["fitting"]["set"]
    small = plan.make_plan(lora_config(folder7b, tune="full"), replace(machine(24, 1, 64), disk=100 * GIB))
    assert "tune=lora" in small["fitting"]["set"]


def test_where_nothing_fits_the_least_is_named(folder7b, repository_here):
    result = plan.make_plan(lora_config(folder7b), machine(8, 1, 64))
    assert not result["fits"] and result["fitting"] is None
    assert result["least"]["shortages"] and "lora_r=8" in result["least"]["set"]


def test_a_disk_that_is_too_small_leads_to_fewer_checkpoints(folder7b, repository_here):
    where = replace(machine(24, 1, 64), disk=8 * GIB)
    result = plan.make_plan(lora_config(folder7b), where)
    assert "on the disk of" in result["as_given"]["shortages"][0] and "save_total_limit=1" in result["fitting"]["set"]


# Packed data, time, this machine

def tiny_run(model, packed, **changes):
    return TrainConfig(model=str(model), data=str(packed), **changes)


def test_packed_data_gives_lengths_and_steps(tiny_model_folder, packed_folder):
    from vlmphys.shards import open_packed
    config = tiny_run(tiny_model_folder, packed_folder, engine="plain", per_device_train_batch_size=8, num_train_epochs=4)
    result = plan.make_plan(config, machine(None, 0, 16))
    table = open_packed(packed_folder).dialogues
    longest = max(len(table.row(clip_id, "multi_turn").input_ids) for clip_id in open_packed(packed_folder).clip_ids("train"))
    assert result["steps"] == 12 and result["global_batch"] == 8 and f"20 train clips of at most {longest} tokens" in result["data"]
    assert result["as_given"]["gpu"] == {} and result["as_given"]["gpu_peak"] is None
    assert "activations" in result["as_given"]["host"]["backward pass"]


def test_the_meta_model_counts_what_the_real_one_has(tiny_model_folder, packed_folder):
    from vlmphys.model import load_model
    from vlmphys.tuning import tune
    for changes in ({}, {"tune": "lora", "lora_r": 4}):
        config = tiny_run(tiny_model_folder, packed_folder, **changes)
        groups = tune(load_model(str(tiny_model_folder)), config.tune, lora_r=config.lora_r).groups
        size = plan.model_size(config)
        assert size.parameters == {group: total for group, (total, _) in groups.items() if group != "LoRA"}
        assert size.trained == sum(trained for _, trained in groups.values())


def test_data_of_another_model_is_refused(tiny_model_folder, packed_folder, folder7b):
    with pytest.raises(ValueError, match="holds frames of 32 x 32 pixels, the model takes 224 x 224"):
        plan.make_plan(tiny_run(folder7b, packed_folder), machine(None, 0, 64))
    with pytest.raises(ValueError, match="no such folder"):
        plan.make_plan(tiny_run(tiny_model_folder, packed_folder), machine(None, 0, 64), data_folder="no_such_folder")


def write_run(folder, config, speeds, ranks=1):
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / "env.json").write_text(json.dumps({"ranks": ranks}))
    rows = [json.dumps({"step": index, "samples_per_second": speed}) for index, speed in enumerate(speeds)]
    (folder / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    return str(folder)


def test_time_only_from_a_run_of_the_same_settings(tiny_model_folder, packed_folder, tmp_path):
    config = tiny_run(tiny_model_folder, packed_folder, engine="plain", per_device_train_batch_size=8, num_train_epochs=4)
    where = machine(None, 0, 16)
    folder = write_run(tmp_path / "same", replace(config, learning_rate=1e-5), [1.0, 4.0, 5.0, 3.0])
    same = plan.make_plan(config, where, run=folder)["time"]
    assert same["samples_per_second"] == 4.0 and same["seconds"] == 20 * 4 / 4.0
    other = plan.make_plan(config, where, run=write_run(tmp_path / "other", replace(config, bf16=True), [1.0, 4.0]))["time"]
    assert other["seconds"] is None and "bf16 (True there, False here)" in other["reason"]
    ranks = plan.make_plan(config, where, run=write_run(tmp_path / "ranks", config, [1.0, 4.0], ranks=2))["time"]
    assert ranks["seconds"] is None and "ranks (2 there, 1 here)" in ranks["reason"]
    with pytest.raises(ValueError, match="no run folder"):
        plan.make_plan(config, where, run=str(tmp_path))


@pytest.fixture
def without_gpu(monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(plan, "gpus_here", lambda indices=None: [])
    monkeypatch.setattr(plan, "free_disk", lambda path: 64 * GIB)
    # What a rank holds before it loads anything; the tests' own process grows with the tests before this one.
    monkeypatch.setattr(plan, "resident_bytes", lambda: GIB // 2)


def with_host(monkeypatch, size):
    from vlmphys.doctor import HostMemory
    monkeypatch.setattr(plan, "host_memory", lambda: HostMemory(size, size))


def test_check_fits_lets_a_small_run_pass_and_refuses_a_large_one(tiny_model_folder, packed_folder, tmp_path, monkeypatch, without_gpu):
    config = tiny_run(tiny_model_folder, packed_folder, engine="plain", out=str(tmp_path / "run"))
    with_host(monkeypatch, 8 * GIB)
    plan.check_fits(config)
    with_host(monkeypatch, 0)
    monkeypatch.setenv("WORLD_SIZE", "64")
    with pytest.raises(ValueError, match=r"does not fit this machine: there are .* of host memory, .* are needed"):
        plan.check_fits(replace(config, per_device_train_batch_size=4096))
    assert not (tmp_path / "run").exists()


def test_check_fits_counts_the_disk_and_what_the_run_left_there(tiny_model_folder, packed_folder, tmp_path, monkeypatch, without_gpu):
    config = tiny_run(tiny_model_folder, packed_folder, engine="plain", out=str(tmp_path / "run"), save_steps=1)
    with_host(monkeypatch, 8 * GIB)
    monkeypatch.setattr(plan, "free_disk", lambda path: 1000)
    with pytest.raises(ValueError, match="are free on the disk of"):
        plan.check_fits(config)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "state.safetensors").write_bytes(bytes(64 << 20))
    plan.check_fits(config)


def test_check_fits_names_a_change_that_fits(tiny_model_folder, packed_folder, tmp_path, monkeypatch, without_gpu, repository_here):
    from vlmphys.doctor import Gpu
    monkeypatch.setattr(plan, "gpus_here", lambda indices=None: [Gpu("card", GIB, 60 << 20, True)])
    with_host(monkeypatch, 64 * GIB)
    config = tiny_run(tiny_model_folder, packed_folder, engine="plain", out=str(tmp_path / "run"), per_device_train_batch_size=20)
    with pytest.raises(ValueError, match=r"each card has 60.0 MiB, the backward pass needs .*no change of its settings helps"):
        plan.check_fits(config)
    # Room for some clips at a time, and for DeepSpeed's buffers.
    monkeypatch.setattr(plan, "gpus_here", lambda indices=None: [Gpu("card", 2 * GIB, int(1.3 * GIB), True)])
    plan.check_fits(config)
    frames = plan.read_data
    monkeypatch.setattr(plan, "read_data", lambda *given: replace(frames(*given), tokens=20000))
    with pytest.raises(ValueError, match=r"each card has 1.30 GiB, .*this fits: --set .*per_device_train_batch_size="):
        plan.check_fits(config)


def test_check_fits_obeys_force():
    plan.check_fits(TrainConfig(model="no such model", force=True))
    with pytest.raises(ValueError, match="no such model"):
        plan.check_fits(TrainConfig(model="no such model"))


def test_this_machine_and_described_ones(monkeypatch, without_gpu):
    with_host(monkeypatch, 16 * GIB)
    here = plan.machine_of(TrainConfig())
    assert (here.gpus, here.gpu, here.host) == (0, None, 16 * GIB)
    other = plan.machine_of(TrainConfig(), gpu_gib=24, host_gib=128, gpus=4)
    assert (other.gpus, other.gpu, other.host, other.disk) == (4, 24 * GIB, 128 * GIB, None) and here.disk == 64 * GIB
    with pytest.raises(ValueError, match="no GPU here: add --gpu-gib"):
        plan.machine_of(TrainConfig(), gpus=2)
    for wrong in ({"gpu_gib": 0}, {"host_gib": -1}, {"gpus": 0, "gpu_gib": 24}, {"gpu_gib": float("nan")}):
        with pytest.raises(ValueError, match="it must be above 0"):
            plan.machine_of(TrainConfig(), **wrong)


def test_a_json_that_is_refused_is_left_out_with_its_reason(folder7b, repository, tmp_path):
    shutil.copy(repository / "ds_configs" / "zero2.json", tmp_path / "good.json")
    (tmp_path / "bad.json").write_text(json.dumps({"train_batch_size": 8, "zero_optimization": {"stage": 2}}))
    found, refused = plan.shipped_shardings(TrainConfig(deepspeed=str(tmp_path / "good.json")))
    assert [sharding.name for sharding in found] == [str(tmp_path / "good.json")]
    assert len(refused) == 1 and "bad.json" in refused[0] and "train_batch_size" in refused[0]


def test_a_language_model_of_another_kind_is_refused(published):
    from transformers import OPTConfig, VideoLlavaConfig
    other = VideoLlavaConfig(vision_config=published.vision_config, text_config=OPTConfig(hidden_size=64, num_hidden_layers=1, ffn_dim=64))
    with pytest.raises(ValueError, match="only Llama-like language models can be tuned, not 'opt'"):
        plan.model_size(TrainConfig(), other)
