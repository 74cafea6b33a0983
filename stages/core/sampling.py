"""Which frames of a clip are learned from: by time stamp, at the rate of the base. Plain arithmetic, no files.

A base makes F frames at `fps` a second. What it learns from is sampled at instants start + k step, step = speed / fps:
of each instant the frame whose own time stamp lies nearest. A part that holds more than F instants is cut into windows
of F, as few as cover it, spread evenly; they may overlap. Times are seconds from the first frame of the clip.
"""
from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import numpy as np

from .errors import BadInput

SLOWEST = 0.5          # a clip that is too short is played slower by itself, but not slower than this


@dataclass(frozen=True)
class Sampling:
    """chosen: the number of the clip's frame for each instant; times: its time stamp. start, step: the instants in
    seconds; speed: of what is seen against the clip. windows: each one's first instant; length: their F."""

    chosen: tuple[int, ...]
    times: tuple[float, ...]
    start: float
    step: float
    speed: float
    windows: tuple[int, ...]
    length: int

    @property
    def end(self) -> float:
        """Of the part, in seconds: when the frame after its last one would be shown."""
        return self.start + len(self.chosen) * self.step

    @property
    def uneven(self) -> float:
        """Seconds: the farthest that a chosen frame lies from its instant."""
        return max(abs(time - self.start - k * self.step) for k, time in enumerate(self.times))

    @property
    def repeated(self) -> int:
        """How many frames are there a second time, because the clip shows fewer a second than the base."""
        return len(self.chosen) - len(set(self.chosen))

    def facts(self) -> dict[str, object]:
        """What is written beside the frames."""
        return {**asdict(self), "uneven": self.uneven}


def sample(times: np.ndarray | None, count: int, *, fps: float, frames: int, start: float = 0.0,
           seconds: float | None = None, speed: float | None = None, what: str = "the clip") -> Sampling:
    """times: each frame's time stamp (count,), None for pictures that carry none: they are taken as one of the base's
    frames each. fps, frames: of the base. start, seconds: the part that is meant; without seconds F frames of it.
    speed: 2 shows twice as much of the clip in the same number of frames.

    A clip that is too short for F frames, or `seconds` that is, is played slower, down to SLOWEST unless `speed` says
    so. Raises BadInput where a part lies outside the clip, does not go together with `speed`, or shows one frame only.
    """
    if count < min(frames, 2):
        raise BadInput(f"{what} holds {('no frame', 'one picture')[count]}, so there is no motion",
                       "give a clip of several")
    times = np.arange(count) / fps if times is None else np.asarray(times, float)
    last, slack = float(times[-1]), float(np.median(np.diff(times))) / 2 if count > 1 else 0.0
    if start > last:
        raise BadInput(f"{what} shows its last frame at {last:.2f} s, and the part asked for begins at {start:g} s",
                       "lower --start")
    step = (speed or 1.0) / fps
    instants = frames if seconds is None else round(seconds / step)
    if instants < frames:                                             # fewer than the base makes: played slower
        step, instants = seconds / frames, frames
        _slower(what, f"{seconds:g} s of it", speed, step * fps)
    if start + (instants - 1) * step > last + slack:
        left = last - start
        if seconds is not None or frames < 2 or left <= 0:
            raise BadInput(f"{what} shows its last frame at {last:.2f} s; the part asked for ends at "
                           f"{start + (instants - 1) * step:.2f} s", "lower --start or --seconds")
        step = left / (frames - 1)
        _slower(what, f"{left + 2 * slack:.2f} s of it from {start:g} s on", speed, step * fps)
    wanted = start + step * np.arange(instants)
    chosen = _nearest(times, wanted)
    if instants > 1 and len(set(chosen.tolist())) < 2:
        raise BadInput(f"{what} shows one picture from {wanted[0]:.2f} s to {wanted[-1]:.2f} s, so there is no motion",
                       "choose another part of it: --start, --seconds")
    windows = np.linspace(0, instants - frames, math.ceil(instants / frames)).round().astype(int)
    return Sampling(tuple(chosen.tolist()), tuple(times[chosen].tolist()), start, step, step * fps,
                    tuple(windows.tolist()), frames)


def _slower(what: str, part: str, typed: float | None, needed: float) -> None:
    """Raise BadInput where a part is not played at the speed needed."""
    if typed is not None and abs(typed - needed) > 0.01 * needed:
        raise BadInput(f"{what} has {part}, too little at --speed {typed:g}", f"use --speed {needed:.2f}")
    if typed is None and needed < SLOWEST:
        raise BadInput(f"{what} has {part}, and would have to be played {needed:.2f} times as fast",
                       f"give a longer clip, or say --speed {needed:.2f}")


def _nearest(times: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The number of the time stamp nearest to each instant; of two as near, the earlier."""
    if len(times) == 1:
        return np.zeros(len(wanted), int)
    after = np.clip(np.searchsorted(times, wanted), 1, len(times) - 1)
    return np.where(wanted - times[after - 1] <= times[after] - wanted, after - 1, after)
