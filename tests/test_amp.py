"""--dtype amp: float32 weights, products in bfloat16. Results are those of float32 to the other's precision."""
from __future__ import annotations

from collections import deque

import pytest
import torch
from torch import Tensor, nn

from stages.backbones import load
from stages.backbones.checkpointing import checkpointed
from stages.backbones.unet3d import DTYPES
from stages.core.attention import watch
from stages.core.collaborate import Branch, collaborative_step
from stages.core.denoise import invert_clip
from stages.core.errors import UsageError
from stages.core.lora import Lora, branches, training
from stages.learn_motion import learn_motion_tensors
from stages.options import LearnMotionOptions

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
BF16 = 0.05                  # relative: 2^-8 of a product, through the layers of the tiny base


@pytest.fixture(scope="module", params=DEVICES)
def both(request, base_folder):
    """The tiny base in float32 and mixed, on one device."""
    if request.param == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("this GPU has no bfloat16")
    return [load(str(base_folder), device=request.param, dtype=dtype) for dtype in ("fp32", "amp")]


def drawn(backbone, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(backbone.device)


def inputs(backbone, rows: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """x, t, vectors."""
    return (drawn(backbone, rows, 4, 4, 8, 8, seed=3), torch.full((rows,), 300, device=backbone.device),
            drawn(backbone, rows, 20, 32, seed=4))


def a_lora(backbone, who: str) -> Lora:
    tensors = {}
    for n, path in enumerate(backbone.targets(who)):
        layer = backbone.denoiser.get_submodule(path)
        tensors[f"{path}.lora_A.weight"] = drawn(backbone, 2, layer.in_features, seed=n)
        tensors[f"{path}.lora_B.weight"] = drawn(backbone, layer.out_features, 2, seed=900 + n) / 40
    return Lora(tensors, 2.0, 2)


def near(mixed: Tensor, full: Tensor) -> None:
    """Equal to bfloat16's precision, and not more: in float32 it would be a thousand times nearer."""
    assert mixed.dtype == full.dtype == torch.float32
    error = float((mixed - full).norm() / full.norm())
    assert 1e-4 < error < BF16, error


def test_a_forward_and_its_maps(both):
    out, maps = [], []
    for backbone in both:
        with watch(backbone.denoiser, backbone.sites) as seen, torch.no_grad():
            out.append(backbone.predict(*inputs(backbone, 2)))
        maps.append(seen)
    near(out[1], out[0])
    for name, full in maps[0].items():
        mixed = maps[1][name]
        assert mixed.dtype == torch.float32
        torch.testing.assert_close(mixed.sum(-1), torch.ones_like(mixed[..., 0]), rtol=0, atol=1e-6)
        assert float((mixed - full).abs().mean()) < 0.01
    near(*(torch.cat([m.flatten() for m in some.values()]) for some in reversed(maps)))


def test_weights_stay_and_products_are_in_bfloat16(both):
    mixed, seen = both[1], {}
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d, nn.GroupNorm, nn.LayerNorm)

    def listen(module: nn.Module, args: tuple, output: Tensor) -> None:
        seen.setdefault(type(module), []).append((module, args[0], output))

    layers = [module for module in mixed.denoiser.modules() if isinstance(module, kinds)]
    handles = [module.register_forward_hook(listen) for module in layers]
    try:
        with torch.no_grad():
            mixed.predict(*inputs(mixed))
    finally:
        for handle in handles:
            handle.remove()
    for kind in (nn.Linear, nn.Conv2d, nn.Conv3d):
        assert {output.dtype for _, _, output in seen[kind]} == {torch.bfloat16}, kind
    for kind in (nn.GroupNorm, nn.LayerNorm):                             # computed in float32, rounded at the end
        for module, x, output in seen[kind]:
            torch.testing.assert_close(output, module(x.float()).to(output.dtype), rtol=2**-7, atol=2**-7)
    for name in ("unet", "vae", "text_encoder"):
        assert {p.dtype for p in mixed._part(name, mixed.device).parameters()} == {torch.float32}


def test_text_and_pixels_are_those_of_float32(both):
    full, mixed = both
    torch.testing.assert_close(full.embed(["a toy"]), mixed.embed(["a toy"]))
    clip = torch.randint(256, (1, 4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    x = full.encode(clip)
    torch.testing.assert_close(mixed.encode(clip), x)
    assert abs(full.decode(x).astype(int) - mixed.decode(x)).max() <= 1


def gradients(backbone, who: str, low: bool = False) -> dict[str, Tensor]:
    backbone.low_memory = low
    try:
        with training(backbone.denoiser, backbone.targets(who), start=a_lora(backbone, who)) as own:
            with own.disabled(), torch.no_grad():                         # as in a motion step: the frozen base before
                backbone.predict(*inputs(backbone))
            backbone.predict(*inputs(backbone)).square().sum().backward()
            return {name: p.grad for name, p in own.items()}
    finally:
        backbone.low_memory = False


@pytest.mark.parametrize("who", ["subject", "motion"])
def test_gradients_of_a_lora(both, who):
    full, mixed = (gradients(backbone, who) for backbone in both)
    assert full.keys() == mixed.keys() and all(grad.dtype == torch.float32 for grad in mixed.values())
    near(*(torch.cat([grad.flatten() for grad in some.values()]) for some in (mixed, full)))


def test_what_is_computed_twice_is_computed_in_the_same_way(both):
    """Checkpointed blocks run again outside of `predict`, in the backward: with products in bfloat16 there too."""
    once, twice = (gradients(both[1], "motion", low) for low in (False, True))
    for name, grad in once.items():
        assert float((twice[name] - grad).norm()) < 2e-3 * float(grad.norm()), name
    seen = deque()                             # a list would be copied with the hook, for the forward that comes again
    x, t, vectors = inputs(both[1])
    conv = both[1].denoiser.mid_block.resnets[0].conv1
    handle = conv.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    try:
        with both[1]._mixed(), checkpointed(both[1].denoiser):
            out = both[1].denoiser(x.requires_grad_(), t, encoder_hidden_states=vectors).sample
        out.float().sum().backward()
    finally:
        handle.remove()
    assert list(seen) == [torch.bfloat16] * 2


def test_a_guided_step(both):
    words, steps = [range(2, 3), range(5, 6)], []
    for backbone in both:
        x, _, vectors = inputs(backbone)
        sites = {(site.kind, site.axis): [] for site in backbone.sites}
        for site in backbone.sites[:12]:
            sites[site.kind, site.axis].append(site)
        loras = {who: a_lora(backbone, who) for who in ("subject", "motion")}
        with branches(backbone.denoiser, loras) as rows:
            steps.append(collaborative_step(
                backbone, rows, x, 300, 280, Branch(vectors, vectors + 1, words),
                Branch(vectors - 1, vectors + 1, words, "motion"), guidance_s=3.0, guidance_m=3.0, alpha_s=1e5,
                alpha_m=1e5, beta_s=0.5, beta_m=0.5, guided=True, sites_cross=sites["cross", "space"],
                sites_time=sites["self", "time"]))
    (full, facts), (mixed, facts_mixed) = steps
    near(mixed, full)
    assert facts_mixed == pytest.approx(facts, rel=0.2) and facts["shift_s"] > 1e-4


def test_an_inversion(both):
    x = [drawn(backbone, 1, 4, 4, 8, 8) for backbone in both]
    full, mixed = (invert_clip(backbone, x_0, steps=4, refine=1) for backbone, x_0 in zip(both, x))
    near(mixed, full)


def test_learning_takes_the_course_of_float32(both):
    def course(backbone, rate: float) -> Tensor:
        clip, vectors, losses = drawn(backbone, 1, 4, 4, 8, 8), drawn(backbone, 1, 20, 32, seed=1), []
        lora = learn_motion_tensors(
            backbone, clip, vectors, vectors + 1, LearnMotionOptions(steps=12, rank=4, rate=rate),
            report=lambda **facts: losses.extend(value for key, value in facts.items() if key == "loss"))
        assert {tensor.dtype for tensor in lora.tensors.values()} == {torch.float32}
        return torch.tensor(losses)

    full, mixed, idle = course(both[0], 5e-3), course(both[1], 5e-3), course(both[1], 1e-12)
    near(mixed, full)
    assert (mixed[-6:] < idle[-6:]).all() and mixed[-6:].mean() < 0.95 * idle[-6:].mean()      # of the same draws


def test_it_is_named_where_a_result_came_from(both):
    full, mixed = both
    assert full.run_on.endswith(", fp32") and mixed.run_on.endswith(", amp")
    assert mixed.dtype == DTYPES["amp"] == torch.float32


def test_a_device_without_bfloat16_is_refused(base_folder, monkeypatch):
    monkeypatch.setattr(torch.amp, "is_autocast_available", lambda kind: False)
    with pytest.raises(UsageError, match="needs bfloat16.*cpu"):
        load(str(base_folder), dtype="amp")
