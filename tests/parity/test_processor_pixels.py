"""Our pixels against those of `VideoLlavaImageProcessor`: never more than 1/255 apart, whatever the size of the video."""

from __future__ import annotations

import numpy as np
import pytest
from clip_files import encode_clip
from PIL import Image
from transformers import VideoLlavaImageProcessor

from vlmphys.model import CLIP_MEAN, CLIP_STD
from vlmphys.pixels import fit_frames
from vlmphys.video import read_frames

pytestmark = pytest.mark.parity

LYING = [(1080, 1920), (720, 1280), (719, 1281), (481, 643), (224, 398), (225, 226), (224, 224), (223, 225), (64, 64), (63, 65), (37, 100),
         (17, 300), (673, 673), (671, 900), (192, 341), (191, 193)]
STANDING = [(1920, 1080), (643, 481), (226, 225), (100, 37), (900, 671), (341, 192)]


def pictures(height: int, width: int) -> np.ndarray:
    """The worst that can be resized: noise, black and white noise, a fine chequerboard, smooth waves; T = 4."""
    generator = np.random.default_rng(height * 10_000 + width)
    rows, columns = np.mgrid[:height, :width]
    waves = np.stack([np.sin(columns / 7 + colour) * np.cos(rows / 11) * 127 + 128 for colour in range(3)], axis=-1)
    board = np.repeat((((columns // 2 + rows // 3) % 2) * 255)[..., None], 3, axis=-1)
    noise = generator.integers(0, 256, (height, width, 3))
    return np.stack([noise, (noise > 127) * 255, board, waves]).astype(np.uint8)


def reference(frames_THWC: np.ndarray, size: int, **options) -> np.ndarray:
    """The processor's output, T x H x W x C."""
    processor = VideoLlavaImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size}, **options)
    outputs = processor(images=list(frames_THWC), return_tensors="np", input_data_format="channels_last")
    (pixels_TCHW,) = outputs.values()
    return pixels_TCHW.transpose(0, 2, 3, 1)


def largest_difference(ours: np.ndarray, theirs: np.ndarray) -> int:
    assert ours.shape == theirs.shape
    return int(np.abs(ours.astype(int) - theirs.astype(int)).max())


@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("height, width", LYING)
def test_lying_pictures(height, width, size):
    frames_THWC = pictures(height, width)
    assert largest_difference(fit_frames(frames_THWC, size), reference(frames_THWC, size, do_rescale=False, do_normalize=False)) <= 1


@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("height, width", STANDING)
def test_standing_pictures(height, width, size):
    """Pillow 13 resizes tall pictures vertically first, older ones never did: noise at full contrast shows it, real pictures do not."""
    frames_THWC = pictures(height, width)
    ours = fit_frames(frames_THWC, size)
    assert largest_difference(ours[3:], reference(frames_THWC[3:], size, do_rescale=False, do_normalize=False)) <= 1
    long = int(size * height / width)
    top = (long - size) // 2
    two_steps = [Image.fromarray(image).resize((size, height), Image.BICUBIC).resize((size, long), Image.BICUBIC) for image in frames_THWC]
    assert largest_difference(ours, np.stack([np.asarray(image)[top:top + size] for image in two_steps])) <= 1


def test_decoded_frames_through_the_whole_processor(tmp_path):
    """A real file, and the figures that the model sees: one step of 1/255 is at most 0.015 once normalised."""
    frames_THWC = read_frames(encode_clip(tmp_path / "clip.mp4", 16, 360, 640)).frames_THWC
    ours = (fit_frames(frames_THWC, 64) / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    assert np.abs(ours - reference(frames_THWC, 64)).max() <= 1.01 / 255 / min(CLIP_STD)


def test_two_hundred_decoded_frames(tmp_path):
    """25 files of 25 sizes and rates of compression, 8 frames of each: what a decoder gives, not what a generator draws."""
    generator, worst, seen = np.random.default_rng(0), 0, 0
    for number in range(25):
        height, width = (2 * int(edge) for edge in generator.integers(120, 400, 2))
        path = encode_clip(tmp_path / f"{number}.mp4", 9, height, width, seed=number, options={"preset": "ultrafast", "crf": str(18 + number % 20)})
        frames_THWC = read_frames(path).frames_THWC
        # Where Pillow 13 changed the order of its passes (tall pictures) the same pictures are compared lying.
        frames_THWC = frames_THWC if height <= width else np.ascontiguousarray(np.rot90(frames_THWC, axes=(1, 2)))
        seen += len(frames_THWC)
        worst = max(worst, largest_difference(fit_frames(frames_THWC, 224), reference(frames_THWC, 224, do_rescale=False, do_normalize=False)))
    assert seen == 200 and worst <= 1
