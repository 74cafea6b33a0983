"""fuse: several subject LoRAs into one that keeps the subjects apart (METHOD 4).

    L_fusion = 1/N sum_n E || eps_theta_s^(x_n, c_n, t) - eps_theta_s,n(x_n, c_n, t) ||^2
    L_attn   = 1/2 sum_{i=1,2} || M_SCA,i - M_i ||^2          on CutMix compositions of two subjects
    L        = L_fusion + lambda2 L_attn + lambda_mix L_mix   from the exact mean of the subject LoRAs

x_n: videos sampled from subject n's own LoRA ("A <sub_n>"), which is also the teacher. Any N >= 2: the subjects of
L_attn, and their order, change from step to step.

**Ours**, each an option that is off as the paper has it:
- L_mix is the denoising loss of the composition under its prompt, "A <sub_i> and a <sub_j>". L_fusion shows the student
  one subject at a time and L_attn only where to look: nothing else tells it that two may be in one frame, each whole.
- cuts = photos: CutMix cuts the subjects from their photos, which are sharper than what their LoRAs draw.
- together: more than two subjects in a composition.
- teachers = turns: one term of L_fusion's sum a step, N steps for all: more steps in the same time.
- t_max: training ends below the noise levels at which the motion branch lays out the video.

Legend: x latents (B, C, F, h, w); N subjects, n of them in a composition; V videos of a subject, K compositions of a
group; L text tokens, D their width.
"""
from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import STAGES
from .backbones import identity_of, load_for
from .backbones.unet3d import UNet3D as Backbone
from .core import losses
from .core.attention import Site, run_until, watch, word_maps
from .core.collaborate import Rows
from .core.cutmix import Cut, cutmix
from .core.denoise import Noised, draw, drawing, encode, gaussian, noised, pick, seed_of, sites_of
from .core.errors import UsageError
from .core.lora import Lora, branches, load_token, mean, provenance, save, training
from .core.lora import load as load_lora
from .core.report import Report, asked_to_stop, silent
from .core.sheets import contact_sheet, overlay
from .core.team import ALONE, Team, on_devices
from .core.train import adamw, fit, schedule
from .core.video import write_video
from .core.workspace import Artifact, Workspace, fused_name
from .cuts import Finder, from_photos, from_videos
from .options import FuseOptions
from .prompts import placeholder, subject_prompt, together_prompt, token_span


@dataclass(frozen=True)
class Teacher:
    """One subject: its token rows, its own LoRA, c_n (1, L, D), and x_n (V, C, F, h, w) sampled from that LoRA."""

    name: str
    token: Tensor
    lora: Lora
    vectors: Tensor
    latents: Tensor


@dataclass(frozen=True)
class Group:
    """K CutMix compositions of n subjects in this order: latents (K, C, F, h, w); masks (K, n, F, H, W), what is
    visible of each; vectors (1, L, D) of "A <i> and a <j>"; words: the token positions of <i>, <j> ... in it."""

    names: tuple[str, ...]
    latents: Tensor
    masks: Tensor
    vectors: Tensor
    words: tuple[range, ...]


