"""Two scores of the same clips: the difference of their AUROCs, its bootstrap interval, and DeLong's test. In numpy alone.

Shape suffixes: N clips, M anomalous and L normal among them, R bootstrap replicates; AB: the two scores, A the one that is compared
against, B the other. Differences are B minus A.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vlmphys.metrics import auroc, bootstrap_auroc


@dataclass(frozen=True)
class DeLong:
    """DeLong's test of two correlated AUROCs: z and the two-sided p, or the reason why there are none."""

    difference: float
    standard_error: float
    z: float | None
    p: float | None
    reason: str | None = None


def midranks(values_N) -> np.ndarray:
    """Ranks from 1, float64 of length N; equal values share the mean of the ranks that they take."""
    values_N = np.asarray(values_N, dtype=np.float64)
    _, place_N, counts_U = np.unique(values_N, return_inverse=True, return_counts=True)
    return (np.cumsum(counts_U) - (counts_U - 1) / 2)[place_N]


def placements(labels_N, scores_N) -> tuple[np.ndarray, np.ndarray]:
    """For each anomalous clip the share of normal ones that it beats (length M), for each normal one the share of anomalous ones that
    beat it (length L), ties counted as half: DeLong's structural components, by ranks (Sun and Xu 2014) instead of by pairs."""
    labels_N, scores_N = np.asarray(labels_N, dtype=bool), np.asarray(scores_N, dtype=np.float64)
    ranks_N = midranks(scores_N)
    anomalous, normal = int(labels_N.sum()), int((~labels_N).sum())
    above_M = (ranks_N[labels_N] - midranks(scores_N[labels_N])) / normal
    beaten_L = 1 - (ranks_N[~labels_N] - midranks(scores_N[~labels_N])) / anomalous
    return above_M, beaten_L


def delong(labels_N, scores_A_N, scores_B_N) -> DeLong:
    """DeLong, DeLong and Clarke-Pearson (1988): is the AUROC of B another than that of A, over the same clips?

    Raises ValueError with one class only, NaN, or unequal lengths. The p is undefined, with its reason, where a class has fewer than two
    clips, or where the difference has no variance (both scores rank every pair of clips the same way).
    """
    areas = [auroc(labels_N, scores_N) for scores_N in (scores_A_N, scores_B_N)]
    for area in areas:
        if area.value is None:
            raise ValueError(f"DeLong's test needs both classes: {area.reason}")
    (above_A_M, beaten_A_L), (above_B_M, beaten_B_L) = (placements(labels_N, scores_N) for scores_N in (scores_A_N, scores_B_N))
    difference = areas[1].value - areas[0].value
    if len(above_A_M) < 2 or len(beaten_A_L) < 2:
        return DeLong(difference, math.nan, None, None, "a variance needs two clips of each class: "
                      f"{len(above_A_M)} anomalous and {len(beaten_A_L)} normal are there")
    # The variance of a difference of two paired means is that of the mean of the differences, class by class.
    variance = (above_B_M - above_A_M).var(ddof=1) / len(above_A_M) + (beaten_B_L - beaten_A_L).var(ddof=1) / len(beaten_A_L)
    error = math.sqrt(variance)
    # Rounding of the ranks' division leaves about 1e-17 where the true variance is 0.
    if error < 1e-12:
        return DeLong(difference, 0.0, None, None, "no variance: both rank all pairs of clips alike" if abs(difference) < 1e-12
                      else "no variance: the difference is the same for every clip")
    z = difference / error
    return DeLong(difference, error, z, math.erfc(abs(z) / math.sqrt(2)))


def bootstrap_difference(labels_N, scores_A_N, scores_B_N, seed: int, replicates: int | None = None) -> np.ndarray:
    """AUROC of B minus that of A on each of R resamples, drawn within each class; both are taken on the same resampled clips.

    Raises ValueError as `bootstrap_auroc` does.
    """
    # Equal seeds, labels and lengths draw equal clips: the draws do not depend on the scores.
    return bootstrap_auroc(labels_N, scores_B_N, seed, replicates) - bootstrap_auroc(labels_N, scores_A_N, seed, replicates)


def bootstrap_p(differences_R: np.ndarray) -> float:
    """Two-sided p of "no difference" from bootstrap replicates: twice the smaller share on one side of 0, one replicate added to each so
    that it is never 0."""
    sides = min(int((differences_R <= 0).sum()), int((differences_R >= 0).sum()))
    return min(1.0, 2 * (1 + sides) / (len(differences_R) + 1))
