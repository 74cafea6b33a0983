"""What the stages minimise, step by step, against slow float64 versions: LoRAs merged into copies of the model, every
forward on its own, attention written out. The second step counts most: there the LoRA is no longer zero."""
from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from oracles import assert_same_state, merged, plain_sampling, random_lora, state_of, written_out

from stages.core.attention import choose
from stages.core.denoise import gaussian
from stages.core.train import adamw, fit, generator_at, schedule
from stages.fuse import Group, Teacher, fuse_loras
from stages.invert import Crop, learn_tokens
from stages.learn_motion import learn_motion_tensors
from stages.learn_subject import learn_subject_tensors
from stages.options import FuseOptions, InvertOptions, LearnMotionOptions, LearnSubjectOptions, SampleOptions
from stages.prompts import target_prompt, token_span
from stages.sample import Learned, sample_video

FEW = {"rank": 2, "alpha": 2.0, "rate": 1e-2}
SEED = 5


def latents(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def losses_of(run):
    """Run with a report that keeps the rows of the curve."""
    rows = []
    result = run(lambda **facts: rows.append(facts) if "loss" in facts else None)
    return rows, result


def at_noise(backbone, x0, generator, below=1000):
    """(x_t, t, target) with the draws of the loop, by the formulas of Ho et al. and Salimans & Ho."""
    t = torch.randint(below, (len(x0),), generator=generator)
    noise = torch.randn(x0.shape, generator=generator).double()
    rows = []
    for x, step, e in zip(x0, t.tolist(), noise):
        a = float(backbone.alphas_cumprod[step])
        x_t = a**0.5 * x + (1 - a) ** 0.5 * e
        rows.append((x_t, e if backbone.predicts == "epsilon" else a**0.5 * e - (1 - a) ** 0.5 * x))
    return torch.stack([x for x, _ in rows]), t, torch.stack([y for _, y in rows])


def predict(model, x, t, vectors):
    """One row at a time."""
    with torch.no_grad():
        return torch.cat([model(x[n:n + 1], t[n:n + 1], vectors).sample for n in range(len(x))])


def mean_square(a, b):
    return float(((a - b) ** 2).sum() / a.numel())


@pytest.fixture(params=["backbone64", "epsilon64"])
def base(request):
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("uncaptioned", [0.0, 1.0])
def test_learn_subject_minimises_l_sub_plus_lambda1_l_reg(base, uncaptioned):
    photos, clips = latents(3, 4, 1, 8, 8), [("a red dog", latents(1, 4, 4, 8, 8, seed=1))]
    options = LearnSubjectOptions(steps=2, batch=2, lambda1=0.25, token_rate=1e-2, uncaptioned=uncaptioned, **FEW)
    before = state_of(base.denoiser)

    def run(report, steps):
        return learn_subject_tensors(base, photos, "toy", "teddy bear", clips, replace(options, steps=steps), seed=SEED,
                                     report=report)

    rows, _ = losses_of(lambda report: run(report, 2))
    token, lora = run(lambda **facts: None, 1)                      # what the second step sees
    assert_same_state(before, state_of(base.denoiser))
    start = base.word_embedding("teddy bear").float().mean(0, keepdim=True)
    assert (token - start).abs().max() > 1e-4
    for step, (at, own) in enumerate(((start, None), (token, lora))):
        model, generator = merged(base.denoiser, own), generator_at(SEED, step)
        chosen = photos[torch.randint(3, (2,), generator=generator)]
        x, t, target = at_noise(base, chosen, generator)
        l_sub = mean_square(predict(model, x, t, base.embed(["A <toy>"], {"<toy>": at})), target)
        torch.randint(1, (1,), generator=generator)
        if uncaptioned:
            torch.rand(1, generator=generator)
        x, t, target = at_noise(base, clips[0][1], generator)
        l_reg = mean_square(predict(model, x, t, base.embed(["" if uncaptioned else "a red dog"])), target)
        got = rows[step]
        assert (got["L_sub"], got["L_reg"]) == pytest.approx((l_sub, l_reg), rel=1e-10)
        assert got["loss"] == pytest.approx(l_sub + 0.25 * l_reg, rel=1e-10)


@pytest.mark.parametrize("w", [0.0, 0.5])
def test_learn_motion_minimises_l_mot(base, w):
    clip = latents(1, 4, 4, 8, 8)
    c_m, c_ap = (base.embed([text]) for text in ("a person is riding a horse", "A static video of a horse"))
    options = LearnMotionOptions(steps=2, w=w, **FEW)
    rows, _ = losses_of(lambda report: learn_motion_tensors(base, clip, c_m, c_ap, options, seed=SEED, report=report))
    lora = learn_motion_tensors(base, clip, c_m, c_ap, replace(options, steps=1), seed=SEED)
    for step, own in enumerate((None, lora)):
        x, t, target = at_noise(base, clip, generator_at(SEED, step))
        apfree = (1 + w) * target - w * predict(base.denoiser, x, t, c_ap)               # the frozen base
        want = mean_square(predict(merged(base.denoiser, own), x, t, c_m), apfree)
        assert rows[step]["loss"] == pytest.approx(want, rel=1e-10)


def test_of_several_windows_each_row_is_one_drawn_at_random(backbone64):
    """Against a slow loop that draws the windows first, then the noise; one window draws none."""
    base, windows = backbone64, latents(3, 4, 4, 8, 8)
    c_m, c_ap = (base.embed([text]) for text in ("a person is riding a horse", "A static video of a horse"))
    options = LearnMotionOptions(steps=1, w=0.0, **{**FEW, "batch": 4})
    for latent in (windows, windows[:1]):
        rows, _ = losses_of(lambda report, latent=latent: learn_motion_tensors(
            base, latent, c_m, c_ap, options, seed=SEED, report=report))
        generator = generator_at(SEED, 0)
        which = torch.randint(3, (4,), generator=generator) if len(latent) == 3 else torch.zeros(4, dtype=int)
        assert len(set(which.tolist())) > 1 or len(latent) == 1
        x, t, target = at_noise(base, latent[which], generator)
        each = [mean_square(predict(base.denoiser, x[n:n + 1], t[n:n + 1], c_m), target[n:n + 1]) for n in range(4)]
        assert rows[0]["loss"] == pytest.approx(sum(each) / 4, rel=1e-10)


def fusion_of(base, count, together=2):
    """Teachers with random LoRAs and a composition of the first two, or three."""
    targets = base.targets("subject")
    teachers, names = [], ("toy", "dog", "horse")[:count]
    for n, name in enumerate(names):
        token = base.word_embedding(name).mean(0, keepdim=True)
        teachers.append(Teacher(name, token, random_lora(base.denoiser, targets, rank=2, seed=n),
                                base.embed([f"A <{name}>"], {f"<{name}>": token}), latents(2, 4, 4, 8, 8, seed=n)))
    tokens = {f"<{t.name}>": t.token for t in teachers}
    prompt = "A <toy> and a <dog>" + " and a <horse>" * (together - 2)
    places = base.positions(prompt, tokens)
    masks = torch.zeros(1, 3, 4, 32, 32, dtype=torch.bool)
    masks[:, 0, :, 3:20, 2:13], masks[:, 1, :, 10:30, 13:31], masks[:, 2, :, 1:9, 15:30] = True, True, True
    words = tuple(token_span(places, range(at, at + 1)) for at in (1, 4, 7)[:together])
    return teachers, Group(names[:together], latents(1, 4, 4, 8, 8, seed=9), masks[:, :together],
                           base.embed([prompt], tokens), words)


def slow_group_losses(base, model, group, generator, sites, below=1000):
    """(L_attn, L_mix) of the group's one composition."""
    kept = written_out(model)
    torch.randint(1, (1,), generator=generator)
    x, t, target = at_noise(base, group.latents, generator, below)
    l_mix = mean_square(predict(model, x, t, group.vectors), target)
    total = 0.0
    for n, words in enumerate(group.words):
        per_site = []
        for site in sites:
            word = sum(kept[site.name].kept[0][..., at] for at in words).mean(1)                # heads, (F, cells)
            side = round(word.shape[1] ** 0.5)
            cells = group.masks[0, n].double().reshape(4, side, 32 // side, side, 32 // side).mean((2, 4))
            per_site.append(mean_square(word.reshape(4, side, side), cells))
        total += sum(per_site) / len(per_site)
    return total / len(group.words), l_mix


@pytest.mark.parametrize("count, layers, lambda_mix, together, turns, t_max", [
    (2, "all", 0.0, 2, "all", 1.0), (3, "mid", 0.0, 2, "all", 1.0), (2, "mid", 1.5, 2, "all", 1.0),
    (3, "mid", 1.5, 3, "turns", 0.3)])
def test_fuse_minimises_its_three_losses(base, count, layers, lambda_mix, together, turns, t_max):
    teachers, group = fusion_of(base, count, together)
    options = FuseOptions(steps=2, lambda2=0.6, lambda_mix=lambda_mix, layers=layers, rate=1e-2, teachers=turns,
                          t_max=t_max)
    before = state_of(base.denoiser)

    def run(report, steps):
        return fuse_loras(base, teachers, [group], replace(options, steps=steps), seed=SEED, report=report)

    rows, _ = losses_of(lambda report: run(report, 2))
    second = run(lambda **facts: None, 1)
    assert_same_state(before, state_of(base.denoiser))
    average = merged(base.denoiser, None)                                        # W + 1/N sum_n B_n A_n, one by one
    for t in teachers:
        for key, b in t.lora.tensors.items():
            if key.endswith(".lora_B.weight"):
                layer, a = average.get_submodule(key.removesuffix(".lora_B.weight")), key.replace("lora_B", "lora_A")
                layer.weight.data += t.lora.scaling * (b @ t.lora.tensors[a]) / count
    sites = choose(base.sites, layers, kind="cross", axis="space")
    for step, model in enumerate((average, merged(base.denoiser, second))):
        generator = generator_at(SEED, step)
        taught, below = [teachers[step]] if turns == "turns" else teachers, round(1000 * t_max)
        chosen = torch.cat([t.latents[torch.randint(2, (1,), generator=generator)] for t in taught])
        x, times, _ = at_noise(base, chosen, generator, below)
        l_fusion = sum(mean_square(predict(model, x[n:n + 1], times[n:n + 1], t.vectors),
                                   predict(merged(base.denoiser, t.lora), x[n:n + 1], times[n:n + 1], t.vectors))
                       for n, t in enumerate(taught)) / len(taught)
        l_attn, l_mix = slow_group_losses(base, model, group, generator, sites, below)
        got = rows[step]
        assert (got["L_fusion"], got["L_attn"]) == pytest.approx((l_fusion, l_attn), rel=1e-9)
        assert got["loss"] == pytest.approx(l_fusion + 0.6 * l_attn + lambda_mix * l_mix, rel=1e-9)
        assert got.get("L_mix") == (pytest.approx(l_mix, rel=1e-9) if lambda_mix else None)


@pytest.mark.parametrize("start, weight", [("mean", 1 / 3), ("sum", 1.0)])
def test_without_a_step_fuse_gives_what_it_starts_from(backbone64, start, weight):
    teachers, group = fusion_of(backbone64, 3)
    fused = fuse_loras(backbone64, teachers, [group], FuseOptions(steps=0, start=start), seed=SEED)
    for module in fused.modules:
        wanted = weight * sum(t.lora.delta(module) for t in teachers)
        assert torch.allclose(fused.delta(module), wanted, rtol=0, atol=1e-12)


def test_the_joint_branch_is_one_model_with_both_loras(base):
    """Ablation: no SCS. Against plain DDIM of a copy of the model into which both LoRAs are written."""
    generator = torch.Generator().manual_seed(SEED)
    loras = [random_lora(base.denoiser, base.targets(who), seed=n) for n, who in enumerate(("subject", "motion"))]
    tokens = {name: torch.randn(1, 32, generator=generator) for name in ("<toy>", "<dog>")}
    target = target_prompt("<toy> is chasing <dog>", {"toy": "dog", "dog": "dog"})
    options = SampleOptions(steps=3, guidance=3.0, branches="joint", beta=0.0)
    got = sample_video(base, target, Learned(tokens, *loras, None), options, seed=SEED)
    known = {name: getattr(base, name) for name in ("timesteps", "alphas_cumprod", "predicts", "final_alpha")}
    model = SimpleNamespace(**known, denoiser=merged(merged(base.denoiser, loras[0]), loras[1]))
    with torch.no_grad():
        c_tgt, empty = base.embed([target.text, ""], tokens).split(1)
    wanted = plain_sampling(model, gaussian(base, base.frames, SEED), c_tgt, empty, steps=3, guidance=3.0)
    assert torch.allclose(got, wanted, rtol=0, atol=1e-10)


def test_the_group_changes_from_step_to_step(backbone):
    teachers, group = fusion_of(backbone, 3)
    teachers = [replace(t, latents=t.latents.float(), vectors=t.vectors.float()) for t in teachers]
    other = replace(group, latents=group.latents.float() * 0, masks=~group.masks)
    groups = [replace(group, latents=group.latents.float()), other]
    rows, _ = losses_of(lambda report: fuse_loras(backbone, teachers, groups, FuseOptions(steps=4), report=report))
    values = [row["L_attn"] for row in rows]
    assert min(values[1], values[3]) > max(values[0], values[2])          # the other group's masks are larger


def test_textual_inversion_counts_the_actors_own_cells(backbone64):
    rng = np.random.default_rng(0)
    mask = np.zeros((32, 32), bool)
    mask[8:24, 4:20] = True
    crops = {"person": Crop(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8), mask),
             "horse": Crop(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8), ~mask)}
    options = InvertOptions(token_steps=1, token_batch=3)
    rows, tokens = losses_of(lambda report: learn_tokens(backbone64, crops, options, seed=SEED, report=report))
    assert set(tokens) == {"<person>", "<horse>"}
    generator, total = generator_at(SEED, 0), 0.0
    for actor, part in crops.items():
        start = backbone64.word_embedding(actor).float().mean(0, keepdim=True)
        x0 = backbone64.encode(part.picture[None, None]).repeat(3, 1, 1, 1, 1)
        x, t, target = at_noise(backbone64, x0, generator)
        out = predict(backbone64.denoiser, x, t, backbone64.embed([f"A <{actor}>"], {f"<{actor}>": start}))
        cells = torch.as_tensor(part.mask).double().reshape(8, 4, 8, 4).mean((1, 3))
        square = ((out - target) ** 2 * cells).sum() / (cells.sum() * 3 * 4)
        assert rows[0][actor] == pytest.approx(float(square), rel=1e-10)
        total += float(square)
    assert rows[0]["loss"] == pytest.approx(total, rel=1e-10)



