"""Detection metrics in numpy alone: the positive class is anomalous (1), a higher score means more anomalous.

Shape suffixes: N clips, U distinct scores, R bootstrap replicates.
An undefined metric is a `Figure` without a value and with the reason; it is never 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ONE_CLASS = "one class only: {anomalous} anomalous and {normal} normal clips with a score"
BOOTSTRAP_REPLICATES = 1000
# A large category's interval is narrow, so that fewer replicates place its ends as well, in a fraction of the time.
LARGE_CATEGORY_CLIPS = 5000
LARGE_CATEGORY_REPLICATES = 200


@dataclass(frozen=True)
class Figure:
    """A number, or the reason why there is none."""

    value: float | None
    reason: str | None = None

    def __post_init__(self) -> None:
        assert (self.value is None) == (self.reason is not None), "a figure has a value or a reason, not both"


def _checked(labels_N, scores_N) -> tuple[np.ndarray, np.ndarray]:
    """Labels as bool and scores as float64; ValueError for other labels than 0 and 1, NaN, or unequal lengths."""
    labels_N, scores_N = np.asarray(labels_N), np.asarray(scores_N, dtype=np.float64)
    if labels_N.ndim != 1 or labels_N.shape != scores_N.shape:
        raise ValueError(f"labels {labels_N.shape} and scores {scores_N.shape} must be two lists of one length")
    if not np.isin(labels_N, (0, 1)).all():
        raise ValueError("labels must be 0 (normal) or 1 (anomalous)")
    if np.isnan(scores_N).any():
        raise ValueError(f"{int(np.isnan(scores_N).sum())} of {len(scores_N)} scores are NaN: leave them out and count them as missing")
    return labels_N.astype(bool), scores_N


def _one_class(labels_N: np.ndarray) -> str | None:
    """The reason why rank metrics are undefined, or None."""
    anomalous = int(labels_N.sum())
    normal = len(labels_N) - anomalous
    return ONE_CLASS.format(anomalous=anomalous, normal=normal) if not anomalous or not normal else None


def _counts_per_score(labels_N: np.ndarray, scores_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Anomalous and normal clips at each distinct score, from the highest score to the lowest: two arrays of length U."""
    # int64 sums are exact, which a running sum in float32 or a mean of ranks would not be for millions of rows.
    order_N = np.argsort(-scores_N, kind="stable")
    labels_N, scores_N = labels_N[order_N], scores_N[order_N]
    starts_U = np.flatnonzero(np.r_[True, scores_N[1:] != scores_N[:-1]]) if len(scores_N) else np.zeros(0, dtype=np.int64)
    anomalous_U = np.add.reduceat(labels_N.astype(np.int64), starts_U) if len(starts_U) else np.zeros(0, dtype=np.int64)
    total_U = np.diff(np.r_[starts_U, len(scores_N)])
    return anomalous_U, total_U - anomalous_U


def auroc(labels_N, scores_N) -> Figure:
    """Area under the ROC curve, 0 to 1: the chance that an anomalous clip scores above a normal one, ties counted as half."""
    labels_N, scores_N = _checked(labels_N, scores_N)
    if reason := _one_class(labels_N):
        return Figure(None, reason)
    anomalous_U, normal_U = _counts_per_score(labels_N, scores_N)
    normal_below_U = normal_U.sum() - np.cumsum(normal_U)
    wins = float(np.dot(anomalous_U, normal_below_U)) + 0.5 * float(np.dot(anomalous_U, normal_U))
    return Figure(wins / (float(anomalous_U.sum()) * float(normal_U.sum())))


def average_precision(labels_N, scores_N) -> Figure:
    """Sum over distinct thresholds of (recall gained) x precision, 0 to 1: scikit-learn's definition, without interpolation."""
    labels_N, scores_N = _checked(labels_N, scores_N)
    if not labels_N.any():
        return Figure(None, f"no anomalous clip among the {len(labels_N)} with a score")
    anomalous_U, normal_U = _counts_per_score(labels_N, scores_N)
    caught_U = np.cumsum(anomalous_U)
    precision_U = caught_U / (caught_U + np.cumsum(normal_U))
    return Figure(float(np.dot(anomalous_U / anomalous_U.sum(), precision_U)))


def accuracy(labels_N, scores_N, threshold: float) -> Figure:
    """Share of clips on the right side of `threshold`; a score equal to it counts as anomalous, as in the benchmark's `>= 0.5`."""
    labels_N, scores_N = _checked(labels_N, scores_N)
    if not len(labels_N):
        return Figure(None, "no clip with a score")
    return Figure(float(((scores_N >= threshold) == labels_N).mean()))


def verdict_auroc(labels_N, anomalous_N, unparsed_N=None) -> Figure:
    """AUROC of a hard verdict, which is balanced accuracy: (TPR + TNR) / 2 (the multi-turn paper's protocol).

    `anomalous_N` is True where the verdict is anomalous; where `unparsed_N` is True there is none, and the clip counts as
    wrong whatever its class: an answer that cannot be read has neither caught a fault nor cleared a normal clip.
    """
    # By ranks rather than by the two rates: the same rounding as wherever else the verdict is ranked.
    area = auroc(labels_N, verdict_scores(labels_N, anomalous_N, unparsed_N))
    return area if area.reason is None else Figure(None, area.reason.replace(" with a score", ""))


