"""Spatial-temporal collaborative sampling (Algorithm 1): tensors in, tensors out.

Line numbers are those of Algorithm 1 in the paper's supplement. A branch is one prompt under one LoRA; which LoRA, the
scope `lora.branches` knows, opened by the caller on the denoiser: its `rows` says which branch a row of the batch is.

Legend: x latents (1, C, F, h, w); L text tokens, D their width; B F, B h w the batches of spatial and temporal layers.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .attention import Site, attention_loss, choose, run_until, watch, word_maps
from .errors import NumericError
from .noise import Solver, to_eps
from .report import Report, silent

if TYPE_CHECKING:
    from ..backbones.unet3d import UNet3D as Backbone

PAPER_ELEMENTS = 276_480      # of a latent of 4 channels, 24 frames, 40 x 72 cells: 576 x 320 video (ZeroScope)
_GRADIENT_SCALE = 2.0**16     # keeps float16 gradients of a mean from vanishing; a power of two alters no bit otherwise
Rows = Callable[[Sequence[str | None]], None]


@dataclass(frozen=True)
class Branch:
    """vectors_cond, vectors_uncond: (1, L, D) of its prompt and of "". words: the token positions of each subject word,
    in an order that both branches share: words[i] of one answers to words[i] of the other. row: its name in `rows`.
    unconditional: which model answers the empty prompt (see `_noises`), "own", "base", or "shared"."""

    vectors_cond: Tensor
    vectors_uncond: Tensor
    words: Sequence[range] = field(default=())
    row: str | None = "subject"
    unconditional: str = "own"


def scaled(alpha: float, x: Tensor) -> float:
    """alpha_t for a latent of this size. **Ours**: attention losses are means, so their gradient with regard to one
    element of x falls with the number of elements, and a step tuned at the paper's size must shrink in proportion to
    keep |dx| / |x|."""
    return alpha * x[0].numel() / PAPER_ELEMENTS


def collaborative_step(backbone: Backbone, rows: Rows, x: Tensor, t: int, t_prev: int, subject: Branch | None,
                       motion: Branch | None, *, guidance_s: float, guidance_m: float, alpha_s: float, alpha_m: float,
                       beta_s: float, beta_m: float, guided: bool, sites_cross: Sequence[Site],
                       sites_time: Sequence[Site], measure_after: bool = True, advance: Solver | None = None
                       ) -> tuple[Tensor, dict[str, float]]:
    """One turn of Algorithm 1's loop, x_t -> (x_{t-1}, facts).

    guidance_s, guidance_m: scale of classifier-free guidance in either branch; the paper has one for both. **Ours**:
    two, for what guidance sharpens in the motion branch is the looks of the clip's actors. alpha_s, alpha_m: alpha_t of
    line 9 (the subject branch's latents) and of line 10 (the motion branch's), both at the paper's latent size (see
    `scaled`). beta_s, beta_m: line 12. guided: line 5, T - t < tau. sites_cross, sites_time: whose maps are M_SCA and
    M_TSA. advance: what goes from t to t_prev; None: a step of DDIM. With one branch only there is nothing to
    collaborate with: plain guided sampling under that branch's LoRA.

    facts of a guided step: loss_s_to_m and loss_m_to_s before the move and, with measure_after, after it (read off the
    forward of line 11, which is computed anyway); shift_s and shift_m, |dx| / |x| of each branch.
    """
    present = [branch for branch in (subject, motion) if branch is not None]
    scales = [scale for scale, branch in ((guidance_s, subject), (guidance_m, motion)) if branch is not None]
    assert present, "give a branch: the plain base is a branch whose row holds no LoRA"
    latents, facts = [x] * len(present), {}                                          # line 2
    collaborate = guided and len(present) == 2                                       # line 5
    sites = [*sites_cross, *sites_time] if collaborate else []
    if collaborate:
        latents, facts = _guide(backbone, rows, x, t, present, alpha_s, alpha_m, sites_cross, sites_time)
    with torch.no_grad():
        eps, maps = _noises(backbone, rows, latents, t, present, scales,             # lines 3 and 4; line 11 if guided
                            sites if measure_after else [], x)
    if collaborate and measure_after:
        after = _losses(maps, present, sites_cross, sites_time, _extent(x))
        facts |= {"loss_s_to_m_after": float(after[0]), "loss_m_to_s_after": float(after[1])}
    eps_t = beta_s * eps[0] + beta_m * eps[1] if len(eps) == 2 else eps[0]           # line 12
    advance = advance or Solver(backbone.alphas_cumprod, backbone.final_alpha)
    return advance(x, eps_t, t, t_prev), facts


def _noises(backbone: Backbone, rows: Rows, latents: Sequence[Tensor], t: int, present: Sequence[Branch],
            scales: Sequence[float], sites: Sequence[Site], x: Tensor) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """eps^sub and eps^mot (lines 3 and 4), guided towards each prompt, from two rows per branch, "" and the prompt; and
    the maps of each branch's prompt at these sites. A branch whose scale is 1 turns from nothing and has one row.

    The paper leaves open which model answers "". **Ours**: either, by `unconditional`. A LoRA answers "" with its
    subject too ("own"), so that guidance away from it takes part of the subject out again; guidance away from the
    frozen base ("base") does not. "shared" is an approximation: the base's answer at x as it was before lines 9 and 10
    moved it, one for both branches.

    Each output is read as noise with the x it was computed from: beside velocity, the two branches' x may differ.
    """
    asked: list[tuple[str | None, Tensor, Tensor]] = []         # a row each: under which LoRA, from where, what to see
    empty: dict[tuple[str | None, int], int] = {}               # rows of the empty prompt; equal ones are one
    against: list[int | None] = []                              # of each branch: the row that it turns from
    prompts: list[int] = []                                     # of each branch: the row of its prompt
    for branch, scale, own in zip(present, scales, latents):
        who, at = branch.row if branch.unconditional == "own" else None, x if branch.unconditional == "shared" else own
        if scale != 1 and (who, id(at)) not in empty:
            empty[who, id(at)] = len(asked)
            asked.append((who, at, branch.vectors_uncond))
        against.append(None if scale == 1 else empty[who, id(at)])
        prompts.append(len(asked))                              # beside its empty prompt: one slice of the batch
        asked.append((branch.row, own, branch.vectors_cond))
    names, xs, vectors = zip(*asked)
    outputs, maps = _forward(backbone, rows, names, torch.cat(xs), t, torch.cat(vectors), sites, prompts)
    noise = partial(to_eps, t=t, acp=backbone.alphas_cumprod, predicts=backbone.predicts)
    eps = []
    for cond, own, row, scale in zip([outputs[row] for row in prompts], latents, against, scales):
        if row is None:
            eps.append(noise(cond, own))
        elif xs[row] is own:
            eps.append(noise(outputs[row] + scale * (cond - outputs[row]), own))
        else:
            turned = noise(outputs[row], xs[row])
            eps.append(turned + scale * (noise(cond, own) - turned))
    return eps, maps


def _forward(backbone: Backbone, rows: Rows, names: Sequence[str | None], x: Tensor, t: int, vectors: Tensor,
             sites: Sequence[Site], prompts: Sequence[int], until: Site | None = None
             ) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Each row of x (B, C, F, h, w) under the branch of its name -> (outputs, one of a row; maps at these sites, one of
    each row in `prompts`): in one batch, or, where the backbone has little memory, row by row. until: stop there,
    without outputs."""
    outputs, maps = [], []
    size = 1 if backbone.low_memory else len(names)
    for part in (range(at, at + size) for at in range(0, len(names), size)):
        rows([names[row] for row in part])
        of = [row in prompts for row in part]
        with watch(backbone.denoiser, sites if any(of) else [], of=of, explicit=until is not None and size > 1) as seen:
            def forward(x: Tensor = x[part.start:part.stop], vectors: Tensor = vectors[part.start:part.stop]) -> None:
                outputs.extend(backbone.predict(x, _steps(t, x), vectors).split(1))

            forward() if until is None else run_until(backbone.denoiser, until, forward)
        of_rows = {name: m.chunk(sum(of)) for name, m in seen.items()}
        maps += [{name: m[row] for name, m in of_rows.items()} for row in range(sum(of))]
    return outputs, maps


