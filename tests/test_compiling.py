"""--compile: blocks of the denoiser as code that torch.compile makes. The same numbers, and nothing stale."""
from __future__ import annotations

import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from torch import Tensor
from torch._dynamo.utils import counters

from stages.backbones import compiling, load
from stages.backbones.bases import Video
from stages.backbones.checkpointing import checkpointed
from stages.backbones.compiling import BLOCKS, TRANSFORMERS, check, compiled
from stages.core.attention import run_until, watch
from stages.core.errors import MissingPrerequisite
from stages.core.lora import branches, training

sys.path.insert(0, str(Path(__file__).parent.parent))                     # bench/ is no installed package
from bench.bases import RandomBase, Size, lora, write  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")   # torch hides it
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
ONE_LEVEL = Size(Video(2, 8, 16, 16),
                 dict(sample_size=8, layers_per_block=1, block_out_channels=(16,), norm_num_groups=8,
                      down_block_types=("CrossAttnDownBlock3D",), up_block_types=("CrossAttnUpBlock3D",),
                      cross_attention_dim=16, attention_head_dim=4),
                 dict(block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, latent_channels=4,
                      down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2),
                 dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4), rank=2)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> RandomBase:
    """As few kinds of blocks as a UNet3D can have: what compiles is what a test waits for."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = RandomBase(ONE_LEVEL, write(ONE_LEVEL, tmp_path_factory.mktemp("base") / "base"))
        for name, p in base.denoiser.named_parameters():
            if ".conv4." in name:                      # temporal convolutions start at zero: let them act
                torch.nn.init.normal_(p, std=0.05)
    return base


@pytest.fixture(autouse=True)
def afresh(monkeypatch):
    monkeypatch.setattr(compiling, "_functions", {})
    counters.clear()


@pytest.fixture
def without_code(monkeypatch):
    """torch traces, keeps and looks up as ever, but runs what it traced as it is: compiling takes seconds a block."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")


