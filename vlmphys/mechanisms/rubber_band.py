"""A rubber band between two hooks: it is stretched and let back."""

from __future__ import annotations

import numpy as np

from vlmphys.mechanisms.parts import Part, Trajectory
from vlmphys.mechanisms.physics import FPS, driven, eased, per_frame, times
from vlmphys.mechanisms.scene import Canvas, Look

FRAMES = 180
ANOMALIES = ("crack",)
VISIBLE_IN_ONE_FRAME = {"crack": "two torn ends hang"}
PARTS = (Part("hook", "hook", 0.2, 0.9), Part("gap", "gap", 0.0, 1.0))


def simulate(rng: np.random.Generator, state: str, frames: int) -> Trajectory:
    """The hooks part and come back. crack (visible in one frame): the band tears once its strain passes what the cracked
    rubber bears; the ends spring back."""
    instants, seconds = times(frames), frames / FPS
    slack, stretch, delay = rng.uniform(0.28, 0.36), rng.uniform(0.7, 0.85), rng.uniform(0.1, 0.5)
    out = delay + rng.uniform(0.9, 1.2)
    back = min(seconds, out + rng.uniform(0.1, 0.4) + rng.uniform(0.7, 1.0))
    hook = driven(eased(instants, [delay, out, out + 0.1, back], [slack, stretch, stretch, slack]), 5.0)
    gap, span = np.zeros(len(instants)), None
    if state == "crack":
        limit = slack + (stretch - slack) * rng.uniform(0.3, 0.9)
        torn = float(instants[np.argmax(hook > limit)])
        gap = driven(np.where(instants >= torn, rng.uniform(0.75, 0.95), 0.0), rng.uniform(5.0, 8.0), 0.7, lower=0.0, upper=1.0)
        span = (torn, seconds)
    return Trajectory({"hook": per_frame(hook), "gap": per_frame(gap)}, {"slack": slack, "stretch": stretch, "delay": delay}, span)


def draw(canvas: Canvas, values: dict[str, float], look: Look) -> None:
    """Two hooks on arms, the band between them as a loop that grows thinner; torn, two ends hang."""
    hook, gap = values["hook"], values["gap"]
    width = 0.16 * (0.3 / hook) ** 0.5 * look.proportion
    canvas.box(0, 0.9, 0.95, 0.08, "body", 0.6)
    for side in (-1, 1):
        canvas.bar(side * (hook + 0.04), -1.1, side * (hook + 0.04), 0.1, 0.12, "grip")
    if gap < 0.02:
        canvas.stroke([(-hook, -0.16), (hook, -0.16)], width, "part")
        canvas.stroke([(-hook, 0.16), (hook, 0.16)], width, "mark")
        for side in (-1, 1):
            canvas.stroke([(side * hook, -0.16), (side * (hook + 0.1), 0.0), (side * hook, 0.16)], width, "part")
    else:
        for side in (-1, 1):
            end = side * hook * gap
            canvas.stroke([(end, 0.25 + 0.4 * gap), (side * (hook * 0.9), 0.16), (side * (hook + 0.1), 0.0), (side * hook, -0.16),
                           (end, -0.1 + 0.5 * gap)], width * 1.2, "mark" if side > 0 else "part")
    for side in (-1, 1):
        canvas.disc(side * hook, 0.0, 0.09, "metal")
