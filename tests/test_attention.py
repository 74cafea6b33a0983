"""Attention maps read inside a scope: exact, differentiable, and gone afterwards."""
from __future__ import annotations

import copy

import pytest
import torch
from oracles import assert_same_state, merged, random_lora, state_of, written_out

from stages.core import attention
from stages.core.lora import applied


def inputs(backbone, seed=0):
    x = torch.randn(2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=backbone.dtype)
    return x, backbone.embed(["a dog is riding a horse", "toy"])


def kept_by_oracle(backbone, model, x, vectors):
    model = copy.deepcopy(model)
    kept = written_out(model)
    with torch.no_grad():
        model(x, 500, vectors)
    return {name: processor.kept[0] for name, processor in kept.items()}


def test_maps_are_the_written_out_ones(backbone64):
    x, vectors = inputs(backbone64)
    with torch.no_grad(), attention.watch(backbone64.denoiser, backbone64.sites) as maps:
        backbone64.predict(x, 500, vectors)
    oracle = kept_by_oracle(backbone64, backbone64.denoiser, x, vectors)
    assert maps.keys() == oracle.keys()
    for name, m in maps.items():
        assert m.shape == oracle[name].shape and torch.allclose(m, oracle[name], atol=1e-10, rtol=0), name


@pytest.mark.parametrize("index", [0, 2, 3, 5])
def test_a_map_gives_the_modules_own_output(backbone, index):
    """to_out(map @ v) is what the module returned, in float32 and through its own processor: <= 1e-6."""
    site = backbone.sites[index]
    module, seen = backbone.denoiser.get_submodule(site.name), {}
    handles = [module.to_v.register_forward_hook(lambda m, a, out: seen.update(v=out)),
               module.register_forward_hook(lambda m, a, out: seen.update(out=out))]
    x, vectors = inputs(backbone)
    with torch.no_grad(), attention.watch(backbone.denoiser, [site]) as maps:
        backbone.predict(x, 500, vectors)
    for handle in handles:
        handle.remove()
    v = seen["v"].unflatten(-1, (module.heads, -1)).transpose(1, 2)
    mine = module.to_out[0]((maps[site.name] @ v).transpose(1, 2).flatten(2))
    assert float((mine - seen["out"]).abs().max()) <= 1e-6


def test_shapes_by_kind_and_axis(backbone):
    x, vectors = inputs(backbone)
    with torch.no_grad(), attention.watch(backbone.denoiser, backbone.sites) as maps:
        backbone.predict(x, 500, vectors)
    for site in backbone.sites:
        rows, _, n, m = maps[site.name].shape
        assert torch.allclose(maps[site.name].sum(-1), torch.ones(()), atol=1e-5)
        if site.kind == "cross":
            assert (rows, m) == (2 * 4, vectors.shape[1])
        elif site.axis == "time":
            assert (n, m) == (4, 4) and rows in (2 * 64, 2 * 16)
        else:
            assert (rows, n) == (2 * 4, m)


def test_gradients_flow_from_maps_to_the_input(backbone64):
    """Against a central difference, along one direction."""
    x, vectors = inputs(backbone64)
    site = attention.choose(backbone64.sites, "mid,", kind="cross")[0]
    weight = torch.randn(8, 8, 16, 20, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def value(x):
        with attention.watch(backbone64.denoiser, [site]) as maps:
            backbone64.predict(x, 500, vectors)
        return (maps[site.name] * weight).sum()

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(leaf), leaf)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    h = 1e-5
    with torch.no_grad():
        numeric = (value(x + h * direction) - value(x - h * direction)) / (2 * h)
    assert abs(float((gradient * direction).sum() - numeric)) < 1e-7 * max(1, abs(float(numeric)))


def test_watching_leaves_no_trace_and_changes_no_bit(backbone):
    x, vectors = inputs(backbone)
    before = state_of(backbone.denoiser)
    with torch.no_grad():
        plain = backbone.predict(x, 500, vectors)
        with attention.watch(backbone.denoiser, backbone.sites):
            watched = backbone.predict(x, 500, vectors)
    assert torch.equal(plain, watched)
    with pytest.raises(KeyError), attention.watch(backbone.denoiser, backbone.sites):
        raise KeyError
    assert_same_state(before, state_of(backbone.denoiser))


def test_one_softmax_for_map_and_output(backbone64):
    """explicit: the maps and the output of the layers' own way, to rounding, and the gradient; gone afterwards."""
    x, vectors = inputs(backbone64)
    before, results = state_of(backbone64.denoiser), []
    processors = [backbone64.denoiser.get_submodule(site.name).processor for site in backbone64.sites]
    for explicit in (False, True):
        leaf = x.clone().requires_grad_()
        with attention.watch(backbone64.denoiser, backbone64.sites, explicit=explicit) as maps:
            out = backbone64.predict(leaf, 500, vectors)
        loss = out.square().sum() + sum(m.square().sum() for m in maps.values())
        results.append([out, *maps.values(), *torch.autograd.grad(loss, leaf)])
    assert len(results[0]) == len(results[1]) == len(backbone64.sites) + 2
    for own, mine in zip(*results):
        assert torch.allclose(own, mine, atol=1e-10, rtol=1e-10)
    with pytest.raises(KeyError), attention.watch(backbone64.denoiser, backbone64.sites, explicit=True):
        raise KeyError
    assert_same_state(before, state_of(backbone64.denoiser))
    assert processors == [backbone64.denoiser.get_submodule(site.name).processor for site in backbone64.sites]


