"""What the stages do with a backbone again and again: a noised training row, a plain sample, an inversion.

Random numbers come from CPU generators and are moved, so that a run draws the same ones on every device. Latents are
kept in float32 at least, whatever the networks compute in.

Legend: x latents (B, C, F, h, w); L text tokens, D their width.
"""
from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import losses
from .attention import Site, choose
from .cache import digest
from .collaborate import Branch, sample_loop
from .errors import Interrupted, UsageError
from .lora import Lora, branches
from .noise import add_noise, ddim_invert, target, to_eps
from .report import Report, asked_to_stop, silent
from .team import mean_over
from .train import generator_at
from .video import read_clip, write_frames

if TYPE_CHECKING:
    from ..backbones.unet3d import UNet3D as Backbone


class Noised(NamedTuple):
    """A training row: x_t (B, C, F, h, w), its steps t (B,), and what the base is asked to say there (eps or v)."""

    x: Tensor
    t: Tensor
    target: Tensor


def noised(backbone: Backbone, x0: Tensor, generator: torch.Generator, t_max: float = 1.0) -> Noised:
    """Draw t uniformly and eps ~ N(0, I) for every row of x0 (B, C, F, h, w). t_max: the share of the schedule, from
    its clean end, that t is drawn from."""
    t = torch.randint(max(1, round(t_max * len(backbone.alphas_cumprod))), (len(x0),), generator=generator)
    return noised_by(backbone, x0, t, torch.randn(x0.shape, generator=generator))


def noised_by(backbone: Backbone, x0: Tensor, t: Tensor, noise: Tensor) -> Noised:
    """The rows of x0 (B, C, F, h, w) at given t (B,) and eps (like x0)."""
    acp, t, noise = backbone.alphas_cumprod, t.to(x0.device), noise.to(x0)
    return Noised(add_noise(x0, noise, t, acp), t, target(x0, noise, t, acp, backbone.predicts))


def denoising_loss(backbone: Backbone, x0: Tensor, vectors_1LD: Tensor, generator: torch.Generator,
                   weight_11Fhw: Tensor | None = None, rows: Sequence[int] | None = None) -> Tensor:
    """E || eps_theta(x_t, c, t) - eps ||^2 over one draw of (t, eps) for each row of x0, all under one text and one
    weight. rows: those of this process (team.mean_over); the draws are those of the whole."""
    def loss(x: Tensor, t: Tensor, target: Tensor) -> Tensor:
        return losses.denoising(backbone.predict(x, t, vectors_1LD.expand(len(x), -1, -1)), target, weight_11Fhw)

    return mean_over(range(len(x0)) if rows is None else rows, noised(backbone, x0, generator), loss)


