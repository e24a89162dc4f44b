"""A hinge: a gripper turns the free leaf about the pin to its full angle and back."""

from __future__ import annotations

import numpy as np

from vlmphys.mechanisms.parts import Part, Trajectory
from vlmphys.mechanisms.physics import FPS, driven, free_fall, per_frame, times, to_and_fro
from vlmphys.mechanisms.scene import Canvas, Look, polar

FRAMES = 120
ANOMALIES = ("angle_limited", "falloff")
VISIBLE_IN_ONE_FRAME = {"falloff": "the leaf is off its pin"}
PARTS = (Part("leaf", "leaf", 0.0, 2.5), Part("pin", "fall", 0.0, 1.0), Part("gripper", "grip", 0.0, 2.5))


def simulate(rng: np.random.Generator, state: str, frames: int) -> Trajectory:
    """The leaf follows the gripper, open and closed, from any moment of its cycle. angle_limited: a stop holds it early; falloff (visible in
    one frame): it leaves the pin while it opens, and falls."""
    instants, seconds = times(frames), frames / FPS
    full, period = rng.uniform(1.9, 2.4), rng.uniform(1.25, 1.7)
    command = to_and_fro(rng, instants, period, rng.uniform(0.0, 0.2), full)
    parameters, span = {"full_angle": full, "period": period}, None
    stop, fall = np.inf, np.zeros(len(instants))
    if state == "angle_limited":
        stop = full * rng.uniform(0.3, 0.58)
        parameters["stop_angle"] = stop
        span = (float(instants[np.argmax(command > stop)]), seconds)
    leaf = driven(command, rng.uniform(4.0, 6.0), rng.uniform(0.8, 1.1), start=min(command[0], stop), upper=stop)
    grip = np.minimum(command, stop + 0.12)
    if state == "falloff":
        opening = (np.gradient(command) > 0) & (command > 0.15 * full) & (instants > 0.2) & (instants < seconds - 0.4)
        release = float(rng.choice(instants[opening]))
        fall = free_fall(instants, release, rng.uniform(2.5, 5.0), 0.95)
        leaf = np.where(fall > 0, leaf[np.searchsorted(instants, release)] * np.exp(-fall), leaf)
        parameters["release_seconds"], span = release, (release, seconds)
    return Trajectory({"leaf": per_frame(leaf), "fall": per_frame(fall), "grip": per_frame(grip)}, parameters, span)


def draw(canvas: Canvas, values: dict[str, float], look: Look) -> None:
    """The fixed leaf to the right, the free one about the pin, the gripper at its tip."""
    x, y, reach = 0.0, 0.1, 0.72 * look.proportion
    canvas.box(0, 0.94, 0.9, 0.06, "body", 0.6)
    canvas.bar(x, y, x + 0.78, y, 0.16, "body")
    grip = polar(x, y, reach, -values["grip"])
    canvas.bar(*grip, grip[0] * 1.25, -1.0, 0.1, "grip", 0.8)
    low = values["fall"] * 0.75
    canvas.bar(x - low * 0.2, y + low, *polar(x - low * 0.2, y + low, reach, -values["leaf"]), 0.15, "part")
    canvas.disc(*polar(x - low * 0.2, y + low, reach * 0.75, -values["leaf"]), 0.07, "mark")
    canvas.disc(x, y, 0.13, "metal")
    canvas.box(*grip, 0.09, 0.09, "grip", 1.1)
