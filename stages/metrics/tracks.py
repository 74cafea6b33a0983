"""Masks of things -> a track for each subject: who is where in each frame. **Ours**.

1  A frame's mask falls into pieces: its connected parts, and, because things that touch are one part, each part that
   can hold two or three also cut into as many.
2  Each piece is compared with the photos of each subject (looks.py).
3  Over all frames at once, subjects take pieces that do not overlap: what is like the subject's photos, and not far
   from where the subject was in the frame before. A subject may take none in a frame: it is missing there.

A track is (F, 2): centres x, y in shares of the frame's width and height, NaN in a frame without the subject.
Legend: F frames, N subjects of the video, K subjects of the project, P pieces of a frame, D width of a vector.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from ..sprites.match import components
from .looks import Gallery, Looks
from .motion import track

LEAST = 0.01            # share of the frame that a piece has to fill
COARSE = 64             # pixels of the short side at which parts are told apart
WHOLE = 1.3             # a part larger than the usual thing by this factor may hold several
SEEN = 0.25             # normalised likeness above which a piece can be the subject
FAR = 0.5               # what the square of a way between two frames costs, frame widths, in normalised likeness
COVER = 0.3             # what it is worth, by the same measure, that pieces cover the whole mask of a frame
MOST = 7                # pieces of a frame that are looked at, for each subject, the largest first
BEST = 300              # choices of a frame that are weighed against those of the next


@dataclass(frozen=True)
class Track:
    """One subject through the video. masks: bool (F, H, W). path: (F, 2). likeness: (F, K) to the photos of each
    subject of the project, 0 where it is missing."""

    masks: np.ndarray
    path: np.ndarray
    likeness: np.ndarray

    @classmethod
    def of(cls, frames_FHWC: np.ndarray, masks_FHW: np.ndarray, looks: Looks, gallery: Gallery,
           path_F2: np.ndarray | None = None) -> Track:
        """Of masks that somebody else drew, for example the pixel oracle. path: where it says the centres are."""
        there = np.flatnonzero(masks_FHW.any((1, 2)))
        likeness = np.zeros((len(masks_FHW), len(gallery.names)))
        if len(there):
            likeness[there] = gallery.likeness(looks(frames_FHWC[there], masks_FHW[there]))
        path = np.full((len(masks_FHW), 2), np.nan)
        path[there] = (track(masks_FHW) if path_F2 is None else path_F2)[there]
        return cls(masks_FHW, path, likeness)

    @property
    def presence(self) -> np.ndarray:
        """bool (F,)."""
        return np.isfinite(self.path[:, 0])


@dataclass(frozen=True)
class Found:
    """tracks: {subject: its track}. vectors: of each frame, the looks (P, D) of every piece, whoever took it."""

    tracks: dict[str, Track]
    vectors: list[Tensor]


def follow(frames_FHWC: np.ndarray, masks_FHW: np.ndarray, subjects: Sequence[str], looks: Looks, gallery: Gallery
           ) -> Found:
    """Where each of the subjects is, if all of them are somewhere in the masks. subjects: of the gallery."""
    cut = pieces(masks_FHW, len(subjects))
    flat = [(f, mask) for f, own in enumerate(cut) for mask in own]
    vectors = looks([frames_FHWC[f] for f, _ in flat], [mask for _, mask in flat])
    starts = np.cumsum([0, *(len(own) for own in cut)])
    like = [gallery.likeness(vectors[a:b]) for a, b in zip(starts, starts[1:])]
    columns = [gallery.names.index(name) for name in subjects]
    chosen = assign(cut, [gallery.normalised(own)[:, columns] - SEEN for own in like])
    out = {}
    for n, name in enumerate(subjects):
        masks, likeness = np.zeros(masks_FHW.shape, bool), np.zeros((len(cut), len(gallery.names)))
        for f, state in enumerate(chosen):
            if state[n] is not None:
                masks[f], likeness[f] = cut[f][state[n]], like[f][state[n]]
        out[name] = Track(masks, track(masks), likeness)
    return Found(out, [vectors[a:b] for a, b in zip(starts, starts[1:])])


def together(found: Sequence[Found]) -> Found:
    """What was found of several groups of subjects in one video."""
    return Found({name: own for one in found for name, own in one.tracks.items()},
                 [torch.cat(parts) for parts in zip(*(one.vectors for one in found))])


# -- pieces ---------------------------------------------------------------------------------------------------------
def pieces(masks_FHW: np.ndarray, count: int) -> list[list[np.ndarray]]:
    """bool (F, H, W) of things, of which `count` are looked for -> for each frame masks (H, W): the parts, and the
    larger ones cut into two, up to `count`."""
    masks = np.asarray(masks_FHW, bool)
    step = max(1, min(masks.shape[1:]) // COARSE)
    labels = components(masks[:, step // 2::step, step // 2::step])
    labels = labels.repeat(step, 1).repeat(step, 2)[:, :masks.shape[1], :masks.shape[2]]
    short = [(0, have - got) for have, got in zip(masks.shape, labels.shape)]
    labels = np.pad(labels, short, mode="edge") * masks
    parts = [[label == name for name in np.unique(label[label > 0])] for label in labels]
    parts = [[part for part in own if part.mean() >= LEAST] for own in parts]
    usual = _usual([[float(part.sum()) for part in own] for own in parts], count)
    out = []
    for own in parts:
        found = [*own, *([np.any(own, 0)] if count == 1 and len(own) > 1 else [])]    # one thing half hidden
        for part in own:
            for into in range(2, count + 1):
                if part.sum() > WHOLE * usual * (into - 1):
                    found += [piece for piece in _cut(part, into) if piece.mean() >= LEAST]
        out.append(sorted(found, key=lambda piece: -piece.sum())[:MOST * count])
    return out


def _usual(areas: Sequence[Sequence[float]], count: int) -> float:
    """The usual area of one thing: of the frames that show at least `count` apart, the median of their largest; else
    the median frame's share for each."""
    apart = [area for own in areas if len(own) >= count for area in sorted(own)[-count:]]
    return float(np.median(apart)) if apart else float(np.median([sum(own) for own in areas])) / count


