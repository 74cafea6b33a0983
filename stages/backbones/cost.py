"""What a stage will need: peak memory of the device, and time. Estimated from the configs of a base; imports no torch.

The networks are walked block by block (blocks.py). Memory is that of a device whose attention writes out no maps
(CUDA); tensors that live, as torch.cuda.max_memory_allocated counts them, without what the driver and single kernels
take for themselves. How near that comes: docs/performance.md, bench/memory.py.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from . import blocks as shapes
from .bases import config
from .blocks import Block
from .walks import LEARNS, learning, passes, passing, until, watched

if TYPE_CHECKING:
    from ..options import Options

BYTES = {"fp64": 8, "fp32": 4, "amp": 2, "bf16": 2, "fp16": 2}     # of a number between two layers of the denoiser
WEIGHTS = {**BYTES, "amp": 4}                                      # of a weight; and of any number in the other parts
MEMORY_ERROR = 0.15       # of the estimate, either way, against counted bytes (bench/memory.py)
TIME_ERROR = 2.0          # a factor, either way
EFFICIENCY = 0.45         # of a large product's operations per second: measured on a CPU, 0.41 to 0.52; taken for all
_BACKWARD = 1.1           # backward to the inputs of a frozen network, in forwards (measured)
_ADAPTER = 16             # bytes of a LoRA's parameter that learns: itself, gradient, two moments, float32 each
_RANK = 32                # of the LoRAs that a stage reads, of which the configs say nothing: the default
_PREVIEW_STEPS = 50       # DDIM steps of what other stages' options decide
_CHUNK = 16               # frames through the autoencoder at a time, as in unet3d.py
_TOGETHER = 4             # draws of a bank through the network at a time, as in learn_motion.py


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
        self.s, self.weight = BYTES[dtype], WEIGHTS[dtype]
        self.low, self.frames, self.size = low_memory, frames, (height, width)
        self.merges = dtype in ("fp32", "fp64") and not low_memory                    # as UNet3D.merges
        self.tokens = self.text["max_position_embeddings"]
        factor = 2 ** (len(self.vae["block_out_channels"]) - 1)
        self.h, self.w = height // factor, width // factor

    def blocks(self, rows: int = 1, frames: int | None = None) -> list[Block]:
        return shapes.unet(self.unet, self.tokens, rows=rows, frames=frames or self.frames, h=self.h, w=self.w)

    # ------------------------------------------------------------------------------------------------------- weights
    @property
    def unet_bytes(self) -> int:
        return shapes.unet_parameters(self.unet) * self.weight

    @property
    def vae_bytes(self) -> int:
        return sum(b.parameters for down in (True, False) for b in self._pictures(1, down)) * self.weight

    @property
    def text_bytes(self) -> int:
        width, wide, layers = (self.text[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers"))
        layer = 4 * (width * width + width) + 2 * width * wide + width + wide + 4 * width
        return ((self.text["vocab_size"] + self.tokens) * width + layers * layer + 2 * width) * self.weight

    def adapted(self, who: str) -> int:
        """Parameters per rank of a LoRA for "subject" (space) or "motion" (time)."""
        return sum(b.adapted(1) for b in self.blocks() if b.kind == LEARNS[who])

    def loras(self, *branches: str, rank: int = _RANK) -> int:
        """Frozen LoRAs that run, "subject" or "motion" each: their factors, and where they are merged a copy of all
        weights that one changes."""
        return sum(self.weight * (rank * self.adapted(who) + self.merges * sum(
            b.adaptable for b in self.blocks() if b.kind == LEARNS[who])) for who in branches)

    # -------------------------------------------------------------------------------------------------------- phases
    def _pictures(self, pictures: int, down: bool) -> list[Block]:
        return shapes.vae(self.vae, *self.size, pictures, down=down)

    def pictures(self, *, down: bool) -> int:
        """Encoding (down) or decoding a video."""
        count = 1 if self.low else min(_CHUNK, self.frames)
        pixels = 2 * 3 * count * math.prod(self.size) * self.weight                    # before and after
        return round(passing(self._pictures(count, down), self.weight) + pixels)

    def reading(self, rows: int = 1) -> int:
        """What the text encoder keeps of prompts, for the way back to a token."""
        layer = 10 * self.text["hidden_size"] + 2 * self.text["intermediate_size"]
        return rows * self.tokens * layer * self.text["num_hidden_layers"] * self.weight

    def forward(self, frames: int | None = None) -> float:
        """Operations of one row."""
        return sum(b.flops for b in self.blocks(1, frames))

    def there_and_back(self, flops: float) -> float:
        """Operations of a forward and its backward; the forward is computed twice where memory is low."""
        return flops * (1 + _BACKWARD + self.low)

    def translated(self, *, down: bool) -> float:
        """Operations of a video's way through the autoencoder."""
        return self.frames * sum(b.flops for b in self._pictures(1, down))

    def sampling(self, rows: int) -> int:
        """A forward of so many rows without gradients, each under a LoRA; row by row where memory is low."""
        return round(passing(self.blocks(1 if self.low else rows), self.s, hooked=not self.merges))

    def learning(self, who: str, rows: int, rank: int, frames: int | None = None) -> tuple[float, float]:
        return self.walk(self.blocks(rows, frames), who, rank)

    def walk(self, blocks: Sequence[Block], who: str, rank: int = 0) -> tuple[float, float]:
        """walks.learning: where weights are wider than what flows, the backward keeps copies of them of its width."""
        return learning(blocks, self.s, who, rank, low=self.low, cast=self.s if self.s < self.weight else 0)

    def guiding(self, where: str) -> int:
        """Lines 7 to 10 of Algorithm 1: both branches' forward as far as the deepest watched layer, and back."""
        first = until(self.blocks(1 if self.low else 2), where)
        chosen = watched(until(self.blocks(), where), where)
        peak, kept = self.walk(first, "inputs")
        differences = sum(b.maps() for b in chosen if b.kind == "time")
        return round(peak + (kept if self.low else 0) + differences + self.watching(chosen, 2, explicit=not self.low))

    def watching(self, chosen: Sequence[Block], rows: int, *, explicit: bool = False) -> float:
        """Maps of so many rows that wait for a gradient, and what theirs needs beside that of the layer's own output;
        nothing, where that is computed from the map (attention.watch, explicit)."""
        maps = rows * sum(b.maps() for b in chosen)
        if not self.low:
            return maps + (0 if explicit else rows * sum(b.read_out(self.s) for b in chosen))
        return maps + sum(b.maps() for b in chosen) + max((b.maps() + b.read_out(self.s) for b in chosen), default=0)


