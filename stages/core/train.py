"""One optimisation loop for every stage and for the sprites models.

Randomness is a function of (seed, step): the loop hands each step its own generator, so a run that was killed and
resumed from a checkpoint draws the very numbers that the calm run would have drawn.
"""
from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from . import divergence
from .cells import cell
from .checkpoints import Checkpoints
from .errors import BadInput, Interrupted, NumericError
from .report import Report, silent, stoppable
from .team import ALONE, Team

_FUSED = ("cpu", "cuda")    # kinds of device on which AdamW takes all parameters in one kernel


def generator_at(seed: int, step: int, device: str | torch.device = "cpu") -> torch.Generator:
    """The generator of one step. Neighbouring seeds and steps give unrelated streams (splitmix64 of both)."""
    z = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & (2**64 - 1)
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    return torch.Generator(device).manual_seed((z ^ (z >> 27)) & (2**63 - 1))


def schedule(name: str, steps: int) -> Callable[[int], float]:
    """The learning rate's course over a run, as `fit` takes it: "constant", or "cosine", to nothing at the end."""
    return {"constant": lambda step: 1.0, "cosine": lambda step: (1 + math.cos(math.pi * step / steps)) / 2}[name]


def adamw(parameters: Iterable[Tensor] | Iterable[dict], rate: float) -> torch.optim.AdamW:
    """AdamW without weight decay. parameters: those that learn at this rate, or groups of them, {"params": [...],
    "lr": ...}. One kernel takes them all where torch has it (a LoRA is hundreds of small matrices)."""
    groups = list(parameters)
    each = [p for group in groups for p in (group["params"] if isinstance(group, dict) else [group])]
    return torch.optim.AdamW(groups, lr=rate, weight_decay=0.0, fused=all(p.device.type in _FUSED for p in each))


@stoppable()
def fit(parameters: Mapping[str, Tensor], losses_at: Callable[[int, torch.Generator], Mapping[str, Tensor]], *,
        optimizer: torch.optim.Optimizer, steps: int, seed: int, checkpoints: Path | None = None,
        identity: str = "", every_seconds: float = 60.0, every_steps: int = 250, clip: float | None = 1.0,
        rate: Callable[[int], float] = lambda step: 1.0, after_step: Callable[[int], None] | None = None,
        stop: Callable[[], bool] = lambda: False, buffers: Mapping[str, Tensor] | None = None,
        batch: Callable[[int, torch.Generator], str] = lambda step, generator: "", curve_to: Path | None = None,
        team: Team = ALONE, report: Report = silent) -> list[dict[str, float]]:
    """Minimise losses_at(step, generator)["loss"] over the named parameters, in place -> the curve, a row per step.

    losses_at returns named scalars; "loss" is what is minimised. rate(step) scales every group's learning rate.
    team: the processes that share this run. losses_at then returns this process's part of every scalar, 0 where it has
    none; gradients and scalars are added up, the curve is that of the whole, and the first process writes.
    checkpoints: a folder; where it holds a whole one of the same `identity` (a hash of what defines this run), the loop
    goes on from there; one is written every so many seconds, and steps. buffers: tensors that are not trained but
    belong to the state (a moving average that after_step updates). stop() is asked after every step: True, in one
    process, saves and raises Interrupted in all. curve_to: a csv file for the curve. batch(step, generator): what
    losses_at draws at that step, in words, for the message of a failure.
    Raises NumericError before the optimizer's step if a loss or a gradient is not finite (the last good state is kept),
    and, after a warning, where the run diverges; OutOfResources where the disk has no room for the checkpoints.
    """
    base_rates = [group["lr"] for group in optimizer.param_groups]
    learned, buffers = list(parameters.values()), buffers or {}
    saved = Checkpoints(checkpoints, identity, parameters, buffers, optimizer, every_seconds, every_steps, team.main,
                        report)
    curve = saved.restore()
    if team.any(team.first_says(len(curve)) != len(curve)):
        raise BadInput(f"the processes of this run found different checkpoints in {checkpoints}", "delete that folder")
    team.same([*learned, *buffers.values()])
    for step in range(len(curve), steps):
        for group, base in zip(optimizer.param_groups, base_rates):
            group["lr"] = base * rate(step)
        losses = losses_at(step, generator_at(seed, step))
        if losses["loss"].requires_grad:                     # not so in a process that has no part in this step
            losses["loss"].backward()
        sums = team.add_up(learned, losses)
        norm = torch.nn.utils.clip_grad_norm_(learned, clip if clip else math.inf)
        *values, size = torch.stack([*sums.values(), norm]).tolist()                 # the one wait for the device
        where = f"step {step} of {steps}, learning rate {optimizer.param_groups[-1]['lr']:.3g}"
        if not all(map(math.isfinite, (*values, size))):
            saved.save(curve)
            team.wait()
            raise _broken(dict(zip(sums, values)), size, where, batch(step, generator_at(seed, step)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        curve.append(dict(zip(sums, values)))
        if after_step:
            after_step(step)
        report(step=step + 1, of=steps, **curve[-1])
        _watch(curve, where, report)
        stopping = team.any(stop()) and step + 1 < steps
        if stopping or saved.due(curve):
            saved.save(curve)
        if stopping:
            team.wait()                                      # whoever ends first is not to cut the saving short
            raise Interrupted(f"stopped after step {step + 1} of {steps}", "run the same command again to go on")
    if curve_to and team.main:
        write_curve(curve, curve_to)
    return curve


def _broken(row: Mapping[str, float], size: float, where: str, drawn: str) -> NumericError:
    found = ", ".join(f"{name} {value:.4g}" for name, value in row.items())
    return NumericError(f"{where}{f', {drawn}' if drawn else ''}: {found}, gradient norm {size:.4g}",
                        "lower the learning rate or train in float32; nothing of this step was applied")


def _watch(curve: Sequence[Mapping[str, float]], where: str, report: Report) -> None:
    verdict, seen = ("", "") if len(curve) % divergence.WINDOW else divergence.judge([row["loss"] for row in curve])
    if verdict == "stop":
        raise NumericError(f"{where}: the run has diverged, {seen}", "lower the learning rate")
    if verdict:
        report(note=f"{where}: {seen}. If it goes on like this, the learning rate is too high")


def write_curve(curve: Sequence[Mapping[str, float]], path: Path) -> None:
    """The losses as csv: step, and a column for each."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        names = [" ".join(name.split()) for name in (curve[0] if curve else ["loss"])]       # some are those of actors
        table.writerow(["step", *map(cell, names)])
        table.writerows([step, *(f"{value:.6g}" for value in row.values())] for step, row in enumerate(curve))
