"""Which frames of a clip are read.

Two rules are the field's: `official` and `hf`. Two know motion: `jitter` moves each frame a little in every further set, so that training sees
the same clip at other moments; `phase` puts frames at uneven distances, so that a wheel that turns steadily does not seem to stand.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from vlmphys.records import stable_int

FRAME_RULES = ("official", "hf", "jitter", "phase")
SET_RULES = ("jitter", "phase")     # of these a clip may have several sets of frames
PAIRS = "pairs"     # for measuring motion; no model reads frames this way
PHASE_DRAWS = 256
PHASE_FREQUENCIES = 192


class VideoError(ValueError):
    """A clip that cannot be used; the text is the reason that the quarantine list shows."""


def frame_indices(n_frames: int, frames: int, rule: str, frame_set: int = 0, key: str = "") -> np.ndarray:
    """Which frames of `n_frames` are read, ascending, each once, int32 (T).

    `official` (Video-LLaVA's own code): evenly from the first to the last. `hf` (the Hugging Face examples): steps of
    n_frames / frames from the first, never the last. `pairs`: neighbours, two and two, evenly from the first two to the last two.
    `jitter`: set 0 is `official`'s; in each other one every frame is drawn from its own stretch of the clip, by `frame_set` and `key` (the
    clip's id). `phase`: uneven distances from the first frame to the last, others in each set, the same for all clips of one length.
    Set 0, which predictions and validations see, hangs on `n_frames` alone. Raises VideoError where the clip has fewer frames than wanted.
    """
    if frames < 1:
        raise ValueError(f"frames: {frames} was given, at least 1 is needed")
    if rule == PAIRS and frames % 2:
        raise ValueError(f"frames: {frames} was given, pairs need an even number")
    if rule not in (*FRAME_RULES, PAIRS):
        raise ValueError(f"frame rule {rule!r}: must be one of {', '.join(FRAME_RULES)}")
    assert frame_set == 0 or rule in SET_RULES
    if n_frames < frames:
        raise VideoError(f"has {n_frames} frame(s), {frames} are wanted")
    if rule == PAIRS:
        first = np.linspace(0, n_frames - 2, frames // 2).astype(np.int32)
        return np.stack([first, first + 1], axis=1).reshape(-1)
    if rule == "hf":
        # The cut guards against one element too many, which arange gives for steps that are not exact in binary.
        return np.arange(0, n_frames, n_frames / frames).astype(np.int32)[:frames]
    if rule == "phase":
        return np.array(_uneven(n_frames, frames, frame_set), dtype=np.int32)
    if rule == "jitter" and frame_set:
        return _drawn(n_frames, frames, np.random.default_rng(stable_int("jitter", key, n_frames, frames, frame_set)))
    return np.linspace(0, n_frames - 1, frames).astype(np.int32)


def _drawn(n_frames: int, frames: int, generator: np.random.Generator) -> np.ndarray:
    """One frame from each of `frames` stretches of a clip, which are as long as each other to within one frame."""
    borders = np.linspace(0, n_frames, frames + 1).astype(np.int64)
    return generator.integers(borders[:-1], borders[1:]).astype(np.int32)


@lru_cache(maxsize=4096)
def _uneven(n_frames: int, frames: int, frame_set: int) -> tuple[int, ...]:
    """First frame, last frame, and between them the best of many draws: the one whose strongest alias is weakest."""
    if frames < 3:
        return tuple(np.linspace(0, n_frames - 1, frames).astype(int).tolist())
    generator = np.random.default_rng(stable_int("phase", n_frames, frames, frame_set))
    draws = [np.concatenate([[0], 1 + _drawn(n_frames - 2, frames - 2, generator), [n_frames - 1]]) for _ in range(PHASE_DRAWS)]
    # Rounded, so that the choice does not hang on the last digit of a processor's cosine.
    return tuple(draws[int(np.argmin([round(strongest_alias(index_T), 6) for index_T in draws]))].tolist())


def strongest_alias(index_T: np.ndarray) -> float:
    """How alike two steady rotations can look at these frames, 0 to 1: the mean of exp(2 pi i f t), largest over all frequencies f that differ
    from 0 by more than a clip can tell apart anyway. 1: a rotation of some frequency shows the same picture at every frame."""
    span = max(1, int(index_T[-1] - index_T[0]))
    frequencies_F = np.linspace(min(0.5, 1.5 / span), 0.5, PHASE_FREQUENCIES)       # cycles a frame; above 0.5 the film itself aliases
    return float(np.abs(np.exp(2j * np.pi * frequencies_F[:, None] * index_T[None]).mean(1)).max())
