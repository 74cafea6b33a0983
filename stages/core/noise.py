"""The diffusion's arithmetic: noising, what the network predicts, DDIM forwards and backwards, the initial noise.

    x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps,   a_t = acp[t]

Legend: x latents (B, C, F, h, w); t steps, an int or int64 (B,); acp the cumulative products a_t, float64 (T,).
Coefficients are computed in acp's precision and rounded once, to the precision of x.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def _scales(t: int | Tensor, acp: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """(sqrt(a_t), sqrt(1 - a_t)), each (B, 1, 1, 1, 1) or (1, 1, 1, 1, 1), of the dtype and device of `like`."""
    a = acp[torch.as_tensor(t, device=acp.device)].reshape(-1, *[1] * (like.ndim - 1))
    return a.sqrt().to(like), (1 - a).sqrt().to(like)


def add_noise(x0: Tensor, noise: Tensor, t: int | Tensor, acp: Tensor) -> Tensor:
    """x_t of x_0 and eps (Ho et al. 2020, eq. 4)."""
    signal, spread = _scales(t, acp, x0)
    return signal * x0 + spread * noise


def target(x0: Tensor, noise: Tensor, t: int | Tensor, acp: Tensor, predicts: str) -> Tensor:
    """What the network is trained to say at x_t: eps, or v = sqrt(a) eps - sqrt(1 - a) x_0 (Salimans & Ho 2022)."""
    if _known(predicts) == "epsilon":
        return noise
    signal, spread = _scales(t, acp, x0)
    return signal * noise - spread * x0


def to_eps(output: Tensor, x: Tensor, t: int | Tensor, acp: Tensor, predicts: str) -> Tensor:
    """The network's output at x = x_t, read as the noise in x."""
    if _known(predicts) == "epsilon":
        return output
    signal, spread = _scales(t, acp, x)
    return signal * output + spread * x


def to_x0(output: Tensor, x: Tensor, t: int | Tensor, acp: Tensor, predicts: str) -> Tensor:
    """The network's output at x = x_t, read as the clean latents."""
    signal, spread = _scales(t, acp, x)
    if _known(predicts) == "epsilon":
        return (x - spread * output) / signal
    return signal * x - spread * output


def ddim_step(x: Tensor, eps: Tensor, t: int, t_prev: int, acp: Tensor, eta: float = 0.0,
              noise: Tensor | None = None, final_alpha: float = 1.0) -> Tensor:
    """x at t -> x at t_prev (Song et al. 2021, eq. 12).

    t_prev = -1: the end of the schedule, where a = final_alpha (a backbone knows its scheduler's). eta > 0 adds fresh
    noise of eta times DDPM's spread, and then `noise` (shape of x) must be given; the method samples with eta = 0.
    """
    a, a_prev = _alpha(t, acp, final_alpha), _alpha(t_prev, acp, final_alpha)
    sigma = eta * (((1 - a_prev) / (1 - a)) * (1 - a / a_prev)) ** 0.5
    x0 = (x - (1 - a) ** 0.5 * eps) / a**0.5
    x_prev = a_prev**0.5 * x0 + (1 - a_prev - sigma**2) ** 0.5 * eps
    if eta == 0:
        return x_prev
    if noise is None:
        raise ValueError("eta > 0 needs the noise to add")
    return x_prev + sigma * noise


