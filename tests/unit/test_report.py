"""The report: self-contained, its text escaped, its pictures those of the clips, its picks telling ones."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import numpy as np
import pytest
from report_pages import NASTY, Page, frames_of, scored_runs

from vlmphys.charts import calibration_svg, histogram_svg, intervals_svg, precision_recall_svg, roc_svg
from vlmphys.comparison import ablation_tables, compare_runs
from vlmphys.predictions import read_predictions
from vlmphys.published import beside_table, published_rows_table
from vlmphys.report import last_losses, write_html
from vlmphys.scoring import score_predictions

pytestmark = pytest.mark.unit


@pytest.fixture
def scored(tmp_path):
    return scored_runs(tmp_path)


def test_the_page_is_balanced_self_contained_and_lets_only_its_own_script_run(scored):
    runs, predictions = scored
    html = write_html(runs, predictions, frames_of(predictions["one"]), lambda category, state: "<u>reference</u>")
    page = Page(html)
    assert page.open == []
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")], f"{tag} has a handler"
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:"), f"{tag} loads {attributes[name]}"
    assert "http" not in re.sub(r'http-equiv="', "", html).replace("http-equiv", ""), "an address in the page"
    assert len(page.named("script")) == 1
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL).group(1)
    policy = next(attrs["content"] for attrs in page.named("meta") if attrs.get("http-equiv") == "Content-Security-Policy")
    assert f"script-src 'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" in policy
    assert "default-src 'none'" in policy


def test_text_of_models_and_names_is_shown_and_not_run(scored):
    runs, predictions = scored
    html = write_html(runs, predictions, None, lambda category, state: "<u>reference</u>")
    page = Page(html)
    assert page.named("u") == [] and len(page.named("script")) == 1 and not [attrs for attrs in page.named("img") if "onerror" in attrs]
    text = " ".join(page.text)
    assert NASTY in text and "<u>reference</u>" in text and 'ge"ar<b>' in text and "<b>two" in text and "stuck<i>" in text
    assert {attrs["data-category"] for attrs in page.named("article")} == {"fan", 'ge"ar<b>'}


def test_further_tables_stand_below_the_scores_and_are_escaped(scored):
    runs, predictions = scored
    comparison = compare_runs(predictions, runs)
    tables = [*ablation_tables(comparison), beside_table(runs), published_rows_table(runs)]
    page = Page(write_html(runs, predictions, tables=tables))
    assert page.open == [] and page.named("b") and len(page.named("table")) == 2 + len(tables) == 6
    text = " ".join(page.text)
    assert "<b>two − one [95 %]" in text and 'ge"ar<b>' in text and "Ours, multi-turn paper (ICASSP 2026), table 1" in text
    mean = comparison["against"]["<b>two"]["auroc"]["mean"]
    assert f"{mean['difference']:+.3f} [{mean['difference_ci95'][0]:+.3f}, {mean['difference_ci95'][1]:+.3f}]" in text


def test_undefined_figures_and_missing_scores_do_not_break_the_page(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"clip_id": "fan/test/stuck/1", "label": 1, "score": null}\n'
                    '{"clip_id": "gear/test/stuck/1", "label": 1, "score": 2.0, "verdict": "unparsed"}\n')
    table = read_predictions(path)
    runs = {"p": score_predictions(table)}
    text = " ".join(Page(write_html(runs, {"p": table})).text)
    assert "one class only" in text and "no scores" in text and "unparsed" in text
    assert not re.search(r"\bnan\b", text.lower().replace("empty or nan", ""))


def test_the_head_counts_and_the_text_says_what_explanations_are(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("clip_id,label,score\nfan/1,1,0.5\nfan/2,0,0.1\n")
    table = read_predictions(path)
    runs = {"p": score_predictions(table)}
    html = write_html(runs, {"p": table})
    assert "2 clips, 1 of them anomalous, in 1 category<" in html and "mean AUROC over 1 category<" in html
    assert "Explanations are the model's own words; nothing checks them against its verdict." in html
    with open(path, "a") as stream:
        stream.write("gear/1,1,0.5\n")
    other = read_predictions(path)
    runs, tables = {"p": runs["p"], "q": score_predictions(other)}, {"p": table, "q": other}
    for scores in runs.values():
        scores["warnings"].append("said by both")
    html = write_html(runs, tables)
    assert "2 / 3 clips, 1 / 2 of them anomalous, in 2 categories<" in html and "mean AUROC over 1 of 2 categories<" in html
    assert re.search(r'class="box warnings"><ul>(.*?)</ul>', html).group(1).count("said by both") == 1


def test_charts_are_well_formed_and_show_the_curve():
    labels, scores = np.array([0, 1, 0, 1]), np.array([0.0, 1.0, 2.0, 3.0])
    svg = roc_svg([("a", labels, scores), ("one class", np.ones(3), np.arange(3.0))], "fan")
    assert Page(svg).open == [] and len(Page(svg).named("polyline")) == 1
    points = [tuple(map(float, pair.split(","))) for pair in Page(svg).named("polyline")[0]["points"].split()]
    assert points[0][0] < points[-1][0] and points[0][1] > points[-1][1] and len(points) == 5
    svg = histogram_svg(labels, np.array([0.0, 1.0, np.nan, np.inf]), 0.5, "fan")
    assert Page(svg).open == [] and {attrs["class"] for attrs in Page(svg).named("rect")} == {"normal", "anomalous"}
    words = re.findall(r'class="axis">(.*?)<', svg)
    assert words == ["score", "share of the class (tallest bar 100%)"]
    assert all(float(attrs["y"]) >= 14 and float(attrs["y"]) + float(attrs["height"]) <= 90.1 for attrs in Page(svg).named("rect"))
    with np.errstate(all="raise"):
        wide = histogram_svg(labels[:2], np.array([-1.7e308, 1.7e308]), 0.0, "x")
    assert "-1.7e+308<" in wide and "nan" not in wide and 'class="cut" d="M113.0,' in wide, "a range beyond the largest float"
    assert "no scores" in histogram_svg(labels[:1], np.array([np.nan]), 0.0, "x")


def test_the_other_charts_are_well_formed():
    labels, scores = np.array([0, 1, 0, 1]), np.array([0.0, 1.0, 2.0, 3.0])
    svg = Page(precision_recall_svg([("one class", np.zeros(3), np.arange(3.0)), ("a", labels, scores)], "fan"))
    assert svg.open == [] and len(svg.named("polyline")) == 1 and svg.named("polyline")[0]["class"] == "run run1"
    points = [tuple(map(float, pair.split(","))) for pair in svg.named("polyline")[0]["points"].split()]
    assert [x for x, _ in points] == sorted(x for x, _ in points) and points[0][1] < points[-1][1]
    bins = [{"n": 40, "mean_probability": 0.05, "share_anomalous": 0.1}, {"n": 10, "mean_probability": 0.95, "share_anomalous": 1.0}]
    svg = Page(calibration_svg(bins, "<b>"))
    assert svg.open == [] and [float(dot["r"]) for dot in svg.named("circle")] == [5.5, 3.5] and svg.named("b") == []
    rows = [("fan", False, [(0.5, (0.25, 0.75)), None]), ("a category with a very long name", False, [(1.0, None), (0.0, (0.0, 0.5))])]
    svg = Page(intervals_svg(rows))
    assert svg.open == [] and len(svg.named("circle")) == 3 and len([path for path in svg.named("path") if path["class"] == "bar"]) == 2
    assert {"fan: 0.500, 0.250 to 0.750", "a category with a very …"} <= set(svg.text)


def test_the_calibration_curve_and_its_error_are_those_of_the_rows(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("clip_id,label,score\n" + "".join(f"fan/{clip},{clip % 2},{0.9 if clip % 4 else 0.2}\n" for clip in range(8)))
    table = read_predictions(path)
    runs = {"p": score_predictions(table)}
    found = runs["p"]["calibration"]
    # Six clips at 0.9, four of them anomalous; two at 0.2, none of them.
    assert found["ece"] == pytest.approx((6 * abs(4 / 6 - 0.9) + 2 * 0.2) / 8) and [part["n"] for part in found["bins"]] == [2, 6]
    html = write_html(runs, {"p": table})
    assert f"expected calibration error {found['ece']:.3f}</span>" in html
    assert "scores, which all lie in [0, 1], taken as probabilities; 8 clips" in html
    path.write_text("clip_id,label,score\nfan/1,1,3\nfan/2,0,0.1\n")
    table = read_predictions(path)
    runs = {"p": score_predictions(table)}
    assert runs["p"]["calibration"]["ece"] is None
    assert "the scores are no probabilities: some lie outside [0, 1]." in write_html(runs, {"p": table})


def test_our_own_rows_are_calibrated_by_their_probability(tmp_path):
    path = tmp_path / "p.jsonl"
    rows = [{"clip_id": f"fan/{clip}", "label": clip % 2, "score": 4.0 * (clip % 2) - 2, "probability": 0.25 + 0.5 * (clip % 2),
             "data_fingerprint": "f"} for clip in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = score_predictions(read_predictions(path))["calibration"]
    assert found["ece"] == pytest.approx(0.25) and found["source"] == "probabilities of the predictions"
    path.write_text("".join(json.dumps({key: value for key, value in row.items() if key != "probability"}) + "\n" for row in rows))
    assert score_predictions(read_predictions(path))["calibration"]["reason"] == "the rows hold log-odds without a probability"


def test_verdicts_and_causes_are_counted_by_state(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("clip_id,label,score\nfan/test/stuck/1,1,3\nfan/test/stuck/2,1,-1\nfan/test/stuck/3,1,2\nfan/test/anomaly_free/1,0,1\n")
    table = read_predictions(path)
    runs = {"p": score_predictions(table)}
    html = write_html(runs, {"p": table})
    assert "2 states of 1 categories" not in html and "2 states of 1 category" in html
    rows = re.findall(r"<tr>(<th scope=\"row\">fan</th><td>\w+ <span.*?)</tr>", html)
    assert re.findall(r'<td class="[^"]*">(\d+)</td>', rows[0]) == ["0", "1"] and re.findall(r'<td class="[^"]*">(\d+)</td>', rows[1]) == ["1", "2"]
    assert "Causes by state" not in html
    runs["p"]["texts"] = {"similarity": {"per_category": {"fan": {"confusion": {"stuck": {"stuck": 1, "<u>": 2}}}, "gear": {"sbert": None}}}}
    page = Page(write_html(runs, {"p": table}))
    assert page.open == [] and page.named("u") == [] and "Causes by state" in page.text and "<u>" in page.text


def test_losses_by_turn_are_shown(tmp_path, scored):
    runs, predictions = scored
    (tmp_path / "run").mkdir()
    assert last_losses(tmp_path / "run") is None
    (tmp_path / "run" / "metrics.jsonl").write_text(
        '{"step": 10, "loss": 2.0}\n'
        '{"step": 20, "loss": 0.5123, "loss_turn_1": 0.01, "loss_turn_4": 0.25, "verdict_loss": null}\n{"step": 30, "lo')
    row = last_losses(tmp_path / "run")
    assert row["step"] == 20
    html = write_html(runs, predictions, losses={"multi_turn": row})
    heads = re.search(r"<h2>Training loss by turn</h2>.*?<thead>(.*?)</thead>", html).group(1)
    assert re.findall("<th>(.*?)</th>", heads) == ["run", "step", "all tokens", "turn 1", "turn 4"] and "<td>0.5123</td>" in html
    # A variant with one answer has its verdict there, which must not stand below the others' first turn.
    html = write_html(runs, predictions, losses={"multi_turn": row, "no_physics": {"loss": 0.3, "loss_turn_1": 0.2, "loss_turn_2": None}})
    heads, body = re.search(r"<h2>Training loss by turn</h2>.*?<thead>(.*?)</thead><tbody>(.*?)</tbody>", html).groups()
    assert re.findall("<th>(.*?)</th>", heads)[2:] == ["all tokens", "turn 1", "turn 4", "verdict turn (only turn)"]
    assert re.findall("<td>(.*?)</td>", body)[-5:] == ["–", "0.3000", "–", "–", "0.2000"]
    with pytest.raises(ValueError, match="no such run folder"):
        last_losses(tmp_path / "none")
    (tmp_path / "run" / "metrics.jsonl").write_text('{"loss": }\n')
    with pytest.raises(ValueError, match="metrics.jsonl, line 1: no JSON"):
        last_losses(tmp_path / "run")