def _guide(backbone: Backbone, rows: Rows, x: Tensor, t: int, present: Sequence[Branch], alpha_s: float, alpha_m: float,
           sites_cross: Sequence[Site], sites_time: Sequence[Site]) -> tuple[list[Tensor], dict[str, float]]:
    """Lines 7 to 10: move each branch's copy of x towards the other's attention -> ([x_sub, x_mot], facts).

    The maps come from a forward of the conditional half alone that ends with the deepest watched layer; the gradient is
    taken with regard to the latents and to nothing else.
    """
    latents = [x.detach().requires_grad_() for _ in present]                         # line 2
    deepest = max([*sites_cross, *sites_time], key=backbone.sites.index)
    with torch.enable_grad():
        x_2, vectors_2 = torch.cat(latents), torch.cat([branch.vectors_cond.detach() for branch in present])
        _, halves = _forward(backbone, rows, [branch.row for branch in present], x_2, t, vectors_2,
                             [*sites_cross, *sites_time], range(len(present)), until=deepest)
        loss_s_to_m, loss_m_to_s = _losses(halves, present, sites_cross, sites_time, _extent(x))
        # no path leads from one loss to the other's latents, so the gradient of the sum is both gradients
        gradients = torch.autograd.grad((loss_s_to_m + loss_m_to_s) * _GRADIENT_SCALE, latents, allow_unused=True,
                                        materialize_grads=True)
    moves = [scaled(alpha, x) * (g / _GRADIENT_SCALE) for alpha, g in zip((alpha_s, alpha_m), gradients)]
    x_sub = x - moves[0]                                                             # line 9:  grad of L_m->s
    x_mot = x - moves[1]                                                             # line 10: grad of L_s->m
    shifts = [float(move.norm() / x.norm()) for move in moves]
    return [x_sub, x_mot], {"loss_s_to_m": float(loss_s_to_m.detach()), "loss_m_to_s": float(loss_m_to_s.detach()),
                            "shift_s": shifts[0], "shift_m": shifts[1]}


