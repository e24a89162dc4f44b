"""A USB stick with a swivel cover: a gripper turns the cover about its pivot from one side of the stick to the other."""

from __future__ import annotations

import numpy as np

from vlmphys.mechanisms.parts import Part, Trajectory
from vlmphys.mechanisms.physics import FPS, driven, per_frame, there_and_back, times
from vlmphys.mechanisms.scene import Canvas, Look, polar

FRAMES = 60
ANOMALIES = ("jam",)
PARTS = (Part("cover", "cover", -0.2, 3.5), Part("gripper", "grip", -0.2, 3.5))


def simulate(rng: np.random.Generator, state: str, frames: int) -> Trajectory:
    """The cover follows the gripper, from over the plug or from behind the stick. jam: a block holds it early, and the gripper stalls."""
    instants = times(frames)
    command, there = there_and_back(rng, instants)
    full, margin, closed_first = rng.uniform(2.4, 2.8), rng.uniform(0.0, 0.35), bool(rng.random() < 0.5)
    stop, span = np.inf, None
    if state == "jam":
        stop = rng.uniform(0.12, 0.42)
        blocked = instants[command > stop]
        span = (float(blocked[0]), float(min(blocked[-1], frames / FPS)))
    share = driven(command, rng.uniform(6.0, 8.0), rng.uniform(0.8, 1.1), upper=stop)
    grip = np.minimum(command, stop + 0.03)
    angles = [margin + full * (values if closed_first else 1 - values) for values in (share, grip)]
    return Trajectory({"cover": per_frame(angles[0]), "grip": per_frame(angles[1]),
                       "side": np.full(frames, rng.choice((-1.0, 1.0))), "lie": np.full(frames, rng.uniform(-0.8, 0.8))},
                      {"full_angle": full, "closed_first": closed_first, "there_seconds": there, "stop": min(stop, 1.0)}, span)


def draw(canvas: Canvas, values: dict[str, float], look: Look) -> None:
    """The stick in its vice, plug to the right; the cover, a plate with a bent end, about the pivot; the gripper at its end."""
    lie, reach, wide = values["lie"], 0.74 * look.proportion, 0.2
    angle, hold = (lie - values["side"] * values[name] for name in ("cover", "grip"))
    canvas.box(0, 0.94, 1.2, 0.08, "body", 0.5)
    canvas.box(0, 0.5, 0.12, 0.5, "body", 0.45)
    for distance, half_length, half_width, role, shade in ((-0.12, 0.42, 0.17, "body", 1.2), (0.44, 0.16, 0.12, "metal", 1.3)):
        middle = polar(0, 0, distance, lie)
        canvas.box(middle[0] + 0.02, middle[1] + 0.04, half_length, half_width, (10, 10, 12), 1.0, lie)
        canvas.box(*middle, half_length, half_width, role, shade, lie)
    middle, end = polar(0, 0, (reach - 0.14) / 2, angle), polar(0, 0, reach, angle)
    canvas.box(middle[0] + 0.02, middle[1] + 0.04, (reach + 0.14) / 2, wide, (10, 10, 12), 1.0, angle)
    canvas.box(*middle, (reach + 0.14) / 2, wide, "part", 0.9, angle)
    canvas.box(*end, 0.07, wide, "mark", 1.0, angle)
    canvas.disc(0, 0, 0.1, "metal", 0.8)
    canvas.bar(*polar(0, 0, reach + 0.02, hold), *polar(0, 0, 2.2, hold), 0.1, "grip", 0.8)
    canvas.disc(*polar(0, 0, reach + 0.02, hold), 0.1, "grip", 1.1)
