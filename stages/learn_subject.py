"""learn-subject: a token and a spatial LoRA for one subject, from a few photos (METHOD 2).

    L = L_sub + lambda1 L_reg

L_sub sees the photos as videos of one frame. L_reg sees captioned clips that have nothing to do with the subject and
keeps the base's sense of time (auxiliary.py says where they come from). **Ours**: a share of L_reg's draws may
see no caption (`uncaptioned`), so that the LoRA learns to be silent where its token is not.

Legend: x latents (B, C, F, h, w); N photos; L text tokens, D their width.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import STAGES
from .auxiliary import auxiliary, shortened
from .backbones import identity_of, load_for
from .backbones.unet3d import UNet3D as Backbone
from .core import losses
from .core.denoise import Previews, denoising_loss, draw, encode, gaussian, pick
from .core.errors import BadInput
from .core.lora import Lora, provenance, save, save_tokens, training
from .core.report import Report, asked_to_stop, silent
from .core.sheets import contact_sheet, overlay
from .core.team import ALONE, Team, on_devices
from .core.train import adamw, fit, schedule
from .core.workspace import Artifact, Workspace, keep
from .options import LearnSubjectOptions
from .photos import Photo, read_photos
from .prompts import placeholder, subject_prompt

Preview = Callable[[int, Tensor, Lora], None]


@on_devices
def learn_subject(project: Workspace, subject: str, options: LearnSubjectOptions | None = None, *,
                  images: Sequence[Path] | None = None, class_word: str | None = None, device: str = "cpu",
                  dtype: str = "fp32", low_memory: bool = False, compiled: bool = False, seed: int = 0,
                  force: bool = False, report: Report = silent, team: Team = ALONE) -> Artifact:
    """Learn `<subject>` -> token.safetensors, lora.safetensors, images/ (the photos as given), a preview sheet.

    images, class_word: in place of what project.yaml says of the subject. The class word ("dog") is where the token
    starts, and what stands for the subject where a prompt has to do without it. device: one, or "cuda:0,cuda:1".
    Raises BadInput without photos, or without a class word.
    """
    given = {"images": tuple(map(Path, images))} if images else {}
    plan = project.plan(STAGES["learn-subject"], subject, options, seed=seed, base=identity_of(project),
                        request={"class": class_word} if class_word else {}, given=given)
    if team.first_says(bool(plan.state())) and not force:
        return plan.artifact()
    if not plan.request.get("class"):
        raise BadInput(f"nothing says what '{subject}' is",
                       f"give it a plain word: --class dog, or subjects.{subject}.class in project.yaml")
    team.require(plan.options.batch + (plan.options.lambda1 > 0), "learn-subject")
    with plan.making(report, force=force, team=team) as out:
        backbone, options = load_for(project, device=device, dtype=dtype, low_memory=low_memory,
                                     compiled=compiled, report=report), plan.options
        plan.facts["run on"] = backbone.run_on
        photos = [photo.fitted((backbone.height, backbone.width), options.fit)
                  for photo in read_photos(plan.inputs["images"], plan.inputs.get("masks"), report)]
        photos_NHWC = np.stack([photo.picture for photo in photos])
        latents_NC1hw = encode(backbone, photos_NHWC[:, None])
        clips = auxiliary(project, backbone, options, report)
        if options.allow_partial and (in_part := shortened(project, options, report)):
            plan.facts["auxiliary clips in part, [sound frames, of]"] = in_part
        previews = Previews(plan.checkpoints)

        def preview(step: int, token: Tensor, lora: Lora) -> None:
            x_0 = draw(backbone, subject_prompt(subject), gaussian(backbone, backbone.frames, seed),
                       tokens={placeholder(subject): token}, lora=lora, steps=options.video_steps,
                       guidance=options.guidance, unconditional=options.unconditional, keep=False)
            previews.add(step, backbone.decode(x_0)[0])

        token, lora = learn_subject_tensors(
            backbone, latents_NC1hw, subject, plan.request["class"], clips, options, seed=seed,
            checkpoints=plan.checkpoints, identity=plan.identity, curve_to=out / "lora-loss.csv",
            preview=preview if team.main else None, report=report, team=team)
        if team.main:
            save_tokens({placeholder(subject): token}, out / "token.safetensors")
            save(lora, out / "lora.safetensors")
            contact_sheet([*_shown(photos), *previews.rows()], out / "learn-subject-preview.png")
            keep(plan.inputs["images"], out / "images")
    return plan.artifact()


def _shown(photos: Sequence[Photo]) -> list[tuple[str, np.ndarray]]:
    """Rows of the preview: the photos as they are learned from, and where the subject is in them."""
    pictures = np.stack([photo.picture for photo in photos])
    if all(photo.mask is None for photo in photos):
        return [("photos", pictures)]
    masks = np.stack([np.zeros(p.picture.shape[:2], bool) if p.mask is None else p.mask for p in photos])
    return [("photos", pictures), ("and their masks", overlay(pictures, {"subject": masks}))]


def learn_subject_tensors(backbone: Backbone, latents_NC1hw: Tensor, subject: str, class_word: str,
                          clips: Sequence[tuple[str, Tensor]], options: LearnSubjectOptions, *, seed: int = 0,
                          checkpoints: Path | None = None, identity: str = "", curve_to: Path | None = None,
                          preview: Preview | None = None, report: Report = silent,
                          team: Team = ALONE) -> tuple[Tensor, Lora]:
    """Minimise L_sub + lambda1 L_reg over the token (1, width) and the spatial LoRA -> both.

    latents_NC1hw: the photos. clips: (caption, latents (1, C, F, h, w)) of the auxiliary set; none: L_sub alone.
    preview(step, token, lora) is called every options.preview_every steps and at the end, with the base as it was.
    """
    name = placeholder(subject)
    token = backbone.word_embedding(class_word).float().mean(0, keepdim=True).requires_grad_()
    with torch.no_grad():
        captions = [backbone.embed([caption]) for caption, _ in clips]                   # constant: embedded once
        nothing = backbone.embed([""])
    mine = team.deal({"L_sub": [1] * options.batch, "L_reg": [clips[0][1].shape[2]] if clips else []})      # frames

    def losses_at(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        x_s = latents_NC1hw[pick(len(latents_NC1hw), options.batch, generator)]
        c_s = backbone.embed([subject_prompt(subject)], {name: token})
        loss_sub = denoising_loss(backbone, x_s, c_s, generator, rows=mine["L_sub"])                        # L_sub
        if not clips:
            return {"loss": loss_sub}
        k = int(pick(len(clips), 1, generator))
        mute = options.uncaptioned > 0 and float(torch.rand(1, generator=generator)) < options.uncaptioned
        c_reg = nothing if mute else captions[k]
        loss_reg = denoising_loss(backbone, clips[k][1], c_reg, generator, rows=mine["L_reg"])              # L_reg
        return {"loss": losses.subject(loss_sub, loss_reg, options.lambda1), "L_sub": loss_sub, "L_reg": loss_reg}

    def drawn(step: int, generator: torch.Generator) -> str:
        return "photos " + ", ".join(map(str, pick(len(latents_NC1hw), options.batch, generator).tolist()))

    def after_step(step: int) -> None:
        done = step + 1
        if preview and (done == options.steps or options.preview_every and done % options.preview_every == 0):
            with own.disabled():
                preview(done, token.detach(), own.lora())

    with training(backbone.denoiser, backbone.targets("subject"), options.rank, options.alpha, seed) as own:
        optimizer = adamw([{"params": [token], "lr": options.token_rate}, {"params": list(own.values())}], options.rate)
        fit({"token": token, **own}, losses_at, optimizer=optimizer, steps=options.steps, seed=seed,
            checkpoints=checkpoints, identity=identity, rate=schedule(options.schedule, options.steps),
            after_step=after_step, stop=asked_to_stop, batch=drawn, curve_to=curve_to, report=report, team=team)
        origin = {"class": class_word, **provenance(backbone, "subject", [name])}
        return token.detach(), own.lora(subject=subject, prompt=subject_prompt(subject), **origin)
