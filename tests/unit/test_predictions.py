"""predictions.jsonl: written row by row, resumed, refused where rows would be mixed; other programs' files read strictly."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from vlmphys.prediction_files import PredictionWriter, RowRules
from vlmphys.predictions import Explain, Identity, Prediction, probability_of, read_labels, read_predictions, verdict_of
from vlmphys.records import Verdict

pytestmark = pytest.mark.unit

IDENTITY = Identity(model="tiny@1", variant="multi_turn", grounding="prior", data_fingerprint="f" * 8)


def prediction(clip_id: str, score: float = 1.5, explanation: str | None = "It turns.") -> Prediction:
    category, _, state, _ = clip_id.split("/")
    return Prediction(clip_id=clip_id, category=category, state=state, label=int(state != "anomaly_free"), score=score,
                      probability=probability_of(score), verdict=verdict_of(score).value, explanation=explanation,
                      answers=["a", "b", "c", "d"], **asdict(IDENTITY))


def test_rows_are_on_disk_at_once_and_read_back(tmp_path):
    path = tmp_path / "new" / "predictions.jsonl"
    with PredictionWriter(path, RowRules(IDENTITY, Explain.ALL)) as writer:
        assert not path.exists(), "nothing is written before the first row"
        writer.append(prediction("fan/test/stuck/1"))
        assert len(path.read_text().splitlines()) == 1
        writer.append(prediction("fan/test/anomaly_free/1", score=-0.25, explanation="é\n\u2028<script>"))
    read = read_predictions(path)
    assert read.clip_ids == ["fan/test/stuck/1", "fan/test/anomaly_free/1"] and read.states == ["stuck", "anomaly_free"]
    assert read.labels_N.tolist() == [1, 0] and read.scores_N.tolist() == [1.5, -0.25]
    assert read.anomalous_N.tolist() == [True, False] and not read.unparsed_N.any()
    assert read.explanations[1] == "é\n\u2028<script>" and read.constants == asdict(IDENTITY)


def test_a_half_written_line_is_dropped_and_whole_ones_are_kept(tmp_path):
    path = tmp_path / "p.jsonl"
    with PredictionWriter(path, RowRules(IDENTITY, Explain.ALL)) as writer:
        for number in range(3):
            writer.append(prediction(f"fan/test/stuck/{number}"))
    whole = path.read_bytes()
    for cut in (1, 20, 200):
        path.write_bytes(whole[:-cut])
        with PredictionWriter(path, RowRules(IDENTITY, Explain.ALL)) as writer:
            assert writer.done == {"fan/test/stuck/0", "fan/test/stuck/1"}
            writer.append(prediction("fan/test/stuck/2"))
        assert path.read_bytes() == whole


@pytest.mark.parametrize("key", ["model", "variant", "grounding", "data_fingerprint"])
def test_rows_of_another_run_are_refused_and_left_alone(tmp_path, key):
    path = tmp_path / "p.jsonl"
    with PredictionWriter(path, RowRules(IDENTITY, Explain.ALL)) as writer:
        writer.append(prediction("fan/test/stuck/0"))
    path.write_bytes(path.read_bytes() + b'{"half')
    before = path.read_bytes()
    what = "from another data folder, or from other data in the same folder" if key == "data_fingerprint" else f"with {key} "
    with pytest.raises(ValueError, match=rf"p.jsonl:1 was predicted {what}.*another --out"):
        PredictionWriter(path, RowRules(replace(IDENTITY, **{key: "other"}), Explain.ALL))
    with pytest.raises(ValueError, match="has an explanation, which --explain none"):
        PredictionWriter(path, RowRules(IDENTITY, Explain.NONE))
    assert path.read_bytes() == before


def test_two_writers_and_other_files_are_refused(tmp_path):
    path = tmp_path / "p.jsonl"
    with PredictionWriter(path, RowRules(IDENTITY, Explain.NONE)) as writer:
        writer.append(prediction("fan/test/stuck/0", explanation=None))
        with pytest.raises(ValueError, match="another process"):
            PredictionWriter(path, RowRules(IDENTITY, Explain.NONE))
    with pytest.raises(ValueError, match="is a folder"):
        PredictionWriter(tmp_path, RowRules(IDENTITY, Explain.NONE))
    with pytest.raises(ValueError, match="cannot be written"):
        PredictionWriter(path / "below_a_file" / "p.jsonl", RowRules(IDENTITY, Explain.NONE))
    other = tmp_path / "notes.txt"
    other.write_text("hello\n")
    with pytest.raises(ValueError, match="notes.txt:1: no JSON"):
        PredictionWriter(other, RowRules(IDENTITY, Explain.NONE))
    assert other.read_text() == "hello\n"


def test_clips_of_another_side_are_refused_and_left_alone(tmp_path):
    path = tmp_path / "p.jsonl"
    val, test = ["fan/test/stuck/0", "fan/test/stuck/1"], ["fan/test/stuck/2"]
    with PredictionWriter(path, RowRules(IDENTITY, Explain.ALL, frozenset(val))) as writer:
        writer.append(prediction(val[0]))
    path.write_bytes(path.read_bytes() + b'{"half')
    before = path.read_bytes()
    with pytest.raises(ValueError, match="p.jsonl:1: clip 'fan/test/stuck/0' is not on the side .*another --out"):
        PredictionWriter(path, RowRules(IDENTITY, Explain.ALL, frozenset(test)))
    assert path.read_bytes() == before
    with PredictionWriter(path, RowRules(IDENTITY, Explain.ALL, frozenset(val))) as writer:
        assert writer.done == {val[0]}


def test_a_file_that_appeared_since_the_start_is_not_appended_to(tmp_path):
    path = tmp_path / "p.jsonl"
    with PredictionWriter(path, RowRules(IDENTITY, Explain.ALL)) as late:
        with PredictionWriter(path, RowRules(IDENTITY, Explain.ALL)) as early:
            early.append(prediction("fan/test/stuck/0"))
            early.append(prediction("fan/test/stuck/1"))
        before = path.read_bytes()
        with pytest.raises(ValueError, match="written by another process in the meantime: start this one again"):
            late.append(prediction("fan/test/stuck/0"))
    assert path.read_bytes() == before
    with PredictionWriter(path, RowRules(IDENTITY, Explain.ALL)) as again:
        assert len(again.done) == 2, "the lock was given back"


def test_explanations_only_for_anomalous_clips_resume(tmp_path):
    path = tmp_path / "p.jsonl"
    with PredictionWriter(path, RowRules(IDENTITY, Explain.ANOMALOUS)) as writer:
        writer.append(prediction("fan/test/stuck/0"))
        writer.append(prediction("fan/test/stuck/1", score=-2.0, explanation=None))
    with PredictionWriter(path, RowRules(IDENTITY, Explain.ANOMALOUS)) as writer:
        assert len(writer.done) == 2


def test_probability_is_the_logistic_of_the_score():
    assert probability_of(0.0) == 0.5 and verdict_of(0.0) is Verdict.ANOMALOUS and verdict_of(-1e-9) is Verdict.NORMAL
    assert probability_of(2.0) == pytest.approx(1 / (1 + math.exp(-2))) and probability_of(-800.0) == 0.0 and probability_of(800.0) == 1.0


def test_csv_and_jsonl_of_any_program(tmp_path):
    table = tmp_path / "scores.csv"
    table.write_text("\ufeffclip_id,label,score\nfan/test/stuck/1,1,0.9\ngear/test/anomaly_free/2,0,\nfan/a,0.0,1e-3\n")
    lines = tmp_path / "scores.jsonl"
    lines.write_text('{"clip_id": "fan/test/stuck/1", "label": true, "score": "0.9"}\n\n'
                     '{"clip_id": "gear/test/anomaly_free/2", "label": 0, "score": NaN}\n'
                     '{"clip_id": "fan/a", "label": 0, "score": 0.001}\n')
    for path in (table, lines):
        read = read_predictions(path)
        assert read.categories == ["fan", "gear", "fan"] and read.states == ["stuck", "anomaly_free", ""]
        assert read.labels_N.tolist() == [1, 0, 0] and np.array_equal(read.scores_N, [0.9, np.nan, 0.001], equal_nan=True)
        assert read.anomalous_N is None and read.constants["model"] is None and read.sha256


@pytest.mark.parametrize("rows, message", [
    (['{"clip_id": "fan/1", "score": 1}'], r":1: clip 'fan/1' has no label: add a label column"),
    (['{"clip_id": "fan/1", "label": 1}'], ":1: no score"),
    (['{"label": 1, "score": 1}'], ":1: no clip_id"),
    (['{"clip_id": "fan/1", "label": 2, "score": 1}'], ":1: label 2 of clip"),
    (['{"clip_id": "fan/1", "label": 1, "score": "high"}'], ":1: score 'high' is no number"),
    (['{"clip_id": "fan/1", "label": 1, "score": [1]}'], r":1: score \[1\] is no number"),
    (['{"clip_id": "fan/1", "label": 1, "score": true}'], ":1: score True is no number"),
    (['{"clip_id": "fan/1", "label": 1, "score": 1, "verdict": "yes"}'], ":1: verdict 'yes': normal, anomalous, unparsed"),
    (['{"clip_id": "fan/1", "label": 1, "score": 1}', "", '{"clip_id": "fan/1", "label": 1, "score": 2}'],
     ":3: clip 'fan/1' stands already in line 1, with other figures"),
    (['{"clip_id": "fan/1", "label": 1, "score": 1, "explanation": "a"}', '{"clip_id": "fan/1", "label": 1, "score": 1, "explanation": "b"}'],
     ":2: clip 'fan/1' stands already in line 1, with another text"),
    (['{"clip_id": "fan/1", "label": 1, "score": 1}', '{"clip_id": "fan/2", "lab'], ":2: no JSON"),
    (["[1, 2]"], ":1: one JSON object a line is expected, not a list"),
    ([""], "holds no predictions"),
    (['{"clip_id": "a/b", "label": 1, "score": 1, "probability": 1.5, "data_fingerprint": "f"}'], "probability 1.5: a number from 0 to 1"),
    (['{"clip_id": " ", "label": 1, "score": 1}'], ":1: no clip_id"),
    (['{"clip_id": "/data/fan/1", "label": 1, "score": 1}'], ":1: clip_id '/data/fan/1' begins with a slash"),
    (['{"clip_id": "fan/1", "label": 1, "score": "1_0"}'], ":1: score '1_0' is no number"),
    (['{"clip_id": "fan/1", "label": 1, "score": 1' + "0" * 400 + "}"], r":1: score 10{79}\.\.\. is no number, or one that no float holds"),
    (['{"clip_id": "fan/1", "label": 1, "score": 1' + "0" * 5000 + "}"], r":1: no JSON \(Exceeds the limit \(4300 digits\)"),
    (["[" * 100_000], r":1: no JSON \(maximum recursion depth"),
    (['{"clip_id": "fan/\\ud83d", "label": 1, "score": 1}'], r":1: '\\ud83d' is half of a character"),
    (['{"clip_id": "fan/1", "label": 1, "score": 1, "explanation": ["a"]}'], r":1: explanation \['a'\]: a text is allowed"),
    (['{"clip_id": "fan/1", "label": 1, "score": 1, "category": {"a": 1}}'], ":1: category {'a': 1}: a name is allowed"),
])
def test_bad_rows_are_named_by_file_and_line(tmp_path, rows, message):
    path = tmp_path / "x.jsonl"
    path.write_text("\n".join(rows) + "\n")
    with pytest.raises(ValueError, match="x.jsonl" + message if message.startswith(":") else message):
        read_predictions(path)


def test_a_csv_header_may_hold_spaces_and_no_name_twice(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("clip_id, label , score\nfan/1, 1 , 0.5\n")
    read = read_predictions(path)
    assert read.labels_N.tolist() == [1] and read.scores_N.tolist() == [0.5]
    path.write_text("clip_id,label,score,score\nfan/1,1,0.5,0.7\n")
    with pytest.raises(ValueError, match="x.csv:1: the header has two columns score"):
        read_predictions(path)


def test_whole_characters_may_be_escaped_and_a_model_may_be_named_by_anything(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"clip_id": "fan/1", "label": 1, "score": 1, "explanation": "\\ud83d\\ude00", "model": ["a", 1]}\n')
    read = read_predictions(path)
    assert read.explanations == ["\U0001f600"] and read.constants["model"] == "['a', 1]"


def test_ragged_csv_and_missing_file_are_refused(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("clip_id,label,score\nfan/1,1\n")
    with pytest.raises(ValueError, match="x.csv:2: the row has not as many fields"):
        read_predictions(path)
    path.write_bytes(b"clip_id,label,score\n\xff\xfe,1,1\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_predictions(path)
    path.write_text("clip_id,label,score,explanation\nfan/1,1,0.5,short\nfan/2,0,0.1," + "x" * 200_000 + "\n")
    with pytest.raises(ValueError, match=r"x.csv:3: no CSV row \(field larger than field limit"):
        read_predictions(path)
    path.write_text("clip_id,label," + "x" * 200_000 + "\nfan/1,1,0.5\n")
    with pytest.raises(ValueError, match="x.csv:1: no CSV row"):
        read_predictions(path)
    for unreadable, message in ((tmp_path / "none.jsonl", "none.jsonl: no such file"), (tmp_path, "it is a folder"),
                                (Path("/dev/null"), "no plain file"), (tmp_path / ("x" * 300), "cannot be read"),
                                (Path("/proc/self/mem"), "cannot be read")):
        with pytest.raises(ValueError, match=message):
            read_predictions(unreadable)


def test_rows_that_repeat_another_one_are_counted_and_left_out(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("clip_id,label,score\nfan/1,1,0.2\nfan/1,1,0.20\nfan/2,0,nan\nfan/2,0,\n")
    read = read_predictions(path)
    assert read.clip_ids == ["fan/1", "fan/2"] and read.duplicates == 2 and len(read.scores_N) == 2
    path.write_text("clip_id,label,score,verdict\nfan/1,1,0.2,normal\nfan/1,1,0.2,unparsed\n")
    with pytest.raises(ValueError, match="x.csv:3: clip 'fan/1' stands already in line 2, with other figures"):
        read_predictions(path)


def test_columns_beside_the_score_are_read_where_labels_come_from_elsewhere(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"clip_id": "fan/1", "score": 1, "verdict": "normal"}\n{"clip_id": "fan/2", "label": 0, "score": 1}\n')
    read = read_predictions(path, {"fan/1": 1, "fan/2": 0})
    assert read.anomalous_N.tolist() == [False, False] and read.unparsed_N.tolist() == [False, True]
    path.write_text('{"clip_id": "fan/1", "label": 0, "score": 1, "model": "m"}\n{"clip_id": "fan/2", "label": 0, "score": 1}\n')
    assert read_predictions(path).constants["model"] is None, "only one of two rows says it"


def test_every_data_fingerprint_of_the_rows_is_kept(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("clip_id,label,score,data_fingerprint\nfan/1,1,0.2,aa\nfan/2,0,0.1,bb\nfan/3,0,0.1,\n")
    read = read_predictions(path)
    assert read.data_fingerprints == {"aa", "bb"} and read.constants["data_fingerprint"] is None


def test_labels_from_a_second_file(tmp_path):
    path, labels = tmp_path / "x.csv", tmp_path / "labels.csv"
    path.write_text("clip_id,score\nfan/1,0.2\nfan/2,0.4\n")
    labels.write_text("clip_id,label\nfan/1,1\nfan/2,0\nfan/3,1\n")
    read = read_predictions(path, read_labels(labels))
    assert read.labels_N.tolist() == [1, 0] and read.absent == 1
    labels.write_text("clip_id,label\nfan/1,1\n")
    with pytest.raises(ValueError, match="x.csv:3: clip 'fan/2' has no label: it is not in the --labels file either"):
        read_predictions(path, read_labels(labels))
    path.write_text("clip_id,label,score\nfan/1,0,0.2\n")
    with pytest.raises(ValueError, match="has label 0 by its row, the --labels file says 1"):
        read_predictions(path, read_labels(labels))
    labels.write_text("clip_id,label\nfan/1,1\nfan/1,0\n")
    with pytest.raises(ValueError, match="labels.csv:3: clip 'fan/1' has two labels"):
        read_labels(labels)


def test_labels_of_the_packed_data_fill_in_and_contradictions_are_refused(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("clip_id,score\nfan/1,0.2\nfan/2,0.4\n")
    packed = {"fan/1": 1, "fan/2": 0, "fan/3": 1}
    read = read_predictions(path, packed_labels=packed)
    assert read.labels_N.tolist() == [1, 0] and read.absent == 0, "clips of other sides are not missing"
    with pytest.raises(ValueError, match="x.csv:3: clip 'fan/2' has no label: it is not in --data either"):
        read_predictions(path, packed_labels={"fan/1": 1})
    with pytest.raises(ValueError, match="clip 'fan/1' has label 0 by the --labels file, --data says 1"):
        read_predictions(path, {"fan/1": 0}, packed)
    path.write_text("clip_id,label,score\nfan/1,0,0.2\n")
    with pytest.raises(ValueError, match="clip 'fan/1' has label 0 by its row, --data says 1"):
        read_predictions(path, packed_labels=packed)


@pytest.mark.parametrize("header, message", [
    ("clip_id;label;score", "no column clip_id and no column score; it has: clip_id, label, score; its fields seem to be parted by "
                            "semicolons: save it with commas between fields and points in numbers"),
    ("clip_id\tscore", "it has: clip_id, score; its fields seem to be parted by tabs"),
    ("video,label,p", "no column clip_id and no column score; it has: video, label, p; name the columns in its first line, at least "
                      "clip_id, score"),
    ("clip_id,label,Score", "the header has no column score; it has: clip_id, label, Score; name")])
def test_a_header_without_its_columns_is_refused_before_any_row(tmp_path, header, message):
    path = tmp_path / "x.csv"
    path.write_text(f"{header}\nfan/1;1;0,5\n")
    with pytest.raises(ValueError) as caught:
        read_predictions(path)
    assert str(caught.value).startswith(f"{path}:1: the header has no column ") and message in str(caught.value)
    if header == "video,label,p":
        with pytest.raises(ValueError, match="no column clip_id; it has: video, label, p; .* at least clip_id, label"):
            read_labels(path)


def test_json_rows_keep_the_designs_keys(tmp_path):
    path = tmp_path / "p.jsonl"
    with PredictionWriter(path, RowRules(IDENTITY, Explain.ALL)) as writer:
        writer.append(prediction("fan/test/stuck/0"))
    assert list(json.loads(path.read_text())) == ["clip_id", "category", "state", "label", "score", "probability", "verdict", "explanation",
                                                  "answers", "grounding", "variant", "model", "data_fingerprint"]


def test_clips_without_a_category_are_of_one(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("clip_id,label,score\na,1,0.5\nb,0,0.1\n")
    found = read_predictions(path)
    assert found.uncategorised and found.categories == ["all", "all"]
    for text in ("clip_id,label,score,category\na,1,0.5,fan\nb,0,0.1,gear\n", "clip_id,label,score\nfan/a,1,0.5\ngear/b,0,0.1\n"):
        path.write_text(text)
        assert not read_predictions(path).uncategorised and read_predictions(path).categories == ["fan", "gear"]


def test_probabilities_are_read_of_our_own_rows_alone(tmp_path):
    path = tmp_path / "p.jsonl"
    rows = [{"clip_id": f"fan/{clip}", "label": clip, "score": 2.0, "probability": 0.25 + clip / 2} for clip in (0, 1)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_predictions(path).probabilities_N is None
    path.write_text("".join(json.dumps({**row, "data_fingerprint": "f"}) + "\n" for row in rows))
    assert read_predictions(path).probabilities_N.tolist() == [0.25, 0.75]


@pytest.mark.parametrize("folders", ["", "./", "videos/", "/data/videos/", "C:/a b/"])
def test_the_category_of_a_path_is_the_folder_above_its_side(tmp_path, folders):
    (tmp_path / "p.csv").write_text(f"clip_id,label,score\n{folders}fan/test/stuck/0003.mp4,1,0.5\n{folders}gear/train/ok/1.mp4,0,0.5\n")
    read = read_predictions(tmp_path / "p.csv")
    assert read.categories == ["fan", "gear"] and read.states == ["stuck", "ok"] and read.clip_ids[0] == f"{folders}fan/test/stuck/0003.mp4"


@pytest.mark.parametrize("clip_id", ["./fan/0003", "../0003", "./test/0003"])
def test_a_category_is_no_dot(tmp_path, clip_id):
    (tmp_path / "p.csv").write_text(f"clip_id,label,score\n{clip_id},1,0.5\n")
    with pytest.raises(ValueError, match=r":2: clip_id .* begins with '\.+', and its first part is its category: .* or add a category column"):
        read_predictions(tmp_path / "p.csv")


@pytest.mark.parametrize("name, content, message", [
    ("x.xlsx", b"PK\x03\x04rest", r"x.xlsx is an Excel file or another archive: save its table as CSV UTF-8"),
    ("x.csv", b"PK\x03\x04rest", "x.csv is an Excel file"),
    ("x.csv", "clip_id,label,score\n".encode("utf-16"), "x.csv is UTF-16 text, not UTF-8: save it as CSV UTF-8"),
    ("x.tsv", b"clip_id\tlabel\tscore\nfan/1\t1\t0.5\n", "x.tsv:1: no JSON, rather a table: put commas between its fields, and let "
                                                                "its name end in .csv"),
    ("x.json", b'[{"clip_id": "fan/1"}]\n', "not a list: write each of its objects in a line of its own"),
    ("x.json", b'[\n {"clip_id": "fan/1"}\n]\n', "x.json:1: the beginning of a list in several lines"),
    ("x.csv", b"Clip_ID,Label,Score\nfan/1,1,0.5\n", "at least clip_id, score, and label unless --labels or --data has it; write clip_id in place of "
                                                       "Clip_ID, score in place of Score"),
    ("x.csv", b"clip_id,label,score\nfan/1,NG,0.5\n", "label 'NG' of clip 'fan/1': allowed are 0, normal or false, and 1, anomalous or true"),
    ("x.csv", b"clip_id,label,score\nfan/1,1\n", r"as many fields as the header \(2, not 3\)")])
def test_tables_of_spreadsheets_are_refused_with_their_cure(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_predictions(tmp_path / name)


def test_rows_of_commas_alone_end_a_table(tmp_path):
    (tmp_path / "x.csv").write_text("clip_id,label,score\nfan/1,1,0.5\n,,\n,,,,\n\n")
    assert read_predictions(tmp_path / "x.csv").clip_ids == ["fan/1"]
