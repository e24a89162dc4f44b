"""Batched, padded, cached scores and texts against the plain model: one clip at a time, no cache, no padding, and `generate`."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from vlmphys.asking import Asker
from vlmphys.dialogue import tokenize_dialogue, verdict_continuations
from vlmphys.inference import Asked, Decoding, continuation_log_probs, features_of, judge_askings, judge_batch, prefill
from vlmphys.model import ModelFacts, embed, load_model, load_tokenizer, normalise_frames, read_facts, video_features
from vlmphys.predictions import Explain, Grounding
from vlmphys.priors import known_categories, load_priors
from vlmphys.prompts import all_texts, dialogue_text
from vlmphys.records import Variant, Verdict
from vlmphys.shards import DialogueRow
from vlmphys.tiny import build_random, save_model_folder, tiny_config, train_tokenizer

pytestmark = pytest.mark.parity

FRAMES = 8
CLIPS = [("fan", "stuck"), ("gear", "anomaly_free"), ("hinge", "falloff"), ("rubber_band", "crack"), ("ball", "train"),
         ("clip", "unable_press")]


@pytest.fixture(scope="module", params=[270, 1000], ids=["verdicts in pieces", "verdicts whole"])
def model(request, tmp_path_factory):
    """A random model and its tokenizer; the smaller vocabulary splits the two verdicts into unequal numbers of tokens."""
    folder: Path = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer(all_texts(load_priors(known_categories())), vocab_size=request.param)
    config = tiny_config(len(tokenizer), image_size=32, vision_hidden=32, vision_layers=3, text_hidden=64, text_layers=3,
                         max_positions=2048)
    network = build_random(config, seed=1)
    with torch.no_grad():  # wider weights: the scores then differ from clip to clip by far more than the tolerance
        for name, weight in network.named_parameters():
            if weight.ndim > 1:
                weight.mul_(8.0)
        # A random model would write `<video>` now and then, for which the plain forward then wants features: the mean of all is never the likeliest.
        network.lm_head.weight[config.video_token_id] = network.lm_head.weight.mean(dim=0)
    save_model_folder(network, tokenizer, folder)
    return load_model(str(folder)).eval(), load_tokenizer(str(folder)), read_facts(str(folder))


def clips_of(tokenizer, facts: ModelFacts, variant: Variant):
    """Prompts of unequal length and random frames."""
    priors = load_priors(known_categories())
    prompts = []
    for category, state in CLIPS:
        turns = dialogue_text(priors[category], state, variant, f"{category}/{state}")
        tokens = tokenize_dialogue(turns, tokenizer, FRAMES * facts.tokens_per_frame, facts.max_positions, category)
        prompts.append(tokens.input_ids[:tokens.verdict_span[0]])
    size = facts.image_size
    frames_BTHWC = np.random.default_rng(0).integers(0, 256, (len(CLIPS), FRAMES, size, size, 3), dtype=np.uint8)
    return prompts, frames_BTHWC


def asked_of(tokenizer, facts: ModelFacts, variant: Variant, grounding: Grounding, describe: bool = False) -> list[Asked]:
    """What predict.py asks of the same clips, by way of their packed rows."""
    priors, asker, found = load_priors(known_categories()), Asker(tokenizer, describe), []
    for category, state in CLIPS:
        turns = dialogue_text(priors[category], state, variant, f"{category}/{state}")
        tokens = tokenize_dialogue(turns, tokenizer, FRAMES * facts.tokens_per_frame, facts.max_positions, category)
        row = DialogueRow(category, variant.value, np.array(tokens.input_ids), np.array(tokens.turn), tokens.verdict_span)
        found.append(asker.asked(row, grounding, category))
    return found


@torch.no_grad()
def plain_log_prob(network, facts, prompt, continuation, frames_THWC) -> float:
    """The model's own forward on pixels and one unpadded string: no cache, no mask, no position ids."""
    pixels = normalise_frames(torch.from_numpy(frames_THWC[None]), facts.image_mean, facts.image_std)
    ids = torch.tensor([[*prompt, *continuation]])
    logits = network(input_ids=ids, pixel_values_videos=pixels, use_cache=False).logits.double().log_softmax(-1)[0]
    return sum(logits[len(prompt) - 1 + place, token].item() for place, token in enumerate(continuation))


