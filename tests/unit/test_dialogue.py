"""Token ids and label masks: golden dialogues, and laws that hold for every text and for every kind of tokenizer."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from llama_tokenizers import llama_of_words, llama_trained
from tokenizers import Tokenizer, models, processors
from transformers import PreTrainedTokenizerFast, VideoLlavaProcessor

from vlmphys.dialogue import tokenize_dialogue, verdict_continuations, write_dialogue
from vlmphys.model import tokens_per_frame
from vlmphys.priors import known_categories, load_prior, load_priors
from vlmphys.prompts import SYSTEM, Turn, all_texts, dialogue_text
from vlmphys.records import Variant, Verdict
from vlmphys.tiny import train_tokenizer

pytestmark = pytest.mark.unit
PRIORS = load_priors(known_categories())

# The pieces of the golden dialogues and their ids; every other piece of the vocabulary is filled in around them.
PIECES = {
    "▁USER": 300, "USER": 301, ":": 302, "▁": 303, "What": 304, "▁What": 305, "▁parts": 306, "?": 307, "▁ASSISTANT": 308,
    "▁A": 309, "▁fan": 310, ".": 311, "▁moves": 312, "▁The": 313, "▁hub": 314, "▁How": 315, "▁It": 316, "▁turns": 317, "▁Right": 318,
    "▁Verdict": 319, "▁Anom": 320, "alous": 321, "▁Reason": 322, "▁is": 323, "▁stuck": 324, "▁Normal": 325, "Right": 326}
NEWLINE = 3 + 0x0A  # no piece holds it: byte fallback
TURNS = {
    1: [Turn("Right?", "Verdict: Normal. Reason: It turns.")],
    2: [Turn("What parts?", "A fan."), Turn("Right?", "Verdict: Anomalous. Reason: It is stuck.")],
    4: [Turn("What parts?", "A fan."), Turn("What moves?", "The hub."), Turn("How?", "It turns."),
        Turn("Right?", "Verdict: Anomalous. Reason: It is stuck.")]}
# Per turn: its question's ids, then its answer's; the second is supervised, the first is not.
GOLDEN = {
    1: [([1, 300, 302, 303, 32001, 32001, 32001, NEWLINE, 326, 307, 308, 302], [319, 302, 325, 311, 322, 302, 316, 317, 311, 2])],
    2: [([1, 300, 302, 303, 32001, 32001, 32001, NEWLINE, 304, 306, 307, 308, 302], [309, 310, 311, 2]),
        ([301, 302, 318, 307, 308, 302], [319, 302, 320, 321, 311, 322, 302, 316, 323, 324, 311, 2])],
    4: [([1, 300, 302, 303, 32001, 32001, 32001, NEWLINE, 304, 306, 307, 308, 302], [309, 310, 311, 2]),
        ([301, 302, 305, 312, 307, 308, 302], [313, 314, 311, 2]),
        ([301, 302, 315, 307, 308, 302], [316, 317, 311, 2]),
        ([301, 302, 318, 307, 308, 302], [319, 302, 320, 321, 311, 322, 302, 316, 323, 324, 311, 2])]}
GOLDEN_VERDICT = {1: (14, 15), 2: (25, 27), 4: (46, 48)}


def trimming() -> PreTrainedTokenizerFast:
    """Byte-level with offsets that leave the space out, as GPT-2's and Llama 3's do."""
    tokenizer = train_tokenizer(all_texts(PRIORS))
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


TOKENIZERS = {
    "tiny": lambda: train_tokenizer(all_texts(PRIORS)),
    "tiny, verdicts in pieces": lambda: train_tokenizer([text for text in all_texts(PRIORS) if "Verdict: " not in text]),
    "llama": lambda: llama_trained([text for text in all_texts(PRIORS) if "Verdict: " not in text], legacy=False),
    "llama, legacy": lambda: llama_trained([text for text in all_texts(PRIORS) if "Verdict: " not in text], legacy=True),
    "trimmed offsets": trimming,
}


@cache
def built(name: str) -> PreTrainedTokenizerFast:
    return TOKENIZERS[name]()


@pytest.fixture(params=list(TOKENIZERS))
def tokenizer(request):
    return built(request.param)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_golden_ids_and_mask_llama(count):
    tokens = tokenize_dialogue(TURNS[count], llama_of_words(PIECES), video_tokens=3, max_positions=4096, name="golden")
    assert tokens.input_ids == [number for asked, answered in GOLDEN[count] for number in (*asked, *answered)]
    assert tokens.turn == [mark for turn, (asked, answered) in enumerate(GOLDEN[count], start=1)
                           for mark in (*[0] * len(asked), *[turn] * len(answered))]
    assert tokens.verdict_span == GOLDEN_VERDICT[count]
    assert tokens.input_ids.count(1) == 1 and tokens.input_ids.count(2) == count and tokens.input_ids.count(32001) == 3


def test_golden_legacy_differs_where_a_piece_of_text_begins():
    tokens = tokenize_dialogue(TURNS[2], llama_of_words(PIECES, legacy=True), video_tokens=1, max_positions=4096, name="golden")
    assert tokens.input_ids == [1, 300, 302, 303, 32001, 303, NEWLINE, 304, 306, 307, 308, 302, 309, 310, 311, 2,
                                300, 302, 318, 307, 308, 302, 319, 302, 320, 321, 311, 322, 302, 316, 323, 324, 311, 2]
    assert tokens.turn == [0] * 12 + [1] * 4 + [0] * 6 + [2] * 12


@pytest.mark.parametrize("count", [1, 2, 4])
def test_golden_pieces_and_mask_tiny(count):
    """The embedded tokenizer, trained until each word is one piece: "Ġ" is the space before it, "Ċ" the newline."""
    tokenizer = train_tokenizer([f"USER: {turn.question}{turn.question} ASSISTANT: {turn.answer}" for turn in TURNS[4]], vocab_size=2000)
    first = ["<s>", "USER", ":", "Ġ", "<video>", "<video>", "Ċ"]
    stuck = ["ĠVerdict", ":", "ĠAnomalous", ".", "ĠReason", ":", "ĠIt", "Ġis", "Ġstuck", ".", "</s>"]
    asked = ["USER", ":"]
    end = ["?", "ĠASSISTANT", ":"]
    expected = {
        1: [([*first, "Right", *end], stuck)],
        2: [([*first, "What", "Ġparts", *end], ["ĠA", "Ġfan", ".", "</s>"]), ([*asked, "ĠRight", *end], stuck)],
        4: [([*first, "What", "Ġparts", *end], ["ĠA", "Ġfan", ".", "</s>"]),
            ([*asked, "ĠWhat", "Ġmoves", *end], ["ĠThe", "Ġhub", ".", "</s>"]),
            ([*asked, "ĠHow", *end], ["ĠIt", "Ġturns", ".", "</s>"]), ([*asked, "ĠRight", *end], stuck)]}[count]
    turns = [TURNS[4][3]] if count == 1 else TURNS[count]
    tokens = tokenize_dialogue(turns, tokenizer, video_tokens=2, max_positions=1024, name="golden")
    assert tokenizer.convert_ids_to_tokens(tokens.input_ids) == [piece for question, answer in expected for piece in (*question, *answer)]
    assert tokens.turn == [mark for turn, (question, answer) in enumerate(expected, start=1)
                           for mark in (*[0] * len(question), *[turn] * len(answer))]
    assert tokens.input_ids[0] == 1 and tokens.input_ids[4:6] == [4, 4] and tokens.input_ids[-1] == 2
    assert tokenizer.convert_ids_to_tokens(tokens.input_ids[slice(*tokens.verdict_span)]) == ["ĠAnomalous"]


def test_every_dialogue_of_the_library(tokenizer):
    """Ids are the processor's for the string with `<video>` repeated; the supervised tokens of turn k are answer k and its end."""
    continuations = verdict_continuations(tokenizer)
    checked = 0
    for prior in PRIORS.values():
        for variant in Variant:
            prefixes = set()
            for state in prior.states:
                turns = dialogue_text(prior, state, variant, "one clip")
                tokens = tokenize_dialogue(turns, tokenizer, video_tokens=4, max_positions=4096, name="sample")
                text = write_dialogue(turns, tokenizer.eos_token).text
                plain = tokenizer(text.replace("<video>", "<video>" * 4), add_special_tokens=False).input_ids
                assert tokens.input_ids == [tokenizer.bos_token_id, *plain]
                assert tokens.input_ids.count(tokenizer.bos_token_id) == 1 and len(tokens.turn) == len(tokens.input_ids)
                for number, turn in enumerate(turns, start=1):
                    places = [place for place, mark in enumerate(tokens.turn) if mark == number]
                    assert places == list(range(places[0], places[-1] + 1)) and tokens.input_ids[places[-1]] == tokenizer.eos_token_id
                    spelled = "".join(tokenizer.convert_ids_to_tokens([tokens.input_ids[place] for place in places]))
                    assert spelled.replace("Ġ", " ").replace("▁", " ") == f" {turn.answer}</s>"
                prefix = tokens.input_ids[:tokens.verdict_span[0]]
                prefixes.add(tuple(prefix))
                for verdict, continuation in continuations.items():
                    other = tokenize_dialogue(dialogue_text(prior, state, variant, "one clip", verdict), tokenizer, 4, 4096, "sample")
                    assert [*prefix, *continuation] == other.input_ids[:other.verdict_span[1]]
                checked += 1
            assert len(prefixes) == 1, "a state is known before its verdict"
    assert checked == 3 * sum(len(prior.states) for prior in PRIORS.values())


