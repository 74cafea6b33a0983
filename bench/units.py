"""The cost model against the network: rows that went through each block forwards and back, and operations, counted.

    python -m bench.units               # the base of 58 M parameters: a table

Nothing is assumed: a hook before each block counts the rows that enter it, a hook on what entered counts the rows whose
gradient came back through it, and torch counts the operations. What is predicted is of stages/backbones/cost.py.
"""
from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from stages.backbones.cost import Base, units
from stages.backbones.walks import passes
from stages.options import SampleOptions

from . import rows

TAUS, DEPTHS = (0, 5, 15, 50), ("down_blocks.1", "mid", "up_blocks.1", "all")
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


def table(folder: Path) -> str:
    """Of the base of 58 M parameters: a step and videos of 50 steps, predicted and counted."""
    s = rows.setting("bench", folder)
    video = s.backbone
    base = Base(video.folder, frames=video.frames, height=video.height, width=video.width, dtype="fp32",
                low_memory=False)
    with torch.no_grad(), operations() as one:
        video.predict(s.clip, 500, s.vectors(""))

    def step(**options: object) -> tuple[list[tuple[int, int]], float]:
        with counting(video.denoiser, video.frames) as counted, operations() as found:
            rows.sampling(s, 1, **options)
        assert counted.passes == passes(base.blocks(), SampleOptions(steps=1, **{"tau": 0, **options}), low=False)
        return counted.passes, found.get_total_flops() / one.get_total_flops()

    _, unguided = step()
    lines = ["| maps as far as | share of the network | rows of a guided step | u of it | "
             + " | ".join(f"u of 50, tau {tau}" for tau in TAUS) + " |", "|---|---:|---:|" + "---:|" * 5]
    for layers in DEPTHS:
        rowed, guided = step(tau=1, layers=layers)
        share = sum(block.flops for block, (_, back) in zip(base.blocks(), rowed) if back) / base.forward()
        seen = [units(base, SampleOptions(steps=1, tau=1, layers=layers)), guided]
        cells = [seen, *([units(base, SampleOptions(tau=tau, layers=layers)), (50 - tau) * unguided + tau * guided]
                         for tau in TAUS)]
        ahead, back = rowed[0]
        lines.append(f"| {layers} | {share:.3f} | {ahead}, {back} back | {cells[0][0]:.2f}, {cells[0][1]:.2f} | "
                     + " | ".join(f"{a:.1f}, {b:.1f}" for a, b in cells[1:]) + " |")
    return "\n".join(lines)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        print(table(Path(folder)))


if __name__ == "__main__":
    main()
