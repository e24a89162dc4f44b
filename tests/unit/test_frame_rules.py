"""Rules that know motion: other moments in each set, the first set the same for all, and no steady rotation that seems to stand."""

from __future__ import annotations

import numpy as np
import pytest

from vlmphys.frame_rules import SET_RULES, frame_indices, strongest_alias

pytestmark = pytest.mark.unit
LENGTHS = (60, 120, 180, 240)       # Phys-AD's


@pytest.mark.parametrize("rule", SET_RULES)
@pytest.mark.parametrize("n_frames", [8, 9, 16, 61, *LENGTHS])
@pytest.mark.parametrize("frames", [1, 2, 8])
def test_each_set_is_ascending_and_within_the_clip(rule, n_frames, frames):
    for number in range(5):
        index = frame_indices(n_frames, frames, rule, number, "fan/train/0001")
        assert len(index) == frames and index.dtype == np.int32 and index[0] >= 0 and index[-1] < n_frames and (np.diff(index) > 0).all()
        assert np.array_equal(index, frame_indices(n_frames, frames, rule, number, "fan/train/0001"))
    assert np.array_equal(frame_indices(n_frames, frames, rule), frame_indices(n_frames, frames, rule, 0, "another clip"))


@pytest.mark.parametrize("n_frames", LENGTHS)
def test_jitter_draws_each_frame_from_its_own_stretch(n_frames):
    assert np.array_equal(frame_indices(n_frames, 8, "jitter"), frame_indices(n_frames, 8, "official"))
    drawn = np.stack([frame_indices(n_frames, 8, "jitter", number, f"clip {clip}") for clip in range(20) for number in range(1, 5)])
    assert len(np.unique(drawn, axis=0)) == len(drawn), "every clip and set has moments of its own"
    begins = np.arange(9) * n_frames // 8
    assert (drawn >= begins[:-1]).all() and (drawn < begins[1:]).all()


def test_jitter_is_the_same_on_every_machine():
    """A pack that another machine goes on with must choose the same frames."""
    assert frame_indices(150, 8, "jitter", 2, "fan/train/0001").tolist() == [13, 32, 51, 69, 78, 98, 115, 143]
    assert frame_indices(150, 8, "phase").tolist() == [0, 4, 33, 57, 93, 107, 127, 149]


@pytest.mark.parametrize("n_frames", LENGTHS)
def test_phase_lets_no_steady_rotation_stand_still(n_frames):
    """A wheel that turns once in the even rule's distance shows the same face eight times; at the uneven frames it does not."""
    assert strongest_alias(frame_indices(n_frames, 8, "official")) > 0.95
    for number in range(3):
        index = frame_indices(n_frames, 8, "phase", number)
        assert index[0] == 0 and index[-1] == n_frames - 1 and strongest_alias(index) < 0.75
    even, period = np.linspace(0, n_frames - 1, 8), (n_frames - 1) / 7
    assert strongest_alias(np.round(even / period).astype(int) * 10) == pytest.approx(1)
    turned = 2 * np.pi * frame_indices(n_frames, 8, "phase") / period
    assert np.abs(np.exp(1j * turned).mean()) < 0.75


def test_more_frames_than_a_clip_has():
    for rule in SET_RULES:
        with pytest.raises(ValueError, match="has 7 frame.*8 are wanted"):
            frame_indices(7, 8, rule)
