"""CutMix compositions of single-subject videos or photos (METHOD 4, supplement 7.1), and recast clips: numpy only.

The paper cuts both subjects out by mask and places them "onto a clean background video" with "some degree of overlap".
**Ours**: the clean background is the rearmost subject's own video with the subject taken out (each hidden pixel becomes
the median over the frames that show it; what no frame shows grows in from its surroundings); place, scale and who is in
front are drawn at random, and among random placements the first within the allowed overlap is taken. A subject cut from
a photo does not move: it is carried along a straight line drawn at random (on the sprites base compositions that stood
still did far worse, one run).
Frames: uint8 (F, H, W, 3). Masks: bool (F, H, W). N subjects. Shifts and boxes are in pixels.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from PIL import Image

TRIES = 64
SCALES = (0.7, 1.0)        # of the subject's size in its own video


@dataclass(frozen=True)
class Cut:
    """One subject in its video: frames (F, H, W, 3) uint8 and masks (F, H, W) bool of where it is. still: every frame
    is the same photo."""

    frames: np.ndarray
    masks: np.ndarray
    still: bool = False

    @classmethod
    def of_photo(cls, photo_HW3: np.ndarray, mask_HW: np.ndarray, frames: int) -> Cut:
        """A photo as a video of `frames` frames in which nothing moves."""
        return cls(np.repeat(photo_HW3[None], frames, 0), np.repeat(mask_HW[None], frames, 0), still=True)


@dataclass(frozen=True)
class Composition:
    """frames (F, H, W, 3) uint8; masks (N, F, H, W) bool: what is VISIBLE of each subject, in the order of the cuts."""

    frames: np.ndarray
    masks: np.ndarray


def cutmix(cuts: Sequence[Cut], rng: np.random.Generator, overlap: float) -> Composition:
    """All subjects in one video. overlap: the largest share of the smaller one's pixels that any two may share."""
    depth = rng.permutation(len(cuts)).tolist()                                     # rearmost first
    best, least = None, np.inf
    for _ in range(TRIES):
        placed = [place(cut, float(rng.uniform(*SCALES)), rng) for cut in cuts]
        shared = max(overlap_share(a.masks, b.masks) for a, b in combinations(placed, 2))
        if shared < least:
            best, least = placed, shared
        if shared <= overlap:
            break
    return compose(best, depth, clean_background(cuts[depth[0]]))


def compose(placed: Sequence[Cut], depth: Sequence[int], background: np.ndarray) -> Composition:
    """Paint from rear to front: each subject hides what it covers. depth: indices of `placed`, the rearmost first."""
    frames, masks = background.copy(), np.stack([cut.masks for cut in placed])
    for at, n in enumerate(depth):
        frames[placed[n].masks] = placed[n].frames[placed[n].masks]
        masks[list(depth[:at])] &= ~placed[n].masks
    return Composition(frames, masks)


def place(cut: Cut, scale: float, rng: np.random.Generator) -> Cut:
    """The subject, scaled, somewhere wholly inside the frame (same shapes): its own movement is kept; a still one goes
    from that place to another along a straight line."""
    count, height, width = cut.masks.shape
    rows, columns = (np.flatnonzero(cut.masks.any(axis)) for axis in ((0, 2), (0, 1)))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    tall, wide = max(1, round((bottom - top) * scale)), max(1, round((right - left) * scale))
    start, end = (rng.integers((height - tall + 1, width - wide + 1)) for _ in range(2))
    corners = np.linspace(start, end if cut.still else start, count).round().astype(int)
    frames, masks = np.zeros_like(cut.frames), np.zeros_like(cut.masks)
    for f, (y, x) in enumerate(corners):
        box, there = np.s_[f, top:bottom, left:right], np.s_[f, y:y + tall, x:x + wide]
        frames[there], masks[there] = _resized(cut.frames[box], cut.masks[box], tall, wide)
    return Cut(frames, masks, cut.still)


def recast(frames: np.ndarray, tracks: Sequence[np.ndarray], cuts: Sequence[Cut], hidden: np.ndarray | None = None
           ) -> Composition:
    """A clip in which each cut stands where its actor stood. tracks: the actors' masks, (F, H, W) bool each, in the
    order of the cuts, which have as many frames. Centre of mass lies on centre of mass in every frame. The size is one
    for the clip, the actor's area in the median of the frames that show it (an actor half hidden would shrink its
    subject); the first cut is rearmost. A frame without the actor is one without its subject. hidden: bool (F, H, W),
    what is taken out of the clip; None: the tracks."""
    placed = [_stand_in(cut, track) for cut, track in zip(cuts, tracks, strict=True)]
    empty = clean_background(Cut(frames, np.any(tracks, axis=0) if hidden is None else hidden))
    return compose(placed, range(len(placed)), empty)


