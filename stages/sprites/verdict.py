"""Did it work? A customized sprites video judged from its pixels: are the subjects there, does each follow its role?"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .looks import SUBJECTS
from .oracle import find


@dataclass(frozen=True)
class Verdict:
    """subjects: names in the order of their roles. presence: share of frames in which each shows with its own shape and
    colours. together: share of frames in which all do. paths: correlation of each track with its role's path.
    exchanged: the mean of the same with the roles turned round by one (a null: high: the roles are not told apart).
    """

    subjects: tuple[str, ...]
    presence: tuple[float, ...]
    together: float
    paths: tuple[float, ...]
    exchanged: float

    @property
    def passed(self) -> bool:
        """The demo's bar: together in 80 % of the frames, every path at 0.8 or better."""
        return self.together >= 0.8 and min(self.paths) >= 0.8


def correlation(track: np.ndarray, path: np.ndarray) -> float:
    """Correlation of two paths (F, 2), means removed, x and y together, over the frames where the track is known (rows
    of NaN where not); 0 where fewer than half are known, or where one of them does not move at all."""
    known = np.isfinite(track).all(1)
    if known.mean() < 0.5:
        return 0.0
    a, b = (p[known] - p[known].mean(0) for p in (track, path))
    scale = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum() / scale) if scale > 1e-9 else 0.0


def judge(frames: np.ndarray, subjects: Sequence[str], paths: Sequence[np.ndarray]) -> Verdict:
    """frames uint8 (F, H, W, 3); subjects: names of SUBJECTS; paths: the clip's (F, 2) paths, one per role."""
    seen = find(frames, [SUBJECTS[name][0] for name in subjects])
    right = [correlation(one.path, path) for one, path in zip(seen, paths)]
    turned = [correlation(one.path, path) for one, path in zip(seen, [*paths[1:], paths[0]])]
    return Verdict(tuple(subjects), tuple(float(one.presence.mean()) for one in seen),
                   float(np.logical_and.reduce([one.presence for one in seen]).mean()), tuple(right),
                   float(np.mean(turned)))
