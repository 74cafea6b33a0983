"""Do subjects move as their roles do? **Ours**: the paper scores no motion.

A path is (F, 2): centres x, y of a mask in shares of the frame's width and height, NaN in a frame without the subject.
A frame in which it is missing is not skipped: it adds nothing to what two paths share, while the other's way through it
still counts, so that half a path scores less than the whole.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from ..core.errors import BadInput

STILL = 0.02        # a path whose mean distance (rms) from its middle is below this share of the frame does not move
SHIFT = 8           # the best shift in time is looked for up to one frame in so many
SHOWN = 0.5         # share of the frames that a subject must be in to play a role


def track(masks_FHW: np.ndarray) -> np.ndarray:
    """bool (F, H, W) -> (F, 2): the centroid of each mask, 0 to 1 (x right, y down; a pixel covers i .. i + 1)."""
    masks = np.asarray(masks_FHW, np.float64)
    if masks.ndim != 3 or 0 in masks.shape:
        raise BadInput(f"masks come as (F, H, W), not as {masks.shape}", "give a mask for each frame")
    count, height, width = masks.shape
    area = masks.sum((1, 2))
    area = np.where(area > 0, area, np.nan)
    x = masks.sum(1) @ (np.arange(width) + 0.5) / (area * width)
    y = masks.sum(2) @ (np.arange(height) + 0.5) / (area * height)
    return np.stack([x, y], 1)


def resampled(path_F2: np.ndarray, frames: int) -> np.ndarray:
    """The path of a clip as one of `frames` frames over the same time has it: both begin with their first frame; linear
    between frames, missing where either neighbour is, standing where the clip has ended."""
    path = np.asarray(path_F2, np.float64)
    at = np.minimum(np.arange(frames) * len(path) / frames, len(path) - 1)
    low, high = np.floor(at).astype(int), np.ceil(at).astype(int)
    part = (at - low)[:, None]
    return np.where(part == 0, path[low], path[low] * (1 - part) + path[high] * part)


def magnitude(path_F2: np.ndarray) -> float:
    """How far it is from its middle (rms), frame widths; 0 for what is nowhere."""
    there = np.isfinite(path_F2).all(1)
    own = path_F2[there]
    return float(np.sqrt(np.square(own - own.mean(0)).sum(1).mean())) if len(own) else 0.0


def fidelity(path_F2: np.ndarray, reference_F2: np.ndarray) -> float:
    """How well a path follows another, 0 to 1, symmetric, wherever in the frame:

        2 sum a.b / (sum |a|^2 + sum |b|^2)

    a and b are measured from their own middles over the frames that both have; the sums go over the frames that each
    has. Unlike a correlation it counts how far they go: half the way at the same pace is 0.8. It is the best over
    shifts in time by up to F / SHIFT frames (those at the ends that have no partner are left out), and 0 where it would
    be negative. Two that stand still: the share of frames that show both. One that stands still: 0. Nowhere: 0.
    Raises BadInput for paths of several lengths."""
    a, b = _pair(path_F2, reference_F2)
    most = len(a) // SHIFT
    return max(0.0, *(_shared(a[max(0, k):len(a) + min(0, k)], b[max(0, -k):len(b) - max(0, k)])
                      for k in range(-most, most + 1)))


def _shared(a: np.ndarray, b: np.ndarray) -> float:
    known = [np.isfinite(path).all(1) for path in (a, b)]
    both = known[0] & known[1]
    if not both.any():
        return 0.0
    rests = [magnitude(path) < STILL for path in (a, b)]
    if all(rests):
        return float(both.mean())
    if any(rests):
        return 0.0
    a, b = (np.where(there[:, None], path - path[both].mean(0), 0.0) for path, there in zip((a, b), known))
    return float(2 * (a * b).sum() / ((a**2).sum() + (b**2).sum()))


def _pair(path_F2: np.ndarray, reference_F2: np.ndarray) -> list[np.ndarray]:
    paths = [np.asarray(path, np.float64) for path in (path_F2, reference_F2)]
    if paths[0].shape != paths[1].shape or paths[0].ndim != 2 or paths[0].shape[-1] != 2 or not len(paths[0]):
        raise BadInput(f"two paths of the shapes {paths[0].shape} and {paths[1].shape} cannot be compared",
                       "take as many frames of the video as of the clip")
    return paths


# -- who plays whom ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Binding:
    """matrix: (N, R), how well each subject's path is that of each role. assigned: {subject: role}, the best of all
    assignments. right: {subject: whether that is its own}. corrected: the share that is right, 0 where chance would be
    and 1 where all are."""

    matrix: np.ndarray
    assigned: dict[str, str]
    right: dict[str, bool]
    corrected: float


def binding(paths: Mapping[str, np.ndarray], references: Mapping[str, np.ndarray], roles: Mapping[str, str]) -> Binding:
    """Which subject plays which role. paths: {subject: (F, 2)}. references: {role: (F, 2)}, R >= N of them. roles:
    {subject: the role that the prompt gives it}.

    Paths are measured from the middle of all subjects together, references from that of all roles together: who pushes
    and who is pushed go the same way, one behind the other. What has the same path in every role (a tie) is not right;
    nor is a subject that is missing in half the frames.
    """
    subjects, names = list(paths), list(references)
    own, other = (_about_middle(list(group.values())) for group in (paths, references))
    matrix = np.array([[_alike(a, b) for b in other] for a in own])
    ways = list(permutations(range(len(names)), len(subjects)))
    worth = [sum(matrix[n, role] for n, role in enumerate(way)) for way in ways]
    best = ways[int(np.argmax(worth))]
    right = {}
    for n, name in enumerate(subjects):
        wanted = names.index(roles[name])
        elsewhere = max((value for way, value in zip(ways, worth) if way[n] != wanted), default=-np.inf)
        shown = np.isfinite(paths[name]).all(1).mean() >= SHOWN
        right[name] = bool(best[n] == wanted and max(worth) > elsewhere + 1e-9 and shown)
    chance, share = 1 / len(names), float(np.mean(list(right.values())))
    return Binding(matrix, {name: names[role] for name, role in zip(subjects, best)}, right,
                   (share - chance) / (1 - chance) if chance < 1 else share)


def _about_middle(paths: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Measured from the mean place of all of them, each frame and each path counting alike."""
    whole = np.concatenate(paths)
    there = np.isfinite(whole).all(1)
    return [path - (whole[there].mean(0) if there.any() else 0.5) for path in paths]


def _alike(a: np.ndarray, b: np.ndarray) -> float:
    """2 sum a.b / (sum |a|^2 + sum |b|^2), -1 to 1; 0 where one is nowhere or both are in the middle throughout."""
    a, b = (np.where(np.isfinite(path).all(1)[:, None], path, 0.0) for path in (a, b))
    size = (a**2).sum() + (b**2).sum()
    return float(2 * (a * b).sum() / size) if size > 1e-12 else 0.0
