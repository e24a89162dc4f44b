"""Trivial cues of a clip: what a reader of no physics could measure. The leak audit asks how far they give the label away.

Two kinds: shortcuts, which no motion is needed for (colour, one frame's pixels, length, size), and motion cues, which say how much moves
and nothing of how. No torch. Shape suffixes: T frames, H W pixels, C colour channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from vlmphys.frame_rules import PAIRS
from vlmphys.sources import clip_stat
from vlmphys.video import VideoError, read_frames

STILL_CUES = ("first frame", "middle frame", "last frame", "mean colour")
FILE_CUES = ("length", "file size")
MOTION_CUES = ("frame difference", "optical flow")
CUES = (*STILL_CUES, *FILE_CUES, *MOTION_CUES)
PICTURE_CUES = STILL_CUES[:3]
FRAME_PAIRS = 7             # odd, so that one pair is the middle of the clip
PICTURE_PIXELS = 16         # edge of the picture that the linear probe reads
MOTION_PIXELS = 64          # edge of the pictures between which motion is measured: a bigger one measures the sensor's noise


@dataclass(frozen=True)
class ClipCues:
    """The cues of one clip, by the names in `CUES`: each a vector of float32 (a picture is 16 x 16 x 3 values, a scalar one value)."""

    values: dict[str, np.ndarray]


def measure_clip(path: str | Path) -> ClipCues | VideoError:
    """Read 7 pairs of neighbouring frames and measure; what is wrong with the file comes back as an error, not as an exception."""
    try:
        clip = read_frames(path, PAIRS, 2 * FRAME_PAIRS)
        nbytes = clip_stat(Path(path))[0]
    except VideoError as error:
        return error
    except OSError as error:
        return VideoError(f"cannot be read: {error.strerror or error}")
    return ClipCues({**frame_cues(clip.frames_THWC), "length": np.array([clip.n_frames], np.float32), "file size": np.array([nbytes], np.float32)})


def frame_cues(frames_THWC: np.ndarray) -> dict[str, np.ndarray]:
    """Still and motion cues of pairs of neighbouring frames, T x H x W x 3 uint8, T even.

    `frame difference`: mean absolute difference of neighbours, in grey levels; `optical flow`: mean length of Farneback's flow between
    them, in 1/64 of the picture's edge. Both are means over pairs.
    """
    pictures = {name: _shrunk(frames_THWC[index], PICTURE_PIXELS).reshape(-1)
                for name, index in zip(PICTURE_CUES, (0, len(frames_THWC) // 2, -1))}
    small_THWC = np.stack([_shrunk(frame_HWC, MOTION_PIXELS) for frame_HWC in frames_THWC])
    before_THWC, after_THWC = small_THWC[0::2], small_THWC[1::2]
    flows = [_flow_length(before, after) for before, after in zip(before_THWC, after_THWC)]
    return {**pictures, "mean colour": small_THWC.mean((0, 1, 2)),
            "frame difference": np.array([np.abs(after_THWC - before_THWC).mean()], np.float32),
            "optical flow": np.array([np.mean(flows)], np.float32)}


def _shrunk(frame_HWC: np.ndarray, edge: int) -> np.ndarray:
    """The whole picture in edge x edge x 3 float32: area means, so that no pixel is passed over."""
    return cv2.resize(frame_HWC, (edge, edge), interpolation=cv2.INTER_AREA).astype(np.float32)


def _flow_length(before_HWC: np.ndarray, after_HWC: np.ndarray) -> float:
    grey = [cv2.cvtColor(picture.astype(np.uint8), cv2.COLOR_RGB2GRAY) for picture in (before_HWC, after_HWC)]
    flow_HW2 = cv2.calcOpticalFlowFarneback(*grey, None, pyr_scale=0.5, levels=3, winsize=11, iterations=2, poly_n=5, poly_sigma=1.1, flags=0)
    return float(np.hypot(flow_HW2[..., 0], flow_HW2[..., 1]).mean())
