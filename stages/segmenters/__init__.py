"""Frames and phrases -> masks: what draws the mask tracks of METHOD 3.1 and 4 (the paper uses Grounded-SAM2).

A segmenter is one file here and one line in SEGMENTERS. Its class takes whatever of `load`'s keywords it needs. Imports
no torch: a segmenter's file is read when it is loaded.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Protocol

import numpy as np

from ..core.errors import UsageError

SEGMENTERS = {"clipseg": "ClipSeg", "given": "Given"}       # file here -> its class


@dataclass(frozen=True)
class Masks:
    """One phrase through the frames. masks: bool (F, H, W). confidence: float (F,), 0..1, 0 where the mask is empty."""

    masks: np.ndarray
    confidence: np.ndarray


class Segmenter(Protocol):
    """What stages rely on."""

    def masks(self, frames: np.ndarray, phrases: Sequence[str]) -> dict[str, Masks]:
        """frames: uint8 (F, H, W, 3), a clip or photos. -> for every phrase its masks, at the frames' own size; a
        phrase found nowhere has empty masks. The masks of one call may be drawn together: phrases can compete."""
        ...


def load(name: str, *, device: str = "cpu", model: Path | str | None = None, masks: Path | str | None = None,
         threshold: float = 0.5) -> Segmenter:
    """A segmenter by name: one of SEGMENTERS.

    model: folder of its network (default: the one that comes with the sprites base). masks: for "given", the folder of
    the masks. threshold: confidence above which a pixel belongs to a phrase. Raises UsageError for an unknown name or
    where what it needs was not given, BadInput where a folder is not what it should be.
    """
    if name not in SEGMENTERS:
        raise UsageError(f"'{name}' is no segmenter", f"known are {', '.join(SEGMENTERS)}")
    return getattr(import_module(f".{name}", __name__), SEGMENTERS[name])(
        device=device, model=model, masks=masks, threshold=threshold)


def confidence(masks_FHW: np.ndarray, probability_FHW: np.ndarray) -> np.ndarray:
    """(F,): the mean probability over each frame's mask, 0 where the mask is empty."""
    sums = (probability_FHW * masks_FHW).sum((1, 2), dtype=np.float64)
    return sums / np.maximum(masks_FHW.sum((1, 2)), 1)