def pick(items: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` random indices below `items`, with repetition."""
    return torch.randint(items, (count,), generator=generator)


def seed_of(seed: int, *words: object) -> int:
    """A seed of its own for each thing that a run draws: seed_of(0, "toy", 3) for the fourth video of the toy."""
    digest = hashlib.sha256("/".join(map(str, (seed, *words))).encode()).digest()
    return int.from_bytes(digest[:6], "big")


def sites_of(backbone: Backbone, where: str, kind: str, axis: str) -> list[Site]:
    """attention.choose for an option that a person typed. Raises UsageError where the base has no such block."""
    try:
        return choose(backbone.sites, where, kind, axis)
    except ValueError as unknown:
        raise UsageError(f"layers is '{where}', but {unknown}") from None


def encode(backbone: Backbone, frames_BFHWC: np.ndarray, *, keep: bool = True) -> Tensor:
    """uint8 frames -> latents (B, C, F, h, w) in float32 or better. keep: in the cache, where there is one."""
    x = backbone.encode(frames_BFHWC, keep=keep)
    return x.to(torch.promote_types(x.dtype, torch.float32))


def gaussian(backbone: Backbone, frames: int, seed: int) -> Tensor:
    """eps ~ N(0, I) of one latent (1, C, frames, h, w) of the base's size: a function of the seed alone."""
    noise = torch.randn(1, backbone.latent_channels, frames, *backbone.latent_size, generator=generator_at(seed, 0))
    return noise.to(backbone.device, torch.promote_types(backbone.dtype, torch.float32))


@torch.no_grad()
def draw(backbone: Backbone, prompt: str, x_T: Tensor, *, tokens: Mapping[str, Tensor] | None = None,
         lora: Lora | None = None, steps: int, guidance: float, unconditional: str = "own", solver: str = "ddim",
         keep: bool = True) -> Tensor:
    """A plain sample, with eta = 0 and classifier-free guidance, of the base under this LoRA: x_T -> x_0, both
    (1, C, F, h, w). solver: as in sample_loop. unconditional: whose answer to "" guidance turns from, "own" (the
    LoRA's) or "base". keep: the prompt's vectors in the cache; not those of a token that is on its way."""
    vectors = backbone.embed([prompt, ""], tokens, keep=keep)
    alone = Branch(vectors[:1], vectors[1:], row="lora", unconditional=unconditional)
    with branches(backbone.denoiser, {"lora": lora}, merge=backbone.merges) as rows:
        return sample_loop(backbone, rows, x_T, alone, None, steps=steps, guidance=guidance, tau=0, alpha_s=0.0,
                           alpha_m=0.0, beta_s=1.0, beta_m=0.0, solver=solver)


def drawing(backbone: Backbone, prompt: str, x_T: Tensor, *, tokens: Mapping[str, Tensor] | None = None,
            lora: Lora | None = None, steps: int, guidance: float, unconditional: str = "own"
            ) -> tuple[Sequence, Callable[[], Tensor]]:
    """`draw` as a job (key, make) of the cache's "videos": for samples that are learned from again and again."""
    key = [backbone.embed([prompt, ""], tokens), x_T, lora and [lora.tensors, lora.scaling], steps, guidance,
           unconditional]

    def make() -> Tensor:
        go_on()
        return draw(backbone, prompt, x_T, tokens=tokens, lora=lora, steps=steps, guidance=guidance,
                    unconditional=unconditional)

    return [digest(*key)], make


@torch.no_grad()
def invert_clip(backbone: Backbone, x_0: Tensor, *, steps: int, refine: int = 0, what: str = "the clip",
                report: Report = silent) -> Tensor:
    """DDIM inversion of a clip, x_0 -> eps_m, both (1, C, F, h, w) (METHOD 5, supplement 7.1), under the empty prompt
    and without guidance: `draw` with "" and guidance 1 comes back from it. **Ours**: the paper names DDIM inversion
    only; what the prompt says the noise need not hold, and here it shall hold the clip's layout and paths.
    refine: see noise.ddim_invert. what: is being inverted, for the report. Kept in the cache."""
    vectors, acp = backbone.embed([""]), backbone.alphas_cumprod
    done, forwards = itertools.count(1), steps * (1 + refine)

    def eps_at(x: Tensor, t: int) -> Tensor:
        at = torch.full((len(x),), t, dtype=torch.int64, device=x.device)
        report(step=next(done), of=forwards, t=t, inverting=what)
        return to_eps(backbone.predict(x, at, vectors), x, at, acp, backbone.predicts)

    def make() -> Tensor:
        return ddim_invert(eps_at, x_0, backbone.timesteps(steps), acp, refine=refine,
                           final_alpha=backbone.final_alpha)

    return backbone.cache.tensor("noise", [x_0, vectors, steps, refine], make).to(x_0.device)


def go_on() -> None:
    """Between two samples of a stage that draws several: raises Interrupted if this process was asked to stop."""
    if asked_to_stop():
        raise Interrupted("stopped", "run the same command again to go on")


class Previews:
    """Samples drawn while a stage learns. They wait in its checkpoint folder, so a resumed run still shows them all."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def add(self, step: int, frames_FHWC: np.ndarray) -> None:
        """Keep the sample that was drawn after `step` steps."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_frames(self.folder / f"preview-{step:06d}.png", frames_FHWC)

    def rows(self) -> Iterator[tuple[str, np.ndarray]]:
        """("step 100", frames (F, H, W, 3)) of each, in order: rows of a contact sheet."""
        for path in sorted(self.folder.glob("preview-*.png")) if self.folder is not None else ():
            yield f"step {int(path.stem.split('-')[1])}", read_clip(path)
