"""Does each subject look like itself, and like nobody else? And does the clip's actor show through? **Ours**.

Nothing is skipped: a frame in which a subject is missing counts as 0. Each score stands beside its null (another
subject's photos) and its oracle (the subject's own photos against each other) and is given normalised between the two,
frame by frame, cut to 0..1.

Legend: F frames, N subjects of the video, K subjects of the project, P pieces of a frame, D width of a vector.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .looks import Gallery

LEAK = 0.1          # above this the clip's actor shows through; see `leak`


def identity(likeness_FK: np.ndarray, presence_F: np.ndarray, name: str, gallery: Gallery) -> dict[str, float]:
    """score: the mean over all frames of the likeness to the subject's own photos. null, oracle: of the gallery.
    normalised: the mean over all frames of it between these, 0 where the subject is missing."""
    k = gallery.names.index(name)
    share = np.clip(gallery.normalised(likeness_FK)[:, k], 0, 1)
    return {"score": float(np.where(presence_F, likeness_FK[:, k], 0.0).mean()), "null": float(gallery.null[k]),
            "oracle": float(gallery.oracle[k]), "normalised": float(np.where(presence_F, share, 0.0).mean())}


def confusion(likeness: Mapping[str, np.ndarray]) -> np.ndarray:
    """{subject: (F, K), 0 where missing} -> (N, K): how much each subject's track is like each subject's photos."""
    return np.stack([own.mean(0) for own in likeness.values()])


def margins(matrix_NK: np.ndarray, subjects: Sequence[str], gallery: Gallery) -> dict[str, float]:
    """By how much each subject is more like itself than like whom it is most like among all the others of the project
    (where there is none, than another's photo would be). 0 for one that is nowhere."""
    out = {}
    for name, row in zip(subjects, matrix_NK):
        k = gallery.names.index(name)
        others = np.delete(row, k)
        out[name] = float(row[k] - (others.max() if len(others) else gallery.null[k] if row[k] else 0.0))
    return out


def bleed(likeness: Mapping[str, np.ndarray], presence: Mapping[str, np.ndarray], gallery: Gallery
          ) -> dict[str, float]:
    """Of the frames that show a subject, the share in which it looks more like another subject of the video than like
    itself (normalised); 1 for one that is nowhere, 0 in a video of one subject."""
    columns = [gallery.names.index(name) for name in likeness]
    out = {}
    for n, (name, own) in enumerate(likeness.items()):
        shares = gallery.normalised(own)[:, columns]
        others = np.delete(shares, n, 1)
        there = np.asarray(presence[name], bool)
        more = (others.max(1) > shares[:, n]) if others.shape[1] else np.zeros(len(own), bool)
        out[name] = float(more[there].mean()) if there.any() else 1.0
    return out


# -- the clip's actors ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Actors:
    """The actors of a clip. vectors: {actor: (F, D)}, their looks in the frames that show them."""

    vectors: Mapping[str, Tensor]

    def shown(self, pieces: Sequence[Tensor], actor: str, subjects: Mapping[str, Tensor]) -> float:
        """How much of an actor's look is to be seen in a video, 0 to 1: the mean over all frames of the likeness of the
        piece that is most like it, between that of the subjects' photos (0: the most alike of them) and that of the
        actor's own frames to each other (1), cut to 0..1; 0 in a frame of no piece, and for an actor that the clip
        never shows. pieces: (P, D) of each frame. subjects: the photos of the subjects of the video, {name: (R, D)}."""
        own = self.vectors[actor]
        count = len(own)
        if not count:
            return 0.0
        among = own @ own.T
        oracle = float((among.sum() - among.trace()) / (count * (count - 1))) if count > 1 else 1.0
        null = max(float((photos @ own.T).mean(1).max()) for photos in subjects.values())
        most = [float((vectors @ own.T).mean(1).max()) if len(vectors) else null for vectors in pieces]
        return float(np.clip((np.array(most) - null) / max(oracle - null, 1e-3), 0, 1).mean())


def leak(shown: float, without: float) -> float:
    """The appearance leak: how much more of the actor's look is shown than by the control, the same video and seed
    without the motion LoRA.

    LEAK was set on rendered clips of 20 pairs of subjects (all places, five motions). One clean clip against another of
    the same pair: at most 0.084 (80 differences, median of their sizes 0.002). With the actors' colours mixed into the
    subjects' by half the larger leak of the two is above 0.1 in 80 % (median 0.52), by a fifth in 50 %."""
    return shown - without
