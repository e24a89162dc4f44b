"""The loss of a dialogue, computed on its supervised positions only, with the figures by which it is watched.

Shape suffixes: B clips, L positions, N supervised positions, K turns, D hidden size, V vocabulary, T H W C frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from vlmphys.batches import Batch
from vlmphys.model import embed, project
from vlmphys.records import MAX_TURNS

# The layout of the vector of sums that each micro-batch adds to; it is summed over micro-batches and ranks.
STATISTICS = tuple(f"loss_turn_{k + 1}" for k in range(MAX_TURNS)) + tuple(f"tokens_turn_{k + 1}" for k in range(MAX_TURNS)) + (
    "verdict_loss", "verdicts_right", "verdicts", "clips", "tokens", "tokens_squared")


class DialogueLoss(nn.Module):
    """Video-LLaVA from uint8 frames, or the tower's features of them, and token ids to the loss sum of each turn.

    It equals the model's own loss with labels (tests/parity/test_hf_loss.py), but runs the head on the N supervised positions
    instead of all B x L, and the frozen tower and projector without a graph.
    """

    def __init__(self, network, image_mean: tuple[float, ...], image_std: tuple[float, ...]):
        super().__init__()
        self.network = network
        self.image_mean, self.image_std = image_mean, image_std

    def forward(self, input_ids_BL, video, keep_N, target_N, turn_N, verdict_row_N) -> tuple[torch.Tensor, ...]:
        """Three results, all fp32: loss sums by turn (K, with graph), the sums from `verdict_loss` to `verdicts` (3, without) and each
        row's negative log-likelihood of its verdict's tokens (B, without; 0 where a row has no supervised verdict).
        """
        with torch.no_grad():
            dtype = next(self.network.model.multi_modal_projector.parameters()).dtype
            features = project(self.network, video, self.image_mean, self.image_std, dtype)
        outputs = self.network.model(inputs_embeds=embed(self.network, input_ids_BL, features), use_cache=False)
        hidden_BLD = outputs.last_hidden_state
        logits_NV = self.network.lm_head(hidden_BLD.flatten(0, 1)[keep_N]).float()
        loss_N = functional.cross_entropy(logits_NV, target_N, reduction="none")
        # A product with a one-hot matrix rather than index_add, which sums in no fixed order on a GPU.
        turn_NK = functional.one_hot(turn_N, MAX_TURNS).to(loss_N.dtype)
        loss_K = (loss_N[:, None] * turn_NK).sum(0)
        with torch.no_grad():
            verdict, verdict_nll_B = _verdicts(logits_NV, loss_N, target_N, verdict_row_N, clips=input_ids_BL.shape[0])
        return loss_K, verdict, verdict_nll_B


def _verdicts(logits_NV, loss_N, target_N, verdict_row_N, clips: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihood of the true verdicts, how many are the model's first choice (none is likelier), how many there are; and the
    first by row, B.

    A verdict may be several tokens: its likelihood is their product, and it is right only if each of them is. At chance
    between two verdicts the loss is ln 2 a clip.
    """
    # Products with a one-hot matrix rather than a mask as index: a mask's number of positions would have to cross to the host.
    row_NB = functional.one_hot(verdict_row_N + 1, clips + 1)[:, 1:].to(loss_N.dtype)
    # Likelier than the true token, or not, by the largest value alone: argmax takes fifteen times as long on a CPU.
    wrong_N = (logits_NV.gather(1, target_N[:, None])[:, 0] < logits_NV.amax(-1)).to(loss_N.dtype)
    present_B, wrong_B = row_NB.sum(0) > 0, (wrong_N[:, None] * row_NB).sum(0) > 0
    nll_B = (loss_N[:, None] * row_NB).sum(0)
    return torch.stack([nll_B.sum(), (present_B & ~wrong_B).sum().float(), present_B.sum().float()]), nll_B