@pytest.mark.parametrize("frames, edge, patch", [(8, 224, 14), (16, 224, 14), (3, 32, 16)])
def test_the_video_takes_as_many_tokens_as_the_processor_writes(frames, edge, patch):
    """`VideoLlavaProcessor`'s own expansion of `<video>`; its method alone, since the whole processor needs torchvision."""
    if not hasattr(VideoLlavaProcessor, "replace_video_token"):
        pytest.skip("this version of transformers expands <video> within one long function")
    sizes = SimpleNamespace(patch_size=patch, num_additional_image_tokens=1, video_token="<video>")
    expansion = VideoLlavaProcessor.replace_video_token(sizes, {"pixel_values_videos": [np.zeros((frames, 3, edge, edge), np.float32)]}, 0)
    count = frames * tokens_per_frame(SimpleNamespace(image_size=edge, patch_size=patch))
    tokenizer, turns = llama_of_words(PIECES), TURNS[4]
    ours = tokenize_dialogue(turns, tokenizer, count, 8192, "sample").input_ids
    assert ours == tokenizer(write_dialogue(turns, "</s>").text.replace("<video>", expansion)).input_ids and ours.count(32001) == count


def test_bos_is_the_templates_own():
    """Where the tokenizer's template adds `<s>`, as Llama's does, the ids are those of a plain call, special tokens and all."""
    for tokenizer in (llama_of_words(PIECES), built("tiny")):
        turns = TURNS[2]
        assert tokenize_dialogue(turns, tokenizer, 1, 4096, "x").input_ids == tokenizer(write_dialogue(turns, "</s>").text).input_ids