def test_only_the_rows_asked_for_are_read(backbone):
    x, vectors = inputs(backbone)
    with torch.no_grad():
        with attention.watch(backbone.denoiser, backbone.sites) as maps:
            backbone.predict(x, 500, vectors)
        with attention.watch(backbone.denoiser, backbone.sites, of=[False, True]) as second:
            backbone.predict(x, 500, vectors)
    for site in backbone.sites:
        assert torch.equal(second[site.name], maps[site.name].chunk(2)[1])


def test_inside_a_lora_scope_the_maps_see_the_lora(backbone64):
    x, vectors = inputs(backbone64)
    lora = random_lora(backbone64.denoiser, backbone64.targets("subject"))
    with torch.no_grad(), applied(backbone64.denoiser, lora), \
            attention.watch(backbone64.denoiser, backbone64.sites) as maps:
        backbone64.predict(x, 500, vectors)
    oracle = kept_by_oracle(backbone64, merged(backbone64.denoiser, lora), x, vectors)
    assert all(torch.allclose(m, oracle[name], atol=1e-10, rtol=0) for name, m in maps.items())


def test_stopping_ends_the_forward_after_the_site(backbone):
    x, vectors = inputs(backbone)
    sites = attention.choose(backbone.sites, "mid")
    after = []
    handle = backbone.denoiser.up_blocks[0].register_forward_hook(lambda *a: after.append(1))
    before = state_of(backbone.denoiser)
    with torch.no_grad(), attention.watch(backbone.denoiser, backbone.sites) as maps:
        attention.run_until(backbone.denoiser, sites[-1], lambda: backbone.predict(x, 500, vectors))
    assert list(maps) == [site.name for site in sites] and not after
    assert_same_state(before, state_of(backbone.denoiser))
    with torch.no_grad():
        backbone.predict(x, 500, vectors)
    handle.remove()
    assert after


def test_a_failure_inside_a_stopped_forward_is_not_swallowed(backbone):
    before = state_of(backbone.denoiser)
    with pytest.raises(ZeroDivisionError), attention.stop_after(backbone.denoiser, backbone.sites[-1]):
        raise ZeroDivisionError
    assert_same_state(before, state_of(backbone.denoiser))


def test_sites_are_in_order_of_execution(backbone):
    x, vectors = inputs(backbone)
    order, handles = [], []
    for site in backbone.sites:
        handles.append(backbone.denoiser.get_submodule(site.name).register_forward_hook(
            lambda m, a, o, name=site.name: order.append(name)))
    with torch.no_grad():
        backbone.predict(x, 500, vectors)
    for handle in handles:
        handle.remove()
    assert order == [site.name for site in backbone.sites]


def test_choosing_sites(backbone):
    sites = backbone.sites
    names = [site.name for site in attention.choose(sites, "mid")]
    assert names[0].startswith("transformer_in") and names[-1].startswith("mid_block")
    assert not any(name.startswith("up") for name in names)
    assert attention.choose(sites, "all") == sites
    assert attention.choose(sites, "up_blocks.1") == sites
    assert all(s.name.startswith("mid_block") for s in attention.choose(sites, "mid,"))
    some = attention.choose(sites, "down_blocks.1, mid_block", kind="cross")
    assert [s.name.split(".")[0] for s in some] == ["down_blocks", "mid_block"] and {s.kind for s in some} == {"cross"}
    assert {s.axis for s in attention.choose(sites, "all", kind="self", axis="time")} == {"time"}
    with pytest.raises(ValueError, match="up_blocks.0"):
        attention.choose(sites, "up_blocks.10")


def test_word_maps_against_loops():
    site = attention.Site("here", "cross", "space")
    maps = {"here": torch.rand(2 * 3, 5, 4 * 2, 7, dtype=torch.float64)}
    (mine,), (other,) = attention.word_maps(maps, [site], [range(2, 4), [6]], frames=3, size=(8, 4))
    assert torch.allclose(other.flatten(2), maps["here"][..., 6].mean(1).unflatten(0, (2, 3)), atol=1e-12, rtol=0)
    for b in range(2):
        for f in range(3):
            for i in range(4):
                for j in range(2):
                    slow = sum(float(maps["here"][b * 3 + f, a, i * 2 + j, at]) for a in range(5) for at in (2, 3)) / 5
                    assert abs(float(mine[b, f, i, j]) - slow) < 1e-12


@pytest.mark.parametrize("cells, size, grid", [(40 * 72, (40, 72), (40, 72)), (20 * 36, (40, 72), (20, 36)),
                                               (5 * 9, (40, 72), (5, 9)), (3 * 5, (5, 9), (3, 5)), (16, None, (4, 4))])
def test_cells_unfold_as_the_network_halves_them(cells, size, grid):
    site = attention.Site("here", "cross", "space")
    ((m,),) = attention.word_maps({"here": torch.rand(2, 1, cells, 3)}, [site], [[1]], frames=2, size=size)
    assert m.shape == (1, 2, *grid)


def test_cells_that_do_not_fit_are_refused():
    site = attention.Site("here", "cross", "space")
    with pytest.raises(ValueError, match="size"):
        attention.word_maps({"here": torch.rand(2, 1, 15, 3)}, [site], [[1]], frames=2)


def test_attention_loss_is_the_mean_of_means():
    a, b = [torch.rand(3, 4), torch.rand(100)], [torch.rand(3, 4), torch.rand(100)]
    slow = sum(float(((p - q) ** 2).sum() / p.numel()) for p, q in zip(a, b)) / 2
    assert abs(float(attention.attention_loss(a, b)) - slow) < 1e-7
    with pytest.raises(ValueError):
        attention.attention_loss(a, b[:1])
