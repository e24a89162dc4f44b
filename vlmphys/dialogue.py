"""Token ids of a dialogue and which of them are supervised: the exact string that is tokenised, and the label mask by construction.

Vicuna's format: `<s>` + [system + space] + `USER: <video>\\nQ1 ASSISTANT: A1</s>USER: Q2 ASSISTANT: A2</s>` and so on. The string is
tokenised whole, so that its ids are those of the Hugging Face processor; the mask follows from where each answer was put into the
string, carried over to tokens by the tokenizer's character offsets. No text is searched for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

from vlmphys.prompts import VIDEO, Turn, rendered, verdict_answer, verdict_chars
from vlmphys.records import Verdict


@dataclass(frozen=True)
class TokenizedDialogue:
    """One clip's dialogue, `<video>` expanded to one id a video token.

    `turn` is as long as `input_ids`: 0 where a token is not supervised, k where it belongs to answer k (1, 2, ...), its `</s>` included.
    `verdict_span` is [start, end) over all tokens of the verdict's word in the last answer: the prompt of a prediction ends at its start.
    """

    input_ids: list[int]
    turn: list[int]
    verdict_span: tuple[int, int]


@dataclass(frozen=True)
class DialogueString:
    """A dialogue as one string (without `<s>`), and [start, end) in characters of what each answer's loss covers.

    Such a span starts at the space after `ASSISTANT:`, since a model that is asked up to the colon writes that space itself.
    """

    text: str
    answers: tuple[tuple[int, int], ...]


def write_dialogue(turns: Sequence[Turn], eos: str, system: str = "") -> DialogueString:
    """Lay out turns in Vicuna's format; `eos` ends each answer, `system` is one sentence or nothing."""
    text = f"{system} " if system else ""
    answers = []
    for number, turn in enumerate(turns):
        text += rendered(turn, with_video=number == 0)
        start = len(text)
        text += f" {turn.answer}{eos}"
        answers.append((start, len(text)))
    return DialogueString(text, tuple(answers))


def tokenize_dialogue(turns: Sequence[Turn], tokenizer, video_tokens: int, max_positions: int, name: str,
                      system: str = "") -> TokenizedDialogue:
    """Token ids, turn numbers and the verdict's place of one dialogue.

    `video_tokens` is frames x tokens a frame, `max_positions` what the model can hold, `name` the sample's name in messages.
    Raises ValueError, with the name, for a dialogue that does not fit (nothing is ever cut), for texts that hold special tokens, for a
    last answer without a verdict, and for a tokenizer that merges across the border of an answer or of a verdict.
    """
    if video_tokens < 1:
        raise ValueError(f"{name}: a dialogue needs at least one video token, got {video_tokens}")
    dialogue = write_dialogue(turns, _special(tokenizer, "eos_token"), system)
    ids, offsets = _encode(dialogue.text, tokenizer)
    turn = _turn_of_tokens(dialogue, ids, offsets, tokenizer, name)
    _check_special_tokens(ids, turn, len(turns), tokenizer, name)
    try:
        in_answer = verdict_chars(turns[-1].answer)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    # The answer's own characters start one after its span, which starts at the space.
    first, last = (dialogue.answers[-1][0] + 1 + position for position in in_answer)
    verdict = _tokens_within(first, last, ids, offsets, tokenizer, name)

    place = ids.index(_video_id(tokenizer))
    ids = ids[:place] + [ids[place]] * video_tokens + ids[place + 1:]
    turn = turn[:place] + [0] * video_tokens + turn[place + 1:]
    # The beginning is put in front here, and not by the tokenizer, whose template may add none, or an end as well.
    ids, turn = [tokenizer.bos_token_id, *ids], [0, *turn]
    moved = video_tokens  # one for the beginning, and the video's tokens in place of one
    if len(ids) > max_positions:
        raise ValueError(f"{name}: its dialogue takes {len(ids)} positions ({video_tokens} video, {len(ids) - video_tokens} text), "
                         f"the model has {max_positions}; use shorter texts, fewer frames or a model with more positions")
    return TokenizedDialogue(ids, turn, (verdict[0] + moved, verdict[1] + moved))


def verdict_continuations(tokenizer) -> dict[Verdict, tuple[int, ...]]:
    """The full token sequence of each verdict after one and the same prefix, `input_ids[:verdict_span[0]]` of any dialogue.

    Their log-probabilities are comparable sums whatever the tokenizer splits the words into. Raises ValueError where one sequence
    begins with the other, since the shorter would then always be the likelier.
    """
    found, prefixes = {}, set()
    for verdict in (Verdict.NORMAL, Verdict.ANOMALOUS):
        turns = [Turn("Verdict?", verdict_answer(verdict, "None."))]
        tokens = tokenize_dialogue(turns, tokenizer, video_tokens=1, max_positions=1 << 30, name="verdict")
        start, end = tokens.verdict_span
        found[verdict] = tuple(tokens.input_ids[start:end])
        prefixes.add(tuple(tokens.input_ids[:start]))
    assert len(prefixes) == 1, "the text before a verdict must give the same tokens whatever the verdict"
    normal, anomalous = found.values()
    shorter = min(len(normal), len(anomalous))
    if normal[:shorter] == anomalous[:shorter]:
        raise ValueError(f"this tokenizer writes the verdicts as {normal} and {anomalous}, one the beginning of the other: "
                         "they cannot be compared")
    return found