Phases = dict[str, float]


def _invert(base: Base, o: Options, count: int) -> tuple[Phases, float]:
    text = base.text_bytes if o.token_steps else 0         # it stays on the device once a token has been learned
    peak, kept = base.learning("inputs", o.token_batch, 0, 1)
    walk = o.inversion_steps * (1 + o.inversion_refine)
    flops = (o.token_steps * count * o.token_batch * base.there_and_back(base.forward(1))
             + (walk + o.inversion_steps) * base.forward())
    return {"encoding": base.unet_bytes + text + base.vae_bytes + base.pictures(down=True),
            "tokens": base.unet_bytes + text + (count - 1) * kept + peak + base.reading(count),
            "inversion": base.unet_bytes + text + base.sampling(2),
            "decoding": base.unet_bytes + text + base.vae_bytes + base.pictures(down=False)}, flops


def _learn_subject(base: Base, o: Options, count: int) -> tuple[Phases, float]:
    held = base.unet_bytes + base.text_bytes + _ADAPTER * o.rank * base.adapted("subject")
    peak, kept = base.learning("subject", o.batch, o.rank, 1)
    flops, draws = o.batch * base.forward(1), o.steps // o.preview_every if o.preview_every else 1
    if o.lambda1:
        regular, _ = base.learning("subject", 1, o.rank)
        peak, flops = max(peak, kept + regular), flops + base.forward()
        draws += 0 if o.auxiliary else o.auxiliary_count
    return {"encoding": base.vae_bytes + base.pictures(down=True),
            "drawing": held + base.loras("subject", rank=o.rank) + base.sampling(2),
            "learning": held + peak + base.reading(),
            "decoding": held + base.vae_bytes + base.pictures(down=False)}, \
        o.steps * base.there_and_back(flops) + draws * 2 * o.video_steps * base.forward()


def _learn_motion(base: Base, o: Options, count: int) -> tuple[Phases, float]:
    held = base.unet_bytes + _ADAPTER * o.rank * base.adapted("motion")
    step = o.batch * (base.there_and_back(base.forward()) + (base.forward() if o.w and not o.bank else 0))
    bank = {"bank": base.unet_bytes + base.sampling(_TOGETHER)} if o.w and o.bank else {}
    return {"encoding": base.vae_bytes + base.pictures(down=True), **bank,
            "learning": held + base.learning("motion", o.batch, o.rank)[0],
            "previews": held + base.loras("motion", rank=o.rank) + base.sampling(2),
            "decoding": held + base.vae_bytes + base.pictures(down=False)}, \
        o.steps * step + (len(bank) * o.bank + 3 * 2 * _PREVIEW_STEPS) * base.forward()


