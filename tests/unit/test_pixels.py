"""Fitting frames into a square: shapes, what is kept and what is cut, and refusals."""

from __future__ import annotations

import numpy as np
import pytest

from vlmphys.pixels import BAR_COLOUR, FITS, fit_frames

pytestmark = pytest.mark.unit


def thirds(height: int, width: int) -> np.ndarray:
    """Two frames whose left third is red, whose middle is green, whose right third is blue."""
    frames_THWC = np.zeros((2, height, width, 3), np.uint8)
    for colour in range(3):
        frames_THWC[:, :, width * colour // 3:width * (colour + 1) // 3, colour] = 200
    return frames_THWC


def dominant(image_HWC: np.ndarray) -> list[int]:
    """The strongest colour of the middle row, run by run."""
    row = image_HWC[len(image_HWC) // 2].argmax(axis=-1).tolist()
    return [colour for index, colour in enumerate(row) if index == 0 or row[index - 1] != colour]


@pytest.mark.parametrize("size", [1, 31, 64, 224])
@pytest.mark.parametrize("height, width", [(1080, 1920), (90, 30), (33, 100), (64, 64), (5, 4), (1, 1), (700, 2101)])
@pytest.mark.parametrize("fit", FITS)
def test_shape_and_type(fit, height, width, size):
    fitted = fit_frames(np.full((2, height, width, 3), 77, np.uint8), size, fit)
    assert fitted.shape == (2, size, size, 3) and fitted.dtype == np.uint8 and fitted.flags.c_contiguous
    inside = fitted[:, size // 2, size // 2]
    assert (inside == 77).all()


def test_crop_keeps_the_centre_and_the_others_keep_all():
    frames_THWC = thirds(120, 360)
    assert dominant(fit_frames(frames_THWC, 60, "crop")[0]) == [1]
    assert dominant(fit_frames(frames_THWC, 60, "stretch")[1]) == [0, 1, 2]
    letterbox = fit_frames(frames_THWC, 60, "letterbox")
    assert dominant(letterbox[0]) == [0, 1, 2]
    assert (letterbox[:, :20] == BAR_COLOUR).all() and (letterbox[:, 40:] == BAR_COLOUR).all()
    assert not (letterbox[:, 20:40] == BAR_COLOUR).all(axis=-1).any()


def test_a_square_of_the_right_size_is_copied_as_it_is():
    frames_THWC = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    for fit in FITS:
        fitted = fit_frames(frames_THWC, 64, fit)
        assert np.array_equal(fitted, frames_THWC) and not np.shares_memory(fitted, frames_THWC)


def test_frames_do_not_mix_and_memory_order_does_not_matter():
    frames_THWC = np.random.default_rng(1).integers(0, 256, (3, 210, 330, 3), dtype=np.uint8)
    together = fit_frames(frames_THWC, 64)
    for index in range(3):
        assert np.array_equal(fit_frames(frames_THWC[index:index + 1], 64)[0], together[index])
    turned = np.rot90(frames_THWC, axes=(1, 2))
    frozen = np.ascontiguousarray(turned)
    frozen.flags.writeable = False
    assert np.array_equal(fit_frames(turned, 64), fit_frames(frozen, 64))


@pytest.mark.parametrize("frames, size, fit, words", [
    (np.zeros((2, 8, 8, 3), np.uint8), 64, "squeeze", "crop, letterbox, stretch"),
    (np.zeros((2, 8, 8, 3), np.uint8), 0, "crop", "at least 1"),
    (np.zeros((2, 8, 8, 3), np.float32), 64, "crop", "uint8"), (np.zeros((2, 3, 8, 8), np.uint8), 64, "crop", "T x H x W x 3"),
    (np.zeros((0, 8, 8, 3), np.uint8), 64, "crop", "T x H x W x 3")])
def test_refusals(frames, size, fit, words):
    with pytest.raises(ValueError, match=words):
        fit_frames(frames, size, fit)