def supervised_by_turn(batches: list[Batch]) -> torch.Tensor:
    """Supervised tokens of each turn, K, float64, summed over a rank's micro-batches."""
    return sum((torch.bincount(batch.turn_N, minlength=MAX_TURNS) for batch in batches), torch.zeros(MAX_TURNS, dtype=torch.int64)).double()


def turn_weights(supervised_K: torch.Tensor, mode: str = "token", importance: Sequence[float] = (1.0,) * MAX_TURNS) -> torch.Tensor:
    """What a supervised token of each turn weighs in the loss, K, given the **global** counts n_k of the optimizer step.

    With the importances a_k (`turn_weights` in the config) and the sums L_k of the turns' token losses, over the turns that the step has:

        token       loss = sum_k a_k L_k / sum_k a_k n_k            a token of turn k weighs a_k / sum_j a_j n_j
        turn_mean   loss = sum_k a_k (L_k / n_k) / sum_k a_k        a token of turn k weighs a_k / (n_k sum_j a_j)

    With equal importances `token` is the mean over all supervised tokens and `turn_mean` the mean over the means of the turns. The
    divisors are the same for all micro-batches and ranks, so their losses add up to that of the step, however it is split. A turn that
    the step does not have weighs 0.
    Raises ValueError where every turn that the step has is of importance 0.
    """
    importance_K = torch.tensor(importance, dtype=supervised_K.dtype, device=supervised_K.device) * (supervised_K > 0)
    total = (importance_K * supervised_K).sum()
    if not total > 0:
        has = [k + 1 for k in range(MAX_TURNS) if supervised_K[k] > 0]
        raise ValueError(f"turn_weights is {list(importance)}: nothing would be trained, because the dialogues only have the turns {has}; "
                         "give one of these a weight above 0")
    if mode == "token":
        return importance_K / total
    assert mode == "turn_mean", mode
    return importance_K / supervised_K.clamp(min=1) / importance_K.sum()


def statistics_of(batch: Batch, loss_K: torch.Tensor, verdict: torch.Tensor) -> torch.Tensor:
    """A micro-batch's sums in the order of `STATISTICS`, float64, on the loss's device; nothing crosses to the host."""
    sizes = (0 if batch.weightless else len(batch.clip_ids), batch.tokens, batch.tokens_squared)
    counts = torch.cat([torch.bincount(batch.turn_N, minlength=MAX_TURNS), torch.tensor(sizes)]).double()
    counts = counts.to(loss_K.device, non_blocking=True)
    return torch.cat([loss_K.detach().double(), counts[:MAX_TURNS], verdict.double(), counts[MAX_TURNS:]])


def readable(sums: torch.Tensor, mode: str = "token", importance: Sequence[float] = (1.0,) * MAX_TURNS) -> dict[str, float | None]:
    """Sums over steps and ranks as figures: means over tokens by turn, over clips for the verdict; None where nothing was supervised.

    `loss` is the objective by `turn_weights`, with the sums and counts of all these steps as if they were one: for a single step the
    very number that was minimised, in the default mode the mean over all supervised tokens. `share_turn_k` is the turn's share of these.
    """
    named = dict(zip(STATISTICS, sums.tolist()))
    loss_K, supervised_K = sums[:MAX_TURNS], sums[MAX_TURNS:2 * MAX_TURNS]
    figures: dict[str, float | None] = {"loss": (loss_K * turn_weights(supervised_K, mode, importance)).sum().item()}
    tokens = supervised_K.sum().item()
    for k in range(1, MAX_TURNS + 1):
        count = named[f"tokens_turn_{k}"]
        figures[f"loss_turn_{k}"] = named[f"loss_turn_{k}"] / count if count else None
    for k in range(1, MAX_TURNS + 1):
        figures[f"share_turn_{k}"] = named[f"tokens_turn_{k}"] / tokens
    verdicts = named["verdicts"]
    figures["verdict_loss"] = named["verdict_loss"] / verdicts if verdicts else None
    figures["first_choice_accuracy"] = named["verdicts_right"] / verdicts if verdicts else None
    return figures
