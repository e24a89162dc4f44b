"""A train of four gears: a motor turns the first, teeth carry the motion on; each gear has a painted mark."""

from __future__ import annotations

import numpy as np

from vlmphys.mechanisms.parts import Trajectory, turning
from vlmphys.mechanisms.physics import BRAKE_DRAG, FPS, fault_window, per_frame, rotor, times, within
from vlmphys.mechanisms.scene import Canvas, Look, polar

FRAMES = 120
ANOMALIES = ("stuck", "single", "double", "triple")
PARTS = tuple(turning(f"gear {name}", f"gear_{name}") for name in ("one", "two", "three", "four"))
LOST = {"single": 1, "double": 2, "triple": 3}
CENTRES = ((-0.52, -0.42), (0.4, -0.5), (0.5, 0.44), (-0.42, 0.5))
RADII = (0.44, 0.46, 0.44, 0.46)


def simulate(rng: np.random.Generator, state: str, frames: int) -> Trajectory:
    """The motor turns gear one against drag. stuck: the train is blocked; single, double, triple: stripped teeth leave the last 1, 2, 3
    gears without drive."""
    instants = times(frames)
    direction, turns_per_second = rng.choice((-1.0, 1.0)), rng.uniform(0.4, 1.35)
    speed, drag = direction * 2 * np.pi * turns_per_second, rng.uniform(5.0, 10.0)
    span = None if state == "anomaly_free" else fault_window(rng, frames / FPS, shortest_share=0.6)
    active = within(instants, span)
    brake = BRAKE_DRAG if state == "stuck" else 0.0
    motor = rotor(np.full(len(instants), speed * drag), drag + active * brake,
                  0.0 if state == "stuck" and span[0] == 0.0 else speed, rng.uniform(0, 2 * np.pi))
    driven_speed = np.gradient(motor, instants)
    channels = {"gear_one": per_frame(motor)}
    first_lost = 4 - LOST.get(state, 0)
    for index, part in enumerate(PARTS[1:], start=1):
        ratio = (-1) ** index * RADII[0] / RADII[index]
        drag_k = rng.uniform(25.0, 50.0)
        coupled = np.where((active > 0) & (index >= first_lost), 0.0, 1.0)
        torque = coupled * drag_k * ratio * driven_speed
        start_speed = ratio * speed * coupled[0] if state != "stuck" or span[0] > 0 else 0.0
        channels[part.channel] = per_frame(rotor(torque, np.full(len(instants), drag_k), start_speed, rng.uniform(0, 2 * np.pi)))
    return Trajectory(channels, {"turns_per_second": turns_per_second * direction, "drag": drag}, span)


def draw(canvas: Canvas, values: dict[str, float], look: Look) -> None:
    """A plate, and on it the gears with teeth, mark and axle."""
    canvas.box(0, 0, 0.96, 0.96, "body", 0.42)
    for (x, y), radius, part in zip(CENTRES, RADII, PARTS):
        angle = values[part.channel]
        teeth = 12
        corners = np.arange(teeth * 4)
        reach = np.where(corners % 4 < 2, radius * 1.04, radius * 0.9)
        turn = angle + corners * 2 * np.pi / (teeth * 4)
        canvas.polygon(np.stack([x + reach * np.cos(turn), y + reach * np.sin(turn)], 1), "part", 0.72)
        canvas.disc(x, y, radius * 0.74, "part", 0.55)
        canvas.bar(*polar(x, y, 0.1, angle), *polar(x, y, radius * 0.88, angle), 0.15, "mark")
        canvas.disc(x, y, 0.09, "metal", 0.9)
