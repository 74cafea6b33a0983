"""sample: subjects and motion in one denoising, Algorithm 1 (METHOD 5).

x_T = sqrt(beta) eps_m + sqrt(1 - beta) eps; then core/collaborate.py, line by line. Without subjects or without a
motion only the branch that is there runs, which is plain guided DDIM; with neither it is a plain sample of the base.
x_T is the same in every case, so that ablations (--branches) differ in the branches alone.

**Ours**, an option that is off as the paper has it: eps_m is inverted from the recast clip, in which a photo of each
subject stands in its actor's place (inverted = cast). The noise of the clip as it is holds its actors' colours; they
shine through the subjects, and decide which of them takes which path, whatever the prompt says.

Legend: x latents (1, C, F, h, w); L text tokens, D their width.
"""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .backbones import identity_of, load_for
from .backbones.unet3d import UNet3D as Backbone
from .core.collaborate import Branch, sample_loop
from .core.denoise import encode, gaussian, invert_clip, sites_of
from .core.errors import BadInput, Interrupted
from .core.lora import Lora, branches, load_token
from .core.lora import load as load_lora
from .core.noise import mix
from .core.report import Report, asked_to_stop, silent
from .core.sheets import contact_sheet
from .core.spent import counting_rows, peak_memory
from .core.takes import FACTS, read_take
from .core.tensors import read_tensors
from .core.video import read_images, write_frames, write_video
from .core.workspace import Artifact, Plan, Workspace
from .cuts import Finder, from_photos, recast_clip
from .options import SampleOptions
from .orders import sample_plans, target_of
from .prompts import TargetPrompt, listed, motion_prompt, placeholder, roles, token_span


@dataclass(frozen=True)
class Learned:
    """What a sample is made from: {"<toy>": rows}, the subjects' LoRA, the motion's LoRA, eps_m (1, C, F, h, w); None
    or empty for what it does without."""

    tokens: Mapping[str, Tensor]
    subject: Lora | None
    motion: Lora | None
    noise: Tensor | None


def sample(project: Workspace, prompts: Sequence[str] | None = None, options: SampleOptions | None = None, *,
           subjects: Sequence[str] | None = None, motion: str | None = None, device: str = "cpu", dtype: str = "fp32",
           low_memory: bool = False, compiled: bool = False, seed: int = 0, force: bool = False,
           report: Report = silent) -> list[Artifact]:
    """A video for each prompt and seed (seed, seed + 1, ... for options.count) -> samples/NNNN-words/ with video.mp4,
    frames.png (lossless), sheet.png and log.json (per step: both losses and |dx| / |x|).

    prompts: "<toy> is riding <dog> in the snow"; None: those of project.yaml. subjects: whose LoRA runs; None: those
    that the prompt names, their fused LoRA for several. motion: None the project's, "none" none.
    Raises MissingPrerequisite for what has not been learned, UsageError and BadInput for what cannot be asked.
    """
    plans = sample_plans(project, prompts, options, subjects=subjects, motion=motion, seed=seed,
                         base=identity_of(project))
    return make_samples(project, plans, device=device, dtype=dtype, low_memory=low_memory, compiled=compiled,
                        force=force, report=report)


def make_samples(project: Workspace, plans: Sequence[Plan], *, device: str = "cpu", dtype: str = "fp32",
                 low_memory: bool = False, compiled: bool = False, force: bool = False, report: Report = silent
                 ) -> list[Artifact]:
    """The videos of plans (orders.sample_plans) that are not fresh; the base is loaded once. Raises as sample does."""
    backbone, artifacts = None, []
    for index, plan in enumerate(plans):
        if force or not plan.state():
            if asked_to_stop():
                raise Interrupted(f"stopped before video {index + 1} of {len(plans)}", "run the same command again")
            with plan.making(report, force=force) as out:
                backbone = backbone or load_for(project, device=device, dtype=dtype, low_memory=low_memory,
                                                compiled=compiled, report=report)
                plan.facts["run on"] = backbone.run_on
                _make(project, backbone, plan, out, report)
        artifacts.append(plan.artifact())
    return artifacts


