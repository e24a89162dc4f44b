"""Runs against the first: paired over common clips, by category and in the mean, in numbers and in the table."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from vlmphys.comparison import ablation_tables, check_common, compare_runs, named_by_variant
from vlmphys.paired import delong
from vlmphys.predictions import read_predictions
from vlmphys.scoring import score_predictions
from vlmphys.tables import console_text, csv_text, markdown_text

pytestmark = pytest.mark.unit


def write(path, seed: int, gain: float, categories=("fan", "gear"), clips: int = 40, **columns):
    noise, common = np.random.default_rng(seed), np.random.default_rng(99)
    rows = [{"clip_id": f"{category}/test/x/{clip}", "label": clip % 2,
             "score": round(float(common.normal() + noise.normal() + gain * (clip % 2)), 2), **columns} for category in categories for clip in range(clips)]
    save(path, rows)
    return rows


def save(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def compared(tmp_path, names=("one", "two"), seed: int = 0):
    tables = {name: read_predictions(tmp_path / f"{name}.jsonl") for name in names}
    runs = {name: score_predictions(table) for name, table in tables.items()}
    return compare_runs(tables, runs, seed), runs


def test_differences_are_those_of_the_common_clips(tmp_path):
    one = write(tmp_path / "one.jsonl", 0, 0.5)
    two = write(tmp_path / "two.jsonl", 1, 2.0)
    two[3]["score"] = None
    save(tmp_path / "two.jsonl", [*two[1:][::-1], {"clip_id": "fan/test/x/new", "label": 1, "score": 0.0}])
    comparison, runs = compared(tmp_path)
    part = comparison["against"]["two"]
    assert comparison["base"] == "one" and part["n_common"] == 79 and part["auroc"]["n_left_out"] == 1
    scores = {name: {row["clip_id"]: row["score"] for row in rows} for name, rows in (("one", one), ("two", two))}
    for category in ("fan", "gear"):
        clips = [row for row in one[1:] if row["clip_id"].startswith(category) and scores["two"][row["clip_id"]] is not None]
        labels = np.array([row["label"] for row in clips])
        first, second = (np.array([scores[name][row["clip_id"]] for row in clips]) for name in ("one", "two"))
        record = part["auroc"]["per_category"][category]
        assert record["n"] == len(clips) and record["n_anomalous"] == labels.sum()
        assert record["base"] == pytest.approx(roc_auc_score(labels, first)) and record["run"] == pytest.approx(roc_auc_score(labels, second))
        assert record["difference"] == pytest.approx(record["run"] - record["base"]) and record["p"] == pytest.approx(delong(labels, first, second).p)
        low, high = record["difference_ci95"]
        assert low < record["difference"] < high
        verdicts = part["auroc_verdict"]["per_category"][category]
        assert verdicts["base"] == pytest.approx(balanced_accuracy_score(labels, first >= 0))
        assert verdicts["n"] == record["n"]
        assert verdicts["run"] == pytest.approx(balanced_accuracy_score(labels, second >= 0))
    mean = part["auroc"]["mean"]
    assert mean["difference"] == pytest.approx(np.mean([record["difference"] for record in part["auroc"]["per_category"].values()]))
    assert mean["difference_ci95"][0] < mean["difference"] < mean["difference_ci95"][1] and 0 < mean["p"] < 0.05
    assert mean["difference_ci95"][1] - mean["difference_ci95"][0] < np.ptp(part["auroc"]["per_category"]["fan"]["difference_ci95"])
    assert json.loads(json.dumps(comparison, allow_nan=False)) == comparison and compared(tmp_path)[0] == comparison
    assert compared(tmp_path, seed=1)[0] != comparison


def test_the_csv_has_the_differences_and_every_table_the_intervals(tmp_path):
    write(tmp_path / "one.jsonl", 0, 0.5)
    write(tmp_path / "two.jsonl", 1, 2.0)
    comparison, runs = compared(tmp_path)
    rows = list(csv.DictReader(csv_text(runs, comparison).splitlines()))
    part = comparison["against"]["two"]["auroc_verdict"]
    records = {("category", "fan"): part["per_category"]["fan"], ("average", ""): part["mean"]}
    for place, record in records.items():
        one, two = (next(row for row in rows if (row["run"], row["kind"], row["category"]) == (name, *place)) for name in ("one", "two"))
        assert two["auroc_verdict_difference"] == repr(record["difference"]) and two["auroc_verdict_p"] == repr(record["p"])
        assert two["auroc_verdict_difference_ci95_high"] == repr(record["difference_ci95"][1])
        assert one["auroc_difference"] == one["auroc_p"] == ""
    assert "auroc_difference" not in csv_text(runs)
    interval = "{:.3f} [{:.3f}, {:.3f}]".format(runs["two"]["average"]["auroc"], *runs["two"]["average"]["auroc_ci95"])
    assert interval in markdown_text(runs) and interval in console_text(runs, 130) and interval not in console_text(runs, 100)


def test_a_run_against_itself_differs_by_nothing_and_has_no_p_in_a_category(tmp_path):
    rows = write(tmp_path / "one.jsonl", 0, 1.0)
    save(tmp_path / "two.jsonl", rows)
    comparison, runs = compared(tmp_path)
    part = comparison["against"]["two"]["auroc"]
    for category, record in comparison["against"]["two"]["auroc_verdict"]["per_category"].items():
        assert record["base"] == runs["one"]["per_category"][category]["auroc_verdict"], "the same figure to the last bit in both tables"
    for record in part["per_category"].values():
        assert record["base"] == record["run"] and record["difference"] == 0 and record["difference_ci95"] == [0, 0]
        assert record["p"] is None and "no variance" in record["reasons"]["p"]
    assert part["mean"]["difference"] == 0 and part["mean"]["p"] == 1.0


def test_a_category_with_one_class_is_left_out_by_name(tmp_path):
    for name, seed in (("one", 0), ("two", 1)):
        save(tmp_path / f"{name}.jsonl", [row for row in write(tmp_path / "x.jsonl", seed, 1.0) if row["clip_id"][0] == "f" or row["label"]])
    comparison, _ = compared(tmp_path)
    part = comparison["against"]["two"]["auroc"]
    assert part["per_category"]["gear"]["difference"] is None and "one class only" in part["per_category"]["gear"]["reasons"]["difference"]
    assert part["mean"]["n_categories"] == 1 and part["mean"]["left_out"] == ["gear"]
    table = ablation_tables(comparison)[0]
    assert [row[0] for row in table.rows] == ["fan", "gear", "mean of 1"] and table.rows[1][-3:] == ["–"] * 3
    assert any("no difference in gear" in note for note in table.notes)


def test_runs_without_common_clips_have_no_mean(tmp_path):
    write(tmp_path / "one.jsonl", 0, 1.0, ("fan",))
    write(tmp_path / "two.jsonl", 0, 1.0, ("gear",))
    comparison, _ = compared(tmp_path)
    part = comparison["against"]["two"]
    assert part["n_common"] == 0 and part["auroc"]["mean"]["difference"] is None
    assert part["auroc"]["mean"]["reasons"]["p"] == "undefined in every category"
    assert ablation_tables(comparison)[0].rows == [["mean of 0", "", "–", "–", "–", "–"]]


def test_the_ablation_table(tmp_path):
    for seed, (name, gain) in enumerate((("no_physics", 0.5), ("single_turn", 0.2), ("multi_turn", 3.0))):
        write(tmp_path / f"{name}.jsonl", seed, gain)
    comparison, _ = compared(tmp_path, ("no_physics", "single_turn", "multi_turn"))
    score, verdict = ablation_tables(comparison)
    assert score.header == ["category", "clips", "no_physics", "single_turn", "single_turn − no_physics [95 %]", "p",
                            "multi_turn", "multi_turn − no_physics [95 %]", "p"]
    record = comparison["against"]["multi_turn"]["auroc"]["per_category"]["fan"]
    low, high = record["difference_ci95"]
    assert score.rows[0][6:8] == [f"{record['run']:.3f}", f"{record['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"]
    assert score.rows[-1][0] == "mean of 2" and score.means == {2}
    assert any("no_physics 0.925, single_turn 0.787, multi_turn 0.967" in note for note in verdict.notes)
    assert not any("0.925" in note for note in score.notes), "the paper's figure is that of the hard verdict"


def test_runs_are_named_by_their_variants_where_these_tell_them_apart():
    assert named_by_variant({"a": "no_physics", "b": "multi_turn"}) == {"a": "no_physics", "b": "multi_turn"}
    for variants in ({"a": "multi_turn", "b": "multi_turn"}, {"a": "multi_turn", "b": None}):
        assert named_by_variant(variants) == {"a": "a", "b": "b"}


def test_a_mean_over_a_class_of_one_clip_has_neither_interval_nor_p(tmp_path):
    for name, sign in (("one", 1), ("two", -1)):
        write(tmp_path / f"{name}.jsonl", 0, 1.0, ("fan",))
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        save(tmp_path / f"{name}.jsonl", [*rows, *({"clip_id": f"gear/test/x/{label}", "label": label, "score": -sign * label} for label in (0, 1))])
    comparison, _ = compared(tmp_path)
    part = comparison["against"]["two"]["auroc"]
    mean, gear = part["mean"], part["per_category"]["gear"]
    assert mean["difference"] == 0.5 and mean["difference_ci95"] is None and mean["p"] is None and "in gear" in mean["reasons"]["p"]
    assert gear["difference"] == 1 and gear["difference_ci95"] is None and "two clips of each class" in gear["reasons"]["difference_ci95"]
    assert part["per_category"]["fan"]["difference_ci95"] is not None
    table = ablation_tables(comparison)[0]
    assert table.rows[-1][-2:] == ["+0.500", "–"] and any("neither interval nor p (a class has one clip in gear" in note for note in table.notes)


def test_a_difference_that_no_resample_changes_has_no_p(tmp_path):
    for name, sign in (("one", -1), ("two", 1)):
        save(tmp_path / f"{name}.jsonl", [{"clip_id": f"fan/test/x/{clip}", "label": clip % 2, "score": sign * (clip % 2)} for clip in range(6)])
    comparison, _ = compared(tmp_path)
    mean = comparison["against"]["two"]["auroc"]["mean"]
    assert mean["difference"] == 1 and mean["p"] is None and "no variance" in mean["reasons"]["p"]


@pytest.mark.parametrize("theirs, cure", [
    ("fan/test/x/{}.mp4", r"the ids of two have '.mp4' at their end besides: take that off"),
    ("/data/fan/test/x/{}.mp4", r"the ids of two have '/data/' at their beginning and '.mp4' at their end besides"),
    ("x/{}", r"the ids of one have 'fan/test/' at their beginning besides"), ("clip{}", "give files whose clip ids are the same")])
def test_runs_without_a_common_clip_are_refused_with_what_parts_their_ids(tmp_path, theirs, cure):
    for name, form in (("one", "fan/test/x/{}"), ("two", theirs)):
        save(tmp_path / f"{name}.jsonl", [{"clip_id": form.format(clip), "label": clip % 2, "score": 0.5, "category": "fan"} for clip in range(4)])
    tables = {name: read_predictions(tmp_path / f"{name}.jsonl") for name in ("one", "two")}
    with pytest.raises(ValueError, match=f"no clip is common to one and two: one has 'fan/test/x/0', two has '{theirs.format(0)}'; {cure}"):
        check_common(tables)
    check_common({"one": tables["one"], "again": tables["one"]})
