"""The verdict's log-odds and greedy texts, for a batch of clips with prompts of unequal length, from one prefill.

The video tower and the prompt run once a clip. Grounding answers that the model writes itself go into the same cache, turn after turn;
both verdicts' whole token sequences are then read from it, and the explanation and the description go on from it after the verdict.
Shape suffixes: B clips, L prompt positions (padded on the left), K tokens of a continuation, S all cached positions, T frames,
H W pixels, C channels, D hidden size, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional

from vlmphys.model import ModelFacts, embed, project
from vlmphys.predictions import Explain, verdict_of
from vlmphys.records import Verdict


@dataclass(frozen=True)
class Asked:
    """What one clip is asked, in token ids, `<video>` expanded.

    The model is given the first of `pieces`, writes an answer, is given the next, and so on; the verdict's word comes after the last one.
    With one piece every answer before the verdict is given. `lead`: what stands between an answer's beginning, or the sentences in it, and
    the verdict's word; the last piece ends with it. `leads`: the model writes the verdict's own answer from its beginning, and the last
    piece, the lead alone, is given where it has come to it or has ended. `describe`: `</s>` and the question for a description after the
    verdict's answer; () where none is asked.
    """

    pieces: tuple[Sequence[int], ...]
    lead: tuple[int, ...] = ()
    leads: bool = False
    describe: tuple[int, ...] = ()


@dataclass(frozen=True)
class Decoding:
    """How texts are written. An answer ends at `</s>`, after `max_new_tokens`, or where the model's positions end.

    continuations: both verdicts' token sequences after a prompt, of any lengths. An explanation goes on after the verdict that the
    log-odds have at `threshold`, for the clips that `explain` names.
    """

    continuations: Mapping[Verdict, Sequence[int]]
    eos_token_id: int
    explain: Explain = Explain.ALL
    max_new_tokens: int = 128
    threshold: float = 0.0


@dataclass(frozen=True)
class Judged:
    """What the model says of one clip. Log-probabilities are natural, summed over a verdict's whole token sequence.

    `generated` holds the tokens after the verdict, without `</s>`; None where no explanation was asked for. `threshold` is the log-odds
    from which the verdict is anomalous. `written`: the tokens of each answer as far as the verdict's word, without `</s>`, where the model
    wrote the grounding itself; None where it was given. `description`: the tokens of the description, None where none was asked for.
    """

    log_normal: float
    log_anomalous: float
    generated: list[int] | None
    threshold: float = 0.0
    written: tuple[list[int], ...] | None = None
    description: list[int] | None = None

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
    """A batch whose tokens up to here stand in the key-value cache; `mask_BS` is 0 where a position is padding.

    `cache` and `hidden_BD` (of the last token) are None as long as nothing was fed.
    """

    cache: object
    mask_BS: torch.Tensor
    next_position_B: torch.Tensor
    hidden_BD: torch.Tensor | None

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows of the batch, in place."""
        self.cache.batch_select_indices(rows)
        self.mask_BS, self.next_position_B, self.hidden_BD = self.mask_BS[rows], self.next_position_B[rows], self.hidden_BD[rows]

    def copy(self) -> Cached:
        """The same with keys and values of its own: what is fed to the one is not in the other."""
        return replace(self, cache=copy.deepcopy(self.cache))

    def take_off(self, tokens: int, hidden_BD: torch.Tensor) -> None:
        """Forget the last `tokens` of all clips, none of them padding; `hidden_BD` is the state of the one before them."""
        if tokens:
            # A negative count means "take so many off" in all versions; what a positive one means has changed.
            self.cache.crop(-tokens)
            self.mask_BS, self.next_position_B = self.mask_BS[:, :-tokens], self.next_position_B - tokens
        self.hidden_BD = hidden_BD


def features_of(network, facts: ModelFacts, video: np.ndarray) -> torch.Tensor:
    """The projected video tokens, (B * T) x tokens_per_frame x D, of what `Packed.video` gives."""
    return project(network, torch.from_numpy(np.ascontiguousarray(video)).to(network.device), facts.image_mean, facts.image_std, network.dtype)


