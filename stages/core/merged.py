"""LoRAs merged into copies of a layer's weight, a copy for each branch of a batch: no work beyond the base's own.

    rows of branch n:   y = x W_n^T + bias,   W_n = W + sum (alpha / r) B A       over the LoRAs of n

The layer's own weight is never written: swapping weights between a forward and its backward gives, under checkpointing,
a wrong gradient without a word. Here every forward notes down which weights it used, and its backward uses those.
"""
from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from .lora import Lora


def slices(names: Sequence[str | None], length: int) -> list[tuple[str | None, slice]]:
    """Which part of a layer's `length` rows each run of equal names has; a layer may have several rows for a name."""
    assert names and length % len(names) == 0, "say first of which branch each row is: rows([...])"
    each, at, out = length // len(names), 0, []
    for name, run in itertools.groupby(names):
        end = at + each * len(list(run))
        out.append((name, slice(at, end)))
        at = end
    return out


@contextmanager
def merged(layer: nn.Module, path: str, changes: Mapping[str | None, Sequence[Lora]], now: Sequence[str | None]
           ) -> Iterator[None]:
    """Inside, each row of this linear layer goes through the weight of its branch.

    changes: {branch: the LoRAs that change this layer}. now: the branch of each row of the batch, read at each forward.
    Of a layer that PEFT trains it is the frozen one beneath, so the trained LoRA still adds to it.
    """
    base = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer
    assert "forward" not in vars(base), f"merged weights are already open on {path}"
    plain, weights = base.forward, {name: _changed(base.weight, path, loras) for name, loras in changes.items()}
    assert not any(w.requires_grad for w in weights.values()), "only frozen layers are merged"

    def forward(x: Tensor) -> Tensor:
        parts = [(weights[name], part) for name, part in slices(now, len(x))]
        used = [(weight, slice(some[0].start, some[-1].stop)) for weight, some in
                ((run[0][0], [part for _, part in run]) for run in _runs(parts))]
        if len(used) == 1:
            weight = used[0][0]
            return plain(x) if weight is base.weight else F.linear(x, weight, base.bias)
        return _LinearByRows.apply(x, base.bias, [part for _, part in used], *(weight for weight, _ in used))

    base.forward = forward
    try:
        yield
    finally:
        del base.forward


def _runs(parts: Sequence[tuple[Tensor, slice]]) -> list[list[tuple[Tensor, slice]]]:
    """Neighbours of one weight, together."""
    return [list(run) for _, run in itertools.groupby(parts, key=lambda part: id(part[0]))]


def _changed(weight: Tensor, path: str, loras: Sequence[Lora]) -> Tensor:
    """W_n: summed in float32 or better; the weight itself where nothing changes it."""
    if not loras:
        return weight
    wide = torch.promote_types(weight.dtype, torch.float32)
    change = sum(lora.scaling * (b.to(weight.device, wide) @ a.to(weight.device, wide))
                 for lora in loras for a, b in [lora.factors(path)])
    return (weight.detach().to(wide) + change.detach()).to(weight.dtype)


class _LinearByRows(torch.autograd.Function):
    """y[part] = x[part] W^T + bias, with a frozen weight for each part, written into one result: x (R, ..., in) ->
    (R, ..., out). A gradient to x alone."""

    @staticmethod
    def forward(ctx, x: Tensor, bias: Tensor | None, parts: Sequence[slice], *weights: Tensor) -> Tensor:
        ctx.parts = parts
        ctx.save_for_backward(*weights)
        y = x.new_empty(*x.shape[:-1], len(weights[0]))
        for part, weight in zip(parts, weights):
            _product(x[part], weight.t(), bias, y[part])
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        weights = ctx.saved_tensors
        grad_x = grad_y.new_empty(*grad_y.shape[:-1], weights[0].shape[1])
        for part, weight in zip(ctx.parts, weights):
            _product(grad_y[part], weight, None, grad_x[part])
        return (grad_x, None, None, *(None for _ in weights))


def _product(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """out = x weight + bias, over the last axis; out is contiguous."""
    flat, into = x.reshape(-1, x.shape[-1]), out.view(-1, out.shape[-1])
    torch.mm(flat, weight, out=into) if bias is None else torch.addmm(bias, flat, weight, out=into)
