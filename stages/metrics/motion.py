"""Does an actor move along the path of its role? **Ours**: the paper scores no motion.

A track is (F, 2): centres x, y of a mask in shares of the frame's width and height, NaN in a frame without the actor.
"""
from __future__ import annotations

import numpy as np

from ..core.errors import BadInput

STILL = 0.01        # a track whose mean distance (rms) from its middle is below this share of the frame does not move


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


def path_correlation(track_F2: np.ndarray, reference_F2: np.ndarray, still: float = STILL) -> float:
    """Correlation of two tracks, x and y together, the mean place of each removed: -1 to 1.

    1 for two tracks that stand still, 0 where one moves and the other does not, or where one is nowhere. A frame in
    which an actor is missing is not skipped: it adds nothing to what the tracks share, while the other's way through
    it still counts, so that half a path scores less than the whole. Tracks of several lengths are refused.
    """
    tracks = [np.asarray(path, np.float64) for path in (track_F2, reference_F2)]
    if tracks[0].shape != tracks[1].shape or tracks[0].ndim != 2 or tracks[0].shape[-1] != 2 or not len(tracks[0]):
        raise BadInput(f"two tracks of the shapes {tracks[0].shape} and {tracks[1].shape} cannot be compared",
                       "take as many frames of the video as of the clip")
    known = [np.isfinite(path).all(1) for path in tracks]
    if not (known[0].any() and known[1].any()):
        return 0.0
    a, b = (np.where(there[:, None], path - path[there].mean(0), 0.0) for path, there in zip(tracks, known))
    rests = [np.sqrt((part**2).sum() / there.sum()) < still for part, there in zip((a, b), known)]
    if all(rests):
        return float((known[0] & known[1]).mean())
    if any(rests):
        return 0.0
    return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))