def _fuse(base: Base, o: Options, count: int) -> tuple[Phases, float]:
    rows, rank = o.batch * (1 if o.teachers == "turns" else count), count * _RANK
    held = base.unet_bytes + _ADAPTER * rank * base.adapted("subject") + base.loras(*["subject"] * count)
    peak, kept = base.learning("subject", rows, rank)
    step = rows * (base.forward() + base.there_and_back(base.forward()))
    if o.lambda2 or o.lambda_mix:
        mixed = base.blocks() if o.lambda_mix else until(base.blocks(), o.layers, ("space",))
        maps = base.watching(watched(until(base.blocks(), o.layers, ("space",)), o.layers, ("space",)), 1)
        peak = max(peak, kept + maps + base.walk(mixed, "subject", rank)[0])
        step += base.there_and_back(sum(b.flops for b in mixed))
    return {"drawing": base.unet_bytes + base.loras("subject") + base.sampling(2),
            "encoding": base.unet_bytes + base.vae_bytes + base.pictures(down=True),
            "learning": held + peak,
            "decoding": base.unet_bytes + base.vae_bytes + base.pictures(down=False)}, \
        o.steps_for(count) * step + count * o.videos * 2 * o.video_steps * base.forward()


def _sample(base: Base, o: Options, count: int) -> tuple[Phases, float]:
    rows, back = passes(base.blocks(), replace(o, steps=1), low=False)[0]                    # of the first step
    every = ("subject", "motion")
    held = base.unet_bytes + base.loras(*{"auto": every, "joint": every, "none": ()}.get(o.branches, [o.branches]))
    chosen = watched(until(base.blocks(), o.layers), o.layers)
    measured = 2 * sum(b.maps() for b in chosen) if back else 0                              # of the prompts' rows
    phases = {"sampling": held + base.sampling(rows - back) + measured,
              "decoding": base.unet_bytes + base.vae_bytes + base.pictures(down=False)}
    flops = units(base, o) * base.forward() + base.translated(down=False)
    if back:
        phases["guiding"] = held + base.guiding(o.layers)
    if o.inverted == "cast":
        phases["encoding"] = base.unet_bytes + base.vae_bytes + base.pictures(down=True)
        flops += _PREVIEW_STEPS * base.forward()
    return phases, count * o.count * flops


def units(base: Base, o: Options) -> float:
    """What a video of `sample` costs in u, forwards of one row; a plain guided step costs 2. With f, the share of the
    network as far as the deepest watched layer: 4 u an unguided step, (4 + 2 (f + 1.1 f)) u a guided one."""
    rows = passes(base.blocks(), o, low=base.low)
    return sum(b.flops * (ahead + _BACKWARD * back) for b, (ahead, back) in zip(base.blocks(), rows)) / base.forward()


STAGES = {"invert": _invert, "learn-subject": _learn_subject, "learn-motion": _learn_motion, "fuse": _fuse,
          "sample": _sample}


def estimate(folder: Path, stage: str, options: Options, *, frames: int, height: int, width: int, dtype: str,
             low_memory: bool, throughput: float | None = None, count: int | None = None) -> Estimate:
    """What a stage will need on the device for one artefact, as unet3d.UNet3D keeps the parts of the base there.

    folder: of the base; only its configs are read. frames, height, width: of its videos, in pixels. throughput:
    floating point operations per second of the device (`throughput`), None: no time. count: the actors of `invert`, the
    subjects of `fuse` (2 each), or the prompts of `sample` (1). The LoRAs that fuse and sample read are taken to be of
    the default rank. Raises ValueError for a stage without a network of the base, BadInput for a damaged config.
    """
    if stage not in STAGES:
        raise ValueError(f"'{stage}' has no estimate; known are {', '.join(STAGES)}")
    frames = getattr(options, "frames", None) or frames
    base = Base(folder, frames=frames, height=height, width=width, dtype=dtype, low_memory=low_memory)
    phases, flops = STAGES[stage](base, options, count or (1 if stage == "sample" else 2))
    whole = {name: round(size) for name, size in phases.items()}
    seconds = flops / (throughput * EFFICIENCY) if throughput else None
    return Estimate(max(whole.values()), MEMORY_ERROR, seconds, TIME_ERROR, whole, flops)


def throughput(device: str, dtype: str) -> float:
    """Floating point operations per second of a large matrix product on this device, the best of five; imports torch.
    Multiplications and additions count one each, as in `Block.flops`."""
    import torch

    kinds = {"fp64": torch.float64, "fp32": torch.float32, "amp": torch.bfloat16, "bf16": torch.bfloat16,
             "fp16": torch.float16}
    side, cuda = (8192, True) if device.startswith("cuda") else (1024, False)
    a = torch.randn(side, side, device=device, dtype=kinds[dtype])
    best = math.inf
    for _ in range(5):
        if cuda:
            torch.cuda.synchronize(device)
        start = perf_counter()
        b = a @ a
        if cuda:
            torch.cuda.synchronize(device)
        else:
            float(b[0, 0])                           # devices that compute ahead (mps) are done when a value is read
        best = min(best, perf_counter() - start)
    return 2 * side**3 / best
