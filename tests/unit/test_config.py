"""The config: all problems in one message, nearest names, and what a run's two halves may differ in."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import yaml

from vlmphys.config import (ALIASES, FIELDS, FREE_ON_RESUME, TrainConfig, config_sha256, differences, from_mapping, load_config, read_back,
                            read_deepspeed_json, to_yaml)

pytestmark = pytest.mark.unit


@pytest.fixture
def zero2(tmp_path):
    path = tmp_path / "zero2.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    return str(path)


def test_yaml_then_set_then_flags(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("learning_rate: 1e-4\nseed: 3\nout: from_yaml\nvariant: no_physics\n")
    config = load_config(path, ["seed=5", "bf16=true", "num_train_epochs=2"], {"out": "from_flag", "model": None})
    # YAML 1.1 reads 1e-4 as a text: it must still become a number.
    assert config.learning_rate == 1e-4
    assert (config.seed, config.out, config.variant, config.bf16) == (5, "from_flag", "no_physics", True)
    assert config.model == "tiny" and isinstance(config.num_train_epochs, float)


def test_all_problems_are_told_at_once(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("learning_rat: 1e-4\nseed: x\nvariant: multi-turn\nlora_dropout: 1.5\nbf16: 1\n")
    with pytest.raises(ValueError) as caught:
        load_config(path, ["epochs"])
    message = str(caught.value)
    assert "6 problems" in message
    for part in ("did you mean 'learning_rate'", "seed is 'x': a whole number", "did you mean 'multi_turn'",
                 "lora_dropout is 1.5", "bf16 is 1", "--set 'epochs' has no '='"):
        assert part in message, part


@pytest.mark.parametrize(("short", "key"), [
    ("lr", "learning_rate"), ("epochs", "num_train_epochs"), ("batch_size", "per_device_train_batch_size"), ("wd", "weight_decay"),
    ("warmup", "warmup_ratio"), ("dropout", "lora_dropout"), ("LR", "learning_rate"), ("scheduler", "lr_scheduler_type")])
def test_short_names_of_other_programs_suggest_the_right_key(short, key):
    with pytest.raises(ValueError, match=rf"unknown key '{short}' \(did you mean '{key}'"):
        from_mapping({short: 1})


def test_every_short_name_stands_for_a_key_and_hides_none():
    assert set(ALIASES.values()) <= set(FIELDS) and not set(ALIASES) & set(FIELDS)


@pytest.mark.parametrize(("key", "value"), [
    ("per_device_train_batch_size", 0), ("gradient_accumulation_steps", 0), ("learning_rate", 0), ("learning_rate", -1e-3),
    ("warmup_ratio", 1.0), ("max_steps", 0), ("num_train_epochs", 0), ("save_total_limit", 0), ("max_grad_norm", -1), ("seed", 1.5),
    ("tune", "q-lora"),
    ("engine", "ddp"), ("deepspeed", "no_such.json"), ("learning_rate", float("nan")), ("engine", "deepspeed"), ("adam_beta2", 1)])
def test_each_value_out_of_range_is_refused_by_name(key, value):
    with pytest.raises(ValueError, match=key):
        from_mapping({key: value})


def test_engine_follows_the_deepspeed_file(zero2):
    assert from_mapping({}).engine == "plain"
    assert from_mapping({"deepspeed": zero2}).engine == "deepspeed"
    plain = from_mapping({"deepspeed": zero2, "engine": "plain"})
    assert plain.engine == "plain" and plain.deepspeed is None


@pytest.mark.parametrize(("settings", "part"), [
    ({"train_batch_size": 8, "zero_optimization": {"stage": 2}}, "'train_batch_size'.*'per_device_train_batch_size'"),
    ({"bf16": {"enabled": True}, "zero_optimization": {"stage": 2}}, "'bf16'"),
    ({"optimizer": {"type": "Adam"}, "zero_optimization": {"stage": 2}}, "'optimizer'.*'learning_rate'"),
    ({"zero_optimisation": {"stage": 2}}, "did you mean 'zero_optimization'"),
    ({"zero_optimization": {"stage": 0}}, "stage 0"), ({"zero_optimization": 2}, "zero_optimization 2: an object is needed"),
    ({"zero_optimization": None}, "zero_optimization None"),
    ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme"}}}, "offload_optimizer.device 'nvme' at stage 2.*3 only"),
    ({"zero_optimization": {"stage": 1, "offload_param": {"device": "cpu"}}}, "offload_param.device 'cpu' at stage 1"),
    ({"zero_optimization": {"stage": 3, "offload_param": {"device": "disk"}}}, "needed: none, cpu, nvme"),
    ({"zero_optimization": {"stage": 3, "offload_param": True}}, "offload_param True"),
    ({}, "stage None")])
def test_deepspeed_json_holds_sharding_only(tmp_path, settings, part):
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=part):
        read_deepspeed_json(str(path))


def test_every_shipped_json_and_recipe_is_valid(repository, monkeypatch):
    monkeypatch.chdir(repository)
    files = sorted((repository / "ds_configs").glob("*.json"))
    assert {path.name for path in files} == {"single_4090.json", *(
        f"{name}.json" for name in ("zero1", "zero2", "zero2_offload", "zero3", "zero3_offload", "zero3_nvme"))}
    for path in files:
        read_deepspeed_json(str(path))
    recipes = sorted((repository / "launch" / "recipes").glob("*.yaml"))
    assert {"quickstart.yaml", "single_4090.yaml"} <= {path.name for path in recipes}
    for path in recipes:
        assert load_config(path).engine == "deepspeed"


def test_written_config_reads_back_the_same(tmp_path):
    config = from_mapping({"learning_rate": 1e-5, "tune": "lora", "out": "runs/x: y"})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert read_back(tmp_path / "config.yaml") == config
    assert list(yaml.safe_load(to_yaml(config))) == list(FIELDS)


def test_a_key_of_another_version_is_not_dropped(tmp_path):
    (tmp_path / "config.yaml").write_text(to_yaml(TrainConfig()) + "lora_rslora: true\n")
    with pytest.raises(ValueError, match="config.yaml: unknown key 'lora_rslora'.*use the vlmphys that wrote it"):
        read_back(tmp_path / "config.yaml")


@pytest.mark.parametrize("setting", ["max_steps=.inf", "seed=-.inf", "learning_rate=.inf", "max_grad_norm=.inf",
                                     f"learning_rate=1{400 * '0'}"])
def test_infinity_is_no_number_here(setting):
    with pytest.raises(ValueError, match=f"{setting.split('=')[0]} is .*(whole|finite) number"):
        load_config(None, [setting])


def test_differences_name_the_key_and_both_values():
    config = TrainConfig()
    assert differences(config, config) == []
    assert differences(config, replace(config, learning_rate=0.5)) == ["learning_rate (0.001 there, 0.5 here)"]
    free = replace(config, out="elsewhere", logging_steps=1, engine="deepspeed", deepspeed="x.json", per_device_train_batch_size=1)
    assert differences(config, free) == [] and config_sha256(free) == config_sha256(config)
    assert config_sha256(replace(config, seed=1)) != config_sha256(config)
    assert FREE_ON_RESUME < set(FIELDS)


def test_what_needs_validations_is_named_with_its_values():
    with pytest.raises(ValueError, match="eval_steps is 0, but load_best_model_at_end is True and early_stopping_patience is 3"):
        from_mapping({"load_best_model_at_end": True, "early_stopping_patience": 3})


def test_a_run_that_measured_turns_goes_on_with_sharded_weights_without_measuring():
    measured = from_mapping({"turn_grad_norm_steps": 20})
    with pytest.raises(ValueError, match="turn_grad_norm_steps is 20: .* set it to 0"):
        from_mapping({"turn_grad_norm_steps": 20, "engine": "fsdp"})
    sharded = from_mapping({"engine": "fsdp"})
    assert differences(measured, sharded) == [] and config_sha256(measured) == config_sha256(sharded)
