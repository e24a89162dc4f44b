"""report.html: one self-contained file that opens without a network. Tables, curves, and film strips of telling clips. No torch.

All text that comes from a model, a file or a user goes through `html.escape`; the page's policy lets no script run but its own.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

from vlmphys.charts import histogram_svg, roc_svg
from vlmphys.files import logged_rows
from vlmphys.predictions import Predictions
from vlmphys.records import MAX_TURNS, NORMAL_STATES
from vlmphys.tables import COLUMN_HELP, columns_of, covered, figure_text, notes, table_rows
from vlmphys.text_tables import TextTable

HERE = Path(__file__).parent
OUTCOMES = ("right", "missed", "false alarm", "unparsed")
STRIP_FRAME_PIXELS = 112
JPEG_QUALITY = 80
# What is measured while training, in the order of metrics.jsonl's columns.
ONLY_TURN = "loss_only_turn"
LOSSES = {"loss": "all tokens", **{f"loss_turn_{turn}": f"turn {turn}" for turn in range(1, MAX_TURNS + 1)},
          ONLY_TURN: "verdict turn (only turn)", "verdict_loss": "verdict"}


@dataclass(frozen=True)
class Pick:
    """A clip that the report shows, with the kinds for which it was chosen."""

    clip_id: str
    category: str
    state: str
    label: int
    rows: dict[str, int]                              # run's name -> row in its predictions
    kinds: set[str] = field(default_factory=set)


def write_html(runs: Mapping[str, dict], predictions: Mapping[str, Predictions], frames=None,
               reference_of: Callable[[str, str], str | None] | None = None, losses: Mapping[str, dict] | None = None,
               tables: Sequence[TextTable] = ()) -> str:
    """The page.

    runs: the scores of each run by its name; predictions: the rows that they were computed from. frames: a `FramesTable` for the film
    strips, or None. reference_of: (category, state) -> a reference explanation or None. losses: run's name -> last row of metrics.jsonl.
    tables: further tables below that of the scores, such as the comparison with the first run and the published methods.
    """
    picks = pick_clips(runs, predictions)
    script = (HERE / "report_filter.js").read_text(encoding="utf-8")
    body = "\n".join([
        _head(runs), _warning_box(runs), _score_table(runs), *(table.html() for table in tables), _loss_table(losses or {}),
        _panels(runs, predictions), _clips(picks, runs, predictions, frames, reference_of), _foot(runs)])
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


def outcome_of(predictions: Predictions, row: int, threshold: float) -> str:
    """`right`, `missed` (a fault called normal), `false alarm`, or `unparsed`, by the file's verdict or the score at the threshold."""
    return OUTCOMES[int(_outcomes(predictions, threshold, slice(row, row + 1))[0])]


def _outcomes(predictions: Predictions, threshold: float, rows: slice = slice(None)) -> np.ndarray:
    """Places in OUTCOMES, int8, of some rows."""
    labels_N, scores_N = predictions.labels_N[rows].astype(bool), predictions.scores_N[rows]
    if predictions.anomalous_N is not None:
        anomalous_N, unparsed_N = predictions.anomalous_N[rows], predictions.unparsed_N[rows]
    else:
        anomalous_N, unparsed_N = scores_N >= threshold, np.isnan(scores_N)
    return np.where(unparsed_N, 3, np.where(anomalous_N == labels_N, 0, np.where(labels_N, 1, 2))).astype(np.int8)


def pick_clips(runs: Mapping[str, dict], predictions: Mapping[str, Predictions]) -> list[Pick]:
    """The clips to show: for each run and category the surest right one of each class, the surest missed fault and false alarm, and the
    most uncertain; with several runs fewer of each. Sorted by category, then clip."""
    chosen = {name: _chosen_rows(table, runs[name]["threshold"]["value"], len(runs) == 1) for name, table in predictions.items()}
    picks: dict[str, Pick] = {}
    for name, table in predictions.items():
        for row, kind in chosen[name]:
            clip_id = table.clip_ids[row]
            pick = picks.setdefault(clip_id, Pick(clip_id, table.categories[row], table.states[row], int(table.labels_N[row]), {}))
            pick.kinds.add(kind)
    for name, table in predictions.items():
        for row, clip_id in enumerate(table.clip_ids):
            if clip_id in picks:
                picks[clip_id].rows[name] = row
    return sorted(picks.values(), key=lambda pick: (pick.category, pick.clip_id))