@torch.inference_mode()
def judge_batch(network, facts: ModelFacts, prompts: Sequence[Sequence[int]], video: np.ndarray,
                continuations: Mapping[Verdict, Sequence[int]], eos_token_id: int, explain: Explain = Explain.ALL,
                max_new_tokens: int = 128, threshold: float = 0.0) -> list[Judged]:
    """Judge a batch of clips whose answers before the verdict are given.

    prompts: each clip's token ids up to its verdict (`input_ids[:verdict_span[0]]`), `<video>` expanded. video: as `Packed.video`
    gives it. The rest is as in `Decoding`.
    """
    decoding = Decoding(continuations, eos_token_id, explain, max_new_tokens, threshold)
    asked = [Asked((prompt,)) for prompt in prompts]
    return judge_askings(network, facts, features_of(network, facts, video), [asked], decoding)[0]


@torch.inference_mode()
def judge_askings(network, facts: ModelFacts, features: torch.Tensor, askings: Sequence[Sequence[Asked]], decoding: Decoding) -> list[list[Judged]]:
    """Judge a batch of clips in one or several ways; for each way a list of what is said of each clip.

    features: of `features_of`. askings: for each way what each clip is asked, all with as many pieces. Several ways share one prefill of
    what they begin with: the system sentence and the video.
    """
    if len(askings) == 1:
        return [_judge(network, facts, _empty(len(askings[0]), network.device), askings[0], 0, features, decoding)]
    first = askings[0][0].pieces[0]
    shared = max(place for place, token in enumerate(first) if token == facts.video_token_id) + 1
    assert all(list(clip.pieces[0][:shared]) == list(first[:shared]) for asked in askings for clip in asked), \
        "dialogues must be the same up to the end of the video"
    begun = prefill(network, [clip.pieces[0][:shared] for clip in askings[0]], features, facts.pad_token_id)
    return [_judge(network, facts, begun if number == len(askings) - 1 else begun.copy(), asked, shared, None, decoding)
            for number, asked in enumerate(askings)]


def _judge(network, facts: ModelFacts, cached: Cached, asked: Sequence[Asked], shared: int, features: torch.Tensor | None,
           decoding: Decoding) -> list[Judged]:
    """Judge clips of whose first pieces the cache holds the first `shared` tokens; it is used up. `features`: of videos that it lacks."""
    given, written, used = _ground(network, facts, cached, asked, shared, features, decoding)
    if written[0]:
        features = None
    # The longest verdict but for its last token is read along with the prompt, and taken off again: no pass of its own.
    tail = tuple(max(decoding.continuations.values(), key=len)[:-1])
    verdicts = [tuple(decoding.continuations[verdict]) for verdict in (Verdict.NORMAL, Verdict.ANOMALOUS)]
    read_along = [tokens[:-1] == tail[:len(tokens) - 1] for tokens in verdicts]
    # Where all is known after this pass, and nothing stands in a cache before it, keys and values are not kept.
    keep = cached.cache is not None or decoding.explain is not Explain.NONE or not all(read_along)
    ids_BL, real_BL = pad_left([[*piece, *tail] for piece in given], facts.pad_token_id, network.device)
    hidden_BKD = extend(network, cached, ids_BL, real_BL, features, keep)[:, -1 - len(tail):]
    if keep:
        cached.take_off(len(tail), hidden_BKD[:, 0])
    log_normal_B, log_anomalous_B = (
        _log_probs(network, hidden_BKD[:, :len(tokens)], tokens) if along else continuation_log_probs(network, cached, tokens)
        for tokens, along in zip(verdicts, read_along))
    judged = [Judged(normal, anomalous, None, decoding.threshold, tuple(answers) if answers else None)
              for normal, anomalous, answers in zip(log_normal_B.tolist(), log_anomalous_B.tolist(), written)]
    rows = [row for row, clip in enumerate(judged) if decoding.explain.wants(clip.verdict)]
    if rows:
        _explain(network, facts, cached, asked, used, judged, rows, decoding)
    return judged


