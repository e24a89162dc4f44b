"""What the camera sees: the look of one clip (object variant, light, camera, noise) and a canvas with antialiased shapes.

Scene units: the picture spans -1 to 1 in x (right) and y (down); colours are RGB. Shape suffix: F frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from vlmphys.records import stable_int

APPEARANCES = ("physad", "wild")
SHIFT = 4                   # bits below the pixel in OpenCV's fixed-point coordinates
ROLES = ("body", "part", "mark", "metal", "grip")
PALETTES = (
    {"body": (92, 100, 112), "part": (196, 200, 206), "mark": (226, 74, 52), "metal": (140, 146, 152), "grip": (70, 92, 150)},
    {"body": (78, 92, 82), "part": (214, 190, 120), "mark": (48, 96, 214), "metal": (150, 150, 142), "grip": (128, 70, 66)},
    {"body": (104, 88, 96), "part": (128, 190, 196), "mark": (244, 208, 60), "metal": (156, 150, 160), "grip": (74, 112, 84)},
)
NOISE_FIELDS = 5            # drawn once a clip and used in turn: noise anew for each frame would take most of the time


@dataclass(frozen=True)
class Look:
    """Everything about a clip's picture that is no physics."""

    variant: int                        # of the object, 0 to 2
    colours: dict[str, tuple[int, int, int]]    # by role, before `gain`
    proportion: float                   # of the object's parts, about 1
    zoom: float                         # 1: the picture is 2 scene units wide
    centre: tuple[float, float]         # by how much the scene is moved, in scene units
    jitter_F2: np.ndarray               # the camera's shake, in scene units
    gain: float                         # of all brightness, about 1
    background: np.ndarray              # 8 x 8 x 3 (or x 1), grey levels
    noise_sigma: float                  # of the sensor, in grey levels
    noise_seed: int


def sample_look(rng: np.random.Generator, category: str, appearance: str, frames: int) -> Look:
    """Draw a look by lot. `physad`: fixed camera, dark background, 3 object variants; `wild`: colours, backgrounds and camera at random."""
    if appearance not in APPEARANCES:
        raise ValueError(f"unknown appearance {appearance!r}: allowed are {', '.join(APPEARANCES)}")
    variant = int(rng.integers(3))
    wild = appearance == "wild"
    palette = PALETTES[(variant + stable_int(category)) % 3]
    spread = 60 if wild else 8
    colours = {role: tuple(int(v) for v in np.clip(np.array(palette[role]) + rng.integers(-spread, spread + 1, 3), 25, 250)) for role in ROLES}
    reach = 0.14 if wild else 0.03
    jitter = 0.004 if wild else 0.002
    return Look(
        variant=variant, colours=colours, proportion=(0.94, 1.0, 1.06)[variant],
        zoom=float(rng.uniform(0.8, 1.05) if wild else rng.uniform(0.96, 1.02)),
        centre=tuple(float(v) for v in rng.uniform(-reach, reach, 2)),
        jitter_F2=rng.normal(0.0, jitter, (frames, 2)),
        gain=float(rng.uniform(0.7, 1.25) if wild else rng.uniform(0.88, 1.12)),
        background=_background(rng, wild),
        noise_sigma=float(rng.uniform(2.0, 6.0) if wild else rng.uniform(1.5, 3.5)),
        noise_seed=int(rng.integers(1 << 31)))


def _background(rng: np.random.Generator, wild: bool) -> np.ndarray:
    """A small field of grey or coloured patches, 8 x 8 x 3, that is stretched over the picture."""
    if wild:
        return rng.uniform(20, 150) + rng.normal(0, 22, (8, 8, 3)) + rng.uniform(-25, 25, 3)
    return rng.uniform(18, 34) + rng.normal(0, 2.0, (8, 8, 1)) + rng.uniform(-3, 3, 3)