def test_one_kernel_goes_on_where_a_loop_over_the_parameters_stopped(tmp_path):
    """Whichever of the two wrote it, a checkpoint holds the same state under the same names."""
    made = {"loop": partial(torch.optim.AdamW, lr=0.1, weight_decay=0.0), "kernel": partial(adamw, rate=0.1)}
    assert made["kernel"]([torch.ones(1)]).defaults["fused"]

    def course(*kinds):
        """Two steps under each -> what is learned, and the curve."""
        for n, kind in enumerate(kinds):
            w = torch.arange(6.0, dtype=torch.float64).reshape(2, 3).requires_grad_()        # a checkpoint takes it on
            curve = fit({"w": w}, lambda step, g: {"loss": (w @ latents(3, 1, seed=step)).square().mean()},  # noqa: B023
                        optimizer=made[kind]([w]), steps=2 * (n + 1), seed=SEED, checkpoints=tmp_path / "-".join(kinds),
                        every_seconds=-1)
        return [*w.detach().flatten().tolist(), *(row["loss"] for row in curve)]

    want = course("loop", "loop")
    for kinds in (("kernel", "kernel"), ("loop", "kernel"), ("kernel", "loop")):
        assert course(*kinds) == pytest.approx(want, abs=1e-12)


def test_the_learning_rate_falls_to_nothing_where_it_is_asked_to():
    constant, cosine = schedule("constant", 8), schedule("cosine", 8)
    assert [constant(step) for step in (0, 4, 7)] == [1, 1, 1]
    assert [cosine(step) for step in (0, 2, 4, 8)] == pytest.approx([1, 0.5 + 8**-0.5, 0.5, 0])


@pytest.mark.parametrize("stage", ["learn-subject", "fuse"])
def test_the_schedule_reaches_the_optimizer(backbone, stage):
    """One step at the full rate, then one at half of it: with Adam's first steps of about the rate each, less far."""
    teachers, group = fusion_of(backbone, 2)
    teachers = [replace(t, latents=t.latents.float(), vectors=t.vectors.float()) for t in teachers]

    def run(schedule):
        if stage == "fuse":
            return fuse_loras(backbone, teachers, [], FuseOptions(steps=2, lambda2=0, schedule=schedule))
        options = LearnSubjectOptions(steps=2, schedule=schedule, **FEW)
        return learn_subject_tensors(backbone, latents(3, 4, 1, 8, 8).float(), "toy", "dog", [], options)[1]

    constant, cosine = run("constant").tensors, run("cosine").tensors
    assert any(not torch.equal(constant[key], cosine[key]) for key in constant)
