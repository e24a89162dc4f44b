"""Our loss against the loss of the Hugging Face model with the same labels: ragged batch, padding, video, all variants."""

from __future__ import annotations

import pytest
import torch

from vlmphys.batches import collate
from vlmphys.loss import DialogueLoss, supervised_by_turn, turn_weights
from vlmphys.model import load_model, normalise_frames, read_facts
from vlmphys.records import Split, Variant
from vlmphys.shards import open_packed
from vlmphys.tuning import tune

pytestmark = pytest.mark.parity
IGNORED = -100


@pytest.mark.parametrize("variant", list(Variant))
def test_loss_and_gradients_equal_the_models_own(variant, packed_folder, tiny_model_folder):
    facts, packed = read_facts(str(tiny_model_folder)), open_packed(packed_folder)
    network = load_model(str(tiny_model_folder))
    trained = tune(network, "full").trained()
    clips = packed.clip_ids(Split.TRAIN)[3:9]
    batch = collate(packed, clips, variant, facts.pad_token_id)

    rows = [packed.dialogues.row(clip, variant) for clip in clips]
    labels_BL = torch.full_like(batch.input_ids_BL, IGNORED)
    mask_BL = torch.zeros_like(batch.input_ids_BL)
    for index, row in enumerate(rows):
        own = torch.from_numpy(row.turn > 0)
        labels_BL[index, :len(own)] = torch.where(own, batch.input_ids_BL[index, :len(own)], IGNORED)
        mask_BL[index, :len(own)] = 1
    assert (mask_BL == 0).any(), "the batch must be ragged"
    pixels_BTCHW = normalise_frames(batch.frames_BTHWC, facts.image_mean, facts.image_std)
    reference = network(input_ids=batch.input_ids_BL, attention_mask=mask_BL, pixel_values_videos=pixels_BTCHW, labels=labels_BL).loss
    reference.backward()
    reference_gradients = {name: parameter.grad.clone() for name, parameter in trained.items()}
    network.zero_grad()

    module = DialogueLoss(network, facts.image_mean, facts.image_std)
    loss_K, _, _ = module(batch.input_ids_BL, batch.frames_BTHWC, batch.keep_N, batch.target_N, batch.turn_N, batch.verdict_row_N)
    loss = (loss_K * turn_weights(supervised_by_turn([batch])).float()).sum()
    loss.backward()
    assert loss.item() == pytest.approx(reference.item(), rel=1e-5)
    assert len(trained) == 12
    for name, parameter in trained.items():
        assert torch.allclose(parameter.grad, reference_gradients[name], rtol=1e-3, atol=1e-7), name
