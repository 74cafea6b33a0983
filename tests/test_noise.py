"""Noising, prediction targets, DDIM both ways: against diffusers' own scheduler and in float64."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from stages.core import noise as N

ACP = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).alphas_cumprod.double()
SHAPE = (2, 4, 3, 4, 4)


def draw(*seeds: int) -> list[torch.Tensor]:
    return [torch.randn(SHAPE, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in seeds]


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_targets_convert_back_to_noise_and_clip(predicts):
    x0, eps = draw(0, 1)
    t = torch.tensor([10, 900])
    x = N.add_noise(x0, eps, t, ACP)
    output = N.target(x0, eps, t, ACP, predicts)
    assert torch.allclose(N.to_eps(output, x, t, ACP, predicts), eps, atol=1e-10, rtol=0)
    assert torch.allclose(N.to_x0(output, x, t, ACP, predicts), x0, atol=1e-10, rtol=0)


def test_noising_and_velocity_are_those_of_diffusers():
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    x0, eps = (x.float() for x in draw(0, 1))
    t = torch.tensor([3, 700])
    assert torch.allclose(N.add_noise(x0, eps, t, ACP), scheduler.add_noise(x0, eps, t), atol=1e-6)
    assert torch.allclose(N.target(x0, eps, t, ACP, "v_prediction"), scheduler.get_velocity(x0, eps, t), atol=1e-6)


def test_each_row_has_its_own_step():
    x0, eps = draw(0, 1)
    together = N.add_noise(x0, eps, torch.tensor([10, 900]), ACP)
    assert torch.equal(together[1:], N.add_noise(x0[1:], eps[1:], 900, ACP))


def test_an_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match="sample"):
        N.to_eps(*draw(0, 1), 5, ACP, "sample")


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("config", [
    dict(timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False),
    dict(timestep_spacing="leading", steps_offset=0, set_alpha_to_one=True),
    dict(timestep_spacing="trailing", steps_offset=1, set_alpha_to_one=False),
    dict(timestep_spacing="trailing", steps_offset=0, set_alpha_to_one=True)],
    ids=lambda config: "-".join(map(str, config.values())))
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_ddim_steps_are_those_of_diffusers(config, predicts, eta):
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
                              prediction_type=predicts, **config)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    scheduler.set_timesteps(10)
    final_alpha, timesteps = float(scheduler.final_alpha_cumprod), scheduler.timesteps.tolist()
    x, fresh = draw(2, 3)
    for t, t_prev in zip(timesteps, [*timesteps[1:], -1]):
        output = torch.sin(x * (1 + t))
        theirs = scheduler.step(output, t, x, eta=eta, variance_noise=fresh if eta else None).prev_sample
        x = N.ddim_step(x, N.to_eps(output, x, t, ACP, predicts), t, t_prev, ACP, eta, fresh, final_alpha)
        assert torch.allclose(x, theirs, atol=1e-10, rtol=1e-10)


def test_unstep_undoes_a_step():
    x, eps = draw(0, 1)
    back = N.ddim_unstep(N.ddim_step(x, eps, 500, 400, ACP), eps, 400, 500, ACP)
    assert torch.allclose(back, x, atol=1e-10, rtol=0)


def test_noise_is_demanded_where_it_is_added():
    with pytest.raises(ValueError, match="noise"):
        N.ddim_step(*draw(0, 1), 500, 400, ACP, eta=1.0)


def smooth_noise(x, t):
    """A stand-in for a network: depends on x and t, smoothly."""
    return 0.9 * torch.tanh(x.roll(1, -1) * 0.8 + t / 1000)


def sample(x, timesteps, final_alpha):
    for t, t_prev in zip(timesteps, [*timesteps[1:], -1]):
        x = N.ddim_step(x, smooth_noise(x, t), t, t_prev, ACP, final_alpha=final_alpha)
    return x


@pytest.mark.parametrize("final_alpha", [1.0, float(ACP[0])])
def test_inversion_round_trip(final_alpha):
    (x0,) = draw(4)
    timesteps = list(range(981, 0, -20))
    errors = []
    for refine in (0, 2, 30):
        x_T = N.ddim_invert(smooth_noise, x0, timesteps, ACP, refine=refine, final_alpha=final_alpha)
        errors.append(float((sample(x_T, timesteps, final_alpha) - x0).norm() / x0.norm()))
    assert errors[0] < 0.2 and errors[1] < errors[0] / 5 and errors[2] < 1e-10, errors


def test_inversion_of_a_network_that_ignores_x_is_exact():
    (x0,) = draw(4)
    constant, timesteps = draw(5)[0], [801, 601, 401, 201, 1]
    x = N.ddim_invert(lambda x, t: constant, x0, timesteps, ACP)
    for t, t_prev in zip(timesteps, [*timesteps[1:], -1]):
        x = N.ddim_step(x, constant, t, t_prev, ACP)
    assert torch.allclose(x, x0, atol=1e-10, rtol=0)


def test_inversion_on_the_backbone(backbone64):
    """The round trip through a real network, one prompt, no guidance."""
    x0 = torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    vectors = backbone64.embed(["a dog"])
    timesteps, acp = backbone64.timesteps(8).tolist(), backbone64.alphas_cumprod

    def eps_fn(x, t):
        with torch.no_grad():
            return N.to_eps(backbone64.predict(x, t, vectors), x, t, acp, backbone64.predicts)

    def error(refine):
        x = N.ddim_invert(eps_fn, x0, timesteps, acp, refine=refine, final_alpha=backbone64.final_alpha)
        for t, t_prev in zip(timesteps, [*timesteps[1:], -1]):
            x = N.ddim_step(x, eps_fn(x, t), t, t_prev, acp, final_alpha=backbone64.final_alpha)
        return float((x - x0).norm() / x0.norm())

    once, refined = error(0), error(2)
    assert once < 0.5 and refined < once / 4, (once, refined)


def test_mix_keeps_the_variance_and_its_ends():
    generator = torch.Generator().manual_seed(0)
    inverted, fresh = (torch.randn(50_000, generator=generator, dtype=torch.float64) for _ in range(2))
    assert abs(float(N.mix(inverted, fresh, 0.3).var()) - 1) < 0.02
    assert torch.equal(N.mix(inverted, fresh, 0.0), fresh) and torch.equal(N.mix(inverted, fresh, 1.0), inverted)
    assert torch.allclose(N.mix(inverted, fresh, 0.3), 0.3**0.5 * inverted + 0.7**0.5 * fresh, atol=1e-12)


def test_the_appearance_free_target_is_the_same_for_noise_and_velocity():
    """Affine: made in v and read as eps, or made in eps, it is one and the same (METHOD 3)."""
    x0, eps, eps_ap = draw(0, 1, 2)
    t, w = torch.tensor([100, 800]), 0.5
    x = N.add_noise(x0, eps, t, ACP)
    in_eps = N.appearance_free(eps, eps_ap, w)
    v_ap = (ACP[t].sqrt().view(-1, 1, 1, 1, 1) ** -1) * (eps_ap - (1 - ACP[t]).sqrt().view(-1, 1, 1, 1, 1) * x)
    assert torch.allclose(N.to_eps(v_ap, x, t, ACP, "v_prediction"), eps_ap, atol=1e-10)
    in_v = N.appearance_free(N.target(x0, eps, t, ACP, "v_prediction"), v_ap, w)
    assert torch.allclose(N.to_eps(in_v, x, t, ACP, "v_prediction"), in_eps, atol=1e-10, rtol=0)
    assert torch.equal(N.appearance_free(eps, eps_ap, 0.0), eps)


def gaussian_eps(x, t):
    """The exact noise of data ~ N(0.7, 0.3^2): a network that is right everywhere."""
    a = float(ACP[t])
    return (1 - a) ** 0.5 * (x - a**0.5 * 0.7) / (a * 0.3**2 + 1 - a)


def solved(steps: int, order: int) -> torch.Tensor:
    """x_T carried to the clean end in so many steps, even in the log of signal over spread, as solvers are analysed."""
    grid = np.linspace(N._log_ratio(float(ACP[-1])), N._log_ratio(float(ACP[20])), steps + 1)
    ratios = torch.tensor([N._log_ratio(float(a)) for a in ACP])
    timesteps = [int((ratios - value).abs().argmin()) for value in grid]
    solver, (x,) = N.Solver(ACP, order=order), draw(0)
    for t, t_prev in zip(timesteps, timesteps[1:]):
        x = solver(x, gaussian_eps(x, t), t, t_prev)
    return x


def test_the_solvers_are_of_their_order():
    """Against the exact solution of the probability flow: twice the steps halve DDIM's error and quarter 2M's."""
    (x_T,) = draw(0)

    def moments(t):
        a = float(ACP[t])
        return a**0.5 * 0.7, (a * 0.3**2 + 1 - a) ** 0.5

    (mean_T, spread_T), (mean_0, spread_0) = moments(len(ACP) - 1), moments(20)
    exact = mean_0 + spread_0 * (x_T - mean_T) / spread_T
    errors = {order: [float((solved(steps, order) - exact).abs().max()) for steps in (12, 24)] for order in (1, 2)}
    assert 1.6 < errors[1][0] / errors[1][1] < 2.6 and errors[2][0] / errors[2][1] > 3.4
    assert errors[2][0] < errors[1][1] / 3                           # 12 steps of 2M are nearer than 24 of DDIM


@pytest.mark.parametrize("final", ["one", "config"])
def test_second_order_steps_are_those_of_diffusers(final):
    """DPMSolverMultistepScheduler (dpmsolver++, midpoint, order 2), walked over the same timesteps."""
    common = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    scheduler = DPMSolverMultistepScheduler(
        **common, algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", lower_order_final=True,
        timestep_spacing="trailing", final_sigmas_type="zero" if final == "one" else "sigma_min")
    scheduler.set_timesteps(8)
    timesteps = scheduler.timesteps.tolist()
    solver = N.Solver(ACP, 1.0 if final == "one" else float(ACP[0]), order=2)
    mine, = draw(3)
    theirs = mine.clone()
    for t, t_prev in zip(timesteps, [*timesteps[1:], -1]):
        mine = solver(mine, gaussian_eps(mine, t), t, t_prev)
        theirs = scheduler.step(gaussian_eps(theirs, t), t, theirs).prev_sample
        assert torch.allclose(mine, theirs.double(), atol=1e-5, rtol=0)


def test_the_solver_of_first_order_is_ddim():
    solver, (x, eps) = N.Solver(ACP, 0.99), draw(0, 1)
    for t, t_prev in ((900, 500), (500, 3), (3, -1)):
        assert torch.equal(solver(x, eps, t, t_prev), N.ddim_step(x, eps, t, t_prev, ACP, final_alpha=0.99))
