"""DeLong's test and the paired bootstrap, against pairs counted one by one, scipy's normal distribution, and resampled rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import norm, rankdata
from sklearn.metrics import roc_auc_score

from vlmphys import paired
from vlmphys.metrics import interval95

pytestmark = pytest.mark.unit


def case(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    rows = int(generator.integers(6, 120))
    labels = np.r_[0, 0, 1, 1, generator.integers(0, 2, rows - 4)]
    first = np.round(generator.normal(size=rows) + labels, (0, 1, 9)[seed % 3])
    return labels, first, np.round(0.5 * first + generator.normal(size=rows) + 0.3 * labels, (0, 1, 9)[seed % 3])


def delong_by_pairs(labels, first, second) -> tuple[float, float]:
    """z and p from the definition of 1988: a kernel of every pair, covariances of its row and column means."""
    components = []
    for scores in (first, second):
        kernel = np.array([[1.0 if x > y else 0.5 if x == y else 0.0 for y in scores[labels == 0]] for x in scores[labels == 1]])
        components.append((kernel.mean(), kernel.mean(axis=1), kernel.mean(axis=0)))
    (area_1, rows_1, columns_1), (area_2, rows_2, columns_2) = components
    covariance = np.cov([rows_1, rows_2]) / len(rows_1) + np.cov([columns_1, columns_2]) / len(columns_1)
    z = (area_2 - area_1) / math.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    return z, 2 * norm.sf(abs(z))


def test_delong_equals_the_definition_pair_by_pair():
    compared = 0
    for seed in range(120):
        labels, first, second = case(seed)
        found = paired.delong(labels, first, second)
        assert found.difference == pytest.approx(roc_auc_score(labels, second) - roc_auc_score(labels, first), abs=1e-12)
        if found.p is None:
            continue
        z, p = delong_by_pairs(labels, first, second)
        assert found.z == pytest.approx(z, abs=1e-9) and found.p == pytest.approx(p, abs=1e-9), seed
        back = paired.delong(labels, second, first)
        assert back.z == pytest.approx(-found.z) and back.p == pytest.approx(found.p)
        compared += 1
    assert compared > 110


def test_delong_has_the_chance_of_a_false_alarm_that_it_says():
    generator = np.random.default_rng(0)
    labels = np.r_[np.zeros(80, int), np.ones(80, int)]
    alarms = 0
    for _ in range(600):
        common = generator.normal(size=160) + labels
        alarms += paired.delong(labels, common + generator.normal(size=160), common + generator.normal(size=160)).p < 0.05
    # 30 of 600 are expected; four standard deviations of a binomial are 21.
    assert 9 < alarms < 51


def test_delong_without_variance_or_with_one_class_says_why():
    labels, scores = [0, 0, 1, 1], np.array([0.0, 1.0, 2.0, 3.0])
    same = paired.delong(labels, scores, 2 * scores)
    assert (same.difference, same.z, same.p) == (0.0, None, None) and "alike" in same.reason
    turned = paired.delong(labels, scores, -scores)
    assert turned.difference == -1.0 and turned.p is None and "the same for every clip" in turned.reason
    few = paired.delong([0, 1, 1], [0.0, 1.0, 2.0], [1.0, 0.0, 2.0])
    assert few.p is None and few.reason == "a variance needs two clips of each class: 2 anomalous and 1 normal are there"
    with pytest.raises(ValueError, match="both classes: one class only"):
        paired.delong([1, 1], [0.0, 1.0], [0.0, 1.0])
    with pytest.raises(ValueError, match="NaN"):
        paired.delong([0, 1], [0.0, math.nan], [0.0, 1.0])


def test_midranks_equal_scipys():
    for seed in range(20):
        values = np.round(np.random.default_rng(seed).normal(size=50), seed % 3)
        assert np.array_equal(paired.midranks(values), rankdata(values))


def test_the_bootstrap_of_a_difference_resamples_the_same_clips_for_both():
    labels, first, second = case(7)
    order = np.argsort(labels, kind="stable")
    labels, first, second = labels[order], first[order], second[order]
    drawn = paired.bootstrap_difference(labels, first, second, seed=3, replicates=200)
    assert np.array_equal(drawn, paired.bootstrap_difference(labels, first, second, seed=3, replicates=200))
    replay, normal = np.random.default_rng(3), int((labels == 0).sum())
    for replicate in range(20):
        rows = np.r_[replay.integers(0, normal, normal), replay.integers(0, len(labels) - normal, len(labels) - normal) + normal]
        wanted = roc_auc_score(labels[rows], second[rows]) - roc_auc_score(labels[rows], first[rows])
        assert drawn[replicate] == pytest.approx(wanted, abs=1e-12)
    assert np.ptp(paired.bootstrap_difference(labels, first, first + 5, seed=3, replicates=50)) == 0
    # Its spread is that of DeLong's standard error, which knows nothing of resampling.
    labels, first, second = case(44)
    spread = paired.bootstrap_difference(labels, first, second, seed=0, replicates=2000).std()
    assert spread == pytest.approx(paired.delong(labels, first, second).standard_error, rel=0.15)
    low, high = interval95(drawn)
    assert low < high


def test_the_p_of_a_bootstrap_is_never_0_and_at_most_1():
    assert paired.bootstrap_p(np.ones(999)) == 2 / 1000
    assert paired.bootstrap_p(np.zeros(99)) == 1.0
    assert paired.bootstrap_p(np.r_[-np.ones(24), np.ones(75)]) == 0.5