def _chosen_rows(table: Predictions, threshold: float, alone: bool) -> list[tuple[int, str]]:
    """Rows of one run to show, each with its kind. Alone, a run shows both classes of its right clips; several together share the room."""
    distance_N = np.abs(table.scores_N - threshold)
    outcome_N = _outcomes(table, threshold)
    # Groups: right normal, missed, false alarm, unparsed, right anomalous.
    group_N = np.where((outcome_N == 0) & (table.labels_N == 1), 4, outcome_N) if alone else outcome_N
    names, category_of_N = np.unique(np.array(table.categories), return_inverse=True)
    found = []

    def pick(rows: np.ndarray, sign: int) -> int:
        """The row with the smallest (1) or largest (-1) distance; among equals the first or last clip id."""
        best = rows[distance_N[rows] == (distance_N[rows].min() if sign > 0 else distance_N[rows].max())].tolist()
        return (min if sign > 0 else max)(best, key=table.clip_ids.__getitem__)
    for category in range(len(names)):
        rows = np.flatnonzero((category_of_N == category) & ~np.isnan(distance_N))
        for group in range(5):
            if len(of_group := rows[group_N[rows] == group]):
                found.append((pick(of_group, -1), OUTCOMES[group % 4]))
        if len(rows):
            found.append((pick(rows, 1), "uncertain"))
    return found


