"""A spring clip: a finger presses the lever, the jaw opens; on release the spring closes it."""

from __future__ import annotations

import numpy as np

from vlmphys.mechanisms.parts import Part, Trajectory
from vlmphys.mechanisms.physics import FPS, driven, per_frame, times, to_and_fro
from vlmphys.mechanisms.scene import Canvas, Look, polar

FRAMES = 120
ANOMALIES = ("unable_press", "unable_rebound")
VISIBLE_IN_ONE_FRAME = {"unable_rebound": "the jaw stands open while the finger is away"}
PARTS = (Part("jaw", "jaw", 0.0, 0.9), Part("finger", "finger", 0.0, 1.0))


def simulate(rng: np.random.Generator, state: str, frames: int) -> Trajectory:
    """The finger's force against the spring, on and off, from any moment of its cycle. unable_press: the pivot is seized; unable_rebound: the
    spring no longer pulls back, and the jaw keeps the widest angle that it was pressed to (visible in one frame). The finger is away for
    longer than it presses, so that a closed jaw in one frame says little.
    """
    instants, seconds = times(frames), frames / FPS
    opening, period = rng.uniform(0.6, 0.85), rng.uniform(1.2, 1.6)
    press = to_and_fro(rng, instants, period, 0.0, 1.0, hold_share=0.1, low_share=0.36)
    span = None
    if state == "unable_press":
        opening *= rng.uniform(0.0, 0.15)
        span = (float(instants[np.argmax(press > 0.3)]), seconds)
    command = opening * np.clip((press - 0.3) / 0.7, 0.0, 1.0)
    if state == "unable_rebound":
        rest = opening * rng.uniform(0.7, 1.0)
        kept = np.maximum(command, np.minimum(rest, np.maximum.accumulate(command)))
        span = (float(instants[np.argmax(kept > command + 0.02)]), seconds)
        command = kept
    jaw = driven(command, rng.uniform(6.0, 9.0), rng.uniform(0.5, 0.9), lower=0.0)
    finger = np.minimum(press, 0.3 + 0.04) if state == "unable_press" else press
    return Trajectory({"jaw": per_frame(jaw), "finger": per_frame(finger)}, {"opening": opening, "period": period}, span)


def draw(canvas: Canvas, values: dict[str, float], look: Look) -> None:
    """The lower jaw stays; the upper jaw and its lever turn about the pivot; the finger comes from above right."""
    x, y, reach = 0.12, 0.28, 0.85 * look.proportion
    canvas.box(0, 0.92, 0.9, 0.06, "body", 0.5)
    canvas.bar(x + 0.55, y + 0.24, x - reach, y + 0.24, 0.14, "body")
    opening = values["jaw"]
    jaw_tip = polar(x, y, reach, np.pi + opening)
    lever_tip = polar(x, y, 0.6, -0.5 + opening)
    canvas.bar(x, y, *jaw_tip, 0.15, "part")
    canvas.bar(x, y, *lever_tip, 0.15, "part", 0.85)
    canvas.disc(*polar(x, y, reach * 0.9, np.pi + opening), 0.07, "mark")
    canvas.disc(x, y + 0.06, 0.12, "metal")
    tip = -0.52 + 0.72 * values["finger"] * 0.8
    canvas.bar(0.62, -1.1, 0.62, tip, 0.17, "grip")
    canvas.disc(0.62, tip, 0.085, "grip", 1.15)
