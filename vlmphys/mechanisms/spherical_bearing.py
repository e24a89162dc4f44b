"""A spherical bearing: a ball with a rod through it sits in a housing; a gripper at the rod's end turns it to and fro."""

from __future__ import annotations

import numpy as np

from vlmphys.mechanisms.parts import Part, Trajectory
from vlmphys.mechanisms.physics import FPS, fault_window, per_frame, seized, strokes, times, within
from vlmphys.mechanisms.scene import Canvas, Look, polar

FRAMES = 60
ANOMALIES = ("jam",)
PARTS = (Part("rod", "rod", -0.85, 0.85), Part("gripper", "grip", -0.95, 0.95))
GIVE = 0.07  # radians by which the gripper's fingers bend before it stalls


def simulate(rng: np.random.Generator, state: str, frames: int) -> Trajectory:
    """The rod follows the gripper. jam: the ball seizes in its housing at whatever angle it has, for the whole clip or a long part of it."""
    instants = times(frames)
    command = strokes(rng, instants, (0.4, 0.8), (0.32, 0.6), 0.06)
    span = None if state == "anomaly_free" else fault_window(rng, frames / FPS, shortest_share=0.6)
    rod = seized(command, rng.uniform(5.0, 7.0), rng.uniform(0.9, 1.1), within(instants, span))
    grip = rod + np.clip(command - rod, -GIVE, GIVE)
    return Trajectory({"rod": per_frame(rod), "grip": per_frame(grip)}, {"amplitude": np.abs(command).max()}, span)


def draw(canvas: Canvas, values: dict[str, float], look: Look) -> None:
    """The housing below, the ball in its ring, the rod upwards, the gripper at the rod's end."""
    x, y, up = 0.0, 0.3, -np.pi / 2
    rod, size = up + values["rod"], look.proportion
    canvas.box(0, 0.92, 0.95, 0.07, "body", 0.6)
    canvas.box(0, 0.7, 0.3, 0.2, "body", 0.8)
    canvas.disc(x + 0.02, y + 0.04, 0.53 * size, (8, 8, 10))
    canvas.disc(x, y, 0.52 * size, "body", 1.1)
    canvas.disc(x, y, 0.42 * size, (20, 20, 22))
    canvas.disc(x, y, 0.38 * size, "metal", 0.8)
    canvas.bar(*polar(x, y, 0.34 * size, rod + np.pi), *polar(x, y, 1.05, rod), 0.17, "part")
    canvas.disc(*polar(x, y, 0.2 * size, rod + np.pi / 2), 0.1, "mark")
    canvas.disc(x, y, 0.1, "metal", 0.5)
    canvas.disc(*polar(x, y, 0.7, rod), 0.11, "mark")
    hold = up + values["grip"]
    tip = polar(x, y, 1.0, hold)
    canvas.bar(*tip, tip[0] * 1.25, -1.3, 0.12, "grip", 0.8)
    canvas.box(*tip, 0.15, 0.09, "grip", 1.1, values["grip"])
