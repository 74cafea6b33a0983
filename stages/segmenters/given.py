"""given: masks that a person drew, or that another program made: a folder with a sub-folder of pictures per phrase.

    masks/person/0000.png 0001.png ...   masks/tall-horse/0000.png ...      white inside, black outside
"""
from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..core.errors import BadInput, UsageError
from ..core.framing import fit_size
from ..core.video import list_images, read_mask
from ..core.vision import checked_frames
from . import Hint, Masks, Setup, Source, no_hints


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

    def masks(self, frames: np.ndarray, phrases: Sequence[str], hints: Sequence[Hint] = (),
              source: Source | None = None) -> dict[str, Masks]:
        """One mask per picture, by the photo's name or in natural order; or one for every frame of the clip that the
        frames were taken from. They are brought to the frames' size, and may overlap: they are kept as drawn. Raises
        BadInput where a phrase, a picture or the aspect is missing or differs."""
        no_hints(hints, "given")
        count, *size = checked_frames(frames).shape[:3]
        tracks = {phrase: self._read(phrase, count, tuple(size), source) for phrase in dict.fromkeys(phrases)}
        return {phrase: Masks(track, track.any((1, 2)).astype(np.float64)) for phrase, track in tracks.items()}

    def _read(self, phrase: str, count: int, size: tuple[int, int], source: Source | None) -> np.ndarray:
        folder = self._folder_of(phrase)
        paths = list_images(folder)
        by_name = {path.stem: path for path in paths}
        if source and source.names and set(source.names) <= by_name.keys():
            paths = [by_name[source.names[k]] for k in source.chosen]
        elif source and len(paths) == source.count:
            paths = [paths[k] for k in source.chosen]
        elif len(paths) != count:
            whole = f" (nor one for each of the {source.count} of the clip)" if source and source.count > count else ""
            raise BadInput(f"{folder} holds {len(paths)} masks for {count} pictures{whole}",
                           "draw one for each, an all black one where the actor is not in sight")
        return np.stack([self._fitted(path, size, source) for path in paths])

    def _fitted(self, path: Path, size: tuple[int, int], source: Source | None) -> np.ndarray:
        """One mask at the frames' size: drawn on the frames, or on the picture that they were cut out of."""
        mask = read_mask(path)
        shape = mask.shape
        if _alike(shape, size):
            return fit_size(mask[None], size)[0]
        if source and _alike(shape, source.shape):
            return fit_size(mask[None], size, source.fit)[0]
        raise BadInput(f"the mask {path} is {shape[1]} x {shape[0]}, and the pictures {size[1]} x {size[0]}",
                       "draw it at the pictures' size, or at least in their aspect")

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


def _alike(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether two sizes have one aspect, up to rounding to whole pixels."""
    return abs(a[0] * b[1] - a[1] * b[0]) <= max(*a, *b)
