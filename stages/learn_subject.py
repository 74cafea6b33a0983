"""learn-subject: a token and a spatial LoRA for one subject, from a few photos (METHOD 2).

    L = L_sub + lambda1 L_reg

L_sub sees the photos as videos of one frame. L_reg sees captioned clips that have nothing to do with the subject and
keeps the base's sense of time. The paper takes those from Panda-70M; here they are a folder of the user's, or,
**ours**, drawn once from the frozen base itself and kept in the project. **Ours** too: a share of L_reg's draws may
see no caption (`uncaptioned`), so that the LoRA learns to be silent where its token is not.

Legend: x latents (B, C, F, h, w); N photos; L text tokens, D their width.
"""
from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import STAGES
from .backbones import identity, load
from .backbones.unet3d import UNet3D as Backbone
from .core import losses
from .core.denoise import Previews, denoising_loss, draw, encode, gaussian, go_on, pick
from .core.errors import BadInput, Locked
from .core.lora import Lora, save, save_tokens, training
from .core.report import Report, asked_to_stop, silent
from .core.sheets import contact_sheet
from .core.train import fit, schedule
from .core.video import ANIMATIONS, natural, read_clip, read_images
from .core.workspace import Artifact, Workspace, keep
from .options import LearnSubjectOptions
from .presets import auxiliary_prompts
from .prompts import placeholder, subject_prompt

CLIPS = {".mp4", ".mov", ".webm", ".mkv", ".avi"} | ANIMATIONS
Preview = Callable[[int, Tensor, Lora], None]


def learn_subject(project: Workspace, subject: str, options: LearnSubjectOptions | None = None, *,
                  images: Sequence[Path] | None = None, class_word: str | None = None, device: str = "cpu",
                  dtype: str = "fp32", seed: int = 0, force: bool = False, report: Report = silent) -> Artifact:
    """Learn `<subject>` -> token.safetensors, lora.safetensors, images/ (the photos as given), a preview sheet.

    images, class_word: in place of what project.yaml says of the subject. The class word ("dog") is where the token
    starts, and what stands for the subject where a prompt has to do without it.
    Raises BadInput without photos, or without a class word.
    """
    given = {"images": tuple(map(Path, images))} if images else {}
    plan = project.plan(STAGES["learn-subject"], subject, options, seed=seed, base=identity(project.settings.base),
                        request={"class": class_word} if class_word else {}, given=given)
    if plan.state() and not force:
        return plan.artifact()
    if not plan.request.get("class"):
        raise BadInput(f"nothing says what '{subject}' is",
                       f"give it a plain word: --class dog, or subjects.{subject}.class in project.yaml")
    with plan.making(report, force=force) as out:
        backbone, options = load(project.settings.base, device=device, dtype=dtype), plan.options
        photos_NHWC = read_images(plan.inputs["images"], (backbone.height, backbone.width))
        latents_NC1hw = encode(backbone, photos_NHWC[:, None])
        clips = auxiliary(project, backbone, plan.inputs.get("auxiliary"), options, report)
        previews = Previews(plan.checkpoints)

        def preview(step: int, token: Tensor, lora: Lora) -> None:
            x_0 = draw(backbone, subject_prompt(subject), gaussian(backbone, backbone.frames, seed),
                       tokens={placeholder(subject): token}, lora=lora, steps=options.video_steps,
                       guidance=options.guidance, unconditional=options.unconditional)
            previews.add(step, backbone.decode(x_0)[0])

        token, lora = learn_subject_tensors(
            backbone, latents_NC1hw, subject, plan.request["class"], clips, options, seed=seed,
            checkpoints=plan.checkpoints, identity=plan.identity, preview=preview, report=report)
        save_tokens({placeholder(subject): token}, out / "token.safetensors")
        save(lora, out / "lora.safetensors")
        contact_sheet([("photos", photos_NHWC), *previews.rows()], out / "learn-subject-preview.png")
        keep(plan.inputs["images"], out / "images")
    return plan.artifact()


