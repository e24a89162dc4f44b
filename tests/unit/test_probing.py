"""Probes: a planted leak is found, noise is not, and no figure is given where there can be none."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from vlmphys.probing import Separation, chance_error, forest, linear_probe, out_of_fold_auroc, trajectory_statistics

pytestmark = pytest.mark.unit

STATES = ["anomaly_free"] * 30 + ["stuck"] * 12 + ["bent"] * 12


def noise(columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0.0, 1.0, (len(STATES), columns))


def probed(features: np.ndarray, states: list[str] | None = None, seed: int = 0) -> Separation:
    return out_of_fold_auroc(features, states or STATES, partial(linear_probe, features.shape[1]), seed)


@pytest.mark.parametrize("columns", [1, 3, 768])
def test_noise_gives_a_half_on_average_and_is_not_folded(columns):
    areas = [probed(noise(columns, seed)).auroc for seed in range(8)]
    assert np.mean(areas) == pytest.approx(0.5, abs=0.08)
    assert min(areas) < 0.5 < max(areas)


def test_a_planted_leak_is_found_whichever_way_it_points():
    anomalous = np.array([state != "anomaly_free" for state in STATES])
    picture = noise(768)
    picture[anomalous, 100:110] += 2.5
    assert probed(picture).auroc > 0.9
    for direction in (-1, 1):
        assert probed(noise(1) + direction * 4 * anomalous[:, None]).auroc > 0.95
    aside = noise(1)
    aside[30:42] += 5
    aside[42:] -= 5
    assert probed(aside).auroc > 0.95, "too low for one fault and too high for another"


def test_a_cue_that_is_the_same_for_all_says_nothing():
    assert probed(np.full((len(STATES), 1), 120.0)).auroc == 0.5
    assert probed(np.full((len(STATES), 768), 120.0)).auroc == 0.5


def test_one_seed_gives_one_figure():
    assert probed(noise(3), seed=4).auroc == probed(noise(3), seed=4).auroc != probed(noise(3), seed=5).auroc


@pytest.mark.parametrize(("states", "reason"), [
    (["anomaly_free"] * 9, "9 normal and 0 anomalous"), (["stuck"] * 9, "0 normal and 9 anomalous"),
    (["anomaly_free"] * 8 + ["stuck"], "8 normal and 1 anomalous")])
def test_one_class_gives_a_reason_and_no_figure(states, reason):
    found = probed(noise(3)[:9], states)
    assert found.auroc is None and found.reason.startswith(reason)


def test_states_with_fewer_clips_than_folds_are_probed_too():
    states = ["anomaly_free"] * 6 + ["stuck"] * 3 + ["bent"]
    features = np.array([[0.0]] * 6 + [[9.0]] * 4) + noise(1)[:10] * 0.1
    assert probed(features, states).auroc == 1.0


def test_the_error_of_chance_is_that_of_the_rank_sum():
    draws = np.random.default_rng(0).random((4000, 20))
    wins = (draws[:, 8:, None] > draws[:, None, :8]).mean((1, 2))
    assert chance_error(8, 12) == pytest.approx(wins.std(), rel=0.05)


def turns(speed: float, frames: int) -> dict[str, np.ndarray]:
    return {"wheel": speed * np.arange(frames)}


def test_turning_parts_are_read_as_a_viewer_reads_them():
    wheel = frozenset(["wheel"])
    once = trajectory_statistics(turns(0.4, 9), wheel)
    assert trajectory_statistics(turns(0.4 + 2 * np.pi, 9), wheel) == pytest.approx(once, abs=1e-6)
    assert trajectory_statistics(turns(0.4 + 2 * np.pi, 9)) != pytest.approx(once, abs=1.0)


def test_two_turning_parts_are_read_so_too():
    both = frozenset(["wheel", "pinion"])

    def gears(turns_more: float, start: float = 0.0) -> dict[str, np.ndarray]:
        return {"wheel": start + (0.4 + turns_more) * np.arange(9), "pinion": -0.7 * np.arange(9), "slide": np.linspace(0, 1, 9)}

    once = trajectory_statistics(gears(0.0), both)
    assert trajectory_statistics(gears(2 * np.pi), both) == pytest.approx(once, abs=1e-6)
    assert trajectory_statistics(gears(0.0, start=6 * np.pi), both) == pytest.approx(once, abs=1e-6)
    assert trajectory_statistics(gears(0.9), both) != pytest.approx(once, abs=0.5)


def test_a_forest_tells_a_limited_swing_and_a_part_left_behind():
    generator = np.random.default_rng(0)

    def clip(state: str) -> np.ndarray:
        swing = generator.uniform(0.8, 1.2) * np.sin(np.linspace(0, np.pi, 16) + generator.uniform(0, 0.5))
        lead = np.minimum(swing, 0.5) if state == "stuck" else swing
        follow = lead * (np.arange(16) < 6) if state == "bent" else lead
        return trajectory_statistics({"lead": lead, "follow": follow})

    features = np.stack([clip(state) for state in STATES])
    assert out_of_fold_auroc(features, STATES, partial(forest, 0), repeats=1).auroc > 0.98