def _ground(network, facts: ModelFacts, cached: Cached, asked: Sequence[Asked], shared: int, features: torch.Tensor | None,
            decoding: Decoding) -> tuple[list[Sequence[int]], list[list[list[int]]], list[int]]:
    """Let the model write the answers between the pieces, turn after turn.

    Returns for each clip the tokens that come next (up to the verdict's word), its written answers, empty where all are given, and how many
    positions it takes up to the verdict's word.
    """
    given: list[Sequence[int]] = [clip.pieces[0][shared:] for clip in asked]
    used = [len(clip.pieces[0]) for clip in asked]
    written: list[list[list[int]]] = [[] for _ in asked]
    turns = len(asked[0].pieces) - 1
    longest = max(map(len, decoding.continuations.values()))
    for turn in range(turns):
        room = [facts.max_positions - length - longest - sum(map(len, clip.pieces[turn + 1:])) for clip, length in zip(asked, used)]
        extend(network, cached, *pad_left(given, facts.pad_token_id, network.device), features)
        features = None
        lead = asked[0].lead if asked[0].leads and turn == turns - 1 else ()
        answers, stopped = decode_greedily(network, cached, facts.pad_token_id, decoding.eos_token_id,
                                           [min(decoding.max_new_tokens, left) for left in room], lead)
        # A lead that the model wrote itself lacks its last token alone.
        given = [lead[-1:] if met else clip.pieces[turn + 1] for clip, met in zip(asked, stopped)]
        for row, answer in enumerate(answers):
            written[row].append(answer)
            used[row] += len(answer) + len(given[row])
    for row, clip in enumerate(asked if turns else ()):
        if clip.leads:
            written[row][-1] += given[row]
        else:
            written[row].append(list(clip.lead))
    return given, written, used


def _explain(network, facts: ModelFacts, cached: Cached, asked: Sequence[Asked], used: Sequence[int], judged: list[Judged], rows: list[int],
             decoding: Decoding) -> None:
    """Fill in the explanations, and the descriptions where they are asked for, of these rows; the cache is used up."""
    if len(rows) < len(judged):
        cached.select(torch.tensor(rows, device=network.device))
    forced = [decoding.continuations[judged[row].verdict] for row in rows]
    room = [facts.max_positions - used[row] - len(tokens) - len(asked[row].describe) for row, tokens in zip(rows, forced)]
    explanations = continue_greedily(network, cached, forced, facts.pad_token_id, decoding.eos_token_id,
                                     [min(decoding.max_new_tokens, max(0, left)) for left in room])
    for row, tokens in zip(rows, explanations):
        judged[row] = replace(judged[row], generated=tokens)
    if not asked[rows[0]].describe:
        return
    room = [left - len(tokens) for left, tokens in zip(room, explanations)]
    descriptions = continue_greedily(network, cached, [asked[row].describe for row in rows], facts.pad_token_id, decoding.eos_token_id,
                                     [min(decoding.max_new_tokens, max(0, left)) for left in room])
    for row, tokens in zip(rows, descriptions):
        judged[row] = replace(judged[row], description=tokens)


def _empty(clips: int, device) -> Cached:
    """A batch of which nothing is cached yet."""
    return Cached(None, torch.zeros((clips, 0), dtype=torch.long, device=device), torch.zeros(clips, dtype=torch.long, device=device), None)


def prefill(network, prompts: Sequence[Sequence[int]], features: torch.Tensor, pad_token_id: int) -> Cached:
    """Run prompts, padded on the left, into a new cache; `features` are the projected video tokens of all of them in order."""
    cached = _empty(len(prompts), network.device)
    extend(network, cached, *pad_left(prompts, pad_token_id, network.device), features)
    return cached


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
        hidden_BKD = torch.cat([hidden_BKD, extend(network, cached, fed_BK, torch.ones_like(fed_BK))], dim=1)
        cached.take_off(fed_BK.shape[1], hidden_BKD[:, 0])
    return _log_probs(network, hidden_BKD, tokens)


