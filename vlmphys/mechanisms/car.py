"""A car on a running belt: a gripper holds its roof, the belt turns its two wheels, each with a painted sector."""

from __future__ import annotations

import numpy as np

from vlmphys.mechanisms.parts import Part, Trajectory, turning
from vlmphys.mechanisms.physics import BRAKE_DRAG, DT, FPS, fault_window, motor_speed, per_frame, rotor, shaking, times, within
from vlmphys.mechanisms.scene import Canvas, Look, polar

FRAMES = 60
ANOMALIES = ("all_wheel", "back_wheel", "front_wheel")
PARTS = (turning("front wheel", "front"), turning("back wheel", "back"), Part("body", "body_y", -0.05, 0.05))
BRAKED = {"all_wheel": ("front", "back"), "back_wheel": ("back",), "front_wheel": ("front",)}
RADIUS, AXLE_X, AXLE_Y = 0.36, 0.47, 0.33
SLAT_SPACING = 0.38


def simulate(rng: np.random.Generator, state: str, frames: int) -> Trajectory:
    """Friction of the belt's surface on the tyres. all_wheel, back_wheel, front_wheel: a brake holds these wheels and the belt slips under them."""
    instants = times(frames)
    rim_speed = motor_speed(rng, instants, 0.5, 1.9)
    span = None if state == "anomaly_free" else fault_window(rng, frames / FPS, shortest_share=0.6)
    active = within(instants, span)
    channels = {}
    for wheel in ("front", "back"):
        grip = rng.uniform(25.0, 60.0)
        brake = active * BRAKE_DRAG if wheel in BRAKED.get(state, ()) else 0.0
        start_speed = 0.0 if np.any(brake) and span[0] == 0.0 else rim_speed[0]
        channels[wheel] = per_frame(rotor(grip * rim_speed, grip + brake + np.zeros(len(instants)), start_speed, rng.uniform(0, 2 * np.pi)))
    channels["belt"] = per_frame(rng.uniform(0.0, SLAT_SPACING) - RADIUS * np.cumsum(rim_speed) * DT)
    channels["body_y"] = per_frame(shaking(rng, instants, rng.uniform(0.005, 0.02), 3.0, 8.0))
    return Trajectory(channels, {"turns_per_second": rim_speed[-1] / (2 * np.pi)}, span)


def draw(canvas: Canvas, values: dict[str, float], look: Look) -> None:
    """The belt with its slats, the car with its bonnet and lamp to the right, the gripper on its roof."""
    lift, top = values["body_y"], 0.7
    canvas.box(0, top + 0.15, 1.0, 0.13, "body", 0.35)
    canvas.box(0, top + 0.04, 1.0, 0.05, "metal", 0.7)
    for slat in range(6):
        x = (values["belt"] + slat * SLAT_SPACING) % (6 * SLAT_SPACING) - 3 * SLAT_SPACING
        canvas.box(x, top + 0.05, 0.05, 0.045, "body", 0.5)
    tall = 0.36 * look.proportion
    canvas.bar(0, -1.1, 0, -tall + lift, 0.15, "grip", 0.8)
    canvas.polygon([(-0.55, -0.1 + lift), (-0.38, -tall + lift), (0.2, -tall + lift), (0.45, -0.1 + lift)], "part", 0.75)
    canvas.polygon([(-0.38, -0.12 + lift), (-0.29, -tall + 0.07 + lift), (0.15, -tall + 0.07 + lift), (0.3, -0.12 + lift)], "body", 0.6)
    canvas.polygon([(-0.9, -0.1 + lift), (0.55, -0.1 + lift), (0.92, 0.05 + lift), (0.92, 0.34 + lift), (-0.9, 0.34 + lift)], "part", 0.85)
    canvas.box(0.0, -tall + lift, 0.26, 0.05, "grip", 1.1)
    canvas.disc(0.84, 0.1 + lift, 0.07, "mark")
    for x, wheel in ((AXLE_X, "front"), (-AXLE_X, "back")):
        angle = values[wheel]
        canvas.disc(x, AXLE_Y, RADIUS, (16, 16, 18))
        canvas.disc(x, AXLE_Y, RADIUS * 0.88, "metal", 0.55)
        canvas.polygon([polar(x, AXLE_Y, 0.06, angle), *(polar(x, AXLE_Y, RADIUS * 0.84, angle + turn) for turn in (-0.5, -0.17, 0.17, 0.5))], "mark")
        canvas.disc(x, AXLE_Y, 0.09, "metal", 1.2)
