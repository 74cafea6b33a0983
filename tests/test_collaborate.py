"""Algorithm 1: the fast path against the literal one, the gradient against differences, and the exact special cases."""
from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from oracles import algorithm_1, assert_same_state, merged, plain_sampling, random_lora, state_of

from stages.core.attention import choose
from stages.core.collaborate import Branch, _guide, collaborative_step, sample_loop, scaled
from stages.core.errors import NumericError
from stages.core.lora import applied, branches

TEXT, PLAIN = "<toy> is riding <dog> in snow", "teddy bear is riding dog in snow"
OPTIONS = dict(steps=3, tau=2, guidance=3.0, beta_s=0.6, beta_m=0.4)


def setting(backbone):
    """(x_T, subject LoRA, motion LoRA, subject branch, motion branch). <toy> has two vectors and answers to the two
    words "teddy bear", so positions differ between the branches."""
    generator = torch.Generator().manual_seed(0)
    width = backbone.text_encoder.config.hidden_size
    tokens = {"<toy>": torch.randn(2, width, generator=generator).to(backbone.dtype),
              "<dog>": torch.randn(1, width, generator=generator).to(backbone.dtype)}
    at_text, at_plain = backbone.positions(TEXT, tokens), backbone.positions(PLAIN)
    subject = Branch(backbone.embed([TEXT], tokens), backbone.embed([""]), [at_text[0][1], at_text[3][1]], "subject")
    motion = Branch(backbone.embed([PLAIN]), backbone.embed([""]),
                    [range(at_plain[0][1].start, at_plain[1][1].stop), at_plain[4][1]], "motion")
    x_T = torch.randn(1, 4, 4, 8, 8, generator=generator, dtype=torch.float64).to(backbone.dtype)
    lora_s, lora_m = (random_lora(backbone.denoiser, backbone.targets(who), seed=seed)
                      for seed, who in enumerate(("subject", "motion")))
    return x_T, lora_s, lora_m, subject, motion


def watched(backbone, where="mid"):
    return dict(sites_cross=choose(backbone.sites, where, kind="cross"),
                sites_time=choose(backbone.sites, where, kind="self", axis="time"))


def run(backbone, x_T, lora_s, lora_m, subject, motion, merge=True, **options):
    facts = []
    with branches(backbone.denoiser, {"subject": lora_s, "motion": lora_m}, merge=merge) as rows:
        x = sample_loop(backbone, rows, x_T, subject, motion, report=lambda **row: facts.append(row),
                        **{**OPTIONS, **options})
    return x, facts


@pytest.mark.parametrize("which, layers, merge", [("backbone64", "all", True), ("epsilon64", "mid", True),
                                                  ("backbone64", "mid", False)])
def test_the_fast_path_is_algorithm_1(which, layers, merge, request):
    """Literal: two merged models, full forwards, each prompt alone, the gradient through the whole graph."""
    backbone = request.getfixturevalue(which)
    x_T, lora_s, lora_m, subject, motion = setting(backbone)
    alpha_s, alpha_m = 4e5, 4e6
    fast, facts = run(backbone, x_T, lora_s, lora_m, subject, motion, alpha_s=alpha_s, alpha_m=alpha_m, layers=layers,
                      merge=merge)
    sites = watched(backbone, layers)
    slow, losses = algorithm_1(
        backbone, lora_s, lora_m, x_T, subject, motion, **OPTIONS, alpha_s=scaled(alpha_s, x_T),
        alpha_m=scaled(alpha_m, x_T), cross=[s.name for s in sites["sites_cross"]],
        time=[s.name for s in sites["sites_time"]])
    assert float((fast - slow).abs().max()) < 1e-10
    for row, (l_s_to_m, l_m_to_s) in zip(facts, losses, strict=False):
        assert abs(row["loss_s_to_m"] - l_s_to_m) < 1e-10 and abs(row["loss_m_to_s"] - l_m_to_s) < 1e-10
        assert 1e-4 < row["shift_s"] < 1 and 1e-4 < row["shift_m"] < 1         # the guidance is not idle in this test
    assert [("loss_s_to_m" in row) for row in facts] == [True, True, False]