def _log_probs(network, hidden_BKD: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
    """The sum over K tokens of their log-probabilities after the hidden states before each of them, float32, one for each clip."""
    # In float32 whatever the model's type: two verdicts' bf16 logits are often equal, and ties spoil a ranking of clips.
    log_probs_BKV = functional.linear(hidden_BKD.float(), network.lm_head.weight.float()).log_softmax(dim=-1)
    picked_BK = log_probs_BKV.gather(2, torch.tensor(tokens, device=network.device).expand(len(hidden_BKD), -1)[:, :, None])[:, :, 0]
    return picked_BK.sum(dim=1)


def continue_greedily(network, cached: Cached, forced: Sequence[Sequence[int]], pad_token_id: int, eos_token_id: int,
                      most: Sequence[int]) -> list[list[int]]:
    """After each clip's own `forced` tokens, the likeliest token again and again, until `</s>` (left out) or `most` of them.

    The cache holds the new tokens afterwards.
    """
    extend(network, cached, *pad_left(forced, pad_token_id, network.device))
    return decode_greedily(network, cached, pad_token_id, eos_token_id, most)[0]


def decode_greedily(network, cached: Cached, pad_token_id: int, eos_token_id: int, most: Sequence[int],
                    stop: Sequence[int] = ()) -> tuple[list[list[int]], list[bool]]:
    """The likeliest token again and again, for each clip until `</s>` (left out), `most` of them, or the sequence `stop`, whose last token is
    left out; and which clips stopped at `stop`.

    The cache holds the new tokens afterwards; `hidden_BD` is of no use then, as clips that ended early were fed padding.
    """
    most_B = torch.tensor(most, device=network.device)
    alive_B = torch.ones_like(most_B, dtype=torch.bool)
    met_B = torch.zeros_like(alive_B)
    columns: list[torch.Tensor] = []
    while True:
        next_B = network.lm_head(cached.hidden_BD).argmax(dim=-1)
        alive_B = alive_B & (next_B != eos_token_id) & (len(columns) < most_B)
        if stop and len(columns) >= len(stop) - 1:
            latest = [*columns[len(columns) - len(stop) + 1:], next_B]
            now_B = alive_B & torch.stack([column == token for column, token in zip(latest, stop, strict=True)]).all(dim=0)
            met_B, alive_B = met_B | now_B, alive_B & ~now_B
        if not alive_B.any():
            break
        columns.append(torch.where(alive_B, next_B, -1))
        # A clip that has ended is fed padding, which no other position can see, until the last of the batch has ended.
        extend(network, cached, torch.where(alive_B, next_B, pad_token_id)[:, None], alive_B[:, None].long())
    if not columns:
        return [[] for _ in most], met_B.tolist()
    return [[token for token in row if token >= 0] for row in torch.stack(columns, dim=1).tolist()], met_B.tolist()


def extend(network, cached: Cached, ids_BK: torch.Tensor, real_BK: torch.Tensor, features: torch.Tensor | None = None,
           keep: bool = True) -> torch.Tensor:
    """Feed tokens after what is cached (`real_BK` is 0 for padding), and return their hidden states, B x K x D.

    `features`: the projected video tokens that stand at the `<video>` ids among them. Unless `keep`, nothing can be fed afterwards.
    """
    # Padding takes position 0 and is masked, so that every real token stands where it would stand alone.
    position_BK = (cached.next_position_B[:, None] + real_BK.cumsum(dim=1) - 1).clamp(min=0)
    cached.mask_BS = torch.cat([cached.mask_BS, real_BK], dim=1)
    fed = {"input_ids": ids_BK} if features is None else {"inputs_embeds": embed(network, ids_BK, features)}
    outputs = network.model(**fed, attention_mask=cached.mask_BS, position_ids=position_BK, past_key_values=cached.cache, use_cache=keep)
    cached.cache = outputs.past_key_values
    cached.next_position_B = cached.next_position_B + real_BK.sum(dim=1)
    cached.hidden_BD = outputs.last_hidden_state[:, -1]
    return outputs.last_hidden_state
