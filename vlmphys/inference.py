"""The verdict's log-odds and a greedy explanation, for a batch of clips with prompts of unequal length, from one prefill.

The video tower and the prompt run once a clip. Both verdicts' whole token sequences are then read from the same cache, and the
explanation goes on from it after the likelier verdict.
Shape suffixes: B clips, L prompt positions (padded on the left), K tokens of a continuation, S all cached positions, T frames,
H W pixels, C channels, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional

from vlmphys.model import ModelFacts, embed, project
from vlmphys.predictions import Explain, verdict_of
from vlmphys.records import Verdict


@dataclass(frozen=True)
class Judged:
    """What the model says of one clip. Log-probabilities are natural, summed over a verdict's whole token sequence.

    `generated` holds the tokens after the verdict, without `</s>`; None where no explanation was asked for. `threshold` is the log-odds
    from which the verdict is anomalous.
    """

    log_normal: float
    log_anomalous: float
    generated: list[int] | None
    threshold: float = 0.0

    @property
    def score(self) -> float:
        """The log-odds of Anomalous over Normal."""
        return self.log_anomalous - self.log_normal

    @property
    def verdict(self) -> Verdict:
        """Anomalous from the threshold on; where that is 0, the likelier verdict, and Anomalous where both are equally likely."""
        return verdict_of(self.score, self.threshold)


@dataclass
class Cached:
    """A batch whose tokens up to here stand in the key-value cache; `mask_BS` is 0 where a position is padding."""

    cache: object
    mask_BS: torch.Tensor
    next_position_B: torch.Tensor
    hidden_BD: torch.Tensor

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows of the batch, in place."""
        self.cache.batch_select_indices(rows)
        self.mask_BS, self.next_position_B, self.hidden_BD = self.mask_BS[rows], self.next_position_B[rows], self.hidden_BD[rows]


@torch.inference_mode()
def judge_batch(network, facts: ModelFacts, prompts: Sequence[Sequence[int]], video: np.ndarray,
                continuations: Mapping[Verdict, Sequence[int]], eos_token_id: int, explain: Explain = Explain.ALL,
                max_new_tokens: int = 128, threshold: float = 0.0) -> list[Judged]:
    """Judge a batch of clips.

    prompts: each clip's token ids up to its verdict (`input_ids[:verdict_span[0]]`), `<video>` expanded. video: as `Packed.video`
    gives it.
    continuations: both verdicts' token sequences after such a prompt, of any lengths. An explanation ends at `</s>`, after
    `max_new_tokens`, or where the model's positions end; it goes on after the verdict that the log-odds have at `threshold`.
    """
    features = project(network, torch.from_numpy(np.ascontiguousarray(video)).to(network.device), facts.image_mean, facts.image_std,
                       network.dtype)
    cached = prefill(network, prompts, features, facts.pad_token_id)
    log_normal_B, log_anomalous_B = (
        continuation_log_probs(network, cached, continuations[verdict]).tolist() for verdict in (Verdict.NORMAL, Verdict.ANOMALOUS))
    judged = [Judged(normal, anomalous, None, threshold) for normal, anomalous in zip(log_normal_B, log_anomalous_B)]
    explained = [row for row, clip in enumerate(judged) if explain.wants(clip.verdict)]
    if not explained:
        return judged
    if len(explained) < len(judged):
        cached.select(torch.tensor(explained, device=network.device))
    forced = [continuations[judged[row].verdict] for row in explained]
    room = [facts.max_positions - len(prompts[row]) - len(tokens) for row, tokens in zip(explained, forced)]
    generated = continue_greedily(network, cached, forced, facts.pad_token_id, eos_token_id, [min(max_new_tokens, left) for left in room])
    for row, tokens in zip(explained, generated):
        judged[row] = replace(judged[row], generated=tokens)
    return judged


def prefill(network, prompts: Sequence[Sequence[int]], features: torch.Tensor, pad_token_id: int) -> Cached:
    """Run prompts, padded on the left, into a new cache; `features` are the projected video tokens of all of them in order."""
    ids_BL, mask_BL = pad_left(prompts, pad_token_id, network.device)
    # Padding takes position 0 and is masked, so that every real token stands where it would stand alone.
    position_BL = (mask_BL.cumsum(dim=1) - 1).clamp(min=0)
    outputs = network.model(inputs_embeds=embed(network, ids_BL, features), attention_mask=mask_BL, position_ids=position_BL, use_cache=True)
    return Cached(outputs.past_key_values, mask_BL, mask_BL.sum(dim=1), outputs.last_hidden_state[:, -1])