def test_verdicts_of_several_tokens():
    found = {name: verdict_continuations(built(name)) for name in TOKENIZERS}
    assert all(set(continuations) == {Verdict.NORMAL, Verdict.ANOMALOUS} for continuations in found.values())
    assert [len(tokens) for tokens in found["tiny"].values()] == [1, 1]
    for name in ("llama", "llama, legacy", "tiny, verdicts in pieces"):
        assert min(len(tokens) for tokens in found[name].values()) > 1
    assert verdict_continuations(llama_of_words(PIECES)) == {Verdict.NORMAL: (325,), Verdict.ANOMALOUS: (320, 321)}


def test_length_of_dialogues_with_the_tiny_tokenizer():
    tokenizer = built("tiny")
    lengths = [len(tokenize_dialogue(dialogue_text(prior, state, "multi_turn", str(clip)), tokenizer, 1, 4096, "x").input_ids)
               for prior in PRIORS.values() for state in prior.states for clip in range(5)]
    assert 110 <= min(lengths) and max(lengths) <= 160


def test_a_sample_that_does_not_fit_is_refused_by_name():
    tokenizer = llama_of_words(PIECES)
    length = len(tokenize_dialogue(TURNS[4], tokenizer, 2056, 4096, "fan/test/stuck/0003").input_ids)
    assert length == sum(len(part) for pair in GOLDEN[4] for part in pair) - 3 + 2056
    assert len(tokenize_dialogue(TURNS[4], tokenizer, 2056, length, "fan/test/stuck/0003").input_ids) == length
    message = (rf"^fan/test/stuck/0003: its dialogue takes {length} positions "
               rf"\(2056 video, {length - 2056} text\), the model has {length - 1};")
    with pytest.raises(ValueError, match=message):
        tokenize_dialogue(TURNS[4], tokenizer, 2056, length - 1, "fan/test/stuck/0003")
    with pytest.raises(ValueError, match="^clip: a dialogue needs at least one video token"):
        tokenize_dialogue(TURNS[4], tokenizer, 0, length, "clip")


