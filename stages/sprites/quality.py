"""How good is the sprites base? Held-out captions, fixed seeds, judged by the oracle from the pixels alone.

python -m stages.sprites.quality prints the table, writes MODEL_CARD.md and its sheet, and exits 1 below the floor.
"""
from __future__ import annotations

import argparse
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..backbones import load
from ..backbones.unet3d import UNet3D
from ..core import noise
from ..core.attention import choose, watch, word_maps
from ..core.settings import Settings
from ..core.sheets import contact_sheet
from ..core.train import generator_at
from ..options import SampleOptions, resolve
from .card import read_history, table, write_card
from .judge_quality import judge_quality
from .oracle import Scene, observe
from .sizes import SIZES, Size
from .train import WEIGHTS
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

    def shown(self, value: float) -> str:
        return f"{value:.1%}" if self.unit == "%" else f"{value:.2f}" if not self.unit else f"{value:.1f} {self.unit}"


def held_out(size: Size, count: int, objects: int) -> list[Clip]:
    """`count` captioned clips that no corpus holds; every motion in turn, all of it said in the caption."""
    motions = MOTIONS + (ROLE_MOTIONS if objects == 2 else ())
    return [draw_clip(np.random.default_rng([SEED, objects, k]), size.vocabulary, size.frames, size.pixels,
                      objects=objects, motion=motions[k % len(motions)], complete=True) for k in range(count)]


@torch.no_grad()
def sample_plain(backbone: UNet3D, prompts: list[str], *, steps: int, guidance: float, seed: int,
                 frames: int | None = None, batch: int = 10) -> np.ndarray:
    """DDIM at eta = 0 with classifier-free guidance, from seeded noise -> uint8 (N, F, H, W, 3). (core.denoise.draw for
    many prompts at a time.)"""
    out = []
    times = backbone.timesteps(steps).tolist()
    for lo in range(0, len(prompts), batch):
        words = prompts[lo:lo + batch]
        vectors = torch.cat([backbone.embed([""] * len(words)), backbone.embed(words)])
        shape = (backbone.latent_channels, frames or backbone.frames, *backbone.latent_size)
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


def judge(clip: Clip, scene: Scene) -> dict[str, bool]:
    """Everything the caption asked for, and whether the oracle sees it. An object counts as present in three quarters
    of the frames at least; anything beside what was asked for makes `present` wrong."""
    there = {seen.colour: seen for seen in scene.objects if float(np.mean(seen.presence)) >= 0.75}
    wanted = [actor.look for actor in clip.actors]
    present = sorted(there) == sorted(look.colour for look in wanted)
    role = clip.motion not in ROLE_MOTIONS or (
        scene.doer is not None and scene.objects[scene.doer].colour == wanted[0].colour)
    return dict(present=present,
                shape=present and all(there[look.colour].shape == look.shape for look in wanted),
                texture=present and all(there[look.colour].texture == look.texture for look in wanted),
                motion=present and scene.motion == clip.motion and role,
                background=scene.background == clip.background)


@torch.no_grad()
def attention_ratio(backbone: UNet3D, clips: list[Clip], sites: list) -> float:
    """Attention of an object's noun inside its mask over outside: the mean of either over objects, layers and three
    noise levels, then their ratio (a mean of ratios is made by the few maps that are nearly zero outside)."""
    inside, outside = [], []
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
                for A in word_maps(maps, sites, [positions[noun]], len(clip.frames))[0]:
                    M = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(mask).float()[None], A.shape[-2:])
                    inside.append(float((A * M).sum() / M.sum().clamp(min=1e-6)))
                    outside.append(float((A * (1 - M)).sum() / (1 - M).sum()))
    return float(np.mean(inside) / np.mean(outside))


