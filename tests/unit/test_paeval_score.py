"""PAEval: the published files as they are, both aggregations, and the command."""

from __future__ import annotations

import importlib.util
import json
import sys

import pytest
from chat_server import ChatStub

from vlmphys.judge_replies import Reading
from vlmphys.paeval_score import aggregate, read_candidates, read_library, read_raw_replies
from vlmphys.priors import load_prior

pytestmark = pytest.mark.unit

# As the benchmark's own files: `descrip` where its scripts read `describ`, replies as a judge wrote them.
RAW = {"fan": {"descrip": {"anomaly_free": ["0.35", "1", "0.85 (out of 1.0)"], "stuck": ["85%"]},
               "explain": {"anomaly_free": ["0.9/1.0", "0.5", "10", ""], "stuck": ["0.1"]}},
       "gear": {"descrip": {"stuck": ["0.2"]}, "explain": {"stuck": ["high"], "single": ["0.4"]}}}
LIBRARY = {"fan": {"description_label": {"anomaly_free": ["It turns."], "stuck": ["It stands still.", "It stops."]},
                   "explanation_label": {"anomaly_free": ["The motor turns it."], "stuck": ["The shaft is blocked."]}}}


def written(path, value):
    path.write_text(json.dumps(value))
    return path


def call(monkeypatch, repository, *arguments: object) -> int:
    spec = importlib.util.spec_from_file_location("paeval", repository / "launch" / "paeval.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["paeval", *map(str, arguments)])
    return module.main()


def test_published_raw_replies_by_hand(tmp_path):
    found = read_raw_replies(written(tmp_path / "raw.json", RAW))
    described = aggregate(found["description"])
    fan = described["per_category"]["fan"]
    assert fan["published"] == pytest.approx((0.35 + 1 + 0.85 + 0.85) / 4), "over all clips: the normal ones weigh three to one here"
    assert fan["per_state"] == pytest.approx(((0.35 + 1 + 0.85) / 3 + 0.85) / 2)
    assert described["average"]["published"] == pytest.approx((fan["published"] + 0.2) / 2) and described["failures"] == {}
    explained = aggregate(found["explanation"])
    fan, gear = explained["per_category"]["fan"], explained["per_category"]["gear"]
    assert (fan["n"], fan["n_failed"], fan["published"]) == (5, 2, pytest.approx((0.9 + 0.5 + 0.1) / 3))
    assert gear["published"] == 0.4 and gear["per_state"] is None and gear["reason"] == "no grade for stuck"
    assert explained["average"]["per_state"] == fan["per_state"] == pytest.approx((0.7 + 0.1) / 2)
    assert explained["average"]["left_out"] == {"per_state": ["gear"]}
    assert explained["failures"] == {"outside 0 to 1": 1, "empty reply": 1, "no single number": 1}


def test_the_other_spelling_and_numbers_are_read_and_both_spellings_at_once_refused(tmp_path):
    found = read_raw_replies(written(tmp_path / "raw.json", {"fan": {"describ": {"stuck": [0.25, 1, None, True]}}}))
    assert [reading.grades and reading.grades["similarity"] for reading in found["description"]["fan"]["stuck"]] == [0.25, 1.0, None, None]
    with pytest.raises(ValueError, match="has both descrip and describ"):
        read_raw_replies(written(tmp_path / "raw.json", {"fan": {"describ": {}, "descrip": {}}}))
    with pytest.raises(ValueError, match=r"unknown key 'explian' \(did you mean 'explain'\?\)"):
        read_raw_replies(written(tmp_path / "raw.json", {"fan": {"explian": {}}}))


def test_nothing_graded_is_null_and_never_zero():
    failed = Reading(None, "empty reply")
    result = aggregate({"fan": {"stuck": [failed, None]}, "gear": {"stuck": [Reading({"similarity": 0.0})]}})
    assert result["per_category"]["fan"]["published"] is None and result["per_category"]["gear"]["published"] == 0
    assert result["average"]["published"] == 0 and result["average"]["left_out"] == {"published": ["fan"], "per_state": ["fan"]}
    assert (result["average"]["n"], result["average"]["n_failed"], result["average"]["n_without"]) == (3, 1, 1)
    assert aggregate({"fan": {"stuck": [failed]}})["average"]["published"] is None


@pytest.mark.parametrize("read,value,message", [
    (read_library, {"fan": []}, "fan: an object is expected, not a list"),
    (read_library, {"fan": {"explanation_label": {"stuck": []}}}, "at least one text"),
    (read_library, {"fan": {"explanation_label": {"stuck": "text"}}}, "fan.explanation_label.stuck: a list is expected, not a str"),
    (read_library, {"fan": {}}, "holds no reference texts"), (read_candidates, {"fan": {"stuck": [1]}}, "fan.stuck: texts are expected"),
    (read_candidates, {}, "holds no texts"), (read_candidates, {"fan": {"stuck": []}}, "holds no texts"),
    (read_candidates, {"fan": {"stuck": ["\ud83d"]}}, "half of a character"),
    (read_raw_replies, {"fan\ud83d": {"descrip": {}}}, "half of a character"),
    (read_candidates, {"fan": "x"}, "an object is expected"), (read_raw_replies, {}, "holds no replies"), (read_raw_replies, [], "JSON object")])
def test_files_of_another_form_are_refused_with_the_place(tmp_path, read, value, message):
    with pytest.raises(ValueError, match=message):
        read(written(tmp_path / "file.json", value))


def test_the_command_judges_candidate_files(monkeypatch, repository, tmp_path, capsys):
    library = written(tmp_path / "library.json", LIBRARY)
    described = written(tmp_path / "d.json", {"fan": {"anomaly_free": ["It turns well.", "It turns well.", ""], "stuck": ["It stands."]}})
    explained = written(tmp_path / "e.json", {"fan": {"stuck": ["Blocked.", None, "prose"]}})
    grades = {"It turns well.": '{"similarity": 0.9}', "It stands.": "0.6", "Blocked.": "0.7 (out of 1.0)", "prose": "It is quite similar."}
    with ChatStub(lambda text, _: grades[text]) as server:
        flags = ("--descriptions", described, "--explanations", explained, "--library", library, "--judge", "openai", "--judge-url", server.url,
                 "--judge-model", "grader", "--out", tmp_path / "out")
        assert call(monkeypatch, repository, *flags) == 0
        assert server.asked == {"It turns well.": 1, "It stands.": 1, "Blocked.": 1, "prose": 1}
        asked = {body["messages"][1]["content"] for body in server.bodies}
        assert any("1. It stands still.\n2. It stops.\nText to grade: \"It stands.\"" in text for text in asked), "the references of its own state"
        assert call(monkeypatch, repository, *flags) == 0 and sum(server.asked.values()) == 4, "again costs nothing"
    result = json.loads((tmp_path / "out" / "paeval.json").read_text())
    fan = result["description"]["per_category"]["fan"]
    assert fan["published"] == pytest.approx((0.9 + 0.9 + 0 + 0.6) / 4) and fan["per_state"] == pytest.approx((0.6 + 0.6) / 2)
    explanation = result["explanation"]
    assert explanation["per_category"]["fan"]["published"] == pytest.approx(0.7) and explanation["average"]["n_failed"] == 1
    assert explanation["average"]["n_without"] == 1 and explanation["judge"]["failures"] == {"no single number": 1}
    assert explanation["judge"]["reply_models"] == ["grader-2026-01-01"]
    printed = capsys.readouterr().out
    assert "1 of 3" in printed and "0.700" in printed and "1 of 2 texts have no grade and are left out of the explanation score" in printed


def test_the_command_scores_published_replies_and_takes_references_from_the_priors(monkeypatch, repository, tmp_path, capsys):
    assert call(monkeypatch, repository, "--replies", written(tmp_path / "raw.json", RAW), "--out", tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "paeval.json").read_text())["description"]["average"]["published"] == pytest.approx(0.48125)
    assert "replies that are no grade are left out: 1 outside 0 to 1, 1 empty reply, 1 no single number" in capsys.readouterr().out
    texts = written(tmp_path / "e.json", {"fan": {"stuck": ["Blocked."]}})
    with ChatStub(lambda *_: "1") as server:
        assert call(monkeypatch, repository, "--explanations", texts, "--judge", "openai", "--judge-url", server.url, "--judge-model", "m",
                    "--out", tmp_path / "out") == 0
        assert load_prior("fan").states["stuck"].explanations[0] in server.bodies[0]["messages"][1]["content"]


