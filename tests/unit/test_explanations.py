"""SBERT score and type accuracy with an encoder whose cosines are known, and their way into scores.json."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vlmphys.explanations import (ANOMALY_PARROT, NORMAL_PARROT, collect, plain_text, prior_references, score_similarity, similarity_figures)
from vlmphys.predictions import read_predictions
from vlmphys.scoring import PHYS_AD_CATEGORIES, score_predictions
from vlmphys.text_figures import clip_lines, control_means, explanation_tables, fill

pytestmark = pytest.mark.unit

# Unit vectors: the references of three states, and texts between them.
VECTORS = {"n1": (1, 0, 0), "n2": (0.8, 0.6, 0), "s1": (0, 1, 0), "s2": (0, 0.8, 0.6), "v1": (0, 0, 1),
           "near s1": (0.28, 0.96, 0), "between": (0, 2 ** -0.5, 2 ** -0.5)}
REFERENCES = {"fan": {"anomaly_free": ("n1", "n2"), "stuck": ("s1", "s2"), "vibrate": ("v1",)}}


def encode(texts) -> np.ndarray:
    assert "" not in texts and len(set(texts)) == len(texts), "empty texts are not embedded, equal ones once"
    return np.array([VECTORS[text] for text in texts], dtype=np.float32)


def predictions(tmp_path, rows, category: str = "fan"):
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"clip_id": f"{category}/test/{state}/{number}", "label": int(state != "anomaly_free"), "score": number,
                                        "explanation": text}) + "\n" for number, (state, text) in enumerate(rows)))
    return read_predictions(path)


def test_the_figures_by_hand(tmp_path):
    table = predictions(tmp_path, [("anomaly_free", "n1"), ("stuck", "Verdict: Anomalous. Reason: near s1"), ("stuck", ""), ("vibrate", "s1"),
                                   ("stuck", None)])
    scored = score_similarity(table, REFERENCES, encode, "known")
    fan = scored["per_category"]["fan"]
    assert (fan["n"], fan["n_unexplained"], fan["n_no_reference"], fan["n_empty"]) == (4, 1, 0, 1)
    assert fan["sbert"] == pytest.approx((1 + 0.96 + 0 + 0) / 4) and fan["sbert_mean"] == pytest.approx((0.9 + (0.96 + 0.768) / 2) / 4)
    assert fan["type_accuracy"] == 0.5
    assert fan["confusion"] == {"anomaly_free": {"anomaly_free": 1}, "stuck": {"stuck": 1, "undecided": 1}, "vibrate": {"stuck": 1}}
    assert scored["clips"][1] == {"sbert": pytest.approx(0.96), "sbert_mean": pytest.approx(0.864), "nearest": "stuck"}
    assert set(scored["clips"]) == {0, 1, 2, 3} and not scored["warnings"]


def test_the_parrots_by_hand(tmp_path):
    table = predictions(tmp_path, [("anomaly_free", "n1"), ("stuck", "n1"), ("stuck", "n1"), ("vibrate", "n1")])
    controls = score_similarity(table, REFERENCES, encode, "known")["per_category"]["fan"]["controls"]
    # A normal reference against the best of normal, stuck (twice) and vibrate: 1, 0 or 0.6, 0.
    assert controls[NORMAL_PARROT] == {"state": "anomaly_free", "sbert": pytest.approx((1 + 2 * 0.3 + 0) / 4),
                                       "sbert_mean": pytest.approx((0.9 + 2 * (0 + 0.54) / 2 + 0) / 4), "type_accuracy": 0.25}
    assert controls[ANOMALY_PARROT]["state"] == "stuck" and controls[ANOMALY_PARROT]["type_accuracy"] == 0.5
    assert controls[ANOMALY_PARROT]["sbert"] == pytest.approx(((0.6 + 0.48) / 2 + 2 * 1 + (0 + 0.6) / 2) / 4)
    normal_only = score_similarity(predictions(tmp_path, [("anomaly_free", "n1")]), REFERENCES, encode, "known")["per_category"]["fan"]
    assert normal_only["controls"][ANOMALY_PARROT] == {"state": None, "sbert": None, "sbert_mean": None, "type_accuracy": None}
    assert normal_only["sbert"] == pytest.approx(1)


def test_a_text_as_near_to_two_states_names_neither(tmp_path):
    references = {"fan": {"anomaly_free": ("n1",), "stuck": ("s1",), "vibrate": ("v1",)}}
    fan = score_similarity(predictions(tmp_path, [("stuck", "between")]), references, encode, "known")["per_category"]["fan"]
    assert fan["confusion"] == {"stuck": {"undecided": 1}} and fan["type_accuracy"] == 0 and fan["sbert"] == pytest.approx(2 ** -0.5)


def test_nothing_to_compare_is_null_with_its_reason(tmp_path):
    cases = {"the predictions hold no explanations": ([("stuck", None)], "fan"), "no explanation is of a state": ([("melted", "n1")], "fan"),
             "no prior has this name": ([("stuck", "n1")], "toaster")}
    for reason, (rows, category) in cases.items():
        scored = score_similarity(predictions(tmp_path, rows, category), REFERENCES, encode, "known")
        record = scored["per_category"][category]
        assert record["sbert"] is None and record["type_accuracy"] is None and reason in record["reason"]
        assert len(scored["warnings"]) == (rows[0][1] is not None)


def test_clips_of_train_are_compared_with_normal_references(tmp_path):
    found = collect(predictions(tmp_path, [("train", "n1")]), REFERENCES)
    assert [(spoken.state, spoken.text) for spoken in found.spoken] == [("anomaly_free", "n1")]


@pytest.mark.parametrize("written,plain", [
    ("Verdict: Normal. Reason: It turns.", "It turns."), ("It turns.", "It turns."), ("Verdict: Anomalous.", ""), ("", ""),
    ("verdict: anomalous. The hub is loose.", "The hub is loose."), ("Verdict: Normal. Reason:", "")])
def test_only_the_reason_is_compared(written, plain):
    assert plain_text(written) == plain


def test_the_priors_are_references_for_the_categories_that_they_know():
    references = prior_references({"fan", "toaster"}, None)
    assert set(references) == {"fan"} and len(references["fan"]["stuck"]) >= 5
    assert prior_references({"fan"}, None, "descriptions")["fan"]["stuck"] != references["fan"]["stuck"]


def test_figures_and_their_means_stand_in_the_scores_and_in_the_table(tmp_path):
    path = tmp_path / "p.jsonl"
    rows = [{"clip_id": f"{category}/test/{state}/0", "label": int(state == "stuck"), "score": 0.5, "explanation": text}
            for category, text in (("fan", "n1"), ("gear", None)) for state in ("anomaly_free", "stuck")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = read_predictions(path)
    run = score_predictions(table)
    scored = score_similarity(table, REFERENCES, encode, "known")
    fill(run, similarity_figures(scored))
    assert run["per_category"]["fan"]["sbert"] == pytest.approx(0.5) and "sbert" not in run["per_category"]["fan"]["reasons"]
    assert run["per_category"]["gear"]["sbert"] is None and "no explanations" in run["per_category"]["gear"]["reasons"]["sbert"]
    assert run["average"]["sbert"] == pytest.approx(0.5) and run["average"]["left_out"]["sbert"] == ["gear"]
    assert run["average_21"]["sbert"] is None and run["average_21"]["reasons"]["sbert"].startswith("1 of 21 categories have it")
    assert "llm" not in run["average"] and run["per_category"]["fan"]["llm"] is None
    run["texts"] = {"similarity": {"control_means": control_means(scored)}}
    (table_of_texts,) = explanation_tables({"p": run})
    text = table_of_texts.markdown()
    assert explanation_tables({"p": score_predictions(table)}) == []
    assert "| fan | 0.500 | 0.500 |" in text and "| gear | – | – |" in text and "| mean | 0.500 (1 of 2) | 0.500 (1 of 2) |" in text
    assert "| parrot: the most frequent anomaly's reference | 0.770 | 0.500 |" in text
    (line, *_) = clip_lines({"p": (table, scored["clips"])}).splitlines()
    assert json.loads(line)["clip_id"] == "fan/test/anomaly_free/0" and json.loads(line)["nearest"] == "anomaly_free"
    assert json.loads(json.dumps(run, allow_nan=False)) == run


def test_all_categories_of_phys_ad_give_its_two_means(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"clip_id": f"{category}/test/stuck/0", "label": 1, "score": 1,
                                        "explanation": "v1" if category == "toothpaste" else "s1"}) + "\n" for category in PHYS_AD_CATEGORIES))
    table = read_predictions(path)
    run = score_predictions(table)
    fill(run, similarity_figures(score_similarity(table, dict.fromkeys(PHYS_AD_CATEGORIES, REFERENCES["fan"]), encode, "known")))
    assert run["average_21"]["sbert"] == pytest.approx(1) and run["average_22"]["sbert"] == pytest.approx((21 + 0.6) / 22)
