"""Operations by formula against those that torch counts while the model runs, and the table of GPUs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vlmphys.batches import collate
from vlmphys.config import TrainConfig
from vlmphys.flops import gpu_peak_flops, model_flops, peak_by_name
from vlmphys.loss import DialogueLoss, statistics_of
from vlmphys.model import CLIP_MEAN, CLIP_STD, load_model
from vlmphys.records import Split, Variant
from vlmphys.shards import open_packed
from vlmphys.tuning import tune

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("config", [TrainConfig(), TrainConfig(tune_o_proj=True), TrainConfig(tune="lora", lora_r=4, lora_dropout=0.0)],
                         ids=["full", "with o_proj", "lora"])
def test_the_formulas_count_what_torch_counts(config, packed_folder, tiny_model_folder):
    packed = open_packed(packed_folder)
    network = load_model(str(tiny_model_folder))
    network.set_attn_implementation("eager")    # products that the counter sees
    tune(network, config.tune, config.tune_o_proj, config.lora_r)
    module = DialogueLoss(network, CLIP_MEAN, CLIP_STD)
    batch = collate(packed, packed.clip_ids(Split.TRAIN)[:1], Variant.MULTI_TURN, 5)
    with FlopCounterMode(display=False) as counter:
        loss_K, verdict, _ = module(batch.input_ids_BL, batch.frames_BTHWC, batch.keep_N, batch.target_N, batch.turn_N, batch.verdict_row_N)
        loss_K.sum().backward()
    sums = statistics_of(batch, loss_K, verdict)
    flops = model_flops(network.config, config, batch.frames_BTHWC.shape[1])
    # The model computes all of attention's matrix, and the tower's last layer, whose output is not read.
    attention = replace(flops, per_token=0, per_supervised=0, per_clip=0).of(sums)
    vision = network.config.vision_config
    tokens = (vision.image_size // vision.patch_size) ** 2 + 1
    last_layer = 2 * tokens * (4 * vision.hidden_size ** 2 + 2 * vision.hidden_size * vision.intermediate_size)
    last_layer += 4 * tokens ** 2 * vision.hidden_size
    assert attention > 0.02 * flops.of(sums), "attention must weigh enough here to be missed"
    expected = flops.of(sums) + attention + batch.frames_BTHWC.shape[1] * last_layer
    assert counter.get_total_flops() == pytest.approx(expected, rel=1e-3)   # rotary angles are a product, too


def test_padding_and_stand_ins_are_no_work(packed_folder, tiny_model_folder):
    packed = open_packed(packed_folder)
    clips = packed.clip_ids(Split.TRAIN)[:6]
    flops = model_flops(load_model(str(tiny_model_folder)).config, TrainConfig(), 8)

    def work(*batches):
        return sum(flops.of(statistics_of(batch, torch.zeros(4), torch.zeros(3))) for batch in batches)
    whole = work(collate(packed, clips, Variant.MULTI_TURN, 5))
    assert whole == pytest.approx(work(*(collate(packed, [clip], Variant.MULTI_TURN, 5) for clip in clips)), rel=1e-12)
    assert whole > 0 and work(collate(packed, clips, Variant.MULTI_TURN, 5, weightless=True)) == 0


def test_known_and_unknown_gpus():
    assert peak_by_name("NVIDIA GeForce RTX 4090") == 165.2e12 and peak_by_name("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_by_name("NVIDIA H200") == 989e12 and peak_by_name("NVIDIA H100 PCIe") == 756e12
    # Another chip under a similar name must not get the figures of the first.
    assert peak_by_name("NVIDIA GeForce RTX 4090 D") is None and peak_by_name("NVIDIA GeForce RTX 4090 Laptop GPU") is None
    assert gpu_peak_flops(TrainConfig(gpu_peak_tflops=100.0), torch.device("cpu")) is None
