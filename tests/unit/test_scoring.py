"""scores.json: figures per category, their means, undefined ones null with a reason, and warnings."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, balanced_accuracy_score, roc_auc_score

from vlmphys.predictions import read_predictions
from vlmphys.records import Split
from vlmphys.scoring import (TEXT_FIGURES, PHYS_AD_CATEGORIES, compare_clips, mean_record, name_runs, score_predictions,
                             scores_document)
from vlmphys.splits import PUBLISHED_CLIPS_PER_ANOMALY
from vlmphys.tables import COLUMNS, console_text, csv_text, markdown_text, text_table

pytestmark = pytest.mark.unit


def write_rows(path, categories, clips: int = 12, seed: int = 0, **columns) -> list[dict]:
    generator = np.random.default_rng(seed)
    rows = []
    for category in categories:
        for clip in range(clips):
            label = clip % 3 != 0
            rows.append({"clip_id": f"{category}/test/{'stuck' if label else 'anomaly_free'}/{clip:04d}", "label": int(label),
                         "score": float(np.round(generator.normal() + label, 1)), **columns})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def scored(path, **options) -> dict:
    return score_predictions(read_predictions(path), **options)


def test_every_figure_equals_scikit_learn(tmp_path):
    rows = write_rows(tmp_path / "p.jsonl", ["fan", "gear"], clips=40)
    scores = scored(tmp_path / "p.jsonl", threshold=0.3)
    for category in ("fan", "gear"):
        labels = [row["label"] for row in rows if row["clip_id"].startswith(category)]
        values = np.array([row["score"] for row in rows if row["clip_id"].startswith(category)])
        record = scores["per_category"][category]
        assert record["n"] == 40 and record["n_anomalous"] == sum(labels) and record["n_missing"] == record["n_unparsed"] == 0
        assert record["auroc"] == pytest.approx(roc_auc_score(labels, values), abs=1e-12)
        assert record["ap"] == pytest.approx(average_precision_score(labels, values), abs=1e-12)
        assert record["accuracy"] == pytest.approx(accuracy_score(labels, values >= 0.3), abs=1e-12)
        assert record["auroc_verdict"] == pytest.approx(balanced_accuracy_score(labels, values >= 0.3), abs=1e-12)
        low, high = record["auroc_ci95"]
        assert low < record["auroc"] < high and set(record["reasons"]) == {*TEXT_FIGURES, "parse_rate"}
    average = scores["average"]
    assert average["n_categories"] == 2 and average["n"] == 80
    assert average["auroc"] == pytest.approx(np.mean([scores["per_category"][name]["auroc"] for name in ("fan", "gear")]))
    widths = [np.ptp(record["auroc_ci95"]) for record in (average, scores["per_category"]["fan"])]
    assert widths[0] < widths[1], "the mean of two categories is surer than one"
    assert scores == scored(tmp_path / "p.jsonl", threshold=0.3), "the bootstrap is seeded"


def test_means_over_21_and_22_need_all_their_categories(tmp_path):
    write_rows(tmp_path / "p.jsonl", ["fan", "gear", "toothpaste"])
    scores = scored(tmp_path / "p.jsonl")
    for key, of in (("average_21", 21), ("average_22", 22)):
        record = scores[key]
        assert record["auroc"] is None and record["auroc_ci95"] is None and record["accuracy"] is None
        assert f"of {of} categories are there; absent: ball" in record["reasons"]["auroc"]
    assert scores["average_21"]["n_categories"] == 2 and scores["average_22"]["n_categories"] == 3
    write_rows(tmp_path / "all.jsonl", [*PHYS_AD_CATEGORIES, "my_machine"])
    scores = scored(tmp_path / "all.jsonl")
    mean = {key: np.mean([scores["per_category"][name]["ap"] for name in names]) for key, names in (
        ("average_21", [name for name in PHYS_AD_CATEGORIES if name != "toothpaste"]), ("average_22", PHYS_AD_CATEGORIES),
        ("average", [*PHYS_AD_CATEGORIES, "my_machine"]))}
    assert len(PHYS_AD_CATEGORIES) == 22 and set(PHYS_AD_CATEGORIES) == set(PUBLISHED_CLIPS_PER_ANOMALY)
    for key, value in mean.items():
        assert scores[key]["ap"] == pytest.approx(value)
    assert [scores[key]["n_categories"] for key in mean] == [21, 22, 23]


def test_figures_of_the_text_are_null_with_a_reason_and_in_no_mean(tmp_path):
    write_rows(tmp_path / "p.jsonl", ["fan"])
    scores = scored(tmp_path / "p.jsonl")
    fan = scores["per_category"]["fan"]
    assert list(fan)[-6:] == ["sbert", "llm", "type_accuracy", "description", "explanation", "reasons"]
    for key in ("sbert", "llm", "type_accuracy", "description", "explanation"):
        assert fan[key] is None and fan["reasons"][key] == "not asked for (score.py --sbert, --judge, --paeval)"
        assert key not in scores["average"] and key not in scores["average"]["left_out"] and key not in markdown_text({"p": scores})
    assert not scores["warnings"]


def test_one_class_is_null_with_a_reason_and_left_out_of_the_mean_by_name(tmp_path):
    rows = write_rows(tmp_path / "p.jsonl", ["fan", "gear"])
    kept = [row for row in rows if row["clip_id"].startswith("gear") or row["label"] == 0]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    scores = scored(tmp_path / "p.jsonl")
    fan = scores["per_category"]["fan"]
    assert fan["auroc"] is None and fan["auroc_verdict"] is None and fan["ap"] is None and fan["accuracy"] is not None
    assert "one class only: 0 anomalous and 4 normal" in fan["reasons"]["auroc"]
    assert scores["average"]["auroc"] == scores["per_category"]["gear"]["auroc"]
    assert scores["average"]["left_out"]["auroc"] == ["fan"]
    assert any(warning.startswith("fan: one class only") for warning in scores["warnings"])
    strict = mean_record(scores["per_category"], ["fan", "gear"], strict=True)
    assert strict["auroc"] is None and strict["reasons"]["auroc"] == "undefined in fan" and strict["accuracy"] is not None
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores


def test_missing_scores_are_counted_and_never_zero(tmp_path):
    rows = write_rows(tmp_path / "p.jsonl", ["fan"])
    whole = scored(tmp_path / "p.jsonl")["per_category"]["fan"]
    rows += [{"clip_id": f"fan/test/stuck/x{number}", "label": 1, "score": score} for number, score in enumerate((None, float("nan")))]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = scored(tmp_path / "p.jsonl")
    fan = scores["per_category"]["fan"]
    assert (fan["n"], fan["n_missing"], fan["n_unparsed"]) == (14, 2, 0)
    keys = ("auroc", "ap", "accuracy", "auroc_verdict")
    assert [fan[key] for key in keys] == [whole[key] for key in keys], "a verdict that comes from the score is missing where the score is"
    assert scores["warnings"] == ["2 of 14 clips have no score (null, empty or NaN) and are left out of all figures"]
    for row in rows:
        row["verdict"] = "anomalous" if row["label"] else "normal"
    rows[-1]["verdict"] = "unparsed"
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = scored(tmp_path / "p.jsonl")
    assert scores["per_category"]["fan"]["auroc_verdict"] == pytest.approx((1 + 9 / 10) / 2), "the file's own verdicts count all the same"
    assert "left out of AUROC, AP and accuracy" in scores["warnings"][0] and "1 of 14 verdicts could not be read" in scores["warnings"][1]


def test_the_files_own_verdicts_are_used(tmp_path):
    rows = write_rows(tmp_path / "p.jsonl", ["fan"])
    for row in rows:
        row["verdict"] = "anomalous" if row["label"] else "normal"
    rows[0]["verdict"] = "unparsed"
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = scored(tmp_path / "p.jsonl")
    assert scores["verdict_source"] == "verdict column"
    assert scores["per_category"]["fan"]["auroc_verdict"] == pytest.approx((1 + 3 / 4) / 2)
    fan = scores["per_category"]["fan"]
    assert fan["n_unparsed"] == 1 and fan["parse_rate"] == pytest.approx(11 / 12)
    assert fan["tpr"] == 1 and fan["fpr"] == pytest.approx(1 / 4), "the normal clip whose answer cannot be read was not cleared"
    assert scores["average"]["tpr"] == 1 and scores["average"]["parse_rate"] == fan["parse_rate"]


def test_verdicts_that_never_change_scores_of_two_values_and_repeated_rows_are_warned_of(tmp_path):
    rows = write_rows(tmp_path / "p.jsonl", ["fan", "gear"])
    for row in rows:
        row["score"], row["verdict"] = float(row["label"] == 1 or row["clip_id"].endswith("3")), "anomalous"
    rows[-1]["verdict"] = "normal"
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    text = "\n".join(scored(tmp_path / "p.jsonl")["warnings"])
    assert "all verdicts are the same in fan: a balanced accuracy of 0.5 says nothing there" in text and "same in fan, gear" not in text
    assert "the scores take two values only (0 and 1): their AUROC is that of a hard verdict" in text
    assert "1 row repeats another one word for word and was counted once" in text


def test_the_threshold_says_where_it_comes_from(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("clip_id,label,score\nfan/1,0,0.4\nfan/2,1,0.6\n")
    scores = scored(path)
    assert scores["threshold"] == {"value": 0.5, "rule": "0.5: all scores lie in [0, 1]"}
    assert scores["per_category"]["fan"]["accuracy"] == 1.0
    path.write_text("clip_id,label,score\nfan/1,0,-0.4\nfan/2,1,0.2\n")
    assert scored(path)["threshold"]["value"] == 0.0
    path.write_text("clip_id,label,score,data_fingerprint\nfan/1,0,0.1,abc\nfan/2,1,0.2,abc\n")
    assert scored(path)["threshold"]["rule"].startswith("0: the scores are log-odds")
    assert scored(path, threshold=0.15)["threshold"] == {"value": 0.15, "rule": "given"}


@pytest.mark.parametrize("threshold", [float("nan"), float("inf")])
def test_a_threshold_is_a_number(tmp_path, threshold):
    (tmp_path / "p.csv").write_text("clip_id,label,score\nfan/1,0,0.1\nfan/2,1,0.2\n")
    with pytest.raises(ValueError, match="--threshold (nan|inf): a number is needed"):
        scored(tmp_path / "p.csv", threshold=threshold)


def test_missing_scores_neither_hide_a_tie_nor_make_one(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("clip_id,label,score,verdict\nfan/1,0,3,normal\nfan/2,1,3,anomalous\nfan/3,1,,anomalous\n"
                    "gear/1,0,,normal\ngear/2,1,,anomalous\n")
    warnings = scored(path)["warnings"]
    assert [text for text in warnings if "equal" in text] == ["all scores are equal in fan: an AUROC of 0.5 says nothing there"]


def test_equal_scores_and_clips_of_train_and_val_are_warned_of(tmp_path):
    rows = write_rows(tmp_path / "p.jsonl", ["fan"])
    for row in rows:
        row["score"] = 0.25
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sides = {row["clip_id"]: Split.TEST for row in rows[3:]}
    sides |= {rows[0]["clip_id"]: Split.TRAIN, rows[2]["clip_id"]: Split.VAL, "fan/test/stuck/absent": Split.TEST}
    scores = scored(tmp_path / "p.jsonl", split=SimpleNamespace(protocol="weak", sha256="abc", clips=sides))
    text = "\n".join(scores["warnings"])
    assert "all scores are equal in fan" in text and "1 clip stands in the train split" in text
    assert f"1 clip stands in the val split: such scores are not those of a test (first {rows[2]['clip_id']})" in text
    assert "1 clip is not in the split" in text and scores["warnings"][-1] == "1 test clip has no prediction"
    assert scores["protocol"] == "weak" and scores["fingerprints"]["split"] == "abc"


def test_test_clips_without_prediction_say_how_many_are_in_quarantine(tmp_path):
    rows = write_rows(tmp_path / "p.jsonl", ["fan"])
    sides = {row["clip_id"]: Split.TEST for row in rows} | {f"fan/test/stuck/bad{number}": Split.TEST for number in range(3)}
    scores = scored(tmp_path / "p.jsonl", split=SimpleNamespace(protocol="weak", sha256="abc", clips=sides),
                    quarantined=["fan/test/stuck/bad1", "fan/test/stuck/bad2", "gear/train/0"])
    assert scores["warnings"] == [f"2 of {len(sides)} test clips could not be read and are not scored (first fan/test/stuck/bad1; "
                                  "frames/quarantine.jsonl of the packed data says why)", "1 test clip has no prediction"]


def test_runs_that_contradict_each_other_on_a_label_are_refused(tmp_path):
    rows = write_rows(tmp_path / "one.jsonl", ["fan"])
    rows[4]["label"] = 1 - rows[4]["label"]
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tables = {name: read_predictions(tmp_path / f"{name}.jsonl") for name in ("one", "two")}
    with pytest.raises(ValueError, match=r"clip 'fan/test/stuck/0004' has label 1 in .*one\.jsonl and 0 in .*two\.jsonl"):
        compare_clips(tables)
    assert compare_clips({"one": tables["one"]}) == (12, None)


def test_runs_over_other_clips_say_how_many_they_share(tmp_path):
    rows = write_rows(tmp_path / "one.jsonl", ["fan"])
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[2:] + [{**rows[0], "clip_id": "fan/test/stuck/new"}]))
    n_common, sentence = compare_clips({name: read_predictions(tmp_path / f"{name}.jsonl") for name in ("one", "two")})
    assert n_common == 10 and "10 of 13 clips are in all of them (one 12, two 11; " in sentence and rows[0]["clip_id"] in sentence
    runs = {name: scored(tmp_path / f"{name}.jsonl") for name in ("one", "two")}
    assert scores_document(runs, n_common)["n_common"] == 10


def test_a_mean_is_named_by_the_categories_that_it_covers(tmp_path):
    rows = write_rows(tmp_path / "p.jsonl", ["fan", "gear"])

    def text(kept) -> str:
        (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
        return markdown_text({"p": scored(tmp_path / "p.jsonl")})
    assert "| **mean of 2** |" in text(rows)
    # Only normal clips in fan: all but accuracy and the false positive rate are undefined there.
    mean = next(line for line in text([row for row in rows if row["clip_id"][0] == "g" or not row["label"]]).splitlines() if "**mean" in line)
    cells = [cell.strip() for cell in mean.strip("|").split("|")]
    assert cells[0] == "**mean**" and [cell[-8:] for cell in cells[3:]] == ["(1 of 2)"] * 3 + ["(2 of 2)", "(1 of 2)", "(2 of 2)"]
    # Nothing but a missing score in fan: every figure covers gear alone.
    assert "| **mean of 1 of 2** |" in text([{**row, "score": row["score"] if row["clip_id"][0] == "g" else None} for row in rows])
    assert "| **mean of 0 of 2** |" in text([{**row, "score": None} for row in rows])


def test_means_of_phys_ad_are_not_spoken_of_where_nobody_expects_them(tmp_path):
    write_rows(tmp_path / "p.jsonl", ["fan", "gear"])
    assert "Phys-AD" not in markdown_text({"p": scored(tmp_path / "p.jsonl")})
    write_rows(tmp_path / "p.jsonl", [*PHYS_AD_CATEGORIES[:20], "own"])
    text = markdown_text({"p": scored(tmp_path / "p.jsonl")})
    assert "mean of the 21 of Phys-AD undefined: 19 of 21" in text and "mean of the 22" not in text


def test_runs_are_named_by_what_tells_them_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert list(name_runs(["x/a.jsonl", "y/b.jsonl"])) == ["a", "b"]
    assert list(name_runs(["x/p.jsonl", "y/p.jsonl"])) == ["x", "y"]
    assert list(name_runs(["x/p.jsonl", "base=z/p.jsonl"])) == ["p", "base"]
    (tmp_path / "odd=name.jsonl").touch()
    assert list(name_runs(["odd=name.jsonl"])) == ["odd=name"]
    with pytest.raises(ValueError, match="two predictions files are named 'a'"):
        name_runs(["a=x.jsonl", "a=y.jsonl"])


def test_tables_show_every_run_and_dash_what_is_undefined(tmp_path):
    write_rows(tmp_path / "one.jsonl", ["fan", "gear|x"])
    write_rows(tmp_path / "two.jsonl", ["fan"], seed=4)
    runs = {name: scored(tmp_path / f"{name}.jsonl") for name in ("one", "two")}
    assert scores_document({"one": runs["one"]}) == runs["one"] and set(scores_document(runs)["runs"]) == {"one", "two"}
    markdown = markdown_text(runs)
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1, "each row has as many cells"
    assert f"{runs['two']['per_category']['fan']['auroc']:.3f}" in markdown and "gear\\|x" in markdown
    assert "mean of 2" in markdown and "mean of 1" in markdown
    console = console_text(runs, width=140)
    assert "fan" in console and "–" in console and f"{runs['one']['per_category']['fan']['auroc']:.3f}" in console
    assert "[bold]" not in console


def test_the_csv_holds_every_figure_unrounded(tmp_path):
    write_rows(tmp_path / "p.jsonl", ["fan", "gear"])
    runs = {"p": scored(tmp_path / "p.jsonl")}
    rows = list(csv.DictReader(csv_text(runs).splitlines()))
    means = ("average", "average_21", "average_22")
    assert [(row["kind"], row["category"]) for row in rows] == [("category", "fan"), ("category", "gear"), *((mean, "") for mean in means)]
    for row, record in zip(rows, [*runs["p"]["per_category"].values(), *(runs["p"][mean] for mean in means)], strict=True):
        for key in (*COLUMNS, "n", "n_anomalous"):
            assert row[key] == ("" if record[key] is None else repr(record[key])), (key, row)
        assert row["auroc_ci95_low"] == ("" if record["auroc_ci95"] is None else repr(record["auroc_ci95"][0]))
    assert rows[3]["auroc"] == "" and rows[0]["parse_rate"] == "" and rows[0]["run"] == "p"


def test_the_parse_rate_has_a_column_only_where_something_was_parsed(tmp_path):
    rows = write_rows(tmp_path / "p.jsonl", ["fan"])
    assert "read" not in text_table({"p": scored(tmp_path / "p.jsonl")}).header
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({**row, "verdict": "normal"}) + "\n" for row in rows))
    table = text_table({"p": scored(tmp_path / "p.jsonl")})
    assert table.rows[0][table.header.index("read")] == "1.000" and table.rows[0][table.header.index("TPR")] == "0.000"
    wide, narrow = (console_text({"p": scored(tmp_path / "p.jsonl")}, width) for width in (140, 100))
    assert "TPR" in wide and "TPR" not in narrow.split("- accuracy")[0] and "balanced acc." in narrow


def test_a_file_of_verdicts_alone_has_its_means_too(tmp_path):
    write_rows(tmp_path / "p.jsonl", PHYS_AD_CATEGORIES)
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({**row, "score": None, "verdict": "anomalous" if row["label"] else "normal"}) + "\n"
                                              for row in rows))
    scores = scored(tmp_path / "p.jsonl")
    assert scores["average_21"]["auroc"] is None and scores["average_21"]["auroc_verdict"] == 1
    assert scores["threshold"]["rule"] == "0: no clip has a score"
    text = markdown_text({"p": scores})
    assert "| **mean of 22** |" in text and "| **mean of the 21** |" in text and "of Phys-AD undefined" not in text


def of_csv(tmp_path, *rows: str, columns: str = "clip_id,label,score"):
    (tmp_path / "p.csv").write_text("\n".join((columns, *rows)) + "\n")
    return scored(tmp_path / "p.csv")


def test_intervals_of_few_or_wholly_parted_clips_are_warned_of(tmp_path):
    rows = [f"{category}/test/x/{clip},{clip % 2},{0.4 * (clip % 2) + noise * (clip % 5 < 2)}"
            for category, clips, noise in (("fan", 6, 0), ("gear", 20, 0), ("ball", 20, 0.6)) for clip in range(clips)]
    warnings = of_csv(tmp_path, *rows)["warnings"]
    assert "few clips of a class make the bootstrap's interval too narrow in fan (3 normal, 3 anomalous)" in warnings
    assert sum("width 0 in gear (10 normal, 10 anomalous)" in warning for warning in warnings) == 1
    assert not any("ball" in warning for warning in warnings)


def test_a_reversed_scale_is_warned_of(tmp_path):
    rows = [f"fan/test/x/{clip},{clip % 2},{(clip % 7) / 10 + 0.3 * (clip % 2 == 0)}" for clip in range(40)]
    assert any("below 0.5" in warning and "a high score must mean anomalous" in warning for warning in of_csv(tmp_path, *rows)["warnings"])
    rows = [f"fan/test/x/{clip},{(clip + 1) % 2},{(clip % 7) / 10 + 0.3 * (clip % 2 == 0)}" for clip in range(40)]
    assert not any("below 0.5" in warning for warning in of_csv(tmp_path, *rows)["warnings"])


def test_scores_of_another_scale_say_that_a_threshold_is_missing(tmp_path):
    scores = of_csv(tmp_path, *(f"fan/test/x/{clip},{clip % 2},{10 + clip}" for clip in range(12)))
    assert any("all verdicts are the same at the threshold 0 in fan" in warning and "give --threshold" in warning for warning in scores["warnings"])
    given = scored(tmp_path / "p.csv", threshold=15)
    assert not any("verdicts are the same" in warning for warning in given["warnings"])


def test_infinite_scores_are_named_by_line_and_leave_the_threshold_alone(tmp_path):
    scores = of_csv(tmp_path, *(f"fan/test/x/{clip},{clip % 2},{'inf' if clip == 3 else clip % 7 / 10}" for clip in range(12)))
    assert scores["threshold"] == {"value": 0.5, "rule": "0.5: all finite scores lie in [0, 1]"}
    assert any(warning.startswith("infinite scores stand in line 5:") for warning in scores["warnings"])


def test_a_file_without_any_score_says_so_once(tmp_path):
    warnings = of_csv(tmp_path, "fan/test/x/1,0,", "fan/test/x/2,1,nan")["warnings"]
    assert len(warnings) == 1 and warnings[0].startswith("no clip has a score (all 2 are")


def test_average_precision_of_one_class_is_null_and_in_no_mean(tmp_path):
    write_rows(tmp_path / "p.jsonl", ["fan", "gear"])
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows if row["label"] or row["clip_id"][0] == "g"))
    scores = scored(tmp_path / "p.jsonl")
    fan = scores["per_category"]["fan"]
    assert fan["ap"] is None and "one class only: 8 anomalous and 0 normal" in fan["reasons"]["ap"]
    assert scores["average"]["ap"] == scores["per_category"]["gear"]["ap"] and scores["average"]["left_out"]["ap"] == ["fan"]


def test_verdicts_that_are_not_those_of_the_threshold_are_counted(tmp_path):
    rows = [f"fan/test/x/{clip},{clip % 2},{clip % 7 - 3},{'anomalous' if clip % 7 - 3 >= 2 else 'normal'}" for clip in range(14)]
    columns = "clip_id,label,score,verdict"
    assert any("4 of 14 verdicts of the verdict column are not those of the scores at 0" in warning
               for warning in of_csv(tmp_path, *rows, columns=columns)["warnings"])
    assert not any("verdict column" in warning for warning in scored(tmp_path / "p.csv", threshold=2)["warnings"])


def test_ids_without_a_category_among_others_are_counted(tmp_path):
    rows = [f"fan/test/x/{clip},{clip % 2},{clip % 7}" for clip in range(20)]
    assert any(warning.startswith("1 of 21 clips has no category, and each counts as one of its own") and "0042" in warning
               for warning in of_csv(tmp_path, *rows, "0042,1,3")["warnings"])
    assert not any("no category" in warning for warning in of_csv(tmp_path, *rows)["warnings"])
