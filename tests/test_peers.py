"""The peers in bench/ are what they are said to be: the same numbers as the slow versions, the losses as published."""
from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import algorithm_1, assert_same_state, plain_sampling, state_of
from test_collaborate import setting, watched

from stages.core.collaborate import scaled

sys.path.insert(0, str(Path(__file__).parent.parent))                     # bench/ is no installed package
from bench import peers  # noqa: E402

ROUNDED = 1e-5           # diffusers' scheduler keeps its schedule in float32; its steps are 1000 // steps apart


@pytest.mark.parametrize("which", ["backbone64", "epsilon64"])
def test_plain_sampling_is_plain_sampling(request, which):
    backbone = request.getfixturevalue(which)
    x_T, _, _, subject, _ = setting(backbone)
    slow = plain_sampling(backbone, x_T, subject.vectors_cond, subject.vectors_uncond, steps=4, guidance=3.0)
    found = peers.sample_plain(backbone, x_T, subject, steps=4, guidance=3.0)
    assert float((found - slow).abs().max()) < ROUNDED < float((x_T - slow).abs().max())


@pytest.mark.parametrize(("which", "layers"), [("backbone64", "all"), ("epsilon64", "mid")])
def test_the_naive_loop_is_algorithm_1(request, which, layers):
    backbone = request.getfixturevalue(which)
    x_T, lora_s, lora_m, subject, motion = setting(backbone)
    alpha, sites, before = 4e5, watched(backbone, layers), state_of(backbone.denoiser)
    slow, losses = algorithm_1(
        backbone, lora_s, lora_m, x_T, subject, motion, steps=2, tau=1, guidance=3.0, beta_s=0.5, beta_m=0.5,
        alpha_s=scaled(alpha, x_T), alpha_m=scaled(alpha, x_T), cross=[s.name for s in sites["sites_cross"]],
        time=[s.name for s in sites["sites_time"]])
    run = dict(steps=2, guidance=3.0, alpha=alpha, layers=layers)
    loras = {"subject": lora_s, "motion": lora_m}
    found = peers.sample_naively(backbone, x_T, loras, subject, motion, tau=1, **run)
    unguided = peers.sample_naively(backbone, x_T, loras, subject, motion, tau=0, **run)
    assert len(losses) == 1 and float((found - slow).abs().max()) < ROUNDED < float((found - unguided).abs().max())
    assert_same_state(before, state_of(backbone.denoiser))


def test_what_two_frames_share_is_taken_out():
    eps = torch.randn(2, 4, 5, 3, 3, dtype=torch.float64)
    found = peers.debiased(eps, 3, beta=1.0).numpy()
    for row, frame in np.ndindex(2, 5):
        assert np.allclose(found[row, :, frame], 2**0.5 * eps[row, :, frame] - eps[row, :, 3], atol=1e-12)


def test_motiondirectors_two_paths(backbone):
    """Each loss trains its own LoRA: no cross-attention in the spatial one, and after a step both have moved."""
    x0, vectors = torch.randn(1, 4, 4, 8, 8), torch.randn(1, 20, 32)
    before, seen = state_of(backbone.denoiser), []
    torch.manual_seed(0)
    network = peers.train_director(backbone, x0, vectors, steps=2, rank=2, report=lambda **row: seen.append(row))
    assert_same_state(before, state_of(backbone.denoiser))
    moved = {name for name, p in network.named_parameters() if "lora_B" in name and bool(p.any())}
    assert all((".temp_attentions." in name or "transformer_in" in name) == ("temporal" in name) for name in moved)
    assert not any(".attentions." in name and ".attn2." in name for name in moved)
    counted = len([n for n in backbone.targets("subject") if ".attn2." not in n]) + len(backbone.targets("motion"))
    assert len(moved) == counted and len(seen) == 2 and {"spatial", "loss"} < set(seen[0])


def test_a_plain_lora_learns(backbone):
    torch.manual_seed(0)
    x0, vectors, seen = torch.randn(1, 4, 4, 8, 8), torch.randn(1, 20, 32), []
    network = peers.train_lora(backbone, x0, vectors, steps=2, rank=2, report=lambda **row: seen.append(row["loss"]))
    moved = [name for name, p in network.named_parameters() if "lora_B" in name and bool(p.any())]
    assert len(moved) == len(backbone.targets("motion")) and len(seen) == 2 and all(np.isfinite(seen))
