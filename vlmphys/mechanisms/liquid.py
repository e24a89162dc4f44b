"""A glass vessel with liquid over a basin: a gripper tilts and shakes it, and the liquid's surface follows. Dots are painted on the glass."""

from __future__ import annotations

import numpy as np

from vlmphys.mechanisms.parts import Part, Trajectory
from vlmphys.mechanisms.physics import DT, FPS, driven, eased, free_fall, per_frame, times
from vlmphys.mechanisms.scene import Canvas, Look

FRAMES = 180
ANOMALIES = ("foreign_obj", "leak")
VISIBLE_IN_ONE_FRAME = {"foreign_obj": "a body that a sound vessel does not hold floats or lies in the liquid",
                        "leak": "a stream comes out of the vessel's wall or floor"}
PARTS = (Part("vessel", "tilt", -0.5, 0.5), Part("surface", "slope", -0.8, 0.8), Part("level", "level", 0.0, 0.7),
         Part("basin", "basin", 0.0, 0.4), Part("body along", "body_u", -0.45, 0.45), Part("body up", "body_v", 0.0, 1.7))
HALF, TALL, GRAVITY = 0.44, 0.95, 6.0  # half width and height of the vessel; scene units a second squared
BASIN_HALF, BASIN_FLOOR, CENTRE = 0.86, 0.93, -0.08


def simulate(rng: np.random.Generator, state: str, frames: int) -> Trajectory:
    """The surface is a damped pendulum that seeks to stand across the felt gravity. leak: the liquid runs out through a hole, the faster the
    higher it stands, into the basin; foreign_obj: a body, lighter or heavier than the liquid, drifts with it. Both are visible in one frame."""
    instants, seconds = times(frames), frames / FPS
    tilt, x = _handling(rng, instants, seconds)
    felt = np.tan(tilt) - np.gradient(np.gradient(x, instants), instants) / GRAVITY
    slope = driven(felt, rng.uniform(1.5, 2.2), rng.uniform(0.15, 0.3), lower=-0.75, upper=0.75)
    leaking = state == "leak"  # it starts full and ends low; sound vessels stand anywhere between, and so do their basins
    start_level, basin_level = rng.uniform(0.4 if leaking else 0.18, 0.6), rng.uniform(0.03, 0.2 if leaking else 0.33)
    level, head, hole, opened = np.full(len(instants), start_level), np.zeros(len(instants)), (0.0, 0.0), seconds
    while leaking and level[-1] > 0.6 * start_level:
        hole, opened = _hole(rng), rng.uniform(0.0, 0.35) * seconds
        level, head = _draining(start_level, slope, hole, int(opened / DT), rng.uniform(0.25, 0.45))
    basin = basin_level + (start_level - level) * HALF / BASIN_HALF
    channels = {"tilt": tilt, "vessel_x": x, "slope": slope, "level": level, "basin": basin,
                "stream": np.sqrt(head / start_level),
                "stream_fall": free_fall(instants, opened, 2 * GRAVITY, 3.0)}
    size, span, parameters = 0.0, None, {"level": start_level, "lost_share": 1 - level[-1] / start_level}
    body_u = body_v = np.zeros(len(instants))
    if leaking:
        span = (opened, seconds)
    if state == "foreign_obj":
        size = rng.uniform(0.1, 0.125)
        while np.ptp(body_u[instants > seconds / 2]) + np.ptp(body_v) < 0.35:
            density = rng.uniform(1.2, 1.6) if rng.random() < 0.6 else rng.uniform(0.5, 0.75)
            enters = rng.uniform(0.05, 0.9) if rng.random() < 0.5 else 0.0
            place = (rng.uniform(-0.25, 0.25), 1.65) if enters else (rng.uniform(-0.3, 0.3), rng.uniform(0.15, 1.0) * start_level)
            body_u, body_v = _body(np.stack([tilt, np.gradient(np.gradient(x, instants), instants), slope, np.gradient(slope, instants), level], 1),
                                   int(enters / DT), place, density, size, rng.uniform(2.0, 3.5))
        span, parameters = (enters, seconds), parameters | {"density": density, "enters_seconds": enters}
    channels |= {"body_u": body_u, "body_v": body_v}
    fixed = {"body_size": size, "hole_u": hole[0], "hole_v": hole[1]}
    for dot in range(2):
        fixed |= {f"dot_{dot}_u": rng.uniform(-0.3, 0.3), f"dot_{dot}_v": rng.uniform(0.12, 0.7),
                  f"dot_{dot}_size": 0.0 if dot and size else rng.uniform(0.1, 0.125)}
    channels |= {name: np.full(len(instants), value) for name, value in fixed.items()}
    return Trajectory({name: per_frame(values) for name, values in channels.items()}, parameters, span)