def strip_data_uri(frames_THWC: np.ndarray) -> tuple[str, int, int]:
    """A film strip as a JPEG data URI, with its width and height in pixels: the frames side by side, 2 pixels apart."""
    frames, height, width, _ = frames_THWC.shape
    scale = min(1.0, STRIP_FRAME_PIXELS / height)
    height, width = max(1, round(height * scale)), max(1, round(width * scale))
    strip = Image.new("RGB", (frames * (width + 2) - 2, height), (15, 21, 28))
    for number, frame_HWC in enumerate(frames_THWC):
        image = Image.fromarray(np.ascontiguousarray(frame_HWC))
        strip.paste(image.resize((width, height), Image.Resampling.LANCZOS) if scale < 1 else image, (number * (width + 2), 0))
    stream = io.BytesIO()
    strip.save(stream, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode(), strip.width, strip.height


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
    return (f'<h2>Detection</h2><div class="box scroll"><table><caption>{escape(caption)}. '
            f'A dash is an undefined figure: hover for the reason.</caption>'
            f'<thead>{groups}<tr><th>category</th><th>clips</th><th>anom.</th>{titles}</tr></thead>'
            f'<tbody>{"".join(lines)}</tbody></table></div>'
            f'<ul class="notes soft small">{"".join(f"<li>{escape(note)}</li>" for note in notes(runs, warnings=False))}</ul>')


def _loss_table(losses: Mapping[str, dict]) -> str:
    if not losses:
        return ""
    losses = {name: _with_only_turn(row) for name, row in losses.items()}
    keys = [key for key in LOSSES if any(row.get(key) is not None for row in losses.values())]
    lines = [f'<tr><th scope="row">{escape(name)}</th><td>{escape(str(row.get("step", "–")))}</td>'
             + "".join(f"<td>{row[key]:.4f}</td>" if isinstance(row.get(key), (int, float)) else "<td>–</td>" for key in keys) + "</tr>"
             for name, row in losses.items()]
    return ('<h2>Training loss by turn</h2><div class="box scroll"><table><caption>Mean negative log-likelihood of a supervised token, '
            'over the last logged window; for the verdict, of a whole verdict (chance between two: 0.693).</caption>'
            '<thead><tr><th>run</th><th>step</th>'
            + "".join(f"<th>{LOSSES[key]}</th>" for key in keys) + f'</tr></thead><tbody>{"".join(lines)}</tbody></table></div>')


def _with_only_turn(row: dict) -> dict:
    """The row of a variant with one answer, whose first turn is the verdict's own, moved out of the column of the others' first turns."""
    if any(row.get(f"loss_turn_{turn}") is not None for turn in range(2, MAX_TURNS + 1)):
        return row
    return {**row, "loss_turn_1": None, ONLY_TURN: row.get("loss_turn_1")}


def _panels(runs: Mapping[str, dict], predictions: Mapping[str, Predictions]) -> str:
    categories = sorted({name for scores in runs.values() for name in scores["per_category"]})
    rows_of = {name: {category: np.array([], dtype=int) for category in categories} for name in runs}
    for name, table in predictions.items():
        names, inverse_N = np.unique(np.array(table.categories), return_inverse=True)
        rows_of[name].update({category: np.flatnonzero(inverse_N == index) for index, category in enumerate(names.tolist())})
    keys = "".join(f'<span class="key run{number % 6}"><i></i>{escape(name)}</span>' for number, name in enumerate(runs) if len(runs) > 1)
    keys += "".join(f'<span class="key"><i class="square" style="background:var(--{kind})"></i>{kind} clips</span>'
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
                      f'{roc_svg(curves, category)}{histograms}</div>')
    return (f'<h2>ROC curves and scores</h2><p class="small">{keys}</p><p class="small soft">Histograms: each class scaled to its own '
            f'number of clips; dashed: the threshold.</p><div class="panels">{"".join(panels)}</div>')


def _clips(picks: list[Pick], runs, predictions, frames, reference_of) -> str:
    if not picks:
        return ""
    categories = sorted({pick.category for pick in picks})
    options = "".join(f'<option value="{escape(category)}">{escape(category)}</option>' for category in categories)
    outcomes = "".join(f'<option value="{value}">{text}</option>' for value, text in (
        ("right", "right verdict"), ("wrong", "wrong verdict"), ("missed", "missed fault"), ("false-alarm", "false alarm"),
        ("uncertain", "most uncertain")))
    held = set(frames.clip_ids) if frames is not None else set()
    cards = "".join(_card(pick, runs, predictions, _strip(pick, frames) if pick.clip_id in held else "", reference_of) for pick in picks)
    return (f'<h2>Clips</h2><p class="small soft">Of each category: the surest right verdicts, the surest wrong ones, '
            f'and the most uncertain clip. Explanations are the model\'s own words; nothing checks them against its verdict.</p>'
            f'<div class="filters">'
            f'<label>category <select id="category"><option value="">all</option>{options}</select></label>'
            f'<label>show <select id="outcome"><option value="">all</option>{outcomes}</select></label>'
            f'<span class="small soft" id="shown" aria-live="polite"></span></div><div class="cards">{cards}</div>')


def _card(pick: Pick, runs, predictions, strip: str, reference_of) -> str:
    outcomes = {name: outcome_of(predictions[name], row, runs[name]["threshold"]["value"]) for name, row in pick.rows.items()}
    marks = {"right" if outcome == "right" else "wrong" for outcome in outcomes.values()}
    marks |= {outcome.replace(" ", "-") for outcome in outcomes.values()} | (pick.kinds & {"uncertain"})
    truth = "normal" if not pick.label else f"anomalous: {pick.state}" if pick.state and pick.state not in NORMAL_STATES else "anomalous"
    answers = []
    for number, name in enumerate(runs):
        if name not in pick.rows:
            continue
        table, row = predictions[name], pick.rows[name]
        said = {"right": truth.split(":")[0], "missed": "normal", "false alarm": "anomalous", "unparsed": "unparsed"}[outcomes[name]]
        title = f'<span class="soft small">{escape(name)}</span> ' if len(runs) > 1 else ""
        text, score = table.explanations[row], table.scores_N[row]
        kind = "right" if outcomes[name] == "right" else "wrong"
        error = "" if outcomes[name] in ("right", "unparsed") else f" – {outcomes[name]}"
        number_text = "no score" if math.isnan(score) else f"score {score:.3g}"
        answers.append(
            f'<div class="answer run{number % 6}">{title}<span class="tag {kind}">{said}{error}</span> '
            f'<span class="small soft">{number_text}</span>'
            + (f'<div class="said">{escape(str(text))}</div>' if text else "") + "</div>")
    reference = reference_of(pick.category, pick.state) if reference_of else None
    return (f'<article class="box card" data-category="{escape(pick.category)}" data-outcomes="{" ".join(sorted(marks))}">{strip}'
            f'<div class="body"><h3>{escape(pick.clip_id)} <span class="tag">truth: {escape(truth)}</span>'
            f'{"<span class=tag>uncertain</span>" if "uncertain" in pick.kinds else ""}</h3>{"".join(answers)}'
            + (f'<div class="reference small">Reference: {escape(reference)}</div>' if reference else "") + "</div></article>")


def _strip(pick: Pick, frames) -> str:
    row = frames.row(pick.clip_id)
    uri, width, height = strip_data_uri(row.frames_THWC)
    numbers = ", ".join(str(int(number)) for number in row.frame_index)
    return (f'<img class="strip" src="{uri}" width="{width}" height="{height}" loading="lazy" '
            f'alt="{len(row.frames_THWC)} frames of {escape(pick.clip_id)}" title="frames {numbers} of {int(row.source_frames)}">')


def _foot(runs: Mapping[str, dict]) -> str:
    lines = []
    for name, scores in runs.items():
        prints = ", ".join(f"{key} {escape(str(value))[:16]}" for key, value in scores["fingerprints"].items() if value)
        lines.append(f"<p>{escape(name)}: {prints}</p>")
    seed = next(iter(runs.values()))["seed"]
    return (f'</main><footer>{"".join(lines)}<p>Made by vlmphys. Intervals: stratified bootstrap within each category, seed {seed}. '
            'The score is the log-odds of “Anomalous” over “Normal” where vlmphys predicted.</p></footer>')
