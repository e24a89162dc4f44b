"""report.html: one self-contained file that opens without a network. Tables, curves, and film strips of telling clips. No torch.

All text that comes from a model, a file or a user goes through `html.escape`; the page's policy lets no script run but its own.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template

from vlmphys.files import logged_rows
from vlmphys.predictions import Predictions
from vlmphys.records import MAX_TURNS
from vlmphys.report_clips import Findings, clips_html
from vlmphys.report_panels import calibration_html, intervals_html, panels_html, states_html
from vlmphys.tables import COLUMN_HELP, columns_of, covered, figure_text, notes, table_rows
from vlmphys.text_tables import TextTable

HERE = Path(__file__).parent
# What is measured while training, in the order of metrics.jsonl's columns.
ONLY_TURN = "loss_only_turn"
LOSSES = {"loss": "all tokens", **{f"loss_turn_{turn}": f"turn {turn}" for turn in range(1, MAX_TURNS + 1)},
          ONLY_TURN: "verdict turn (only turn)", "verdict_loss": "verdict"}


def write_html(runs: Mapping[str, dict], predictions: Mapping[str, Predictions], frames=None,
               reference_of: Callable[[str, str], str | None] | None = None, losses: Mapping[str, dict] | None = None,
               tables: Sequence[TextTable] = (), findings: Findings | None = None) -> str:
    """The page.

    runs: the scores of each run by its name; predictions: the rows that they were computed from. frames: a `FramesTable` for the film
    strips, or None. reference_of: (category, state) -> a reference explanation or None. losses: run's name -> last row of metrics.jsonl.
    tables: further tables below that of the scores, such as the comparison with the first run and the published methods. findings: what was
    found of the explanations, by which the clips with the right verdict and the wrong cause are told.
    """
    script = (HERE / "report_filter.js").read_text(encoding="utf-8")
    body = "\n".join([
        _head(runs), _warning_box(runs), _score_table(runs), intervals_html(runs), *(table.html() for table in tables), _loss_table(losses or {}),
        calibration_html(runs), panels_html(runs, predictions), states_html(runs, predictions),
        clips_html(runs, predictions, frames, reference_of, findings), _foot(runs)])
    return Template((HERE / "report_template.html").read_text(encoding="utf-8")).substitute(
        title="vlmphys report", body=body, script=script,
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode())


def last_losses(run_folder: Path) -> dict | None:
    """The last row of a run's metrics.jsonl, or None where it has none. Raises ValueError where the folder or a row is something else."""
    path = Path(run_folder) / "metrics.jsonl"
    if not Path(run_folder).is_dir():
        raise ValueError(f"--run {run_folder}: no such run folder")
    rows = logged_rows(path)
    return rows[-1] if rows and "loss" in rows[-1] else None


def _head(runs: Mapping[str, dict]) -> str:
    first = next(iter(runs.values()))
    protocol = f", split protocol {escape(str(first['protocol']))}" if first["protocol"] else ""
    boxes = []
    for number, (name, scores) in enumerate(runs.items()):
        average = scores["average"]
        interval = average["reasons"].get("auroc") or "95 % interval {:.3f} to {:.3f}".format(*average["auroc_ci95"])
        model = " · ".join(escape(str(scores[key])) for key in ("variant", "model") if scores[key])
        over = f"{covered(average, 'auroc')} of {average['n_categories']}"
        if covered(average, "auroc") == average["n_categories"]:
            over = str(average["n_categories"])
        boxes.append(f'<div class="box run{number % 6}"><span class="soft">{escape(name)}</span><b>{figure_text(average, "auroc")}</b>'
                     f'<div class="small">mean AUROC over {over} {"category" if over == "1" else "categories"}</div>'
                     f'<div class="small soft">{escape(interval)}</div>'
                     f'<div class="small soft">{model}</div></div>')
    n, anomalous = (" / ".join(dict.fromkeys(f"{scores[key]:,}" for scores in runs.values())) for key in ("n", "n_anomalous"))
    categories = len({name for scores in runs.values() for name in scores["per_category"]})
    return (f'<header><h1>Does it move as it should?</h1><p class="soft">{n} clips, {anomalous} of them anomalous, in {categories} '
            f'{"category" if categories == 1 else "categories"}{protocol}</p><div class="heads">{"".join(boxes)}</div></header>\n<main>')


