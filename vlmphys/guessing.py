"""Which category a clip shows: the likelihood of each category's component turn, all read from one prefill of the video.

Shape suffixes: C categories, K tokens after the video, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from vlmphys.dialogue import tokenize_dialogue
from vlmphys.inference import Cached, extend, prefill
from vlmphys.model import ModelFacts
from vlmphys.priors import NORMAL_STATE, Prior
from vlmphys.prompts import Turn, dialogue_text, verdict_answer
from vlmphys.records import Variant, Verdict

# A dialogue must end with a verdict; nothing of this one is looked at.
AFTER = Turn("Verdict?", verdict_answer(Verdict.NORMAL, "None."))


@dataclass(frozen=True)
class Guess:
    """A category, log P(its parts | video, the question for its parts), and its probability among the categories, all equally likely before."""

    category: str
    log_likelihood: float
    probability: float


def component_turn(prior: Prior, tokenizer, video_tokens: int, max_positions: int, variant: Variant, system: str) -> tuple[list[int], list[bool]]:
    """Token ids of the dialogue's first question and the answer's sentence on the parts, and which of them are that sentence's."""
    turn = dialogue_text(prior, NORMAL_STATE, variant, "", paraphrased=False)[0]
    asked = tokenize_dialogue([turn._replace(answer=prior.component), AFTER], tokenizer, video_tokens, max_positions, prior.category, system)
    # Without the </s> that ends it here: in a longer answer none follows.
    end = max(place for place, number in enumerate(asked.turn) if number == 1)
    return asked.input_ids[:end], [number == 1 for number in asked.turn[:end]]


@torch.inference_mode()
def guess_category(network, facts: ModelFacts, tokenizer, priors: Mapping[str, Prior], features: torch.Tensor, variant: Variant,
                   system: str = "") -> list[Guess]:
    """The categories of `priors`, likeliest first. `features`: the clip's projected video tokens, frames x tokens a frame x D."""
    video_tokens = features.shape[:-1].numel()
    turns = {category: component_turn(prior, tokenizer, video_tokens, facts.max_positions, variant, system) for category, prior in priors.items()}
    first = next(iter(turns.values()))[0]
    shared = len(first) - first[::-1].index(facts.video_token_id)       # up to the last token of the video all are alike
    assert all(ids[:shared] == first[:shared] for ids, _ in turns.values()), "dialogues must be the same up to the video"
    longest = max(len(ids) for ids, _ in turns.values()) - shared
    ids_CK = torch.full((len(turns), longest), facts.pad_token_id, dtype=torch.long)
    real_CK, answer_CK = torch.zeros_like(ids_CK), torch.zeros_like(ids_CK, dtype=torch.bool)
    for row, (ids, answer) in enumerate(turns.values()):
        ids_CK[row, :len(ids) - shared] = torch.tensor(ids[shared:])
        real_CK[row, :len(ids) - shared] = 1
        answer_CK[row, :len(ids) - shared] = torch.tensor(answer[shared:])
    ids_CK, real_CK, answer_CK = (values.to(network.device) for values in (ids_CK, real_CK, answer_CK))
    one = prefill(network, [first[:shared]], features, facts.pad_token_id)
    one.cache.batch_repeat_interleave(len(turns))
    cached = Cached(one.cache, one.mask_BS.expand(len(turns), -1), one.next_position_B.expand(len(turns)), one.hidden_BD.expand(len(turns), -1))
    # The hidden state before a token tells its likelihood, so that the last one is not needed.
    hidden_CKD = extend(network, cached, ids_CK, real_CK)[:, :-1]
    log_probs_CKV = functional.linear(hidden_CKD.float(), network.lm_head.weight.float()).log_softmax(dim=-1)
    picked_CK = log_probs_CKV.gather(2, ids_CK[:, 1:, None])[:, :, 0]
    sums = (picked_CK * answer_CK[:, 1:]).sum(dim=1).double().cpu().numpy()
    shares = np.exp(sums - sums.max())
    shares /= shares.sum()
    found = [Guess(category, float(value), float(share)) for category, value, share in zip(turns, sums, shares)]
    return sorted(found, key=lambda guess: (-guess.log_likelihood, guess.category))
