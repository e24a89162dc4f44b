"""The published tables: their means taken again, what differs from the printed ones, and runs beside them over the same categories."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vlmphys import published
from vlmphys.metrics import Figure
from vlmphys.predictions import read_predictions
from vlmphys.report import write_html
from vlmphys.scoring import LEFT_OUT_OF_21, PHYS_AD_CATEGORIES, score_predictions
from vlmphys.text_figures import fill

pytestmark = pytest.mark.unit


def runs_of(tmp_path, categories, names=("p",)):
    tables = {}
    for seed, name in enumerate(names):
        generator = np.random.default_rng(seed)
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"clip_id": f"{category}/test/x/{clip}", "label": clip % 2,
                                            "score": float(generator.normal() + clip % 2)}) + "\n" for category in categories for clip in range(16)))
        tables[name] = read_predictions(path)
    return {name: score_predictions(table) for name, table in tables.items()}, tables


def test_the_means_taken_again_are_the_recorded_ones():
    checked = 0
    for table in published.BY_CATEGORY:
        source = published.published()[table]
        assert sorted(source["rows"]) == sorted(set(PHYS_AD_CATEGORIES) - ({LEFT_OUT_OF_21} if table != "physad_table4_auroc" else set()))
        means = published.recomputed_means(table)
        assert means.keys() == source["printed_mean"].keys() == source["recomputed_mean"].keys() == source["supervision"].keys()
        for column, value in means.items():
            assert value == pytest.approx(source["recomputed_mean"][column], abs=5.1e-6), (table, column)
            checked += 1
    assert checked == 7 + 8 + 3 + 14


def test_the_report_says_where_a_printed_mean_is_another_one(tmp_path):
    differs = {table: sorted(published.differing_means(table)) for table in published.BY_CATEGORY}
    assert differs == {"table1": ["LAVAD", "Video-ChatGPT", "Video-LLaMA"], "table2": ["Ours.LLM"], "table3": [], "physad_table4_auroc": []}
    runs, predictions = runs_of(tmp_path, ["fan", "gear"])
    html = write_html(runs, predictions, tables=[published.beside_table(runs)])
    assert ("table 1: the mean over its 21 rows is not the printed one: LAVAD printed 0.510, recomputed 0.508, "
            "Video-ChatGPT printed 0.496, recomputed 0.501, Video-LLaMA printed 0.523, recomputed 0.522") in html
    assert "table 2: the mean over its 21 rows is not the printed one: Ours.LLM printed 0.777, recomputed 0.783" in html
    record = published.published_record(runs)
    assert record["tables"]["table1"]["differs"]["LAVAD"] == {"printed": 0.51, "recomputed": pytest.approx(0.50767, abs=5e-6)}
    assert record["tables"]["physad_table4_auroc"]["supervision"]["MNAD.r"] == "normal clips only"
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_the_zero_shot_rows_of_both_papers_and_of_table_5_agree():
    first, fourth, fifth = (published.published()[name] for name in ("table1", "physad_table4_auroc", "physad_table5_paeval"))
    for category, row in first["rows"].items():
        assert {method: value for method, value in row.items() if method != "Ours"} == {
            method: value for method, value in fourth["rows"][category].items() if fourth["supervision"][method] == "zero-shot"}
    for method, row in fifth["rows"].items():
        assert row["classification"] == fourth["printed_mean"][method]
    assert fifth["supervision"].keys() == fifth["rows"].keys()


def test_runs_stand_beside_the_methods_over_the_categories_that_they_share(tmp_path):
    runs, _ = runs_of(tmp_path, ["fan", "toothpaste", "my_machine"])
    table = published.beside_table(runs)
    cells = {row[0]: row for row in table.rows}
    fan, toothpaste = (published.published()["physad_table4_auroc"]["rows"][name]["MNAD.r"] for name in ("fan", "toothpaste"))
    assert cells["MNAD.r, Phys-AD paper (CVPR 2025), table 4"][1:] == [
        "normal clips only", "score", f"{(fan + toothpaste) / 2:.3f}", "0.6693 (22)", "0.669"]
    assert cells["Ours, multi-turn paper (ICASSP 2026), table 1"][1:] == [
        "fine-tuned on some anomalies", "hard verdict", "0.912 (1)", "0.9673 (21)", "0.967"]
    own = [row for row in table.rows if row[0] == "p (this run)"]
    mean = np.mean([runs["p"]["per_category"][name]["auroc"] for name in ("fan", "toothpaste")])
    assert [row[2] for row in own] == ["score", "hard verdict"] and own[0][3] == f"{mean:.3f}" and own[0][1] == "not stated"
    assert len(table.rows) == 2 + 14 + 1 + 2
    by_category = published.published_rows_table(runs)
    assert [row[0] for row in by_category.rows] == ["fan", "toothpaste"] and by_category.rows[1][-3:] == ["–"] * 3
    assert by_category.rows[0][1] == f"{runs['p']['per_category']['fan']['auroc']:.3f}"


def test_nothing_is_said_where_no_category_is_shared(tmp_path):
    runs, _ = runs_of(tmp_path, ["my_machine"])
    assert published.beside_table(runs) is published.published_rows_table(runs) is published.published_record(runs) is None


def test_the_terminal_has_the_papers_means_in_a_sentence(tmp_path):
    runs, _ = runs_of(tmp_path, ["fan", "gear", "toothpaste"])
    note, rows = published.published_note(runs), published.published()["table3"]["rows"]
    for variant, printed in (("no_physics", "0.925"), ("single_turn", "0.787"), ("multi_turn", "0.967")):
        assert f"{variant} {(rows['fan'][variant] + rows['gear'][variant]) / 2:.3f} ({printed})" in note
    assert "2 shared categories" in note and "fine-tuned on some anomalies" in note
    assert published.published_note(runs_of(tmp_path, ["toothpaste"])[0]) is None, "the paper leaves it out"


def test_the_ablation_stands_beside_the_papers(tmp_path):
    runs, _ = runs_of(tmp_path, ["fan", "gear"], ("no_physics", "mine", "other"))
    runs["mine"]["variant"] = "multi_turn"
    table, rows = published.ablation_beside(runs), published.published()["table3"]["rows"]
    assert table.header == ["category", "no_physics", "no_physics, paper", "single_turn, paper", "mine (multi_turn)", "multi_turn, paper"]
    own = [runs[name]["per_category"]["fan"]["auroc_verdict"] for name in ("no_physics", "mine")]
    theirs = [rows["fan"][variant] for variant in ("no_physics", "single_turn", "multi_turn")]
    assert table.rows[0] == ["fan", *(f"{value:.3f}" for value in (own[0], theirs[0], theirs[1], own[1], theirs[2]))]
    assert table.rows[-2][0] == "mean of these 2" and table.rows[-2][3] == f"{(rows['fan']['single_turn'] + rows['gear']['single_turn']) / 2:.3f}"
    assert table.rows[-1] == ["as printed, of 21", "–", "0.925", "0.787", "–", "0.967"] and table.means == {2, 3}
    runs["mine"]["per_category"]["fan"]["auroc_verdict"] = None
    assert published.ablation_beside(runs).rows[-2][4] == "–"
    assert published.ablation_beside({"other": runs["other"]}) is None
    assert published.ablation_beside(runs_of(tmp_path, ["my_machine"], ("no_physics",))[0]) is None


def test_explanations_stand_beside_the_published_ones(tmp_path):
    runs, _ = runs_of(tmp_path, ["fan", "gear"])
    assert published.texts_beside(runs) is None, "nobody asked for them"
    fill(runs["p"], {"sbert": {"fan": Figure(0.5), "gear": Figure(0.75)}})
    table, source = published.texts_beside(runs), published.published()["table2"]
    assert table.header[:2] == ["category", "p: SBERT (this run)"] and len(table.header) == 2 + 4
    assert table.header[-1] == "Ours: SBERT (fine-tuned on some anomalies)"
    assert table.rows[0][:2] == ["fan", "0.500"] and table.rows[0][-1] == f"{source['rows']['fan']['Ours.SBERT']:.3f}"
    assert table.rows[-2][1] == "0.625" and table.rows[-1][-1] == "0.824"
    assert any("Ours.LLM printed 0.777, recomputed 0.783" in note for note in table.notes)
