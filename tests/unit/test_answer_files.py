"""Files of other programs: answers read strictly, clips found by id, order or path, and everything else refused or counted."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vlmphys.answer_files import answer_score, answer_verdict, clip_id_of_path
from vlmphys.predictions import read_predictions
from vlmphys.records import Verdict
from vlmphys.scoring import score_predictions

pytestmark = pytest.mark.unit
CLIPS = {"fan/test/anomaly_free/1": 0, "fan/test/stuck/1": 1, "fan/test/anomaly_free/2": 0, "fan/test/stuck/2": 1}
ANSWERS = ["Verdict: Normal. Reason: It turns evenly.", "Verdict: Anomalous. Reason: The blades stand.", "No idea, sorry", "Abnormal, it shakes."]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("text, verdict", [
    ("Verdict: Normal. Reason: even.", "normal"), ("verdict: anomalous", "anomalous"), ("Verdict: Normal. Verdict: Anomalous.", "unparsed"),
    ("Verdict: maybe. The fan is abnormal.", "unparsed"), ("Normal", "normal"), ("'abnormal'", "anomalous"),
    ("**Anomalous**\nIt stands.", "anomalous"),
    ("Abnormal: it shakes", "anomalous"), ("Normal fans turn.", "unparsed"), ("The function of the fan is abnormal because it stands.", "anomalous"),
    ("It appears to be normal. A broken one is abnormal.", "normal"), ("The fan is not normal.", "unparsed"), ("It isn't abnormal.", "unparsed"),
    ("It is hard to say whether it is normal.", "unparsed"), ("It is normal or abnormal.", "unparsed"), ("The normal fan is abnormal.", "unparsed"),
    ("Yes", "unparsed"), ("", "unparsed"), ("{anomalyscore=0.5}", "anomalous"), ("0.49", "normal"), ("1", "anomalous"), ("3", "unparsed"),
    ("Subnormal.", "unparsed"), ("abnormally loud", "unparsed")])
def test_verdicts_are_read_strictly(text, verdict):
    assert answer_verdict(text) is Verdict(verdict)


@pytest.mark.parametrize("text, score", [
    ("0.7", 0.7), ("0", 0.0), ("1", 1.0), ("1.0", 1.0), (".25", 0.25), ("0.35.", 0.35), ("{anomalyscore=0.7}", 0.7),
    ("Here: {anomalyscore= 0.2} ok", 0.2),
    ("{anomaly score: 1}", 1.0), ("{anomalyscore=0.1} {anomalyscore=0.9}", None), ("1.5", None), ("{anomalyscore=2}", None), ("85%", None),
    ("{anomalyscore=0.1.2}", None), ("0.7 of 1", None), ("-0.2", None), (".", None), ("", None), ("nan", None), ("1e-3", None)])
def test_scores_are_read_strictly(text, score):
    assert answer_score(text) == score


def test_clip_ids_of_paths():
    for path in ("fan/test/stuck/1.mp4", "/home/test/x/fan/test/stuck/1.MP4", "C:\\data\\fan\\test\\stuck\\1.avi", "fan/test/stuck/1"):
        assert clip_id_of_path(path) == "fan/test/stuck/1"
    assert clip_id_of_path("fan/stuck.v2/1.5.mp4") == "fan/stuck.v2/1.5" and clip_id_of_path("test/1.mp4") == "test/1"


def check(read, explanations=True):
    assert dict(zip(read.clip_ids, read.labels_N.tolist())) == CLIPS
    by_clip = {clip: (bool(anomalous), bool(unparsed)) for clip, anomalous, unparsed in zip(read.clip_ids, read.anomalous_N, read.unparsed_N)}
    assert [by_clip[clip] for clip in CLIPS] == [(False, False), (True, False), (False, True), (True, False)]
    scores = score_predictions(read)
    fan = scores["per_category"]["fan"]
    assert fan["n_unparsed"] == 1 and fan["auroc_verdict"] == 0.75 and fan["parse_rate"] == 0.75
    assert any("1 of 4 verdicts could not be read" in warning for warning in scores["warnings"])
    assert read.states[read.clip_ids.index("fan/test/stuck/1")] == "stuck"
    if explanations:
        assert read.explanations[read.clip_ids.index("fan/test/stuck/1")] == "The blades stand."


def test_llama_factory(tmp_path):
    rows = [{"prompt": "USER: ...", "predict": answer, "label": f"Verdict: {'Anomalous' if label else 'Normal'}. Reason: x."}
            for answer, label in zip(ANSWERS, CLIPS.values())]
    path = write_lines(tmp_path / "generated_predictions.jsonl", rows)
    check(read_predictions(path, CLIPS))
    check(read_predictions(path, order=list(CLIPS)))
    named = [{**row, "video": f"/data/{clip}.mp4"} for row, clip in zip(rows, CLIPS)]
    check(read_predictions(write_lines(tmp_path / "named.jsonl", named[::-1])))
    with pytest.raises(ValueError, match="jsonl:1: a row of LLaMA-Factory names no clip: give --labels"):
        read_predictions(path)
    with pytest.raises(ValueError, match=r"jsonl:3: there are more rows than the 2 clips"):
        read_predictions(path, order=list(CLIPS)[:2])
    with pytest.raises(ValueError, match="has 4 rows without a clip id, and --labels or --data 5 clips"):
        read_predictions(path, order=[*CLIPS, "fan/test/stuck/3"])
    with pytest.raises(ValueError, match="label 0 by its row, the --labels file says 1"):
        read_predictions(path, dict(reversed(CLIPS.items())))
    with pytest.raises(ValueError, match="predict is a list"):
        read_predictions(write_lines(path, [{"predict": ["x"]}] * 4), CLIPS)


def test_lmms_eval(tmp_path):
    rows = [{"doc_id": place, "target": str(label), "filtered_resps": [answer] if place % 2 else [[answer]], "doc_hash": "x", "input": "..."}
            for place, (answer, label) in enumerate(zip(ANSWERS, CLIPS.values()))]
    path = write_lines(tmp_path / "x_samples_physad.jsonl", [rows[2], rows[0], rows[3], rows[1]])
    check(read_predictions(path, CLIPS))
    with_doc = [{**row, "doc": {"video": f"{clip}.mp4"}, "resps": row.pop("filtered_resps")} for row, clip in zip([dict(row) for row in rows], CLIPS)]
    check(read_predictions(write_lines(tmp_path / "doc.jsonl", with_doc)))
    with pytest.raises(ValueError, match="jsonl:1: a sample of lmms-eval names no clip"):
        read_predictions(path)
    with pytest.raises(ValueError, match="doc_id 2 is no place among the 2 clips"):
        read_predictions(path, order=list(CLIPS)[:2])
    with pytest.raises(ValueError, match="one text is expected"):
        read_predictions(write_lines(path, [{**rows[0], "filtered_resps": ["a", "b"]}]), CLIPS)
    with pytest.raises(ValueError, match="label 1 by its row, the --labels file says 0"):
        read_predictions(write_lines(path, [{**rows[0], "target": "Abnormal"}]), CLIPS)


def test_phys_ads_texts(tmp_path):
    path = tmp_path / "result_reason.txt"
    path.write_text("".join(f"{clip}.mp4: {answer}\n" for clip, answer in zip(CLIPS, ANSWERS)))
    check(read_predictions(path))
    path.write_text("".join(f"/data/{clip}.mp4\nQ5: {answer}\n\n" for clip, answer in zip(CLIPS, ANSWERS)))
    check(read_predictions(path))
    path.write_text("fan/test/stuck/1.mp4:Abnormal.\nThe ratio 1:2 is off.\nfan/test/anomaly_free/1.mp4:\n")
    read = read_predictions(path)
    assert read.explanations == ["Abnormal.\nThe ratio 1:2 is off.", ""] and read.unparsed_N.tolist() == [False, True]
    path.write_text("hello\n")
    with pytest.raises(ValueError, match="txt:1: an answer before any video's path"):
        read_predictions(path)
    path.write_text("")
    with pytest.raises(ValueError, match="holds no predictions"):
        read_predictions(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_predictions(path)
    with pytest.raises(ValueError, match="none.txt: no such file"):
        read_predictions(tmp_path / "none.txt")


def test_printed_scores_become_scores_and_what_cannot_be_read_is_missing(tmp_path):
    path = tmp_path / "score_responses.txt"
    answers = ["{anomalyscore=0.1}", "{anomalyscore=0.9}", "I cannot rate it.", "0.5"]
    path.write_text("".join(f"/data/{clip}.mp4\nQ6: {answer}\n\n" for clip, answer in zip(CLIPS, answers)))
    read = read_predictions(path)
    assert np.array_equal(read.scores_N, [0.1, 0.9, np.nan, 0.5], equal_nan=True) and read.anomalous_N.tolist() == [False, True, False, True]
    scores = score_predictions(read)
    assert scores["threshold"]["value"] == 0.5 and scores["per_category"]["fan"]["auroc"] == 1.0
    assert scores["per_category"]["fan"]["n_unparsed"] == scores["per_category"]["fan"]["n_missing"] == 1


def test_a_file_with_our_columns_is_not_taken_for_anothers(tmp_path):
    path = write_lines(tmp_path / "p.jsonl", [{"clip_id": "fan/1", "label": 1, "score": 2.0, "predict": "x"},
                                              {"clip_id": "fan/2", "label": 0, "score": 1}])
    assert read_predictions(path).scores_N.tolist() == [2.0, 1.0]
