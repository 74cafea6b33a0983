"""Is every subject there, in every frame? **Ours**: the paper asks people."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..core.errors import BadInput

LEAST = 0.005       # share of the frame that a mask has to fill


@dataclass(frozen=True)
class Presence:
    """frames: {subject: bool (F,)}. each: {subject: share of frames}. together: share of frames that show them all."""

    frames: dict[str, np.ndarray]
    each: dict[str, float]
    together: float


def presence(masks: Mapping[str, np.ndarray], least: float = LEAST) -> Presence:
    """masks: {subject: bool (F, H, W)}; a subject is present in a frame if its mask fills at least `least` of it, and
    is not empty. Raises BadInput for no subject, no frame, or tracks of several shapes."""
    shapes = {name: np.shape(track) for name, track in masks.items()}
    if not shapes or len(set(shapes.values())) > 1 or any(len(s) != 3 or 0 in s for s in shapes.values()):
        raise BadInput(f"presence needs masks (F, H, W) of one shape for every subject, and got {shapes}",
                       "segment one video, for one subject at least")
    shares = {name: np.asarray(track, bool).mean((1, 2)) for name, track in masks.items()}
    frames = {name: (share >= least) & (share > 0) for name, share in shares.items()}
    together = np.logical_and.reduce(list(frames.values()))
    return Presence(frames, {name: float(there.mean()) for name, there in frames.items()}, float(together.mean()))
