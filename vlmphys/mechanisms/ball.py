"""An inflated ball between two plates: a gripper squeezes it with a limited force, then lets go."""

from __future__ import annotations

import numpy as np

from vlmphys.mechanisms.parts import Part, Trajectory
from vlmphys.mechanisms.physics import DT, FPS, driven, per_frame, times, to_and_fro
from vlmphys.mechanisms.scene import Canvas, Look

FRAMES = 240
ANOMALIES = ("leak", "unfull")
VISIBLE_IN_ONE_FRAME = {"leak": "the gas that is gone does not come back: the ball is flatter under the plate than a full one",
                        "unfull": "a ball with too little gas is flat under the plate"}
PARTS = (Part("ball", "height", 0.2, 0.7), Part("side", "width", 0.4, 1.0), Part("plate", "plate", 0.2, 0.95))


def simulate(rng: np.random.Generator, state: str, frames: int) -> Trajectory:
    """Gas in a skin: the plate's force against pressure, on and off, from any moment of its cycle. leak: gas escapes, most of it under the
    plate; unfull: too little gas from the start. Each shows in one frame where the plate is down: such a ball is flat (visible in one frame).
    """
    instants, seconds = times(frames), frames / FPS
    radius = rng.uniform(0.44, 0.62)
    gas = rng.uniform(0.32, 0.5) if state == "unfull" else rng.uniform(0.93, 1.05)
    period = rng.uniform(1.6, 2.6)
    push_share = to_and_fro(rng, instants, period, 0.0, 1.0)
    strength = rng.uniform(0.1, 0.15)
    force = strength * np.clip((push_share - 0.45) / 0.55, 0.0, 1.0)  # the plate has a way to go before it touches
    leak_rate = rng.uniform(0.8, 1.3) if state == "leak" else 0.0
    leak_from = rng.uniform(0.0, 0.25) * seconds
    amounts = []
    for instant, push in zip(instants.tolist(), force.tolist()):
        if leak_rate and instant > leak_from:
            gas = max(0.2, gas - DT * leak_rate * (0.25 + 4.0 * push) * gas)
        amounts.append(gas)
    full_radius = radius * np.minimum(1.0, 0.84 + 0.16 * np.array(amounts))
    squeeze = np.clip(force / (np.array(amounts) ** 1.5 + 0.02), 0.0, 0.52)
    height = driven(full_radius * (1 - squeeze), 4.0, 0.9)
    widths = full_radius * np.sqrt(full_radius / np.maximum(height, 0.1))
    travel = 0.92 * (1 - push_share)
    plate = np.maximum(height, travel)
    span = None if state == "anomaly_free" else (leak_from if state == "leak" else 0.0, seconds)
    return Trajectory({"height": per_frame(height), "width": per_frame(widths), "plate": per_frame(plate)},
                      {"radius": radius, "force": strength, "period": period, "gas_at_end": amounts[-1]}, span)


def draw(canvas: Canvas, values: dict[str, float], look: Look) -> None:
    """The ball rests on the lower plate; the upper plate comes down upon it."""
    ground = 0.8
    canvas.box(0, 0.9, 0.95, 0.09, "body")
    centre = ground - values["height"]
    canvas.ellipse(0.03, centre + 0.04, values["width"], values["height"], (8, 8, 10))
    canvas.ellipse(0, centre, values["width"] * look.proportion, values["height"], "part", 0.9)
    canvas.ellipse(0, centre, values["width"] * 0.3, values["height"] * 0.9, "mark", 0.9)
    top = ground - 2 * values["plate"]
    canvas.bar(0, -1.2, 0, top - 0.08, 0.16, "grip", 0.8)
    canvas.box(0, top - 0.06, 0.6, 0.06, "grip")
