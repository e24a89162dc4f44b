"""A lock: a gripper turns the knob, a link from the knob's pin moves the bolt in its guides, out of the frame or into it.

`structure_detache` is visible in one frame: the link hangs off the bolt.
"""

from __future__ import annotations

import numpy as np

from vlmphys.mechanisms.parts import Part, Trajectory
from vlmphys.mechanisms.physics import FPS, driven, per_frame, times, to_and_fro
from vlmphys.mechanisms.scene import Canvas, Look, polar

FRAMES = 60
ANOMALIES = ("jam", "structure_detache")
VISIBLE_IN_ONE_FRAME = {"structure_detache": "the link hangs beside the bolt"}
PARTS = (Part("knob", "knob", -2.7, 2.7), Part("bolt", "bolt", 0.0, 0.6), Part("link", "link_angle", -np.pi, np.pi))
CRANK, LINK = 0.26, 0.44


def bolt_place(angle: np.ndarray) -> np.ndarray:
    """How far the bolt is drawn in, in scene units, at an angle of the knob's pin: a crank with a link."""
    return CRANK + LINK - CRANK * np.cos(angle) - np.sqrt(LINK ** 2 - (CRANK * np.sin(angle)) ** 2)


def simulate(rng: np.random.Generator, state: str, frames: int) -> Trajectory:
    """The knob follows the gripper, to and fro, from any moment of its cycle, and the bolt the knob. jam: the bolt meets a block;
    structure_detache: the link leaves the bolt and hangs."""
    instants, seconds = times(frames), frames / FPS
    period = rng.uniform(0.85, 1.0)
    command = to_and_fro(rng, instants, period, rng.uniform(0.0, 0.1), 1.0, hold_share=0.1, low_share=0.34)
    side, full, drawn_first = rng.choice((-1.0, 1.0)), rng.uniform(2.3, 2.65), bool(rng.random() < 0.5)
    stop, span = np.inf, None
    if state == "jam":
        stop = rng.uniform(0.15, 0.42)
        blocked = instants[command > stop]
        span = (float(blocked[0]), float(blocked[-1]))
    share = driven(command, rng.uniform(6.0, 8.0), rng.uniform(0.8, 1.1), start=min(command[0], stop), upper=stop)
    angle = full * (1 - share if drawn_first else share)
    bolt = bolt_place(angle)
    link = -side * np.arcsin(CRANK / LINK * np.sin(angle))
    loose = np.zeros(len(instants))
    if state == "structure_detache":
        first = int(np.argmax((share > rng.uniform(0.1, 0.45)) & (instants > 0.05)))
        bolt = np.where(instants >= instants[first], bolt[first], bolt)
        hanging = driven(np.full(len(instants) - first, np.pi / 2), rng.uniform(1.6, 2.2), 0.25, float(link[first]))
        link = np.concatenate([link[:first], hanging])
        loose[first:], span = 1.0, (float(instants[first]), seconds)
    return Trajectory({"knob": per_frame(side * angle), "bolt": per_frame(bolt), "link_angle": per_frame(link), "loose": per_frame(loose)},
                      {"full_angle": full, "side": side, "drawn_first": drawn_first, "period": period}, span)


def draw(canvas: Canvas, values: dict[str, float], look: Look) -> None:
    """The case, the knob in the gripper's fingers, its pin, the link, and the bolt in two guides beside the frame."""
    x, y = -0.42, 0.0
    canvas.box(-0.12, 0.05, 0.74, 0.62 * look.proportion, "body", 0.5)
    canvas.box(0.92, 0.05, 0.14, 0.8, "body")
    canvas.box(0.92, 0.05, 0.14, 0.2, (16, 16, 20))
    canvas.disc(x, y, 0.34, "metal", 0.7)
    pin = polar(x, y, CRANK, values["knob"])
    tail = x + CRANK + LINK - values["bolt"]
    canvas.bar(tail, y, tail + 0.7, y, 0.26, "part")
    canvas.box(tail + 0.62, y, 0.09, 0.13, "mark")
    for guide in (0.34, 0.55):
        canvas.box(guide, y - 0.2, 0.05, 0.06, "metal")
        canvas.box(guide, y + 0.2, 0.05, 0.06, "metal")
    canvas.bar(*polar(x, y, -0.42, values["knob"] + 0.9), *polar(x, y, 0.42, values["knob"] + 0.9), 0.13, "grip")
    end = (tail, y) if values["loose"] < 0.5 else polar(*pin, LINK, values["link_angle"])
    canvas.bar(*pin, *end, 0.09, "mark", 0.85)
    canvas.disc(*pin, 0.07, "metal", 1.2)
    canvas.disc(*end, 0.06, "metal", 1.2)