def _cut(part_HW: np.ndarray, into: int) -> list[np.ndarray]:
    """A part cut into pieces of about one size by k-means of its pixels' places, begun along each of four lines."""
    places = np.argwhere(part_HW).astype(float)
    middle, found = places.mean(0), {}
    for angle in np.pi * np.arange(4) / 4:
        line = (places - middle) @ (np.sin(angle), np.cos(angle))
        centres = np.stack([places[np.abs(line - q).argmin()] for q in
                            np.quantile(line, (np.arange(into) + 0.5) / into)])
        for _ in range(10):
            near = np.square(places[:, None] - centres[None]).sum(-1).argmin(1)
            centres = np.stack([places[near == k].mean(0) if (near == k).any() else centres[k] for k in range(into)])
        for k in range(into):
            piece = np.zeros(part_HW.shape, bool)
            piece[tuple(places[near == k].astype(int).T)] = True
            found.setdefault(piece.tobytes(), piece)
    return list(found.values())


# -- who takes which --------------------------------------------------------------------------------------------------
def assign(cut: Sequence[Sequence[np.ndarray]], worth: Sequence[np.ndarray]) -> list[tuple[int | None, ...]]:
    """The best choice through the video -> for each frame the piece of each subject. worth: (P, N) of each frame, what
    it is worth that the subject takes the piece (taking none is worth 0)."""
    options = [_states(own, value) for own, value in zip(cut, worth)]
    centres = [np.array([track(piece[None])[0] for piece in own]).reshape(-1, 2) for own in cut]
    best, back = options[0][1], []
    for f in range(1, len(options)):
        away = np.square(centres[f][:, None] - centres[f - 1][None]).sum(-1)
        away = np.pad(away, ((0, 1), (0, 1)))                               # to none and from none is no way
        ways = sum(away[options[f][0][:, n, None], options[f - 1][0][None, :, n]] for n in range(worth[f].shape[1]))
        whole = best[None] - FAR * ways
        back.append(whole.argmax(1))
        best = whole.max(1) + options[f][1]
    path = [int(best.argmax())]
    for step in reversed(back):
        path.append(int(step[path[-1]]))
    return [tuple(None if k == len(cut[f]) else int(k) for k in options[f][0][state])
            for f, state in enumerate(reversed(path))]


def _states(own: Sequence[np.ndarray], worth_PN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every way to give pieces that do not overlap to subjects, none of them at a loss: (S, N) pieces, P for none, and
    what each is worth (S,); the BEST of them."""
    clash = np.array([[bool((a & b).any()) for b in own] for a in own]).reshape(len(own), len(own))
    areas = [float(piece.sum()) for piece in own]
    whole = max(1.0, float(np.any(own, 0).sum())) if len(own) else 1.0
    states, scores = [], []
    for state in product(*([len(own), *np.flatnonzero(column > 0).tolist()] for column in worth_PN.T)):
        taken = [k for k in state if k < len(own)]
        if not any(clash[a, b] for i, a in enumerate(taken) for b in taken[i + 1:]):
            states.append(state)
            scores.append(sum(worth_PN[k, n] for n, k in enumerate(state) if k < len(own))
                          + COVER * sum(areas[k] for k in taken) / whole)
    order = np.argsort(-np.array(scores), kind="stable")[:BEST]
    return np.array(states)[order], np.array(scores)[order]