def pad_left(sequences: Sequence[Sequence[int]], pad_token_id: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences of unequal length as int64 ids and a 0/1 mask, both B x longest, padded on the left."""
    longest = max(len(sequence) for sequence in sequences)
    ids_BL = torch.full((len(sequences), longest), pad_token_id, dtype=torch.long)
    mask_BL = torch.zeros((len(sequences), longest), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        ids_BL[row, longest - len(sequence):] = torch.as_tensor(np.asarray(sequence, dtype=np.int64))
        mask_BL[row, longest - len(sequence):] = 1
    return ids_BL.to(device), mask_BL.to(device)


def continuation_log_probs(network, cached: Cached, tokens: Sequence[int]) -> torch.Tensor:
    """log P(tokens | what is cached), one float32 sum for each clip; the cache is left as it was."""
    hidden_BKD = cached.hidden_BD[:, None]
    if len(tokens) > 1:
        fed_BK = torch.tensor(tokens[:-1], device=network.device).expand(len(cached.mask_BS), -1)
        before = (cached.mask_BS, cached.next_position_B, cached.hidden_BD)
        hidden_BKD = torch.cat([hidden_BKD, extend(network, cached, fed_BK, torch.ones_like(fed_BK))], dim=1)
        # A negative count means "take so many off" in all versions; what a positive one means has changed.
        cached.cache.crop(-fed_BK.shape[1])
        cached.mask_BS, cached.next_position_B, cached.hidden_BD = before
    # In float32 whatever the model's type: two verdicts' bf16 logits are often equal, and ties spoil a ranking of clips.
    log_probs_BKV = functional.linear(hidden_BKD.float(), network.lm_head.weight.float()).log_softmax(dim=-1)
    picked_BK = log_probs_BKV.gather(2, torch.tensor(tokens, device=network.device).expand(len(hidden_BKD), -1)[:, :, None])[:, :, 0]
    return picked_BK.sum(dim=1)


def continue_greedily(network, cached: Cached, forced: Sequence[Sequence[int]], pad_token_id: int, eos_token_id: int,
                      most: Sequence[int]) -> list[list[int]]:
    """After each clip's own `forced` tokens, the likeliest token again and again, until `</s>` (left out) or `most` of them.

    The cache is used up: it holds the new tokens afterwards.
    """
    extend(network, cached, *pad_left(forced, pad_token_id, network.device))
    most_B = torch.tensor(most, device=network.device)
    alive_B = torch.ones_like(most_B, dtype=torch.bool)
    columns: list[torch.Tensor] = []
    while True:
        next_B = network.lm_head(cached.hidden_BD).argmax(dim=-1)
        alive_B = alive_B & (next_B != eos_token_id) & (len(columns) < most_B)
        if not alive_B.any():
            break
        columns.append(torch.where(alive_B, next_B, -1))
        # A clip that has ended is fed padding, which no other position can see, until the last of the batch has ended.
        extend(network, cached, torch.where(alive_B, next_B, pad_token_id)[:, None], alive_B[:, None].long())
    if not columns:
        return [[] for _ in forced]
    return [[token for token in row if token >= 0] for row in torch.stack(columns, dim=1).tolist()]


def extend(network, cached: Cached, ids_BK: torch.Tensor, real_BK: torch.Tensor) -> torch.Tensor:
    """Feed tokens after what is cached (`real_BK` is 0 for padding), and return their hidden states, B x K x D."""
    position_BK = (cached.next_position_B[:, None] + real_BK.cumsum(dim=1) - 1).clamp(min=0)
    cached.mask_BS = torch.cat([cached.mask_BS, real_BK], dim=1)
    outputs = network.model(input_ids=ids_BK, attention_mask=cached.mask_BS, position_ids=position_BK,
                            past_key_values=cached.cache, use_cache=True)
    cached.next_position_B = cached.next_position_B + real_BK.sum(dim=1)
    cached.hidden_BD = outputs.last_hidden_state[:, -1]
    return outputs.last_hidden_state
