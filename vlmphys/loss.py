"""The loss of a dialogue, computed on its supervised positions only, with the figures by which it is watched.

Shape suffixes: B clips, L positions, N supervised positions, K turns, D hidden size, V vocabulary, T H W C frames.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from vlmphys.batches import Batch
from vlmphys.model import as_encoder_outputs, normalise_frames, video_features
from vlmphys.records import MAX_TURNS

# The layout of the vector of sums that each micro-batch adds to; it is summed over micro-batches and ranks.
STATISTICS = tuple(f"loss_turn_{k + 1}" for k in range(MAX_TURNS)) + tuple(f"tokens_turn_{k + 1}" for k in range(MAX_TURNS)) + (
    "verdict_loss", "verdicts_right", "verdicts", "clips", "tokens")


class DialogueLoss(nn.Module):
    """Video-LLaVA from uint8 frames and token ids to the loss sum of each turn.

    It equals the model's own loss with labels (tests/parity/test_hf_loss.py), but runs the head on the N supervised positions
    instead of all B x L, and the frozen tower and projector without a graph.
    """

    def __init__(self, network, image_mean: tuple[float, ...], image_std: tuple[float, ...]):
        super().__init__()
        self.network = network
        self.image_mean, self.image_std = image_mean, image_std

    def forward(self, input_ids_BL, frames_BTHWC, keep_N, target_N, turn_N, verdict_row_N) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss sums by turn (K, fp32, with graph) and the sums from `verdict_loss` to `verdicts` (3, fp32, without)."""
        with torch.no_grad():
            dtype = next(self.network.model.video_tower.parameters()).dtype
            pixels_BTCHW = normalise_frames(frames_BTHWC, self.image_mean, self.image_std, dtype)
            features = video_features(self.network, pixels_BTCHW)
        outputs = self.network.model(input_ids=input_ids_BL, mm_encoder_outputs=as_encoder_outputs(features), use_cache=False)
        hidden_BLD = outputs.last_hidden_state
        logits_NV = self.network.lm_head(hidden_BLD.flatten(0, 1)[keep_N]).float()
        loss_N = functional.cross_entropy(logits_NV, target_N, reduction="none")
        # A product with a one-hot matrix rather than index_add, which sums in no fixed order on a GPU.
        turn_NK = functional.one_hot(turn_N, MAX_TURNS).to(loss_N.dtype)
        loss_K = (loss_N[:, None] * turn_NK).sum(0)
        with torch.no_grad():
            verdict = _verdict_sums(logits_NV, loss_N, target_N, verdict_row_N, clips=input_ids_BL.shape[0])
        return loss_K, verdict


def _verdict_sums(logits_NV, loss_N, target_N, verdict_row_N, clips: int) -> torch.Tensor:
    """Negative log-likelihood of the true verdicts, how many are the model's first choice, how many there are.

    A verdict may be several tokens: its likelihood is their product, and it is right only if each of them is. At chance
    between two verdicts the loss is ln 2 a clip.
    """
    is_verdict_N = verdict_row_N >= 0
    rows_M = verdict_row_N[is_verdict_N]
    wrong_M = (logits_NV[is_verdict_N].argmax(-1) != target_N[is_verdict_N]).float()
    row_MB = functional.one_hot(rows_M, clips).to(wrong_M.dtype)
    present_B, wrong_B = row_MB.sum(0) > 0, (wrong_M[:, None] * row_MB).sum(0) > 0
    return torch.stack([loss_N[is_verdict_N].sum(), (present_B & ~wrong_B).sum().float(), present_B.sum().float()])


def supervised_by_turn(batches: list[Batch]) -> torch.Tensor:
    """Supervised tokens of each turn, K, float64, summed over a rank's micro-batches."""
    return sum((torch.bincount(batch.turn_N, minlength=MAX_TURNS) for batch in batches), torch.zeros(MAX_TURNS, dtype=torch.int64)).double()


def turn_weights(supervised_K: torch.Tensor) -> torch.Tensor:
    """What a token of each turn weighs in the loss, K, given the **global** count of the optimizer step.

    Every supervised token weighs the same, 1 / count: the sum over all micro-batches and ranks is then the mean over the
    tokens of the global batch, however it is split.
    """
    return torch.full_like(supervised_K, 1.0) / supervised_K.sum()


def statistics_of(batch: Batch, loss_K: torch.Tensor, verdict: torch.Tensor) -> torch.Tensor:
    """A micro-batch's sums in the order of `STATISTICS`, float64, on the loss's device."""
    counts = torch.bincount(batch.turn_N, minlength=MAX_TURNS)
    sizes = torch.tensor([0 if batch.weightless else len(batch.clip_ids), batch.tokens])
    return torch.cat([loss_K.detach().double(), counts.to(loss_K.device).double(), verdict.double(), sizes.to(loss_K.device).double()])


def readable(sums: torch.Tensor) -> dict[str, float | None]:
    """Sums over steps and ranks as figures: means over tokens by turn, over clips for the verdict; None where nothing was supervised."""
    named = dict(zip(STATISTICS, sums.tolist()))
    tokens = sum(named[f"tokens_turn_{k + 1}"] for k in range(MAX_TURNS))
    figures = {"loss": sum(named[f"loss_turn_{k + 1}"] for k in range(MAX_TURNS)) / tokens}
    for k in range(MAX_TURNS):
        count = named[f"tokens_turn_{k + 1}"]
        figures[f"loss_turn_{k + 1}"] = named[f"loss_turn_{k + 1}"] / count if count else None
    verdicts = named["verdicts"]
    figures["verdict_loss"] = named["verdict_loss"] / verdicts if verdicts else None
    figures["verdict_accuracy"] = named["verdicts_right"] / verdicts if verdicts else None
    return figures
