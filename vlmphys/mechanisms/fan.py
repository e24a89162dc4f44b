"""A fan: a rotor with four blades, one of them painted, on an axle in a ring; a motor holds its speed."""

from __future__ import annotations

import numpy as np

from vlmphys.mechanisms.parts import Part, Trajectory, turning
from vlmphys.mechanisms.physics import BRAKE_DRAG, FPS, fault_window, per_frame, rotor, shaking, times, within
from vlmphys.mechanisms.scene import Canvas, Look, polar

FRAMES = 180
ANOMALIES = ("stuck", "uneven", "vibrate")
PARTS = (turning("blade", "blade"), Part("hub", "hub_x", -0.16, 0.16), Part("axle", "hub_y", -0.16, 0.16))


def simulate(rng: np.random.Generator, state: str, frames: int) -> Trajectory:
    """Motor torque against drag. stuck: a brake holds the rotor; uneven: the torque swings; vibrate: the axle is loose."""
    instants = times(frames)
    direction, turns_per_second = rng.choice((-1.0, 1.0)), rng.uniform(0.25, 0.95)
    speed, drag = direction * 2 * np.pi * turns_per_second, rng.uniform(4.0, 9.0)
    span = None if state == "anomaly_free" else fault_window(rng, frames / FPS)
    active = within(instants, span)
    torque, friction = np.full(len(instants), speed * drag), np.full(len(instants), drag)
    start_speed = speed
    if state == "stuck":
        friction = friction + active * BRAKE_DRAG
        start_speed = 0.0 if span[0] == 0.0 else speed
    if state == "uneven":
        swing_hz, phase = rng.uniform(0.4, 0.85), rng.uniform(0, 2 * np.pi)
        depth = rng.uniform(0.85, 1.1)
        torque = torque * (1 + active * depth * np.sin(2 * np.pi * swing_hz * instants + phase))
    amplitude = rng.uniform(0.07, 0.12) if state == "vibrate" else rng.uniform(0.0, 0.006)
    wobble = active if state == "vibrate" else 1.0
    return Trajectory(
        {"blade": per_frame(rotor(torque, friction, start_speed, rng.uniform(0, 2 * np.pi))),
         "hub_x": per_frame(wobble * shaking(rng, instants, amplitude, 5.0, 11.0)),
         "hub_y": per_frame(wobble * shaking(rng, instants, amplitude, 5.0, 11.0))},
        {"turns_per_second": turns_per_second * direction, "drag": drag, "shake": amplitude}, span)


def draw(canvas: Canvas, values: dict[str, float], look: Look) -> None:
    """Ring and stand stay; blades and hub move."""
    radius, x, y = 0.66 * look.proportion, values["hub_x"], values["hub_y"]
    canvas.box(0, 0.86, 0.34, 0.08, "body")
    canvas.bar(0, 0.2, 0, 0.84, 0.16, "body", 0.8)
    canvas.ring(0, 0, 0.8 * look.proportion, 0.06, "metal")
    for blade in range(4):
        angle = values["blade"] + blade * np.pi / 2
        tip, wide = polar(x, y, radius, angle + 0.12), polar(x, y, radius * 0.92, angle + 0.52)
        canvas.polygon([polar(x, y, 0.1, angle - 0.4), tip, wide, polar(x, y, 0.14, angle + 1.0)], "mark" if blade == 0 else "part",
                       1.0 if blade == 0 else 0.85)
    canvas.disc(x, y, 0.15, "metal", 0.8)
    canvas.disc(x, y, 0.06, "body", 0.6)