@on_devices
def fuse(project: Workspace, subjects: Sequence[str] | None = None, options: FuseOptions | None = None, *,
         device: str = "cpu", dtype: str = "fp32", low_memory: bool = False, compiled: bool = False, seed: int = 0,
         force: bool = False, report: Report = silent, team: Team = ALONE) -> Artifact:
    """Fuse the LoRAs of two or more learned subjects (None: all of the project) -> lora.safetensors, videos/, preview.

    device: one, or "cuda:0,cuda:1", which share the drawing of the videos and the terms of the loss.
    Raises UsageError for fewer than two, MissingPrerequisite where one has not been learned, BadInput where a subject
    is found in none of its own videos (or photos, if CutMix cuts it from those).
    """
    names = sorted(set(subjects if subjects is not None else project.subjects()))
    if len(names) < 2:
        raise UsageError(f"fuse needs two subjects or more, and was given {', '.join(names) or 'none'}",
                         "name them: videomage fuse --subjects toy dog; a single subject is sampled as it is")
    plan = project.plan(STAGES["fuse"], fused_name(names), options, seed=seed, base=identity_of(project))
    if team.first_says(bool(plan.state())) and not force:
        return plan.artifact()
    taught = 1 if plan.options.teachers == "turns" else len(names)
    team.require(taught * plan.options.batch + _composing(plan.options), "fuse")
    with plan.making(report, force=force, team=team) as out:
        backbone, options = load_for(project, device=device, dtype=dtype, low_memory=low_memory,
                                     compiled=compiled, report=report), plan.options
        plan.facts["run on"] = backbone.run_on
        teachers = []
        for name in names:
            token = load_token(plan.inputs[f"{name}/token"], placeholder(name)).to(backbone.device)
            teachers.append(teacher(backbone, name, token, load_lora(plan.inputs[f"{name}/lora"]), options, seed=seed,
                                    report=report, team=team))
        finder = Finder(project, options, device, report)
        videos = {t.name: [backbone.decode(x[None])[0] for x in t.latents] for t in teachers}
        cuts = {}
        for name, class_word in plan.request["subjects"].items():
            photos, masks = (plan.inputs.get(f"{name}/{label}") for label in ("images", "masks"))
            cuts[name] = (from_photos(name, photos, masks, videos[name][0].shape[:3], finder, class_word, report)
                          if photos else from_videos(name, videos[name], finder, class_word, report))
        groups = compose_groups(backbone, teachers, cuts, options, seed=seed)
        lora = fuse_loras(backbone, teachers, groups, options, seed=seed, checkpoints=plan.checkpoints,
                          identity=plan.identity, curve_to=out / "lora-loss.csv", report=report, team=team)
        if team.main:
            save(lora, out / "lora.safetensors")
            (out / "videos").mkdir()
            for name, own in videos.items():
                for v, frames in enumerate(own):
                    write_video(out / "videos" / f"{name}-{v}.mp4", frames, fps=backbone.fps)
            seen = {name: len(found) for name, found in cuts.items()}
            plan.facts[f"{options.cuts} with their subject in sight"] = seen
            contact_sheet(_preview(backbone, teachers, videos, groups, lora, options, seed), out / "fuse-preview.png")
    return plan.artifact()