@torch.no_grad()
def plain_greedy(network, facts, prompt, frames_THWC, eos: int, max_new_tokens: int) -> list[int]:
    pixels = normalise_frames(torch.from_numpy(frames_THWC[None]), facts.image_mean, facts.image_std)
    ids = torch.tensor([prompt])
    out = network.generate(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values_videos=pixels, do_sample=False,
                           max_new_tokens=max_new_tokens, eos_token_id=eos, pad_token_id=facts.pad_token_id)[0, len(prompt):].tolist()
    return out[:out.index(eos)] if eos in out else out


@pytest.mark.parametrize("variant", list(Variant))
def test_scores_equal_uncached_log_probabilities(model, variant):
    network, tokenizer, facts = model
    continuations = verdict_continuations(tokenizer)
    if len(tokenizer) < 300:
        assert len(continuations[Verdict.NORMAL]) != len(continuations[Verdict.ANOMALOUS]) and len(continuations[Verdict.NORMAL]) > 1
    prompts, frames = clips_of(tokenizer, facts, variant)
    assert len({len(prompt) for prompt in prompts}) > 1, "the prompts must be ragged for this test to say anything"
    expected = [[plain_log_prob(network, facts, prompt, continuations[verdict], clip) for verdict in (Verdict.NORMAL, Verdict.ANOMALOUS)]
                for prompt, clip in zip(prompts, frames)]
    assert np.ptp([anomalous - normal for normal, anomalous in expected]) > 0.01, "the clips must differ for this test to say anything"
    for size in (len(prompts), 4, 1):
        found = []
        for start in range(0, len(prompts), size):
            found += judge_batch(network, facts, prompts[start:start + size], frames[start:start + size], continuations,
                                 tokenizer.eos_token_id, Explain.NONE)
        assert all(clip.generated is None for clip in found)
        np.testing.assert_allclose([[clip.log_normal, clip.log_anomalous] for clip in found], expected, atol=1e-4, rtol=0)
        odds = [anomalous - normal for normal, anomalous in expected]
        np.testing.assert_allclose([clip.score for clip in found], odds, atol=1e-4, rtol=0)


def with_early_end(network, tokens: list[list[int]], eos: int):
    """Swap the head's rows of `</s>` and of a token that greedy texts hold at different places: texts then end there."""
    places = {token: [text.index(token) if token in text else None for text in tokens] for text in tokens for token in text}
    token = max(places, key=lambda token: len(set(places[token])))
    with torch.no_grad():
        rows = network.lm_head.weight[[token, eos]].clone()
        network.lm_head.weight[eos], network.lm_head.weight[token] = rows[0], rows[1]


@torch.no_grad()
def mixed_verdicts(network, facts, prompts, frames) -> dict[Verdict, tuple[int, ...]]:
    """Two token sequences of unequal length of which some clips prefer the one and some the other."""
    pixels = normalise_frames(torch.from_numpy(frames), facts.image_mean, facts.image_std)
    cached = prefill(network, prompts, video_features(network, pixels), facts.pad_token_id)
    tokens = range(10, 260)
    single_BV = torch.stack([continuation_log_probs(network, cached, [token]) for token in tokens], dim=1)
    generator = np.random.default_rng(0)
    for _ in range(100):
        pair = generator.integers(10, 260, 2).tolist()
        wins_BV = single_BV >= continuation_log_probs(network, cached, pair)[:, None]
        mixed = (wins_BV.any(dim=0) & ~wins_BV.all(dim=0)).nonzero()
        if len(mixed):
            return {Verdict.NORMAL: tuple(pair), Verdict.ANOMALOUS: (tokens[int(mixed[0])],)}
    raise AssertionError("no sequences found on which the clips disagree")


@pytest.mark.parametrize("explain", [Explain.ALL, Explain.ANOMALOUS])
def test_texts_equal_generate(model, explain):
    network, tokenizer, facts = model
    eos = tokenizer.eos_token_id
    prompts, frames = clips_of(tokenizer, facts, Variant.MULTI_TURN)
    continuations = mixed_verdicts(network, facts, prompts, frames)
    before = network.lm_head.weight.detach().clone()
    try:
        first = judge_batch(network, facts, prompts, frames, continuations, eos, Explain.ALL, max_new_tokens=24)
        with_early_end(network, [clip.generated for clip in first], eos)
        found = judge_batch(network, facts, prompts, frames, continuations, eos, explain, max_new_tokens=24)
        for prompt, clip_frames, clip in zip(prompts, frames, found):
            if explain.wants(clip.verdict):
                assert clip.generated == plain_greedy(network, facts, [*prompt, *continuations[clip.verdict]], clip_frames, eos, 24)
            else:
                assert clip.generated is None
        assert {clip.verdict for clip in found} == {Verdict.NORMAL, Verdict.ANOMALOUS}
        if explain is Explain.ALL:
            assert len({len(clip.generated) for clip in found}) > 1, "texts of unequal length are needed for this test to say anything"
    finally:
        with torch.no_grad():
            network.lm_head.weight.copy_(before)


