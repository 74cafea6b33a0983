"""The two sizes of the sprites models: everything that tells them apart, in one place."""
from __future__ import annotations

from dataclasses import dataclass

from .looks import FULL, SMALL, Vocabulary


@dataclass(frozen=True)
class Size:
    """pixels: frame side. frames: per clip. latent: channels of a latent cell of 4 x 4 pixels. *_steps: training.
    photos_first: how many of the base's first steps see single pictures only."""

    name: str
    vocabulary: Vocabulary
    pixels: int
    frames: int
    latent: int
    vae_widths: tuple[int, ...]
    unet_widths: tuple[int, ...]
    heads_width: int
    text_width: int
    text_layers: int
    vae_steps: int
    base_steps: int
    photos_first: int
    clips_per_step: int
    photos_per_step: int
    corpus_clips: int
    corpus_photos: int


SIZES = {
    "small": Size("small", SMALL, pixels=32, frames=8, latent=6, vae_widths=(32, 64, 64), unet_widths=(48, 64),
                  heads_width=16, text_width=96, text_layers=2, vae_steps=700, base_steps=1700, photos_first=560,
                  clips_per_step=6, photos_per_step=16, corpus_clips=8000, corpus_photos=24000),
    "full": Size("full", FULL, pixels=64, frames=16, latent=6, vae_widths=(64, 128, 128), unet_widths=(96, 192),
                 heads_width=32, text_width=192, text_layers=3, vae_steps=6000, base_steps=24000, photos_first=4000,
                 clips_per_step=24, photos_per_step=64, corpus_clips=80000, corpus_photos=60000),
}
MAX_WORDS = 40      # length of a tokenized caption, with its start and end: what CLIPTextModel sees
