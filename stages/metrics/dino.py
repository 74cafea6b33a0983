"""DINO-I (METHOD 6), on features of a DINO network: the class token of a DINO ViT-S/16 (the paper's) or a DINOv2."""
from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor
from transformers import Dinov2Model, ViTModel

from ..core.vision import Preparation, in_chunks, read_model
from .features import folder_of, likeness, unit

KINDS = {"dinov2": Dinov2Model.from_pretrained,
         "vit": partial(ViTModel.from_pretrained, add_pooling_layer=False)}       # DINO has no pooling layer
WHAT, REMEDY = "the DINO model", "Give a folder with a ViTModel (DINO ViT-S/16) or a Dinov2Model: --dino FOLDER"


class Dino:
    """Features of pictures."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.device = device
        self.network = read_model(KINDS, folder, WHAT, REMEDY, device)
        self.prepare = Preparation.of(folder, self.network.config.image_size)

    def image_features(self, frames: np.ndarray) -> Tensor:
        """uint8 (F, H, W, 3) -> float64 (F, D), L2-normalised."""
        return unit(in_chunks(lambda pixels: self.network(pixel_values=pixels).last_hidden_state[:, 0],
                              self.prepare, frames, self.device))


def load(folder: Path | str | None = None, *, base: str = "sprites", device: str = "cpu") -> Dino:
    """The DINO model in a folder; None: the one that comes with the sprites base, for videos of that base only."""
    return Dino(folder_of("dino", folder, base), device)


def dino_i(frames_FD: Tensor, references: Mapping[str, Tensor]) -> float:
    """DINO-I: mean over frames and reference images of cos(image(frame), image(reference)), mean over subjects.
    references: {subject: (R, D)}."""
    return likeness(frames_FD, references)
