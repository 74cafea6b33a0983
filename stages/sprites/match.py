"""How well a picture agrees with a rendered look, anywhere in it: the oracle's ruler.

A look is rendered at a place and size as its departure from the background's tone. The agreement is the cosine between
that and the picture's own departure, over the look's support and a thin ring around it: 1 where the picture shows just
this, 0 where nothing or something unrelated is there. Scaling the contrast does not change it; a wrong texture does.
Units: pixels, y before x, pixel i covers i .. i + 1. Legend: S side, T taps of a template's side, P places.
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.lib.stride_tricks import as_strided

from .looks import ALL_COLOURS, ALL_SHAPES, ALL_TEXTURES, Look

SUPERSAMPLE = 3
BLUR = (0.13, 0.74, 0.13)      # the softness of a decoded picture: about half a pixel


@dataclass(frozen=True)
class Template:
    """cover, second: coverage (T, T) by the first and the second colour; window: where agreement is measured."""

    cover: np.ndarray
    second: np.ndarray
    window: np.ndarray

    @property
    def reach(self) -> int:
        return len(self.cover) // 2


@dataclass(frozen=True)
class Match:
    """score: agreement. y, x: centre, radius: pixels."""

    score: float
    y: float
    x: float
    radius: float


def blur(plane: np.ndarray, kernel=BLUR) -> np.ndarray:
    """Separable blur of the last two axes, edges repeated."""
    reach = len(kernel) // 2
    for axis in (-1, -2):
        ends = [(0, 0)] * plane.ndim
        ends[axis] = (reach, reach)
        padded = np.pad(plane, ends, mode="edge")
        plane = sum(k * padded.take(range(n, n + plane.shape[axis]), axis) for n, k in enumerate(kernel))
    return plane


def grow(mask: np.ndarray, times: int = 1) -> np.ndarray:
    """Add the eight neighbours of every pixel of the mask (..., S, S), `times` times."""
    for _ in range(times):
        rows = np.pad(mask, [(0, 0)] * (mask.ndim - 2) + [(1, 1), (0, 0)])
        mask = rows[..., :-2, :] | rows[..., 1:-1, :] | rows[..., 2:, :]
        columns = np.pad(mask, [(0, 0)] * (mask.ndim - 2) + [(0, 0), (1, 1)])
        mask = columns[..., :-2] | columns[..., 1:-1] | columns[..., 2:]
    return mask


@cache
def template(shape: str, texture: str, quarters: int, half_y: int, half_x: int) -> Template:
    """Radius in quarter pixels; the centre lies at the lower edge of the middle tap plus half_y / 2, half_x / 2."""
    radius = quarters / 4
    reach = int(np.ceil(1.6 * radius)) + 2
    axis = (np.arange((2 * reach + 1) * SUPERSAMPLE) + 0.5) / SUPERSAMPLE - reach
    u, v = (axis[None] - half_x / 2) / radius, (axis[:, None] - half_y / 2) / radius
    inside = ALL_SHAPES[shape](u, v) & (u == u) & (v == v)
    second = inside & ALL_TEXTURES[texture](u, v)
    taps = (2 * reach + 1, SUPERSAMPLE) * 2
    all_, two = (blur(m.reshape(taps).mean((1, 3), dtype=np.float32)) for m in (inside, second))
    return Template(all_ - two, two, grow(all_ > 0.05).astype(np.float32))


class Canvas:
    """One frame (S, S, 3), prepared: its departure from `tone`; `ignored` pixels (bool) count nowhere."""

    def __init__(self, frame: np.ndarray, tone: np.ndarray, ignored: np.ndarray | None = None) -> None:
        self.tone, self.side, self.margin = np.float32(tone), len(frame), 2 * len(frame)
        valid = np.ones(frame.shape[:2], np.float32) if ignored is None else (~ignored).astype(np.float32)
        departure = (np.float32(frame) - self.tone) * valid[..., None]
        self.valid = np.pad(valid, self.margin)
        self.departure = np.pad(departure, ((self.margin,) * 2, (self.margin,) * 2, (0, 0)))
        self.energy = np.square(self.departure).sum(-1)

    def search(self, look: Look, radii: list[int], rows: range, columns: range, halves=(0, 1)) -> Match:
        """The best place of the look: radii in quarter pixels; rows, columns: pixels in which the centre may lie."""
        inks = tuple(np.float32(ALL_COLOURS[name]) - self.tone for name in (look.colour, look.second))
        shades = [self.departure @ ink for ink in inks]
        best = Match(-1.0, 0.0, 0.0, 1.0)
        for quarters in {min(quarters, 4 * self.side): None for quarters in radii}:     # no window outgrows the margin
            for half_y in halves:
                for half_x in halves:
                    one = template(look.shape, look.texture, quarters, half_y, half_x)
                    scores = self._cosines(one, shades, inks, rows, columns)
                    k = int(scores.argmax())
                    if scores.flat[k] > best.score:
                        y, x = rows[k // len(columns)] + half_y / 2, columns[k % len(columns)] + half_x / 2
                        best = Match(float(scores.flat[k]), y, x, quarters / 4)
        return best

    def inks(self, look: Look, match: Match) -> tuple[np.ndarray, np.ndarray]:
        """The two colours that would explain the frame best at a match, if the look's arrangement is right: least
        squares of the departure on the two coverages -> sRGB (3,), (3,)."""
        half_y, half_x = round(2 * match.y) % 2, round(2 * match.x) % 2
        one = template(look.shape, look.texture, round(4 * match.radius), half_y, half_x)
        top, left = (int(place) + self.margin - one.reach for place in (match.y, match.x))
        box = np.s_[top:top + len(one.cover), left:left + len(one.cover)]
        weights = (one.window * self.valid[box]).ravel() > 0
        coverage = np.stack([one.cover.ravel()[weights], one.second.ravel()[weights]], -1)
        fitted = np.linalg.lstsq(coverage, self.departure[box].reshape(-1, 3)[weights], rcond=None)[0] + self.tone
        return fitted[0], fitted[1]

    def _cosines(self, one: Template, shades, inks, rows: range, columns: range) -> np.ndarray:
        """Agreement at every centre (rows x columns); shades: products of the departure with both inks."""
        top, left = rows.start + self.margin - one.reach, columns.start + self.margin - one.reach
        taps = len(one.cover)

        def against(plane, weights):
            plane = plane[top:, left:]
            windows = as_strided(plane, (len(rows), len(columns), taps, taps), plane.strides * 2, writeable=False)
            return windows.reshape(-1, taps * taps) @ weights.ravel()

        (first, second), cover, two = inks, one.cover * one.window, one.second * one.window
        inner = against(shades[0], cover) + against(shades[1], two)
        expected = cover**2 * (first @ first) + two**2 * (second @ second) + 2 * cover * two * (first @ second)
        drawn, there = against(self.valid, expected), against(self.energy, one.window)
        seen = drawn > 0.25 * expected.sum()            # of a look mostly ignored or outside nothing can be said
        scores = np.where(seen, inner / np.sqrt(np.maximum(drawn * there, 1e-6)), -1.0)
        return scores.reshape(len(rows), len(columns))


def components(masks: np.ndarray) -> np.ndarray:
    """Connected parts (eight neighbours) of (F, S, S) bool -> int labels (F, S, S), 0 outside; a part's label is one
    more than the index of one of its pixels."""
    f, height, width = masks.shape
    labels = np.where(masks, 1 + np.arange(height * width).reshape(height, width), 0)
    while True:
        padded = np.pad(labels, ((0, 0), (1, 1), (1, 1)))
        highest = np.max([padded[:, y:y + height, x:x + width] for y in range(3) for x in range(3)], 0)
        new = np.where(masks, highest, 0)
        if np.array_equal(new, labels):
            return labels
        labels = new


def opened(masks: np.ndarray) -> np.ndarray:
    """What is left of (F, S, S) when everything narrower than two pixels goes."""
    padded = np.pad(masks, ((0, 0), (0, 1), (0, 1)))
    core = padded[:, :-1, :-1] & padded[:, 1:, :-1] & padded[:, :-1, 1:] & padded[:, 1:, 1:]
    padded = np.pad(core, ((0, 0), (1, 0), (1, 0)))
    return padded[:, 1:, 1:] | padded[:, :-1, 1:] | padded[:, 1:, :-1] | padded[:, :-1, :-1]
