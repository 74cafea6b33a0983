"""The frames of a clip as they are learned from: what `segment` leaves and every later stage reads.

    frames/0000.png ...    upright, sampled by time stamp at the base's rate, fitted to its aspect; lossless
    frames.json            when each is shown in the clip, which windows of F frames are learned from

Frames and masks have the same numbers and size, so that any editor can put one over the other.
"""
from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import BadInput
from .foreign import read_json
from .framing import Box, fit_size, frame_box
from .sampling import Sampling, sample
from .video import extent, read_clip, read_images, read_mask, write_images

FRAMES, FACTS = "frames", "frames.json"
TALLEST = 720          # pixels: the short side above which frames are reduced; no base here sees more
AT_ONCE = 16           # frames of the clip's own size that are in memory together


@dataclass(frozen=True)
class Take:
    """frames: uint8 (N, H, W, 3). windows: each one's first frame; length: their F."""

    frames: np.ndarray
    windows: tuple[int, ...]
    length: int

    def window(self, which: int = 0) -> np.ndarray:
        """uint8 (F, H, W, 3) of one window; the first is the one whose noise is inverted."""
        return self.frames[self.windows[which]:][:self.length]


def frame_size(shape: tuple[int, int], size: tuple[int, int], fit: str) -> tuple[int, int]:
    """(H, W) of the frames that are kept of a clip of this shape for a base of this size: its aspect at the clip's own
    resolution, up to TALLEST."""
    left, top, right, bottom = frame_box(shape, size, fit)
    least = min(bottom - top, right - left)
    scale = min(1.0, max(TALLEST, min(size)) / least)
    return max(1, round((bottom - top) * scale)), max(1, round((right - left) * scale))


def take(path: Path, sampling: Sampling, size: tuple[int, int], fit: str, *, partial: bool = False
         ) -> tuple[np.ndarray, np.ndarray, Box]:
    """The frames of a clip for a base of this size -> (frames (N, H, W, 3), the first one whole, the part of it that is
    kept). partial: as for video.extent."""
    kept, whole = [], None
    for lo in range(0, len(sampling.chosen), AT_ONCE):
        part = read_clip(path, at=sampling.chosen[lo:lo + AT_ONCE], partial=partial)
        whole = part[0] if whole is None else whole
        kept.append(fit_size(part, frame_size(part.shape[1:3], size, fit), fit))
    return np.concatenate(kept), whole, frame_box(whole.shape[:2], size, fit)


def sampled(path: Path, *, fps: float, frames: int, size: tuple[int, int],
            window: tuple[float, float] | None = None, partial: bool = False) -> np.ndarray:
    """The first `frames` frames of a clip, or of what it shows from window[0] to window[1] seconds, at this rate and
    size -> uint8 (F, H, W, 3). partial: as for video.extent. Raises what `sample` does."""
    begin, end = window or (0.0, math.inf)
    there = extent(path, partial=partial)
    times, count = there.times, there.count
    if times is None and window:
        raise BadInput(f"{path} has no time stamps, so nothing can be cut out of it by time", "Give a video file")
    times = np.arange(count) / fps if times is None else times[times < end]
    chosen = sample(times, len(times), fps=fps, frames=frames, start=begin, what=str(path)).chosen
    return read_clip(path, at=chosen, size=size, partial=partial)


def write_take(folder: Path, frames_FHWC: np.ndarray, sampling: Sampling) -> None:
    write_images(folder / FRAMES, frames_FHWC)
    (folder / FACTS).write_text(json.dumps(sampling.facts(), indent=1) + "\n", encoding="utf-8")


def read_take(folder: Path, size: tuple[int, int] | None = None) -> Take:
    """What write_take left in a motion's folder, at `size` (H, W) where that is said. Raises BadInput where frames are
    missing."""
    facts = read_facts(folder)
    frames = read_images(folder / FRAMES, size)
    if len(frames) != len(facts["chosen"]):
        raise BadInput(f"{folder / FRAMES} holds {len(frames)} of {len(facts['chosen'])} frames", again(folder))
    return Take(frames, tuple(facts["windows"]), int(facts["length"]))


def read_facts(folder: Path) -> dict[str, object]:
    """What is written beside the frames in a motion's folder (Sampling.facts). Raises BadInput where it is damaged."""
    try:
        facts = read_json(folder / FACTS)
        count, length, windows = len(facts["chosen"]), facts["length"], facts["windows"]
        if length > 0 and windows and all(first >= 0 and first + length <= count for first in windows):
            return facts
    except (OSError, ValueError, TypeError, LookupError):
        pass
    raise BadInput(f"{folder / FACTS} is gone or damaged", again(folder))


def again(folder: Path) -> str:
    """What makes a motion's folder whole."""
    return f"Run: videomage segment motions/{folder.name} --force"


def read_track(folder: Path, frames: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """The masks of one actor in these frames, by their numbers -> bool (F, H, W) at `size`. Raises BadInput for one
    that is not there."""
    paths = [folder / f"{frame:04d}.png" for frame in frames]
    for frame, path in zip(frames, paths):
        if not path.is_file():
            raise BadInput(f"{folder} has no mask for frame {frame}", again(folder.parents[1]))
    return np.concatenate([fit_size(read_mask(path)[None], size) for path in paths])