def test_what_we_add_to_algorithm_1(backbone64):
    """A branch guided away from the base, the motion branch in the first steps only and with a guidance of its own: in
    the literal form and in the fast one; each changes the result."""
    x_T, lora_s, lora_m, subject, motion = setting(backbone64)
    away, sites = replace(subject, unconditional="base"), watched(backbone64)
    strong = dict(alpha_s=4e5, alpha_m=4e6)
    fast, facts = run(backbone64, x_T, lora_s, lora_m, away, motion, **strong, motion_steps=1,
                      guidance_motion=1.5)
    slow, _ = algorithm_1(backbone64, lora_s, lora_m, x_T, away, motion, **OPTIONS, motion_steps=1,
                          guidance_motion=1.5, alpha_s=scaled(4e5, x_T), alpha_m=scaled(4e6, x_T),
                          cross=[s.name for s in sites["sites_cross"]], time=[s.name for s in sites["sites_time"]])
    assert float((fast - slow).abs().max()) < 1e-10
    assert [("loss_s_to_m" in row) for row in facts] == [True, False, False]      # a branch alone has none to follow
    strong |= dict(guidance_motion=1.5)
    for other in (run(backbone64, x_T, lora_s, lora_m, subject, motion, **strong, motion_steps=1),
                  run(backbone64, x_T, lora_s, lora_m, away, motion, **strong),
                  run(backbone64, x_T, lora_s, lora_m, away, None, **strong),
                  run(backbone64, x_T, lora_s, lora_m, away, motion, **{**strong, "guidance_motion": 3.0},
                      motion_steps=1)):
        assert float((fast - other[0]).abs().max()) > 1e-6


APPROXIMATIONS = {"shared": {}, "guidance_steps": {"guidance_steps": 1}, "guide_every": {"guide_every": 2},
                  "scale 1": {"guidance_motion": 1.0}}


@pytest.mark.parametrize("which", APPROXIMATIONS)
def test_approximations_are_what_they_say(backbone64, which):
    """Against the literal algorithm with the same words in it; each changes the result and spares rows."""
    x_T, lora_s, lora_m, subject, motion = setting(backbone64)
    if which == "shared":
        subject, motion = (replace(branch, unconditional="shared") for branch in (subject, motion))
    strong, more = dict(alpha_s=4e5, alpha_m=4e6), APPROXIMATIONS[which]
    options, sites = OPTIONS | {"tau": 3}, watched(backbone64)
    fast, facts = run(backbone64, x_T, lora_s, lora_m, subject, motion, **strong, tau=3, **more)
    slow, _ = algorithm_1(backbone64, lora_s, lora_m, x_T, subject, motion, **options, **more,
                          alpha_s=scaled(4e5, x_T), alpha_m=scaled(4e6, x_T),
                          cross=[s.name for s in sites["sites_cross"]], time=[s.name for s in sites["sites_time"]])
    assert float((fast - slow).abs().max()) < 1e-10
    exact, _ = run(backbone64, x_T, lora_s, lora_m, *setting(backbone64)[3:], **strong, tau=3)
    assert float((fast - exact).abs().max()) > 1e-6
    assert [("loss_s_to_m" in row) for row in facts] == [True, which != "guide_every", True]


@pytest.mark.parametrize("more, wanted", [
    ({}, [4, 4, 4]), ({"guidance_motion": 1.0}, [3, 3, 3]), ({"guidance": 1.0}, [2, 2, 2]),
    ({"guidance_steps": 2}, [4, 4, 2]), ({"motion_steps": 1}, [4, 2, 2]), ({"shared": True}, [3, 3, 3]),
    ({"shared": True, "guidance_steps": 1}, [3, 2, 2])], ids=str)
def test_no_row_is_computed_for_nothing(backbone, more, wanted):
    """Rows of the batch that enter the network, step by step, counted by a hook; unguided steps."""
    x_T, lora_s, lora_m, subject, motion = setting(backbone)
    if more.get("shared"):
        subject, motion = (replace(branch, unconditional="shared") for branch in (subject, motion))
    counted = []
    handle = backbone.denoiser.register_forward_pre_hook(lambda module, args: counted.append(len(args[0])))
    try:
        run(backbone, x_T, lora_s, lora_m, subject, motion, alpha_s=0.0, alpha_m=0.0,
            **{"tau": 0, **{key: value for key, value in more.items() if key != "shared"}})
    finally:
        handle.remove()
    assert counted == wanted


