"""A screw: a motor with a driver turns it into a block of wood, and in many clips a part of the way out again."""

from __future__ import annotations

import numpy as np

from vlmphys.mechanisms.parts import Part, Trajectory, turning
from vlmphys.mechanisms.physics import BRAKE_DRAG, FPS, per_frame, rotor, times
from vlmphys.mechanisms.scene import Canvas, Look

FRAMES = 180
ANOMALIES = ("stripped", "unable_goin")
PARTS = (Part("screw", "depth", 0.0, 1.0), turning("head", "head"), turning("driver", "driver"))


def simulate(rng: np.random.Generator, state: str, frames: int) -> Trajectory:
    """Torque against drag; the thread turns the screw's angle into depth. stripped: the thread no longer grips; unable_goin: it is blocked."""
    instants, seconds = times(frames), frames / FPS
    turns, pitch, drag = rng.uniform(1.0, 1.4), rng.uniform(0.22, 0.28), rng.uniform(15.0, 25.0)
    rate = rng.uniform(0.55, 1.2)
    lasting, back = turns / rate, rng.uniform(0.6, 1.0) * (rng.random() < 0.75)
    delay = rng.uniform(0.0, min(1.0, seconds - lasting - 0.2))
    last = delay + lasting
    halt = last + rng.uniform(0.15, 0.4)
    forward, backward = ((instants >= first) & (instants < first + length) for first, length in ((delay, lasting), (halt, back * lasting)))
    speed = 2 * np.pi * rate * (forward.astype(float) - backward)
    friction = np.full(len(instants), drag)
    turned = rotor(speed * drag, friction, 0.0, 0.0)
    span, gripping, held, start = None, np.ones(len(instants)), 0.0, rng.uniform(0.02, 0.5)
    if state != "anomaly_free":
        fails = delay + rng.choice((0.0, rng.uniform(0.0, 0.22))) * lasting
        gripping, span = np.where(instants < fails, 1.0, 0.0), (fails, seconds)
        # It failed somewhere on its way in, before the clip or in it: else its depth alone would tell it from a sound one that goes on.
        start += rng.uniform(0.0, 0.5) * pitch * turns
        held = BRAKE_DRAG if state == "unable_goin" else 0.0
    screw = rotor(speed * drag, friction + held * (1 - gripping), 0.0, 0.0)
    sink = pitch / (2 * np.pi) * np.cumsum(np.diff(screw, prepend=0.0) * gripping)
    angle = rng.uniform(0, 2 * np.pi)
    return Trajectory({"depth": per_frame(start + sink), "head": per_frame(angle + screw),
                       "driver": per_frame(rng.uniform(0, 2 * np.pi) + turned),
                       "pitch": np.full(frames, pitch), "block": np.full(frames, rng.uniform(-0.15, 0.15)), "length": np.full(frames, rng.uniform(1.02, 1.15))},
                      {"turns_per_second": rate, "pitch": pitch, "delay": delay, "back_share": back}, span)


def draw(canvas: Canvas, values: dict[str, float], look: Look) -> None:
    """The driver's chuck above with its mark, the screw's head with its own, the thread, and the block before its lower part.

    The thread is right-handed and of two starts: clockwise from above it goes in, and where it grips it stands still beside the block.
    """
    ground = 0.62 + values["block"]
    tip = ground + values["depth"] + 0.05
    top = tip - values["length"]
    canvas.bar(0, -1.2, 0, top - 0.3, 0.2, "grip", 0.8)
    turned_mark(canvas, top - 0.32, 0.26 * look.proportion, 0.13, -values["driver"], "grip", 1.15, "part")
    canvas.box(0, top - 0.12, 0.06, 0.1, "metal", 0.7)
    canvas.polygon([(-0.1, top), (0.1, top), (0.1, tip - 0.15), (0, tip), (-0.1, tip - 0.15)], "metal")
    spacing = values["pitch"] / 2
    first = top + 0.2 - spacing * (values["head"] / np.pi % 1.0)
    for y in np.arange(first, tip - 0.2, spacing):
        canvas.stroke([(-0.14, y + 0.04), (0.14, y - 0.04)], 0.045, "metal", 0.65)
    turned_mark(canvas, top, 0.34 * look.proportion, 0.1, -values["head"], "metal", 1.15, "mark")
    canvas.box(0, ground + 0.5, 0.8, 0.5, "body", 0.9)
    canvas.box(0, ground + 0.03, 0.8, 0.03, "body", 1.15)


def turned_mark(canvas: Canvas, y: float, radius: float, half_height: float, angle: float, role: str, shade: float, mark: str) -> None:
    """A cylinder seen from the side with a painted stripe and a dark one opposite; they go round with it, unseen behind."""
    canvas.box(0.02, y + 0.03, radius, half_height, (10, 10, 12))
    canvas.box(0, y, radius, half_height, role, shade)
    for side, colour, light in ((0.0, mark, 1.0), (np.pi, role, 0.4)):
        edges = radius * np.sin(np.clip((angle + side) % (2 * np.pi) - np.pi + np.array((-0.55, 0.55)), -np.pi / 2, np.pi / 2))
        if edges[1] - edges[0] > 1e-3:
            canvas.box(float(edges.mean()), y, float(edges[1] - edges[0]) / 2, half_height, colour, light)
