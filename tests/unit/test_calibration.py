"""Temperature, threshold and their intervals, on scores whose truth is known; and the file that keeps them in the run folder."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import beta

from vlmphys.calibration import (balanced_threshold, binomial_interval, expected_calibration_error, fit, fit_temperature, probabilities,
                                 read_calibration, threshold_for_rate, write_calibration)
from vlmphys.predictions import UNCALIBRATED, Calibration

pytestmark = pytest.mark.unit


def drawn(clips: int, sharpened: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels that follow log-odds of known truth, and scores that are these times `sharpened`."""
    generator = np.random.default_rng(seed)
    odds_N = generator.normal(0, 3, clips)
    return generator.random(clips) < probabilities(odds_N, 1), odds_N * sharpened


@pytest.mark.parametrize("sharpened", [0.25, 1, 4])
def test_the_temperature_is_that_by_which_scores_are_too_sharp(sharpened):
    assert fit_temperature(*drawn(4000, sharpened)) == pytest.approx(sharpened, rel=0.1)


def test_on_a_held_out_half_the_calibration_error_falls():
    labels_N, scores_N = drawn(800, 4)
    found, facts = fit(labels_N[:400], scores_N[:400])
    before, after = (expected_calibration_error(labels_N[400:], probabilities(scores_N[400:], value)) for value in (1, found.temperature))
    stated = facts["expected_calibration_error"]
    assert after < 0.5 * before and stated["after"] < stated["before"] and stated["held_out"] < 0.5 * stated["before"] and not facts["notes"]


def test_the_true_rate_of_false_alarms_is_within_its_interval_as_often_as_promised():
    labels_N, scores_N = drawn(40000, 1, seed=1)
    normal_N, inside = scores_N[~labels_N], 0
    for seed in range(100):
        found, facts = fit(*drawn(300, 1, seed=100 + seed), target_fpr=0.05)
        low, high = facts["false_positive_rate"]["interval95"]
        inside += low <= (normal_N >= found.threshold).mean() <= high
    assert inside >= 93


@pytest.mark.parametrize(("count", "of"), [(0, 48), (4, 48), (48, 48), (1, 1), (30, 1000)])
def test_the_interval_is_cloppers_and_pearsons(count, of):
    low, high = binomial_interval(count, of)
    assert low == pytest.approx(beta.ppf(0.025, count, of - count + 1) if count else 0, abs=1e-9)
    assert high == pytest.approx(beta.ppf(0.975, count + 1, of - count) if count < of else 1, abs=1e-9)


def test_over_many_val_splits_the_rate_of_false_alarms_is_the_target_at_most():
    generator = np.random.default_rng(0)
    rates = [1 - threshold_for_rate(generator.random(99), 0.05)[0] for _ in range(400)]
    # For uniform scores 1 - threshold is the true rate: of 100 shares 5 lie above the fifth-highest score on average.
    assert np.mean(rates) == pytest.approx(0.05, abs=0.004)


def test_too_few_normal_clips_for_a_rate_are_said_with_the_number_needed():
    scores_N = np.arange(48.0)
    threshold, sentence = threshold_for_rate(scores_N, 0.01)
    assert threshold > 47 and "takes at least 99" in sentence and "no more than 0.0204" in sentence
    assert threshold_for_rate(np.arange(99.0), 0.01) == (np.nextafter(98, 99), None)
    with pytest.raises(ValueError, match="between 0 and 1"):
        threshold_for_rate(scores_N, 1.0)


def test_the_balanced_cut_lies_in_the_widest_gap_of_the_best():
    assert balanced_threshold([0, 0, 1, 1], [-3, -1, 2, 5]) == 0.5
    assert balanced_threshold([0, 1, 0, 1, 1], [0.0, 1.0, 2.0, 8.0, 9.0]) == 5.0


def test_a_missing_class_is_refused_or_said():
    with pytest.raises(ValueError, match="3 normal and 0 anomalous.*--target-fpr"):
        fit(np.zeros(3), np.arange(3.0))
    found, facts = fit(np.zeros(40), np.arange(40.0), target_fpr=0.1)
    assert found.temperature == 1 and facts["true_positive_rate"] is None and "no anomalous clip" in facts["notes"][0]
    with pytest.raises(ValueError, match="1 of 4 val clips have no finite score"):
        fit(np.array([0, 1, 0, 1]), np.array([0, 1, np.nan, 2]))


def test_a_temperature_that_few_clips_cannot_tell_from_1_stays_1():
    assert fit(*drawn(40, 1.3, seed=3))[0].temperature == 1 and fit(*drawn(2000, 1.3, seed=3))[0].temperature == pytest.approx(1.3, rel=0.15)


def test_clips_all_on_their_right_side_give_no_extreme_temperature():
    assert 0.1 < fit_temperature([0, 0, 1, 1], [-4, -3, 3, 4]) < 1


def test_the_file_belongs_to_the_weights_it_was_fitted_to(tmp_path):
    assert read_calibration(tmp_path, "w1") is UNCALIBRATED
    _, facts = fit(*drawn(60, 2))
    path = write_calibration(tmp_path, facts, {"model_fingerprint": "w1"})
    assert read_calibration(tmp_path, "w1") == Calibration(facts["temperature"], facts["threshold"])
    with pytest.raises(ValueError, match="other weights.*vlmphys calibrate again"):
        read_calibration(tmp_path, "w2")
    for change in ({"temperature": 0}, {"threshold": None}, {"version": 9}):
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        with pytest.raises(ValueError, match="vlmphys calibrate again"):
            read_calibration(tmp_path, "w1")