@pytest.mark.parametrize("tau, every, wanted", [(3, 1, [1, 1, 1]), (3, 2, [2, 0, 1]), (3, 9, [3, 0, 0])])
def test_guide_every_keeps_the_guidance_of_all_steps_together(backbone64, tau, every, wanted):
    """|dx| of the first guided step grows as the number of steps for which it stands; alpha's sum is tau alphas."""
    x_T, lora_s, lora_m, subject, motion = setting(backbone64)
    weak = dict(alpha_s=1.0, alpha_m=1.0)
    facts = run(backbone64, x_T, lora_s, lora_m, subject, motion, **weak, tau=tau, guide_every=every)[1]
    each = run(backbone64, x_T, lora_s, lora_m, subject, motion, **weak, tau=tau)[1]
    grown = [row.get("shift_s", 0) / other["shift_s"] for row, other in zip(facts, each)]
    assert grown == pytest.approx(wanted, rel=1e-3)
    assert sum(wanted) == tau


def test_equal_empty_prompts_are_one_row(backbone64):
    """Two branches that turn from the same model at the same x share its answer, exactly."""
    x_T, lora_s, lora_m, subject, motion = setting(backbone64)
    both = [replace(branch, unconditional="base") for branch in (subject, motion)]
    counted = []
    handle = backbone64.denoiser.register_forward_pre_hook(lambda module, args: counted.append(len(args[0])))
    try:
        fast, _ = run(backbone64, x_T, lora_s, lora_m, *both, alpha_s=0.0, alpha_m=0.0, tau=0)
    finally:
        handle.remove()
    slow, _ = algorithm_1(backbone64, lora_s, lora_m, x_T, *both, **{**OPTIONS, "tau": 0}, alpha_s=0, alpha_m=0,
                          cross=[], time=[])
    assert counted == [3, 3, 3] and float((fast - slow).abs().max()) < 1e-10


def test_the_second_order_solver_samples_with_fewer_steps(backbone64):
    """The sampler's use of it: with one step it is DDIM, otherwise another trajectory to the same end."""
    x_T, lora_s, _, subject, _ = setting(backbone64)

    def sampled(steps: int, solver: str) -> torch.Tensor:
        return run(backbone64, x_T, lora_s, None, subject, None, alpha_s=0.0, alpha_m=0.0, steps=steps,
                   solver=solver)[0]

    assert torch.allclose(sampled(1, "ddim"), sampled(1, "dpm++"), atol=1e-12, rtol=0)
    assert float((sampled(4, "ddim") - sampled(4, "dpm++")).abs().max()) > 1e-6


def test_motion_steps_leave_a_lone_motion_branch_alone(backbone):
    x_T, lora_s, lora_m, _, motion = setting(backbone)
    results = [run(backbone, x_T, lora_s, lora_m, None, motion, alpha_s=0.0, alpha_m=0.0, motion_steps=k)[0]
               for k in (None, 1)]
    assert torch.equal(*results)


def test_the_oracle_notices_what_it_should(backbone64):
    """Guidance, words and weights of the literal algorithm all reach the result: the test above can fail."""
    x_T, lora_s, lora_m, subject, motion = setting(backbone64)
    strong = dict(alpha_s=4e5, alpha_m=4e6, steps=2, tau=1)
    reference, _ = run(backbone64, x_T, lora_s, lora_m, subject, motion, **strong)
    swapped = Branch(motion.vectors_cond, motion.vectors_uncond, motion.words[::-1], "motion")
    for other in (run(backbone64, x_T, lora_s, lora_m, subject, motion, **{**strong, "alpha_s": 0.0}),
                  run(backbone64, x_T, lora_s, lora_m, subject, motion, **{**strong, "alpha_m": 0.0}),
                  run(backbone64, x_T, lora_s, lora_m, subject, swapped, **strong),
                  run(backbone64, x_T, lora_s, None, subject, motion, **strong),
                  run(backbone64, x_T, lora_s, lora_m, subject, motion, **{**strong, "beta_s": 0.5})):
        assert float((other[0] - reference).abs().max()) > 1e-6


