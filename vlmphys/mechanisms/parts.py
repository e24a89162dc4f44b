"""What a mechanism tells of itself: its moving parts and the trajectory of one clip."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Part:
    """One coordinate that can be seen: an angle in radians (taken modulo a full turn) or a length in scene units."""

    name: str
    channel: str
    low: float
    high: float
    is_turn: bool = False


@dataclass(frozen=True)
class Trajectory:
    """The true motion of one clip: a value per frame for each channel, what was drawn by lot, and when the fault shows."""

    channels: dict[str, np.ndarray]
    parameters: dict[str, float] = field(default_factory=dict)
    fault_span_seconds: tuple[float, float] | None = None

    def at(self, frame: int) -> dict[str, float]:
        """The values of all channels at one frame."""
        return {name: float(values[frame]) for name, values in self.channels.items()}


def turning(name: str, channel: str) -> Part:
    """A part that may turn without end."""
    return Part(name, channel, 0.0, 2 * np.pi, is_turn=True)
