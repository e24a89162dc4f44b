"""Simulated mechanisms, one file each: a small dynamical model, its faults, and how a camera would see it.

A mechanism is a module named as its Phys-AD category. To add one, write a module here with

    FRAMES      clip length in frames at 60 fps, as published
    ANOMALIES   names of its anomaly folders
    PARTS       what moves, at most six: `Part` entries that name the channels of the trajectory by which the motion is read
    simulate(rng, state, frames) -> Trajectory
    draw(canvas, values, look)

and, where a fault shows in one frame by nature (a part that is off, a lamp that is dark), VISIBLE_IN_ONE_FRAME, the reason by the fault's name,
and a prior of the same name in `vlmphys/priors/`. Nothing else has to be told about it.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from vlmphys.records import nearest, shortened

SHARED_MODULES = ("clips", "parts", "physics", "scene")


def known_mechanisms() -> list[str]:
    """Names of all mechanisms that can be simulated, sorted."""
    return sorted(info.name for info in pkgutil.iter_modules(__path__) if info.name not in SHARED_MODULES)


def load_mechanism(category: str) -> ModuleType:
    """The module of one mechanism. Raises ValueError, with the nearest name, where there is none."""
    if category not in known_mechanisms():
        raise ValueError(f"unknown category {category!r}{nearest(category, known_mechanisms())}: allowed are "
                         f"{shortened(known_mechanisms())}, or 'all'")
    return importlib.import_module(f"{__name__}.{category}")


def visible_in_one_frame(category: str) -> dict[str, str]:
    """The faults of a category that one frame shows by nature, each with what is seen; empty for one that is not simulated here."""
    return dict(getattr(load_mechanism(category), "VISIBLE_IN_ONE_FRAME", {})) if category in known_mechanisms() else {}
