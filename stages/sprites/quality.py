"""How good is the sprites base? Held-out captions, fixed seeds, judged by the oracle from the pixels alone.

python -m stages.sprites.quality prints the table, writes MODEL_CARD.md and its sheet, and exits 1 below the floor.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..backbones.unet3d import UNet3D
from ..core import noise
from ..core.attention import watch, word_maps
from ..core.train import generator_at
from .oracle import observe
from .sizes import Size
from .train_vae import psnr, to_tensor
from .world import MOTIONS, ROLE_MOTIONS, SUBJECTS, Clip, draw_clip, photos

SEED = 2_000_000        # of the captions: far from every seed of the corpus


@dataclass(frozen=True)
class Row:
    """One line of the table: a quality, its floor and goal, what was measured, out of how many."""

    name: str
    value: float
    floor: float
    goal: float
    unit: str
    count: int

    @property
    def passed(self) -> bool:
        return self.value >= self.floor


def held_out(size: Size, count: int, objects: int) -> list[Clip]:
    """`count` captioned clips that no corpus holds; every motion in turn, all of it said in the caption."""
    motions = MOTIONS + (ROLE_MOTIONS if objects == 2 else ())
    return [draw_clip(np.random.default_rng([SEED, objects, k]), size.vocabulary, size.frames, size.pixels,
                      objects=objects, motion=motions[k % len(motions)], complete=True) for k in range(count)]


@torch.no_grad()
def sample_plain(backbone: UNet3D, prompts: list[str], *, steps: int, guidance: float, seed: int,
                 frames: int | None = None, batch: int = 10) -> np.ndarray:
    """DDIM at eta = 0 with classifier-free guidance, from seeded noise -> uint8 (N, F, H, W, 3)."""
    out = []
    times = backbone.timesteps(steps).tolist()
    for lo in range(0, len(prompts), batch):
        words = prompts[lo:lo + batch]
        vectors = torch.cat([backbone.embed([""] * len(words)), backbone.embed(words)])
        shape = (backbone.latent_channels, frames or backbone.frames, backbone.height // backbone.vae_factor,
                 backbone.width // backbone.vae_factor)
        x = torch.stack([torch.randn(shape, generator=generator_at(seed, lo + k)) for k in range(len(words))])
        x = x.to(backbone.device, backbone.dtype)
        for t, before in zip(times, [*times[1:], -1]):
            at = torch.full((2 * len(words),), t, device=backbone.device)
            free, told = backbone.predict(torch.cat([x, x]), at, vectors).chunk(2)
            told = free + guidance * (told - free)
            eps = noise.to_eps(told, x, at[: len(words)], backbone.alphas_cumprod, backbone.predicts)
            x = noise.ddim_step(x, eps, t, before, backbone.alphas_cumprod)
        out.append(backbone.decode(x))
    return np.concatenate(out)


def judge(clips: list[Clip], videos: np.ndarray, size: Size) -> list[dict[str, bool]]:
    """Per video: everything the caption asked for, and whether the oracle sees it there."""
    verdicts = []
    for clip, video in zip(clips, videos):
        scene = observe(video, size.vocabulary)
        by_colour = {seen.colour: seen for seen in scene.objects if float(np.mean(seen.presence)) >= 0.75}
        wanted = [actor.look for actor in clip.actors]
        there = [look.colour in by_colour for look in wanted]
        extra = len(by_colour) > len(wanted)
        verdicts.append(dict(
            present=all(there) and not extra,
            shape=all(look.colour in by_colour and by_colour[look.colour].shape == look.shape for look in wanted),
            motion=all(there) and scene.motion == clip.motion,
            background=scene.background == clip.background))
    return verdicts


@torch.no_grad()
def attention_ratio(backbone: UNet3D, clips: list[Clip], sites: list) -> float:
    """Attention of an object's noun inside its mask over outside, mean over objects, layers and three noise levels."""
    ratios = []
    for k, clip in enumerate(clips):
        x0 = backbone.encode(torch.from_numpy(clip.frames)[None])
        positions = [list(span) for _, span in backbone.positions(clip.caption)]
        for t in (200, 500, 800):
            at = torch.tensor([t])
            eps = torch.randn(x0.shape, generator=generator_at(5, 1000 * k + t))
            x = noise.add_noise(x0, eps.to(x0), at, backbone.alphas_cumprod)
            with watch(backbone.denoiser, sites) as maps:
                backbone.predict(x, at, backbone.embed([clip.caption]))
            for noun, mask in zip(clip.nouns, clip.masks):
                for A in word_maps(maps, sites, positions[noun], len(clip.frames)):
                    M = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(mask).float()[None], A.shape[-2:])
                    ratios.append(_inside_over_outside(A, M))
    return float(np.mean(ratios))


def _inside_over_outside(A: Tensor, M: Tensor) -> float:
    inside = float((A * M).sum() / M.sum().clamp(min=1e-6))
    outside = float((A * (1 - M)).sum() / (1 - M).sum())
    return inside / max(outside, 1e-9)


def subject_psnr(vae, size: Size) -> Tensor:
    """dB of each of 192 photos of subjects that nothing was trained on, sorted, the worst first."""
    clips = [c for s in SUBJECTS for close in (False, True) for c in photos(s, 16, 1000, size.pixels, close)]
    return psnr(vae.float(), to_tensor(np.concatenate([c.frames for c in clips])).to(vae.device)).sort().values
