"""given: masks that a person drew, or that another program made: a folder with a sub-folder of pictures per phrase.

    masks/person/0000.png 0001.png ...   masks/tall-horse/0000.png ...      white inside, black outside
"""
from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..core.errors import BadInput, UsageError
from ..core.video import read_masks
from ..core.vision import checked_frames
from . import Hint, Masks, Setup, no_hints


class Given:
    """Of the setup: masks, the folder. usual: its sub-folders."""

    def __init__(self, setup: Setup) -> None:
        if setup.masks is None:
            raise UsageError("the segmenter 'given' was given no masks",
                             "name their folder: --masks FOLDER, with a sub-folder of PNGs for each actor")
        self.folder = Path(setup.masks)
        if not self.folder.is_dir():
            raise BadInput(f"{self.folder} is not a folder", "--masks takes a folder with a sub-folder for each actor")

    @property
    def usual(self) -> tuple[str, ...]:
        return tuple(sorted(path.name for path in self.folder.iterdir() if path.is_dir()))

    def masks(self, frames: np.ndarray, phrases: Sequence[str], hints: Sequence[Hint] = ()) -> dict[str, Masks]:
        """One picture per frame, in natural order of their names, brought to the frames' size. Masks may overlap: they
        are kept as drawn. Raises BadInput where a phrase, a picture or the aspect is missing or differs."""
        no_hints(hints, "given")
        count, *size = checked_frames(frames).shape[:3]
        tracks = {phrase: self._read(phrase, count, tuple(size)) for phrase in dict.fromkeys(phrases)}
        return {phrase: Masks(track, track.any((1, 2)).astype(np.float64)) for phrase, track in tracks.items()}

    def _read(self, phrase: str, count: int, size: tuple[int, int]) -> np.ndarray:
        folder = self._folder_of(phrase)
        track = read_masks(folder)
        if len(track) != count:
            raise BadInput(f"{folder} holds {len(track)} masks for {count} pictures",
                           "draw one for each, an all black one where the actor is not in sight")
        if track.shape[1:] == size:
            return track
        (tall, wide), (height, width) = track.shape[1:], size
        if abs(tall * width - wide * height) > max(tall, wide, height, width):      # more than rounding to whole pixels
            raise BadInput(f"the masks in {folder} are {wide} x {tall}, and the pictures {width} x {height}",
                           "draw them at the pictures' size, or at least in their aspect")
        return read_masks(folder, size)

    def _folder_of(self, phrase: str) -> Path:
        """The sub-folder named like the phrase; capitals, spaces and hyphens do not count."""
        if (self.folder / phrase).is_dir():
            return self.folder / phrase
        there = sorted(path for path in self.folder.iterdir() if path.is_dir())
        for path in there:
            if _plain(path.name) == _plain(phrase):
                return path
        found = ", ".join(path.name for path in there) or "none"
        raise BadInput(f"{self.folder} has no sub-folder for '{phrase}' (it has: {found})",
                       f"put one PNG per picture into {self.folder / (_plain(phrase) or 'mask')}")


def _plain(name: str) -> str:
    return re.sub(r"\W+|_", "-", name.lower()).strip("-")
