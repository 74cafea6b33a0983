"""--low-memory: gradient checkpointing, frames and rows one by one. Other memory, the same numbers."""
from __future__ import annotations

import gc
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stages.backbones import load
from stages.backbones.checkpointing import BLOCKS, checkpointed
from stages.core.attention import run_until, watch
from stages.core.collaborate import Branch, _guide, collaborative_step
from stages.core.lora import Lora, branches, training
from stages.fuse import Group, Teacher, fuse_loras
from stages.learn_motion import learn_motion_tensors
from stages.learn_subject import learn_subject_tensors
from stages.options import FuseOptions, LearnMotionOptions, LearnSubjectOptions

sys.path.insert(0, str(Path(__file__).parent.parent))                     # bench/ is no installed package
from bench.live import LiveBytes  # noqa: E402


@pytest.fixture(scope="module")
def low64(base_folder):
    """The tiny base, float64, with little memory."""
    return load(str(base_folder), dtype="fp64", low_memory=True)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def a_lora(backbone, who: str, seed: int = 0) -> Lora:
    tensors = {}
    for n, path in enumerate(backbone.targets(who)):
        layer = backbone.denoiser.get_submodule(path)
        tensors[f"{path}.lora_A.weight"] = drawn(2, layer.in_features, seed=seed + n)
        tensors[f"{path}.lora_B.weight"] = drawn(layer.out_features, 2, seed=seed - n - 1) / 40
    return Lora(tensors, 2.0, 2)


