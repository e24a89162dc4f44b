"""The clips that the report shows: telling ones, marked for the filters by kind of error, with strips that stay small."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from report_pages import Page, frames_of, scored_runs

from vlmphys.predictions import read_predictions
from vlmphys.report import write_html
from vlmphys.report_clips import CAUSE_KINDS, KINDS, MOST_OF_A_KIND, ROLES, outcome_of, pick_clips, strip_data_uri
from vlmphys.scoring import PHYS_AD_CATEGORIES, score_predictions

pytestmark = pytest.mark.unit


@pytest.fixture
def scored(tmp_path):
    return scored_runs(tmp_path)


def test_cards_carry_what_the_filter_reads(scored):
    runs, predictions = scored
    html = write_html({"one": runs["one"]}, {"one": predictions["one"]})
    page = Page(html)
    picks = {pick.clip_id: pick for pick in pick_clips({"one": runs["one"]}, {"one": predictions["one"]})}
    cards = page.named("article")
    assert len(cards) == len(picks) > 4
    options = {attrs["value"] for attrs in page.named("option")}
    assert options == {"", "fan", 'ge"ar<b>', *ROLES, *KINDS} - set(CAUSE_KINDS)
    for card, pick in zip(cards, picks.values()):
        outcome = outcome_of(predictions["one"], pick.rows["one"], 0.0)
        marks = set(card["data-kinds"].split())
        assert ("right" in marks) == (outcome == "right") and ("wrong" in marks) == (outcome != "right")
        assert ("missed" in marks) == (outcome == "missed") and set(card["data-roles"].split()) == pick.roles


def test_picks_are_the_surest_right_and_wrong_and_the_most_uncertain(scored):
    runs, predictions = ({"one": item["one"]} for item in scored)
    table = predictions["one"]
    picks = pick_clips(runs, predictions)
    fan = [row for row, category in enumerate(table.categories) if category == "fan"]
    surest = max((row for row in fan if table.labels_N[row] == 1 and table.scores_N[row] >= 0), key=lambda row: table.scores_N[row])
    alarm = max((row for row in fan if table.labels_N[row] == 0 and table.scores_N[row] >= 0), key=lambda row: table.scores_N[row])
    unsure = min(fan, key=lambda row: abs(table.scores_N[row]))
    roles = {pick.clip_id: pick.roles for pick in picks}
    for row, role in ((surest, "best"), (alarm, "worst"), (unsure, "uncertain")):
        assert role in roles[table.clip_ids[row]]
    assert len([pick for pick in picks if pick.category == "fan"]) <= 5 * MOST_OF_A_KIND


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


def test_a_strip_keeps_within_its_limit_of_bytes():
    noise = np.random.default_rng(0).integers(0, 256, (8, 224, 224, 3), dtype=np.uint8)

    def size(limit):
        return len(base64.b64decode(strip_data_uri(noise, limit)[0].partition(",")[2]))
    whole = size(None)
    assert size(whole) == whole and size(whole // 2) <= whole // 2 and size(16_000) <= 16_000
    assert strip_data_uri(noise, 16_000)[2] < 112, "made smaller where compression is not enough"


def test_clips_with_the_right_verdict_and_the_wrong_cause_are_found(scored):
    runs, predictions = ({"one": item["one"]} for item in scored)
    table = predictions["one"]
    right = [row for row, category in enumerate(table.categories) if category == "fan" and outcome_of(table, row, 0.0) == "right"]
    wrong = [row for row in range(len(table)) if outcome_of(table, row, 0.0) != "right"]
    said = {row: {"nearest": table.states[row]} for row in range(len(table))}
    said[right[0]] = {"nearest": "<u>broken"}
    said[right[1]] = {"nearest": "undecided"}
    said[wrong[0]] = {"nearest": "stuck<i>"}
    findings = {"one": said}
    picks = {pick.clip_id: pick for pick in pick_clips(runs, predictions, findings)}
    assert {clip_id for clip_id, pick in picks.items() if "wrong-cause" in pick.roles} == {table.clip_ids[row] for row in right[:2]}
    assert not any("best" in picks[table.clip_ids[row]].roles for row in right[:2]), "the best clips have the right cause"
    page = Page(write_html(runs, predictions, findings=findings))
    marks = {clip_id: set(card["data-kinds"].split()) for clip_id, card in zip(picks, page.named("article"), strict=True)}
    for clip_id, kinds in marks.items():
        row = table.clip_ids.index(clip_id)
        assert ("right" in kinds) == (row not in wrong) == bool(kinds & set(CAUSE_KINDS)), "a wrong verdict has no kind of cause"
        assert ("wrong-cause" in kinds) == (row in right[:2])
    text = " ".join(page.text)
    assert page.named("u") == [] and "wrong cause, nearest to <u>broken" in text and "wrong cause, undecided" in text
    options = {attrs["value"] for attrs in page.named("option")}
    assert set(CAUSE_KINDS) <= options and "right verdict, wrong cause (2)" in text
    assert "a cause is right where the reference text nearest to it" in text and "nothing checks them" not in text


def test_many_categories_show_one_clip_of_a_kind_and_few_show_more(tmp_path):
    def shown(categories, runs):
        path = tmp_path / "p.csv"
        path.write_text("clip_id,label,score\n" + "".join(f"{category}/{clip},{clip % 2},{clip % 3 - 1 + clip / 100}\n"
                                                         for category in categories for clip in range(40)))
        table = read_predictions(path)
        tables = {str(run): table for run in range(runs)}
        return len(pick_clips({name: score_predictions(table) for name in tables}, tables))
    assert shown(["fan"], 1) == 5 * MOST_OF_A_KIND and shown(PHYS_AD_CATEGORIES, 1) == 5 * 22 and shown(PHYS_AD_CATEGORIES, 2) == 4 * 22


def test_a_file_of_verdicts_alone_has_its_errors_shown(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"clip_id": f"fan/test/x/{clip}", "label": clip % 2, "score": None,
                                        "verdict": ("normal", "anomalous", "unparsed")[clip % 3]}) + "\n" for clip in range(12)))
    table = read_predictions(path)
    runs = {"p": score_predictions(table)}
    picks = pick_clips(runs, {"p": table})
    assert {outcome_of(table, pick.rows["p"], 0.0) for pick in picks} == {"right", "missed", "false alarm", "unparsed"}
    assert not any("uncertain" in pick.roles for pick in picks)
    assert "no score" in " ".join(Page(write_html(runs, {"p": table})).text)
