"""A clock: a motor drives the long hand by gears, in steps or in one sweep; the short hand follows at a twelfth of its speed."""

from __future__ import annotations

import numpy as np

from vlmphys.mechanisms.parts import Part, Trajectory, turning
from vlmphys.mechanisms.physics import BRAKE_DRAG, FPS, fault_window, per_frame, rotor, shaking, times, within
from vlmphys.mechanisms.scene import Canvas, Look, polar

FRAMES = 180
ANOMALIES = ("stuck", "vibrate")
PARTS = (turning("long hand", "long"), Part("shake", "shake", -0.65, 0.65), turning("short hand", "short"))


def simulate(rng: np.random.Generator, state: str, frames: int) -> Trajectory:
    """Torque in pulses or steady, against drag. stuck: a brake holds the hand; vibrate: it swings on its loose shaft while it is driven on."""
    instants = times(frames)
    turns_per_second, drag, step_hz = rng.uniform(0.09, 0.22), rng.uniform(25.0, 40.0), rng.uniform(3.5, 6.0)
    speed = 2 * np.pi * turns_per_second
    steps = bool(rng.random() < 0.5)
    pulse = ((instants * step_hz + rng.random()) % 1.0 < 0.3) / 0.3 if steps else np.ones(len(instants))
    span = None if state == "anomaly_free" else fault_window(rng, frames / FPS)
    active = within(instants, span)
    brake = BRAKE_DRAG if state == "stuck" else 0.0
    driven_angle = rotor(speed * drag * pulse, drag + active * brake, 0.0 if steps or brake * active[0] else speed, 0.0)
    amplitude = rng.uniform(0.38, 0.55) if state == "vibrate" else rng.uniform(0.0, 0.006)
    shake = (active if state == "vibrate" else 1.0) * shaking(rng, instants, amplitude, 3.3, 4.2)
    start = rng.uniform(0, 2 * np.pi)
    return Trajectory(
        {"long": per_frame(start + driven_angle + shake), "short": per_frame(rng.uniform(0, 2 * np.pi) + driven_angle / 12),
         "shake": per_frame(shake)},
        {"turns_per_second": turns_per_second, "steps": steps, "step_hz": step_hz, "shake": amplitude}, span)


def draw(canvas: Canvas, values: dict[str, float], look: Look) -> None:
    """Case, face with four marks, the two hands on their shaft."""
    radius = 0.86 * look.proportion
    canvas.box(0, 0.93, 0.5, 0.07, "body", 0.6)
    canvas.disc(0.03, 0.04, radius + 0.02, (8, 8, 10))
    canvas.disc(0, 0, radius, "metal")
    canvas.disc(0, 0, radius - 0.08, "body", 0.55)
    for quarter in range(4):
        angle = quarter * np.pi / 2
        canvas.stroke([polar(0, 0, radius - 0.22, angle), polar(0, 0, radius - 0.11, angle)], 0.06, "metal")
    canvas.bar(0, 0, *polar(0, 0, 0.36, values["short"]), 0.12, "part", 0.8)
    canvas.bar(*polar(0, 0, -0.16, values["long"]), *polar(0, 0, radius - 0.16, values["long"]), 0.11, "mark")
    canvas.disc(0, 0, 0.1, "metal", 0.9)
