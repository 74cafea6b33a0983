"""Frames and phrases -> masks: what draws the mask tracks of METHOD 3.1 and 4 (the paper uses Grounded-SAM2).

A segmenter is one file here and one line in SEGMENTERS: a class that is made from a Setup. Imports
neither torch nor numpy: a segmenter's file is read when it is loaded.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..core.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from ..core.framing import Box

SEGMENTERS = {"grounded-sam2": ("grounded_sam2", "GroundedSam2"), "clipseg": ("clipseg", "ClipSeg"),
              "given": ("given", "Given")}                  # name -> its file here, its class


@dataclass(frozen=True)
class Setup:
    """All that a segmenter may be told; each takes what concerns it.

    threshold: probability above which a pixel belongs to a phrase. box_threshold, text_threshold: of Grounding DINO,
    confidence above which a box is a find, and above which a word of the text is meant by it. instances: "one" thing
    answers to a phrase, or "all" of them. detector, tracker: the weights of Grounding DINO and SAM2, a folder or a
    repository of the hub. through: the library that runs SAM2, "transformers" or the "sam2" package. model: the folder
    of clipseg's network, None for the one that comes with sprites. masks: for "given", the folder of the masks.
    """

    device: str = "cpu"
    threshold: float = 0.5
    box_threshold: float = 0.3
    text_threshold: float = 0.25
    instances: str = "one"
    detector: str = "IDEA-Research/grounding-dino-tiny"
    tracker: str = "facebook/sam2.1-hiera-tiny"
    through: str = "transformers"
    model: Path | str | None = None
    masks: Path | str | None = None


@dataclass(frozen=True)
class Hint:
    """What a person points at: in this frame the phrase is in this box, or holds the points (x, y, True) and not those
    with False. Pixels of the frames."""

    phrase: str
    frame: int
    box: Box | None = None
    points: tuple[tuple[float, float, bool], ...] = ()


@dataclass(frozen=True)
class Source:
    """What pictures were taken from, for masks that were drawn on that: its number of pictures, which of them these
    are, its shape (H, W) and how it was fitted (core/framing.py). names: of photos, without their endings."""

    count: int
    chosen: tuple[int, ...]
    shape: tuple[int, int]
    fit: str = "cover"
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Instance:
    """One thing that answers to a phrase, in the frame that shows it best. confidence: 0..1. taken: whether the masks
    are of it."""

    frame: int
    box: Box
    confidence: float
    taken: bool


@dataclass(frozen=True)
class Masks:
    """One phrase through the frames. masks: bool (F, H, W). confidence: float (F,), 0..1, 0 where the mask is empty.
    instances: what answered to the phrase, where the segmenter tells things apart. notes: what a person should know of
    how it was found, a sentence each."""

    masks: np.ndarray
    confidence: np.ndarray
    instances: tuple[Instance, ...] = ()
    notes: tuple[str, ...] = ()


class Segmenter(Protocol):
    """What stages rely on. usual: what to look for where nobody says; what of it is found nowhere is no complaint."""

    usual: tuple[str, ...]

    def masks(self, frames: np.ndarray, phrases: Sequence[str], hints: Sequence[Hint] = (),
              source: Source | None = None) -> dict[str, Masks]:
        """frames: uint8 (F, H, W, 3), a clip, or one photo. -> for every phrase its masks, at the frames' own size; a
        phrase found nowhere has empty masks. The masks of one call may be drawn together: phrases can compete. hints
        take the place of looking for their phrases. source: what the frames were taken from; only masks that are
        there already ask for it. Raises UsageError where the segmenter takes no hints."""
        ...


def load(name: str, setup: Setup | None = None) -> Segmenter:
    """A segmenter by name: one of SEGMENTERS. Raises UsageError for an unknown name or where what it needs was not
    given, BadInput where a folder is not what it should be, MissingPrerequisite for weights that are not here."""
    if name not in SEGMENTERS:
        raise UsageError(f"'{name}' is no segmenter", f"known are {', '.join(SEGMENTERS)}")
    file, kind = SEGMENTERS[name]
    return getattr(import_module(f".{file}", __name__), kind)(setup or Setup())


def confidence(masks_FHW: np.ndarray, probability_FHW: np.ndarray) -> np.ndarray:
    """(F,): the mean probability over each frame's mask, 0 where the mask is empty."""
    return (probability_FHW * masks_FHW).sum((1, 2), dtype=float) / masks_FHW.sum((1, 2)).clip(1)


def no_hints(hints: Sequence[Hint], name: str) -> None:
    """Raise UsageError where there are any."""
    if hints:
        raise UsageError(f"the segmenter '{name}' takes no boxes or points", "use --segmenter grounded-sam2")
