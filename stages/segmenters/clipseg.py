"""clipseg: CLIPSeg (Lueddecke and Ecker, CVPR 2022), each frame on its own. Its sprites model comes with the package.

**Ours**: the paper tracks with Grounded-SAM2. Several phrases compete for every pixel, so that no pixel is two actors.
Legend: P phrases, F frames, H W pixels, h w what the network gives.
"""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import CLIPSegForImageSegmentation

from ..core.errors import BadInput, UsageError
from ..core.vision import Preparation, Words, checked_frames, in_chunks, read_model
from ..sprites.looks import SMALL
from . import Hint, Masks, Setup, Source, confidence, no_hints
from .models import CLIPSEG

WHAT = "the CLIPSeg model"
REMEDY = ("Give a folder with a CLIPSegForImageSegmentation and its tokenizer; or draw the masks yourself: "
          "--segmenter given --masks FOLDER")


class ClipSeg:
    """Holds the network. Of the setup: device, model, threshold."""

    def __init__(self, setup: Setup) -> None:
        folder = Path(setup.model or CLIPSEG)
        self.device, self.threshold = setup.device, setup.threshold
        self.usual = () if setup.model else tuple(f"{colour} object" for colour in SMALL.colours)
        self.network = read_model({"clipseg": CLIPSegForImageSegmentation.from_pretrained}, folder, WHAT, REMEDY,
                                  setup.device)
        self.words = Words(folder, self.network.config.text_config, WHAT, REMEDY)
        self.prepare = Preparation.of(folder, self.network.config.vision_config.image_size, whole=True)
        if self.prepare.crop:
            raise BadInput(f"{WHAT} in {folder} looks at the middle of a picture only (do_center_crop)", REMEDY)

    def masks(self, frames: np.ndarray, phrases: Sequence[str], hints: Sequence[Hint] = (),
              source: Source | None = None) -> dict[str, Masks]:
        """Each pixel goes to the phrase with the highest probability there, if that is above the threshold."""
        no_hints(hints, "clipseg")
        phrases = list(dict.fromkeys(phrases))
        if not phrases or not all(phrase.strip() for phrase in phrases):
            raise UsageError("there is nothing to look for", "name it: --actors person horse")
        probability_PFHW = self.probabilities(frames, phrases)
        winner_FHW = probability_PFHW.argmax(0)
        out = {}
        for n, phrase in enumerate(phrases):
            own = (winner_FHW == n) & (probability_PFHW[n] > self.threshold)
            out[phrase] = Masks(own, confidence(own, probability_PFHW[n]))
        return out

    def probabilities(self, frames: np.ndarray, phrases: Sequence[str]) -> np.ndarray:
        """uint8 (F, H, W, 3) -> float32 (P, F, H, W), each phrase on its own: the network's, brought to the frames'
        size before the sigmoid, so that an edge at one half stays where it is."""
        size = checked_frames(frames).shape[1:3]
        with torch.no_grad():
            embeddings = self.network.get_conditional_embeddings(
                batch_size=len(phrases), **self.words(list(phrases), self.device))

        def one(embedding_D: Tensor) -> Tensor:
            def chances(pixels: Tensor) -> Tensor:
                embeddings = embedding_D.expand(len(pixels), -1)
                logits = self.network(pixel_values=pixels, conditional_embeddings=embeddings).logits
                logits = logits.reshape(len(pixels), 1, *logits.shape[-2:])         # one picture loses its dimension
                return interpolate(logits.float(), size, mode="bilinear", antialias=True)[:, 0].sigmoid()

            return in_chunks(chances, self.prepare, frames, self.device)

        return torch.stack([one(embedding) for embedding in embeddings]).numpy()
