"""A sticky roller: an arm moves its handle up and down a wall, and the roller rolls along the wall on its axle.

falloff is visible in one frame: the roller is no longer on its axle.
"""

from __future__ import annotations

import numpy as np

from vlmphys.mechanisms.parts import Part, Trajectory, turning
from vlmphys.mechanisms.physics import BRAKE_DRAG, DT, FPS, driven, fault_window, free_fall, per_frame, rotor, strokes, times, within
from vlmphys.mechanisms.scene import Canvas, Look, polar

FRAMES = 180
ANOMALIES = ("falloff", "stuck")
VISIBLE_IN_ONE_FRAME = {"falloff": "the roller is no longer on its axle"}
PARTS = (turning("roller", "roller"), Part("axle", "axle", -0.5, 0.5), Part("fall", "fall", 0.0, 1.5))
RADIUS, WALL_X, FLOOR_Y = 0.42, -0.74, 0.87


def simulate(rng: np.random.Generator, state: str, frames: int) -> Trajectory:
    """The wall's friction turns the roller as its axle moves. stuck: the axle brakes it and it slides; falloff: it leaves the axle and falls."""
    instants, seconds = times(frames), frames / FPS
    command = strokes(rng, instants, (0.25, 0.42), (0.8, 1.3), 0.15)
    axle = driven(command, rng.uniform(4.0, 6.0), rng.uniform(0.9, 1.1))
    span, falls_at = None, np.inf
    if state == "stuck":
        span = fault_window(rng, seconds, shortest_share=0.6)
    if state == "falloff":
        falls_at = float(rng.uniform(0.06, 0.66) * seconds)
        span = (falls_at, seconds)
    speed = np.gradient(axle, DT) / RADIUS * (instants < falls_at)
    brake = BRAKE_DRAG * (within(instants, span) if state == "stuck" else np.zeros(len(instants)))
    grip = np.where(instants < falls_at, 80.0, 0.4)
    roller = rotor(grip * speed, grip + brake, 0.0 if state == "stuck" and span[0] == 0.0 else speed[0], rng.uniform(0, 2 * np.pi))
    left_at = axle[min(int(np.searchsorted(instants, falls_at)), len(axle) - 1)]
    drop = free_fall(instants, falls_at, rng.uniform(4.0, 7.0), FLOOR_Y - RADIUS - left_at) if np.isfinite(falls_at) else np.zeros(len(instants))
    aside = np.minimum(np.maximum(instants - falls_at, 0.0) * rng.uniform(0.15, 0.4), 0.35)
    return Trajectory({"roller": per_frame(roller), "axle": per_frame(axle), "fall": per_frame(drop), "aside": per_frame(aside),
                       "left_at": per_frame(np.where(instants < falls_at, axle, left_at))}, {"reach": np.abs(axle).max()}, span)


def draw(canvas: Canvas, values: dict[str, float], look: Look) -> None:
    """The wall to the left, the arm and its fork from the right, the roller with its painted end."""
    axle_x, size = WALL_X + RADIUS + 0.02, look.proportion
    canvas.box(0, 0.94, 1.0, 0.07, "body", 0.5)
    canvas.box(WALL_X - 0.13, 0, 0.13, 0.9, "body", 0.9)
    hand = values["axle"] - 0.12
    canvas.bar(axle_x, values["axle"], 0.5, hand, 0.1 * size, "metal")
    canvas.bar(0.4, hand, 1.2, hand - 0.1, 0.2 * size, "grip")
    x, y = axle_x + values["aside"], values["left_at"] + values["fall"]
    canvas.disc(x + 0.03, y + 0.04, RADIUS, (8, 8, 10))
    canvas.disc(x, y, RADIUS, "part", 0.95)
    canvas.disc(x, y, RADIUS * 0.85, "part", 0.5)
    canvas.polygon([(x, y), *(polar(x, y, RADIUS * 0.83, values["roller"] + turn) for turn in (-0.6, -0.2, 0.2, 0.6))], "mark")
    canvas.disc(x, y, 0.11, (20, 20, 22))
    canvas.disc(axle_x, values["axle"], 0.08, "metal", 1.1)