def measure_base(backbone: UNet3D, size: Size, *, steps: int, guidance: float, count: int = 100, seed: int = 0
                 ) -> tuple[list[Row], list[tuple[str, np.ndarray]]]:
    """The rows about the text-to-video base, from 2 * count held-out captions, and the first 24 of them with videos."""
    verdicts, shown = {}, []
    for objects in (1, 2):
        clips = held_out(size, count, objects)
        videos = sample_plain(backbone, [clip.caption for clip in clips], steps=steps, guidance=guidance, seed=seed)
        verdicts[objects] = [judge(clip, observe(video, size.vocabulary)) for clip, video in zip(clips, videos)]
        shown += [(clip.caption, video) for clip, video in zip(clips[:12], videos)]
    ones, twos, every = verdicts[1], verdicts[2], verdicts[1] + verdicts[2]

    def share(of: list[dict[str, bool]], what: str) -> float:
        return float(np.mean([verdict[what] for verdict in of]))

    attention = attention_ratio(backbone, held_out(size, 24, 2), watched(backbone))
    return [
        Row("one object: present, right colour", share(ones, "present"), 0.95, 0.99, "%", len(ones)),
        Row("one object: right shape", share(ones, "shape"), 0.80, 0.95, "%", len(ones)),
        Row("two objects: both present, right colours", share(twos, "present"), 0.75, 0.95, "%", len(twos)),
        Row("motion word right, roles too", share(every, "motion"), 0.75, 0.95, "%", len(every)),
        Row("background right", share(every, "background"), 0.90, 0.99, "%", len(every)),
        Row("texture right (no floor)", share(every, "texture"), 0.0, 0.95, "%", len(every)),
        Row("attention of a noun, inside over outside its object", attention, 2.5, 4.0, "", 48)], shown


def preset() -> SampleOptions:
    """What `videomage sample` runs with on this base."""
    return resolve("sample", Settings(base="sprites"))


def watched(backbone: UNet3D) -> list:
    """The cross-attention layers that sampling watches on this base."""
    return choose(backbone.sites, preset().layers, kind="cross", axis="space")


def measure_vae(backbone: UNet3D, size: Size) -> list[Row]:
    worst_first = subject_psnr(backbone.vae, size)
    twentieth = worst_first[: max(1, len(worst_first) // 20)]
    return [Row("VAE on unseen subjects, mean", float(worst_first.mean()), 28, 32, "dB", len(worst_first)),
            Row("VAE on unseen subjects, worst twentieth", float(twentieth.mean()), 24, 28, "dB", len(twentieth))]


def subject_psnr(vae, size: Size) -> Tensor:
    """dB of each of 192 photos of subjects that nothing was trained on, sorted, the worst first."""
    clips = [c for s in SUBJECTS for close in (False, True) for c in photos(s, 16, 1000, size.pixels, close)]
    return psnr(vae.float(), to_tensor(np.concatenate([c.frames for c in clips])).to(vae.device)).sort().values


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=Path, default=WEIGHTS / "base", help="folder (default: the package's base)")
    parser.add_argument("--count", type=int, default=100, help="captions with one object, and as many with two")
    parser.add_argument("--card", action=argparse.BooleanOptionalAction, default=True, help="write the model card")
    parser.add_argument("--sheet", type=Path, default=Path(__file__).parent / "quality.png")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    backbone = load(str(args.base))
    size = SIZES["small" if backbone.frames == SIZES["small"].frames else "full"]
    steps, guidance = preset().steps, preset().guidance
    rows, shown = measure_base(backbone, size, steps=steps, guidance=guidance, count=args.count)
    rows = [*measure_vae(backbone, size), *rows, *judge_rows(size)]
    contact_sheet([(caption, video[::2]) for caption, video in shown], args.sheet, scale=2)
    if args.card:
        write_card(Path(__file__).parent / "MODEL_CARD.md", size, rows, read_history(WEIGHTS), steps, guidance,
                   args.sheet.name)
    logging.info("%s", table(rows))
    sys.exit(0 if all(row.passed for row in rows) else 1)


def judge_rows(size: Size, count: int = 200) -> list[Row]:
    found = judge_quality(size, count=count)
    return [Row("text to mask (CLIPSeg), mean IoU", found["clipseg_iou"], 0.75, 0.9, "", count),
            Row("CLIP finds the caption among 20", found["clip_of_20"], 0.70, 0.9, "%", 4 * count),
            Row("identity, top-1 among 50 unseen subjects", found["dino_of_50"], 0.80, 0.95, "%", 5 * count // 2)]


if __name__ == "__main__":
    main()