def _make(project: Workspace, backbone: Backbone, plan: Plan, out: Path, report: Report) -> None:
    """One video of one plan, written to `out`."""
    learned, target = learned_of(plan, backbone), target_of(project, plan.request["prompt"])
    rows = _sources(project, plan, (backbone.height, backbone.width))
    if "motion/frames" in plan.inputs:
        clip, noise = recast_noise(project, backbone, plan, target, report=report)
        learned = replace(learned, noise=noise)
        rows.append(("the clip, recast", clip))
    log: list[dict] = []

    def listen(**facts: object) -> None:
        if "step" in facts:
            log.append({key: value for key, value in facts.items() if key != "of"})
        report(**facts)

    with counting_rows(backbone.denoiser) as rows_seen:
        x_0 = sample_video(backbone, target, learned, plan.options, seed=plan.seed, report=listen)
    frames = backbone.decode(x_0)[0]
    plan.facts |= {"forwards": rows_seen[0], "peak memory": peak_memory(backbone.device)}
    write_video(out / "video.mp4", frames, fps=backbone.fps)
    write_frames(out / "frames.png", frames)
    (out / "log.json").write_text(json.dumps({"prompt": target.text, "plain prompt": target.plain, "steps": log},
                                             indent=1) + "\n", encoding="utf-8")
    contact_sheet([*rows, (target.text, frames)], out / "sheet.png")


def sample_video(backbone: Backbone, target: TargetPrompt, learned: Learned, options: SampleOptions, *, seed: int = 0,
                 report: Report = silent) -> Tensor:
    """Algorithm 1 for one prompt and seed -> x_0 (1, C, F, h, w)."""
    for axis, kind in (("space", "cross"), ("time", "self")):
        sites_of(backbone, options.layers, kind, axis)                       # a misspelt layer is said before any work
    x_T = initial_noise(backbone, learned.noise, options, seed)
    subject, motion = branches_of(backbone, target, learned, options)
    used = {branch.row for branch in (subject, motion) if branch}
    loras = {who: lora for who, lora in (("subject", learned.subject), ("motion", learned.motion),
                                         ("joint", [learned.subject, learned.motion])) if who in used}
    alpha_motion = options.alpha if options.alpha_motion is None else options.alpha_motion
    with branches(backbone.denoiser, loras, merge=backbone.merges) as rows:
        return sample_loop(backbone, rows, x_T, subject, motion, steps=options.steps, tau=options.tau,
                           guidance=options.guidance, guidance_motion=options.guidance_motion, alpha_s=options.alpha,
                           alpha_m=alpha_motion, beta_s=options.beta_s, beta_m=options.beta_m, layers=options.layers,
                           motion_steps=options.motion_steps, guidance_steps=options.guidance_steps,
                           guide_every=options.guide_every, solver=options.solver, report=report)


def initial_noise(backbone: Backbone, inverted: Tensor | None, options: SampleOptions, seed: int) -> Tensor:
    """x_T = sqrt(beta) eps_m + sqrt(1 - beta) eps (supplement 7.1); eps alone without a motion, or with beta = 0."""
    noise = gaussian(backbone, options.frames or backbone.frames, seed)
    if inverted is None or options.beta == 0:
        return noise
    if inverted.shape != noise.shape:
        raise BadInput(f"the inverted noise is of shape {tuple(inverted.shape)}, the video of {tuple(noise.shape)}",
                       "leave --frames out, or sample with --beta 0")
    return mix(inverted.to(noise), noise, options.beta)