def fuse_loras(backbone: Backbone, teachers: Sequence[Teacher], groups: Sequence[Group], options: FuseOptions, *,
               seed: int = 0, checkpoints: Path | None = None, identity: str = "", curve_to: Path | None = None,
               report: Report = silent, team: Team = ALONE) -> Lora:
    """Minimise L_fusion + lambda2 L_attn over one spatial LoRA, from the mean of the teachers' (rank N r) -> that LoRA;
    from the sum of their changes where options.start says so.

    Student and teachers share one network: the fused LoRA is trained through PEFT, each teacher's acts on its
    own rows of the batch while the student's is off. No adapter is switched by name.
    """
    sites = sites_of(backbone, options.layers, "cross", "space")
    unet = backbone.denoiser
    rounds = [[t] for t in teachers] if options.teachers == "turns" else [list(teachers)]
    mine = team.deal({"L_fusion": [4] * len(rounds[0]) * options.batch,                         # in forwards, about
                      "L_attn": [3] * _composing(options)})
    begin = mean([t.lora for t in teachers], [1.0] * len(teachers) if options.start == "sum" else None)
    with training(unet, backbone.targets("subject"), seed=seed, start=begin) as own, \
            branches(unet, {t.name: t.lora for t in teachers}, merge=backbone.merges) as rows:

        def losses_at(step: int, generator: torch.Generator) -> dict[str, Tensor]:
            taught = rounds[step % len(rounds)]
            names = [t.name for t in taught for _ in range(options.batch)]
            c_n = torch.cat([t.vectors.expand(options.batch, -1, -1) for t in taught])
            x_n, t_n, _ = noised(backbone, torch.cat([t.latents[pick(len(t.latents), options.batch, generator)]
                                                      for t in taught]), generator, options.t_max)
            at, share = mine["L_fusion"], len(mine["L_fusion"]) / len(names)
            x, t, c = x_n[at], t_n[at], c_n[at]                                      # the rows of this process
            wanted = taught_by([names[n] for n in at], x, t, c)
            mixed = composition(backbone, groups[step // len(rounds) % len(groups)], generator, options.t_max) \
                if mine["L_attn"] else None
            said, found = student(backbone, rows, sites, (x, t, c), mixed, whole=options.lambda_mix > 0)
            loss_fusion = losses.fusion(said, wanted) * share if at else x_n.new_zeros(())
            if not _composing(options):
                return {"loss": loss_fusion}
            found = found or {name: x_n.new_zeros(()) for name in ("L_attn", "L_mix")[:1 + (options.lambda_mix > 0)]}
            loss = losses.total_fusion(loss_fusion, found["L_attn"], options.lambda2)
            if options.lambda_mix:
                loss = loss + options.lambda_mix * found["L_mix"]
            return {"loss": loss, "L_fusion": loss_fusion, **found}

        @torch.no_grad()
        def taught_by(names: Sequence[str], x: Tensor, t: Tensor, c: Tensor) -> Tensor:
            """eps_theta_s,n, each row from its own subject's LoRA."""
            with own.disabled():
                rows(names)
                return backbone.predict(x, t, c) if names else x

        def drawn(step: int, generator: torch.Generator) -> str:
            group = groups[step // len(rounds) % len(groups)].names if _composing(options) else ()
            return f"L_fusion of {', '.join(t.name for t in rounds[step % len(rounds)])}" + \
                (f", a composition of {', '.join(group)}" if group else "")

        steps, optimizer = options.steps_for(len(teachers)), adamw(own.values(), options.rate)
        fit(own, losses_at, optimizer=optimizer, steps=steps, seed=seed, checkpoints=checkpoints,
            identity=identity, rate=schedule(options.schedule, steps), stop=asked_to_stop,
            batch=drawn, curve_to=curve_to, report=report, team=team)
        names = [t.name for t in teachers]
        origin = provenance(backbone, "subject", map(placeholder, names))
        return own.lora(subjects="+".join(names), prompt=together_prompt(*names), **origin)


def _composing(options: FuseOptions) -> bool:
    """Whether a step looks at a composition: L_attn, L_mix."""
    return options.lambda2 > 0 or options.lambda_mix > 0


@dataclass(frozen=True)
class Composition:
    """One composition of a group, noised at a random t."""

    group: Group
    row: Noised
    masks: Sequence[Tensor]


def composition(backbone: Backbone, group: Group, generator: torch.Generator, t_max: float) -> Composition:
    """Draw one."""
    k = pick(len(group.latents), 1, generator)
    row = noised(backbone, group.latents[k], generator, t_max)
    return Composition(group, row, [group.masks[k, n].to(row.x) for n in range(len(group.words))])


def student(backbone: Backbone, rows: Rows, sites: Sequence[Site], taught: tuple[Tensor, Tensor, Tensor],
            mixed: Composition | None, *, whole: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """(what the student says of x_n, {L_attn of a composition; whole: L_mix as well}).

    taught: x_n, t, vectors, perhaps without a row; mixed: None where no composition is looked at. Both go through the
    network in one batch, unless memory is low. Without L_mix the composition's forward is one of its own, and ends with
    the last watched layer.
    """
    own = (mixed.row.x, mixed.row.t, mixed.group.vectors) if mixed else None
    batches = [(taught, False)] if len(taught[0]) else []
    if batches and mixed and whole and not backbone.low_memory:
        batches = [(tuple(map(torch.cat, zip(taught, own))), True)]
    elif mixed:
        batches.append((own, True))
    outputs, maps = [], {}
    for batch, looked_at in batches:
        of = [row == len(batch[0]) - 1 for row in range(len(batch[0]))]                  # the composition comes last
        rows([None] * len(of))
        with watch(backbone.denoiser, sites if looked_at else [], of=of) as seen:
            def forward(batch: tuple[Tensor, ...] = batch) -> None:
                outputs.extend(backbone.predict(*batch).split(1))

            run_until(backbone.denoiser, sites[-1], forward) if looked_at and not whole else forward()
        maps |= seen
    said = torch.cat(outputs[:len(taught[0])]) if len(taught[0]) else taught[0]
    if mixed is None:
        return said, {}
    frames, *size = mixed.row.x.shape[2:]
    sca = word_maps(maps, sites, mixed.group.words, frames, tuple(size))                 # M_SCA,i
    found = {"L_attn": losses.attention(sca, mixed.masks)}
    return said, found | ({"L_mix": losses.denoising(outputs[-1], mixed.row.target)} if whole else {})


# -- training videos -------------------------------------------------------------------------------------------------
def teacher(backbone: Backbone, name: str, token: Tensor, lora: Lora, options: FuseOptions, *, seed: int = 0,
            report: Report = silent, team: Team = ALONE) -> Teacher:
    """Sample the training videos of one subject from its own LoRA, but for those that are in the cache. team: those who
    share the drawing; all get all videos."""
    prompt, tokens, mine = subject_prompt(name), {placeholder(name): token}, range(team.rank, options.videos, team.size)
    with torch.no_grad():
        vectors = backbone.embed([prompt], tokens)
    noise = [gaussian(backbone, backbone.frames, seed_of(seed, name, v)) for v in range(options.videos)]
    jobs = [drawing(backbone, prompt, noise[v], tokens=tokens, lora=lora, steps=options.video_steps,
                    guidance=options.guidance, unconditional=options.unconditional) for v in mine]
    videos = [torch.zeros_like(x_T) for x_T in noise]
    for v, x_0 in zip(mine, backbone.cache.several("videos", jobs, made=lambda k: report(
            step=mine[k] + 1, of=options.videos, drawing=name))):
        videos[v] = x_0.to(backbone.device)
    return Teacher(name, token, lora, vectors, team.total(torch.cat(videos)))


def compose_groups(backbone: Backbone, teachers: Sequence[Teacher], cuts: dict[str, list[Cut]], options: FuseOptions, *,
                   seed: int = 0) -> list[Group]:
    """options.compositions of CutMix, shared out among all groups of options.together subjects in every order
    (**ours**: prompts name them in any), one each at least; latents and text vectors are computed once. The latents are
    not kept in the cache: they are many, any other option or seed makes others, and the VAE is loaded anyway."""
    orders = list(itertools.permutations(teachers, min(options.together, len(teachers))))
    groups = []
    for members in orders:
        names, made = tuple(t.name for t in members), []
        for k in range(max(1, options.compositions // len(orders))):
            rng = np.random.default_rng(seed_of(seed, *names, k))
            made.append(cutmix([cuts[name][rng.integers(len(cuts[name]))] for name in names], rng, options.overlap))
        prompt, tokens = together_prompt(*names), {placeholder(t.name): t.token for t in members}
        places = backbone.positions(prompt, tokens)
        words = tuple(token_span(places, range(1 + 3 * n, 2 + 3 * n)) for n in range(len(names)))
        with torch.no_grad():
            vectors = backbone.embed([prompt], tokens)
        latents = torch.cat([encode(backbone, part.frames[None], keep=False) for part in made])
        masks = torch.as_tensor(np.stack([part.masks for part in made]))
        groups.append(Group(names, latents, masks.to(backbone.device), vectors, words))
    return groups


def _preview(backbone: Backbone, teachers: Sequence[Teacher], videos: dict[str, list[np.ndarray]],
             groups: Sequence[Group], lora: Lora, options: FuseOptions, seed: int) -> list[tuple[str, np.ndarray]]:
    """Rows of the sheet: a video of each subject, then for each group a composition with its masks and what the mean of
    the LoRAs and the fused LoRA make of its prompt from the same noise."""
    rows = [(f"{subject_prompt(name)}, own LoRA", own[0]) for name, own in videos.items()]
    x_T = gaussian(backbone, backbone.frames, seed)
    average = mean([t.lora for t in teachers])
    tokens = {placeholder(t.name): t.token for t in teachers}
    for group in groups:
        if group.names != tuple(sorted(group.names)):
            continue                                             # each group is shown in one of its orders
        prompt, masks = together_prompt(*group.names), dict(zip(group.names, group.masks[0].cpu().numpy()))
        rows.append((f"CutMix, {prompt}", overlay(backbone.decode(group.latents[:1])[0], masks)))
        for label, which in (("mean of the LoRAs", average), ("fused LoRA", lora)):
            x_0 = draw(backbone, prompt, x_T, tokens=tokens, lora=which, steps=options.video_steps,
                       guidance=options.guidance, unconditional=options.unconditional)
            rows.append((f"{label}, {prompt}", backbone.decode(x_0)[0]))
    return rows
