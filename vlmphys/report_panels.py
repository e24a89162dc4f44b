"""The report's curves and counts: intervals as bars, calibration, ROC and precision-recall curves, histograms, verdicts and causes by state.

No torch. All text that comes from a model, a file or a user goes through `html.escape`.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import numpy as np

from vlmphys.charts import calibration_svg, histogram_svg, intervals_svg, precision_recall_svg, roc_svg
from vlmphys.predictions import Predictions
from vlmphys.report_clips import outcomes
from vlmphys.tables import figure_text, table_rows


def run_keys(runs: Mapping[str, dict]) -> str:
    """The colours of the runs, where there are several."""
    return "".join(f'<span class="key run{number % 6}"><i></i>{escape(name)}</span>' for number, name in enumerate(runs) if len(runs) > 1)


def intervals_html(runs: Mapping[str, dict]) -> str:
    """AUROC with its interval as a bar, for each category, mean and run; empty where no run has an AUROC."""
    rows = [(row.label, row.is_mean, [(record["auroc"], record["auroc_ci95"]) if record is not None and record["auroc"] is not None else None
                                      for record in row.records.values()]) for row in table_rows(runs)]
    if not any(figure for _, _, figures in rows for figure in figures):
        return ""
    return (f'<h2>AUROC with its 95 % interval</h2><p class="small">{run_keys(runs)}</p>'
            f'<div class="box chart">{intervals_svg(rows)}</div>')


def calibration_html(runs: Mapping[str, dict]) -> str:
    """The calibration curve and the expected calibration error of each run that has probabilities."""
    shown = {name: scores["calibration"] for name, scores in runs.items()}
    panels = []
    for number, (name, found) in enumerate(shown.items()):
        title = f'<h3>{escape(name)} <span class="soft small">'
        if found["ece"] is None:
            panels.append(f'<div class="box panel">{title}no curve</span></h3><p class="small">{escape(found["reason"])}.</p></div>')
            continue
        panels.append(f'<div class="box panel run{number % 6}">{title}expected calibration error {found["ece"]:.3f}</span></h3>'
                      f'{calibration_svg(found["bins"], name)}<p class="small soft">{escape(found["source"])}; {found["n"]:,} clips.</p></div>')
    return ('<h2>Calibration</h2><p class="small soft">Of the clips in each tenth of the probabilities: the share that is anomalous, over their mean '
            'probability; on the diagonal both are equal. Dots are larger where clips are more. The error is the distance between the two, averaged '
            f'over clips; with few clips it is too high by chance alone.</p><div class="panels wide">{"".join(panels)}</div>')


def panels_html(runs: Mapping[str, dict], predictions: Mapping[str, Predictions]) -> str:
    """Curves and histograms of each category."""
    categories = sorted({name for scores in runs.values() for name in scores["per_category"]})
    rows_of = {name: {category: np.array([], dtype=int) for category in categories} for name in runs}
    for name, table in predictions.items():
        names, inverse_N = np.unique(np.array(table.categories), return_inverse=True)
        rows_of[name].update({category: np.flatnonzero(inverse_N == index) for index, category in enumerate(names.tolist())})
    keys = run_keys(runs) + "".join(f'<span class="key"><i class="square" style="background:var(--{kind})"></i>{kind} clips</span>'
                                    for kind in ("normal", "anomalous"))
    panels = []
    for category in categories:
        held = [(name, predictions[name], rows_of[name][category]) for name in runs]
        curves = [(name, table.labels_N[rows], table.scores_N[rows]) for name, table, rows in held]
        histograms = "".join(
            (f'<div class="small soft">{escape(name)}</div>' if len(runs) > 1 else "")
            + histogram_svg(table.labels_N[rows], table.scores_N[rows], runs[name]["threshold"]["value"], f"{category}, {name}")
            for name, table, rows in held if len(rows))
        areas = " · ".join(figure_text(runs[name]["per_category"].get(category), "auroc") for name in runs)
        panels.append(f'<div class="box panel"><h3>{escape(category)} <span class="soft small">AUROC {areas}</span></h3>'
                      f'<div class="curves">{roc_svg(curves, category)}{precision_recall_svg(curves, category)}</div>{histograms}</div>')
    return (f'<h2>Curves and scores</h2><p class="small">{keys}</p><p class="small soft">ROC; precision over recall, dashed: the share of anomalous '
            'clips, which chance would have; histograms: each class scaled to its own number of clips, dashed: the threshold.</p>'
            f'<div class="panels wide">{"".join(panels)}</div>')


def states_html(runs: Mapping[str, dict], predictions: Mapping[str, Predictions]) -> str:
    """What was said of the clips of each state: the verdicts, and the states that explanations are nearest to, where these were compared."""
    return _verdicts_by_state(runs, predictions) + "".join(_causes_by_state(name, scores, len(runs) > 1) for name, scores in runs.items())


def _verdicts_by_state(runs: Mapping[str, dict], predictions: Mapping[str, Predictions]) -> str:
    counts: dict[tuple[str, int, str], dict[str, list[int]]] = {}     # (category, label, state) -> run -> [called normal, anomalous, not read]
    for name, table in predictions.items():
        outcome_N = outcomes(table, runs[name]["threshold"]["value"])
        said_N = np.where(outcome_N == 3, 2, np.where(outcome_N == 0, table.labels_N, 1 - table.labels_N))
        for category, label, state, said in zip(table.categories, table.labels_N.tolist(), table.states, said_N.tolist()):
            of_runs = counts.setdefault((category, label, state), {run: [0, 0, 0] for run in runs})
            of_runs[name][said] += 1
    words = ("called normal", "called anomalous", "not read")
    any_unread = any(said[2] for of_runs in counts.values() for said in of_runs.values())
    kept = range(3 if any_unread else 2)
    head = "".join(f'<th{" class=first" if place == 0 else ""}>{words[place]}</th>' for _ in runs for place in kept)
    groups = "" if len(runs) == 1 else "<tr><th></th><th></th><th></th>" + "".join(
        f'<th class="first" colspan="{len(kept)}">{escape(name)}</th>' for name in runs) + "</tr>"
    lines = []
    for (category, label, state), of_runs in sorted(counts.items()):
        truth = "anomalous" if label else "normal"
        cells = "".join(f'<td class="{"first " if place == 0 else ""}{"ok" if place == label else "bad" if said[place] else ""}">{said[place]:,}</td>'
                        for said in of_runs.values() for place in kept)
        clips = " / ".join(dict.fromkeys(f"{sum(said):,}" for said in of_runs.values()))
        lines.append(f'<tr><th scope="row">{escape(category)}</th><td>{escape(state) or truth} <span class="soft">({truth})</span></td>'
                     f'<td>{clips}</td>{cells}</tr>')
    categories = len({category for category, _, _ in counts})
    return ('<h2>Verdicts by state</h2><details class="box scroll"><summary>'
            f'{len(counts)} states of {categories} {"category" if categories == 1 else "categories"}</summary><table class="states"><thead>{groups}'
            f'<tr><th>category</th><th>true state</th><th>clips</th>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></details>')


def _causes_by_state(name: str, scores: Mapping, named: bool) -> str:
    """The confusion matrices of type accuracy, one a category."""
    records = scores.get("texts", {}).get("similarity", {}).get("per_category", {})
    tables = []
    for category, record in records.items():
        if not record.get("confusion"):
            continue
        confusion = record["confusion"]
        said = list(dict.fromkeys([*confusion, *(state for counts in confusion.values() for state in counts)]))
        lines = "".join(
            f'<tr><th scope="row">{escape(true)}</th>' + "".join(
                f'<td class="{"ok" if state == true else "bad" if counts.get(state) else ""}">{counts.get(state, 0):,}</td>'
                for state in said) + "</tr>" for true, counts in confusion.items())
        tables.append(f'<div class="box scroll"><table><thead><tr><th>{escape(category)}</th>'
                      f'{"".join(f"<th>{escape(state)}</th>" for state in said)}</tr></thead><tbody>{lines}</tbody></table></div>')
    if not tables:
        return ""
    return (f'<h2>Causes by state{f", {escape(name)}" if named else ""}</h2><p class="small soft">Rows: the true state; columns: the state with the '
            f'reference text nearest to the explanation; in clips.</p><details><summary class="small">'
            f'{len(tables)} {"category" if len(tables) == 1 else "categories"}</summary><div class="panels wide">{"".join(tables)}</div></details>')
