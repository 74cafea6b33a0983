"""The photos of a subject at the size of the base, and where the subject is in them, if they were segmented.

Rule: `cover` cuts a photo to the base's aspect around the subject, or around its own middle where it was not segmented;
`contain` keeps all of it and fills up the rest. A mask stands for its photo by its name.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .core.framing import Box, box_of, cut_out, fit_size, frame_box
from .core.hashes import sha256
from .core.report import Report, silent
from .core.video import photos_of, read_mask
from .core.workspace import kept_names

COPIES = "photos"       # folder beside masks/ with the photos that they were drawn on


@dataclass(frozen=True)
class Photo:
    """picture: uint8 (H, W, 3), upright, of its own size. mask: bool (H, W), None where it was not segmented."""

    picture: np.ndarray
    mask: np.ndarray | None = None

    @property
    def around(self) -> Box | None:
        return None if self.mask is None else box_of(self.mask)

    def fitted(self, size: tuple[int, int], fit: str = "cover") -> Photo:
        """The same at `size` (H, W)."""
        mask = None if self.mask is None else fit_size(self.mask[None], size, fit, self.around)[0]
        return Photo(fit_size(self.picture[None], size, fit, self.around)[0], mask)

    def holding(self, size: tuple[int, int]) -> Photo:
        """At `size`, with the whole of the subject in it: covering where it fits in, else the whole photo."""
        left, top, right, bottom = frame_box(self.picture.shape[:2], size, "cover", self.around)
        box = self.around or (left, top, right, bottom)
        inside = left <= box[0] and top <= box[1] and box[2] <= right and box[3] <= bottom
        return self.fitted(size, "cover" if inside else "contain")

    def cut_out(self) -> np.ndarray:
        """The subject alone, on grey, in the square around it -> uint8 (S, S, 3); without a mask the picture."""
        return self.picture if self.around is None else cut_out(self.picture, self.mask)


def read_photos(paths: Sequence[Path], masks: Path | None = None, report: Report = silent) -> list[Photo]:
    """The photos and, from subjects/NAME/masks, their masks: what any of its folders marks. Which is whose, the content
    of the photos says that they were drawn on, where `segment` left copies of those; else the names. A photo that has
    no mask, or an empty one, counts as not segmented, and the report says so."""
    pictures = list(photos_of(paths))
    found: list[np.ndarray | None] = [None] * len(pictures)
    names: list[str | None] = list(kept_names(paths))
    if masks and (copies := masks.parent / COPIES).is_dir():
        drawn_on = {sha256(path): path.stem for path in copies.iterdir() if path.is_file()}
        names = [drawn_on.get(sha256(Path(path))) for path in paths]
    for k, (name, picture) in enumerate(zip(names, pictures)):
        for path in sorted(masks.glob("*/")) if masks else ():
            if name is not None and (own := path / f"{name}.png").is_file():
                mask = fit_size(read_mask(own)[None], picture.shape[:2])[0]
                found[k] = mask if found[k] is None else found[k] | mask
        if masks and (found[k] is None or not found[k].any()):
            report(note=f"the photo {Path(paths[k]).name} has no mask: its middle is looked at")
            found[k] = None
    return [Photo(picture, mask) for picture, mask in zip(pictures, found)]
