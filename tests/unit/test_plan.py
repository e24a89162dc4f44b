"""The plan: the search for what fits, data, time, this machine, refusals. The formulas: test_memory.py."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from cases7b import LORA, machine

from vlmphys import memory, plan
from vlmphys.cases import GIB
from vlmphys.config import TrainConfig, to_yaml

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def published():
    """The config of LanguageBind/Video-LLaVA-7B-hf."""
    from published import published_config
    return published_config()


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
    result = plan.make_plan(lora_config(folder7b), machine(4, 1, 64))
    assert not result["fits"] and result["fitting"] is None
    assert result["least"]["shortages"] and "lora_r=8" in result["least"]["set"]


def test_where_lora_does_not_fit_4_bits_are_proposed_and_what_is_in_4_bits_stays_so(folder7b, repository_here):
    result = plan.make_plan(lora_config(folder7b), machine(12, 1, 64))
    assert "tune=qlora" in result["fitting"]["set"] and "lora_r" not in result["fitting"]["set"]
    stage = json.loads((plan.REPOSITORY / result["fitting"]["sharding"]).read_text())["zero_optimization"]["stage"]
    assert stage in (1, 2) and not result["fitting"]["shortages"]
    # What is in 4 bits gets cheaper layers, and never heavier weights.
    packed = plan.make_plan(lora_config(folder7b, tune="qlora", gradient_checkpointing=False), machine(12, 1, 64))
    assert not packed["fits"] and packed["fitting"]["set"].startswith("gradient_checkpointing=true")
    assert "tune=" not in packed["fitting"]["set"]
    least = plan.make_plan(lora_config(folder7b, tune="qlora"), machine(4, 1, 64))["least"]
    assert "tune=" not in least["set"] and "lora_r=8" in least["set"]
    without = plan.make_plan(lora_config(folder7b), machine(None, 0, 4))
    assert without["fitting"] is None and "qlora" not in without["least"]["set"]


def test_a_disk_that_is_too_small_leads_to_fewer_checkpoints(folder7b, repository_here):
    where = replace(machine(24, 1, 64), disk=8 * GIB)
    result = plan.make_plan(lora_config(folder7b), where)
    assert "on the disk of" in result["as_given"]["shortages"][0] and "save_total_limit=1" in result["fitting"]["set"]
    assert "checkpoints, model need" in result["as_given"]["shortages"][0]


def test_the_disk_of_an_nvme_path_is_looked_at_and_not_that_of_the_run(folder7b, repository, tmp_path, monkeypatch):
    settings = json.loads((repository / "ds_configs" / "zero3_nvme.json").read_text())
    for part in ("offload_optimizer", "offload_param"):
        settings["zero_optimization"][part]["nvme_path"] = "/local"
    (tmp_path / "local.json").write_text(json.dumps(settings))
    config = replace(lora_config(folder7b, tune="full", save_steps=0), deepspeed=str(tmp_path / "local.json"))
    where = replace(machine(24, 1, 64), disk=120 * GIB)
    monkeypatch.setattr(plan, "same_disk", lambda one, other: False)
    monkeypatch.setattr(plan, "free_disk", lambda path: {"/local": 200 * GIB}[path])
    assert plan.make_plan(config, where)["fits"]
    monkeypatch.setattr(plan, "free_disk", lambda path: {"/local": 50 * GIB}[path])
    given = plan.make_plan(config, where)["as_given"]
    assert given["shortages"] == ["50.00 GiB are free on the disk of /local, offloaded states, offloaded weights need "
                                  f"{(16 * 5_939_134_464 + 2 * 7_063_099_392) / GIB:.2f} GiB"]
    assert set(given["disk"]) == {"checkpoints", "model"}
    monkeypatch.setattr(plan, "same_disk", lambda one, other: True)
    (shortage,) = plan.make_plan(config, where)["as_given"]["shortages"]
    assert "checkpoints, model, offloaded states, offloaded weights need" in shortage


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


def test_batch_and_steps_without_the_model(packed_folder, tmp_path):
    config = TrainConfig(model="not looked at", data=str(packed_folder), per_device_train_batch_size=2, gradient_accumulation_steps=3,
                         num_train_epochs=2.5)
    assert plan.describe_steps(config, 2) == (
        "global batch: 12 clips = 2 (per_device_train_batch_size) x 3 (gradient_accumulation_steps) x 2 rank(s)\n"
        "steps: 5, 2 an epoch of 20 train clips")
    missing = replace(config, data=str(tmp_path / "none"))
    assert plan.describe_steps(missing, 1).endswith(f"steps: not known, there is no folder '{tmp_path / 'none'}'")
    assert plan.describe_steps(replace(missing, max_steps=7), 1).endswith("steps: 7 (max_steps)")
    with pytest.raises(ValueError, match="no shards|no such|manifest"):
        plan.describe_steps(replace(config, data=str(tmp_path)), 1)
    with pytest.raises(ValueError, match="--dry-run is 0: at least 1 rank"):
        plan.describe_steps(config, 0)


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
    for wrong in ({"gpu_gib": 0}, {"host_gib": -1}, {"gpus": 0, "gpu_gib": 24}, {"gpu_gib": float("nan")}, {"disk_gib": 0}, {"machines": 0}):
        with pytest.raises(ValueError, match="it must be above 0"):
            plan.machine_of(TrainConfig(), **wrong)


def test_the_disk_of_another_machine(folder7b, repository, repository_here, tmp_path, monkeypatch, without_gpu):
    with_host(monkeypatch, 16 * GIB)
    other = plan.machine_of(TrainConfig(), gpu_gib=24, host_gib=64, disk_gib=8)
    assert other.disk == 8 * GIB and "8 GiB of disk" in other.described
    result = plan.make_plan(lora_config(folder7b), other)
    assert result["as_given"]["shortages"] == [f"8.00 GiB are free on the disk of runs/train, checkpoints, model need "
                                               f"{sum(result['as_given']['disk'].values()) / GIB:.2f} GiB"]
    assert plan.machine_of(TrainConfig(), disk_gib=8).disk == 8 * GIB, "of this machine, too, another disk may be meant"
    # The disk of an nvme_path is not looked for here either.
    settings = json.loads((repository / "ds_configs" / "zero3_nvme.json").read_text())
    settings["zero_optimization"]["offload_optimizer"]["nvme_path"] = "/local"
    (tmp_path / "local.json").write_text(json.dumps(settings))
    monkeypatch.setattr(plan, "same_disk", lambda one, other: False)
    monkeypatch.setattr(plan, "free_disk", lambda path: pytest.fail(f"{path} is no folder of the other machine"))
    config = replace(lora_config(folder7b, save_steps=0), deepspeed=str(tmp_path / "local.json"))
    for size, fits in ((8, True), (4, False)):
        given = plan.make_plan(config, plan.machine_of(TrainConfig(), gpu_gib=24, host_gib=64, disk_gib=size))["as_given"]
        assert any("on the disk of /local" in text for text in given["shortages"]) != fits


def test_several_machines_share_the_states_and_each_has_its_own_host_memory(folder7b, repository_here, monkeypatch, without_gpu):
    config = replace(lora_config(folder7b, tune="full"), deepspeed="ds_configs/zero3.json")
    eight, four, twice = (plan.make_plan(config, plan.machine_of(config, 24, 512, gpus, machines=machines))
                          for gpus, machines in ((8, 1), (4, 1), (4, 2)))
    assert twice["global_batch"] == eight["global_batch"] == 2 * four["global_batch"] == 128
    assert twice["machine"]["described"].startswith("2 machines with each 4 x 24 GiB")
    assert twice["as_given"]["ranks"] == 8 and twice["as_given"]["gpu"] == eight["as_given"]["gpu"]
    assert twice["as_given"]["host"]["loading"] == four["as_given"]["host"]["loading"] != eight["as_given"]["host"]["loading"]
    with_host(monkeypatch, 16 * GIB)
    without = plan.make_plan(TrainConfig(engine="plain"), plan.machine_of(config, machines=3))["as_given"]
    assert without["ranks"] == 3 and without["host"]["loading"]["libraries"] == memory.LIBRARIES_CPU


def test_the_phase_of_each_peak_is_named(folder7b, repository_here):
    given = plan.make_plan(lora_config(folder7b), machine(24, 1, 64))["as_given"]
    for place in ("gpu", "host"):
        assert sum(given[place][given[f"{place}_phase"]].values()) == given[f"{place}_peak"]
    assert plan.make_plan(lora_config(folder7b), machine(None, 0, 64))["as_given"]["gpu_phase"] is None


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
