"""Intervals of means over videos that are not independent: they share subjects and motions. numpy only.

The bootstrap resamples both factors with replacement: a video counts as often as its set of subjects was drawn, times
as often as its motion was drawn (Owen 2007, "The pigeonhole bootstrap"). Seeds, prompts and backgrounds lie within.
"""
from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from ..core.errors import BadInput

DRAWS, LEVEL = 2000, 0.95


@dataclass(frozen=True)
class Interval:
    """mean of n videos, and the percentiles of the bootstrap around it."""

    mean: float
    low: float
    high: float
    n: int


def interval(values: Sequence[float], subjects: Sequence[Hashable], motions: Sequence[Hashable], *, draws: int = DRAWS,
             level: float = LEVEL, seed: int = 0) -> Interval:
    """The mean of a score over videos; of successes (0 or 1) it is their rate. subjects, motions: of each video, the
    two factors. A factor of one level is not resampled; where both have one, videos are. Raises BadInput for no video,
    or lists of several lengths."""
    found = np.asarray(values, np.float64)
    if not len(found) or len({len(found), len(subjects), len(motions)}) > 1:
        raise BadInput(f"{len(found)} values of {len(subjects)} sets of subjects and {len(motions)} motions have no "
                       "interval", "give one of each for every video, and one video at least")
    if not np.isfinite(found).all():
        raise BadInput("a score that is not a number has no interval", "score a missing video as 0")
    rng = np.random.default_rng(seed)
    weights = np.ones((draws, len(found)))
    levels = [_levels(factor) for factor in (subjects, motions)]
    if max(map(_count, levels)) == 1:
        levels = [np.arange(len(found))]
    for codes in levels:
        if (count := _count(codes)) > 1:
            weights *= rng.multinomial(count, np.full(count, 1 / count), draws)[:, codes]
    totals = weights.sum(1)
    means = (weights @ found)[totals > 0] / totals[totals > 0]              # no video drawn: in a grid with holes alone
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(found.mean()), float(low), float(high), len(found))


def difference(ones: Sequence[float], others: Sequence[float], subjects: Sequence[Hashable],
               motions: Sequence[Hashable], **more: object) -> Interval:
    """The mean of ones - others, which are pairs: the same prompt and seed, by two methods."""
    if len(ones) != len(others):
        raise BadInput(f"{len(ones)} and {len(others)} videos are no pairs", "pair them by prompt and seed")
    return interval(np.asarray(ones, np.float64) - np.asarray(others, np.float64), subjects, motions, **more)


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """The rank correlation, -1 to 1; equal values share their mean rank. 0 where either does not vary."""
    a, b = (_ranks(np.asarray(values, np.float64)) for values in (one, other))
    if a.shape != b.shape or not len(a):
        raise BadInput(f"{len(a)} and {len(b)} values have no rank correlation", "give pairs")
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / size) if size > 0 else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + last - 1) / 2)[where]


def _levels(factor: Sequence[Hashable]) -> np.ndarray:
    """Each video's level as a number; any hashable names it."""
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(one, len(known)) for one in factor])


def _count(codes: np.ndarray) -> int:
    return int(codes.max()) + 1
