"""Nothing grows with the number of steps: what is alive after 20 is alive after 100 (60 of sampling with low
memory)."""
from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest
import torch
from oracles import random_lora

from stages.backbones.bases import Video
from stages.core.collaborate import Branch, sample_loop
from stages.core.lora import branches
from stages.fuse import Group, Teacher, fuse_loras
from stages.learn_motion import learn_motion_tensors
from stages.learn_subject import learn_subject_tensors
from stages.options import FuseOptions, LearnMotionOptions, LearnSubjectOptions

sys.path.insert(0, str(Path(__file__).parent.parent))                     # bench/ is no installed package
from bench.bases import RandomBase, Size, latents, vectors, write  # noqa: E402
from bench.live import LiveBytes  # noqa: E402

SMALLEST = Size(Video(2, 8, 16, 16),
                dict(sample_size=4, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
                     down_block_types=("CrossAttnDownBlock3D",), up_block_types=("CrossAttnUpBlock3D",),
                     cross_attention_dim=8, attention_head_dim=4),
                dict(block_out_channels=(4, 4, 4), norm_num_groups=4, layers_per_block=1, latent_channels=4,
                     down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3),
                dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1), rank=2, length=10)

MANY = 100


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write(SMALLEST, tmp_path_factory.mktemp("smallest") / "base")


class Marks:
    """A report that notes down, after some steps, how many bytes of tensors and how many objects are alive."""

    def __init__(self, live: LiveBytes, *steps: int) -> None:
        self._live, self._steps, self.found = live, steps, []

    def __call__(self, **facts: object) -> None:
        if facts.get("step") in self._steps:
            gc.collect()
            self.found.append((self._live.live, len(gc.get_objects())))

    def flat(self) -> bool:
        (bytes_then, objects_then), (bytes_now, objects_now) = self.found
        return bytes_now == bytes_then and objects_now - objects_then < 20          # less than one a step


def learn_subject(backbone, report) -> None:
    clips = [("a red circle", latents(backbone))]
    learn_subject_tensors(backbone, latents(backbone, 1), "toy", "circle", clips,
                          LearnSubjectOptions(steps=MANY, rank=2, uncaptioned=0.25), report=report)


def learn_motion(backbone, report) -> None:
    learn_motion_tensors(backbone, latents(backbone), vectors(backbone), vectors(backbone),
                         LearnMotionOptions(steps=MANY, rank=2), report=report)


def fuse(backbone, report) -> None:
    both = vectors(backbone)
    teachers = [Teacher(name, torch.empty(0), random_lora(backbone.denoiser, backbone.targets("subject")), both,
                        latents(backbone)) for name in ("dog", "toy")]
    group = Group(("dog", "toy"), latents(backbone), torch.zeros(1, 2, 2, 16, 16), both, (range(2, 3), range(5, 6)))
    fuse_loras(backbone, teachers, [group], FuseOptions(steps=MANY), report=report)


@pytest.mark.parametrize("learn", [learn_subject, learn_motion, fuse])
def test_100_steps_of_learning_hold_what_20_held(folder, learn):
    backbone = RandomBase(SMALLEST, folder)
    with LiveBytes() as live:
        marks = Marks(live, 20, MANY)
        learn(backbone, marks)
    assert marks.flat() and marks.found[0][0] > 0


@pytest.mark.parametrize(("tau", "low_memory"), [(0, False), (MANY, False), (MANY, True)])
def test_many_steps_of_sampling_hold_what_20_held(folder, tau, low_memory):
    backbone = RandomBase(SMALLEST, folder, low_memory=low_memory)
    loras = {who: random_lora(backbone.denoiser, backbone.targets(who)) for who in ("subject", "motion")}
    steps = 60 if low_memory else MANY                                # which computes most of it twice, row by row
    pair = [Branch(vectors(backbone), vectors(backbone), [range(2, 3)], who) for who in loras]
    with LiveBytes() as live, branches(backbone.denoiser, loras, merge=backbone.merges) as rows:
        marks = Marks(live, 20, steps)
        sample_loop(backbone, rows, latents(backbone), *pair, steps=steps, tau=tau, guidance=2.0, alpha_s=1.0,
                    alpha_m=1.0, beta_s=0.5, beta_m=0.5, report=marks)
    assert marks.flat() and marks.found[0][0] > 0


@pytest.mark.parametrize("kept", ["tensors", "objects"])
def test_what_grows_is_noticed(kept):
    """A loop that keeps a tensor of every step, or a small thing."""
    x, everything = torch.randn(1, 4, 4, 8, 8), []
    with LiveBytes() as live:
        marks = Marks(live, 20, 200)
        for step in range(1, 201):
            everything.append(x * step if kept == "tensors" else [step])
            marks(step=step, t=step)
    assert not marks.flat()