def test_the_guiding_gradient_against_finite_differences(backbone64):
    """x_sub - x_t = -alpha grad L_m->s(x_sub), the motion branch's maps held fixed; and the other way round."""
    x, lora_s, lora_m, subject, motion = setting(backbone64)
    sites, t, unit = watched(backbone64), 601, 276_480 / x.numel()                     # alpha_eff = 1
    present, generator, h = [subject, motion], torch.Generator().manual_seed(9), 1e-5
    with branches(backbone64.denoiser, {"subject": lora_s, "motion": lora_m}) as rows:
        (x_sub, x_mot), facts = _guide(backbone64, rows, x, t, present, unit, unit, **sites)

    from oracles import attention_losses, written_out
    nets = [merged(backbone64.denoiser, lora) for lora in (lora_s, lora_m)]
    kept = [written_out(net) for net in nets]
    cross, time = ([s.name for s in some] for some in sites.values())

    def losses(shift_s, shift_m):
        with torch.no_grad():
            nets[0](x + shift_s, t, subject.vectors_cond)
            nets[1](x + shift_m, t, motion.vectors_cond)
        return [float(loss) for loss in attention_losses(*kept, subject.words, motion.words, cross, time)]

    zero = torch.zeros_like(x)
    assert abs(losses(zero, zero)[0] - facts["loss_s_to_m"]) < 1e-12
    for _ in range(2):
        d = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        numeric_sub = (losses(h * d, zero)[1] - losses(-h * d, zero)[1]) / (2 * h)     # L_m->s by the subject's x
        numeric_mot = (losses(zero, h * d)[0] - losses(zero, -h * d)[0]) / (2 * h)     # L_s->m by the motion's x
        assert abs(float(((x - x_sub) * d).sum()) - numeric_sub) < 1e-6 * abs(numeric_sub) + 1e-10
        assert abs(float(((x - x_mot) * d).sum()) - numeric_mot) < 1e-6 * abs(numeric_mot) + 1e-10


def test_a_small_guided_step_lowers_both_losses(backbone64):
    x, lora_s, lora_m, subject, motion = setting(backbone64)
    with branches(backbone64.denoiser, {"subject": lora_s, "motion": lora_m}) as rows:
        _, facts = collaborative_step(
            backbone64, rows, x, 601, 401, subject, motion, guidance_s=3.0, guidance_m=3.0, alpha_s=4e4, alpha_m=4e4,
            beta_s=0.5, beta_m=0.5, guided=True, **watched(backbone64))
    assert facts["loss_s_to_m_after"] < facts["loss_s_to_m"] and facts["loss_m_to_s_after"] < facts["loss_m_to_s"]


def test_alpha_zero_is_the_unguided_sampler_bit_for_bit(backbone):
    parts = setting(backbone)
    guided, facts = run(backbone, *parts, alpha_s=0.0, alpha_m=0.0, tau=3)
    unguided, _ = run(backbone, *parts, alpha_s=1e4, alpha_m=1e4, tau=0)
    assert torch.equal(guided, unguided)
    assert all(row["shift_s"] == row["shift_m"] == 0 for row in facts)


def test_measuring_changes_no_bit(backbone):
    x, lora_s, lora_m, subject, motion = setting(backbone)
    results = []
    for measure_after in (True, False):
        with branches(backbone.denoiser, {"subject": lora_s, "motion": lora_m}) as rows:
            results.append(collaborative_step(
                backbone, rows, x, 601, 401, subject, motion, guidance_s=3.0, guidance_m=3.0, alpha_s=1e4, alpha_m=1e4,
                beta_s=0.5, beta_m=0.5, guided=True, measure_after=measure_after, **watched(backbone)))
    assert torch.equal(results[0][0], results[1][0])
    assert set(results[0][1]) - set(results[1][1]) == {"loss_s_to_m_after", "loss_m_to_s_after"}


@pytest.mark.parametrize("who", ["subject", "motion", "neither"])
def test_one_branch_alone_is_plain_sampling_bit_for_bit(backbone, who):
    """Under that branch's LoRA; with neither, a branch without LoRA: plain sampling of the base."""
    x_T, lora_s, lora_m, subject, motion = setting(backbone)
    lora = {"subject": lora_s, "motion": lora_m, "neither": None}[who]
    present = {"subject": (subject, None), "motion": (None, motion), "neither": (subject, None)}[who]
    branch = present[0] or present[1]
    before = state_of(backbone.denoiser)
    with branches(backbone.denoiser, {branch.row: lora}) as rows:
        mine = sample_loop(backbone, rows, x_T, *present, alpha_s=1e4, alpha_m=1e4, **OPTIONS)
    with applied(backbone.denoiser, lora):
        plain = plain_sampling(backbone, x_T, branch.vectors_cond, branch.vectors_uncond, steps=3, guidance=3.0)
    assert torch.equal(mine, plain)
    assert_same_state(before, state_of(backbone.denoiser))