def _handling(rng: np.random.Generator, instants: np.ndarray, seconds: float) -> tuple[np.ndarray, np.ndarray]:
    """What the gripper does: tilts to alternate sides with rests between, or smaller tilts while it shakes the vessel to and fro."""
    shaken = rng.random() < 0.4
    low, high = (0.14, 0.26) if shaken else (0.28, 0.45)
    side, knots, values = rng.choice((-1.0, 1.0)), [rng.uniform(0.0, 0.4)], [0.0]
    if rng.random() < 0.5:
        values = [-side * rng.uniform(low, high)]
    while knots[-1] < seconds:
        angle = side * rng.uniform(low, high) * (rng.random() < 0.85)
        knots += [knots[-1] + rng.uniform(0.45, 0.8), knots[-1] + rng.uniform(0.85, 1.2)]
        values += [angle, angle]
        side = -side
    rate = 2 * np.pi * rng.uniform(0.6, 0.9)
    reach = rng.uniform(1.2, 2.2) / rate ** 2 if shaken else 0.0
    begin, end = rng.uniform(-0.5, 0.4), rng.uniform(0.7, 1.2) * seconds
    swelling = eased(instants, [begin, begin + 0.4, end, end + 0.4], [0.0, 1.0, 1.0, 0.0])
    return eased(instants, knots, values), reach * swelling * np.sin(rate * instants + rng.uniform(0, 2 * np.pi))


def _hole(rng: np.random.Generator) -> tuple[float, float]:
    """Where a leaking vessel has its hole, in the vessel's own frame: in its floor or low in a wall."""
    return (rng.uniform(-0.32, 0.32), 0.0) if rng.random() < 0.4 else (rng.choice((-1.0, 1.0)) * HALF, rng.uniform(0.06, 0.25))


