"""The cost model against the network: rows that went through each block forwards and back, and operations, counted.

    python -m bench.units               # the base of 58 M parameters, on the meta device: a table

Nothing is assumed: a hook before each block counts the rows that enter it, a hook on what entered counts the rows whose
gradient came back through it, and torch counts the operations. What is predicted is of stages/backbones/cost.py.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

KINDS = {ResnetBlock2D: "resnet", TemporalConvLayer: "tempconv", Transformer2DModel: "space",
         TransformerTemporalModel: "time", Downsample2D: "down", Upsample2D: "up"}

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu              # torch's table knows those of a GPU
_flash_back = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
MORE = {_flash: lambda q, k, v, *rest, **more: sdpa_flop_count(q, k, v),
        _flash_back: lambda grad, q, k, v, *rest, **more: sdpa_backward_flop_count(grad, q, k, v)}


@dataclass
class Counted:
    """kinds: of the blocks, by path, in the order in which they were first entered; forward, back: rows of each."""

    kinds: dict[str, str] = field(default_factory=dict)
    forward: Counter[str] = field(default_factory=Counter)
    back: Counter[str] = field(default_factory=Counter)

    @property
    def passes(self) -> list[tuple[int, int]]:
        return [(self.forward[name], self.back[name]) for name in self.kinds]


def kind_of(name: str, module: nn.Module) -> str:
    """A block's kind as blocks.py has it; "" of what is part of another."""
    return "edge" if name in ("conv_in", "conv_out") else KINDS.get(type(module), "")


@contextmanager
def counting(denoiser: nn.Module, frames: int) -> Iterator[Counted]:
    """Inside, the rows of every block."""
    counted, handles = Counted(), []

    def listen(name: str, module: nn.Module, kind: str) -> None:
        def enter(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict) -> None:
            x = args[0] if args else kwargs["hidden_states"]
            rows = len(x) // frames
            counted.kinds[name] = kind
            counted.forward[name] += rows
            if x.requires_grad:
                x.register_hook(lambda grad: counted.back.update({name: rows}))

        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))

    for name, module in denoiser.named_modules():
        if kind := kind_of(name, module):
            listen(name, module, kind)
    try:
        yield counted
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def operations() -> Iterator[FlopCounterMode]:
    """Inside, multiplications and additions; .get_total_flops() tells them."""
    with FlopCounterMode(display=False, custom_mapping=MORE) as mode:
        yield mode
