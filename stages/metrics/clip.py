"""CLIP-T, CLIP-I and T. Cons. (METHOD 6), on features of any CLIPModel; peers of the paper use ViT-B/32.

Legend: F frames, R references, D width of a feature.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPModel

from ..core.errors import BadInput
from ..core.vision import Preparation, Words, in_chunks, read_model
from .features import folder_of, likeness, mean_cosine, unit

WHAT, REMEDY = "the CLIP model", "Give a folder with a CLIPModel and its tokenizer: --clip FOLDER"


class Clip:
    """Features of pictures and texts in one space."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        self.device = device
        self.network = read_model({"clip": CLIPModel.from_pretrained}, folder, WHAT, REMEDY, device)
        self.words = Words(folder, self.network.config.text_config, WHAT, REMEDY)
        self.prepare = Preparation.of(folder, self.network.config.vision_config.image_size)

    def image_features(self, frames: np.ndarray) -> Tensor:
        """uint8 (F, H, W, 3) -> float64 (F, D), L2-normalised."""
        return unit(in_chunks(lambda pixels: self.network.get_image_features(pixel_values=pixels).pooler_output,
                              self.prepare, frames, self.device))

    @torch.no_grad()
    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """(N, D), L2-normalised. Raises BadInput for a prompt longer than the text encoder reads."""
        return unit(self.network.get_text_features(**self.words(list(prompts), self.device)).pooler_output.cpu())


def load(folder: Path | str | None = None, *, base: str = "sprites", device: str = "cpu") -> Clip:
    """The CLIP model in a folder; None: the one that comes with the sprites base, for videos of that base only."""
    return Clip(folder_of("clip", folder, base), device)


def clip_t(frames_FD: Tensor, prompt_D: Tensor) -> float:
    """CLIP-T: mean over frames of cos(image(frame), text(prompt with class words)). prompt: (D,) or (1, D)."""
    return mean_cosine(frames_FD, prompt_D.reshape(1, -1))


def clip_i(frames_FD: Tensor, references: Mapping[str, Tensor]) -> float:
    """CLIP-I: mean over frames and reference images of cos(image(frame), image(reference)), mean over subjects.
    references: {subject: (R, D)}."""
    return likeness(frames_FD, references)


def t_cons(frames_FD: Tensor) -> float:
    """T. Cons.: mean over consecutive frames of cos(image(f), image(f + 1)). Raises BadInput for a single frame, of
    which it is undefined."""
    if len(frames_FD) < 2:
        raise BadInput(f"T. Cons. compares consecutive frames, and the video has {len(frames_FD)}",
                       "score a video of two frames or more")
    features = unit(frames_FD)
    return float((features[:-1] * features[1:]).sum(-1).mean())
