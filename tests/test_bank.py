"""A bank of targets: the same loss as a loop that asks the base at every step, and the base is asked once."""
from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from oracles import merged
from test_objectives import FEW, SEED, latents, losses_of, mean_square, predict

from stages.core import report as reports
from stages.core.cache import Cache
from stages.core.denoise import seed_of
from stages.core.errors import Interrupted
from stages.core.train import generator_at
from stages.core.workspace import Workspace
from stages.learn_motion import Bank, learn_motion_tensors
from stages.options import LearnMotionOptions

OPTIONS = LearnMotionOptions(steps=2, batch=3, bank=5, **FEW)


@pytest.fixture(params=["backbone64", "epsilon64"])
def base(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def kept(backbone, tmp_path, monkeypatch):
    """The tiny base with the cache of a project."""
    monkeypatch.setattr(backbone, "cache", Cache(Workspace.create(tmp_path / "project"), ["tiny"]))
    return backbone


def prompts(base):
    return [base.embed([text]) for text in ("a person is riding a horse", "A static video of a horse")]


def learn(base, clip, options, **how):
    return learn_motion_tensors(base, clip.to(base.dtype), *prompts(base), options, seed=SEED, **how)


def slow_draws(base, windows, count):
    """(x_t, t, target) of the whole bank by the formulas of Ho et al. and Salimans & Ho, one draw after the other."""
    seed = seed_of(SEED, "bank")
    generator = generator_at(seed, 0)
    within = torch.rand(count, generator=generator, dtype=torch.float64).tolist()
    order = torch.randperm(count, generator=generator).tolist()
    rows = []
    for k in range(count):
        t, x = int((k + within[k]) * 1000 / count), windows[order[k] % len(windows)]
        e = torch.randn(x.shape, generator=generator_at(seed, 1 + k)).double()
        a = float(base.alphas_cumprod[t])
        rows.append((a**0.5 * x + (1 - a) ** 0.5 * e, torch.tensor(t),
                     e if base.predicts == "epsilon" else a**0.5 * e - (1 - a) ** 0.5 * x))
    return (torch.stack(column) for column in zip(*rows))


@contextmanager
def counted(base):
    """The number of rows in each forward of the denoiser."""
    rows = []
    handle = base.denoiser.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    try:
        yield rows
    finally:
        handle.remove()


@pytest.mark.parametrize("count", [1, 2])
def test_it_is_the_loop_that_asks_the_base_at_every_step(base, count):
    windows, (c_m, c_ap) = latents(count, 4, 4, 8, 8), prompts(base)
    rows, _ = losses_of(lambda report: learn(base, windows, OPTIONS, report=report))
    first = learn(base, windows, replace(OPTIONS, steps=1))
    x, t, target = slow_draws(base, windows, OPTIONS.bank)
    for step, own in enumerate((None, first)):
        which = torch.randint(OPTIONS.bank, (3,), generator=generator_at(SEED, step))
        apfree = 1.5 * target[which] - 0.5 * predict(base.denoiser, x[which], t[which], c_ap)    # the frozen base
        want = mean_square(predict(merged(base.denoiser, own), x[which], t[which], c_m), apfree)
        assert rows[step]["loss"] == pytest.approx(want, rel=1e-10)


def test_its_draws_are_spread_over_the_noise_levels_and_the_windows(backbone):
    bank = Bank(backbone, latents(3, 4, 4, 8, 8).float(), prompts(backbone)[1], 10, SEED)
    assert [int(t) // 100 for t in bank.rows(torch.arange(10)).t] == list(range(10))
    assert sorted(bank._windows.tolist()) == [0] * 4 + [1] * 3 + [2] * 3
    other = Bank(backbone, latents(3, 4, 4, 8, 8).float(), prompts(backbone)[1], 10, SEED + 1)
    assert not torch.equal(other.rows(torch.arange(10)).t, bank.rows(torch.arange(10)).t)


@pytest.mark.parametrize("low_memory", [False, True])
def test_another_run_finds_the_answers_and_asks_nothing(kept, monkeypatch, low_memory):
    monkeypatch.setattr(kept, "low_memory", low_memory)
    clip, options = latents(2, 4, 4, 8, 8), replace(OPTIONS, bank=18)
    with counted(kept) as rows:
        learn(kept, clip, options)
    asked = [1] * 18 if low_memory else [4, 4, 4, 4, 2]
    assert rows == [*asked, 3, 3]
    other = replace(options, steps=3, rate=1e-3, rank=3, w=0.8)
    with counted(kept) as rows:
        found = learn(kept, clip, other)
    assert rows == [3, 3, 3]
    monkeypatch.setattr(kept, "cache", Cache())
    with counted(kept) as rows:
        computed = learn(kept, clip, other)
    assert rows == [*asked, 3, 3, 3]
    assert found.tensors and all(torch.equal(value, computed.tensors[key]) for key, value in found.tensors.items())


@pytest.mark.parametrize("change", [dict(bank=17), dict(seed=SEED + 1), dict(clip=1), dict(c_ap="A static video")])
def test_what_the_answers_depend_on_is_asked_anew(kept, change):
    def bank(bank=16, seed=SEED, clip=0, c_ap="A static video of a horse"):
        with counted(kept) as rows:
            Bank(kept, latents(1, 4, 4, 8, 8, seed=clip).float(), kept.embed([c_ap]), bank, seed)
        return sum(rows)

    assert (bank(), bank()) == (16, 0)
    assert bank(**change) == change.get("bank", 16)


def test_a_run_stopped_among_the_answers_goes_on_there(kept):
    clip, options = latents(1, 4, 4, 8, 8), replace(OPTIONS, bank=40)

    def stopping_at(step, key):
        return lambda **facts: reports.ask_to_stop() if facts.get("step") == step and key in facts else None

    try:
        with counted(kept) as rows, pytest.raises(Interrupted):
            learn(kept, clip, options, report=stopping_at(16, "answered"))
    finally:
        reports.clear_stop()
    assert sum(rows) == 16
    with counted(kept) as rows:
        learn(kept, clip, options)
    assert sum(rows) == 24 + 2 * 3


def test_a_stopped_run_goes_on_to_the_same_lora(backbone, tmp_path):
    clip, options = latents(2, 4, 4, 8, 8), replace(OPTIONS, steps=4)
    calm = learn(backbone, clip, options)
    try:
        with pytest.raises(Interrupted):
            learn(backbone, clip, options, checkpoints=tmp_path, report=lambda **facts: facts.get("step") == 2
                  and "loss" in facts and reports.ask_to_stop())
    finally:
        reports.clear_stop()
    rows, resumed = losses_of(lambda report: learn(backbone, clip, options, checkpoints=tmp_path, report=report))
    assert [row["step"] for row in rows] == [3, 4]
    assert calm.tensors and all(torch.equal(value, resumed.tensors[key]) for key, value in calm.tensors.items())


def test_without_a_target_to_turn_there_is_no_bank(backbone):
    clip = latents(1, 4, 4, 8, 8)
    plain, banked = (learn(backbone, clip, replace(OPTIONS, w=0.0, bank=bank)) for bank in (0, 5))
    assert plain.tensors and all(torch.equal(value, banked.tensors[key]) for key, value in plain.tensors.items())
