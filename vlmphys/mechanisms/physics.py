"""Integration in time, shared by all mechanisms: 60 frames a second, four semi-implicit Euler steps a frame."""

from __future__ import annotations

import numpy as np

FPS = 60
SUBSTEPS = 4
DT = 1.0 / (FPS * SUBSTEPS)
BRAKE_DRAG = 4000.0  # of a rotor that is held, in 1/s: it loses 17 parts of 18 of its speed in a step, and stands


def times(frames: int) -> np.ndarray:
    """The instants of all integration steps of a clip, in seconds, shape (frames * SUBSTEPS,)."""
    return np.arange(frames * SUBSTEPS) * DT


def per_frame(values: np.ndarray) -> np.ndarray:
    """The values at the frames' own instants, shape (frames,), of values at all steps."""
    return np.asarray(values)[::SUBSTEPS].copy()


def eased(instants: np.ndarray, knots_seconds: list[float], values: list[float]) -> np.ndarray:
    """A command that moves from value to value with cosine easing between knots and rests outside them."""
    command = np.full(len(instants), values[0], dtype=float)
    for start, end, first, last in zip(knots_seconds[:-1], knots_seconds[1:], values[:-1], values[1:]):
        phase = np.clip((instants - start) / max(end - start, 1e-9), 0.0, 1.0)
        inside = instants >= start
        command[inside] = first + (last - first) * 0.5 * (1 - np.cos(np.pi * phase[inside]))
    return command


def to_and_fro(rng: np.random.Generator, instants: np.ndarray, period_seconds: float, low: float, high: float,
               hold_share: float = 0.12, low_share: float | None = None) -> np.ndarray:
    """A command that goes from `low` to `high` and back with cosine easing, again and again, begun anywhere in its period; it rests at both ends,
    for `hold_share` of the period at `high` and for `low_share` (as long, where None) at `low`.

    No frame's place says what the cycle has shown: with a clip longer than the period, both ends are in it.
    """
    move = (1.0 - hold_share - (hold_share if low_share is None else low_share)) / 2
    phase = (instants / period_seconds + rng.random()) % 1.0
    rise = np.clip(phase / move, 0.0, 1.0) - np.clip((phase - move - hold_share) / move, 0.0, 1.0)
    return low + (high - low) * 0.5 * (1 - np.cos(np.pi * rise))


def driven(command: np.ndarray, natural_hz: float, damping_ratio: float = 0.9, start: float | None = None,
           lower: np.ndarray | float = -np.inf, upper: np.ndarray | float = np.inf, force: np.ndarray | None = None) -> np.ndarray:
    """A mass on a spring whose other end follows `command`, between two inelastic stops: x'' = w^2 (c - x) - 2 z w x' + f.

    All arrays have one value a step; `force` is an acceleration. Returns x at every step.
    """
    omega = 2 * np.pi * natural_hz
    stiffness, drag = omega * omega, 2 * damping_ratio * omega
    lower = np.broadcast_to(lower, len(command)).tolist()
    upper = np.broadcast_to(upper, len(command)).tolist()
    pushes = [0.0] * len(command) if force is None else force.tolist()
    x, speed, path = float(command[0] if start is None else start), 0.0, []
    for target, low, high, push in zip(command.tolist(), lower, upper, pushes):
        speed += DT * (stiffness * (target - x) - drag * speed + push)
        x += DT * speed
        if x < low or x > high:
            x, speed = min(max(x, low), high), 0.0
        path.append(x)
    return np.array(path)


def seized(command: np.ndarray, natural_hz: float, damping_ratio: float, held: np.ndarray) -> np.ndarray:
    """As `driven`, but friction keeps the mass where it is while `held` is 1; let go, it follows the command again. Returns x at every step."""
    free = driven(command, natural_hz, damping_ratio)
    if not held.any():
        return free
    place = free[np.argmax(held)]
    return driven(command, natural_hz, damping_ratio, lower=np.where(held > 0, place, -np.inf), upper=np.where(held > 0, place, np.inf))


def rotor(torque: np.ndarray, drag: np.ndarray, start_speed: float, start_angle: float) -> np.ndarray:
    """The angle of a rotor of unit inertia: w' = torque - drag w. Arrays have one value a step; returns radians at every step."""
    angle, speed, path = start_angle, start_speed, []
    for push, friction in zip(torque.tolist(), drag.tolist()):
        speed = (speed + DT * push) / (1 + DT * friction)
        angle += DT * speed
        path.append(angle)
    return np.array(path)