def inputs(rows: int = 1, seed: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """x, t, vectors."""
    return drawn(rows, 4, 4, 8, 8, seed=seed), torch.full((rows,), 300), drawn(rows, 20, 32, seed=seed + 1)


def equal(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_gradients_are_those_of_the_ordinary_forward(backbone64, low64):
    def of(backbone):
        x, t, vectors = (value.requires_grad_() if value.is_floating_point() else value for value in inputs(2))
        return torch.autograd.grad(backbone.predict(x, t, vectors).square().sum(), [x, vectors])

    for ordinary, low in zip(of(backbone64), of(low64)):
        equal(low, ordinary)


def test_the_scope_leaves_no_trace_and_nothing_differs_without_gradients(backbone64):
    unet, (x, t, vectors) = backbone64.denoiser, inputs()
    before = {name: set(vars(module)) for name, module in unet.named_modules()}
    with torch.no_grad():
        ordinary = backbone64.predict(x, t, vectors)
        with pytest.raises(KeyError), checkpointed(unet):
            assert torch.equal(backbone64.predict(x, t, vectors), ordinary)
            raise KeyError
    assert {name: set(vars(module)) for name, module in unet.named_modules()} == before
    assert sum(isinstance(module, BLOCKS) for module in unet.modules()) > 20
    with checkpointed(unet), pytest.raises(AssertionError, match="already open"), checkpointed(unet):
        pass


def test_it_keeps_less(backbone64, low64):
    def peak(backbone) -> int:
        x, t, vectors = inputs()
        with LiveBytes() as live:
            live.hold(backbone.denoiser)
            start = live.live
            backbone.predict(x.requires_grad_(), t, vectors).sum().backward()
        return live.peak - start

    assert peak(low64) < 0.35 * peak(backbone64)


@pytest.mark.parametrize("who", ["subject", "motion"])
def test_a_lora_learns_the_same(backbone64, low64, who):
    def gradients(backbone) -> dict[str, Tensor]:
        with training(backbone.denoiser, backbone.targets(who), start=a_lora(backbone, who)) as own:
            backbone.predict(*inputs()).square().sum().backward()
            with own.disabled(), torch.no_grad():                   # the frozen base, beside it
                backbone.predict(*inputs())
            return {name: p.grad for name, p in own.items()}

    ordinary, low = gradients(backbone64), gradients(low64)
    assert ordinary.keys() == low.keys() and all(float(grad.norm()) > 0 for grad in ordinary.values())
    for name in ordinary:
        equal(low[name], ordinary[name])


@pytest.mark.parametrize("stopped", [False, True])
def test_maps_of_a_scope_that_has_ended_get_their_gradient(backbone64, low64, stopped):
    """As in fuse: watched, stopped after the last watched layer, and the backward after both scopes."""
    def gradient(backbone) -> Tensor:
        x, t, vectors = inputs()
        x.requires_grad_()
        sites = [site for site in backbone.sites if site.name.startswith(("down_blocks", "mid"))]
        with watch(backbone.denoiser, sites) as maps:
            if stopped:
                run_until(backbone.denoiser, sites[-1], lambda: backbone.predict(x, t, vectors))
            else:
                backbone.predict(x, t, vectors)
        captured = dict(maps)
        out, = torch.autograd.grad(sum(m.square().sum() for m in maps.values()), [x])
        assert list(maps) == [site.name for site in sites]
        assert all(maps[name] is captured[name] for name in captured)         # the second forward captured none
        return out

    equal(gradient(low64), gradient(backbone64))


@pytest.mark.parametrize("merge", [False, True])
def test_rows_may_change_between_forward_and_backward(backbone64, low64, merge):
    """Two forwards under two LoRAs, one backward: each part is computed again under the LoRA it was computed with."""
    def gradient(backbone) -> Tensor:
        x, t, vectors = inputs()
        x.requires_grad_()
        loras = {who: a_lora(backbone, who) for who in ("subject", "motion")}
        with branches(backbone.denoiser, loras, merge=merge) as rows:
            rows(["subject"])
            one = backbone.predict(x, t, vectors)
            rows(["motion"])
            two = backbone.predict(x, t, vectors)
            rows([None, None, None])
        return torch.autograd.grad((one * two).sum(), [x])[0]

    equal(gradient(low64), gradient(backbone64))


def test_what_cannot_be_computed_again_is_refused(low64):
    x, t, vectors = inputs()
    with training(low64.denoiser, low64.targets("subject"), rank=2) as own:
        for change in ("switched off", "stepped"):
            loss = low64.predict(x, t, vectors).square().sum()
            if change == "stepped":
                next(iter(own.values())).data = next(iter(own.values())).data.clone()
                with torch.no_grad():
                    next(iter(own.values())).mul_(2)
                with pytest.raises(AssertionError, match="between forward and backward"):
                    loss.backward()
            else:
                with own.disabled(), pytest.raises(AssertionError, match="between forward and backward"):
                    loss.backward()
        loss = low64.predict(x, t, vectors).square().sum()
    with pytest.raises(AssertionError, match="between forward and backward"):
        loss.backward()                                                      # the LoRA is gone


def test_an_error_in_a_block_comes_through_as_it_is(low64):
    def fail(*_: object) -> None:
        raise KeyError("from inside")

    handle = low64.denoiser.mid_block.resnets[0].conv1.register_forward_hook(fail)
    try:
        with pytest.raises(KeyError, match="from inside"):
            low64.predict(*inputs())
    finally:
        handle.remove()


def pair_of_branches() -> tuple[Branch, Branch]:
    words = [range(2, 3), range(5, 6)]
    return (Branch(drawn(1, 20, 32, seed=5), drawn(1, 20, 32, seed=6), words),
            Branch(drawn(1, 20, 32, seed=7), drawn(1, 20, 32, seed=6), words, "motion"))


@pytest.mark.parametrize("guided", [False, True])
def test_a_sampling_step_is_the_same_row_by_row(backbone64, low64, guided):
    def step(backbone) -> tuple[Tensor, dict[str, float]]:
        sites = {"cross": [], "self": []}
        for site in backbone.sites[:12]:
            if (site.kind, site.axis) in (("cross", "space"), ("self", "time")):
                sites[site.kind].append(site)
        with branches(backbone.denoiser, {who: a_lora(backbone, who) for who in ("subject", "motion")}) as rows:
            return collaborative_step(
                backbone, rows, inputs()[0], 300, 280, *pair_of_branches(), guidance_s=9.0, guidance_m=7.0,
                alpha_s=1e3, alpha_m=1e3, beta_s=0.5, beta_m=0.5, guided=guided, sites_cross=sites["cross"],
                sites_time=sites["self"])

    (x, facts), (x_low, facts_low) = step(backbone64), step(low64)
    equal(x_low, x)
    assert facts_low == pytest.approx(facts, rel=1e-10)
    assert bool(facts) == guided


def test_learning_takes_the_same_course(backbone64, low64):
    """The stages' own loops, two steps each: every loss, and with it every gradient."""
    def course(backbone) -> list[float]:
        seen: list[float] = []

        def listen(**facts: object) -> None:
            seen.extend(value for key, value in facts.items() if key.startswith(("loss", "L_")))

        clip, vectors = drawn(1, 4, 4, 8, 8), drawn(1, 20, 32)
        learn_subject_tensors(backbone, drawn(2, 4, 1, 8, 8), "toy", "toy", [("a dog", clip)],
                              LearnSubjectOptions(steps=2, rank=2, rate=1e-2, token_rate=1e-2), report=listen)
        learn_motion_tensors(backbone, clip, vectors, vectors + 1, LearnMotionOptions(steps=2, rank=2, rate=1e-2),
                             report=listen)
        teachers = [Teacher(name, torch.empty(0), a_lora(backbone, "subject", seed), vectors, clip)
                    for seed, name in ((10, "dog"), (900, "toy"))]
        group = Group(("dog", "toy"), clip, torch.rand(1, 2, 4, 32, 32, generator=torch.Generator().manual_seed(0)),
                      vectors, (range(2, 3), range(5, 6)))
        fuse_loras(backbone, teachers, [group], FuseOptions(steps=2, rate=1e-2), report=listen)
        return seen

    ordinary = course(backbone64)
    assert len(ordinary) == 2 * 3 + 2 + 2 * 3
    assert course(low64) == pytest.approx(ordinary, rel=1e-8)


def test_frames_pass_the_autoencoder_one_by_one(backbone64, low64):
    clip = torch.randint(256, (1, 4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x = backbone64.encode(clip)
    equal(low64.encode(clip), x)
    seen = []
    handle = low64.vae.decoder.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    try:
        assert (low64.decode(x) == backbone64.decode(x)).all()
    finally:
        handle.remove()
    assert seen == [1] * 4


@pytest.mark.parametrize("which", ["backbone64", "low64"])
def test_a_stopped_forward_leaves_nothing_alive(request, which):
    """An exception that ends a forward must not keep the forward's frames, and with them its tensors and their graph,
    until a collector of cycles comes by: on a GPU that is gigabytes a step."""
    backbone, sites = request.getfixturevalue(which), request.getfixturevalue(which).sites
    gc.collect()
    gc.disable()
    try:
        with LiveBytes() as live, branches(backbone.denoiser, {"subject": None, "motion": None}) as rows:
            x = inputs()[0]
            live.hold(backbone.denoiser)
            before = live.live
            _guide(backbone, rows, x, 300, list(pair_of_branches()), 1.0, 1.0, [sites[3]], [sites[4]])
            assert live.live - before < 20 * x.nbytes
    finally:
        gc.enable()