class Canvas:
    """A picture of `size` x `size` pixels that mechanisms draw upon, frame after frame."""

    def __init__(self, size: int, look: Look, wild_clutter: np.random.Generator | None = None):
        self.size, self.look = size, look
        field = np.clip(look.background, 5, 220).astype(np.float32)
        self._empty = cv2.resize(field, (size, size), interpolation=cv2.INTER_CUBIC)
        self._empty = np.clip(self._empty * look.gain, 0, 255).astype(np.uint8)
        noise = np.random.default_rng(look.noise_seed)
        self._noise = noise.normal(0, look.noise_sigma, (NOISE_FIELDS, size, size, 3)).astype(np.int8)
        self.pixels = self._empty.copy()
        self.origin = look.centre
        if wild_clutter is not None:
            self._clutter(wild_clutter)

    def begin(self, frame: int) -> None:
        """Start a frame: empty background, camera at its jittered place."""
        self.pixels = self._empty.copy()
        shake = self.look.jitter_F2[frame]
        self.origin = (self.look.centre[0] + shake[0], self.look.centre[1] + shake[1])

    def finish(self, frame: int) -> np.ndarray:
        """End a frame: sensor noise; returns size x size x 3 uint8 RGB."""
        return cv2.add(self.pixels, self._noise[(frame * 3 + frame // NOISE_FIELDS) % NOISE_FIELDS], dtype=cv2.CV_8U)

    def _clutter(self, rng: np.random.Generator) -> None:
        """Things that stand about and mean nothing."""
        for _ in range(int(rng.integers(2, 6))):
            x, y = rng.uniform(-1, 1, 2)
            self.disc(x, y, rng.uniform(0.05, 0.2), tuple(int(v) for v in rng.integers(20, 200, 3)))
        self._empty = self.pixels.copy()

    def _fixed(self, points) -> np.ndarray:
        scaled = (np.asarray(points, dtype=float) + self.origin) * self.look.zoom
        return np.round((scaled + 1.0) * 0.5 * self.size * (1 << SHIFT)).astype(np.int32)

    def _length(self, length: float) -> int:
        return max(1, int(round(length * self.look.zoom * 0.5 * self.size * (1 << SHIFT))))

    def _colour(self, role, shade: float) -> tuple[int, int, int]:
        colour = self.look.colours[role] if isinstance(role, str) else role
        return tuple(int(min(255, max(0, value * shade * self.look.gain))) for value in colour)

    def polygon(self, points, role, shade: float = 1.0) -> None:
        """A filled polygon; `points` is N x 2 in scene units."""
        cv2.fillPoly(self.pixels, [self._fixed(points)], self._colour(role, shade), cv2.LINE_AA, SHIFT)

    def disc(self, x: float, y: float, radius: float, role, shade: float = 1.0) -> None:
        """A filled circle."""
        centre = self._fixed([(x, y)])[0]
        cv2.circle(self.pixels, tuple(int(v) for v in centre), self._length(radius), self._colour(role, shade), -1, cv2.LINE_AA, SHIFT)

    def ring(self, x: float, y: float, radius: float, width: float, role, shade: float = 1.0) -> None:
        """A circle line of a given width."""
        angles = np.linspace(0, 2 * np.pi, 40)
        self.stroke(np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1), width, role, shade)

    def ellipse(self, x: float, y: float, half_width: float, half_height: float, role, shade: float = 1.0) -> None:
        """A filled ellipse with upright axes."""
        angles = np.linspace(0, 2 * np.pi, 36, endpoint=False)
        self.polygon(np.stack([x + half_width * np.cos(angles), y + half_height * np.sin(angles)], 1), role, shade)

    def stroke(self, points, width: float, role, shade: float = 1.0) -> None:
        """An open line through N x 2 points, of a given width."""
        thickness = max(1, int(round(width * self.look.zoom * 0.5 * self.size)))
        cv2.polylines(self.pixels, [self._fixed(points)], False, self._colour(role, shade), thickness, cv2.LINE_AA, SHIFT)

    def bar(self, x0: float, y0: float, x1: float, y1: float, width: float, role, shade: float = 1.0) -> None:
        """A straight bar from one point to another, with a soft shadow below it."""
        along = np.array([x1 - x0, y1 - y0])
        across = np.array([-along[1], along[0]]) / max(float(np.hypot(*along)), 1e-6) * width / 2
        corners = np.array([(x0, y0) + across, (x1, y1) + across, (x1, y1) - across, (x0, y0) - across])
        self.polygon(corners + (0.02, 0.04), (10, 10, 12))
        self.polygon(corners, role, shade)

    def box(self, x: float, y: float, half_width: float, half_height: float, role, shade: float = 1.0, angle: float = 0.0) -> None:
        """A filled rectangle about its centre, turned by `angle` radians."""
        cosine, sine = np.cos(angle), np.sin(angle)
        corners = np.array([(-half_width, -half_height), (half_width, -half_height), (half_width, half_height), (-half_width, half_height)])
        self.polygon(corners @ np.array([(cosine, sine), (-sine, cosine)]) + (x, y), role, shade)


def polar(x: float, y: float, radius: float, angle: float) -> tuple[float, float]:
    """The point at a distance and an angle (radians, clockwise on screen) from a centre."""
    return x + radius * float(np.cos(angle)), y + radius * float(np.sin(angle))
