"""A caster wheel, upside down in a gripper and seen from above: its fork swivels about the stem, its wheel rolls on the axle.

The wheel is seen from its edge: two painted patches pass along its tread as it rolls, one of them is always to be seen.
"""

from __future__ import annotations

import numpy as np

from vlmphys.mechanisms.parts import Part, Trajectory, turning
from vlmphys.mechanisms.physics import BRAKE_DRAG, FPS, fault_window, motor_speed, per_frame, rotor, seized, strokes, times, within
from vlmphys.mechanisms.scene import Canvas, Look, polar

FRAMES = 180
ANOMALIES = ("axis_stuck1", "axis_stuck2")
PARTS = (turning("wheel", "wheel"), turning("swivel", "swivel"), Part("gripper", "finger", -4.5, 4.5))
GIVE = 0.12  # radians between the fork and the finger that turns it: all that its motor can bend
TRAIL, RADIUS = 0.3, 0.56


def simulate(rng: np.random.Generator, state: str, frames: int) -> Trajectory:
    """A small motor rolls the wheel, a finger swivels the fork. axis_stuck1: the axle is seized; axis_stuck2: the swivel axis is seized."""
    instants = times(frames)
    speed = motor_speed(rng, instants, 0.2, 0.85)
    command = rng.uniform(0, 2 * np.pi) + strokes(rng, instants, (0.5, 1.1), (0.8, 1.4), 0.15)
    span = None if state == "anomaly_free" else fault_window(rng, frames / FPS, shortest_share=0.6)
    active, still = within(instants, span), np.zeros(len(instants))
    drag = rng.uniform(8.0, 20.0)
    brake = BRAKE_DRAG * active if state == "axis_stuck1" else still
    start_speed = 0.0 if brake[0] > 0 else speed[0]
    wheel = rotor(drag * speed, drag + brake, start_speed, rng.uniform(0, 2 * np.pi))
    swivel = seized(command, rng.uniform(3.0, 4.5), rng.uniform(0.9, 1.2), active if state == "axis_stuck2" else still)
    finger = swivel + np.clip(command - swivel, -GIVE, GIVE)
    return Trajectory({"wheel": per_frame(wheel), "swivel": per_frame(swivel), "finger": per_frame(finger)},
                      {"turns_per_second": speed[-1] / (2 * np.pi)}, span)


def tread(canvas: Canvas, x: float, y: float, swivel: float, wheel: float, half_width: float) -> None:
    """The painted patches on the half of the tread that faces the camera, as a rolling cylinder shows them."""
    along = np.array([np.cos(swivel), np.sin(swivel)])
    across = np.array([-along[1], along[0]]) * half_width
    for start, role in ((0.0, "mark"), (np.pi, "part")):
        # The tread at angle a lies RADIUS cos(a) along the wheel and faces the camera while sin(a) > 0.
        angles = np.linspace(start, start + np.pi * 0.5, 9) + wheel
        seen = angles[np.sin(angles) > 0]
        if len(seen) > 1:
            ends = [np.array([x, y]) + RADIUS * float(np.cos(angle)) * along for angle in (seen[0], seen[-1])]
            canvas.polygon([ends[0] + across, ends[1] + across, ends[1] - across, ends[0] - across], role)


def draw(canvas: Canvas, values: dict[str, float], look: Look) -> None:
    """The gripper's jaws and the plate below, the fork about its stem, the wheel with its motor, the finger at the fork's end."""
    swivel, wide = values["swivel"], 0.21 * look.proportion
    for side in (-1, 1):
        canvas.box(side * 0.9, 0, 0.16, 0.24, "grip", 0.7)
    canvas.box(0, 0, 0.76, 0.62, "body", 0.55)
    canvas.disc(0, 0, 0.34, "metal", 0.6)
    x, y = polar(0, 0, TRAIL, swivel)
    hold = values["finger"]
    canvas.bar(*polar(0, 0, 0.3, hold + np.pi), *polar(0, 0, 0.78, hold + np.pi), 0.16, "grip", 1.1)
    canvas.bar(*polar(x, y, wide + 0.2, swivel - np.pi / 2), *polar(x, y, wide + 0.17, swivel + np.pi / 2), 0.12, "metal", 0.7)
    canvas.box(*polar(x, y, wide + 0.2, swivel - np.pi / 2), 0.14, 0.1, "grip", 0.9, swivel)
    canvas.box(x + 0.03, y + 0.05, RADIUS + 0.02, wide + 0.1, (8, 8, 10), 1.0, swivel)
    canvas.box(*polar(0, 0, 0.08, swivel), 0.46, wide + 0.1, "metal", 0.9, swivel)
    canvas.box(x, y, RADIUS, wide, (24, 24, 27), 1.0, swivel)
    tread(canvas, x, y, swivel, values["wheel"], wide)