def inputs(rows: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """x, t, vectors."""
    generator = torch.Generator().manual_seed(3)
    return (torch.randn(rows, 4, 2, 8, 8, generator=generator), torch.full((rows,), 300),
            torch.randn(rows, 8, 16, generator=generator))


def equal(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def on(backbone: RandomBase, *, quick: bool, low: bool = False) -> RandomBase:
    backbone.compiled, backbone.low_memory = quick, low
    return backbone


def graphs() -> int:
    """Compiled so far; whatever was not compiled in one piece is an error."""
    assert not counters["graph_break"], dict(counters["graph_break"])
    return counters["stats"]["unique_graphs"]


def gradients(backbone: RandomBase) -> dict[str, Tensor]:
    """As in a motion step: the frozen base first, without gradients, then the LoRA; and what the base said."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        start = lora(backbone, "motion", 2)
    with training(backbone.denoiser, backbone.targets("motion"), start=start) as own:
        with own.disabled(), torch.no_grad():
            target = backbone.predict(*inputs())
        (backbone.predict(*inputs()) - target).square().sum().backward()
        return {"": target, **{name: p.grad for name, p in own.items()}}


@needs_compiler
def test_a_step_is_the_same(backbone, monkeypatch):
    """Temporal transformers, with real code: their outputs, and a LoRA's gradients with and without checkpointing."""
    monkeypatch.setitem(compiling.KINDS, "cpu", (TransformerTemporalModel,))
    plain = gradients(on(backbone, quick=False))
    assert graphs() == 0
    for low in (False, True):
        quick = gradients(on(backbone, quick=True, low=low))
        assert plain.keys() == quick.keys() and 0 < graphs() == len(compiling._functions) < 6
        for name, value in plain.items():
            equal(quick[name] / value.norm(), value / value.norm())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_step_is_the_same_on_a_gpu(tmp_path):
    """Convolutions, too; and gradients to the latents."""
    base, found = RandomBase(ONE_LEVEL, write(ONE_LEVEL, tmp_path / "base"), device="cuda"), []
    for quick in (False, True):
        x, t, vectors = (value.cuda() for value in inputs(2))
        out = on(base, quick=quick).predict(x.requires_grad_(), t, vectors)
        found.append([out.detach(), *torch.autograd.grad(out.square().sum(), [x])])
    assert len(compiling._functions) > 4
    for plain, quick in zip(*found):
        assert float((quick - plain).norm()) < 1e-3 * float(plain.norm())         # torch may use TF32 for one of them


def test_blocks_that_are_alike_share_code(backbone, without_code):
    with torch.no_grad():
        plain = on(backbone, quick=False).predict(*inputs(2))
        quick = on(backbone, quick=True).predict(*inputs(2))
    equal(quick, plain)
    blocks = sum(isinstance(module, TRANSFORMERS) for module in backbone.denoiser.modules())
    assert 0 < graphs() == len(compiling._functions) <= 4 < blocks
    with torch.no_grad():
        assert torch.equal(on(backbone, quick=True).predict(*inputs(2)), quick)
    assert graphs() == len(compiling._functions) <= 4


@pytest.mark.parametrize("low", [False, True])
def test_a_lora_learns_the_same(backbone, without_code, low):
    plain, quick = gradients(on(backbone, quick=False)), gradients(on(backbone, quick=True, low=low))
    assert plain.keys() == quick.keys() and graphs()
    for name, value in plain.items():
        equal(quick[name] / value.norm(), value / value.norm())


def test_nothing_that_is_put_into_a_block_is_missed(backbone, without_code):
    """What was compiled before a hook, a merged weight or a processor was there, and after it was, is not theirs."""
    sites, who = backbone.sites, lora(backbone, "motion", 2)

    def as_base(stack: ExitStack) -> None:
        pass

    def added(stack: ExitStack) -> None:
        stack.enter_context(branches(backbone.denoiser, {"motion": who}))

    def merged(stack: ExitStack) -> None:
        stack.enter_context(branches(backbone.denoiser, {"motion": who}, merge=True))

    def run(put, quick: bool, explicit: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        with ExitStack() as stack, torch.no_grad():
            put(stack)
            maps = stack.enter_context(watch(backbone.denoiser, sites, explicit=explicit))
            return on(backbone, quick=quick).predict(*inputs(2)), maps

    with torch.no_grad():
        base = on(backbone, quick=True).predict(*inputs(2))                    # compiled, where it was not before
    for put in (as_base, added, merged):
        for explicit in (False, True):
            (plain, maps), (quick, seen) = run(put, False, explicit), run(put, True, explicit)
            assert torch.equal(quick, plain) and list(seen) == [site.name for site in sites]
            assert all(torch.equal(seen[name], maps[name]) for name in maps)
            assert (put is as_base) == torch.allclose(plain, base, atol=1e-3)
        with ExitStack() as stack, torch.no_grad():                              # and without maps
            put(stack)
            with_it = [on(backbone, quick=quick).predict(*inputs(2)) for quick in (False, True)]
        equal(with_it[1], with_it[0])
        with torch.no_grad():
            assert torch.equal(on(backbone, quick=True).predict(*inputs(2)), base)


@pytest.mark.parametrize("low", [False, True])
def test_the_backward_is_that_of_its_forward(backbone, without_code, low):
    """Hooks that come or go between the two change nothing; a forward may end early."""
    def gradient(quick: bool) -> list[Tensor]:
        on(backbone, quick=quick, low=low)
        x, t, vectors = inputs()
        x.requires_grad_()
        with watch(backbone.denoiser, backbone.sites[:2]) as first:
            run_until(backbone.denoiser, backbone.sites[4], lambda: backbone.predict(x, t, vectors))
        whole = backbone.predict(x, t, vectors).square().sum()
        with watch(backbone.denoiser, backbone.sites) as none:
            grads = [*torch.autograd.grad(whole, [x]),
                     *torch.autograd.grad(sum(m.square().sum() for m in first.values()), [x])]
        assert not none
        return grads

    for plain, quick in zip(gradient(False), gradient(True)):
        equal(quick / plain.norm(), plain / plain.norm())


def test_mixed_precision_is_compiled_as_it_is(backbone, without_code):
    backbone.arithmetic = "amp"
    try:
        with torch.no_grad():
            plain, quick = (on(backbone, quick=quick).predict(*inputs(2)) for quick in (False, True))
    finally:
        backbone.arithmetic = "fp32"
    with torch.no_grad():
        full = on(backbone, quick=False).predict(*inputs(2))
    assert 0 < float((quick - full).norm()) < 0.05 * float(full.norm())
    equal(quick, plain)


def test_convolutions_too_and_no_shape_is_one_too_many(backbone, without_code):
    """As on a GPU. torch gives up on a function after so many shapes, here after one."""
    on(backbone, quick=False)
    for rows in (1, 2):
        x, t, vectors = inputs(rows)
        with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=1):
            plain, before = backbone.predict(x, t, vectors), graphs()
            with compiled(backbone.denoiser, (ResnetBlock2D, TemporalConvLayer)):
                quick = backbone.predict(x, t, vectors)
        equal(quick, plain)
        assert graphs() - before >= 3, rows
        assert not counters["recompile_limit"] and not counters["frames"]["skipped"]


def test_no_trace_is_left(backbone):
    unet = on(backbone, quick=True).denoiser
    before = {name: set(vars(module)) for name, module in unet.named_modules()}
    with pytest.raises(KeyError), compiled(unet, BLOCKS), checkpointed(unet):
        assert sum("forward" in vars(module) for module in unet.modules()) > 10
        raise KeyError
    assert {name: set(vars(module)) for name, module in unet.named_modules()} == before
    with compiled(unet, BLOCKS), checkpointed(unet), pytest.raises(AssertionError, match="already open"), \
            checkpointed(unet):
        pass
    assert {name: set(vars(module)) for name, module in unet.named_modules()} == before


def test_without_a_compiler_it_says_so_before_any_work(base_folder, monkeypatch):
    from torch._inductor import config, cpp_builder

    cpp_builder.cpp_compiler_search.cache_clear()
    with config.patch({"cpp.cxx": ("no-such-compiler",)}), \
            pytest.raises(MissingPrerequisite, match="torch.compile does not work here") as refused:
        load(str(base_folder), compiled=True)
    cpp_builder.cpp_compiler_search.cache_clear()
    assert "C++ compiler" in refused.value.remedy and "--compile" in refused.value.remedy
    assert "\n" not in refused.value.what
    with pytest.raises(MissingPrerequisite, match="not used on meta"):
        check(torch.device("meta"))


@needs_compiler
def test_manifests_name_it(base_folder):
    assert load(str(base_folder), compiled=True, low_memory=True).run_on == "cpu, fp32, low memory, compiled"