def recast_noise(project: Workspace, backbone: Backbone, plan: Plan, target: TargetPrompt, *, report: Report = silent
                 ) -> tuple[np.ndarray, Tensor]:
    """(frames (F, H, W, 3) of the motion's clip with a photo of each subject of the prompt in its actor's place, the
    noise (1, C, F, h, w) inverted from them the way that invert went for the clip itself: kept in the cache, so once
    for all videos that start from the same clip)."""
    motion, options = plan.request["motion"], plan.options
    shape = (options.frames or backbone.frames, backbone.height, backbone.width)
    finder = Finder(project, options, str(backbone.device), report)
    parts = roles(target, motion_prompt(project.motion(motion).prompt))
    cuts = {name: from_photos(name, plan.inputs[f"{name}/images"], plan.inputs.get(f"{name}/masks"), shape, finder,
                              project.subject(name).class_word, report) for name in parts.values()}
    report(note="the clip is recast: " + listed([f"<{subject}> for the {actor}" for actor, subject in parts.items()]
                                                or ["its actors stay, for the prompt names no subject"]))
    clip = recast_clip(project.motion_folder(motion), shape, parts, cuts, finder)
    walk = project.manifest(project.motion_folder(motion) / "invert.json")["options"]
    return clip, invert_clip(backbone, encode(backbone, clip[None]), steps=walk["inversion_steps"],
                             refine=walk["inversion_refine"], what="the recast clip", report=report)


@torch.no_grad()
def branches_of(backbone: Backbone, target: TargetPrompt, learned: Learned, options: SampleOptions
                ) -> tuple[Branch | None, Branch | None]:
    """(subject branch, motion branch) of Algorithm 1, lines 3 and 4; None for the one that does not run.

    The subject branch reads c_tgt with the learned tokens, the motion branch c~_tgt with the class words in their
    places; words[i] of one answers to words[i] of the other. options.branches: "auto", or one alone, or "joint": one
    that reads c_tgt and holds both LoRAs, which is what SCS takes the place of; or "none": the plain base on the plain
    prompt.
    """
    whole = learned.subject is not None and learned.motion is not None
    joint = options.branches == "joint" and whole
    with_subject = options.branches in ("auto", "subject", "joint") and learned.subject is not None
    with_motion = options.branches in ("auto", "motion", "joint") and learned.motion is not None and not joint
    places, plain_places = backbone.positions(target.text, learned.tokens), backbone.positions(target.plain)
    c_tgt, c_plain, empty = backbone.embed([target.text, target.plain, ""], learned.tokens).split(1)
    subject = Branch(c_tgt, empty, [token_span(places, words) for _, words, _ in target.pairs],
                     "joint" if joint else "subject", options.unconditional)
    motion = Branch(c_plain, empty, [token_span(plain_places, words) for _, _, words in target.pairs], "motion",
                    "shared" if options.unconditional == "shared" and with_subject else "own")
    if with_subject or with_motion:
        return subject if with_subject else None, motion if with_motion else None
    return Branch(c_plain, empty, row=None), None


def learned_of(plan: Plan, backbone: Backbone) -> Learned:
    """Read what the plan's inputs name."""
    inputs, names = plan.inputs, plan.request["subjects"]
    tokens = {placeholder(name): load_token(inputs[f"{name}/token"], placeholder(name)).to(backbone.device)
              for name in names}
    lora = inputs.get("fused") or (inputs[f"{names[0]}/lora"] if names else None)
    motion = inputs.get("motion/lora")
    return Learned(tokens, load_lora(lora) if lora else None, load_lora(motion) if motion else None,
                   _noise(inputs["motion/noise"]) if motion else None)


def _noise(path: Path) -> Tensor:
    """eps_m (1, C, F, h, w) as invert left it."""
    found, _ = read_tensors(path, "inverted noise")
    if set(found) != {"noise"} or not found["noise"].is_floating_point():
        raise BadInput(f"{path} holds no inverted noise", "Run: videomage invert --force")
    return found["noise"]


def _sources(project: Workspace, plan: Plan, size: tuple[int, int]) -> list[tuple[str, np.ndarray]]:
    """Rows of the sheet: the photos of each subject, and the clip."""
    rows = [(f"photos of {placeholder(name)}", read_images(project.photos(name), size))
            for name in plan.request["subjects"] if project.photos(name)]
    if plan.request["motion"]:
        folder = project.motion_folder(plan.request["motion"])
        if (folder / FACTS).is_file():
            rows.append((f"the clip of {plan.request['motion']}", read_take(folder, size).window()))
    return rows
