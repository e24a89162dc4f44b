"""The clips that the report shows: the best, the worst and the most uncertain of each category, as cards with film strip and texts. No torch.

All text that comes from a model, a file or a user goes through `html.escape`.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np
from PIL import Image

from vlmphys.explanations import UNDECIDED, state_key
from vlmphys.predictions import Predictions
from vlmphys.records import NORMAL_STATES

OUTCOMES = ("right", "missed", "false alarm", "unparsed")
# What the two filters of the page ask for, with their words: the kind of error of a clip, and why it was chosen.
KINDS = {"right": "right verdict", "right-cause": "right verdict, right cause", "wrong-cause": "right verdict, wrong cause", "wrong": "wrong verdict",
         "missed": "missed fault", "false-alarm": "false alarm", "unparsed": "verdict not read"}
ROLES = {"best": "best: the surest right", "worst": "worst: the surest wrong", "uncertain": "most uncertain"}
CAUSE_KINDS = ("right-cause", "wrong-cause")
STRIP_FRAME_PIXELS = 112
# Height in pixels and JPEG quality of a strip's frames, from the best on: the first is taken that a limit of bytes allows.
STRIP_FORMS = ((STRIP_FRAME_PIXELS, 80), (STRIP_FRAME_PIXELS, 60), (STRIP_FRAME_PIXELS, 40), (84, 40), (56, 30))
# JPEG bytes of all strips of a page; base64 makes them a third larger.
STRIPS_BYTES = 9 << 20
# Few categories have room for several clips of a kind.
ABOUT_SHOWN, MOST_OF_A_KIND = 150, 4

# run's name -> row of its predictions -> what was found of its explanation; `nearest` is the state whose reference text is nearest
Findings = Mapping[str, Mapping[int, Mapping]]


@dataclass(frozen=True)
class Pick:
    """A clip that the report shows, and why: keys of ROLES, or `wrong-cause`."""

    clip_id: str
    category: str
    state: str
    label: int
    rows: dict[str, int]                              # run's name -> row in its predictions
    roles: set[str] = field(default_factory=set)


def outcome_of(predictions: Predictions, row: int, threshold: float) -> str:
    """`right`, `missed` (a fault called normal), `false alarm`, or `unparsed`, by the file's verdict or the score at the threshold."""
    return OUTCOMES[int(outcomes(predictions, threshold, slice(row, row + 1))[0])]


def outcomes(predictions: Predictions, threshold: float, rows: slice = slice(None)) -> np.ndarray:
    """Places in OUTCOMES, int8, of some rows."""
    labels_N, scores_N = predictions.labels_N[rows].astype(bool), predictions.scores_N[rows]
    if predictions.anomalous_N is not None:
        anomalous_N, unparsed_N = predictions.anomalous_N[rows], predictions.unparsed_N[rows]
    else:
        anomalous_N, unparsed_N = scores_N >= threshold, np.isnan(scores_N)
    return np.where(unparsed_N, 3, np.where(anomalous_N == labels_N, 0, np.where(labels_N, 1, 2))).astype(np.int8)


def cause_is_right(predictions: Predictions, row: int, finding: Mapping | None) -> bool | None:
    """Whether the reference text nearest to a clip's explanation is one of its true state; None where nobody compared them."""
    return None if finding is None or "nearest" not in finding else finding["nearest"] == state_key(predictions.states[row])


def kinds_of(outcome: str, cause: bool | None) -> set[str]:
    """The keys of KINDS that an outcome counts among."""
    if outcome != "right":
        return {"wrong", outcome.replace(" ", "-")}
    return {"right"} | ({"right-cause" if cause else "wrong-cause"} if cause is not None else set())


def pick_clips(runs: Mapping[str, dict], predictions: Mapping[str, Predictions], findings: Findings | None = None) -> list[Pick]:
    """The clips to show: for each run and category the surest right ones, the surest right ones with the wrong cause, the surest missed faults
    and false alarms, verdicts that were not read, and the most uncertain; alone, a run shows right clips of both classes. One of each where
    categories are many, up to MOST_OF_A_KIND where they are few. Sorted by category, then clip."""
    picks: dict[str, Pick] = {}
    for name, table in predictions.items():
        for row, role in _chosen_rows(table, runs[name]["threshold"]["value"], (findings or {}).get(name, {}), len(runs)):
            clip_id = table.clip_ids[row]
            pick = picks.setdefault(clip_id, Pick(clip_id, table.categories[row], table.states[row], int(table.labels_N[row]), {}))
            pick.roles.add(role)
    for name, table in predictions.items():
        for row, clip_id in enumerate(table.clip_ids):
            if clip_id in picks:
                picks[clip_id].rows[name] = row
    return sorted(picks.values(), key=lambda pick: (pick.category, pick.clip_id))


