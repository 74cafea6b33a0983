"""What a stage will need: peak memory of the device, and time. Estimated from the configs of a base; imports no torch.

The networks are walked block by block (blocks.py). Memory is that of a device whose attention writes out no maps
(CUDA); tensors that live, as torch.cuda.max_memory_allocated counts them, without what the driver and single kernels
take for themselves. How near that comes: docs/performance.md, bench/memory.py.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from . import blocks as shapes
from .bases import config
from .blocks import Block

if TYPE_CHECKING:
    from ..options import Options

BYTES = {"fp64": 8, "fp32": 4, "bf16": 2, "fp16": 2}
MEMORY_ERROR = 0.15       # of the estimate, either way, against counted bytes (bench/memory.py)
TIME_ERROR = 2.0          # a factor, either way
EFFICIENCY = {"cpu": 0.5, "cuda": 0.5}   # share of a large product's arithmetic per second that a network reaches
_BACKWARD = 1.1           # backward to the inputs of a frozen network, in forwards (measured)
_ADAPTER = 16             # bytes of a LoRA's parameter that learns: itself, gradient, two moments, float32 each
_CHUNK = 16               # frames through the autoencoder at a time, as in unet3d.py


@dataclass(frozen=True)
class Estimate:
    """peak_bytes: of the device, the largest of `phases`; error: its relative error. seconds: None without a
    throughput; seconds_error: a factor either way. flops: of the whole stage."""

    peak_bytes: int
    error: float
    seconds: float | None
    seconds_error: float
    phases: dict[str, int]
    flops: float


class Base:
    """A base's networks by shape. frames, height, width: of a video; rank: of its LoRAs."""

    def __init__(self, folder: Path, *, frames: int, height: int, width: int, dtype: str, low_memory: bool) -> None:
        self.unet, self.vae, self.text = (config(folder, part) for part in ("unet", "vae", "text_encoder"))
        self.s, self.low, self.frames, self.size = BYTES[dtype], low_memory, frames, (height, width)
        self.tokens = self.text["max_position_embeddings"]
        factor = 2 ** (len(self.vae["block_out_channels"]) - 1)
        self.h, self.w = height // factor, width // factor

    def blocks(self, rows: int = 1, frames: int | None = None) -> list[Block]:
        return shapes.unet(self.unet, self.tokens, rows=rows, frames=frames or self.frames, h=self.h, w=self.w)

    # ------------------------------------------------------------------------------------------------------- weights
    @property
    def unet_bytes(self) -> int:
        return shapes.unet_parameters(self.unet) * self.s

    @property
    def vae_bytes(self) -> int:
        return sum(b.parameters for down in (True, False) for b in self._pictures(1, down)) * self.s

    @property
    def text_bytes(self) -> int:
        width, wide, layers = (self.text[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers"))
        layer = 4 * (width * width + width) + 2 * width * wide + width + wide + 4 * width
        return ((self.text["vocab_size"] + self.tokens) * width + layers * layer + 2 * width) * self.s

    def adapted(self, who: str) -> int:
        """Parameters per rank of a LoRA for "subject" (space) or "motion" (time)."""
        return sum(b.adapted(1) for b in self.blocks() if b.kind == _LEARNS[who])

    # -------------------------------------------------------------------------------------------------------- phases
    def _pictures(self, pictures: int, down: bool) -> list[Block]:
        return shapes.vae(self.vae, *self.size, pictures, down=down)

    def pictures(self, *, down: bool) -> int:
        """Encoding (down) or decoding a video."""
        return round(passing(self._pictures(1 if self.low else min(_CHUNK, self.frames), down), self.s))

    def reading(self) -> int:
        """One prompt through the text encoder, without gradients."""
        return self.tokens * (6 * self.text["hidden_size"] + 2 * self.text["intermediate_size"]) * self.s

    def sampling(self, rows: int) -> int:
        """A forward of so many rows without gradients, each under a LoRA; row by row where memory is low."""
        return round(passing(self.blocks(1 if self.low else rows), self.s, hooked=True))

    def learning(self, who: str, rows: int, rank: int, frames: int | None = None) -> tuple[float, float]:
        return learning(self.blocks(rows, frames), self.s, who, rank, low=self.low)

    def guiding(self, where: str) -> int:
        """Lines 7 to 10 of Algorithm 1: both branches' forward as far as the deepest watched layer, and back."""
        first = until(self.blocks(1 if self.low else 2), where)
        chosen = watched(until(self.blocks(), where), where)
        peak, kept = learning(first, self.s, "inputs", 0, low=self.low)
        maps = sum(2 * b.maps() + (b.maps() if b.kind == "time" else 0) for b in chosen)       # and their differences
        return round(peak + maps + (kept if self.low else sum(2 * b.read_out(self.s) for b in chosen)))


_LEARNS = {"subject": "space", "motion": "time", "inputs": "none"}


def until(blocks: Sequence[Block], where: str) -> list[Block]:
    """As far as the last watched block (attention.choose's `where`)."""
    last = max((index for index, block in enumerate(blocks) if block.maps() and _within(block, where)),
               default=len(blocks) - 1)
    return list(blocks[:last + 1])


def watched(blocks: Sequence[Block], where: str) -> list[Block]:
    """The blocks whose maps are watched."""
    return [block for block in blocks if block.maps() and ("," not in where or _within(block, where))]


def _within(block: Block, where: str) -> bool:
    names = [name for name in where.replace(" ", "").split(",") if name]
    return "all" in names or any(block.name.startswith(name) or name.startswith(block.name + ".") for name in names)


def passing(blocks: Sequence[Block], s: int, *, hooked: bool = False) -> float:
    """The most that is alive in a forward without gradients."""
    skips: list[float] = []
    waiting, group, peak, before, entered = 0.0, "", 0.0, 0.0, 0.0
    for block in blocks:
        first = block.name != group
        if first:                      # what entered a part of the network, and the skips it reads, are held to its end
            group, waiting, entered = block.name, 0.0, 0.0 if skips and before == skips[-1] else before
        own = block.c_in * block.cells * s
        if block.extra:
            own -= block.extra * block.cells * s
            waiting += skips.pop()
        if skips and own == skips[-1]:
            own = 0                                                      # the skip itself
        held = sum(skips) + waiting + (0 if first else entered)
        peak = max(peak, held + own + block.working(s, hooked=hooked))
        before = block.output(s)
        if block.skip:
            skips.append(before)
    return peak


def learning(blocks: Sequence[Block], s: int, who: str, rank: int, *, low: bool) -> tuple[float, float]:
    """(peak, kept): the most that is alive in a forward and its backward, and what waits between them. who: whose LoRA
    learns, "subject" or "motion"; "inputs": the gradient goes to the input through frozen LoRAs."""
    modes = ["learned" if block.kind == _LEARNS[who] else "frozen" for block in blocks]
    start = modes.index("learned") if who != "inputs" else 0             # before it nothing needs a gradient
    live, kept_of = sum(b.output(s) for b in blocks[:start] if b.skip), []
    for block, mode in list(zip(blocks, modes))[start:]:
        whole = block.kept(s, mode, rank)
        kept_of.append(block.c_in * block.cells * s if low and block.kind != "edge" else whole)
    kept, peak, pending = live + sum(kept_of), 0.0, []
    alive = kept
    for block, mode, own in reversed(list(zip(blocks[start:], modes[start:], kept_of))):
        if block.skip and pending:
            pending.pop()
        again = block.kept(s, mode, rank) if low and block.kind != "edge" else 0
        peak = max(peak, alive + again + block.turning(s, mode) + sum(pending))
        alive -= own
        if block.extra:
            pending.append(block.extra * block.cells * s)
    return peak, kept
