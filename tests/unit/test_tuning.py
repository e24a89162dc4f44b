"""What is trained: by name, by count, and refused where either is off."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vlmphys.config import TrainConfig
from vlmphys.model import NOT_QUANTISED, load_model
from vlmphys.tiny import build_random, tiny_config
from vlmphys.tuning import check_counts, check_qlora, count_groups, expected_counts, group_of, tune

pytestmark = pytest.mark.unit


@pytest.fixture
def network(tiny_model_folder):
    return load_model(str(tiny_model_folder))


def test_full_trains_qkv_and_ffn_of_the_language_model_and_nothing_else(network):
    tuned = tune(network, "full")
    names = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert names == {f"model.language_model.layers.{layer}.{part}.weight" for layer in range(2)
                     for part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj",
                                  "mlp.up_proj", "mlp.down_proj")}
    assert names == set(tuned.trained())
    # hidden 64, FFN 192, 2 layers
    assert tuned.groups["LLM attention q, k, v"][1] == 2 * 3 * 64 * 64
    assert tuned.groups["LLM FFN"][1] == 2 * 3 * 64 * 192
    frozen = set(tuned.groups) - {"LLM attention q, k, v", "LLM FFN"}
    assert {"vision tower", "projector", "embeddings", "head", "norms", "LLM attention o"} == frozen
    assert all(tuned.groups[group][1] == 0 for group in frozen)
    assert sum(total for total, _ in tuned.groups.values()) == sum(parameter.numel() for parameter in network.parameters())


def test_o_proj_is_an_option(network):
    assert tune(network, "full", o_proj=True).groups["LLM attention o"][1] == 2 * 64 * 64


def test_lora_adds_the_counted_weights_and_spares_the_tower(network):
    tuned = tune(network, "lora", lora_r=4, lora_alpha=8, lora_dropout=0.0)
    names = set(tuned.trained())
    assert names and all(".lora_" in name and name.startswith("model.language_model.layers.") for name in names)
    # q, k, v: 64 -> 64; gate, up: 64 -> 192; down: 192 -> 64; 2 layers
    assert tuned.groups["LoRA"] == (2 * 4 * (3 * 128 + 3 * 256),) * 2
    assert not any("lora" in name for name, _ in network.model.video_tower.named_parameters())
    assert sum(trained for _, trained in tuned.groups.values()) == tuned.groups["LoRA"][1]


def test_lora_starts_the_same_for_one_seed(tiny_model_folder):
    def weights(seed):
        tuned = tune(load_model(str(tiny_model_folder)), "lora", lora_r=4, seed=seed)
        return {name: value.detach().clone() for name, value in tuned.trained().items()}
    one, again, other = weights(1), weights(1), weights(2)
    assert all((one[name] == again[name]).all() for name in one)
    assert any((one[name] != other[name]).any() for name in one)


def test_a_tower_weight_that_would_be_trained_is_refused(network):
    tuned = tune(network, "full")
    next(network.model.video_tower.parameters()).requires_grad_(True)
    expected = expected_counts(network.config.text_config, "full", False, 0)
    with pytest.raises(ValueError, match="'vision tower'"):
        check_counts(count_groups(network), expected)
    check_counts(tuned.groups, expected)


def test_a_trained_weight_that_is_frozen_is_refused(network):
    tune(network, "full")
    network.model.language_model.layers[1].self_attn.k_proj.requires_grad_(False)
    with pytest.raises(ValueError, match="'LLM attention q, k, v'"):
        check_counts(count_groups(network), expected_counts(network.config.text_config, "full", False, 0))


def test_a_language_model_of_another_make_is_refused(network):
    network.model.language_model.layers[0].mlp.gate_proj = None
    with pytest.raises(ValueError, match="11 of 12 linear layers"):
        tune(network, "full")


def test_a_parameter_of_no_known_part_is_refused():
    with pytest.raises(ValueError, match="belongs to no known part"):
        group_of("model.audio_tower.weight")


def test_grouped_query_attention_is_counted():
    config = tiny_config(300, image_size=32, vision_hidden=32, vision_layers=2, text_hidden=64, text_layers=2)
    config.text_config.num_key_value_heads = 2
    groups = tune(build_random(config), "full").groups
    assert groups["LLM attention q, k, v"][1] == 2 * (64 * 64 + 2 * 64 * 32)


def test_counts_of_the_published_7b_config():
    from transformers import LlamaConfig
    config = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32064)
    counts = expected_counts(config, "full", True, 0)
    assert sum(counts.values()) == 6_476_005_376  # attention + FFN: 6.476 B (LanguageBind/Video-LLaVA-7B-hf)
    assert sum(expected_counts(config, "lora", True, 128).values()) == 319_815_680  # LoRA r 128: 0.32 B


# tune: qlora. Nothing here runs in 4 bits: that needs a GPU.

def test_qlora_is_refused_before_anything_is_written(repository, tmp_path, monkeypatch):
    from vlmphys.train import train
    monkeypatch.chdir(repository)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = TrainConfig(tune="qlora", engine="deepspeed", deepspeed="ds_configs/zero2.json", out=str(tmp_path / "run"))
    with pytest.raises(ValueError, match="no CUDA GPU here.*or use tune: lora"):
        train(config)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="'qlora' with engine plain.*zero2.json"):
        check_qlora(replace(config, engine="plain", deepspeed=None))
    with pytest.raises(ValueError, match="'qlora' with engine fsdp"):
        check_qlora(replace(config, engine="fsdp", deepspeed=None))
    with pytest.raises(ValueError, match="'qlora' with ds_configs/zero3.json"):
        check_qlora(replace(config, deepspeed="ds_configs/zero3.json"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"bitsandbytes is not installed: .*\[qlora\]"):
        check_qlora(config)
    check_qlora(replace(config, tune="lora"))


def test_qlora_packs_the_language_models_blocks_and_nothing_else(network):
    utils = pytest.importorskip("transformers.quantizers.quantizers_utils")
    if not hasattr(utils, "should_convert_module"):
        pytest.skip("this transformers decides elsewhere what is quantised")
    linear = [name for name, module in network.named_modules() if type(module) is nn.Linear]
    packed = {name for name in linear if utils.should_convert_module(name, list(NOT_QUANTISED))}
    assert packed == {name for name in linear if name.startswith("model.language_model.layers.")} and len(packed) == 2 * 7
    assert len(packed) < len(linear)


def test_packed_weights_are_counted_by_what_they_stand_for(network):
    whole = {group: total for group, (total, _) in tune(network, "lora", lora_r=4).groups.items()}
    for layer in network.model.language_model.layers:
        weight = layer.self_attn.o_proj.weight
        shape = weight.shape
        packed = nn.Parameter(torch.zeros(weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)
        packed.quant_state = SimpleNamespace(shape=shape)
        layer.self_attn.o_proj.weight = packed
    groups = count_groups(network)
    assert {group: total for group, (total, _) in groups.items()} == whole
    check_counts(groups, expected_counts(network.config.text_config, "qlora", False, 4))
