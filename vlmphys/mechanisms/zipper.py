"""A zipper: a gripper pulls the slider to and fro along a chain of teeth; it closes the chain one way and opens it the other way."""

from __future__ import annotations

import numpy as np

from vlmphys.mechanisms.parts import Part, Trajectory
from vlmphys.mechanisms.physics import DT, FPS, SUBSTEPS, driven, per_frame, times
from vlmphys.mechanisms.scene import Canvas, Look

FRAMES = 120
ANOMALIES = ("stuck", "unable_close")
VISIBLE_IN_ONE_FRAME = {"unable_close": "the chain stands open behind the slider"}
STATIONS = 12
PLACES = np.linspace(0.0, 1.0, STATIONS)
PARTS = (Part("slider", "slider", 0.0, 1.0), Part("gripper", "gripper", 0.0, 1.0),
         *(Part(f"{place} of the chain", f"gap_{index:02d}", 0.0, 0.5) for place, index in (("start", 2), ("middle", 6), ("end", 10))))
WIDEST, SPREAD, SPLIT = 0.42, 0.55, 0.17  # half gap at the open end; half gap per unit of way before the slider; half gap behind it, not meshed


def simulate(rng: np.random.Generator, state: str, frames: int) -> Trajectory:
    """The slider follows the gripper and meshes the teeth it passes. stuck: a jammed slider holds against the pull, for the rest of the
    clip or for a time; unable_close: the teeth that the slider passes do not mesh (visible in one frame, as an open chain behind it)."""
    instants, seconds = times(frames), frames / FPS
    command, parameters = _sweeps(rng, instants, seconds)
    firmness, damping = rng.uniform(6.0, 8.0), rng.uniform(0.85, 1.05)
    slider, span = driven(command, firmness, damping), None
    if state == "stuck":
        span = _holding(rng, instants, seconds, slider)
        held = (instants >= span[0]) & (instants <= span[1])
        place = float(slider[np.searchsorted(instants, span[0])])
        slider = driven(command, firmness, damping, lower=np.where(held, place, -np.inf), upper=np.where(held, place, np.inf))
    gripper = np.clip(command, slider - 0.05, slider + 0.05)
    failing = np.zeros(len(instants), dtype=bool)
    if state == "unable_close":
        start = 0.0 if rng.random() < 0.5 else _before_closing(rng, instants, seconds, slider)
        span = (start, seconds)
        failing = instants >= start
    gaps = _chain(slider, failing, split_at_start=state == "unable_close" and span[0] == 0.0)
    channels = {"slider": per_frame(slider), "gripper": per_frame(gripper)}
    return Trajectory(channels | {f"gap_{index:02d}": gaps[:, index] for index in range(STATIONS)}, parameters, span)


def _sweeps(rng: np.random.Generator, instants: np.ndarray, seconds: float) -> tuple[np.ndarray, dict[str, float]]:
    """The gripper's way: from some place to one end, then from end to end until the clip is over; it hardly rests, and at the ends alone."""
    pace, way = rng.uniform(0.55, 0.8), int(rng.integers(2))
    place = rng.uniform(0.02, 0.98)
    knots, values = [rng.uniform(0.0, 0.12)], [place]
    parameters = {"seconds_per_length": pace, "start": place, "first_way": way}
    while knots[-1] < seconds:
        end = abs(way - rng.uniform(0.0, 0.06))
        knots.append(knots[-1] + 0.06 + pace * abs(end - place))
        knots.append(knots[-1] + rng.uniform(0.0, 0.1))
        values += [end, end]
        place, way = end, 1 - way
    return np.interp(instants, knots, values), parameters


def _holding(rng: np.random.Generator, instants: np.ndarray, seconds: float, slider: np.ndarray) -> tuple[float, float]:
    """When a jammed slider holds: from the start, or from a moment on its way; to the end, or for 0.8 s or more."""
    start = 0.0
    if rng.random() < 0.7 or not 0.1 < slider[0] < 0.9:
        moving = (np.abs(np.gradient(slider, instants)) > 0.5) & (slider > 0.1) & (slider < 0.9) & (instants < 0.5 * seconds)
        start = float(rng.choice(instants[moving]))
    return start, seconds if rng.random() < 0.4 else min(seconds, start + rng.uniform(0.8, 1.1))


def _before_closing(rng: np.random.Generator, instants: np.ndarray, seconds: float, slider: np.ndarray) -> float:
    """A moment after which the slider still closes half of the chain or more within the clip, with a quarter of a second to see it."""
    closing = np.maximum(np.diff(slider, append=slider[-1]), 0.0) * (instants < seconds - 0.25)
    still_to_close = np.cumsum(closing[::-1])[::-1]
    return float(rng.choice(instants[still_to_close >= min(0.5, still_to_close[0])]))


def _chain(slider: np.ndarray, failing: np.ndarray, split_at_start: bool) -> np.ndarray:
    """Half gap between the two tapes at each station, one row a frame: each station is pulled to where slider, teeth and tapes hold it."""
    meshed = (PLACES < slider[0]) & (not split_at_start)
    rate, gap, rows = 1 - np.exp(-DT * 30.0), None, []
    for step, (place, fails) in enumerate(zip(slider.tolist(), failing.tolist())):
        ahead = PLACES - place
        meshed = (ahead < 0) & (meshed | (not fails and step > 0 and (PLACES >= slider[step - 1])))
        loose = SPLIT * np.clip(-ahead / 0.15, 0, 1) * np.clip(PLACES / 0.12, 0, 1)
        target = np.where(ahead >= 0, np.clip(SPREAD * ahead, 0, WIDEST), np.where(meshed, 0.0, loose))
        gap = target.copy() if gap is None else gap + rate * (target - gap)
        if step % SUBSTEPS == 0:
            rows.append(gap.copy())
    return np.array(rows)


def draw(canvas: Canvas, values: dict[str, float], look: Look) -> None:
    """Two tapes with teeth along their edges over a bright lining; slider, pull tab and gripper in front."""
    width = 0.84 * look.proportion
    along = -width + 2 * width * np.linspace(0, 1, 49)
    gaps = np.interp(np.linspace(0, 1, 49), PLACES, [values[f"gap_{index:02d}"] for index in range(STATIONS)])
    canvas.box(0, 0, width + 0.06, 0.62, "mark", 0.85)
    for side in (-1, 1):
        edge = np.stack([along, side * (gaps + 0.01)], 1)
        canvas.polygon(np.concatenate([edge, [(width + 0.1, side * 0.8), (-width - 0.1, side * 0.8)]]), "body", 0.75 if side < 0 else 0.85)
        teeth = np.stack([along, side * (gaps + 0.02 + 0.05 * (np.arange(49) % 2 == (side > 0)))], 1)
        canvas.stroke(teeth, 0.045, "metal", 1.1)
    x, hand = -width + 2 * width * values["slider"], -width + 2 * width * values["gripper"]
    canvas.box(-width - 0.05, 0, 0.05, 0.11, "metal", 0.7)
    canvas.bar(hand, 0.3, hand, 1.1, 0.17, "grip")
    canvas.bar(x, 0.0, hand, 0.32, 0.09, "part", 0.85)
    canvas.box(x, 0, 0.13, 0.15, "part")
    canvas.box(hand, 0.36, 0.11, 0.08, "grip", 1.15)
