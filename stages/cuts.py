"""Subjects cut out of pictures by a segmenter: for the compositions of fuse, and to recast the clip for sample."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from . import segmenters
from .core.cutmix import Cut, recast
from .core.errors import BadInput
from .core.report import Report, silent
from .core.video import read_clip, read_images
from .prompts import slug

SEEN = 0.5      # a video counts if its subject is found in at least this share of its frames


def from_videos(name: str, videos: Sequence[np.ndarray], finder: segmenters.Segmenter, class_word: str,
                report: Report = silent) -> list[Cut]:
    """The videos (F, H, W, 3) of one subject in which it was found, with its masks. Raises BadInput for none."""
    tracks = [np.asarray(finder.masks(video, [class_word])[class_word].masks) for video in videos]
    cuts = [Cut(video, track) for video, track in zip(videos, tracks) if track.any((1, 2)).mean() >= SEEN]
    return _counted(cuts, len(videos), f"videos that the LoRA of '{name}' makes", class_word,
                    "look at the subject's preview; then train it longer", report)


def from_photos(name: str, photos: Sequence[Path], shape: tuple[int, int, int], finder: segmenters.Segmenter,
                class_word: str, report: Report = silent) -> list[Cut]:
    """The photos of one subject in which it was found, with its masks. shape: (F, H, W), how often each is repeated and
    what size it is brought to. Raises BadInput for none."""
    frames, *size = shape
    pictures = read_images(photos, tuple(size))
    masks = np.asarray(finder.masks(pictures, [class_word])[class_word].masks)
    cuts = [Cut.of_photo(picture, mask, frames) for picture, mask in zip(pictures, masks) if mask.any()]
    return _counted(cuts, len(pictures), f"photos of '{name}'", class_word, "look at the photos", report)


def recast_clip(clip: Path, masks: Path, shape: tuple[int, int, int], roles: Mapping[str, str],
                cuts: Mapping[str, Sequence[Cut]]) -> np.ndarray:
    """The clip with a subject in the place of each actor that has one -> uint8 (F, H, W, 3), of this shape (F, H, W).
    roles: {actor: subject}. Of a subject's cuts the one that shows most of it is taken. Raises BadInput where the clip
    was not segmented for an actor."""
    frames, *size = shape
    how = {"frames": frames, "size": tuple(size)}
    absent = [actor for actor in roles if not (masks / slug(actor)).is_dir()]
    if absent:
        raise BadInput(f"the clip was segmented without '{absent[0]}'", "Run: videomage segment --force")
    frames_FHWC = read_clip(clip, **how)
    if not roles:
        return frames_FHWC
    tracks = [read_clip(masks / slug(actor), **how)[..., 0] > 127 for actor in roles]
    fullest = [max(cuts[subject], key=lambda cut: cut.masks.sum()) for subject in roles.values()]
    return recast(frames_FHWC, tracks, fullest).frames


def _counted(cuts: list[Cut], there: int, of: str, class_word: str, remedy: str, report: Report) -> list[Cut]:
    if not cuts:
        raise BadInput(f"no '{class_word}' was found in any of the {there} {of}",
                       f"{remedy}, lower --threshold, or give it a class word that the segmenter knows")
    if len(cuts) < there:
        report(note=f"a '{class_word}' is in sight in {len(cuts)} of {there} {of}")
    return cuts
