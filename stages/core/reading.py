"""What the process apart (codecs.py) does with a file: times, frames, photos, masks. Everyone else asks video.py.

partial: of a damaged clip what comes before the damage is taken, where else it is refused.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from .containers import look
from .decode import frames_of
from .errors import BadInput
from .framing import fit_size
from .pictures import (
    animation_times,
    beginning,
    count_pictures,
    is_picture,
    opened,
    read_animation,
    read_mask,
    read_photo,
    strip_of,
)

__all__ = ["count_pictures", "extent", "frames", "is_picture", "read_mask", "read_photo", "read_strip"]


def extent(path: Path, partial: bool = False) -> tuple[np.ndarray | None, int, int]:
    """(seconds of each frame from the first one, float64 (F,), None where there are no time stamps; F; how many the
    file says it has)."""
    if not is_picture(path, partial=partial):
        film = look(path, partial=partial)
        return film.times, len(film.times), film.of
    count = count_pictures(path, partial=partial)
    of = max(count, beginning(path)[1]) if partial and count > 1 else count
    return animation_times(path, partial=partial), count, of


def frames(path: Path, at: Sequence[int] | None = None, size: Sequence[int] | None = None, partial: bool = False
           ) -> Iterator[tuple[int, np.ndarray]]:
    """(number, uint8 (H, W, 3)) of these frames (None: of all), each once and in ascending order, none held; at `size`
    (H, W) where that is said."""
    film = None if is_picture(path, partial=partial) else look(path, partial=partial)
    count = len(film.times) if film else count_pictures(path, partial=partial)
    numbers = range(count) if at is None else at
    if far := [number for number in numbers if not 0 <= number < count]:
        raise BadInput(f"{path} holds {count} frames, there is no frame {far[0]}", f"The last one is {count - 1}")
    for number, picture in frames_of(film, numbers) if film else read_animation(path, numbers, partial=partial):
        yield number, fit_size(picture[None], size)[0] if size else picture


def read_strip(path: Path) -> Iterator[tuple[int, np.ndarray]]:
    """(number, uint8 (H, W, 3)) of the frames in a strip of video.write_frames. Raises BadInput for any other file."""
    with opened(path) as picture:
        count = strip_of(picture)
    if not count:
        raise BadInput(f"{path} is no strip of frames as `sample` writes it", "Delete it, and make the sample again")
    yield from read_animation(path)
