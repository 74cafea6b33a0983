"""Paths that the oracle saw -> the words for their motion: of one object alone, of all together."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .oracle import Seen


def motion_alone(path: np.ndarray, least: float = 0.12) -> str:
    """The word for one path (F, 2): left, right, up, down, bounce, still, or "other". least: how far counts, widths."""
    seen = ~np.isnan(path[:, 0])
    if seen.sum() < 2:
        return "still" if len(path) == 1 else "other"
    time, places = np.linspace(0, 1, len(path))[seen], path[seen]
    net = np.polyfit(time, places, 1)[0]
    span = np.ptp(places, 0)
    if np.abs(net).max() >= least:
        axis = int(np.abs(net).argmax())
        return (("left", "right"), ("up", "down"))[axis][int(net[axis] > 0)]
    if span[1] >= least and span[1] > 1.5 * span[0]:
        return "bounce"
    return "still" if span.max() < least else "other"


def motion_together(objects: list[Seen], words: list[str]) -> tuple[str, int | None]:
    """The motion of the whole clip, and the index of the object with the first role where there are roles."""
    if not objects:
        return "none", None
    if len(objects) == 2:
        for doer in (0, 1):
            role = _role(objects[doer], objects[1 - doer], words[doer], words[1 - doer])
            if role:
                return role, doer
    return (words[0] if len(set(words)) == 1 else "mixed"), None


def _role(one: Seen, two: Seen, word: str, other: str) -> str | None:
    """What `one` does to `two`: push (right behind it, same way), jump (over it), approach (until they touch)."""
    both = one.presence & two.presence
    if both.sum() < 3 or word not in ("left", "right"):
        return None
    gap = (two.path - one.path)[both] / ((one.radius + two.radius) / 2)     # in radii; contact is about 2
    ahead = gap[:, 0] * (1 if word == "right" else -1)
    aside = float(np.abs(np.median(gap[:, 1])))
    if other == word and aside < 0.45 and 1.5 < np.median(ahead) < 2.4 and np.ptp(ahead) < 0.9:
        return "push"
    lifted = np.ptp(one.path[both][:, 1])
    if other == "still" and ahead[0] > 0.7 and ahead[-1] < -0.7 and lifted > 0.15:
        return "jump"
    if other == "still" and aside < 0.7 and ahead[0] - ahead[-1] > 0.5 and 1.2 < ahead[-1] < 2.7:
        return "approach"
    return None
