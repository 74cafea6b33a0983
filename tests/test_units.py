"""The cost model: rows through every block and back, and operations, predicted and counted on a real network."""
from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from oracles import random_lora

from stages.backbones.cost import Base, units
from stages.backbones.walks import passes
from stages.options import SampleOptions
from stages.prompts import target_prompt
from stages.sample import Learned, sample_video

sys.path.insert(0, str(Path(__file__).parent.parent))                     # bench/ is no installed package
from bench.units import counting, operations  # noqa: E402

DEPTHS = ("down_blocks.0", "mid", "up_blocks.0", "all")
STEPS = 10                                      # with tau 0, 1, 3, 10: the shares of 0, 5, 15, 50 of the paper's 50


@pytest.fixture(scope="module")
def draw(backbone):
    """draw(options): a video of the product, both branches."""
    target = target_prompt("<toy> is chasing <dog> in snow", {"toy": "teddy bear", "dog": "dog"})
    generator = torch.Generator().manual_seed(0)
    tokens = {name: torch.randn(1, 32, generator=generator) for name in ("<toy>", "<dog>")}
    learned = Learned(tokens, *(random_lora(backbone.denoiser, backbone.targets(who), seed=seed)
                                for seed, who in enumerate(("subject", "motion"))),
                      torch.randn(1, 4, 4, 8, 8, generator=generator))
    return lambda options: sample_video(backbone, target, learned, options)


@pytest.fixture(scope="module")
def base(base_folder, backbone) -> Base:
    return Base(base_folder, frames=backbone.frames, height=backbone.height, width=backbone.width, dtype="fp32",
                low_memory=False)


@pytest.mark.parametrize("layers", DEPTHS)
@pytest.mark.parametrize("tau", [0, 1, 3, STEPS])
def test_rows_through_every_block_are_those_predicted(backbone, base, draw, tau, layers):
    options = SampleOptions(steps=STEPS, tau=tau, layers=layers, alpha=1.0)
    with counting(backbone.denoiser, backbone.frames) as counted:
        draw(options)
    blocks = base.blocks()
    assert list(counted.kinds.values()) == [block.kind for block in blocks]
    assert counted.passes == passes(base.blocks(), options, low=False)
    assert counted.passes[0] == (4 * STEPS + 2 * tau, 2 * tau)


def test_rows_of_a_video_as_the_paper_has_it(backbone, base, draw):
    options = SampleOptions(alpha=1.0)
    with counting(backbone.denoiser, backbone.frames) as counted:
        draw(options)
    assert (options.steps, options.tau) == (50, 15) and counted.passes == passes(base.blocks(), options, low=False)


@pytest.mark.parametrize("more", [
    {"unconditional": "shared"}, {"unconditional": "base"}, {"guidance_steps": 3}, {"guide_every": 2},
    {"guidance_motion": 1.0}, {"guidance": 1.0}, {"motion_steps": 2}, {"branches": "motion", "guidance_motion": 1.0},
    {"branches": "subject"}, {"branches": "joint"}, {"branches": "none"}, {"solver": "dpm++"},
    {"unconditional": "shared", "guidance_steps": 4, "guide_every": 3, "motion_steps": 5}])
def test_rows_of_approximations_and_ablations(backbone, base, draw, more):
    options = SampleOptions(**{"steps": 6, "tau": 4, "alpha": 1.0, **more})
    with counting(backbone.denoiser, backbone.frames) as counted:
        draw(options)
    assert counted.passes == passes(base.blocks(), options, low=False)


@pytest.mark.parametrize("layers", DEPTHS)
def test_operations_are_those_predicted(backbone, base, draw, layers):
    """In u: operations over those of one row's forward."""
    with torch.no_grad(), operations() as one:
        backbone.predict(torch.randn(1, 4, 4, 8, 8), 500, torch.randn(1, 20, 32))
    assert one.get_total_flops() == pytest.approx(base.forward(), rel=0.01)
    for tau in (0, 1):
        options = SampleOptions(steps=1, tau=tau, layers=layers, alpha=1.0)
        with operations() as counted:
            draw(options)
        u = counted.get_total_flops() / one.get_total_flops()
        assert units(base, options) == pytest.approx(u, rel=0.04)
