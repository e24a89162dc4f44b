"""The report: self-contained, its text escaped, its pictures those of the clips, its picks telling ones."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from vlmphys.charts import histogram_svg, roc_svg
from vlmphys.comparison import ablation_tables, compare_runs
from vlmphys.predictions import read_predictions
from vlmphys.published import beside_table, published_rows_table
from vlmphys.report import last_losses, write_html
from vlmphys.report_clips import outcome_of, pick_clips, strip_data_uri
from vlmphys.scoring import score_predictions

pytestmark = pytest.mark.unit

NASTY = '<script>alert("x")</script><img src=x onerror=alert(1)>'


class Page(HTMLParser):
    """Collects tags with their attributes, and checks that they are balanced."""

    VOID = {"meta", "link", "img", "br"}

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    def named(self, tag: str) -> list[dict]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture
def scored(tmp_path):
    """Two runs over two categories; one explanation, one category and one state are hostile."""
    def read(name: str, seed: int):
        generator = np.random.default_rng(seed)
        with open(tmp_path / f"{name}.jsonl", "w") as stream:
            for category in ("fan", 'ge"ar<b>'):
                for clip in range(20):
                    label = clip % 2
                    stream.write(json.dumps({
                        "clip_id": f"{category}/test/{'stuck<i>' if label else 'anomaly_free'}/{clip}", "label": label,
                        "category": category, "score": float(generator.normal() + label), "explanation": NASTY if clip % 3 else None}) + "\n")
        return read_predictions(tmp_path / f"{name}.jsonl")
    predictions = {"one": read("one", 0), "<b>two": read("two", 1)}
    return {name: score_predictions(table) for name, table in predictions.items()}, predictions


def frames_of(predictions):
    """Stands in for a FramesTable: every clip but the last, frames of one grey each."""
    def row(clip_id):
        shade = np.full((8, 64, 64, 3), 10 * int(clip_id.rsplit("/", 1)[1]), dtype=np.uint8)
        return SimpleNamespace(frames_THWC=shade, frame_index=np.arange(8) * 5, source_frames=40, source_fps=60.0)
    return SimpleNamespace(clip_ids=predictions.clip_ids[:-1], row=row)


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
    assert page.open == [] and page.named("b") and len(page.named("table")) == 1 + len(tables) == 5
    text = " ".join(page.text)
    assert "<b>two − one [95 %]" in text and 'ge"ar<b>' in text and "Ours, multi-turn paper (ICASSP 2026), table 1" in text
    mean = comparison["against"]["<b>two"]["auroc"]["mean"]
    assert f"{mean['difference']:+.3f} [{mean['difference_ci95'][0]:+.3f}, {mean['difference_ci95'][1]:+.3f}]" in text


def test_cards_carry_what_the_filter_reads(scored):
    runs, predictions = scored
    html = write_html({"one": runs["one"]}, {"one": predictions["one"]})
    page = Page(html)
    picks = {pick.clip_id: pick for pick in pick_clips({"one": runs["one"]}, {"one": predictions["one"]})}
    cards = page.named("article")
    assert len(cards) == len(picks) > 4
    options = {attrs["value"] for attrs in page.named("option")}
    assert {"fan", 'ge"ar<b>', "right", "wrong", "missed", "false-alarm", "uncertain"} <= options
    for card, pick in zip(cards, picks.values()):
        outcome = outcome_of(predictions["one"], pick.rows["one"], 0.0)
        marks = set(card["data-kinds"].split())
        assert ("right" in marks) == (outcome == "right") and ("wrong" in marks) == (outcome != "right")
        assert ("missed" in marks) == (outcome == "missed") and ("uncertain" in marks) == ("uncertain" in pick.kinds)


def test_picks_are_the_surest_right_and_wrong_and_the_most_uncertain(scored):
    runs, predictions = ({"one": item["one"]} for item in scored)
    table = predictions["one"]
    picks = pick_clips(runs, predictions)
    fan = [row for row, category in enumerate(table.categories) if category == "fan"]
    surest = max((row for row in fan if table.labels_N[row] == 1 and table.scores_N[row] >= 0), key=lambda row: table.scores_N[row])
    alarm = max((row for row in fan if table.labels_N[row] == 0 and table.scores_N[row] >= 0), key=lambda row: table.scores_N[row])
    unsure = min(fan, key=lambda row: abs(table.scores_N[row]))
    kinds = {pick.clip_id: pick.kinds for pick in picks}
    for row, kind in ((surest, "right"), (alarm, "false alarm"), (unsure, "uncertain")):
        assert kind in kinds[table.clip_ids[row]]
    assert len([pick for pick in picks if pick.category == "fan"]) <= 5


def test_film_strips_are_the_frames(scored):
    runs, predictions = scored
    page = Page(write_html(runs, predictions, frames_of(predictions["one"])))
    strips = page.named("img")
    assert 0 < len(strips) <= len(page.named("article"))
    for attrs in strips:
        picture = Image.open(io.BytesIO(base64.b64decode(attrs["src"].partition(",")[2])))
        assert picture.format == "JPEG" and picture.size == (8 * 66 - 2, 64) == (int(attrs["width"]), int(attrs["height"]))
        shade = 10 * int(attrs["alt"].rsplit("/", 1)[1])
        assert abs(int(np.asarray(picture)[32, 32, 0]) - shade) <= 2
        assert attrs["title"] == "frames 0, 5, 10, 15, 20, 25, 30, 35 of 40"
    frames = np.zeros((8, 224, 224, 3), dtype=np.uint8)
    assert strip_data_uri(frames)[1:] == (8 * 114 - 2, 112)


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
    assert "no scores" in histogram_svg(labels[:1], np.array([np.nan]), 0.0, "x")


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
