"""How a picture of any size becomes one of the size wanted: the stated rules, and nothing else decides.

cover     the largest part of the wanted aspect, its middle on the middle of the picture, or of what it shall be around,
          as far as the picture reaches; what lies outside is cut off
contain   the whole picture; what is missing to the wanted aspect is filled by repeating its edge

Then it is resized: whole-number reductions are exact means, everything else is Lanczos. Sizes are (H, W) in pixels.
"""
from __future__ import annotations

import numpy as np
from PIL import Image

FITS = ("cover", "contain")
MARGIN = 0.1            # of a cut-out's longer side, left around what is cut out
GREY = 127              # what a cut-out shows elsewhere
Box = tuple[float, float, float, float]                    # left, top, right, bottom in pixels


def frame_box(shape: tuple[int, int], size: tuple[int, int], fit: str = "cover", around: Box | None = None) -> Box:
    """The part of a picture of `shape` that becomes one of `size`. contain: it reaches beyond the picture. around: a
    box to put the middle of a covering part on; contain does not ask for it."""
    choose = min if fit == "cover" else max
    scale = choose(have / wanted for have, wanted in zip(shape, size))
    part = [wanted * scale for wanted in size]
    if around and fit == "cover":
        centres = ((around[1] + around[3]) / 2, (around[0] + around[2]) / 2)
    else:
        centres = (shape[0] / 2, shape[1] / 2)
    top, left = (min(max(centre - long / 2, 0), have - long) if long <= have else (have - long) / 2
                 for centre, long, have in zip(centres, part, shape))
    return left, top, left + part[1], top + part[0]


def box_of(mask_HW: np.ndarray) -> Box | None:
    """The smallest box around a mask, bool (H, W); None where it is empty."""
    rows, columns = (np.flatnonzero(mask_HW.any(axis)) for axis in (1, 0))
    return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1) if len(rows) else None


def cut_out(picture_HW3: np.ndarray, mask_HW: np.ndarray) -> np.ndarray:
    """What the mask marks, alone, on grey, in the square around it -> uint8 (S, S, 3). The mask is not empty."""
    left, top, right, bottom = box_of(mask_HW)
    side = max(right - left, bottom - top)
    reach = round(side * MARGIN)
    side += 2 * reach
    alone = np.where(mask_HW[..., None], picture_HW3, np.uint8(GREY))[top:bottom, left:right]
    out = np.full((side, side, 3), GREY, np.uint8)
    y, x = (side - alone.shape[0]) // 2, (side - alone.shape[1]) // 2
    out[y:y + alone.shape[0], x:x + alone.shape[1]] = alone
    return out


def fit_size(frames_FHWC: np.ndarray, size: tuple[int, int], fit: str = "cover", around: Box | None = None
             ) -> np.ndarray:
    """uint8 (F, H, W, 3), or masks bool (F, H, W) -> the same at `size`. An enlarged mask keeps its pixels; in a
    reduced one a pixel is in where at least half of it was. fit, around: see `frame_box`. contain: what is added to a
    mask is outside."""
    height, width = frames_FHWC.shape[1:3]
    if (height, width) == tuple(size):
        return frames_FHWC
    if is_mask := frames_FHWC.dtype == bool:
        frames_FHWC = frames_FHWC.astype(np.uint8) * 255
    left, top, right, bottom = frame_box((height, width), size, fit, around)
    pads = [int(np.ceil(max(0.0, beyond) - 1e-9)) for beyond in (-top, bottom - height, -left, right - width)]
    if any(pads):
        edges = ((0, 0), tuple(pads[:2]), tuple(pads[2:]), *((0, 0),) * (frames_FHWC.ndim - 3))
        frames_FHWC = np.pad(frames_FHWC, edges, "constant" if is_mask else "edge")
        left, top, right, bottom = left + pads[2], top + pads[0], right + pads[2], bottom + pads[0]
    scale = (bottom - top) / size[0]
    how = Image.Resampling.BOX if scale >= 1 and scale == int(scale) else Image.Resampling.LANCZOS
    if is_mask and scale < 1:
        how = Image.Resampling.NEAREST
    out = np.stack([np.asarray(Image.fromarray(f).resize(size[::-1], how, box=(left, top, right, bottom)))
                    for f in frames_FHWC])
    return out > 127 if is_mask else out
