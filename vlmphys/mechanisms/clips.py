"""One clip of a mechanism: its trajectory and its pictures, from a seed alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from vlmphys.mechanisms.parts import Trajectory
from vlmphys.mechanisms.scene import Canvas, Look, sample_look
from vlmphys.records import NORMAL_STATES


@dataclass(frozen=True)
class SimulatedClip:
    """A clip before it is drawn."""

    mechanism: ModuleType
    trajectory: Trajectory
    look: Look
    clutter_seed: int | None

    def frames(self, size: int, indices: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Draw frames, size x size x 3 uint8 RGB each; all of them, or those at `indices`."""
        clutter = None if self.clutter_seed is None else np.random.default_rng(self.clutter_seed)
        canvas = Canvas(size, self.look, clutter)
        for frame in range(len(self.look.jitter_F2)) if indices is None else indices:
            canvas.begin(int(frame))
            self.mechanism.draw(canvas, self.trajectory.at(int(frame)), self.look)
            yield canvas.finish(int(frame))


def simulate_clip(mechanism: ModuleType, category: str, state: str, seed: int, appearance: str = "physad") -> SimulatedClip:
    """Integrate one clip. `state` is an anomaly's name, `anomaly_free` or `train`; the same seed gives the same pixels."""
    rng = np.random.default_rng(seed)
    look = sample_look(rng, category, appearance, mechanism.FRAMES)
    clutter_seed = int(rng.integers(1 << 31)) if appearance == "wild" else None
    physical_state = "anomaly_free" if state in NORMAL_STATES else state
    if physical_state != "anomaly_free" and physical_state not in mechanism.ANOMALIES:
        raise ValueError(f"unknown state {state!r} of {category}: allowed are anomaly_free, train, {', '.join(mechanism.ANOMALIES)}")
    return SimulatedClip(mechanism, mechanism.simulate(rng, physical_state, mechanism.FRAMES), look, clutter_seed)