def check_against_generate(network, facts, asked: Asked, clip, frames_THWC, decoding: Decoding) -> None:
    """All that was written and scored of a clip, by the model's own `generate` and forward on the growing string, piece by piece."""
    string, written = list(asked.pieces[0]), []
    for number, piece in enumerate(asked.pieces[1:], start=1):
        answer = plain_greedy(network, facts, string, frames_THWC, decoding.eos_token_id, decoding.max_new_tokens)
        if asked.leads and number == len(asked.pieces) - 1:
            ends = [end for end in range(len(asked.lead), len(answer) + 1) if tuple(answer[end - len(asked.lead):end]) == asked.lead]
            answer = answer[:ends[0] - len(asked.lead)] if ends else answer
            written.append([*answer, *piece])
        else:
            written.append(answer)
        string += [*answer, *piece]
    if written and not asked.leads:
        written.append(list(asked.lead))
    assert clip.written == (tuple(written) if written else None)
    expected = [plain_log_prob(network, facts, string, decoding.continuations[verdict], frames_THWC)
                for verdict in (Verdict.NORMAL, Verdict.ANOMALOUS)]
    np.testing.assert_allclose([clip.log_normal, clip.log_anomalous], expected, atol=1e-4, rtol=0)
    string += decoding.continuations[clip.verdict]
    assert clip.generated == plain_greedy(network, facts, string, frames_THWC, decoding.eos_token_id, decoding.max_new_tokens)
    if asked.describe:
        string += [*clip.generated, *asked.describe]
        assert clip.description == plain_greedy(network, facts, string, frames_THWC, decoding.eos_token_id, decoding.max_new_tokens)


def judged_with_early_ends(network, facts, frames, asked: list[Asked], decoding: Decoding):
    """What is said of the clips by a model whose texts end at different places, and how long the answers are; undone by the caller."""
    features = features_of(network, facts, frames)
    first = judge_askings(network, facts, features, [asked], decoding)[0]
    with_early_end(network, [clip.written[0] if clip.written else clip.generated for clip in first], decoding.eos_token_id)
    return judge_askings(network, facts, features, [asked], decoding)[0]


@pytest.mark.parametrize(("variant", "grounding"), [(Variant.MULTI_TURN, Grounding.GENERATE), (Variant.SINGLE_TURN, Grounding.GENERATE),
                                                    (Variant.MULTI_TURN, Grounding.PRIOR), (Variant.NO_PHYSICS, Grounding.NONE)])
def test_written_answers_scores_and_descriptions_are_the_plain_models(model, variant, grounding):
    network, tokenizer, facts = model
    decoding = Decoding(verdict_continuations(tokenizer), tokenizer.eos_token_id, Explain.ALL, max_new_tokens=12)
    _, frames = clips_of(tokenizer, facts, variant)
    asked = asked_of(tokenizer, facts, variant, grounding, describe=True)
    assert len(asked[0].pieces) == (1 if grounding is not Grounding.GENERATE else 4 if variant is Variant.MULTI_TURN else 2)
    before = network.lm_head.weight.detach().clone()
    try:
        found = judged_with_early_ends(network, facts, frames, asked, decoding)
        for one, clip, frames_THWC in zip(asked, found, frames):
            check_against_generate(network, facts, one, clip, frames_THWC, decoding)
        if grounding is Grounding.GENERATE:
            assert len({len(clip.written[0]) for clip in found}) > 1, "answers of unequal length are needed for this test to say anything"
    finally:
        with torch.no_grad():
            network.lm_head.weight.copy_(before)


def test_an_answer_stops_where_the_model_comes_to_the_verdict_itself(model):
    network, tokenizer, facts = model
    decoding = Decoding(verdict_continuations(tokenizer), tokenizer.eos_token_id, Explain.ALL, max_new_tokens=12)
    _, frames = clips_of(tokenizer, facts, Variant.SINGLE_TURN)
    asked = asked_of(tokenizer, facts, Variant.SINGLE_TURN, Grounding.GENERATE)
    features = features_of(network, facts, frames)
    texts = [clip.written[0] for clip in judge_askings(network, facts, features, [asked], decoding)[0]]
    pairs = {tuple(text[place:place + 2]) for text in texts for place in range(2, 8)}
    stops = {pair: [any(tuple(text[at:at + 2]) == pair for at in range(11)) for text in texts] for pair in pairs}
    lead = next(pair for pair, met in stops.items() if any(met) and not all(met))
    asked = [Asked((one.pieces[0], lead), lead, leads=True) for one in asked]
    for one, clip, frames_THWC in zip(asked, judge_askings(network, facts, features, [asked], decoding)[0], frames):
        check_against_generate(network, facts, one, clip, frames_THWC, decoding)


