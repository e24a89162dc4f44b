"""An electromagnet on an arm: it comes down on an iron bar, lifts it, carries it along and sets it down where the arm lowers it."""

from __future__ import annotations

import numpy as np

from vlmphys.mechanisms.parts import Part, Trajectory
from vlmphys.mechanisms.physics import DT, FPS, eased, per_frame, times
from vlmphys.mechanisms.scene import Canvas, Look

FRAMES = 180
ANOMALIES = ("degaussing", "drop")
PARTS = (Part("arm", "arm", -0.6, 0.6), Part("lift", "lift", 0.0, 1.0), Part("iron", "iron_x", -0.8, 0.8), Part("height", "iron_height", 0.0, 1.0))
TABLE = 0.84
REACH = 0.06  # gap over which the pull falls to a quarter


def simulate(rng: np.random.Generator, state: str, frames: int) -> Trajectory:
    """The pull of the magnet against the weight of the iron. degaussing: the core is no longer magnetic, so its pull is smaller than the
    weight from the start; drop: the pull is lost while the iron hangs in the air, and it falls."""
    instants, seconds = times(frames), frames / FPS
    start, pick, put, leave = _places(rng)
    top, touching = rng.uniform(0.75, 0.95), rng.random() < 0.4
    touch = 0.0 if touching else rng.uniform(0.55, 1.2) if rng.random() < 0.35 else rng.uniform(1.3, 1.65)
    lowered = touch - rng.uniform(0.28, 0.36)
    rise = touch + rng.uniform(0.05, 0.15)
    high = rise + rng.uniform(0.28, 0.34)
    carry = high + rng.uniform(0.0, 0.15)
    carried = carry + rng.uniform(0.42, 0.6)
    lower = carried + rng.uniform(0.05, 0.2)
    down = lower + rng.uniform(0.26, 0.34)
    away = down + rng.uniform(0.25, 0.4)
    up = away + rng.uniform(0.28, 0.36)
    lift = eased(instants, [lowered, touch, rise, high, lower, down, away, up], [0.0 if touching else top, 0.0, 0.0, top, top, 0.0, 0.0, top])
    arm = eased(instants, [lowered - rng.uniform(0.25, 0.45), lowered, carry, carried, up - 0.12, up + 0.4],
                [pick if touching else start, pick, pick, put, put, leave])
    strength = rng.uniform(0.0, 0.5) if state == "degaussing" else rng.uniform(2.5, 5.0)
    off, span = down + rng.uniform(0.4, 0.6) * (away - down), None
    if state == "degaussing":
        span = (rise, seconds)
    if state == "drop":
        slow = (np.abs(np.gradient(arm, instants)) < 0.9) & (instants >= high) & (instants < carry + 0.25 * (carried - carry))
        off = float(rng.choice(instants[slow]))
        span = (off, seconds)
    pull = strength * ((instants > touch - 0.1) & (instants < off))
    iron_x, iron_height = _iron(arm, lift, pull, pick, rng.uniform(9.0, 13.0))
    return Trajectory({"arm": per_frame(arm), "lift": per_frame(lift), "iron_x": per_frame(iron_x), "iron_height": per_frame(iron_height)},
                      {"pull_in_weights": strength, "touch_seconds": touch, "top": top}, span)


def _places(rng: np.random.Generator) -> list[float]:
    """Where the arm comes from, picks up, puts down and goes to: each 0.3 to 0.75 from the one before."""
    places = [rng.uniform(-0.6, 0.6)]
    while len(places) < 4:
        place = rng.uniform(-0.6, 0.6)
        if 0.3 < abs(place - places[-1]) < 0.75:
            places.append(place)
    return places


def _iron(arm: np.ndarray, lift: np.ndarray, pull: np.ndarray, place: float, gravity: float) -> tuple[np.ndarray, np.ndarray]:
    """Place and height of the iron at every step. `pull` is the magnet's force at contact in weights of the iron; it falls with the gap."""
    x, height, sideways, speed, held, xs, heights = place, 0.0, 0.0, 0.0, False, [], []
    for step, (arm_now, lift_now, force) in enumerate(zip(arm.tolist(), lift.tolist(), pull.tolist())):
        held = held and force > 1.0
        if held:
            sideways, speed = (arm_now - x) / DT * (step > 0), (lift_now - height) / DT * (step > 0)
            x, height = arm_now, lift_now
        else:
            near = force / (1.0 + max(lift_now - height, 0.0) / REACH) ** 2 if abs(arm_now - x) < 0.15 else 0.0
            speed += DT * gravity * (near - 1.0)
            x, height = x + DT * sideways, height + DT * speed
            if height <= 0.0:
                height, speed, sideways = 0.0, -0.25 * speed if speed < -0.3 else 0.0, 0.6 * sideways if speed < -0.3 else 0.0
            if height >= lift_now and abs(arm_now - x) < 0.15:
                height, speed = lift_now, min(speed, 0.0)
                held = force > 1.0
        xs.append(x)
        heights.append(height)
    return np.array(xs), np.array(heights)


def draw(canvas: Canvas, values: dict[str, float], look: Look) -> None:
    """A table, the iron bar on it or in the air, a magnet with two poles on its arm."""
    x, half = values["arm"], 0.26 * look.proportion
    face = TABLE - 0.24 - values["lift"]
    iron = TABLE - 0.12 - values["iron_height"]
    canvas.box(0, TABLE + 0.1, 0.98, 0.1, "body", 0.8)
    canvas.ellipse(values["iron_x"], TABLE + 0.03, half * 1.1, 0.03, (10, 10, 12))
    canvas.bar(x, -1.2, x, face - 0.36, 0.15, "grip", 0.8)
    canvas.box(x, face - 0.3, half, 0.1, "part")
    for side in (-1, 1):
        canvas.box(x + side * half * 0.66, face - 0.12, half * 0.34, 0.12, "part", 0.9)
        canvas.box(x + side * half * 0.66, face - 0.03, half * 0.34, 0.035, "metal", 0.8)
    canvas.box(x, face - 0.42, half * 0.5, 0.06, "grip", 1.1)
    canvas.box(values["iron_x"], iron, 0.3 * look.proportion, 0.12, "mark")
    canvas.box(values["iron_x"], iron - 0.07, 0.3 * look.proportion, 0.03, "mark", 0.75)
