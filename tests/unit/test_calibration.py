"""Temperature, threshold and their intervals, on scores whose truth is known; and the file that keeps them in the run folder."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import beta, betabinom

from vlmphys.calibration import (balanced_threshold, binomial_interval, error_by_chance, expected_calibration_error, fit, fit_temperature,
                                 interval_of_as_many_more, probabilities, read_calibration, threshold_for_rate, write_calibration)
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


@pytest.mark.parametrize(("sharpened", "falls"), [(0.25, True), (0.5, True), (0.8, False), (1, False), (1.25, False), (2, True), (4, True)])
def test_on_as_many_clips_as_the_quickstart_has_the_error_falls_where_there_is_one_and_is_not_worse_elsewhere(sharpened, falls):
    errors = []
    for seed in range(60):
        labels_N, scores_N = drawn(176, sharpened, seed)
        temperature = fit(labels_N[:88], scores_N[:88])[0].temperature
        errors.append([expected_calibration_error(labels_N[88:], probabilities(scores_N[88:], value)) for value in (1, temperature)])
    before, after = np.mean(errors, axis=0)
    assert after < before - 0.01 if falls else after < before + 0.005
    assert not falls or after < 0.11, "which is what exact probabilities show on 88 clips, and a little more"


def test_of_exact_probabilities_the_error_by_chance_is_what_they_show():
    labels_DN, scores_DN = zip(*(drawn(88, 1, seed) for seed in range(300)))
    seen = np.mean([expected_calibration_error(labels_N, probabilities(scores_N, 1)) for labels_N, scores_N in zip(labels_DN, scores_DN)])
    told = np.mean([error_by_chance(probabilities(scores_N, 1)) for scores_N in scores_DN[:30]])
    assert told == pytest.approx(seen, rel=0.08) and seen > 0.05


def test_probabilities_that_lean_to_one_side_are_said():
    labels_N, scores_N = drawn(400, 1)
    assert not any("as a whole" in note for note in fit(labels_N, scores_N)[1]["notes"])
    for shift, way in ((-3, "low"), (3, "high")):
        found, facts = fit(labels_N, scores_N + shift)
        assert any(f"too {way} as a whole" in note for note in facts["notes"])
        assert found.threshold == pytest.approx(shift, abs=1.5), "the threshold goes along"
        assert facts["anomalous_from"] == found.probability(found.threshold) and (facts["anomalous_from"] < 0.5) == (shift < 0)


@pytest.mark.parametrize(("count", "of"), [(0, 48), (5, 120), (1, 99), (47, 48)])
def test_what_as_many_more_clips_show_is_beta_binomial(count, of):
    assert interval_of_as_many_more(count, of) == pytest.approx(betabinom.ppf([0.025, 0.975], of, count + 1, of - count) / of)


def test_as_many_more_normal_clips_show_a_rate_within_its_interval_as_often_as_promised():
    generator, inside = np.random.default_rng(5), 0
    for _ in range(400):
        _, facts = fit(np.zeros(120), generator.random(120), target_fpr=0.05)
        low, high = facts["false_positive_rate_of_as_many_more"]
        inside += low <= (generator.random(120) > facts["threshold"]).mean() <= high
    assert inside >= 0.93 * 400


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
    assert threshold > 47 and "takes at least 99" in sentence and "only a rate of 0.0204 is promised, not 0.01" in sentence
    assert "1 normal val clip is too few" in threshold_for_rate(np.zeros(1), 0.01)[1]
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
    for change in ({"temperature": 0}, {"temperature": float("inf")}, {"threshold": None}, {"version": 9}):
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        with pytest.raises(ValueError, match="vlmphys calibrate again"):
            read_calibration(tmp_path, "w1")
