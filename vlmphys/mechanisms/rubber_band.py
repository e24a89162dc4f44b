"""A rubber band between two hooks: it is stretched and let back."""

from __future__ import annotations

import numpy as np

from vlmphys.mechanisms.parts import Part, Trajectory
from vlmphys.mechanisms.physics import FPS, driven, per_frame, times, to_and_fro
from vlmphys.mechanisms.scene import Canvas, Look

FRAMES = 180
ANOMALIES = ("crack",)
VISIBLE_IN_ONE_FRAME = {"crack": "two torn ends hang"}
PARTS = (Part("hook", "hook", 0.2, 0.9), Part("gap", "gap", 0.0, 1.0))


def simulate(rng: np.random.Generator, state: str, frames: int) -> Trajectory:
    """The hooks part and come back, from any moment of their cycle. crack (visible in one frame): while it is pulled, the band tears at the strain
    that the cracked rubber still bears, in the first pull or a later one; the ends spring back."""
    instants, seconds = times(frames), frames / FPS
    slack, stretch, period = rng.uniform(0.28, 0.36), rng.uniform(0.7, 0.85), rng.uniform(1.5, 2.4)
    hook = driven(to_and_fro(rng, instants, period, slack, stretch), 5.0)
    gap, span = np.zeros(len(instants)), None
    if state == "crack":
        strain = (hook - slack) / (stretch - slack)
        pulled = (np.gradient(hook) > 0) & (strain > 0.3) & (strain < 0.9) & (instants > 0.2) & (instants < seconds - 0.3)
        torn = float(rng.choice(instants[pulled]))
        gap = driven(np.where(instants >= torn, rng.uniform(0.75, 0.95), 0.0), rng.uniform(5.0, 8.0), 0.7, lower=0.0, upper=1.0)
        span = (torn, seconds)
    return Trajectory({"hook": per_frame(hook), "gap": per_frame(gap)}, {"slack": slack, "stretch": stretch, "period": period}, span)


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