def learn_subject_tensors(backbone: Backbone, latents_NC1hw: Tensor, subject: str, class_word: str,
                          clips: Sequence[tuple[str, Tensor]], options: LearnSubjectOptions, *, seed: int = 0,
                          checkpoints: Path | None = None, identity: str = "", preview: Preview | None = None,
                          report: Report = silent) -> tuple[Tensor, Lora]:
    """Minimise L_sub + lambda1 L_reg over the token (1, width) and the spatial LoRA -> both.

    latents_NC1hw: the photos. clips: (caption, latents (1, C, F, h, w)) of the auxiliary set; none: L_sub alone.
    preview(step, token, lora) is called every options.preview_every steps and at the end, with the base as it was.
    """
    name = placeholder(subject)
    token = backbone.word_embedding(class_word).float().mean(0, keepdim=True).requires_grad_()
    with torch.no_grad():
        captions = [backbone.embed([caption]) for caption, _ in clips]                   # constant: embedded once
        nothing = backbone.embed([""])

    def losses_at(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        x_s = latents_NC1hw[pick(len(latents_NC1hw), options.batch, generator)]
        c_s = backbone.embed([subject_prompt(subject)], {name: token}).expand(len(x_s), -1, -1)
        loss_sub = denoising_loss(backbone, x_s, c_s, generator)                         # L_sub
        if not clips:
            return {"loss": loss_sub}
        k = int(pick(len(clips), 1, generator))
        mute = options.uncaptioned > 0 and float(torch.rand(1, generator=generator)) < options.uncaptioned
        loss_reg = denoising_loss(backbone, clips[k][1], nothing if mute else captions[k], generator)    # L_reg
        return {"loss": losses.subject(loss_sub, loss_reg, options.lambda1), "L_sub": loss_sub, "L_reg": loss_reg}

    def after_step(step: int) -> None:
        done = step + 1
        if preview and (done == options.steps or options.preview_every and done % options.preview_every == 0):
            with own.disabled():
                preview(done, token.detach(), own.lora())

    with training(backbone.denoiser, backbone.targets("subject"), options.rank, options.alpha, seed) as own:
        optimizer = torch.optim.AdamW([{"params": [token], "lr": options.token_rate},
                                       {"params": list(own.values()), "lr": options.rate}], weight_decay=0.0)
        fit({"token": token, **own}, losses_at, optimizer=optimizer, steps=options.steps, seed=seed,
            checkpoints=checkpoints, identity=identity, rate=schedule(options.schedule, options.steps),
            after_step=after_step, stop=asked_to_stop, report=report)
        return token.detach(), own.lora(subject=subject, **{"class": class_word})


def auxiliary(project: Workspace, backbone: Backbone, folder: Path | None, options: LearnSubjectOptions,
              report: Report) -> list[tuple[str, Tensor]]:
    """The auxiliary set of L_reg, [(caption, latents (1, C, F, h, w))]; none where lambda1 = 0.

    folder: clips, each with its caption in a .txt of the same name; None: drawn from the base.
    """
    if options.lambda1 == 0:
        return []
    if folder is None:
        return drawn(project, backbone, options, report)
    paths = natural([path for path in folder.iterdir() if path.suffix.lower() in CLIPS])
    mute = [path.name for path in paths if not path.with_suffix(".txt").is_file()]
    if mute or not paths:
        raise BadInput(f"the auxiliary clip {mute[0]} has no caption" if mute else f"{folder} holds no clips",
                       f"beside each clip put its caption: {Path(mute[0]).stem if mute else 'clip'}.txt")
    size = (backbone.height, backbone.width)
    return [(path.with_suffix(".txt").read_text(encoding="utf-8").strip(),
             encode(backbone, read_clip(path, frames=backbone.frames, size=size)[None])) for path in paths]


def drawn(project: Workspace, backbone: Backbone, options: LearnSubjectOptions, report: Report
          ) -> list[tuple[str, Tensor]]:
    """Auxiliary clips sampled once from the frozen base (**ours**), kept in .cache/auxiliary, shared by all subjects:
    clip k depends on k and its prompt alone, whatever a subject's seed is."""
    prompts = auxiliary_prompts(project.settings.base, options.auxiliary_count)
    key = json.dumps([backbone.revision, str(backbone.dtype), prompts, options.video_steps, options.guidance])
    folder = project.cache("auxiliary") / hashlib.sha256(key.encode()).hexdigest()[:16]
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{k}.safetensors" for k in range(len(prompts))]
    if not all(path.is_file() for path in paths):
        report(note=f"no auxiliary set is named: {len(prompts)} clips are drawn from the base itself and kept")
    for wait in (False, True):         # subjects learned at once share the work: first what nobody draws, then the rest
        for k, path in enumerate(paths):
            try:
                with project.lock(f"auxiliary-{k}", wait=wait):
                    if not path.is_file():
                        _draw_auxiliary(backbone, prompts[k], k, path, options)
                        report(step=k + 1, of=len(prompts), drawing=prompts[k])
            except Locked:
                continue
    return [(prompt, load_file(path)["latents"].to(backbone.device)) for prompt, path in zip(prompts, paths)]


def _draw_auxiliary(backbone: Backbone, prompt: str, k: int, path: Path, options: LearnSubjectOptions) -> None:
    go_on()
    x_0 = draw(backbone, prompt, gaussian(backbone, backbone.frames, k), steps=options.video_steps,
               guidance=options.guidance)
    save_file({"latents": x_0.cpu()}, partial := path.with_suffix(".partial"))
    partial.replace(path)
