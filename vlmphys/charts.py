"""Small inline SVG charts for the report: ROC curves and score histograms. No script, no network, colours from the page's style sheet."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from vlmphys.metrics import roc_points

SIDE = 170
MARGIN = 26
BINS = 24
HISTOGRAM_HEIGHT = 104
HISTOGRAM_TOP = 14


def roc_svg(curves: Sequence[tuple[str, np.ndarray, np.ndarray]], title: str) -> str:
    """ROC curves in one square: (name, labels, scores) for each run, coloured by its place; runs with one class have none."""
    far = SIDE - 8
    span = far - MARGIN

    def place(false_rate: float, true_rate: float) -> str:
        return f"{MARGIN + span * false_rate:.1f},{far - span * true_rate:.1f}"

    parts = [_open(SIDE, SIDE + 12, f"ROC curve: {title}")]
    for tick in (0, 0.5, 1):
        x, y = MARGIN + span * tick, far - span * tick
        parts.append(f'<path class="grid" d="M{x:.1f},{far} V{far - span} M{MARGIN},{y:.1f} H{far}"/>')
        parts.append(f'<text x="{x:.1f}" y="{far + 11}" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<text x="{MARGIN - 4}" y="{y + 3:.1f}" text-anchor="end">{tick:g}</text>')
    parts.append(f'<path class="chance" d="M{place(0, 0)} L{place(1, 1)}"/>')
    parts.append(f'<text x="{MARGIN + span / 2}" y="{far + 19}" text-anchor="middle" class="axis">false positive rate</text>')
    for number, (name, labels_N, scores_N) in enumerate(curves):
        known_N = ~np.isnan(scores_N)
        labels_N, scores_N = labels_N[known_N], scores_N[known_N]
        if labels_N.all() or not labels_N.any():
            continue
        points = " ".join(place(x, y) for x, y in zip(*roc_points(labels_N, scores_N)))
        parts.append(f'<polyline class="run run{number % 6}" points="{points}"><title>{escape(name)}</title></polyline>')
    return "".join(parts) + "</svg>"


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
    cut = 4 + (width - 8) * (threshold - low) / (high - low)
    parts.append(f'<path class="cut" d="M{cut:.1f},{HISTOGRAM_TOP - 2} V{base}"/><path class="grid" d="M4,{base} H{width - 4}"/>')
    parts.append(f'<text x="4" y="{base + 11}">{low:.3g}</text><text x="{width - 4}" y="{base + 11}" text-anchor="end">{high:.3g}</text>')
    parts.append(f'<text x="{width / 2:.0f}" y="{base + 11}" text-anchor="middle" class="axis">score</text>'
                 f'<text x="4" y="9" class="axis">share of the class (tallest bar {tallest:.0%})</text>')
    return "".join(parts) + "</svg>"


def _open(width: int, height: int, label: str) -> str:
    return f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="{escape(label)}">'
