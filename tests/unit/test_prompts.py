"""The dialogues' words: no label before the verdict, paraphrases that no state decides, one strict form of the verdict."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest

from vlmphys import prompts
from vlmphys.leak_words import leaks
from vlmphys.priors import PARTS, known_categories, load_prior, load_priors
from vlmphys.prompts import Turn, all_texts, dialogue_text, parse_verdict, questions_of, reason_of, rendered, verdict_answer, verdict_chars
from vlmphys.records import Variant, Verdict

pytestmark = pytest.mark.unit
PRIORS = load_priors(known_categories())


def test_default_questions_are_short_and_give_nothing_away():
    checked = 0
    for prior in PRIORS.values():
        anomalies = [state for state in prior.states if state != "anomaly_free"]
        for key in prompts.QUESTIONS:
            questions = questions_of(prior, key)
            assert len(set(questions)) == 3
            for question in questions:
                assert "{" not in question and "_" not in question
                assert len(question.split()) <= (20 if key == "single_turn" else 11), question
                if key in PARTS:
                    assert leaks(question, anomalies) == [], question
                    checked += 1
    assert checked == 9 * len(PRIORS)
    assert "What parts does this rubber band have?" in questions_of(PRIORS["rubber_band"], "component")


def test_variants():
    fan = PRIORS["fan"]
    multi = dialogue_text(fan, "stuck", Variant.MULTI_TURN, "fan/test/stuck/0003")
    assert [turn.answer for turn in multi[:3]] == [fan.component, fan.dynamic, fan.motion]
    assert multi[3].answer.startswith("Verdict: Anomalous. Reason: ")
    assert multi[3].answer.removeprefix("Verdict: Anomalous. Reason: ") in fan.states["stuck"].explanations
    assert [turn.question in questions_of(fan, key) for turn, key in zip(multi, (*PARTS, "verdict"))] == [True] * 4
    (single,) = dialogue_text(fan, "stuck", "single_turn", "fan/test/stuck/0003")
    assert single.answer == f"{fan.component} {fan.dynamic} {fan.motion} {multi[3].answer}"
    (bare,) = dialogue_text(fan, "train", "no_physics", "fan/train/0003")
    assert bare.answer.startswith("Verdict: Normal. Reason: ") and bare.question in questions_of(fan, "verdict")
    assert reason_of(bare.answer) in fan.states["anomaly_free"].explanations


@pytest.mark.parametrize("variant", list(Variant))
def test_nothing_before_the_verdict_depends_on_the_state(variant):
    for prior in PRIORS.values():
        for clip in range(20):
            before = set()
            for state in (*prior.states, "train"):
                turns = dialogue_text(prior, state, variant, f"clip {clip}")
                start, _ = verdict_chars(turns[-1].answer)
                before.add((*turns[:-1], turns[-1].question, turns[-1].answer[:start]))
            assert len(before) == 1


def test_paraphrases_are_spread_evenly_in_every_state_and_differ_between_clips():
    for state in ("anomaly_free", "stuck"):
        dialogues = [dialogue_text(PRIORS["fan"], state, "multi_turn", f"fan/test/{state}/{number:04d}") for number in range(600)]
        for turn in range(4):
            counts = Counter(dialogue[turn].question for dialogue in dialogues)
            assert len(counts) == 3 and all(150 < count < 250 for count in counts.values()), counts
        reasons = Counter(reason_of(dialogue[3].answer) for dialogue in dialogues)
        assert set(reasons) == set(PRIORS["fan"].states[state].explanations) and min(reasons.values()) > 80
        # The questions of one clip's turns are picked apart from each other.
        assert len({tuple(turn.question for turn in dialogue) for dialogue in dialogues}) == 81
    assert dialogue_text(PRIORS["fan"], "stuck", "multi_turn", "a") == dialogue_text(PRIORS["fan"], "stuck", "multi_turn", "a")


def test_override_changes_the_verdict_alone():
    (true,) = dialogue_text(PRIORS["clip"], "unable_press", "no_physics", "k")
    (other,) = dialogue_text(PRIORS["clip"], "unable_press", "no_physics", "k", verdict_override=Verdict.NORMAL)
    assert other == Turn(true.question, true.answer.replace("Anomalous", "Normal"))
    with pytest.raises(ValueError, match="cannot be written: allowed are normal, anomalous"):
        dialogue_text(PRIORS["clip"], "unable_press", "no_physics", "k", verdict_override=Verdict.UNPARSED)


def test_bad_input():
    with pytest.raises(ValueError, match="no texts for the state 'jam'"):
        dialogue_text(PRIORS["fan"], "jam", "multi_turn", "k")
    with pytest.raises(ValueError, match="two_turn"):
        dialogue_text(PRIORS["fan"], "stuck", "two_turn", "k")


def test_own_questions_of_a_category_are_asked():
    fan = replace(PRIORS["fan"], questions={"motion": ("How does the {category} turn?",)})
    assert dialogue_text(fan, "stuck", "multi_turn", "k")[2].question == "How does the fan turn?"


@pytest.mark.parametrize("text, expected", [
    (" Verdict: Anomalous. Reason: The shaft is stuck.", "anomalous"),
    ("A fan has blades. Verdict: Normal. Reason: It turns.", "normal"),
    ("Verdict: anomalous", "anomalous"),
    ("verdict:Normal.", "normal"),
    ("Verdict: Normal", "normal"),
    ("Verdict: Normal. So again, Verdict: Normal.", "normal"),
    ("Verdict: Normal. Verdict: Anomalous.", "unparsed"),
    ("Verdict: Normal. Verdict: unclear.", "unparsed"),
    ("Verdict: Normal or anomalous?", "unparsed"),
    ("Verdict: Normal/Anomalous.", "unparsed"),
    ("Verdict: not Normal.", "unparsed"),
    ("Verdict: Normally it turns.", "unparsed"),
    ("Verdict: Abnormal.", "unparsed"),
    ("Reason: it looks normal.", "unparsed"),
    ("", "unparsed"),
])
def test_parse_verdict(text, expected):
    assert parse_verdict(text) is Verdict(expected)


def test_every_answer_parses_to_the_verdict_of_its_state():
    count = 0
    for prior in PRIORS.values():
        for state in prior.states:
            for variant in Variant:
                answer = dialogue_text(prior, state, variant, "k")[-1].answer
                assert parse_verdict(answer) is (Verdict.NORMAL if state == "anomaly_free" else Verdict.ANOMALOUS)
                start, end = verdict_chars(answer)
                assert answer[start:end] == (" Normal" if state == "anomaly_free" else " Anomalous") and answer[:start].endswith("Verdict:")
                count += 1
    assert count == 3 * sum(len(prior.states) for prior in PRIORS.values()) >= 3 * 28


@pytest.mark.parametrize("answer, count", [("It turns.", 0), ("Verdict: Normal.", 0), ("Verdict: normal. Reason: x", 0),
                                           ("Verdict: Normal. Reason: x Verdict: Anomalous. Reason: y", 2)])
def test_verdict_chars_wants_exactly_one_verdict(answer, count):
    with pytest.raises(ValueError, match=f"holds {count} verdicts"):
        verdict_chars(answer)


def test_reason_of():
    assert reason_of(verdict_answer(Verdict.NORMAL, "It turns.")) == "It turns."
    assert reason_of("Verdict: Normal.") == ""


def test_rendered_is_the_published_format():
    assert rendered(Turn("Why?", "So."), with_video=True) == "USER: <video>\nWhy? ASSISTANT:"
    assert rendered(Turn("Why {x}?", "So."), with_video=False) == "USER: Why {x}? ASSISTANT:"


def test_prompt_ids_name_the_exact_words():
    assert set(prompts.QUESTIONS) < set(prompts.PROMPT_IDS) and len(set(prompts.PROMPT_IDS.values())) == len(prompts.PROMPT_IDS)
    assert all(re.fullmatch(rf"{name}-[0-9a-f]{{8}}", number) for name, number in prompts.PROMPT_IDS.items())


def test_all_texts_hold_all_that_a_dialogue_can_say():
    texts = all_texts(PRIORS)
    known = set(texts)
    assert len(known) == len(texts) and texts == all_texts(dict(PRIORS))
    for prior in PRIORS.values():
        for state in prior.states:
            for variant in Variant:
                for clip in range(30):
                    for turn in dialogue_text(prior, state, variant, f"{clip}"):
                        assert turn.question in known and turn.answer in known
    assert {load_prior("gear").component, PRIORS["ball"].states["leak"].descriptions[0]} < known
    assert any(text.startswith("USER: ") and " ASSISTANT: Verdict: Anomalous. Reason: " in text for text in texts)


def test_vocabulary_stays_small():
    words = {word for text in all_texts({name: PRIORS[name] for name in sorted(PRIORS)[:8]}) for word in re.findall(r"\w+", text)}
    assert 100 < len(words) < 400
