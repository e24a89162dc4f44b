"""A hinge: a gripper turns the free leaf about the pin to its full angle and back."""

from __future__ import annotations

import numpy as np

from vlmphys.mechanisms.parts import Part, Trajectory
from vlmphys.mechanisms.physics import FPS, driven, eased, free_fall, per_frame, times
from vlmphys.mechanisms.scene import Canvas, Look, polar

FRAMES = 120
ANOMALIES = ("angle_limited", "falloff")
VISIBLE_IN_ONE_FRAME = {"falloff": "the leaf is off its pin"}
PARTS = (Part("leaf", "leaf", 0.0, 2.5), Part("pin", "fall", 0.0, 1.0), Part("gripper", "grip", 0.0, 2.5))


def simulate(rng: np.random.Generator, state: str, frames: int) -> Trajectory:
    """The leaf follows the gripper. angle_limited: a stop holds it early; falloff (visible in one frame): it leaves the pin and falls."""
    instants, seconds = times(frames), frames / FPS
    full, delay = rng.uniform(1.9, 2.4), rng.uniform(0.0, 0.25)
    opened = delay + rng.uniform(0.55, 0.85)
    held = opened + rng.uniform(0.0, 0.2)
    command = eased(instants, [delay, opened, held, min(seconds, held + rng.uniform(0.5, 0.8))], [0.0, full, full, rng.uniform(0.0, 0.3)])
    parameters, span = {"full_angle": full, "delay": delay}, None
    stop, fall = np.inf, np.zeros(len(instants))
    if state == "angle_limited":
        stop = full * rng.uniform(0.3, 0.58)
        parameters["stop_angle"] = stop
        span = (float(instants[np.argmax(command > stop)]), float(held))
    leaf = driven(command, rng.uniform(4.0, 6.0), rng.uniform(0.8, 1.1), upper=stop)
    grip = np.minimum(command, stop + 0.12)
    if state == "falloff":
        release = float(rng.uniform(delay + 0.25, held))
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
    canvas.bar(grip[0], grip[1] - 0.0, grip[0] * 1.25, -1.0, 0.1, "grip", 0.8)
    low = values["fall"] * 0.75
    canvas.bar(x - low * 0.2, y + low, *polar(x - low * 0.2, y + low, reach, -values["leaf"]), 0.15, "part")
    canvas.disc(*polar(x - low * 0.2, y + low, reach * 0.75, -values["leaf"]), 0.07, "mark")
    canvas.disc(x, y, 0.13, "metal")
    canvas.box(*grip, 0.09, 0.09, "grip", 1.1)
