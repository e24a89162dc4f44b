"""A servo: its horn swings to the full angle on both sides and returns to the centre."""

from __future__ import annotations

import numpy as np

from vlmphys.mechanisms.parts import Part, Trajectory
from vlmphys.mechanisms.physics import FPS, driven, eased, per_frame, shaking, times
from vlmphys.mechanisms.scene import Canvas, Look, polar

FRAMES = 120
ANOMALIES = ("angle_limited", "centered_anomaly", "vibrate")
VISIBLE_IN_ONE_FRAME = {"centered_anomaly": "the horn rests off the centre mark at the end"}
PARTS = (Part("horn", "horn", -1.6, 1.6), Part("case", "case", -0.14, 0.14))


def simulate(rng: np.random.Generator, state: str, frames: int) -> Trajectory:
    """A position loop follows the command. angle_limited: stops on both sides; centered_anomaly: it rests off centre (visible in one
    frame, the last); vibrate: the case and horn are driven to shake.
    """
    instants, seconds = times(frames), frames / FPS
    full, side, delay = rng.uniform(1.15, 1.4), rng.choice((-1.0, 1.0)), rng.uniform(0.0, 0.15)
    begin = rng.uniform(-0.8, 0.8)
    spans = rng.uniform((0.25, 0.1, 0.4, 0.1, 0.28), (0.5, 0.25, 0.65, 0.25, 0.42))
    first, left, second, turned, home = delay + np.cumsum(spans * min(1.0, 1.5 / spans.sum()))
    centre = side * rng.choice((-1.0, 1.0)) * rng.uniform(0.42, 0.75) if state == "centered_anomaly" else rng.uniform(-0.08, 0.08)
    command = eased(instants, [delay, first, left, second, turned, home], [begin, side * full, side * full, -side * full, -side * full, centre])
    stop, span = np.inf, None
    if state == "angle_limited":
        stop = full * rng.uniform(0.35, 0.6)
        span = (float(instants[np.argmax(np.abs(command) > stop)]), home)
    if state == "centered_anomaly":
        span = (home, seconds)
    horn = driven(command, rng.uniform(5.0, 7.5), rng.uniform(0.7, 1.0), start=float(np.clip(begin, -stop, stop)), lower=-stop, upper=stop)
    case = shaking(rng, instants, rng.uniform(0.0, 0.005), 5.0, 11.0)
    if state == "vibrate":
        case = shaking(rng, instants, rng.uniform(0.07, 0.11), 5.0, 11.0)
        horn = horn + shaking(rng, instants, rng.uniform(0.15, 0.3), 5.0, 11.0)
        span = (0.0, seconds)
    return Trajectory({"horn": per_frame(horn), "case": per_frame(case)},
                      {"full_angle": full, "first_side": side, "delay": delay, "centre": centre}, span)


def draw(canvas: Canvas, values: dict[str, float], look: Look) -> None:
    """The case on its base, a scale with a centre mark, the horn above."""
    x, y = values["case"], 0.3
    canvas.box(0, 0.92, 0.85, 0.06, "body", 0.5)
    canvas.box(x, 0.52, 0.42 * look.proportion, 0.32, "body")
    canvas.box(0.0, -0.93, 0.035, 0.06, "metal")
    tip = polar(x, y, 0.98, values["horn"] - np.pi / 2)
    canvas.bar(x, y, *tip, 0.16, "part")
    canvas.disc(*polar(x, y, 0.86, values["horn"] - np.pi / 2), 0.085, "mark")
    canvas.disc(x, y, 0.14, "metal")