def _warning_box(runs: Mapping[str, dict]) -> str:
    of_run: dict[str, list[str]] = {}
    for name, scores in runs.items():
        for warning in scores["warnings"]:
            of_run.setdefault(warning, []).append(name)
    if not of_run:
        return ""
    found = [warning if len(names) == len(runs) else f"{', '.join(names)}: {warning}" for warning, names in of_run.items()]
    return f'<div class="box warnings"><ul>{"".join(f"<li>{escape(warning)}</li>" for warning in found)}</ul></div>'


def _score_table(runs: Mapping[str, dict]) -> str:
    alone = len(runs) == 1
    columns = columns_of(runs, rates=alone)
    groups = "" if alone else "<tr><th></th><th></th><th></th>" + "".join(
        f'<th class="first" colspan="{len(columns)}">{escape(name)}</th>' for name in runs) + "</tr>"
    titles = "".join(f'<th{" class=first" if key == "auroc" else ""} title="{escape(COLUMN_HELP[key])}">{title}</th>'
                     for _ in runs for key, title in columns.items())
    lines = []
    for row in table_rows(runs):
        cells = []
        for name in runs:
            for key in columns:
                record = row.records[name]
                reason = escape((record or {}).get("reasons", {}).get(key, ""))
                interval = record["auroc_ci95"] if record and alone and key == "auroc" else None
                note = f'<span class="interval">{interval[0]:.3f}–{interval[1]:.3f}</span>' if interval else ""
                cells.append(f'<td{" class=first" if key == "auroc" else ""}{f" title={chr(34)}{reason}{chr(34)}" if reason else ""}>'
                             f'{row.text(name, key)}{note}</td>')
        lines.append(f'<tr{" class=mean" if row.is_mean else ""}><th scope="row">{escape(row.label)}</th><td>{row.count("n")}</td>'
                     f'<td>{row.count("n_anomalous")}</td>{"".join(cells)}</tr>')
    caption = "; ".join(f"{title}: {COLUMN_HELP[key]}" for key, title in columns.items())
    return (f'<h2>Detection</h2><div class="box scroll"><table>'
            f'<thead>{groups}<tr><th>category</th><th>clips</th><th>anom.</th>{titles}</tr></thead>'
            f'<tbody>{"".join(lines)}</tbody></table></div>'
            f'<p class="soft small">{escape(caption)}. A dash is an undefined figure: hover for the reason.</p>'
            f'<ul class="notes soft small">{"".join(f"<li>{escape(note)}</li>" for note in notes(runs, warnings=False))}</ul>')


def _loss_table(losses: Mapping[str, dict]) -> str:
    if not losses:
        return ""
    losses = {name: _with_only_turn(row) for name, row in losses.items()}
    keys = [key for key in LOSSES if any(row.get(key) is not None for row in losses.values())]
    lines = [f'<tr><th scope="row">{escape(name)}</th><td>{escape(str(row.get("step", "–")))}</td>'
             + "".join(f"<td>{row[key]:.4f}</td>" if isinstance(row.get(key), (int, float)) else "<td>–</td>" for key in keys) + "</tr>"
             for name, row in losses.items()]
    return ('<h2>Training loss by turn</h2><p class="soft small">Mean negative log-likelihood of a supervised token, '
            'over the last logged window; for the verdict, of a whole verdict (chance between two: 0.693).</p>'
            '<div class="box scroll"><table><thead><tr><th>run</th><th>step</th>'
            + "".join(f"<th>{LOSSES[key]}</th>" for key in keys) + f'</tr></thead><tbody>{"".join(lines)}</tbody></table></div>')


def _with_only_turn(row: dict) -> dict:
    """The row of a variant with one answer, whose first turn is the verdict's own, moved out of the column of the others' first turns."""
    if any(row.get(f"loss_turn_{turn}") is not None for turn in range(2, MAX_TURNS + 1)):
        return row
    return {**row, "loss_turn_1": None, ONLY_TURN: row.get("loss_turn_1")}


def _foot(runs: Mapping[str, dict]) -> str:
    lines = []
    for name, scores in runs.items():
        prints = ", ".join(f"{key} {escape(str(value))[:16]}" for key, value in scores["fingerprints"].items() if value)
        lines.append(f"<p>{escape(name)}: {prints}</p>")
    seed = next(iter(runs.values()))["seed"]
    return (f'</main><footer>{"".join(lines)}<p>Made by vlmphys. Intervals: stratified bootstrap within each category, seed {seed}. '
            'The score is the log-odds of “Anomalous” over “Normal” where vlmphys predicted.</p></footer>')
