"""Questions about motion: answers that a hand can check, and no verdict anywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vlmphys.mechanisms import known_mechanisms, load_mechanism
from vlmphys.mechanisms.parts import Part, turning
from vlmphys.pretrain import questions
from vlmphys.pretrain.language import IGNORE, DialogueWriter
from vlmphys.pretrain.pool import MAX_PARTS, build_pool, part_place
from vlmphys.pretrain.tower import BINS, cosine_rate, soft_bins
from vlmphys.priors import load_priors
from vlmphys.prompts import all_texts
from vlmphys.tiny import train_tokenizer

pytestmark = pytest.mark.unit

BLADE, JAW = turning("blade", "blade"), Part("jaw", "jaw", 0.0, 2.0)


def test_places_are_shares_of_a_turn_or_of_the_range():
    assert part_place(BLADE, np.array([0.0, np.pi, 2 * np.pi, 5 * np.pi])).tolist() == pytest.approx([0.0, 0.5, 0.0, 0.5])
    assert part_place(JAW, np.array([-1.0, 0.0, 1.0, 2.0, 3.0])).tolist() == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_answers_about_a_steady_turn():
    places = np.mod(np.arange(8) * 0.25 + 0.9, 1.0)
    assert questions.steps(BLADE, places) == "18 18 18 18 18 18 18"
    assert questions.trace(BLADE, places) == "21 3 9 15 21 3 9 15"
    assert questions.steady(BLADE, places) == "It is steady."
    assert questions.side(BLADE, places) == "To the right."
    assert questions.side(BLADE, places[::-1]) == "To the left."
    assert questions.moves(BLADE, places) == "All the time."


def test_answers_about_a_turn_that_stops_or_is_uneven():
    stopped = np.array([0.0, 0.2, 0.4, 0.5, 0.5, 0.5, 0.5, 0.5])
    assert questions.steady(BLADE, stopped) == "It stops."
    assert questions.moves(BLADE, stopped) == "Part of the time, 3 steps."
    assert questions.steady(BLADE, np.full(8, 0.3)) == "It rests."
    assert questions.steady(BLADE, np.cumsum([0, 0.05, 0.3, 0.05, 0.3, 0.05, 0.3, 0.05]) % 1) == "It is uneven."


def test_answers_about_a_part_that_goes_and_comes_back():
    places = np.array([0.0, 0.25, 0.5, 1.0, 1.0, 0.5, 0.25, 0.0])
    assert questions.back(JAW, places) == "It comes back."
    assert questions.back(JAW, np.maximum.accumulate(places)) == "It stays away."
    assert questions.back(JAW, np.zeros(8)) == "It does not move."
    assert questions.far(JAW, places) == "23 23 0"
    assert questions.steps(JAW, places) == "15 15 18 12 6 9 9"
    assert questions.shake(JAW, places) == "It does not shake."
    assert questions.shake(JAW, np.array([0.5, 0.8, 0.3, 0.8, 0.4, 0.7, 0.5, 0.6])) == "It shakes."
    assert questions.moving_parts((JAW, BLADE), np.stack([places, np.zeros(8)], 1)) == "The jaw."


def test_no_question_or_answer_holds_a_verdict():
    categories = known_mechanisms()
    texts = questions.vocabulary(categories, {category: load_mechanism(category).PARTS for category in categories})
    assert len(texts) > 100
    assert not [text for text in texts if any(word in text.lower() for word in ("normal", "anomal", "verdict", "fault", "wrong", "stuck"))]


def test_the_tokenizer_writes_every_number_as_one_token_and_knows_all_words():
    categories = known_mechanisms()
    texts = all_texts(load_priors(categories)) + questions.vocabulary(categories, {category: load_mechanism(category).PARTS for category in categories})
    tokenizer = train_tokenizer(texts, 1200)
    assert all(len(tokenizer.tokenize(f" {number}")) == 1 for number in range(questions.BINS + 1))
    writer = DialogueWriter(tokenizer, ["The blade turns."], 4, tokenizer.convert_tokens_to_ids("<video>"))
    ids, labels = writer.write([("What is shown?", "A fan."), ("Does it move?", "No.")])
    assert tokenizer.decode(ids) == "<s>USER: <video><video><video><video>\nWhat is shown? ASSISTANT: A fan.</s>USER: Does it move? ASSISTANT: No.</s>"
    told = [token for token, label in zip(ids, labels) if label != IGNORE]
    assert tokenizer.decode(told) == " A fan.</s> No.</s>"
    assert [label for label in labels if label != IGNORE] == told


def test_soft_bins_close_in_a_circle_for_a_turn_only():
    targets = soft_bins(torch.tensor([[0.001, 0.001]]), torch.tensor([[True, False]]))
    assert targets.shape == (1, 2, BINS)
    assert targets.sum(-1).allclose(torch.ones(1, 2))
    assert targets[0, 0, -1] > 0.1 > 1e-3 > targets[0, 1, -1]


def test_the_rate_warms_up_and_falls():
    rates = [cosine_rate(step, 100, 1.0) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and max(rates) == pytest.approx(1.0) and rates[-1] < 0.02


def test_a_pool_is_the_same_for_the_same_seed_and_holds_what_its_parts_are():
    first, again, other = (build_pool(["fan", "clip"], 6, 32, seed, workers=1) for seed in (3, 3, 4))
    assert (first.frames_NTHWC == again.frames_NTHWC).all() and np.array_equal(first.places_NTP, again.places_NTP, equal_nan=True)
    assert (first.frames_NTHWC != other.frames_NTHWC).any()
    assert first.frames_NTHWC.shape == (6, 8, 32, 32, 3) and first.places_NTP.shape == (6, 8, MAX_PARTS)
    assert first.category_N.tolist() == [0, 1, 0, 0, 1, 0]
    assert np.isnan(first.places_NTP[1, :, 2:]).all() and not np.isnan(first.places_NTP[1, :, :2]).any()