def motor_speed(rng: np.random.Generator, instants: np.ndarray, slowest_turns: float, fastest_turns: float) -> np.ndarray:
    """What a motor asks for at every step, in radians/s: either way round, within two speeds in turns/s.

    Half of the motors run from the start, half start within the first eighth of the clip; the speed drifts by at most a fifth.
    """
    drift = rng.uniform(-0.1, 0.1)
    turns = rng.choice((-1.0, 1.0)) * rng.uniform(slowest_turns / 0.9, fastest_turns / 1.1)
    seconds = instants[-1] + DT
    start = rng.uniform(0.0, 0.125) * seconds if rng.random() < 0.5 else -1.0
    return 2 * np.pi * turns * (instants >= start) * (1 + drift * (2 * instants / seconds - 1))


def strokes(rng: np.random.Generator, instants: np.ndarray, reach: tuple[float, float], stroke_seconds: tuple[float, float],
            dwell_seconds: float) -> np.ndarray:
    """A command that goes to and fro about 0 and begins anywhere in a stroke; each end lies at a distance by lot within `reach`.

    Every stroke lasts a time within `stroke_seconds`, every rest at an end at most `dwell_seconds`. One value a step.
    """
    side, knots, values = rng.choice((-1.0, 1.0)), [], []
    instant = -rng.uniform(0.0, 1.0) * (stroke_seconds[0] + stroke_seconds[1]) / 2
    while not knots or knots[-1] < instants[-1]:
        end = side * rng.uniform(*reach)
        rest = rng.uniform(0.0, dwell_seconds)
        knots += [instant, instant + rest]
        values += [end, end]
        instant += rest + rng.uniform(*stroke_seconds)
        side = -side
    return eased(instants, knots, values)


def free_fall(instants: np.ndarray, start_seconds: float, gravity: float, floor: float) -> np.ndarray:
    """How far a body has fallen since it was let go, down to a floor, in scene units."""
    elapsed = np.maximum(instants - start_seconds, 0.0)
    return np.minimum(0.5 * gravity * elapsed ** 2, floor)


def shaking(rng: np.random.Generator, instants: np.ndarray, amplitude: float, low_hz: float, high_hz: float) -> np.ndarray:
    """A driven oscillation on an axis: two nearby tones with random phases, peak about `amplitude`."""
    first, second = rng.uniform(low_hz, high_hz, 2)
    phases = rng.uniform(0, 2 * np.pi, 2)
    return amplitude * (0.7 * np.sin(2 * np.pi * first * instants + phases[0]) + 0.45 * np.sin(2 * np.pi * second * instants + phases[1]))


def fault_window(rng: np.random.Generator, seconds: float, persistent_share: float = 0.5, shortest_share: float = 0.5) -> tuple[float, float]:
    """When a fault acts: the whole clip, or one stretch of at least `shortest_share` of it. Seconds."""
    if rng.random() < persistent_share:
        return 0.0, seconds
    length = rng.uniform(shortest_share, 0.85) * seconds
    start = rng.uniform(0.0, seconds - length)
    return float(start), float(start + length)


def within(instants: np.ndarray, span: tuple[float, float] | None) -> np.ndarray:
    """1.0 at the steps inside a span, else 0.0."""
    if span is None:
        return np.zeros(len(instants))
    return ((instants >= span[0]) & (instants <= span[1])).astype(float)


def there_and_back(rng: np.random.Generator, instants: np.ndarray) -> tuple[np.ndarray, float]:
    """A gripper's share of its way, 0 to 1, in a clip of one second: after a delay to the full way, maybe with a rest on it, and back.

    The clip may end while it rests there or on the way back. Also the instant, in seconds, at which the full way is reached.
    """
    delay, stroke, rest = rng.uniform(0.0, 0.16), rng.uniform(0.3, 0.45), rng.uniform(0.04, 0.12) * (rng.random() < 0.4)
    halt, dwell, back = rng.uniform(0.3, 0.6), rng.uniform(0.16, 0.3), rng.uniform(0.3, 0.5)
    first, there = delay + stroke * halt, delay + stroke + rest
    left, end = there + dwell, rng.uniform(0.0, 0.4)
    if rest == 0.0:
        return eased(instants, [delay, there, left, left + back], [0.0, 1.0, 1.0, end]), there
    return eased(instants, [delay, first, first + rest, there, left, left + back], [0.0, halt, halt, 1.0, 1.0, end]), there