def test_system_sentence_stands_before_the_first_role(tokenizer):
    turns = dialogue_text(PRIORS["gear"], "single", "multi_turn", "k")
    tokens = tokenize_dialogue(turns, tokenizer, 2, 4096, "x", system=SYSTEM)
    text = write_dialogue(turns, "</s>", SYSTEM).text
    assert text.startswith(f"{SYSTEM} USER: <video>\n")
    assert tokens.input_ids == [1, *tokenizer(text.replace("<video>", "<video><video>"), add_special_tokens=False).input_ids]
    bare = tokenize_dialogue(turns, tokenizer, 2, 4096, "x")
    assert [mark for mark in tokens.turn if mark] == [mark for mark in bare.turn if mark]
    shift = len(tokens.input_ids) - len(bare.input_ids)
    assert tokens.verdict_span == tuple(place + shift for place in bare.verdict_span) and shift > 10


def test_letters_beyond_ascii_keep_the_mask_in_place(tokenizer):
    turns = [Turn("Größe — 大?", "Ein Lüfter, 90°."), Turn("Ça va?", "Verdict: Normal. Reason: 速度は一定 ✓.")]
    tokens = tokenize_dialogue(turns, tokenizer, 1, 4096, "x")
    for number, turn in enumerate(turns, start=1):
        ids = [token for token, mark in zip(tokens.input_ids, tokens.turn) if mark == number]
        assert tokenizer.decode(ids) == f" {turn.answer}</s>" and ids[-1] == 2


@pytest.mark.parametrize("turn, message", [
    (Turn("See <video>?", "Verdict: Normal. Reason: It turns."), "'<video>' stands 2 times"),
    (Turn("See </s>?", "Verdict: Normal. Reason: It turns."), "'</s>' ends the answers"),
    (Turn("See?", "Verdict: Normal. Reason: It </s> turns."), "'</s>' ends the answers"),
    (Turn("<s>See?", "Verdict: Normal. Reason: It turns."), "special token '<s>'"),
    (Turn("See <image>?", "Verdict: Normal. Reason: It turns."), "special token '<image>'"),
    (Turn("See?", "Verdict: Normal. Reason: It turns.<pad>"), "special token '<pad>'"),
    (Turn("See?", "It turns."), "holds 0 verdicts"),
])
def test_texts_that_would_break_the_format_are_refused(tokenizer, turn, message):
    with pytest.raises(ValueError, match=f"^clip 7: .*{message}"):
        tokenize_dialogue([turn], tokenizer, 2, 4096, "clip 7")


@pytest.mark.parametrize("piece, message", [
    (":▁Verdict", "covers ': Verdict', part of it in an answer"),
    (":▁V", "covers ': V', part of it in an answer"),
    ("▁Normal.", "'▁Normal.' reaches beyond the verdict's word"),
])
def test_a_tokenizer_that_merges_across_a_border_is_refused(piece, message):
    # The colon's piece must win over the word's, so the pieces that compete with it are left out.
    pieces = {word: number for word, number in PIECES.items() if not (piece.startswith(":") and word == "▁Verdict")}
    tokenizer = llama_of_words({**pieces, piece: 400})
    with pytest.raises(ValueError, match=f"^clip 7: the token .*{message}"):
        tokenize_dialogue(TURNS[1], tokenizer, 2, 4096, "clip 7")


def test_a_verdict_that_begins_like_the_other_is_refused(monkeypatch):
    monkeypatch.setattr("vlmphys.prompts.VERDICT_WORDS", {Verdict.NORMAL: "Anom", Verdict.ANOMALOUS: "Anomalous"})
    with pytest.raises(ValueError, match="one the beginning of the other"):
        verdict_continuations(llama_of_words(PIECES))


def test_tokenizers_that_cannot_serve():
    tokenizer = llama_of_words(PIECES)
    tokenizer.bos_token = None
    with pytest.raises(ValueError, match="no bos_token"):
        tokenize_dialogue(TURNS[1], tokenizer, 1, 4096, "x")
    three = Tokenizer(models.BPE({"<unk>": 0, "<s>": 1, "</s>": 2}, [], unk_token="<unk>"))
    without_video = PreTrainedTokenizerFast(tokenizer_object=three, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    with pytest.raises(ValueError, match="no '<video>' token"):
        tokenize_dialogue(TURNS[1], without_video, 1, 4096, "x")


def test_own_texts_of_a_category_go_through():
    fan = replace(load_prior("fan"), motion="The wheel of 12 blades makes 3.5 turns.")
    tokenizer = built("tiny")
    tokens = tokenize_dialogue(dialogue_text(fan, "stuck", "multi_turn", "k"), tokenizer, 1, 4096, "x")
    assert tokenizer.decode([token for token, mark in zip(tokens.input_ids, tokens.turn) if mark == 3]) == f" {fan.motion}</s>"
