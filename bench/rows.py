"""What `make bench` times: loops of the product, as its stages run them, and the bare computations beside them.

Every loop here takes a Setting, a number of steps and a report, and reports after each step.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor

from stages.backbones import load
from stages.backbones.unet3d import UNet3D
from stages.core.attention import run_until
from stages.core.collaborate import Branch
from stages.core.denoise import sites_of
from stages.core.lora import Lora, training
from stages.core.report import Report, silent
from stages.core.settings import Settings
from stages.fuse import Group, Teacher, fuse_loras
from stages.learn_motion import learn_motion_tensors
from stages.learn_subject import learn_subject_tensors
from stages.options import (
    FuseOptions,
    LearnMotionOptions,
    LearnSubjectOptions,
    Options,
    SampleOptions,
    resolve,
)
from stages.prompts import TargetPrompt, placeholder, subject_prompt, target_prompt
from stages.sample import Learned, branches_of, sample_video

from .bases import SIZES, RandomBase, latents, lora, write

BASES = ("bench", "sprites")
RANK = 16                                        # of what learns on "bench"; sprites has its presets


@dataclass(frozen=True)
class Setting:
    """A base with what its steps read. options: of the training stages; of sampling those of the paper, on any base."""

    name: str
    backbone: UNet3D
    options: Mapping[str, Options]
    target: TargetPrompt
    learned: Learned
    photos: Tensor
    clip: Tensor

    @property
    def token(self) -> Tensor:
        return self.learned.tokens[placeholder("toy")]

    @torch.no_grad()
    def vectors(self, prompt: str) -> Tensor:
        """(1, L, D)."""
        return self.backbone.embed([prompt], self.learned.tokens)


def setting(name: str, folder: Path, *, device: str = "cpu") -> Setting:
    """"bench", of random weights, whose configs are written to `folder`, or "sprites" with its presets."""
    torch.manual_seed(0)
    options: dict[str, Options] = {"learn-subject": LearnSubjectOptions(rank=RANK, alpha=RANK), "fuse": FuseOptions(),
                                   "learn-motion": LearnMotionOptions(rank=RANK, alpha=RANK)}
    if name == "sprites":
        options = {stage: resolve(stage, Settings(base=name)) for stage in options}
    backbone = load(name, device=device) if name == "sprites" else RandomBase(
        SIZES[name], write(SIZES[name], folder / name), device=device)
    width = backbone.word_embedding("circle").shape[1]
    tokens = {placeholder(who): torch.randn(1, width) for who in ("toy", "pet")}
    learned = Learned(tokens, *(lora(backbone, who, RANK) for who in ("subject", "motion")), latents(backbone))
    photos = torch.cat([latents(backbone, 1) for _ in range(4)])
    target = target_prompt("<toy> chases <pet> in the snow", {"toy": "circle", "pet": "square"})
    return Setting(name, backbone, options, target, learned, photos, latents(backbone))


def both(s: Setting) -> tuple[Mapping[str, Lora], Branch, Branch]:
    """What `sampling` runs on: the LoRAs, the subject and the motion branch."""
    return ({"subject": s.learned.subject, "motion": s.learned.motion},
            *branches_of(s.backbone, s.target, s.learned, SampleOptions()))


def alone(s: Setting) -> Branch:
    """The base under the plain prompt."""
    return branches_of(s.backbone, s.target, s.learned, SampleOptions(branches="none"))[0]


# -- sampling --------------------------------------------------------------------------------------------------------
def sampling(s: Setting, steps: int, report: Report = silent, **options: object) -> Tensor:
    """`sample` of a video that nobody decodes. options: those of the command, over the paper's."""
    return sample_video(s.backbone, s.target, s.learned, SampleOptions(**{"steps": steps, "tau": 0, **options}),
                        report=report)


@torch.no_grad()
def one_row(s: Setting, steps: int, report: Report) -> None:
    """u: one forward of one row."""
    vectors = s.vectors("")
    for step in range(steps):
        s.backbone.denoiser(s.clip, 500, encoder_hidden_states=vectors)
        report(step=step + 1)


# -- learning --------------------------------------------------------------------------------------------------------
def motion(s: Setting, steps: int, report: Report, **options: object) -> None:
    """`learn-motion`; w = 0: a plain LoRA, without the appearance-free target; bank: of so many targets."""
    def listen(**facts: object) -> None:
        if "loss" in facts:                                                  # not what is reported of the bank before
            report(**facts)

    c_m, c_ap = s.vectors("a <toy> chases a <pet>"), s.vectors("A static video of <toy> and <pet>.")
    learn_motion_tensors(s.backbone, s.clip, c_m, c_ap, replace(s.options["learn-motion"], steps=steps, **options),
                         report=listen)