class Solver:
    """x_t -> x_{t-1} of one trajectory, called step after step: order 1 is ddim_step, order 2 DPM-Solver++(2M).

    Of second order (Lu et al. 2022, Algorithm 2; **ours**: the paper samples with DDIM): with l = log(signal / spread),
    h = l_prev - l and r = (the h before) / h,

        D      = x_0 + (x_0 - the x_0 before) / (2 r)
        x_prev = spread_prev / spread x + signal_prev (1 - e^-h) D

    The first step knows none before, and the last one ends where l may be infinite: both are of first order, which is
    DDIM. A solver keeps one latent between steps and no more.
    """

    def __init__(self, acp: Tensor, final_alpha: float = 1.0, order: int = 1) -> None:
        self._acp, self._final, self._order = acp, final_alpha, order
        self._before: tuple[Tensor, float] | None = None                             # x_0 and h of the last step

    def __call__(self, x: Tensor, eps: Tensor, t: int, t_prev: int) -> Tensor:
        if self._order == 1:
            return ddim_step(x, eps, t, t_prev, self._acp, final_alpha=self._final)
        a, a_prev = _alpha(t, self._acp, self._final), _alpha(t_prev, self._acp, self._final)
        x0 = (x - (1 - a) ** 0.5 * eps) / a**0.5
        last, data = t_prev < 0, x0
        h = math.inf if last else _log_ratio(a_prev) - _log_ratio(a)
        if self._before is not None and not last:
            x0_before, h_before = self._before
            data = x0 + (x0 - x0_before) * (h / (2 * h_before))
        self._before = x0, h
        ratio = ((1 - a_prev) / (1 - a)) ** 0.5
        return ratio * x + (a_prev**0.5 - ratio * a**0.5) * data                    # signal_prev e^-h = ratio signal


def ddim_unstep(x: Tensor, eps: Tensor, t_prev: int, t: int, acp: Tensor, final_alpha: float = 1.0) -> Tensor:
    """x at t_prev -> x at t: the inverse of ddim_step (eta = 0) for the same eps."""
    a, a_prev = _alpha(t, acp, final_alpha), _alpha(t_prev, acp, final_alpha)
    x0 = (x - (1 - a_prev) ** 0.5 * eps) / a_prev**0.5
    return a**0.5 * x0 + (1 - a) ** 0.5 * eps


def ddim_invert(eps_fn: Callable[[Tensor, int], Tensor], x0: Tensor, timesteps: Sequence[int] | Tensor, acp: Tensor, *,
                refine: int = 0, final_alpha: float = 1.0) -> Tensor:
    """The noise eps_m from which deterministic DDIM sampling makes the clip x0 (METHOD 5; supplement 7.1).

    eps_fn(x, t): the network's noise. timesteps: the sampler's own, descending; walked from its end to its start.
    One step asks for the x_t with ddim_step(x_t, eps(x_t, t)) = x_prev. The usual inversion takes eps(x_prev, t) for
    eps(x_t, t); each of the `refine` fixed-point rounds puts the x_t found so far in its place, which converges to the
    exact inverse. **Ours**: the paper names DDIM inversion only. Costs len(timesteps) * (1 + refine) forwards.
    """
    steps = [int(t) for t in timesteps]
    x = x0
    for t, t_prev in reversed(list(zip(steps, [*steps[1:], -1]))):
        guess = x
        for _ in range(1 + refine):
            guess = ddim_unstep(x, eps_fn(guess, t), t_prev, t, acp, final_alpha)
        x = guess
    return x


def mix(inverted: Tensor, noise: Tensor, beta: float) -> Tensor:
    """x_T = sqrt(beta) eps_m + sqrt(1 - beta) eps, beta = 0.3 (supplement 7.1)."""
    return beta**0.5 * inverted + (1 - beta) ** 0.5 * noise


def appearance_free(target: Tensor, out_ap: Tensor, w: float) -> Tensor:
    """eps_apfree = (1 + w) eps - w eps_theta(x_t, c_ap, t), w = 0.5 (METHOD 3; supplement, Table 3d).

    The same for v: v is affine in eps at a given x_t, and the weights 1 + w and -w add up to one.
    """
    return (1 + w) * target - w * out_ap


def _log_ratio(a: float) -> float:
    """l = log(signal / spread)."""
    return 0.5 * (math.log(a) - math.log1p(-a))


def _alpha(t: int, acp: Tensor, final_alpha: float) -> float:
    return float(acp[t]) if t >= 0 else float(final_alpha)


def _known(predicts: str) -> str:
    if predicts not in ("epsilon", "v_prediction"):
        raise ValueError(f"the network predicts '{predicts}'; known are epsilon and v_prediction")
    return predicts
