"""A pool of simulated clips to pre-train on: 8 frames each, small pixels, and the true place of every part in every frame.

Shape suffixes: N clips, T frames, P parts (padded to MAX_PARTS), H W pixels, C channels.
"""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass

import cv2
import numpy as np

from vlmphys.mechanisms import load_mechanism
from vlmphys.mechanisms.clips import simulate_clip
from vlmphys.pixels import fit_frames
from vlmphys.records import stable_int
from vlmphys.frame_rules import frame_indices

MAX_PARTS = 6
FRAMES = 8
RENDER_SIZE = 112


@dataclass
class Pool:
    """Simulated clips with their truth. `places_NTP` is in [0, 1]: share of a full turn, or of the part's range; NaN where there is no such part."""

    categories: list[str]
    category_N: np.ndarray
    frames_NTHWC: np.ndarray
    places_NTP: np.ndarray


def part_place(part, value: np.ndarray) -> np.ndarray:
    """A channel's value as a share of a turn or of the part's range, in [0, 1]."""
    if part.is_turn:
        return np.mod(value, 2 * np.pi) / (2 * np.pi)
    return np.clip((value - part.low) / (part.high - part.low), 0.0, 1.0)


def build_pool(categories: list[str], clips: int, image_size: int, seed: int | str, workers: int, sound_share: float = 0.5,
               appearance: str = "physad") -> Pool:
    """Simulate `clips` clips: a share of them sound, the others with a fault, categories in turn, and once more for each part that turns.

    Turning parts come more often because they are the hardest to read: a step is a difference modulo a full turn.
    The seeds live in a name space of their own ("tiny-base"), so that no clip of a benchmark, of any seed, is among them.
    """
    turning = [category for category in categories for part in load_mechanism(category).PARTS if part.is_turn]
    cycle = [*categories, *turning]
    category_of = [cycle[index % len(cycle)] for index in range(clips)]
    jobs = [(category, index, image_size, seed, sound_share, appearance) for index, category in enumerate(category_of)]
    frames = np.empty((clips, FRAMES, image_size, image_size, 3), np.uint8)
    places = np.full((clips, FRAMES, MAX_PARTS), np.nan, np.float32)
    with multiprocessing.get_context("spawn").Pool(workers, initializer=cv2.setNumThreads, initargs=(1,)) as processes:
        for index, (picture, place) in enumerate(processes.imap(_one_clip, jobs, chunksize=64)):
            frames[index], places[index, :, :place.shape[1]] = picture, place
    return Pool(categories, np.array([categories.index(category) for category in category_of]), frames, places)


def _one_clip(job) -> tuple[np.ndarray, np.ndarray]:
    category, index, image_size, seed, sound_share, appearance = job
    mechanism = load_mechanism(category)
    rng = np.random.default_rng(stable_int("tiny-base", seed, category, index))
    state = "anomaly_free" if rng.random() < sound_share else str(rng.choice(mechanism.ANOMALIES))
    clip = simulate_clip(mechanism, category, state, int(rng.integers(1 << 62)), appearance)
    picks = np.asarray(frame_indices(mechanism.FRAMES, FRAMES, "official"))
    pictures = fit_frames(np.stack(list(clip.frames(RENDER_SIZE, picks))), image_size, "crop")
    places = np.stack([part_place(part, clip.trajectory.channels[part.channel][picks]) for part in mechanism.PARTS], axis=1)
    return pictures, places.astype(np.float32)