def verdict_rates(labels_N, anomalous_N, unparsed_N=None) -> tuple[Figure, Figure]:
    """True and false positive rate of a hard verdict, each 0 to 1, so that (TPR + 1 - FPR) / 2 is `verdict_auroc`.

    The false positives are the normal clips that were not cleared: called anomalous, or given an answer that cannot be read.
    """
    labels_N = np.asarray(labels_N, dtype=bool)
    called_N = verdict_scores(labels_N, anomalous_N, unparsed_N)
    caught_N, alarmed_N = called_N[labels_N], called_N[~labels_N]
    return (Figure(float(caught_N.mean())) if len(caught_N) else Figure(None, "no anomalous clip with a verdict"),
            Figure(float(alarmed_N.mean())) if len(alarmed_N) else Figure(None, "no normal clip with a verdict"))


def verdict_scores(labels_N, anomalous_N, unparsed_N=None) -> np.ndarray:
    """The hard verdict as a score of 0 (normal) or 1 (anomalous), float64 of length N, on the wrong side where it cannot be read."""
    labels_N, anomalous_N = np.asarray(labels_N, dtype=bool), np.asarray(anomalous_N, dtype=bool)
    unparsed_N = np.zeros_like(labels_N) if unparsed_N is None else np.asarray(unparsed_N, dtype=bool)
    return np.where(unparsed_N, ~labels_N, anomalous_N).astype(np.float64)


def roc_points(labels_N, scores_N, most: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates along the ROC curve from (0, 0) to (1, 1), thinned to about `most` points.

    Raises ValueError with one class only.
    """
    labels_N, scores_N = _checked(labels_N, scores_N)
    if reason := _one_class(labels_N):
        raise ValueError(f"a ROC curve needs both classes: {reason}")
    anomalous_U, normal_U = _counts_per_score(labels_N, scores_N)
    true_rate_U = np.r_[0.0, np.cumsum(anomalous_U) / anomalous_U.sum()]
    false_rate_U = np.r_[0.0, np.cumsum(normal_U) / normal_U.sum()]
    kept = _thinned(len(true_rate_U), most)
    return false_rate_U[kept], true_rate_U[kept]


def precision_recall_points(labels_N, scores_N, most: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision at each distinct score, from the highest one down, thinned to about `most` points.

    Raises ValueError without an anomalous clip.
    """
    labels_N, scores_N = _checked(labels_N, scores_N)
    if not labels_N.any():
        raise ValueError("a precision-recall curve needs an anomalous clip, and there is none")
    anomalous_U, normal_U = _counts_per_score(labels_N, scores_N)
    caught_U = np.cumsum(anomalous_U)
    precision_U = caught_U / (caught_U + np.cumsum(normal_U))
    kept = _thinned(len(caught_U), most)
    return (caught_U / anomalous_U.sum())[kept], precision_U[kept]


def _thinned(points: int, most: int) -> np.ndarray:
    """Places of about `most` of the points, both ends among them."""
    return np.unique(np.linspace(0, points - 1, min(points, most)).astype(int))


def bootstrap_auroc(labels_N, scores_N, seed: int, replicates: int | None = None) -> np.ndarray:
    """AUROC of `replicates` resamples, drawn with replacement within each class (stratified): an array of length R.

    Raises ValueError with one class only. Without `replicates`, 1,000 for up to 5,000 clips and 200 above.
    """
    labels_N, scores_N = _checked(labels_N, scores_N)
    if reason := _one_class(labels_N):
        raise ValueError(f"a bootstrap of the AUROC needs both classes: {reason}")
    if replicates is None:
        replicates = BOOTSTRAP_REPLICATES if len(labels_N) <= LARGE_CATEGORY_CLIPS else LARGE_CATEGORY_REPLICATES
    distinct_U, rank_N = np.unique(scores_N, return_inverse=True)
    anomalous_ranks, normal_ranks = rank_N[labels_N], rank_N[~labels_N]
    generator = np.random.default_rng(seed)
    areas_R = np.empty(replicates)
    for replicate in range(replicates):
        drawn_normal = normal_ranks[generator.integers(0, len(normal_ranks), len(normal_ranks))]
        drawn_anomalous = anomalous_ranks[generator.integers(0, len(anomalous_ranks), len(anomalous_ranks))]
        normal_U = np.bincount(drawn_normal, minlength=len(distinct_U))
        beaten_U = np.cumsum(normal_U) - 0.5 * normal_U
        areas_R[replicate] = beaten_U[drawn_anomalous].mean() / len(normal_ranks)
    return areas_R


def interval95(values_R: np.ndarray) -> tuple[float, float]:
    """The 2.5th and 97.5th percentile of bootstrap replicates."""
    low, high = np.percentile(values_R, (2.5, 97.5))
    return float(low), float(high)