def subject(s: Setting, steps: int, report: Report) -> None:
    """`learn-subject`: photos, and a clip for L_reg."""
    options = replace(s.options["learn-subject"], steps=steps)
    learn_subject_tensors(s.backbone, s.photos, "toy", "circle", [("a red circle", s.clip)], options, report=report)


def fusing(s: Setting, steps: int, report: Report) -> None:
    """`fuse` of two subjects."""
    b = s.backbone
    teachers = [Teacher(name, token, lora(b, "subject", RANK), s.vectors(subject_prompt(name)), s.clip)
                for name, token in (("pet", s.token), ("toy", s.token))]
    masks = torch.zeros(1, 2, b.frames, b.height, b.width)
    group = Group(("pet", "toy"), s.clip, masks, s.vectors("A <pet> and a <toy>"), (range(2, 3), range(5, 6)))
    fuse_loras(b, teachers, [group], replace(s.options["fuse"], steps=steps), report=report)


# -- bare ------------------------------------------------------------------------------------------------------------
def bare_motion(s: Setting, steps: int, report: Report) -> None:
    """Forward and backward of the batch of `motion`, w = 0, on the network that PEFT has changed for it."""
    options = s.options["learn-motion"]
    x, vectors = s.clip.repeat(options.batch, 1, 1, 1, 1), s.vectors("a <toy> chases a <pet>")
    with training(s.backbone.denoiser, s.backbone.targets("motion"), options.rank, options.alpha) as own:
        for step in range(steps):
            _mse(s.backbone, x, vectors).backward()
            _forget(own)
            report(step=step + 1)


def bare_subject(s: Setting, steps: int, report: Report) -> None:
    """Of `subject`: the photos under the token, which learns through the text encoder, and the clip."""
    options, token = s.options["learn-subject"], s.token.clone().requires_grad_()
    photos, vectors = s.photos[torch.arange(options.batch) % len(s.photos)], s.vectors("a red circle")
    with training(s.backbone.denoiser, s.backbone.targets("subject"), options.rank, options.alpha) as own:
        for step in range(steps):
            c_s = s.backbone.embed([subject_prompt("toy")], {placeholder("toy"): token})
            (_mse(s.backbone, photos, c_s) + _mse(s.backbone, s.clip, vectors)).backward()
            _forget({**own, "token": token})
            report(step=step + 1)


def bare_fusing(s: Setting, steps: int, report: Report) -> None:
    """Of `fusing`: what the base says without any LoRA, and the forward and backward of the student's rows and of the
    composition's; in one batch with L_mix, else the composition's ends with the last watched layer."""
    options = s.options["fuse"]
    rows = options.batch * (1 if options.teachers == "turns" else 2)
    x, vectors = s.clip.repeat(rows, 1, 1, 1, 1), s.vectors("A <toy>")
    last, seen = sites_of(s.backbone, options.layers, "cross", "space")[-1], []
    rank = 2 * RANK                                                          # the mean of two LoRAs holds both
    with training(s.backbone.denoiser, s.backbone.targets("subject"), rank, float(rank)) as own:
        handle = s.backbone.denoiser.get_submodule(last.name).register_forward_hook(
            lambda module, args, output: seen.append(output))
        layers = [module for module in s.backbone.denoiser.modules() if isinstance(module, LoraLayer)]
        for step in range(steps):
            for on in (False, True):                                         # off for the base's answer
                for layer in layers:
                    layer._disable_adapters = not on
                if not on:
                    with torch.no_grad():
                        _mse(s.backbone, x, vectors)
            loss = _mse(s.backbone, torch.cat([x, s.clip]) if options.lambda_mix else x, vectors)
            if not options.lambda_mix:
                seen.clear()
                run_until(s.backbone.denoiser, last, lambda: _mse(s.backbone, s.clip, vectors))
                loss = loss + seen[-1].square().mean()
            loss.backward()
            seen.clear()
            _forget(own)
            report(step=step + 1)
        handle.remove()


def _mse(backbone: UNet3D, x: Tensor, vectors: Tensor) -> Tensor:
    said = backbone.denoiser(x, 500, encoder_hidden_states=vectors.expand(len(x), -1, -1)).sample
    return F.mse_loss(said, x)


def _forget(parameters: Mapping[str, Tensor]) -> None:
    for parameter in parameters.values():
        parameter.grad = None