def _chosen_rows(table: Predictions, threshold: float, findings: Mapping[int, Mapping], n_runs: int) -> list[tuple[int, str]]:
    """Rows of one run to show, each with its role (or `wrong-cause`)."""
    scored_N = ~np.isnan(table.scores_N)
    # A verdict without a score is neither sure nor unsure.
    distance_N = np.where(scored_N, np.abs(table.scores_N - threshold), 0.0)
    outcome_N = outcomes(table, threshold)
    # Groups: right normal, missed, false alarm, not read, right anomalous, right with the wrong cause.
    group_N = np.where((outcome_N == 0) & (table.labels_N == 1) & (n_runs == 1), 4, outcome_N)
    for row, finding in findings.items():
        if outcome_N[row] == 0 and cause_is_right(table, row, finding) is False:
            group_N[row] = 5
    shown_N = scored_N | (table.anomalous_N is not None)
    names, category_of_N = np.unique(np.array(table.categories), return_inverse=True)
    most = max(1, min(MOST_OF_A_KIND, ABOUT_SHOWN // (6 * len(names) * n_runs)))
    found = []
    for category in range(len(names)):
        rows = np.flatnonzero((category_of_N == category) & shown_N)
        for group, role in enumerate(("best", "worst", "worst", "worst", "best", "wrong-cause")):
            found += [(row, role) for row in _first(rows[group_N[rows] == group], -distance_N, table.clip_ids, most)]
        found += [(row, "uncertain") for row in _first(rows[scored_N[rows]], distance_N, table.clip_ids, most)]
    return found


def _first(rows: np.ndarray, rank_N: np.ndarray, clip_ids: Sequence[str], most: int) -> list[int]:
    """Up to `most` of the rows, the lowest rank first, among equals by clip id."""
    if len(rows) > most:    # of a million rows few are sorted by name
        rows = rows[rank_N[rows] <= np.partition(rank_N[rows], most - 1)[most - 1]]
    return sorted(rows.tolist(), key=lambda row: (rank_N[row], clip_ids[row]))[:most]


def strip_data_uri(frames_THWC: np.ndarray, limit: int | None = None) -> tuple[str, int, int]:
    """A film strip as a JPEG data URI, with its width and height in pixels: the frames side by side, 2 pixels apart.

    limit: bytes of the JPEG; what is above it is compressed harder and then made smaller, as far as STRIP_FORMS goes.
    """
    for pixels, quality in STRIP_FORMS:
        strip, stream = _strip(frames_THWC, pixels), io.BytesIO()
        strip.save(stream, "JPEG", quality=quality, optimize=True)
        if limit is None or stream.tell() <= limit:
            break
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode(), strip.width, strip.height


def _strip(frames_THWC: np.ndarray, most_pixels: int) -> Image.Image:
    frames, height, width, _ = frames_THWC.shape
    scale = min(1.0, most_pixels / height)
    height, width = max(1, round(height * scale)), max(1, round(width * scale))
    strip = Image.new("RGB", (frames * (width + 2) - 2, height), (15, 21, 28))
    for number, frame_HWC in enumerate(frames_THWC):
        image = Image.fromarray(np.ascontiguousarray(frame_HWC))
        strip.paste(image.resize((width, height), Image.Resampling.LANCZOS) if scale < 1 else image, (number * (width + 2), 0))
    return strip


def clips_html(runs: Mapping[str, dict], predictions: Mapping[str, Predictions], frames=None,
               reference_of: Callable[[str, str], str | None] | None = None, findings: Findings | None = None) -> str:
    """The section with filters and cards, empty where there is no clip to show. Arguments as `report.write_html` takes them."""
    picks = pick_clips(runs, predictions, findings)
    if not picks:
        return ""
    held = set(frames.clip_ids) if frames is not None else set()
    limit = STRIPS_BYTES // len(picks)
    kinds_of_card, cards = [], []
    for pick in picks:
        card, kinds = _card(pick, runs, predictions, _strip_html(pick, frames, limit) if pick.clip_id in held else "", reference_of, findings or {})
        kinds_of_card.append(kinds)
        cards.append(card)
    compared = any(kinds & set(CAUSE_KINDS) for kinds in kinds_of_card)
    checked = ("a cause is right where the reference text nearest to it, of all states of the category, is one of the true state" if compared else
               "nothing checks them against its verdict")
    filters = "".join((
        _select("category", "category", {name: name for name in sorted({pick.category for pick in picks})}),
        _select("kind", "kind", {key: f"{word} ({sum(key in kinds for kinds in kinds_of_card)})" for key, word in KINDS.items()
                                 if compared or key not in CAUSE_KINDS}),
        _select("role", "chosen as", ROLES)))
    return (f'<h2 id="clips">Clips</h2><p class="small soft">Of each category: the surest right verdicts, the surest wrong ones, '
            f'and the most uncertain. Explanations are the model\'s own words; {checked}.</p>'
            f'<div class="filters">{filters}<span class="small soft" id="shown" aria-live="polite"></span></div>'
            f'<div class="cards">{"".join(cards)}</div>')


def _select(name: str, title: str, options: Mapping[str, str]) -> str:
    choices = "".join(f'<option value="{escape(value)}">{escape(text)}</option>' for value, text in options.items())
    return f'<label>{title} <select id="{name}"><option value="">all</option>{choices}</select></label>'


def _card(pick: Pick, runs, predictions, strip: str, reference_of, findings: Findings) -> tuple[str, set[str]]:
    """The card, and the keys of KINDS that it counts among, by any run."""
    truth = "normal" if not pick.label else f"anomalous: {pick.state}" if pick.state and pick.state not in NORMAL_STATES else "anomalous"
    answers, kinds = [], set()
    for number, name in enumerate(runs):
        if name in pick.rows:
            finding = findings.get(name, {}).get(pick.rows[name])
            answer, of_answer = _answer(name if len(runs) > 1 else None, number, predictions[name], pick.rows[name],
                                        runs[name]["threshold"]["value"], finding)
            answers.append(answer)
            kinds |= of_answer
    reference = reference_of(pick.category, pick.state) if reference_of else None
    roles = " ".join(sorted(pick.roles & ROLES.keys()))
    return (f'<article class="box card" data-category="{escape(pick.category)}" data-kinds="{" ".join(sorted(kinds))}" data-roles="{roles}">{strip}'
            f'<div class="body"><h3>{escape(pick.clip_id)} <span class="tag">truth: {escape(truth)}</span>'
            f'{"<span class=tag>uncertain</span>" if "uncertain" in pick.roles else ""}</h3>{"".join(answers)}'
            + (f'<div class="reference small">Reference: {escape(reference)}</div>' if reference else "") + "</div></article>"), kinds


def _answer(title: str | None, number: int, table: Predictions, row: int, threshold: float, finding: Mapping | None) -> tuple[str, set[str]]:
    """What one run said of a clip, and the kinds that this is of."""
    outcome, cause = outcome_of(table, row, threshold), cause_is_right(table, row, finding)
    truth, other = ("anomalous", "normal") if table.labels_N[row] else ("normal", "anomalous")
    said = {"right": truth, "unparsed": "unparsed"}.get(outcome, other)
    error = "" if outcome in ("right", "unparsed") else f" – {outcome}"
    text, score = table.explanations[row], table.scores_N[row]
    nearest = ""
    if cause is not None:
        word = finding["nearest"] if finding["nearest"] == UNDECIDED else f"nearest to {finding['nearest']}"
        nearest = ' <span class="tag right">right cause</span>' if cause else f' <span class="tag wrong">wrong cause, {escape(word)}</span>'
    return (f'<div class="answer run{number % 6}">{f"<span class={chr(34)}soft small{chr(34)}>{escape(title)}</span> " if title is not None else ""}'
            f'<span class="tag {"right" if outcome == "right" else "wrong"}">{said}{error}</span>{nearest} '
            f'<span class="small soft">{"no score" if math.isnan(score) else f"score {score:.3g}"}</span>'
            + (f'<div class="said">{escape(str(text))}</div>' if text else "") + "</div>"), kinds_of(outcome, cause)


def _strip_html(pick: Pick, frames, limit: int) -> str:
    row = frames.row(pick.clip_id)
    uri, width, height = strip_data_uri(row.frames_THWC, limit)
    numbers = ", ".join(str(int(number)) for number in row.frame_index)
    return (f'<img class="strip" src="{uri}" width="{width}" height="{height}" loading="lazy" '
            f'alt="{len(row.frames_THWC)} frames of {escape(pick.clip_id)}" title="frames {numbers} of {int(row.source_frames)}">')