def _draining(start: float, slope: np.ndarray, hole: tuple[float, float], opens: int, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Torricelli: the liquid runs out with the root of its head above the hole, from the step `opens` on. Level and head at every step."""
    level, levels, heads = start, [], []
    for step, steepness in enumerate(slope.tolist()):
        head = max(level + hole[0] * steepness - hole[1], 0.0) if step >= opens else 0.0
        level = max(level - DT * rate * head ** 0.5, 0.02)
        levels.append(level)
        heads.append(head)
    return np.array(levels), np.array(heads)


def _body(states: np.ndarray, enters: int, place: tuple[float, float], density: float, size: float, drag: float) -> tuple[np.ndarray, np.ndarray]:
    """The way of a body in the vessel's frame (u along the floor, v up): weight, buoyancy, and drag against the liquid that flows by.

    `states` has a row a step: tilt, the vessel's acceleration, the surface's slope and its rate, the level. Until the step `enters` the body
    is held at its place above the vessel.
    """
    (u, v), u_speed, v_speed, path = place, 0.0, 0.0, []
    for step, (tilt, push, slope, slope_rate, level) in enumerate(states.tolist()):
        if step >= enters:
            along = GRAVITY * np.sin(tilt) - push * np.cos(tilt)
            up = -GRAVITY * np.cos(tilt) - push * np.sin(tilt)
            depth = max(level + u * slope, 0.05)
            wet = min(max((depth - v + size) / (2 * size), 0.0), 1.0)
            flow = (HALF ** 2 - u ** 2) / 2 * slope_rate / depth  # what mass conservation asks of the liquid's way along the vessel
            inside = v < TALL  # above the rim it comes down along the vessel's axis, as if thrown in
            u_speed = (u_speed + DT * (inside * along * (1 - wet / density) + drag * wet * flow)) / (1 + DT * drag * wet)
            v_speed = (v_speed + DT * up * (1 - wet / density)) / (1 + DT * drag * wet)
            u, v = u + DT * u_speed, v + DT * v_speed
            if abs(u) > HALF - size:
                u, u_speed = float(np.clip(u, size - HALF, HALF - size)), 0.0
            if v < size:
                v, v_speed = size, 0.0
        path.append((u, v))
    u_path, v_path = np.array(path).T
    return u_path, v_path


def _surface(level: float, slope: float) -> list[tuple[float, float]]:
    """Corners of the liquid in the vessel's frame: a trapezium, or a wedge in one corner where a part of the floor runs dry."""
    if level >= HALF * abs(slope):
        return [(-HALF, 0.0), (HALF, 0.0), (HALF, level + HALF * slope), (-HALF, level - HALF * slope)]
    side, base = np.sign(slope), np.sqrt(4 * HALF * level / abs(slope))
    return [(side * HALF, 0.0), (side * HALF, base * abs(slope)), (side * (HALF - base), 0.0)]


def draw(canvas: Canvas, values: dict[str, float], look: Look) -> None:
    """Basin with old liquid, the stream of a leak, the vessel with liquid, body and dots, the gripper at its rim."""
    cosine, sine = np.cos(values["tilt"]), np.sin(values["tilt"])

    def seen(points) -> np.ndarray:
        """From the vessel's frame to the scene, turned about the middle of the vessel."""
        u, v = np.asarray(points, dtype=float).T * look.proportion
        v = v - TALL / 2 * look.proportion
        return np.stack([values["vessel_x"] + cosine * u + sine * v, CENTRE + sine * u - cosine * v], 1)

    surface = BASIN_FLOOR - values["basin"]
    if values["stream"] > 0:
        x, y = seen([(values["hole_u"], values["hole_v"])])[0]
        canvas.stroke([(x, y), (x, min(y + values["stream_fall"], surface + 0.03))], 0.07 * values["stream"], "mark")
    canvas.box(0, (surface + BASIN_FLOOR) / 2, BASIN_HALF, (BASIN_FLOOR - surface) / 2, "mark", 0.75)
    canvas.stroke([(-BASIN_HALF, 0.56), (-BASIN_HALF, BASIN_FLOOR), (BASIN_HALF, BASIN_FLOOR), (BASIN_HALF, 0.56)], 0.05, "body")
    canvas.polygon(seen([(-HALF, 0), (HALF, 0), (HALF, TALL), (-HALF, TALL)]), "body", 0.45)
    canvas.polygon(seen(_surface(values["level"], values["slope"])), "mark", 0.9)
    for dot in range(2):
        if values[f"dot_{dot}_size"] > 0:
            canvas.disc(*seen([(values[f"dot_{dot}_u"], values[f"dot_{dot}_v"])])[0], values[f"dot_{dot}_size"], "part", 0.9)
    if values["body_size"] > 0:
        canvas.disc(*seen([(values["body_u"], values["body_v"])])[0], values["body_size"], "body", 0.4)
        canvas.disc(*seen([(values["body_u"], values["body_v"])])[0], 0.85 * values["body_size"], "part")
    canvas.stroke(seen([(-HALF, TALL), (-HALF, 0), (HALF, 0), (HALF, TALL)]), 0.045, "metal")
    hand = seen([(-HALF - 0.05, 0.8 * TALL)])[0]
    canvas.bar(-1.2, hand[1] - 0.1, *hand, 0.14, "grip", 0.8)
    canvas.polygon(seen([(-HALF - 0.1, 0.9 * TALL), (-HALF + 0.1, 0.9 * TALL), (-HALF + 0.1, 0.7 * TALL), (-HALF - 0.1, 0.7 * TALL)]), "grip", 1.1)