def _losses(maps: Sequence[dict[str, Tensor]], present: Sequence[Branch], sites_cross: Sequence[Site],
            sites_time: Sequence[Site], extent: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """(L_s->m, L_m->s) of the maps of the subject and of the motion branch. Each branch's maps are a constant for the
    other: L_s->m moves the motion branch alone, L_m->s the subject branch alone."""
    frames, *size = extent
    (maps_s, maps_m), (subject, motion) = maps, present
    if len(subject.words) != len(motion.words):
        raise ValueError(f"{len(subject.words)} subject words cannot answer to {len(motion.words)}")
    sca_s, sca_m = (list(chain(*word_maps(of, sites_cross, branch.words, frames, tuple(size))))
                    for of, branch in ((maps_s, subject), (maps_m, motion)))
    tsa_s, tsa_m = ([of[site.name] for site in sites_time] for of in (maps_s, maps_m))
    zero = next(iter(maps_s.values())).new_zeros(())
    loss_s_to_m = attention_loss([m.detach() for m in sca_s], sca_m) if sca_s else zero         # line 7
    loss_m_to_s = attention_loss(tsa_s, [m.detach() for m in tsa_m]) if tsa_s else zero         # line 8
    return loss_s_to_m, loss_m_to_s


def sample_loop(backbone: Backbone, rows: Rows, x_T: Tensor, subject: Branch | None, motion: Branch | None, *,
                steps: int, tau: int, guidance: float, alpha_s: float, alpha_m: float, beta_s: float, beta_m: float,
                guidance_motion: float | None = None, layers: str = "mid", motion_steps: int | None = None,
                guidance_steps: int | None = None, guide_every: int = 1, solver: str = "ddim",
                report: Report = silent) -> Tensor:
    """Algorithm 1: x_T -> x_0, both (1, C, F, h, w).

    steps: of DDIM with eta = 0. tau: how many of the first ones are guided. layers: `attention.choose`'s `where`.
    motion_steps: in how many of the first ones the motion branch has a say beside the subject branch, None: in all, as
    in the paper. **Ours**: paths are laid out in the first steps; in the last ones a branch that knows only the class
    words can but wash the subjects out. guidance: the scale in each branch; guidance_motion: another in the motion
    branch. The rest as in collaborative_step. Raises NumericError where the latents are no longer finite.

    **Ours**, approximations that cost less: guidance_steps: how many of the first steps turn from the empty prompt,
    None: all; the others ask for the prompt alone. guide_every = n: of the tau steps every n-th is guided, as hard as
    the n steps for which it stands (fewer at tau's end).
    solver: "ddim", or "dpm++", which needs fewer steps (noise.Solver).
    """
    sites_cross = choose(backbone.sites, layers, kind="cross", axis="space")
    sites_time = choose(backbone.sites, layers, kind="self", axis="time")
    timesteps = backbone.timesteps(steps).tolist()
    scales = (guidance, guidance if guidance_motion is None else guidance_motion)
    advance = Solver(backbone.alphas_cumprod, backbone.final_alpha, order=2 if solver == "dpm++" else 1)
    x = x_T.detach()
    for done, (t, t_prev) in enumerate(zip(timesteps, [*timesteps[1:], -1])):        # line 1
        if subject is not None and motion_steps is not None and done >= motion_steps:
            motion = None
        guidance_s, guidance_m = scales if guidance_steps is None or done < guidance_steps else (1.0, 1.0)
        stands_for = min(guide_every, tau - done)
        x, facts = collaborative_step(
            backbone, rows, x, t, t_prev, subject, motion, guidance_s=guidance_s, guidance_m=guidance_m,
            alpha_s=alpha_s * stands_for, alpha_m=alpha_m * stands_for, beta_s=beta_s, beta_m=beta_m,
            guided=done < tau and done % guide_every == 0, sites_cross=sites_cross, sites_time=sites_time,
            advance=advance)
        if not bool(x.isfinite().all()):
            raise NumericError(f"sampling step {done + 1} of {steps} (t = {t}) gave numbers that are not finite",
                               "lower alpha or guidance, or sample in float32")
        report(step=done + 1, of=steps, t=t, **facts)
    return x                                                                         # line 15


def _steps(t: int, x: Tensor) -> Tensor:
    return torch.full((len(x),), t, dtype=torch.int64, device=x.device)


def _extent(x: Tensor) -> tuple[int, int, int]:
    """(F, h, w) of latents."""
    return tuple(x.shape[2:])
