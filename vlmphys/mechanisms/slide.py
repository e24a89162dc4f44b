"""A slide: a pusher moves a carriage along a rail and back; a ball lies in the carriage's cup."""

from __future__ import annotations

import numpy as np

from vlmphys.mechanisms.parts import Part, Trajectory
from vlmphys.mechanisms.physics import FPS, driven, free_fall, per_frame, times, to_and_fro
from vlmphys.mechanisms.scene import Canvas, Look

FRAMES = 120
ANOMALIES = ("ball_drop", "derailment", "jam")
VISIBLE_IN_ONE_FRAME = {"ball_drop": "the ball is out of its cup",
                        "derailment": "the carriage lies tilted beside the rail"}
PARTS = (Part("carriage", "carriage", 0.0, 1.0), Part("tilt", "tilt", 0.0, 0.6), Part("ball", "ball_fall", 0.0, 1.0))


def simulate(rng: np.random.Generator, state: str, frames: int) -> Trajectory:
    """The carriage follows the pusher, to and fro, from any moment of its cycle. jam: it meets a stop; derailment: it leaves the rail and tips;
    ball_drop: the ball rolls out and falls (both visible in one frame)."""
    instants, seconds = times(frames), frames / FPS
    travel, period = rng.uniform(0.82, 1.0), rng.uniform(1.25, 1.7)
    command = to_and_fro(rng, instants, period, rng.uniform(0.0, 0.08), travel, hold_share=0.1, low_share=0.34)
    parameters, span = {"travel": travel, "period": period}, None
    stop, tilt, fall = np.inf, np.zeros(len(instants)), np.zeros(len(instants))
    moment = float(rng.uniform(0.25, seconds - 0.4))
    if state == "jam":
        stop = travel * rng.uniform(0.2, 0.6)
        span = (float(instants[np.argmax(command > stop)]), seconds)
    carriage = driven(command, rng.uniform(4.0, 6.0), rng.uniform(0.8, 1.1), start=min(command[0], stop), upper=stop)
    pusher = np.minimum(command, stop + 0.03)
    if state == "derailment":
        target = np.where(instants >= moment, rng.uniform(0.4, 0.55), 0.0)
        tilt = driven(target, rng.uniform(2.0, 3.5), 0.6, upper=0.6)
        carriage = np.where(instants >= moment, carriage[np.searchsorted(instants, moment)], carriage)
        span = (moment, seconds)
    if state == "ball_drop":
        fall = free_fall(instants, moment, rng.uniform(4.0, 8.0), 1.0)
        span = (moment, seconds)
    if span is not None:
        parameters["fault_seconds"] = span[0]
    return Trajectory({"carriage": per_frame(carriage), "tilt": per_frame(tilt), "ball_fall": per_frame(fall), "pusher": per_frame(pusher),
                       "ball_left_at": per_frame(np.where(fall > 0, carriage[np.searchsorted(instants, moment)], carriage))}, parameters, span)


def draw(canvas: Canvas, values: dict[str, float], look: Look) -> None:
    """Rail with two posts, pusher from the left, carriage with its cup and the ball."""
    place = -0.6 + 1.25 * values["carriage"]
    canvas.bar(-0.95, 0.3, 0.95, 0.3, 0.1, "metal", 0.8)
    canvas.box(-0.8, 0.62, 0.08, 0.28, "body")
    canvas.box(0.85, 0.62, 0.08, 0.28, "body")
    canvas.box(0, 0.94, 0.95, 0.05, "body", 0.5)
    tip = -0.6 + 1.25 * values["pusher"] - 0.3
    canvas.bar(-1.1, 0.12, tip, 0.12, 0.1, "grip")
    sink = values["tilt"] * 0.5
    canvas.box(place, 0.12 + sink, 0.27 * look.proportion, 0.13, "part", 1.0, values["tilt"])
    ball = -0.6 + 1.25 * values["ball_left_at"]
    fallen = values["ball_fall"]
    aside = 0.42 * min(1.0, fallen * 4)
    canvas.disc(ball + aside, -0.13 + sink + fallen * 0.9, 0.13, "mark")