def verdict_lead(tokenizer) -> tuple[int, ...]:
    """The tokens of an answer before its verdict's word ("Verdict:")."""
    turns = [Turn("Verdict?", verdict_answer(Verdict.NORMAL, "None."))]
    tokens = tokenize_dialogue(turns, tokenizer, video_tokens=1, max_positions=1 << 30, name="verdict")
    return tuple(tokens.input_ids[tokens.turn.index(1):tokens.verdict_span[0]])


def further_question(question: str, tokenizer) -> tuple[int, ...]:
    """The tokens between an answer and the next one: the `</s>` of the first, and the question, up to `ASSISTANT:`."""
    text = _special(tokenizer, "eos_token") + rendered(Turn(question, ""), with_video=False)
    return tuple(_encode(text, tokenizer)[0])


def _special(tokenizer, kind: str) -> str:
    token = getattr(tokenizer, kind)
    if token is None:
        raise ValueError(f"the tokenizer has no {kind}: the dialogue's format needs <s> and </s>; give a Video-LLaVA tokenizer")
    return str(token)


def _video_id(tokenizer) -> int:
    number = tokenizer.convert_tokens_to_ids(VIDEO)
    if number is None or number == tokenizer.unk_token_id:
        raise ValueError(f"the tokenizer has no {VIDEO!r} token: give a Video-LLaVA tokenizer")
    return number


def _encode(text: str, tokenizer) -> tuple[list[int], list[tuple[int, int]]]:
    _special(tokenizer, "bos_token"), _video_id(tokenizer)
    if not tokenizer.is_fast:
        raise ValueError("a fast tokenizer (tokenizer.json) is needed: label masks are built from character offsets")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(encoded["input_ids"]), [tuple(pair) for pair in encoded["offset_mapping"]]


def _turn_of_tokens(dialogue: DialogueString, ids, offsets, tokenizer, name: str) -> list[int]:
    """The answer that each token belongs to, 0 for none; a token may not cover characters of two sides."""
    side = [0] * (len(dialogue.text) + 1)
    for number, (start, end) in enumerate(dialogue.answers, start=1):
        side[start:end] = [number] * (end - start)
    turn = []
    for token, (start, end) in zip(ids, offsets):
        # A token of no width is the space that some tokenizers put before a piece of text: it goes with the character that follows.
        covered = set(side[start:max(end, start + 1)])
        if len(covered) != 1:
            raise ValueError(
                f"{name}: the token {tokenizer.convert_ids_to_tokens(token)!r} covers {dialogue.text[start:end]!r}, "
                "part of it in an answer and part of it not: with this tokenizer the answers cannot be told from the questions")
        turn.append(covered.pop())
    return turn


def _check_special_tokens(ids: list[int], turn: list[int], answers: int, tokenizer, name: str) -> None:
    """Special tokens stand where the format puts them and nowhere else: none came in with a text."""
    # Looked up once: a tokenizer builds these lists anew at each access, which costs more than the tokenising.
    video, eos = _video_id(tokenizer), tokenizer.eos_token_id
    forbidden = {*tokenizer.all_special_ids, tokenizer.convert_tokens_to_ids("<image>")} - {eos, video, tokenizer.unk_token_id}
    strangers = [token for token in ids if token in forbidden]
    if strangers:
        raise ValueError(f"{name}: its texts hold the special token {tokenizer.convert_ids_to_tokens(strangers[0])!r}: take it out")
    if ids.count(video) != 1:
        raise ValueError(f"{name}: {VIDEO!r} stands {ids.count(video)} times in its dialogue, once is allowed: take it out of the texts")
    ends = [number for token, number in zip(ids, turn) if token == eos]
    if ends != list(range(1, answers + 1)):
        raise ValueError(f"{name}: {tokenizer.eos_token!r} ends the answers {ends}, expected once for each of {answers}: "
                         "take it out of the texts")


def _tokens_within(first: int, last: int, ids, offsets, tokenizer, name: str) -> tuple[int, int]:
    """The tokens of the characters [first, last), which no token may overlap in part; the first may carry the space or leave it out."""
    inside = [index for index, (start, end) in enumerate(offsets) if start < last and end > first]
    for index in inside:
        if offsets[index][0] < first or offsets[index][1] > last:
            raise ValueError(f"{name}: the token {tokenizer.convert_ids_to_tokens(ids[index])!r} reaches beyond the verdict's word: "
                             "with this tokenizer the two verdicts cannot be compared")
    assert inside and inside == list(range(inside[0], inside[-1] + 1)), "the verdict's tokens must be one run"
    return inside[0], inside[-1] + 1