def _stand_in(cut: Cut, track: np.ndarray) -> Cut:
    """The subject in its actor's place. Of another shape it may reach over the frame's edge where the actor does not:
    then it is moved in. What leaves the frame with the actor is cut off."""
    count, height, width = track.shape
    areas = track.sum((1, 2))
    frames, masks = np.zeros((count, height, width, 3), np.uint8), np.zeros_like(track)
    for f in np.flatnonzero(areas):
        ys, xs = np.nonzero(cut.masks[f])
        if not len(ys):
            continue
        box = np.s_[ys.min():ys.max() + 1, xs.min():xs.max() + 1]
        factor = (np.median(areas[areas > 0]) / len(ys)) ** 0.5
        tall, wide = (max(1, round((at.max() + 1 - at.min()) * factor)) for at in (ys, xs))
        picture, mask = _resized(cut.frames[f][box], cut.masks[f][box], tall, wide)
        if not mask.any():
            continue
        y, x = (round(to.mean() - at.mean()) for to, at in zip(np.nonzero(track[f]), np.nonzero(mask)))
        y, x = _inside(y, tall, track[f].any(1)), _inside(x, wide, track[f].any(0))
        rows, columns = slice(max(0, y), min(height, y + tall)), slice(max(0, x), min(width, x + wide))
        part = np.s_[rows.start - y:rows.stop - y, columns.start - x:columns.stop - x]
        frames[f, rows, columns], masks[f, rows, columns] = picture[part], mask[part]
    return Cut(frames, masks)


def _inside(start: int, length: int, actor: np.ndarray) -> int:
    """Where along one axis the box begins. actor: bool, the rows or columns that show the actor."""
    low = 0 if not actor[0] else start
    high = max(low, len(actor) - length) if not actor[-1] else start
    return min(max(start, low), max(high, low))


def _resized(picture_HW3: np.ndarray, mask_HW: np.ndarray, tall: int, wide: int) -> tuple[np.ndarray, np.ndarray]:
    picture, mask = Image.fromarray(picture_HW3), Image.fromarray(mask_HW.astype(np.uint8) * 255)
    how = Image.Resampling.BILINEAR
    return np.asarray(picture.resize((wide, tall), how)), np.asarray(mask.resize((wide, tall), how)) > 127


def overlap_share(a: np.ndarray, b: np.ndarray) -> float:
    """Shared pixels as a share of the smaller subject's, over all frames."""
    return float((a & b).sum() / max(1, min(a.sum(), b.sum())))


def clean_background(cut: Cut) -> np.ndarray:
    """The video without its subject -> uint8 (F, H, W, 3). The mask is grown a little first: what it missed of
    the subject would stay as a ghost."""
    hidden = grow(cut.masks, max(1, cut.masks.shape[1] // 16))
    shown = np.where(hidden[..., None], np.nan, cut.frames.astype(np.float32))
    known = ~hidden.all(0)
    still = np.full(cut.frames.shape[1:], 127.0, np.float32)              # where nothing at all is known: mid grey
    still[known] = np.nanmedian(shown[:, known], 0)
    still = _fill(still, known)
    return np.where(hidden[..., None], np.round(still).astype(np.uint8), cut.frames)


def grow(masks_FHW: np.ndarray, by: int) -> np.ndarray:
    """Masks widened by `by` pixels in the four directions."""
    for _ in range(by):
        p = np.pad(masks_FHW, ((0, 0), (1, 1), (1, 1)))
        masks_FHW = p[:, 1:-1, 1:-1] | p[:, 2:, 1:-1] | p[:, :-2, 1:-1] | p[:, 1:-1, 2:] | p[:, 1:-1, :-2]
    return masks_FHW


def _fill(picture_HW3: np.ndarray, known_HW: np.ndarray) -> np.ndarray:
    """Unknown pixels take the mean of their known neighbours, ring by ring."""
    picture, known = picture_HW3.copy(), known_HW.copy()
    while known.any() and not known.all():
        total, count = np.zeros_like(picture), np.zeros(known.shape, np.float32)
        p = np.pad(np.where(known[..., None], picture, 0), ((1, 1), (1, 1), (0, 0)))
        k = np.pad(known, 1)
        for y, x in ((0, 1), (2, 1), (1, 0), (1, 2)):
            total += p[y:y + known.shape[0], x:x + known.shape[1]]
            count += k[y:y + known.shape[0], x:x + known.shape[1]]
        ring = ~known & (count > 0)
        picture[ring] = total[ring] / count[ring][:, None]
        known |= ring
    return picture
