"""How well features separate normal from anomalous clips: cross-validated probes, and statistics of true trajectories. No torch.

Every AUROC here is out of fold and is not folded to .5 and above: max(a, 1 - a) of a useless cue lies above .5 by its own chance, the
more the fewer the clips. A probe learns the cue's direction from the training folds instead. It is also the mean of the folds' own
AUROCs, and not that of all folds' scores in one list: probes of different folds have different offsets, which leave the ranking of a
useless cue below .5.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Callable

import numpy as np
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import RepeatedStratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from vlmphys.layout import NORMAL_STATE

FOLDS, REPEATS = 5, 4
LEAST_CLIPS = 2             # of each state: one to learn from, one to be ranked
FEW_COLUMNS = 4             # up to here a cue is a number or a colour, above it a picture
SHARE_STILL = 0.1           # a step below this share of the channel's largest counts as still


@dataclass(frozen=True)
class Separation:
    """An out-of-fold AUROC, 0 to 1, or None with the reason why there is none."""

    auroc: float | None
    reason: str = ""


def chance_error(normal: int, anomalous: int) -> float:
    """The standard error of the AUROC of a score that knows nothing: sqrt((m + n + 1) / 12 m n). One such error above .5 means little."""
    return float(np.sqrt((normal + anomalous + 1) / (12.0 * normal * anomalous)))


def linear_probe(columns: int) -> Pipeline:
    """Logistic regression on standardised columns: strongly regularised for pictures; with squares and products for a few numbers.

    Squares, since a cue may lie too low for one fault and too high for another.
    """
    if columns <= FEW_COLUMNS:
        return make_pipeline(StandardScaler(), PolynomialFeatures(2, include_bias=False), StandardScaler(), LogisticRegression(C=1.0, max_iter=500))
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))


def forest(seed: int, trees: int = 150) -> ExtraTreesClassifier:
    """A forest for trajectory statistics: no scale to choose, and thresholds on single quantities, as a fault sets them."""
    return ExtraTreesClassifier(n_estimators=trees, max_features=0.3, random_state=seed, n_jobs=1)


def out_of_fold_auroc(features_ND: np.ndarray, states_N: list[str], model: Callable[[], object], seed: int = 0, repeats: int = REPEATS) -> Separation:
    """The mean AUROC, anomalous over normal, of held-out folds; folds are stratified by state, shuffled by `seed` and repeated.

    `model` makes an estimator with `fit` and `predict_proba`. It learns normal or anomalous. No AUROC where a class has fewer than 2 clips.
    """
    states = np.asarray(states_N)
    labels_N = (states != NORMAL_STATE).astype(int)
    fewest = int(min((labels_N == 0).sum(), (labels_N == 1).sum()))
    if fewest < LEAST_CLIPS:
        return Separation(None, f"{int((labels_N == 0).sum())} normal and {int((labels_N == 1).sum())} anomalous clips: 2 of each are needed")
    features_ND = np.asarray(features_ND, dtype=np.float64)
    if not (features_ND != features_ND[:1]).any():
        return Separation(0.5)  # one value for all: nothing to learn, and no column to scale
    counts = {state: int((states == state).sum()) for state in set(states)}
    folds = min(FOLDS, fewest)
    # A state with fewer clips than folds is no stratum of its own: its clips are spread with the others of its class.
    strata = [state if counts[state] >= folds else str(label) for state, label in zip(states, labels_N)]
    if min(strata.count(stratum) for stratum in set(strata)) < folds:
        strata = labels_N
    areas = []
    for train, test in RepeatedStratifiedKFold(n_splits=folds, n_repeats=repeats, random_state=seed).split(features_ND, strata):
        fitted = model().fit(features_ND[train], labels_N[train])
        areas.append(roc_auc_score(labels_N[test], fitted.predict_proba(features_ND[test])[:, 1]))
    return Separation(float(np.mean(areas)))


def trajectory_statistics(channels: dict[str, np.ndarray], turning: frozenset[str] = frozenset()) -> np.ndarray:
    """What a trajectory's samples tell, as one vector: of each channel its ends, range, spread and steps, of each pair how they move together.

    `channels`: values of equal length, at least 2, in any fixed order; `turning` names angles that are seen modulo a full turn only. Their
    course is put together from steps of at most half a turn, so that samples too far apart mistake it as a viewer would.
    """
    statistics, courses, steps = [], {}, {}
    for name, values in channels.items():
        course = np.asarray(values, dtype=float)
        if name in turning:
            step = (np.diff(course) + np.pi) % (2 * np.pi) - np.pi
            course = np.concatenate([[0.0], np.cumsum(step)])
        courses[name], steps[name] = course, np.diff(course)
        statistics += _one_channel(course, steps[name])
    for one, other in combinations(courses, 2):
        statistics += _two_channels(courses[one], courses[other], steps[one], steps[other])
    return np.array(statistics)


def _one_channel(course: np.ndarray, step: np.ndarray) -> list[float]:
    size = np.abs(step)
    largest, mean = float(size.max()), float(size.mean())
    return [course.min(), course.max(), np.ptp(course), course.mean(), course.std(), course[0], course[-1], course[-1] - course[0],
            abs(course[-1] - course[0]), np.abs(course).max(), mean, largest, size.min(), step.std(), step.std() / (mean + 1e-9),
            float((size < SHARE_STILL * largest).mean()), float((np.diff(np.sign(step)) != 0).mean()) if len(step) > 1 else 0.0]


def _two_channels(one: np.ndarray, other: np.ndarray, one_step: np.ndarray, other_step: np.ndarray) -> list[float]:
    difference = one - other
    sizes = np.abs(one_step), np.abs(other_step)
    shares = sizes[0] / (sizes[0] + sizes[1] + 1e-4)
    return [difference.min(), difference.max(), difference.std(), difference[-1], sizes[0].mean() / (sizes[0].mean() + sizes[1].mean() + 1e-9),
            shares.min(), shares.max()]
