"""Muon for every matrix, AdamW for the rest: what trains the sprites models from nothing in few steps.

Muon (K. Jordan et al., 2024) replaces a matrix's momentum by the nearest orthogonal matrix. torch.optim.Muon takes
two-dimensional parameters only; here a convolution kernel is the matrix (out, in * taps), which half of a U-Net is.
"""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor


def orthogonalized(batch: Tensor) -> Tensor:
    """Nearest (semi-)orthogonal matrices of (N, rows, columns), by five Newton-Schulz steps of order five."""
    wide = batch.shape[1] <= batch.shape[2]
    x = batch if wide else batch.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if wide else x.mT


class MuonAdamW(torch.optim.Optimizer):
    """Muon (rate lr) on parameters of two dimensions or more, AdamW (rate adam_lr) on vectors and on `adam`, a set of
    parameters to leave to it (embeddings, first and last layers)."""

    def __init__(self, parameters: Iterable[Tensor], lr: float, adam_lr: float, adam: Iterable[Tensor] = (),
                 momentum: float = 0.95, decay: float = 0.01) -> None:
        left = {id(p) for p in adam}
        parameters = list(parameters)
        muon = [p for p in parameters if p.ndim >= 2 and id(p) not in left]
        rest = [p for p in parameters if p.ndim < 2 or id(p) in left]
        super().__init__([dict(params=muon, lr=lr, kind="muon"), dict(params=rest, lr=adam_lr, kind="adamw")],
                         dict(momentum=momentum, decay=decay))

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            with_grad = [p for p in group["params"] if p.grad is not None]
            (self._muon if group["kind"] == "muon" else self._adamw)(with_grad, group)

    def _muon(self, parameters: list[Tensor], group: dict) -> None:
        alike = defaultdict(list)
        for p in parameters:
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p)
            state["momentum"].lerp_(p.grad, 1 - group["momentum"])
            alike[(p.shape[0], p[0].numel())].append(p)
        for (rows, columns), members in alike.items():
            ahead = [p.grad.lerp(self.state[p]["momentum"], group["momentum"]) for p in members]   # Nesterov
            whole = orthogonalized(torch.cat([g.view(1, rows, columns) for g in ahead]))
            whole = whole * (0.2 * max(rows, columns) ** 0.5)
            for p, update in zip(members, whole):
                p.mul_(1 - group["lr"] * group["decay"]).add_(update.view_as(p), alpha=-group["lr"])

    def _adamw(self, parameters: list[Tensor], group: dict) -> None:
        for p in parameters:
            state = self.state[p]
            if not state:
                state.update(step=torch.zeros(()), mean=torch.zeros_like(p), square=torch.zeros_like(p))
            state["step"] += 1
            n = float(state["step"])
            state["mean"].lerp_(p.grad, 0.1)
            state["square"].mul_(0.98).addcmul_(p.grad, p.grad, value=0.02)
            mean, square = state["mean"] / (1 - 0.9**n), state["square"] / (1 - 0.98**n)
            p.addcdiv_(mean, square.sqrt() + 1e-8, value=-group["lr"])
