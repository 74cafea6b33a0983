"""invert: the looks of the clip's actors as tokens, and the noise that the clip came from (METHOD 3.1 and 5).

Tokens: textual inversion on ONE frame, so that no motion enters them; embeddings only, no weight of the base moves.
Noise: DDIM inversion of the clip, and the way back, to see what it holds.

Legend: x latents (B, C, F, h, w); H W pixels; L text tokens, D their width.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import STAGES
from .backbones import identity_of, load_for
from .backbones.unet3d import UNet3D as Backbone
from .core import losses
from .core.denoise import denoising_loss, draw, drawing, encode, gaussian, invert_clip
from .core.errors import BadInput
from .core.framing import fit_size
from .core.lora import save_tokens
from .core.report import Report, asked_to_stop, silent
from .core.saving import save_tensors
from .core.sheets import contact_sheet
from .core.takes import FRAMES, read_facts, read_take, read_track
from .core.team import ALONE, Team, on_devices
from .core.train import adamw, fit
from .core.video import read_images
from .core.workspace import Artifact, Workspace
from .options import InvertOptions, resolve
from .prompts import motion_prompt, placeholder, slug, subject_prompt

MARGIN = 0.15      # of a crop's side, left around the actor


@dataclass(frozen=True)
class Crop:
    """One actor in one frame: picture uint8 (H, W, 3) at the base's size, mask bool (H, W) of the actor in it."""

    picture: np.ndarray
    mask: np.ndarray


@on_devices
def invert(project: Workspace, motion: str | None = None, options: InvertOptions | None = None, *, device: str = "cpu",
           dtype: str = "fp32", low_memory: bool = False, compiled: bool = False, seed: int = 0,
           force: bool = False, report: Report = silent, team: Team = ALONE) -> Artifact:
    """Appearance tokens and inverted noise of a motion's clip -> tokens.safetensors, noise.safetensors, a preview. The
    noise is that of the clip's first window, if there are several.

    The noise's round trip (sampling back from it under the same rule) is reported and kept in the manifest's facts.
    device: one, or "cuda:0,cuda:1", which share the learning of the tokens.
    Raises MissingPrerequisite without masks, BadInput where an actor is not in the frame that teaches its token.
    """
    motion = motion or project.motion().name
    plan = project.plan(STAGES["invert"], motion, options, seed=seed, base=identity_of(project))
    if team.first_says(bool(plan.state())) and not force:
        return plan.artifact()
    with plan.making(report, force=force, team=team) as out:
        backbone = load_for(project, device=device, dtype=dtype, low_memory=low_memory, compiled=compiled,
                            report=report)
        plan.facts["run on"] = backbone.run_on
        size = (backbone.height, backbone.width)
        actors = _actors(project, motion, plan.request.get("prompt"))
        folder = project.motion_folder(motion)
        clip_FHWC = read_take(folder, size).window()                      # **ours**: of several windows, the first
        crops = crops_of(folder, actors, plan.options.token_frame, size)
        tokens = learn_tokens(backbone, crops, plan.options, seed=seed, checkpoints=plan.checkpoints,
                              identity=plan.identity, curve_to=out / "tokens-loss.csv", report=report, team=team)
        if team.main:
            x_0 = encode(backbone, clip_FHWC[None])
            steps, refine = plan.options.inversion_steps, plan.options.inversion_refine
            noise = invert_clip(backbone, x_0, steps=steps, refine=refine, report=report)
            back = backbone.cache.tensor("videos", *drawing(backbone, "", noise, guidance=1.0, steps=steps)).to(x_0)
            shown, error = backbone.decode(back)[0], float((back - x_0).norm() / x_0.norm())
            plan.facts |= {"round trip error": error, "round trip PSNR": _psnr(shown, clip_FHWC)}
            report(note=f"inversion there and back: latent error {error:.3f}, {plan.facts['round trip PSNR']:.1f} dB")
            save_tokens(tokens, out / "tokens.safetensors")
            save_tensors({"noise": noise}, out / "noise.safetensors")
            sheet = [("the clip", clip_FHWC), ("inverted and back", shown)]
            contact_sheet([*sheet, *_token_rows(project, backbone, crops, tokens, seed)], out / "invert-preview.png")
    return plan.artifact()