@pytest.mark.parametrize("folder", ["base_folder", "epsilon_folder"])
def test_the_base_alone_is_what_diffusers_pipeline_samples(folder, request):
    """The whole chain (text, schedule, guidance, DDIM) against TextToVideoSDPipeline on the same folder."""
    from diffusers import TextToVideoSDPipeline

    from stages.backbones import load
    folder = request.getfixturevalue(folder)
    backbone, pipeline = load(str(folder)), TextToVideoSDPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    for module in (pipeline.unet, pipeline.text_encoder):
        module.eval()
    x_T = torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    theirs = pipeline("a dog is riding a horse", num_frames=4, num_inference_steps=5, guidance_scale=4.0, latents=x_T,
                      eta=0.0, output_type="latent").frames
    branch = Branch(backbone.embed(["a dog is riding a horse"]), backbone.embed([""]))
    with branches(backbone.denoiser, {"subject": None}) as rows:
        mine = sample_loop(backbone, rows, x_T, branch, None, steps=5, tau=0, guidance=4.0, alpha_s=0, alpha_m=0,
                           beta_s=1, beta_m=0)
    assert torch.allclose(mine, theirs, atol=1e-4)


def test_half_precision_networks_guide_float32_latents(base_folder, backbone):
    """The gradient of a mean over many map elements survives a half-precision backward."""
    from stages.backbones import load

    x, lora_s, lora_m, subject, motion = setting(backbone)
    half, shifts = load(str(base_folder), dtype="bf16"), []
    for model in (backbone, half):
        with branches(model.denoiser, {"subject": lora_s, "motion": lora_m}) as rows:
            x_prev, facts = collaborative_step(
                model, rows, x, 601, 401, subject, motion, guidance_s=3.0, guidance_m=3.0, alpha_s=4e5, alpha_m=4e6,
                beta_s=0.5, beta_m=0.5, guided=True, **watched(model))
        assert x_prev.dtype == torch.float32
        shifts.append((facts["shift_s"], facts["shift_m"]))
    assert shifts[1] == pytest.approx(shifts[0], rel=0.3)


def test_alpha_shrinks_with_the_latent():
    assert scaled(1e4, torch.zeros(1, 4, 24, 40, 72)) == 1e4
    assert scaled(1e4, torch.zeros(3, 4, 24, 20, 36)) == 2.5e3


def test_unpaired_words_are_refused(backbone):
    x_T, lora_s, lora_m, subject, motion = setting(backbone)
    fewer = Branch(motion.vectors_cond, motion.vectors_uncond, motion.words[:1], "motion")
    with pytest.raises(ValueError, match="2 subject words cannot answer to 1"):
        run(backbone, x_T, lora_s, lora_m, subject, fewer, alpha_s=1.0, alpha_m=1.0)


def test_without_words_only_time_guides(backbone):
    x_T, lora_s, lora_m, subject, motion = setting(backbone)
    bare = [Branch(b.vectors_cond, b.vectors_uncond, (), b.row) for b in (subject, motion)]
    _, facts = run(backbone, x_T, lora_s, lora_m, *bare, alpha_s=1e3, alpha_m=1e3)
    assert facts[0]["loss_s_to_m"] == 0 and facts[0]["shift_m"] == 0 and facts[0]["shift_s"] > 0


def test_numbers_that_are_not_finite_stop_the_sampling(backbone):
    x_T, *rest = setting(backbone)
    with pytest.raises(NumericError, match="step 1 of 3"):
        run(backbone, x_T * float("inf"), *rest, alpha_s=0.0, alpha_m=0.0)


def test_every_step_is_reported(backbone):
    _, facts = run(backbone, *setting(backbone), alpha_s=1e3, alpha_m=1e3)
    assert [(row["step"], row["of"]) for row in facts] == [(1, 3), (2, 3), (3, 3)]
    losses = {f"loss_{way}{when}" for way in ("s_to_m", "m_to_s") for when in ("", "_after")}
    assert set(facts[0]) == {"step", "of", "t", "shift_s", "shift_m"} | losses