@pytest.mark.parametrize("flags,message", [
    ((), "give --descriptions FILE, --explanations FILE"), (("--explanations", "{e}"), "candidate texts need a judge"),
    (("--explanations", "{e}", "--replies", "{r}"), "or --replies FILE"),
    (("--replies", "{r}", "--judge", "replay"), "leave --judge and --library out"),
    (("--explanations", "{e}", "--judge", "openai", "--judge-url", "http://127.0.0.1:9/v1", "--judge-model", "m", "--library", "{l}"),
     "state 'stcuk' of 'fan' has no reference texts (did you mean 'stuck'?)"),
    (("--descriptions", "{g}", "--judge", "openai", "--judge-url", "http://127.0.0.1:9/v1", "--judge-model", "m", "--library", "{l}"),
     "category 'toaster' has no reference texts")])
def test_the_command_refuses_what_cannot_be_scored(monkeypatch, repository, tmp_path, capsys, flags, message):
    files = {"e": written(tmp_path / "e.json", {"fan": {"stcuk": ["x"]}}), "r": written(tmp_path / "r.json", RAW),
             "l": written(tmp_path / "l.json", LIBRARY), "g": written(tmp_path / "g.json", {"toaster": {"stuck": ["x"]}})}
    assert call(monkeypatch, repository, *(flag.format(**files) for flag in flags), "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and not (tmp_path / "out" / "paeval.json").exists()


def test_a_misspelt_state_is_told_and_other_results_are_not_written_over(monkeypatch, repository, tmp_path, capsys):
    one = written(tmp_path / "one.json", {"fan": {"explain": {"stcuk": ["0.5"], "stuck": ["0.5"]}}, "mill": {"explain": {"odd": ["0.5"]}}})
    two = written(tmp_path / "two.json", {"fan": {"explain": {"stuck": ["0.6"]}}})
    assert call(monkeypatch, repository, "--replies", one, "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "fan: its prior has no state 'stcuk' (did you mean 'stuck'?)" in printed and printed.count("its prior has no state") == 1
    before = (tmp_path / "out" / "paeval.json").read_bytes()
    assert call(monkeypatch, repository, "--replies", two, "--out", tmp_path / "out") == 2
    assert "holds the results of another file of replies: give another --out, or --overwrite" in capsys.readouterr().err
    assert (tmp_path / "out" / "paeval.json").read_bytes() == before
    assert call(monkeypatch, repository, "--replies", one, "--out", tmp_path / "out") == 0
    assert call(monkeypatch, repository, "--replies", two, "--out", tmp_path / "out", "--overwrite") == 0
    assert (tmp_path / "out" / "paeval.json").read_bytes() != before


def test_a_judge_that_grades_nothing_is_an_error(monkeypatch, repository, tmp_path, capsys):
    texts = written(tmp_path / "e.json", {"fan": {"stuck": ["Blocked."]}})
    with ChatStub(lambda *_: "quite similar") as server:
        assert call(monkeypatch, repository, "--explanations", texts, "--judge", "openai", "--judge-url", server.url, "--judge-model", "m",
                    "--out", tmp_path / "out") == 2
    assert "the judge graded no text at all (1 no single number)" in capsys.readouterr().err and not (tmp_path / "out" / "paeval.json").exists()
