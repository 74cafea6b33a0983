"""Subjects cut out of pictures by a segmenter: for the compositions of fuse, and to recast the clip for sample."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import segmenters
from .core.cache import Cache
from .core.cutmix import Cut, recast
from .core.denoise import go_on
from .core.edges import snapped
from .core.errors import BadInput
from .core.report import Report, silent
from .core.takes import read_take, read_track
from .core.workspace import Workspace
from .options import FuseOptions, SampleOptions, resolve
from .photos import Photo, read_photos
from .prompts import slug
from .segmenters import Segmenter, Setup, models

SEEN = 0.5      # a video counts if its subject is found in at least this share of its frames


def setup_of(project: Workspace, threshold: float, device: str, instances: str = "one") -> Setup:
    """A segmenter's setup outside of segment: as the project has it for that, but for what is said here."""
    own = resolve("segment", project.settings)
    return Setup(device, threshold, own.box_threshold, own.text_threshold, instances,
                 models.placed(own.detector, project), models.placed(own.tracker, project), own.through)


class Finder:
    """The segmenter of fuse or sample: its name, threshold and edges are theirs, everything else is what the project
    says of segment. What it drew is kept in the cache; its networks are loaded when something is to be drawn."""

    def __init__(self, project: Workspace, options: FuseOptions | SampleOptions, device: str, report: Report = silent
                 ) -> None:
        self._name, self._setup = options.segmenter, setup_of(project, options.threshold, device)
        self._edges = options.edges
        self._project, self._report = project, report

    @cached_property
    def _cache(self) -> Cache:
        return Cache(self._project, models.identity(self._name, self._setup), self._report)

    @cached_property
    def _segmenter(self) -> Segmenter:
        return segmenters.load(self._name, self._setup)

    def masks(self, videos: Sequence[np.ndarray], phrase: str) -> list[np.ndarray]:
        """Where the phrase is in each of several videos, uint8 (F, H, W, 3) -> bool (F, H, W) each."""
        def job(video: np.ndarray) -> tuple[list, Callable[[], Tensor]]:
            def make() -> Tensor:
                go_on()
                return torch.from_numpy(np.packbits(self._segmenter.masks(video, [phrase])[phrase].masks))

            return [video, phrase], make

        drawn = self._cache.several("masks", [job(video) for video in videos])
        masks = [np.unpackbits(bits.numpy(), count=video[..., 0].size).astype(bool).reshape(video.shape[:3])
                 for bits, video in zip(drawn, videos)]
        return [self.edged(video, mask) for video, mask in zip(videos, masks)]

    def edged(self, frames_FHWC: np.ndarray, masks_FHW: np.ndarray) -> np.ndarray:
        """Masks, bool (F, H, W), as options.edges has them."""
        return snapped(frames_FHWC, masks_FHW) if self._edges == "snapped" else masks_FHW


def from_videos(name: str, videos: Sequence[np.ndarray], finder: Finder, class_word: str, report: Report = silent
                ) -> list[Cut]:
    """The videos (F, H, W, 3) of one subject in which it was found, with its masks. Raises BadInput for none."""
    tracks = finder.masks(videos, class_word)
    cuts = [Cut(video, track) for video, track in zip(videos, tracks) if track.any((1, 2)).mean() >= SEEN]
    return _counted(cuts, len(videos), f"videos that the LoRA of '{name}' makes", class_word,
                    "look at the subject's preview; then train it longer", report)


def from_photos(name: str, photos: Sequence[Path], masks: Path | None, shape: tuple[int, int, int],
                finder: Finder, class_word: str, report: Report = silent) -> list[Cut]:
    """The photos of one subject in which it was found, with its masks: those of `segment`, else the finder's, which
    looks at their middles. shape: (F, H, W), how often each is repeated and what size it is brought to. Raises BadInput
    for none."""
    frames, *size = shape
    found = read_photos(photos, masks, report)
    if masks is None:
        pictures = [photo.fitted(tuple(size)).picture for photo in found]
        drawn = finder.masks([picture[None] for picture in pictures], class_word)
        held = [Photo(picture, mask[0]) for picture, mask in zip(pictures, drawn)]
    else:
        held = [photo.holding(tuple(size)) for photo in found if photo.mask is not None]
    cuts = [Cut.of_photo(photo.picture, photo.mask, frames) for photo in held if photo.mask.any()]
    return _counted(cuts, len(found), f"photos of '{name}'", class_word, "look at the photos", report)


def recast_clip(folder: Path, shape: tuple[int, int, int], roles: Mapping[str, str],
                cuts: Mapping[str, Sequence[Cut]], finder: Finder) -> np.ndarray:
    """The clip with a subject in the place of each actor that has one -> uint8 (F, H, W, 3), of this shape (F, H, W):
    the beginning of its first window. folder: the motion's. roles: {actor: subject}. Of a subject's cuts the one that
    shows most of it is taken. The finder brings what hides the actors to their edges: what a mask missed of an actor
    would stay behind as a ghost. Raises BadInput where the clip was not segmented for an actor, or for fewer frames."""
    frames, *size = shape
    absent = [actor for actor in roles if not (folder / "masks" / slug(actor)).is_dir()]
    if absent:
        raise BadInput(f"the clip was segmented without '{absent[0]}'", "Run: videomage segment --force")
    take = read_take(folder, tuple(size))
    frames_FHWC = take.window()[:frames]
    if len(frames_FHWC) < frames:
        raise BadInput(f"the clip was segmented for {take.length} frames, and {frames} are asked for",
                       "leave --frames out, or sample with --beta 0")
    if not roles:
        return frames_FHWC
    first = take.windows[0]
    tracks = [read_track(folder / "masks" / slug(actor), range(first, first + frames), tuple(size)) for actor in roles]
    fullest = [max(cuts[subject], key=lambda cut: cut.masks.sum()) for subject in roles.values()]
    hidden = np.any(tracks, 0)
    return recast(frames_FHWC, tracks, fullest, hidden | finder.edged(frames_FHWC, hidden)).frames


def _counted(cuts: list[Cut], there: int, of: str, class_word: str, remedy: str, report: Report) -> list[Cut]:
    if not cuts:
        raise BadInput(f"no '{class_word}' was found in any of the {there} {of}",
                       f"{remedy}, lower --threshold, or give it a class word that the segmenter knows")
    if len(cuts) < there:
        report(note=f"a '{class_word}' is in sight in {len(cuts)} of {there} {of}")
    return cuts
