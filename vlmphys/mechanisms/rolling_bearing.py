"""A ball bearing: a motor turns the inner ring, the balls roll between it and the fixed outer ring; one ball is painted."""

from __future__ import annotations

import numpy as np

from vlmphys.mechanisms.parts import Part, Trajectory, turning
from vlmphys.mechanisms.physics import BRAKE_DRAG, FPS, fault_window, motor_speed, per_frame, rotor, shaking, times, within
from vlmphys.mechanisms.scene import Canvas, Look, polar

FRAMES = 60
ANOMALIES = ("ball_stuck",)
PARTS = (turning("balls", "balls"), turning("inner ring", "inner"), Part("housing", "housing", -0.06, 0.06))
BALLS = 5
INNER, OUTER = 0.36, 0.74
ROLLING = INNER / (INNER + OUTER)  # balls that roll without slip go round with this share of the inner ring's speed


def simulate(rng: np.random.Generator, state: str, frames: int) -> Trajectory:
    """Friction of the inner ring carries the balls round. ball_stuck: the balls are held in their track, and the inner ring slips over them."""
    instants = times(frames)
    speed = motor_speed(rng, instants, 0.35, 2.4)
    span = None if state == "anomaly_free" else fault_window(rng, frames / FPS, shortest_share=0.6)
    active, grip = within(instants, span), rng.uniform(25.0, 60.0)
    friction = grip + active * BRAKE_DRAG
    start_speed = 0.0 if span and span[0] == 0.0 else ROLLING * speed[0]
    balls = rotor(grip * ROLLING * speed, friction, start_speed, rng.uniform(0, 2 * np.pi))
    drag = rng.uniform(15.0, 40.0)
    inner = rotor(drag * speed, np.full(len(instants), drag), speed[0], rng.uniform(0, 2 * np.pi))
    # The motor shakes every bearing, one little and the next much; the slip over held balls adds a chatter of the same order.
    housing = shaking(rng, instants, 10 ** rng.uniform(-2.5, -1.35), 3.0, 14.0) + active * shaking(rng, instants, rng.uniform(0.01, 0.03), 8.0, 14.0)
    return Trajectory({"balls": per_frame(balls), "inner": per_frame(inner), "housing": per_frame(housing)},
                      {"turns_per_second": speed[-1] / (2 * np.pi)}, span)


def draw(canvas: Canvas, values: dict[str, float], look: Look) -> None:
    """The block that holds the outer ring, the balls in their track, the inner ring with its key, the motor's shaft."""
    size, x = look.proportion * 0.98, values["housing"]
    canvas.box(0, 0.93, 0.95, 0.06, "body", 0.6)
    canvas.box(x, 0.6, 0.6, 0.32, "body", 0.8)
    canvas.disc(x + 0.02, 0.04, size * 0.95, (8, 8, 10))
    canvas.disc(x, 0, size * 0.94, "metal", 0.85)
    canvas.disc(x, 0, size * 0.8, (20, 20, 22))
    for ball in range(BALLS):
        place = polar(x, 0, size * (INNER + OUTER) / 2, values["balls"] + ball * 2 * np.pi / BALLS)
        canvas.disc(*place, size * 0.185, "mark" if ball == 0 else "metal", 1.0 if ball == 0 else 0.36)
    canvas.disc(x, 0, size * INNER, "metal", 0.6)
    canvas.bar(*polar(x, 0, size * 0.36, values["inner"] + np.pi), *polar(x, 0, size * 0.36, values["inner"]), 0.16, "part")
    canvas.disc(*polar(x, 0, size * 0.27, values["inner"]), 0.08, "body", 0.6)
    canvas.disc(x, 0, size * 0.15, "grip")
