"""The categories of Phys-AD and their anomaly folders, spelled as published: what mechanisms and priors are held against."""

from __future__ import annotations

ANOMALIES = {
    "ball": ("leak", "unfull"), "button": ("no_light", "Unpress", "Unrebound_light", "Unrebound_nolight"),
    "car": ("all_wheel", "back_wheel", "front_wheel"), "caster_wheel": ("axis_stuck1", "axis_stuck2"),
    "clip": ("unable_press", "unable_rebound"), "clock": ("stuck", "vibrate"), "fan": ("stuck", "uneven", "vibrate"),
    "gear": ("double", "single", "stuck", "triple"), "hinge": ("angle_limited", "falloff"), "liquid": ("foreign_obj", "leak"),
    "lock": ("jam", "structure_detache"), "magnet": ("degaussing", "drop"), "rolling_bearing": ("ball_stuck",), "rubber_band": ("crack",),
    "screw": ("stripped", "unable_goin"), "servo": ("angle_limited", "centered_anomaly", "vibrate"),
    "slide": ("ball_drop", "derailment", "jam"), "spherical_bearing": ("jam",), "sticky_roller": ("falloff", "stuck"),
    "toothpaste": ("leak",), "usb": ("jam",), "zipper": ("stuck", "unable_close")}