def test_ways_that_share_the_video_say_what_each_says_alone(model, monkeypatch):
    network, tokenizer, facts = model
    decoding = Decoding(verdict_continuations(tokenizer), tokenizer.eos_token_id, Explain.ANOMALOUS, max_new_tokens=6)
    _, frames = clips_of(tokenizer, facts, Variant.MULTI_TURN)
    ways = [asked_of(tokenizer, facts, variant, grounding) for variant, grounding in
            ((Variant.MULTI_TURN, Grounding.GENERATE), (Variant.SINGLE_TURN, Grounding.PRIOR), (Variant.NO_PHYSICS, Grounding.NONE))]
    features = features_of(network, facts, frames)
    embedded: list[int] = []

    def counted(network, ids_BL, features):
        embedded.append(ids_BL.shape[1])
        return embed(network, ids_BL, features)
    with monkeypatch.context() as patched:
        patched.setattr("vlmphys.inference.embed", counted)
        together = judge_askings(network, facts, features, ways, decoding)
    assert len(embedded) == 1, "the video must be read once"
    for asked, found in zip(ways, together, strict=True):
        for one, alone in zip(found, judge_askings(network, facts, features, [asked], decoding)[0], strict=True):
            assert (one.written, one.generated) == (alone.written, alone.generated)
            np.testing.assert_allclose([one.log_normal, one.log_anomalous], [alone.log_normal, alone.log_anomalous], atol=1e-4, rtol=0)


def test_the_tower_sees_each_clip_once(model):
    network, tokenizer, facts = model
    prompts, frames = clips_of(tokenizer, facts, Variant.MULTI_TURN)
    seen: list[int] = []
    handle = network.model.video_tower.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    try:
        judge_batch(network, facts, prompts, frames, verdict_continuations(tokenizer), tokenizer.eos_token_id, max_new_tokens=4)
    finally:
        handle.remove()
    assert sum(seen) == len(prompts) * FRAMES


def test_an_explanation_stops_where_the_models_positions_end(model):
    network, tokenizer, facts = model
    prompts, frames = clips_of(tokenizer, facts, Variant.NO_PHYSICS)
    continuations = verdict_continuations(tokenizer)
    for positions in (max(map(len, prompts)) + 9, max(map(len, prompts)) + 3):
        tight = ModelFacts(**{**vars(facts), "max_positions": positions})
        found = judge_batch(network, tight, prompts, frames, continuations, eos_token_id=-1, explain=Explain.ALL, max_new_tokens=50)
        room = [positions - len(prompt) - len(continuations[clip.verdict]) for prompt, clip in zip(prompts, found)]
        assert len(set(room)) > 1 and [len(clip.generated) for clip in found] == [min(50, max(0, left)) for left in room]


def test_bf16_scores_are_finite_and_distinct(model):
    """The head runs in float32 on bf16 states: padded rows stay finite, and clips that differ do not tie."""
    network, tokenizer, facts = model
    prompts, frames = clips_of(tokenizer, facts, Variant.MULTI_TURN)
    continuations = verdict_continuations(tokenizer)
    half = copy.deepcopy(network).to(torch.bfloat16)
    found = judge_batch(half, facts, prompts, frames, continuations, tokenizer.eos_token_id, max_new_tokens=4)
    scores = [clip.score for clip in found]
    assert np.isfinite(scores).all() and len(set(scores)) == len(scores)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
def test_cuda_gives_the_cpus_scores(model):
    network, tokenizer, facts = model
    prompts, frames = clips_of(tokenizer, facts, Variant.MULTI_TURN)
    continuations = verdict_continuations(tokenizer)
    expected = judge_batch(network, facts, prompts, frames, continuations, tokenizer.eos_token_id, max_new_tokens=8)
    found = judge_batch(copy.deepcopy(network).to("cuda"), facts, prompts, frames, continuations, tokenizer.eos_token_id, max_new_tokens=8)
    np.testing.assert_allclose([clip.score for clip in found], [clip.score for clip in expected], atol=1e-3, rtol=0)
    assert [clip.generated for clip in found] == [clip.generated for clip in expected]
