"""What things of the sprites world look like: shapes, colours, textures, backgrounds, and the subjects held out of it.

Units: object coordinates (u right, v down) are divided by the object's radius. Every shape has the area of the unit
disc, so `radius` alone sets how many pixels an object covers. Colours are 8-bit sRGB triples.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# The palette. Saturated colours belong to objects, dull ones to backgrounds: the oracle tells them apart.
COLOURS = {
    "red": (222, 40, 40), "green": (30, 178, 70), "blue": (46, 84, 232), "yellow": (244, 214, 40),
    "pink": (244, 120, 190), "brown": (126, 70, 28),
}
WHITE = (248, 248, 248)
HELD_OUT_COLOURS = {"orange": (250, 140, 24), "purple": (150, 52, 204), "cyan": (40, 214, 226), "black": (16, 16, 16)}
BACKGROUNDS = {"night": (34, 36, 66), "snow": (206, 216, 228), "sand": (190, 166, 124), "grass": (92, 112, 84)}


def _heart(u, v):
    x, y = u / 1.16, -(v - 0.12) / 1.16
    return (x * x + y * y - 0.72) ** 3 - x * x * y * y * y * 1.35 <= 0


def _crescent(u, v):
    return (u * u + v * v <= 1.35) & ((u - 0.72) ** 2 + v * v > 0.66)


SHAPES = {
    "circle": lambda u, v: u * u + v * v <= 1,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) <= 0.886,
    "triangle": lambda u, v: (v <= 0.778) & (1.732 * abs(u) <= v + 1.555),
    "diamond": lambda u, v: abs(u) / 1.02 + abs(v) / 1.54 <= 1,
    "bar": lambda u, v: (abs(u) <= 1.36) & (abs(v) <= 0.577),
}
HELD_OUT_SHAPES = {
    "heart": _heart,
    "cross": lambda u, v: ((abs(u) <= 0.42) & (abs(v) <= 1.15)) | ((abs(v) <= 0.42) & (abs(u) <= 1.15)),
    "hourglass": lambda u, v: (abs(u) <= 0.22 + abs(v) * 0.88) & (abs(v) <= 1.06),
    "crescent": _crescent,
    "drop": lambda u, v: (u * u + (v - 0.30) ** 2 <= 0.80) | ((v <= 0) & (v >= -1.55) & (abs(u) <= (v + 1.55) * 0.52)),
}
# a texture says where the second colour shows
TEXTURES = {
    "plain": lambda u, v: np.zeros(np.broadcast(u, v).shape, bool),
    "striped": lambda u, v: np.sin(v * 4.7 + 0.8) > 0.25,
    "dotted": lambda u, v: np.cos(u * 4.3) * np.cos(v * 4.3) > 0.42,
}
HELD_OUT_TEXTURES = {
    "halved": lambda u, v: (u > 0) & (v == v),
    "quartered": lambda u, v: u * v > 0,
    "ringed": lambda u, v: u * u + v * v < 0.36,
    "banded": lambda u, v: (abs(v) < 0.34) & (u == u),
}
ALL_COLOURS = {**COLOURS, **HELD_OUT_COLOURS, "white": WHITE}
ALL_SHAPES = {**SHAPES, **HELD_OUT_SHAPES}
ALL_TEXTURES = {**TEXTURES, **HELD_OUT_TEXTURES}


@dataclass(frozen=True)
class Look:
    """One identity: what an object is, wherever it is. `second` is the colour where the texture shows."""

    shape: str
    colour: str
    texture: str = "plain"
    second: str = "white"

    def paint(self, u, v):
        """-> (inside, rgb): coverage (bool) and colour (float, 0..255) at object coordinates u, v."""
        inside = ALL_SHAPES[self.shape](u, v)
        where = ALL_TEXTURES[self.texture](u, v)[..., None]
        return inside, np.where(where, np.float32(ALL_COLOURS[self.second]), np.float32(ALL_COLOURS[self.colour]))


# The subjects that examples and evidence customize to. No caption and no frame of the base's training holds their
# shapes, colours or textures. The second word is the class a user would type for them (a word the base knows).
SUBJECTS: dict[str, tuple[Look, str]] = {
    "toy": (Look("heart", "orange", "banded", "purple"), "circle"),
    "pet": (Look("cross", "cyan", "ringed", "black"), "square"),
    "gem": (Look("drop", "purple", "halved", "cyan"), "triangle"),
    "kite": (Look("hourglass", "black", "halved", "orange"), "square"),
    "moth": (Look("crescent", "cyan", "quartered", "purple"), "circle"),
    "drum": (Look("heart", "black", "banded", "cyan"), "circle"),
    "leaf": (Look("drop", "orange", "ringed", "black"), "triangle"),
    "cup": (Look("hourglass", "cyan", "banded", "purple"), "square"),
    "fan": (Look("cross", "purple", "quartered", "orange"), "square"),
    "moon": (Look("crescent", "orange", "halved", "black"), "circle"),
    "lamp": (Look("heart", "cyan", "halved", "orange"), "circle"),
    "bell": (Look("drop", "black", "banded", "purple"), "triangle"),
}


@dataclass(frozen=True)
class Vocabulary:
    """The words one size of the base is trained on. Disjoint from every HELD_OUT table (a test says so)."""

    colours: tuple[str, ...]
    shapes: tuple[str, ...]
    textures: tuple[str, ...]
    backgrounds: tuple[str, ...] = tuple(BACKGROUNDS)


SMALL = Vocabulary(("red", "green", "blue", "yellow"), ("circle", "square", "triangle"), tuple(TEXTURES))
FULL = Vocabulary(tuple(COLOURS), tuple(SHAPES), tuple(TEXTURES))


def background(name: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """One background picture -> float32 (size, size, 3): a flat tone with this kind's own faint, smooth texture."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    a, b, c = rng.uniform(0, 6.283, 3)
    if name == "sand":
        bump = 10 * np.sin(31 * (y + 0.06 * np.sin(9 * x + a)) + b)
    elif name == "grass":
        bump = 11 * np.sin(36 * x + a + 2 * np.sin(7 * y + b))
    elif name == "snow":
        bump = 9 * np.sin(21 * x + a) * np.sin(21 * y + b)
    else:
        bump = 42 * np.maximum(np.sin(14 * x + a) * np.sin(14 * y + b) - 0.75, 0) * 4
    tone = np.float32(BACKGROUNDS[name]) + rng.uniform(-6, 6)
    return tone + (bump + 5 * np.sin(3 * y + c))[..., None]
