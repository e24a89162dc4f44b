"""A push button with a lamp: a finger presses the cap against a spring, a contact below it lights the lamp.

`no_light` and `Unrebound_nolight` are visible in one frame: the cap is down and the lamp dark. `Unrebound_light` is visible in one
frame while the finger is away: the cap is down without it.
"""

from __future__ import annotations

import numpy as np

from vlmphys.mechanisms.parts import Part, Trajectory
from vlmphys.mechanisms.physics import FPS, driven, eased, per_frame, times
from vlmphys.mechanisms.scene import Canvas, Look

FRAMES = 180
ANOMALIES = ("no_light", "Unpress", "Unrebound_light", "Unrebound_nolight")
VISIBLE_IN_ONE_FRAME = {"no_light": "the cap is down and the lamp dark",
                        "Unrebound_light": "the cap is down while the finger is away",
                        "Unrebound_nolight": "the cap is down, at times without the finger, and the lamp dark"}
PARTS = (Part("cap", "cap", 0.0, 1.0), Part("finger", "finger", -0.9, 1.0), Part("lamp", "lamp", 0.0, 1.0))
CONTACT = 0.6
DARK, LIT = np.array((62.0, 60.0, 66.0)), np.array((250.0, 226.0, 120.0))


def presses(rng: np.random.Generator, instants: np.ndarray) -> tuple[np.ndarray, float, float]:
    """The finger's depth at every step: away (below 0), at the cap (0), pressed (1), away again, without end and from any phase of it on.

    Also the first instants, in seconds, at which it presses and at which it lets go after that; about half a second of both is seen.
    """
    seconds = len(instants) * (instants[1] - instants[0])
    while True:
        away, down, lift = rng.uniform(0.6, 0.95), rng.uniform(0.5, 0.7), rng.uniform(0.12, 0.2)
        touch = rng.uniform(0.2, 0.6) * (rng.random() < 0.7)
        high, lasting = rng.uniform(-0.9, -0.35), np.array([away, 0.12, touch, 0.12, down, lift])
        cycle = np.tile(lasting, 4)
        ends = np.cumsum(cycle) - rng.uniform(0.0, lasting.sum())
        if not any(0.0 <= release and release + lift + 0.55 <= seconds and max(0.0, release - down) <= release - 0.45 for release in ends[4::6]):
            continue
        depth = eased(instants, [-9.0, *ends], [high, *np.tile([high, 0.0, 0.0, 1.0, 1.0, high], 4)])
        release = float(next(end for end in ends[4::6] if end >= 0.45))
        return depth, max(0.0, release - down), release


def simulate(rng: np.random.Generator, state: str, frames: int) -> Trajectory:
    """Cap on a spring under the finger. Unpress: it is blocked; Unrebound_*: a catch holds it, for a time or for good; *no*light: no current."""
    instants, seconds = times(frames), frames / FPS
    finger, pressed, released = presses(rng, instants)
    travel = rng.uniform(0.88, 1.0)
    finger = np.minimum(finger, travel)
    asked, upper, lower = finger, travel, np.maximum(finger, 0.0)
    if state == "Unpress":
        upper = rng.uniform(0.0, 0.1)
        finger = np.minimum(finger, upper)
        lower = np.maximum(finger, 0.0)
    if state in ("Unrebound_light", "Unrebound_nolight"):
        stay = rng.choice((seconds, rng.uniform(0.95, 1.3)))
        since_press = instants - np.maximum.accumulate(np.where(finger > 0.5, instants, -np.inf))
        lower = np.maximum(lower, np.where(since_press < stay, rng.uniform(0.8, 0.95) * travel, 0.0))
    spring = driven(np.zeros(len(instants)), rng.uniform(4.0, 7.0), rng.uniform(0.6, 1.0), float(lower[0]), lower, upper)
    closed, held_down = spring > CONTACT, spring > np.maximum(finger, 0.0) + 0.1
    shows = {"no_light": closed, "Unpress": asked > upper + 0.1, "Unrebound_light": held_down, "Unrebound_nolight": closed | held_down}.get(state)
    span = None if shows is None else (float(instants[shows][0]), float(instants[shows][-1]))
    current = np.where(closed & (state not in ("no_light", "Unrebound_nolight")), 1.0, 0.0)
    lamp = driven(current, rng.uniform(6.0, 10.0), 1.0)
    return Trajectory({"cap": per_frame(spring), "finger": per_frame(finger), "lamp": per_frame(lamp),
                       "stand_x": np.full(frames, rng.uniform(-0.22, 0.22)), "stand_y": np.full(frames, rng.uniform(-0.14, 0.1))},
                      {"travel": travel, "pressed": pressed, "released": released}, span)


def draw(canvas: Canvas, values: dict[str, float], look: Look) -> None:
    """The case with the cap in its collar, a lamp on its front, the finger from above."""
    x, y, width = values["stand_x"], values["stand_y"], 0.34 * look.proportion
    top, tip = y - 0.22 + 0.32 * values["cap"], y - 0.22 + 0.32 * values["finger"]
    canvas.box(0, 0.96, 1.3, 0.12, "body", 0.5)
    canvas.bar(x, -1.2, x, tip - 0.09, 0.2, "grip", 0.9)
    canvas.ellipse(x, tip - 0.09, 0.12, 0.09, "grip", 1.15)
    canvas.box(x, top + 0.27, width, 0.27, "mark")
    canvas.box(x, top + 0.035, width, 0.035, "mark", 1.25)
    canvas.box(x, y + 0.32, 0.5, 0.07, "metal")
    canvas.box(x, y + 0.64, 0.66, 0.26, "body")
    glow = DARK + (LIT - DARK) * float(np.clip(values["lamp"], 0.0, 1.0))
    canvas.disc(x, y + 0.63, 0.19, "metal", 0.6)
    canvas.disc(x, y + 0.63, 0.15, tuple(glow))
