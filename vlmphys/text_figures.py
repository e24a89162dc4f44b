"""The figures of the texts, put into the scores of a run beside those of detection, and shown. No torch."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence

from vlmphys.metrics import Figure
from vlmphys.predictions import Predictions
from vlmphys.scoring import LEFT_OUT_OF_21, PHYS_AD_CATEGORIES
from vlmphys.text_tables import TextTable

NAMES = {"sbert": "SBERT", "type_accuracy": "type accuracy", "llm": "LLM score", "description": "PAEval description",
         "explanation": "PAEval explanation"}
NOTES = {
    "sbert": "SBERT: cosine of sentence embeddings with the nearest reference explanation of the clip's true state; parrots say a reference text of "
             "every clip, one of the normal state or one of the category's most frequent anomaly",
    "type_accuracy": "type accuracy: share of clips whose explanation is nearest to a reference of the true state",
    "llm": "LLM score: a judge's grades for anomaly type and reasoning, from 0 to 1, their mean",
    "description": "PAEval description: a judge's highest similarity to the reference descriptions",
    "explanation": "PAEval explanation: a judge's highest similarity to the reference explanations"}
CONTROL_NAMES = {"always_normal": "parrot: a normal reference", "always_most_frequent_anomaly": "parrot: the most frequent anomaly's reference"}


def fill(run: dict, figures: Mapping[str, Mapping[str, Figure]]) -> None:
    """Put figures (name -> category -> figure) into a run's scores, in place: each category's, and the three means of each."""
    for name, of_categories in figures.items():
        for category, record in run["per_category"].items():
            _put(record, name, of_categories[category])
        values = {category: figure.value for category, figure in of_categories.items() if figure.value is not None}
        run["average"]["left_out"].pop(name, None)
        if values and len(values) < len(of_categories):
            run["average"]["left_out"][name] = [category for category in of_categories if category not in values]
        _put(run["average"], name, _mean(values, list(values)) if values else Figure(None, "undefined in every category"))
        for key, wanted in (("average_21", [category for category in PHYS_AD_CATEGORIES if category != LEFT_OUT_OF_21]),
                            ("average_22", list(PHYS_AD_CATEGORIES))):
            _put(run[key], name, _mean(values, wanted))


def _mean(values: Mapping[str, float], wanted: Sequence[str]) -> Figure:
    """The mean over all of `wanted`, null where one of them has no value."""
    absent = [category for category in wanted if category not in values]
    if absent:
        return Figure(None, f"{len(wanted) - len(absent)} of {len(wanted)} categories have it; the first without: {absent[0]}")
    return Figure(statistics.fmean(values[category] for category in wanted))


def _put(record: dict, name: str, figure: Figure) -> None:
    record[name] = figure.value
    record["reasons"].pop(name, None)
    if figure.value is None:
        record["reasons"][name] = figure.reason


def control_means(similarity: Mapping) -> dict[str, dict[str, float | None]]:
    """What each parrot scores, as the mean over the categories that have it: {control: {figure: mean}}."""
    records = [record["controls"] for record in similarity["per_category"].values() if "controls" in record]
    means: dict[str, dict[str, float | None]] = {}
    for control in CONTROL_NAMES:
        for figure in ("sbert", "sbert_mean", "type_accuracy"):
            values = [record[control][figure] for record in records if record[control][figure] is not None]
            means.setdefault(control, {})[figure] = statistics.fmean(values) if values else None
    return means


def explanation_tables(runs: Mapping[str, Mapping]) -> list[TextTable]:
    """The table of each run that has figures of the texts: a row a category, the mean, and below it the parrots."""
    tables = []
    for run_name, run in runs.items():
        names = [name for name in NAMES if name in run["average"]]
        if not names:
            continue
        rows = [[category, *(_cell(record[name]) for name in names)] for category, record in run["per_category"].items()]
        rows.append(["mean", *(_mean_cell(run, name) for name in names)])
        parrots = run["texts"].get("similarity", {}).get("control_means", {})
        rows += [[CONTROL_NAMES[control], *(_cell(means.get(name)) for name in names)] for control, means in parrots.items()]
        title = f"Explanations of {run_name}" if len(runs) > 1 else "Explanations"
        means = frozenset(range(len(run["per_category"]), len(rows)))
        tables.append(TextTable(title, ["category", *(NAMES[name] for name in names)], rows, [NOTES[name] for name in names], means))
    return tables


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _mean_cell(run: Mapping, name: str) -> str:
    left_out = len(run["average"]["left_out"].get(name, []))
    total = len(run["per_category"])
    return _cell(run["average"][name]) + (f" ({total - left_out} of {total})" if left_out else "")


def clip_lines(clips: Mapping[str, tuple[Predictions, Mapping[int, Mapping]]]) -> str:
    """texts.jsonl: what was found of each clip's explanation, one JSON object a line; clips: run -> (its predictions, row -> findings)."""
    lines = []
    for run, (predictions, found) in clips.items():
        for row in sorted(found):
            lines.append(json.dumps({"run": run, "clip_id": predictions.clip_ids[row], "category": predictions.categories[row],
                                     "state": predictions.states[row], **found[row]}, ensure_ascii=False))
    return "".join(line + "\n" for line in lines)