def learn_tokens(backbone: Backbone, crops: Mapping[str, Crop], options: InvertOptions, *, seed: int = 0,
                 checkpoints: Path | None = None, identity: str = "", curve_to: Path | None = None,
                 report: Report = silent, team: Team = ALONE) -> dict[str, Tensor]:
    """Textual inversion (Eq. 4) of every actor on its crop, "A <person>" -> {"<person>": (1, width)}.

    min over v of E || eps_theta(x_t, c(v), t) - eps ||^2, x the crop as a video of one frame. **Ours**: the mean goes
    over the actor's own cells, so that neither its surroundings nor another actor enter the token. Each token starts
    from the mean embedding of its plain words; the sum over actors keeps their gradients apart.
    """
    rows = options.token_batch
    latents = {a: encode(backbone, crop.picture[None, None]).repeat(rows, 1, 1, 1, 1) for a, crop in crops.items()}
    weights = {a: losses.cover(torch.as_tensor(crops[a].mask)[None, None], x.shape[-2:])[None].to(x)
               for a, x in latents.items()}
    tokens = {placeholder(a): backbone.word_embedding(a).float().mean(0, keepdim=True).requires_grad_() for a in crops}
    mine = team.deal({a: [1] * rows for a in crops})

    def losses_at(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        per_actor = {}
        for actor, x0 in latents.items():
            vectors = backbone.embed([subject_prompt(actor)], tokens)
            per_actor[actor] = denoising_loss(backbone, x0, vectors, generator, weights[actor], mine[actor])
        return {"loss": torch.stack(list(per_actor.values())).sum(), **per_actor}

    optimizer = adamw(tokens.values(), options.token_rate)
    fit(tokens, losses_at, optimizer=optimizer, steps=options.token_steps, seed=seed, checkpoints=checkpoints,
        identity=identity, stop=asked_to_stop, curve_to=curve_to, report=report, team=team,
        batch=lambda step, generator: f"{rows} noise levels of each of {', '.join(crops)}")
    return {name: rows.detach() for name, rows in tokens.items()}


def crops_of(folder: Path, actors: tuple[str, ...], index: int, size: tuple[int, int]) -> dict[str, Crop]:
    """Each actor in one frame of a motion's folder, cropped by its mask and brought to size (H, W). Raises BadInput
    where it cannot be."""
    crops, count = {}, len(read_facts(folder)["chosen"])
    if index >= count:
        raise BadInput(f"the clip has {count} frames, and none is number {index}", "lower --token-frame")
    frame = read_images([folder / FRAMES / f"{index:04d}.png"])[0]
    for actor in actors:
        own = folder / "masks" / slug(actor)
        if not own.is_dir():
            raise BadInput(f"the clip was segmented without '{actor}'", "Run: videomage segment --force")
        mask = read_track(own, [index], frame.shape[:2])[0]
        if not mask.any():
            shown = [str(n) for n in range(count) if read_track(own, [n], frame.shape[:2]).any()]
            raise BadInput(f"'{actor}' is not in frame {index}", f"choose --token-frame among {', '.join(shown)}")
        crops[actor] = crop(frame, mask, size)
    return crops


def crop(frame_HWC: np.ndarray, mask_HW: np.ndarray, size: tuple[int, int]) -> Crop:
    """The box of the mask, widened by MARGIN and to the aspect of size (H, W), cut out and resized. Where the box would
    leave the frame, the frame's edge is repeated: those pixels lie outside the mask and do not count."""
    rows, columns = (np.flatnonzero(mask_HW.any(axis)) for axis in (1, 0))
    tall, wide = (rows[-1] + 1 - rows[0]) * (1 + 2 * MARGIN), (columns[-1] + 1 - columns[0]) * (1 + 2 * MARGIN)
    scale = max(tall / size[0], wide / size[1])
    tall, wide = round(size[0] * scale), round(size[1] * scale)
    top, left = (rows[0] + rows[-1] + 1 - tall) // 2, (columns[0] + columns[-1] + 1 - wide) // 2
    reach = max(tall, wide)
    picture = np.pad(frame_HWC, ((reach, reach), (reach, reach), (0, 0)), "edge")
    mask = np.pad(mask_HW, reach)
    box = np.s_[top + reach:top + reach + tall, left + reach:left + reach + wide]
    return Crop(fit_size(picture[box][None], size)[0], fit_size(mask[box][None], size)[0])


def _actors(project: Workspace, motion: str, prompt: str | None) -> tuple[str, ...]:
    """The bracketed words of the motion's prompt; where project.yaml has none, what segment found."""
    if prompt:
        return motion_prompt(prompt).actors
    found = project.manifest(project.motion_folder(motion) / "segment.json")
    return tuple(found["facts"]["shares of the frames"]) if found else ()


def _token_rows(project: Workspace, backbone: Backbone, crops: Mapping[str, Crop], tokens: Mapping[str, Tensor],
                seed: int) -> list[tuple[str, np.ndarray]]:
    """Rows of the sheet: each actor's crop and what the base makes of "A <actor>", drawn as this project samples."""
    look = resolve("sample", project.settings)
    rows = []
    for actor, part in crops.items():
        x_0 = draw(backbone, subject_prompt(actor), gaussian(backbone, 1, seed), tokens=tokens, steps=look.steps,
                   guidance=look.guidance, solver=look.solver, keep=False)
        hidden = np.where(part.mask[..., None], part.picture, part.picture // 3)
        rows.append((f"{actor}: crop, mask, token", np.stack([part.picture, hidden, backbone.decode(x_0)[0, 0]])))
    return rows


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    """In decibels, of uint8 pictures."""
    return float(10 * np.log10(255.0**2 / max(1e-9, ((a.astype(float) - b) ** 2).mean())))
