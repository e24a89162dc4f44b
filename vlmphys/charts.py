"""Small inline SVG charts for the report: ROC, precision-recall and calibration curves, intervals, score histograms. No script, no network,
colours from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape

import numpy as np

from vlmphys.metrics import precision_recall_points, roc_points

SIDE = 176
MARGIN = 32
TOP = MARGIN - 8     # nothing is drawn above a square
BINS = 24
HISTOGRAM_HEIGHT = 104
HISTOGRAM_TOP = 14
INTERVALS_WIDTH = 760


def roc_svg(curves: Sequence[tuple[str, np.ndarray, np.ndarray]], title: str) -> str:
    """ROC curves in one square: (name, labels, scores) for each run, coloured by its place; runs with one class have none."""
    parts = _square(f"ROC curve: {title}", "false positive rate", "true positive rate")
    parts.append(f'<path class="chance" d="M{_place(0, 0)} L{_place(1, 1)}"/>')
    return "".join(parts) + _lines(curves, roc_points) + "</svg>"


def precision_recall_svg(curves: Sequence[tuple[str, np.ndarray, np.ndarray]], title: str) -> str:
    """Precision over recall in one square, as `roc_svg`; the dashed line is the share of anomalous clips among those of the first run with a
    curve."""
    parts = _square(f"Precision-recall curve: {title}", "recall", "precision")
    for _, labels_N, scores_N in curves:
        labels_N = np.asarray(labels_N)[~np.isnan(scores_N)].astype(bool)
        if labels_N.any() and not labels_N.all():
            parts.append(f'<path class="chance" d="M{_place(0, labels_N.mean())} L{_place(1, labels_N.mean())}"/>')
            break
    return "".join(parts) + _lines(curves, precision_recall_points) + "</svg>"


def calibration_svg(bins: Sequence[Mapping], title: str) -> str:
    """Share of anomalous clips over mean probability, a dot a bin (`calibration.reliability_bins`), its area by the number of clips."""
    parts = _square(f"Calibration: {title}", "mean probability of Anomalous", "share of anomalous clips")
    parts.append(f'<path class="chance" d="M{_place(0, 0)} L{_place(1, 1)}"/>')
    places = [_place(found["mean_probability"], found["share_anomalous"]) for found in bins]
    most = max(found["n"] for found in bins)
    parts.append(f'<polyline class="run" points="{" ".join(places)}"/>')
    for found, place in zip(bins, places):
        x, y = place.split(",")
        radius = 1.5 + 4 * (found["n"] / most) ** 0.5
        parts.append(f'<circle class="dot" cx="{x}" cy="{y}" r="{radius:.1f}"><title>{found["n"]:,} clips, mean probability '
                     f'{found["mean_probability"]:.2f}, {found["share_anomalous"]:.0%} anomalous</title></circle>')
    return "".join(parts) + "</svg>"


def intervals_svg(rows: Sequence[tuple[str, bool, Sequence[tuple[float, Sequence[float] | None] | None]]]) -> str:
    """Figures between 0 and 1 with their intervals: (label, whether it is a mean, for each run (value, (low, high) or None) or None)."""
    runs = max(len(figures) for _, _, figures in rows)
    left, far, step = 150, INTERVALS_WIDTH - 14, 9
    height = sum(step * runs + 9 for _ in rows) + 22
    parts = [_open(INTERVALS_WIDTH, height, "AUROC with its interval by category")]
    for tick in np.linspace(0, 1, 11):
        x = left + (far - left) * tick
        parts.append(f'<path class="{"chance" if tick == 0.5 else "grid"}" d="M{x:.1f},4 V{height - 18}"/>'
                     f'<text x="{x:.1f}" y="{height - 6}" text-anchor="middle">{tick:.1f}</text>')
    top = 6
    for label, is_mean, figures in rows:
        parts.append(f'<text x="{left - 8}" y="{top + step * runs / 2 + 3:.1f}" text-anchor="end" class="{"label mean" if is_mean else "label"}">'
                     f'{escape(_short(label))}</text>')
        for number, figure in enumerate(figures):
            y = top + step * (number + 0.5)
            if figure is None:
                continue
            value, interval = figure
            where = [left + (far - left) * share for share in (value, *(interval or ()))]
            words = f"{label}: {value:.3f}" + (f", {interval[0]:.3f} to {interval[1]:.3f}" if interval else "")
            bar = f'<path class="bar" d="M{where[1]:.1f},{y:.1f} H{where[2]:.1f}"/>' if interval else ""
            parts.append(f'<g class="run{number % 6}">{bar}<circle class="dot" cx="{where[0]:.1f}" cy="{y:.1f}" r="3"><title>{escape(words)}</title>'
                         '</circle></g>')
        top += step * runs + 9
    return "".join(parts) + "</svg>"


def _short(label: str) -> str:
    """A label that fits beside the bars."""
    return label if len(label) <= 24 else label[:23] + "…"


def _place(x: float, y: float) -> str:
    """A point of the unit square in the drawing."""
    span = SIDE - 8 - MARGIN
    return f"{MARGIN + span * x:.1f},{SIDE - 8 - span * y:.1f}"


def _square(label: str, below: str, beside: str) -> list[str]:
    """An empty unit square with its ticks and the names of its axes."""
    far = SIDE - 8
    span = far - MARGIN
    parts = [_open(SIDE, SIDE + 16, label, TOP)]
    for tick in (0, 0.5, 1):
        x, y = MARGIN + span * tick, far - span * tick
        parts.append(f'<path class="grid" d="M{x:.1f},{far} V{far - span} M{MARGIN},{y:.1f} H{far}"/>')
        parts.append(f'<text x="{x:.1f}" y="{far + 11}" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<text x="{MARGIN - 4}" y="{y + 3:.1f}" text-anchor="end">{tick:g}</text>')
    middle = far - span / 2
    parts.append(f'<text x="{MARGIN + span / 2}" y="{far + 19}" text-anchor="middle" class="axis">{below}</text>')
    parts.append(f'<text x="8" y="{middle}" text-anchor="middle" class="axis" transform="rotate(-90 8 {middle})">{beside}</text>')
    return parts


def _lines(curves: Sequence[tuple[str, np.ndarray, np.ndarray]], points_of: Callable) -> str:
    """A line a run; those with one class have none."""
    parts = []
    for number, (name, labels_N, scores_N) in enumerate(curves):
        known_N = ~np.isnan(scores_N)
        labels_N, scores_N = labels_N[known_N], scores_N[known_N]
        if labels_N.all() or not labels_N.any():
            continue
        points = " ".join(_place(x, y) for x, y in zip(*points_of(labels_N, scores_N)))
        parts.append(f'<polyline class="run run{number % 6}" points="{points}"><title>{escape(name)}</title></polyline>')
    return "".join(parts)


def histogram_svg(labels_N: np.ndarray, scores_N: np.ndarray, threshold: float, title: str) -> str:
    """Histogram of the scores with the names of its axes, each class scaled to its own number of clips; the threshold as a dashed line."""
    finite_N = np.isfinite(scores_N)
    labels_N, scores_N = np.asarray(labels_N)[finite_N].astype(bool), scores_N[finite_N]
    width, base = SIDE + 50, HISTOGRAM_HEIGHT - 14
    parts = [_open(width, HISTOGRAM_HEIGHT, f"Histogram of scores: {title}")]
    if not len(scores_N):
        return "".join(parts) + f'<text x="4" y="{base}">no scores</text></svg>'
    low, high = min(scores_N.min(), threshold), max(scores_N.max(), threshold)
    if low == high:
        low, high = low - 0.5, high + 0.5
    ends = f"{low:.3g}", f"{high:.3g}"
    if not math.isfinite(float(high) - float(low)):     # near the largest float; a quarter of it rounds nothing
        scores_N, threshold, low, high = scores_N / 4, threshold / 4, low / 4, high / 4
    edges = np.linspace(low, high, BINS + 1)
    shares = {kind: np.histogram(scores_N[labels_N == value], edges)[0] / max(1, (labels_N == value).sum())
              for kind, value in (("normal", False), ("anomalous", True))}
    tallest = max(values.max() for values in shares.values())
    step = (width - 8) / BINS
    for kind, values in shares.items():
        for index in np.flatnonzero(values):
            height = (base - HISTOGRAM_TOP) * values[index] / tallest
            parts.append(f'<rect class="{kind}" x="{4 + index * step:.1f}" y="{base - height:.1f}" '
                         f'width="{step - 0.6:.1f}" height="{height:.1f}"/>')
    cut = 4 + (width - 8) * ((threshold - low) / (high - low))
    parts.append(f'<path class="cut" d="M{cut:.1f},{HISTOGRAM_TOP - 2} V{base}"/><path class="grid" d="M4,{base} H{width - 4}"/>')
    parts.append(f'<text x="4" y="{base + 11}">{ends[0]}</text><text x="{width - 4}" y="{base + 11}" text-anchor="end">{ends[1]}</text>')
    parts.append(f'<text x="{width / 2:.0f}" y="{base + 11}" text-anchor="middle" class="axis">score</text>'
                 f'<text x="4" y="9" class="axis">share of the class (tallest bar {tallest:.0%})</text>')
    return "".join(parts) + "</svg>"


def _open(width: int, height: int, label: str, top: int = 0) -> str:
    """The opening tag of a drawing from `top` to `height`."""
    return (f'<svg viewBox="0 {top} {width} {height - top}" width="{width}" height="{height - top}" role="img" '
            f'aria-label="{escape(label)}">')
