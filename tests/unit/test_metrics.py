"""Metrics against scikit-learn, on ties, one class, and missing scores."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, confusion_matrix, precision_recall_curve, roc_auc_score, roc_curve

from vlmphys import metrics

pytestmark = pytest.mark.unit


def random_case(case: int) -> tuple[np.ndarray, np.ndarray]:
    """2 to 10,000 rows, most of them few: a third of the cases have heavy ties, a third light ones, a third none; some one class only."""
    generator = np.random.default_rng(case)
    rows = int(np.exp(generator.uniform(np.log(2), np.log(10_000)))) if case % 50 else (2, 10_000)[case // 50 % 2]
    labels = (generator.uniform(size=rows) < generator.choice((0.02, 0.5, 0.9))).astype(int)
    scores = generator.normal(size=rows) + 0.7 * labels
    return labels, np.round(scores, (0, 1, 12)[case % 3])


def test_auroc_and_average_precision_equal_scikit_learn_on_1000_cases():
    compared = refused = missing = 0
    sizes = set()
    for case in range(1000):
        labels, scores = random_case(case)
        sizes.add(len(labels))
        if case % 10 == 9:
            scores[case % len(scores)] = np.nan
            for ours, theirs in ((metrics.auroc, roc_auc_score), (metrics.average_precision, average_precision_score)):
                for measure in (ours, theirs):
                    with pytest.raises(ValueError, match="NaN"):
                        measure(labels, scores)
            missing += 1
            continue
        area, precision = metrics.auroc(labels, scores), metrics.average_precision(labels, scores)
        if 0 < labels.sum() < len(labels):
            assert area.value == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
            compared += 1
        else:
            # scikit-learn warns and gives NaN, which is no number either.
            assert np.isnan(roc_auc_score(labels, scores))
            assert area.value is None and "one class only" in area.reason
            refused += 1
        if labels.any():
            assert precision.value == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
        else:
            assert precision.value is None and "no anomalous clip" in precision.reason
    assert (min(sizes), max(sizes)) == (2, 10_000) and missing == 100 and refused > 100 and compared > 600


def test_one_class_is_undefined_with_its_reason():
    for labels in ([0, 0, 0], [1, 1, 1], []):
        figure = metrics.auroc(labels, np.arange(len(labels)))
        assert figure.value is None and f"{sum(labels)} anomalous" in figure.reason
    assert metrics.average_precision([0, 0], [1.0, 2.0]).value is None
    assert metrics.average_precision([1, 1], [1.0, 2.0]).value == 1.0
    assert metrics.accuracy([], [], 0.0).value is None
    with pytest.raises(ValueError, match="both classes"):
        metrics.roc_points([1, 1], [0.0, 1.0])
    with pytest.raises(ValueError, match="both classes"):
        metrics.bootstrap_auroc([1, 1], [0.0, 1.0], seed=0)


def test_equal_scores_are_worth_half():
    assert metrics.auroc([0, 1, 0, 1], [5.0, 5.0, 5.0, 5.0]).value == 0.5
    assert metrics.auroc([0, 1], [1.0, 2.0]).value == 1.0
    assert metrics.auroc([0, 1], [2.0, 1.0]).value == 0.0
    assert metrics.auroc([0, 0, 1, 1], [-np.inf, 0.0, 0.0, np.inf]).value == 0.875


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="1 of 3 scores are NaN"):
        metrics.auroc([0, 1, 1], [0.0, np.nan, 1.0])
    with pytest.raises(ValueError, match="labels must be 0"):
        metrics.auroc([0, 2], [0.0, 1.0])
    with pytest.raises(ValueError, match="one length"):
        metrics.average_precision([0, 1], [0.0])


def test_accuracy_counts_the_threshold_itself_as_anomalous():
    assert metrics.accuracy([1, 0, 1, 0], [0.5, 0.5, 0.6, 0.4], 0.5).value == 0.75


def test_verdict_auroc_is_balanced_accuracy_and_unparsed_counts_as_wrong():
    generator = np.random.default_rng(3)
    labels, verdicts = generator.integers(0, 2, 200), generator.integers(0, 2, 200)
    value = metrics.verdict_auroc(labels, verdicts == 1).value
    assert value == pytest.approx(balanced_accuracy_score(labels, verdicts), abs=1e-12)
    assert value == pytest.approx(roc_auc_score(labels, verdicts), abs=1e-12)
    unparsed = [False, True, False, True]
    assert metrics.verdict_auroc([1, 1, 0, 0], [True, True, False, False], unparsed).value == 0.5
    assert metrics.verdict_auroc([1, 1], [True, True]).value is None


def test_rates_are_those_of_scikit_learns_confusion_and_unparsed_is_wrong_on_both_sides():
    generator = np.random.default_rng(4)
    labels, verdicts = generator.integers(0, 2, 300), generator.integers(0, 2, 300)
    true_negative, false_positive, false_negative, true_positive = confusion_matrix(labels, verdicts).ravel()
    caught, alarmed = metrics.verdict_rates(labels, verdicts == 1)
    assert caught.value == pytest.approx(true_positive / (true_positive + false_negative), abs=1e-12)
    assert alarmed.value == pytest.approx(false_positive / (false_positive + true_negative), abs=1e-12)
    unparsed = generator.uniform(size=300) < 0.2
    caught, alarmed = metrics.verdict_rates(labels, verdicts == 1, unparsed)
    assert caught.value == pytest.approx(((verdicts == 1) & ~unparsed)[labels == 1].mean())
    assert 1 - alarmed.value == pytest.approx(((verdicts == 0) & ~unparsed)[labels == 0].mean())
    assert metrics.verdict_auroc(labels, verdicts == 1, unparsed).value == pytest.approx((caught.value + 1 - alarmed.value) / 2)
    as_scores = metrics.verdict_scores(labels, verdicts == 1, unparsed)
    assert metrics.auroc(labels, as_scores).value == pytest.approx(metrics.verdict_auroc(labels, verdicts == 1, unparsed).value, abs=1e-12)
    caught, alarmed = metrics.verdict_rates([1, 1], [True, False])
    assert caught.value == 0.5 and alarmed.value is None and alarmed.reason == "no normal clip with a verdict"


def test_roc_points_lie_on_scikit_learns_curve_and_enclose_the_same_area():
    labels, scores = random_case(1)
    false_rate, true_rate = metrics.roc_points(labels, scores)
    expected_false, expected_true, _ = roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(false_rate, expected_false, atol=1e-12)
    np.testing.assert_allclose(true_rate, expected_true, atol=1e-12)
    labels, scores = np.arange(4000) % 2, np.random.default_rng(0).normal(size=4000)
    false_rate, true_rate = metrics.roc_points(labels, scores, most=100)
    assert len(false_rate) <= 100 and (false_rate[0], true_rate[0], false_rate[-1], true_rate[-1]) == (0, 0, 1, 1)


def test_bootstrap_is_seeded_stratified_and_agrees_with_resampled_rows():
    generator = np.random.default_rng(5)
    labels = np.r_[np.zeros(60, int), np.ones(40, int)]
    scores = np.round(generator.normal(size=100) + labels, 1)
    areas = metrics.bootstrap_auroc(labels, scores, seed=9, replicates=300)
    assert np.array_equal(areas, metrics.bootstrap_auroc(labels, scores, seed=9, replicates=300))
    assert not np.array_equal(areas, metrics.bootstrap_auroc(labels, scores, seed=10, replicates=300))
    # The same draws, scored row by row: first the normal clips' indices, then the anomalous ones'.
    replay = np.random.default_rng(9)
    for replicate in range(5):
        normal, anomalous = replay.integers(0, 60, 60), replay.integers(0, 40, 40) + 60
        rows = np.r_[normal, anomalous]
        assert areas[replicate] == pytest.approx(roc_auc_score(labels[rows], scores[rows]), abs=1e-12)
    low, high = metrics.interval95(areas)
    assert low < metrics.auroc(labels, scores).value < high
    assert metrics.interval95(np.ones(10)) == (1.0, 1.0)


def test_precision_recall_points_are_scikit_learns_and_are_thinned():
    labels, scores = random_case(1)
    recall, precision = metrics.precision_recall_points(labels, scores, most=20_000)
    wanted_precision, wanted_recall, _ = precision_recall_curve(labels, scores)
    np.testing.assert_allclose(recall, wanted_recall[:-1][::-1], atol=1e-12)
    np.testing.assert_allclose(precision, wanted_precision[:-1][::-1], atol=1e-12)
    recall, precision = metrics.precision_recall_points(np.arange(4000) % 2, np.random.default_rng(0).normal(size=4000), most=100)
    assert 50 < len(recall) <= 100 and recall[-1] == 1 and precision[-1] == 0.5
    with pytest.raises(ValueError, match="needs an anomalous clip"):
        metrics.precision_recall_points([0, 0], [0.0, 1.0])
