"""Frames to the model's square: what `VideoLlavaImageProcessor` does, to 1/255, ten times as fast for 1080p.

Shape suffixes: T frames, H W pixels, C colour channels.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

FITS = ("crop", "letterbox", "stretch")
# Letterbox bars take CLIP's mean colour, as LLaVA's own padding does: about zero once normalised.
BAR_COLOUR = (122, 116, 104)
BICUBIC = Image.Resampling.BICUBIC
# torch keeps its 8-bit filter weights in 16 bits: from this reduction on it is never more than 1 from Pillow, below it 2 in a
# few pixels of a million. Pictures that are reduced less are small ones, where Pillow's own time does not matter.
FAST_FROM_SCALE = 3


def fit_frames(frames_THWC: np.ndarray, size: int, fit: str = "crop") -> np.ndarray:
    """Resize uint8 RGB frames to T x size x size x 3, uint8, C order.

    `crop`: bicubic to shortest edge = `size`, then the centre, with the Hugging Face processor's rounding of both; `letterbox`: the
    whole picture, bars around it; `stretch`: the whole picture, its aspect ratio lost. Raises ValueError for other arguments.
    """
    if fit not in FITS:
        raise ValueError(f"fit {fit!r}: must be one of {', '.join(FITS)}")
    if size < 1:
        raise ValueError(f"size: {size} was given, at least 1 pixel is needed")
    if frames_THWC.ndim != 4 or frames_THWC.shape[-1] != 3 or frames_THWC.dtype != np.uint8 or 0 in frames_THWC.shape:
        raise ValueError(f"frames of shape {frames_THWC.shape} and type {frames_THWC.dtype}: T x H x W x 3 of uint8 is expected")
    height, width = frames_THWC.shape[1:3]
    if fit == "stretch":
        return _resize(frames_THWC, size, size)
    if fit == "letterbox":
        longest = max(height, width)
        inner_H, inner_W = (max(1, round(size * edge / longest)) for edge in (height, width))
        top, left = (size - inner_H) // 2, (size - inner_W) // 2
        square_THWC = np.empty((len(frames_THWC), size, size, 3), np.uint8)
        square_THWC[:] = BAR_COLOUR
        square_THWC[:, top:top + inner_H, left:left + inner_W] = _resize(frames_THWC, inner_H, inner_W)
        return square_THWC
    shortest, longest = min(height, width), max(height, width)
    new_longest = int(size * longest / shortest)
    resized_THWC = _resize(frames_THWC, size, new_longest) if height < width else _resize(frames_THWC, new_longest, size)
    top, left = ((edge - size) // 2 for edge in resized_THWC.shape[1:3])
    return np.ascontiguousarray(resized_THWC[:, top:top + size, left:left + size])


def _resize(frames_THWC: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bicubic, antialiased, horizontally and then vertically, rounded to uint8 in between: Pillow's arithmetic."""
    old_height, old_width = frames_THWC.shape[1:3]
    if (old_height, old_width) == (height, width):
        return np.array(frames_THWC, order="C")
    if min(old_height / height, old_width / width) >= FAST_FROM_SCALE:
        # uint8 in channels-last memory takes torch's vectorised path: a fifth of the time of contiguous NCHW.
        frames_TCHW = torch.from_numpy(np.require(frames_THWC, requirements=("C", "W"))).permute(0, 3, 1, 2)
        resized_TCHW = torch.nn.functional.interpolate(frames_TCHW, size=(height, width), mode="bicubic", antialias=True)
        return resized_TCHW.permute(0, 2, 3, 1).contiguous().numpy()
    # Two calls fix the order of the passes: Pillow 13 took to going vertically first in tall pictures (its pull request 9549).
    images = (Image.fromarray(frame_HWC).resize((width, old_height), BICUBIC).resize((width, height), BICUBIC) for frame_HWC in frames_THWC)
    return np.stack([np.asarray(image) for image in images])
