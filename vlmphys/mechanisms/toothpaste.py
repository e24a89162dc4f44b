"""A tube of toothpaste on a block: a press squeezes it, and paste comes out of the nozzle on to a tray."""

from __future__ import annotations

import numpy as np

from vlmphys.mechanisms.parts import Part, Trajectory
from vlmphys.mechanisms.physics import DT, FPS, eased, per_frame, times
from vlmphys.mechanisms.scene import Canvas, Look

FRAMES = 180
ANOMALIES = ("leak",)
PARTS = (Part("press", "press", -0.5, 1.0), Part("tube", "flat", 0.0, 1.0), Part("paste", "strand", 0.0, 2.0),
         Part("first spot", "spot_0_size", 0.0, 0.3), Part("second spot", "spot_1_size", 0.0, 0.3))
SPOTS = 2
BLOCK, THICK, NOZZLE, TRAY = 0.24, 0.54, 0.44, 0.84
HANGING = 0.62  # length of paste from the nozzle down to the tray


def simulate(rng: np.random.Generator, state: str, frames: int) -> Trajectory:
    """The press displaces paste, its pressure drives it through the nozzle. leak: above some squeeze a crack in the tube's side opens, and a
    part of the paste comes out there. Old paste sticks to the tube in every clip, so that a spot alone tells nothing: only one that grows."""
    instants, seconds = times(frames), frames / FPS
    press, first, last = _squeezes(rng, instants, seconds)
    flat = np.maximum.accumulate(np.maximum(press, first))
    crack_at, share = np.inf, rng.uniform(0.42, 0.6)
    if state == "leak":
        crack_at = first + rng.uniform(0.02, 0.25) * (last - first)
    out, leaked, opened = _flow(flat - first, rng.uniform(3.0, 8.0), share, crack_at - first)
    strand = rng.uniform(0.0, 1.6) + out * rng.uniform(0.5, 1.6)
    span = None if state != "leak" else (float(instants[opened]), seconds)
    channels = {"press": press, "flat": flat, "strand": strand, "place": np.full(len(instants), rng.uniform(-0.4, 0.0))}
    for spot, x in enumerate(rng.permutation([rng.uniform(-0.6, -0.3), rng.uniform(-0.15, 0.2)])):
        grown = leaked * (spot == 0)
        fresh = state == "leak" and spot == 0
        size = rng.uniform(0.04, 0.1) if fresh else rng.uniform(0.05, 0.25)
        drip = rng.uniform(0.0, 0.05) if fresh else rng.uniform(0.0, 0.3)
        channels |= {f"spot_{spot}_x": np.full(len(instants), x), f"spot_{spot}_y": np.full(len(instants), BLOCK - rng.uniform(0.1, 0.24)),
                     f"spot_{spot}_size": np.sqrt(size ** 2 + 0.1 * grown), f"spot_{spot}_drip": drip + 0.55 * grown}
    return Trajectory({name: per_frame(values) for name, values in channels.items()},
                      {"squeezed_from": first, "squeezed_to": last, "leak_share": share if state == "leak" else 0.0}, span)


def _squeezes(rng: np.random.Generator, instants: np.ndarray, seconds: float) -> tuple[np.ndarray, float, float]:
    """The press's way (0: it touches the full tube, 1: wholly flat, below 0: away from it), and how flat the tube is first and last."""
    first, last = rng.uniform(0.0, 0.3), rng.uniform(0.85, 1.0)
    squeezes = int(rng.integers(1, 4))
    depths = first + (last - first) * np.arange(1, squeezes + 1) / squeezes
    away = first - rng.uniform(0.02, 0.35)
    knots, values = [rng.uniform(0.0, 0.6)], [away]
    period = (seconds - knots[0]) * rng.uniform(0.65, 0.95) / squeezes
    for depth in depths:
        knots += [knots[-1] + 0.55 * period, knots[-1] + rng.uniform(0.6, 0.7) * period, knots[-1] + period]
        values += [depth, depth, depth - rng.uniform(0.1, 0.6)]
    return eased(instants, knots, values), first, last


def _flow(displaced: np.ndarray, outflow: float, share: float, crack_at: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Paste out of the nozzle and out of the crack at every step, and the step at which the crack opens.

    The tube's wall gives way a little: pressure = displaced - gone; each opening passes paste in proportion to the pressure, and none comes
    back. Once `displaced` is above `crack_at`, the crack takes its `share` of the flow.
    """
    through_nozzle, through_crack, opened, nozzle, crack = 0.0, 0.0, None, [], []
    for step, volume in enumerate(displaced.tolist()):
        if opened is None and volume > crack_at:
            opened = step
        flow = DT * outflow * max(volume - through_nozzle - through_crack, 0.0)
        lost = 0.0 if opened is None else share * flow
        through_nozzle, through_crack = through_nozzle + flow - lost, through_crack + lost
        nozzle.append(through_nozzle)
        crack.append(through_crack)
    return np.array(nozzle), np.array(crack), len(nozzle) - 1 if opened is None else opened


def draw(canvas: Canvas, values: dict[str, float], look: Look) -> None:
    """Tray, block, the tube on it with its folded end left and its nozzle right, the press above, spots and strand of paste."""
    canvas.box(0.3, TRAY + 0.05, 0.62, 0.05, "body")
    canvas.box(-0.25, 0.6, 0.5, 0.34, "body", 0.55)
    end, tip = NOZZLE + 0.14, BLOCK - 0.2
    hanging = min(values["strand"], HANGING)
    bend = min(hanging, 0.1)
    heap = 0.22 * max(values["strand"] - HANGING, 0.0) ** 0.5
    if heap > 0.01:
        canvas.ellipse(end + 0.08, TRAY - 0.3 * heap, heap, heap * 0.5, "mark", 0.9)
    canvas.stroke([(end - 0.03, tip), (end + 0.8 * bend, tip + 0.3 * bend), (end + 0.8 * bend, tip + 0.3 * bend + hanging - bend)], 0.11, "mark")
    along = np.linspace(-0.78, 0.3, 25)
    near = np.exp(-np.abs((along - values["place"]) / 0.34) ** 4)
    thickness = THICK * np.clip((along + 0.86) / 0.5, 0, 1) * (1 - 0.1 * values["flat"]) * (1 - 0.78 * values["flat"] * near)
    top = np.stack([along, BLOCK - thickness], 1)
    canvas.polygon([*top, (NOZZLE - 0.06, tip - 0.09), (NOZZLE - 0.06, tip + 0.09), (0.3, BLOCK), (-0.78, BLOCK)], "part")
    canvas.box(-0.82, BLOCK - 0.05, 0.06, 0.11, "part", 0.7)
    canvas.box(NOZZLE, tip, 0.13, 0.1, "metal")
    plate = BLOCK - THICK * (1 - 0.1 * max(values["press"], 0.0)) * (1 - 0.78 * max(values["press"], 0.0)) + 0.5 * min(values["press"], 0.0)
    canvas.bar(values["place"], -1.2, values["place"], plate - 0.1, 0.16, "grip", 0.8)
    canvas.box(values["place"], plate - 0.06, 0.28 * look.proportion, 0.06, "grip")
    for spot in range(SPOTS):
        x, y, size, drip = (values[f"spot_{spot}_{name}"] for name in ("x", "y", "size", "drip"))
        canvas.stroke([(x, y), (x, y + drip)], 0.9 * size, "mark")
        canvas.disc(x, y + drip, 0.55 * size, "mark")
        canvas.ellipse(x, y, size, size * 0.8, "mark", 0.92)
