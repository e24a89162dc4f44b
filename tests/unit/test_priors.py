"""The priors' files: complete, without a verdict before the verdict, and clear about what is wrong with a user's own file."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from phys_ad import ANOMALIES

from vlmphys.leak_words import leaks
from vlmphys.priors import (KINDS, PARTS, PRIORS_FOLDER, StateTexts, duplicates, few_texts, known_categories, lint, load_prior, load_priors,
                            prior_text, priors_sha256, read_prior)
from vlmphys.records import nearest_state

pytestmark = pytest.mark.unit

GOOD = """\
component: A pump has a pipe and a wheel.
dynamic: The motor turns the wheel.
motion: The wheel turns and water flows.
states:
  anomaly_free:
    descriptions: [Water flows.]
    explanations: [The wheel pushes the water.]
  blocked:
    descriptions: [No water flows.]
    explanations: [Dirt blocks the pipe.]
"""


def write(folder, text, name="pump.yaml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_every_category_has_every_state():
    found = {category: set(prior.states) - {"anomaly_free"} for category, prior in load_priors(known_categories()).items()}
    assert {category: found[category] for category in ANOMALIES} == {category: set(anomalies) for category, anomalies in ANOMALIES.items()}
    assert all("anomaly_free" in prior.states for prior in load_priors(ANOMALIES).values())


def test_priors_are_written_as_they_are_read():
    files = sorted(PRIORS_FOLDER.glob("*.yaml"))
    assert [prior_text(read_prior(path)) for path in files] == [path.read_text() for path in files] and len(files) == len(ANOMALIES)


def test_library_is_clean_and_its_texts_are_short():
    priors = load_priors(known_categories())
    assert [problem for prior in priors.values() for problem in lint(prior)] == []
    assert duplicates(priors) == []
    checked = 0
    for prior in priors.values():
        for part in PARTS:
            assert len(getattr(prior, part).split()) <= 16, getattr(prior, part)
        for texts in prior.states.values():
            for text in texts.explanations:
                assert len(text.split()) <= 18 and text.endswith("."), text
                assert not leaks(text, []), f"the verdict's form is added elsewhere: {text}"
                checked += 1
            assert all(text.endswith(".") for text in texts.descriptions)
    assert checked >= 5 * 69


@pytest.mark.parametrize("text, anomalies, expected", [
    ("The hub never vibrates.", ["vibrate"], ["vibrates"]),
    ("No vibration is seen.", ["vibrate"], ["vibration"]),
    ("It moves as normal.", [], ["normal"]),
    ("Nothing Abnormal.", [], ["Abnormal"]),
    ("Its angle is not limited, only angle-limited parts are.", ["angle_limited"], ["angle-limited"]),
    ("The leaf opens to its full angle.", ["angle_limited", "unfull"], []),
    ("The ball never leaks or jams.", ["leak", "jam"], ["leaks", "jams"]),
    ("It is not unstuck.", ["stuck"], []),
    ("The pressed key lights.", ["Unpress", "no_light"], []),
])
def test_leaks(text, anomalies, expected):
    assert leaks(text, anomalies) == expected


def test_lint_finds_what_spoils_an_experiment():
    fan = load_prior("fan")
    assert any("motion names 'vibrates'" in problem for problem in lint(replace(fan, motion="The hub vibrates.")))
    asking = replace(fan, questions={"dynamic": ("Is it normal?",)})
    assert any("questions.dynamic names 'normal'" in problem for problem in lint(asking))
    twice = fan.states["stuck"].explanations[0]
    uneven = StateTexts(fan.states["uneven"].descriptions, (*fan.states["uneven"].explanations, twice.upper()))
    repeating = replace(fan, states={**fan.states, "uneven": uneven})
    assert any("repeats fan: states.stuck.explanations" in problem for problem in lint(repeating))
    few = StateTexts(fan.states["stuck"].descriptions[:4], fan.states["stuck"].explanations)
    fewer = replace(fan, states={**fan.states, "stuck": few})
    assert lint(fewer) == [], "few texts are no fault"
    assert few_texts(fewer) == ["fan: states.stuck.descriptions has 4 of the 5 or more texts that are wanted"] and few_texts(fan) == []


def test_duplicates_across_categories_are_found():
    priors = load_priors(["fan", "gear"])
    copied = replace(priors["gear"], motion=priors["fan"].motion)
    assert len(duplicates({**priors, "gear": copied})) == 1


def test_unknown_category_offers_the_nearest():
    with pytest.raises(ValueError, match=r"'rubberband' \(did you mean 'rubber_band'\?\).*Known: ball.*--priors"):
        load_priors(["fan", "rubberband"])
    with pytest.raises(ValueError, match="'../fan'"):
        load_prior("../fan")


def test_state_texts_by_folder_name():
    fan = load_prior("fan")
    assert fan.texts_of("train") is fan.texts_of("anomaly_free")
    with pytest.raises(ValueError, match=r"'fan' has no texts for the state 'stuk' \(did you mean 'stuck'\?\); it has: .*fan\.yaml"):
        fan.texts_of("stuk")
    with pytest.raises(ValueError, match="--priors"):
        fan.texts_of("stuk")


def test_a_state_without_texts_is_never_answered_with_the_opposite_one():
    known = ("anomaly_free", "stuck")
    assert nearest_state("anomalous", known) == nearest_state("anomaly", known) == "" and "anomaly_free" in nearest_state("anomaly_fre", known)
    assert nearest_state("stuk", known) == " (did you mean 'stuck'?)"
    with pytest.raises(ValueError, match="'fan' has no texts for the state 'anomalous'; it has: "):
        load_prior("fan").texts_of("anomalous")


def test_a_user_adds_a_category_with_one_file(tmp_path):
    write(tmp_path, GOOD)
    assert "pump" in known_categories(tmp_path) and "pump" not in known_categories()
    priors = load_priors(["pump", "fan"], extra_dir=tmp_path)
    assert list(priors) == ["fan", "pump"] and priors["pump"].states["blocked"].explanations == ("Dirt blocks the pipe.",)
    write(tmp_path, GOOD, "fan.yaml")
    assert load_prior("fan", tmp_path).motion == "The wheel turns and water flows."
    with pytest.raises(ValueError, match="priors folder .*nowhere does not exist"):
        load_priors(["fan"], extra_dir=tmp_path / "nowhere")
    with pytest.raises(ValueError, match=re.escape(f"priors folder {tmp_path / 'fan.yaml'} is a file: give its folder, {tmp_path}")):
        load_priors(["fan"], extra_dir=tmp_path / "fan.yaml")


def test_questions_of_a_file_replace_the_defaults(tmp_path):
    prior = read_prior(write(tmp_path, GOOD + "questions:\n  motion:\n  - How does the {category} move?\n"))
    assert prior.questions == {"motion": ("How does the {category} move?",)}


@pytest.mark.parametrize("old, new, message", [
    ("motion:", "motoin:", r"unknown key 'motoin' in line 3 \(did you mean 'motion'\?\).*'motion' is missing"),
    ("motion: The wheel turns and water flows.\n", "", "'motion' is missing"),
    ("A pump has a pipe", "A pump: it has a pipe", "line 1: broken YAML"),
    ("  blocked:", "\tblocked:", "line 8: broken YAML"),
    ("[Dirt blocks the pipe.]", "[Dirt blocks the pipe.", "line 1[01]: broken YAML"),
    ("    explanations: [Dirt blocks the pipe.]\n", "", r"states\.blocked\.explanations is missing \(line 9\)"),
    ("explanations: [Dirt", "reasons: [Dirt", r"unknown key 'reasons' in line 10"),
    ("  anomaly_free:", "  normal:", "no 'anomaly_free'"),
    ("  blocked:", "  train:", "states has 'train'"),
    ("  blocked:", "  anomaly_free:", r"'anomaly_free' stands twice \(again in line 8\)"),
    ("[Dirt blocks the pipe.]", "Dirt blocks the pipe.", r"states\.blocked\.explanations \(line 10\): a list of at least one text"),
    ("[Dirt blocks the pipe.]", "[]", r"states\.blocked\.explanations \(line 10\): a list of at least one text"),
    ("[Dirt blocks the pipe.]", "[yes]", r"states\.blocked\.explanations \(line 10\): one text is expected"),
    ("[Dirt blocks the pipe.]", "[Dirt is there, so the pipe is blocked.]",
     r"states\.blocked\.explanations \(line 10\): 'Dirt is there' does not begin .*does it need quotes\?.*'so the pipe is blocked\.'"),
    ("The motor turns the wheel.", "the motor turns the wheel.", r"dynamic \(line 2\): 'the motor turns the wheel\.' does not begin"),
    ("[Dirt blocks the pipe.]", "[Dirt blocks the pipe]", "'Dirt blocks the pipe' does not begin"),
    ("[Dirt blocks the pipe.]", "['']", r"states\.blocked\.explanations \(line 10\) is empty"),
    ("[Dirt blocks the pipe.]", "['Dirt: see <video>.']", r"\(line 10\) holds '<video>'"),
    ("[Dirt blocks the pipe.]", "['Verdict: Normal. No dirt.']", r"\(line 10\) holds 'Verdict:'"),
    ("[Dirt blocks the pipe.]", "!!python/object/apply:os.getcwd []", r"states\.blocked\.explanations \(line 10\)"),
    ("states:\n", "questions: {motion: ['Does the {part} turn?']}\nstates:\n", r"questions\.motion \(line 4\): '\{part\}' is no slot"),
    ("states:\n", "questions: {turn3: ['So?']}\nstates:\n", "unknown key 'turn3' in line 4"),
    (GOOD, "", "a mapping of names to values is expected"),
    (GOOD, "- fan\n", r"\(line 1\): a mapping of names to values is expected"),
    (GOOD, "component: \x07\n", "broken YAML"),
])
def test_a_broken_file_is_refused_with_its_place(tmp_path, old, new, message):
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ValueError, match=message) as error:
        read_prior(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("text", ["2 wheels turn!", "\"Stuck\" is what one calls it.", "Does it turn (or not?)", "泵转动。", "Él gira."])
def test_sentences_of_other_kinds_pass(tmp_path, text):
    path = write(tmp_path, GOOD.replace("[Dirt blocks the pipe.]", f"\n    - '{text}'"))
    assert read_prior(path).states["blocked"].explanations == (text,)


def test_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "pump.yaml"
    path.write_bytes(b"component: \xff\xfe\n")
    with pytest.raises(ValueError, match=re.escape(f"prior {path} is not UTF-8")):
        read_prior(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_prior(tmp_path / "none.yaml")


def test_digest_follows_the_texts_and_nothing_else(tmp_path):
    priors = load_priors(["fan", "hinge"])
    digest = priors_sha256(priors)
    assert priors_sha256({name: priors[name] for name in ("hinge", "fan")}) == digest
    (tmp_path / "fan.yaml").write_bytes(open(priors["fan"].source, "rb").read())
    assert priors_sha256(load_priors(["fan", "hinge"], tmp_path)) == digest
    assert priors_sha256({"fan": priors["fan"]}) != digest
    for changed in (replace(priors["fan"], motion="It turns."), replace(priors["fan"], questions={"motion": ("How?",)}),
                    replace(priors["fan"], states={**priors["fan"].states, "stuck": StateTexts(("a",) * len(KINDS), ("b",))})):
        assert priors_sha256({**priors, "fan": changed}) != digest
