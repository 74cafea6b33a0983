"""Pictures as they stand in the page: data URIs, the frames of a video as a grid in one of them."""
from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..core.framing import fit_size
from ..core.sheets import tinted

EXACT = 2**20           # pixels of all frames together, up to which a video is kept lossless
SHORT = 192             # pixels: the short side to which everything else is reduced
COLUMNS = 4             # frames beside one another in a grid
QUALITY = 88            # of a JPEG


@dataclass(frozen=True)
class Picture:
    """uri: data:image/png or jpeg. width, height: pixels."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Sheet:
    """The frames of a video in one picture, row by row. width, height: pixels of a frame; exact: they are the video's
    own, every pixel."""

    uri: str
    frames: int
    columns: int
    width: int
    height: int
    exact: bool


def sheet(frames_FHWC: np.ndarray, *, exact: bool = True) -> Sheet:
    """uint8 (F, H, W, 3) -> a grid. exact: lossless as long as the frames have no more than EXACT pixels, so that the
    page shows what was scored; above, and for what is not asked to be exact, whichever of PNG and JPEG is smaller."""
    exact = exact and frames_FHWC[..., 0].size <= EXACT
    frames = frames_FHWC if exact else fit_size(frames_FHWC, fitting(frames_FHWC.shape[1:3]))
    count, height, width = frames.shape[:3]
    columns = min(count, COLUMNS)
    rows = -(-count // columns)
    grid = np.full((rows * columns, height, width, 3), 255, np.uint8)
    grid[:count] = frames
    whole = grid.reshape(rows, columns, height, width, 3).swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    return Sheet(_uri(whole, lossless=exact), count, columns, width, height, exact)


def picture(pixels_HWC: np.ndarray) -> Picture:
    return Picture(_uri(pixels_HWC, lossless=False), pixels_HWC.shape[1], pixels_HWC.shape[0])


def drawn(frames_FHWC: np.ndarray, masks: Mapping[str, np.ndarray]) -> np.ndarray:
    """Frames with each mask {name: bool (F, H, W)} outlined over a tint; as they are where there is none."""
    return tinted(frames_FHWC, masks) if masks else frames_FHWC


def fitting(shape: tuple[int, int]) -> tuple[int, int]:
    """(H, W) with a short side of no more than SHORT."""
    scale = min(1.0, SHORT / min(shape))
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _uri(pixels_HWC: np.ndarray, *, lossless: bool) -> str:
    image, kinds = Image.fromarray(pixels_HWC), {}
    for kind, how in (("png", {"optimize": True}), ("jpeg", {"quality": QUALITY, "subsampling": 0})):
        buffer = io.BytesIO()
        image.save(buffer, kind, **how)
        kinds[kind] = buffer.getvalue()
        if lossless:
            break
    kind = min(kinds, key=lambda name: len(kinds[name]))
    return f"data:image/{kind};base64,{base64.b64encode(kinds[kind]).decode()}"
