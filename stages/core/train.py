"""One optimisation loop for every stage and for the sprites models.

Randomness is a function of (seed, step): the loop hands each step its own generator, so a run that was killed and
resumed from a checkpoint draws the very numbers that the calm run would have drawn.
"""
from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import BadInput, Interrupted, NumericError
from .report import Report, silent
from .team import ALONE, Team

KEEP = 2            # checkpoints kept: the newest and the one before it
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


def fit(parameters: Mapping[str, Tensor], losses_at: Callable[[int, torch.Generator], Mapping[str, Tensor]], *,
        optimizer: torch.optim.Optimizer, steps: int, seed: int, checkpoints: Path | None = None,
        identity: str = "", every_seconds: float = 60.0, clip: float | None = 1.0,
        rate: Callable[[int], float] = lambda step: 1.0, after_step: Callable[[int], None] | None = None,
        stop: Callable[[], bool] = lambda: False, buffers: Mapping[str, Tensor] | None = None,
        team: Team = ALONE, report: Report = silent) -> list[dict[str, float]]:
    """Minimise losses_at(step, generator)["loss"] over the named parameters, in place -> the curve, a row per step.

    losses_at returns named scalars; "loss" is what is minimised. rate(step) scales every group's learning rate.
    team: the processes that share this run. losses_at then returns this process's part of every scalar, 0 where it has
    none; gradients and scalars are added up, the curve is that of the whole, and the first process writes.
    checkpoints: a folder; where it holds a whole checkpoint of the same `identity` (a hash of what defines this run),
    the loop goes on from there. buffers: tensors that are not trained but belong to the state (a moving average that
    after_step updates). stop() is asked after every step: True, in one process, saves and raises Interrupted in all.
    Raises NumericError before the optimizer's step if a loss or a gradient is not finite: the last good state is kept.
    """
    base_rates = [group["lr"] for group in optimizer.param_groups]
    learned, buffers = list(parameters.values()), buffers or {}
    curve = _restore(checkpoints, identity, parameters, buffers, optimizer, report) if checkpoints else []
    if team.any(team.first_says(len(curve)) != len(curve)):
        raise BadInput(f"the processes of this run found different checkpoints in {checkpoints}", "delete that folder")
    team.same([*learned, *buffers.values()])
    saved_at = time.monotonic()
    for step in range(len(curve), steps):
        for group, base in zip(optimizer.param_groups, base_rates):
            group["lr"] = base * rate(step)
        losses = losses_at(step, generator_at(seed, step))
        if losses["loss"].requires_grad:                     # not so in a process that has no part in this step
            losses["loss"].backward()
        sums = team.add_up(learned, losses)
        norm = torch.nn.utils.clip_grad_norm_(learned, clip if clip else math.inf)
        *values, size = torch.stack([*sums.values(), norm]).tolist()                 # the one wait for the device
        row = dict(zip(sums, values))
        if not all(map(math.isfinite, (*values, size))):
            if checkpoints and team.main:
                _save(checkpoints, identity, parameters, buffers, optimizer, curve)
            team.wait()
            raise NumericError(f"step {step} of {steps}: loss {row['loss']:.4g}, gradient norm {size:.4g}",
                               f"lower the learning rate (now {base_rates[0]:.3g}) or train in float32; "
                               "nothing of this step was applied")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        curve.append(row)
        if after_step:
            after_step(step)
        report(step=step + 1, of=steps, **row)
        stopping = team.any(stop()) and step + 1 < steps
        if checkpoints and team.main and (stopping or time.monotonic() - saved_at > every_seconds):
            _save(checkpoints, identity, parameters, buffers, optimizer, curve)
            saved_at = time.monotonic()
        if stopping:
            team.wait()                                      # whoever ends first is not to cut the saving short
            raise Interrupted(f"stopped after step {step + 1} of {steps}", "run the same command again to go on")
    return curve


def named_state(parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor],
                optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Parameters, buffers and optimizer state as one flat dict of tensors: what a checkpoint holds (no pickle)."""
    out = {f"value/{name}": p.detach() for name, p in parameters.items()}
    out.update({f"buffer/{name}": b for name, b in buffers.items()})
    for name, p in parameters.items():
        for key, value in optimizer.state.get(p, {}).items():
            out[f"state/{name}/{key}"] = torch.as_tensor(value)
    return out


def _save(folder: Path, identity: str, parameters, buffers, optimizer, curve) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{len(curve):07d}.safetensors"
    partial = target.with_suffix(".partial")
    tensors = {k: v.contiguous().cpu().clone() for k, v in named_state(parameters, buffers, optimizer).items()}
    save_file(tensors, partial, metadata={"identity": identity, "curve": json.dumps(curve)})
    with partial.open("rb") as handle:
        os.fsync(handle.fileno())
    partial.replace(target)
    for old in sorted(folder.glob("step-*.safetensors"))[:-KEEP]:
        old.unlink()


def _restore(folder: Path, identity: str, parameters, buffers, optimizer, report: Report) -> list[dict[str, float]]:
    """Load the newest whole checkpoint of this identity, in place -> its curve ([] if there is none)."""
    fused = optimizer.defaults.get("fused")                            # such an optimizer counts steps on the device
    for path in sorted(folder.glob("step-*.safetensors"), reverse=True):
        try:
            with safe_open(path, "pt") as file:
                meta = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}     # noqa: SIM118 (no iterator)
        except (SafetensorError, OSError) as damage:
            report(note=f"checkpoint {path.name} is damaged ({damage}); the one before it is used")
            continue
        if meta.get("identity") != identity:
            continue
        with torch.no_grad():
            for name, b in buffers.items():
                b.copy_(tensors[f"buffer/{name}"])
            for name, p in parameters.items():
                p.copy_(tensors[f"value/{name}"])
                slots = {key.rsplit("/", 1)[1]: value for key, value in tensors.items()
                         if key.startswith(f"state/{name}/")}
                if slots:
                    optimizer.state[p] = {k: v.to(p.device if fused else "cpu") if k == "step" else v.to(p)
                                          for k, v in slots.items()}
        curve = json.loads(meta["curve"])
        report(note=f"going on from step {len(curve)}")
        return curve
    return []
