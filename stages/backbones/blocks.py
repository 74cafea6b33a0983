"""A base's networks as lists of blocks, from their configs alone: weights, arithmetic and memory of each. No torch.

The unit of memory is one tensor of a block's width, C m numbers: C channels (`inner`, where a transformer works in
another width), m = rows x frames x h x w cells. How many such tensors a block keeps for its backward, and how many it
needs at once, follows from its layers (the norm's input, the activation's, the convolution's ...) and was found to be
so with bench/live.py. A kernel that keeps no attention matrix is assumed (flash or memory-efficient attention).

Legend: C width, m cells, L text tokens, s bytes of a number of the network's dtype.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

_FLOAT = 4                                         # bytes of float32: what adapters and maps are computed in


@dataclass(frozen=True)
class Block:
    """kind: resnet, tempconv, space or time (transformers), attention (the autoencoder's), up, down, edge (a lone
    convolution).

    rows: of the batch. c_in, c_out: channels. inner: width inside a transformer, heads: of its attention, context: of
    what attn2 reads, (tokens, width), None: itself. time: width of the time embedding. extra: widths of what is
    concatenated to the input, so that a copy is made of it. skip: the output waits for the way up.
    """

    kind: str
    c_in: int
    c_out: int
    h: int
    w: int
    frames: int = 1
    rows: int = 1
    inner: int = 0
    heads: int = 0
    context: tuple[int, int] | None = None
    time: int = 0
    extra: int = 0
    skip: bool = False
    name: str = ""

    @property
    def cells(self) -> int:
        return self.rows * self.frames * self.h * self.w

    @property
    def out_cells(self) -> int:
        return {"up": 4 * self.cells, "down": self.rows * self.frames * half(self.h) * half(self.w)}.get(
            self.kind, self.cells)

    @property
    def parameters(self) -> int:
        c, d, n = self.c_in, self.c_out, self.inner
        if self.kind == "resnet":
            return (2 * c + 9 * c * d + d + 2 * d + 9 * d * d + d + (self.time * d + d if self.time else 0)
                    + (c * d + d if c != d else 0))
        if self.kind == "tempconv":
            return 4 * (2 * c + 3 * c * c + c)
        if self.kind == "attention":
            return 2 * c + 4 * (c * c + c)
        if self.kind in ("space", "time"):
            read = self.context[1] if self.context else n
            return (2 * c + 2 * c * n + n + c + 6 * n + (3 * n * n + n * n + n) + (n * n + 2 * read * n + n * n + n)
                    + 8 * n * n + 8 * n + 4 * n * n + n)
        return 9 * c * d + d                                                           # up, down, edge

    @property
    def flops(self) -> float:
        """Multiplications and additions of one forward, without LoRA."""
        c, d, n, m = self.c_in, self.c_out, self.inner, self.cells
        if self.kind == "resnet":
            return 2 * m * (9 * c * d + 9 * d * d + (c * d if c != d else 0))
        if self.kind == "tempconv":
            return 2 * m * 12 * c * c
        if self.kind == "attention":
            return 8 * m * c * c + 4 * m * self.h * self.w * c
        if self.kind in ("space", "time"):
            tokens, read = self.context or (0, 0)
            attended = self.h * self.w + tokens if self.kind == "space" else 2 * self.frames
            plain = 2 * m * (2 * c * n + (6 if self.context else 8) * n * n + 12 * n * n) + 4 * m * attended * n
            return plain + 4 * self.rows * self.frames * tokens * read * n
        return 2 * self.out_cells * 9 * c * d

    def adapted(self, rank: int) -> int:
        """Parameters of a LoRA on its ten linear layers; 0 where it is no transformer."""
        if self.kind not in ("space", "time"):
            return 0
        read = self.context[1] if self.context else self.inner
        return rank * (self.inner * (8 * 2 + 9 + 5) + 2 * (read - self.inner))

    @property
    def adaptable(self) -> int:
        """Weights of the ten linear layers that a LoRA changes; 0 where it is no transformer."""
        n, read = self.inner, self.context[1] if self.context else self.inner
        return (4 + 2 + 12) * n * n + 2 * read * n if self.kind in ("space", "time") else 0

    # ------------------------------------------------------------------------------------------------ bytes of memory
    def output(self, s: int) -> float:
        return self.c_out * self.out_cells * s

    def working(self, s: int, *, hooked: bool = False) -> float:
        """The most it holds at once beside its input, without gradients. hooked: a LoRA of `lora.branches` is in it."""
        m = self.cells
        if self.kind == "resnet":
            return (max(2 * self.c_in, 3 * self.c_out) + (self.c_in if self.extra else 0)) * m * s
        if self.kind == "tempconv":
            return 3 * self.c_in * m * s
        if self.kind == "attention":
            return 6 * self.c_in * m * s
        if self.kind in ("space", "time"):
            return ((28 if self.rows < 4 else 24) if hooked else 20) * self.inner * m * s
        return (2 if self.kind == "up" else 1) * self.output(s)

    def kept(self, s: int, mode: str, rank: int = 0, cast: int = 0) -> float:
        """What stays for the backward, the output with it. mode: "frozen", gradients pass through; "learned", its LoRA
        learns, and PEFT makes float32 copies of what the LoRA reads where the network computes in less. cast: bytes of
        the copy of a weight that mixed precision multiplies with, 0 where it is the weight itself."""
        m, weights = self.cells, self.parameters * cast
        if self.kind == "resnet":
            return (2 * self.c_in + 4 * self.c_out + (self.c_in if self.extra else 0)) * m * s + weights
        if self.kind == "tempconv":
            return 13 * self.c_in * m * s + weights
        if self.kind in ("space", "time"):
            own = 21 if self.kind == "space" else 24
            text = 2 * self.rows * self.frames * self.context[0] * self.inner * s if self.context else 0
            kept = own * self.inner * m * s + self.output(s) + text + weights
            kept += 2 * self.heads * m * _FLOAT                                        # each attention's sums
            if mode == "learned":
                a = s if cast else max(s, _FLOAT)                                      # what the LoRA multiplies in
                copies = (11 if self.kind == "space" else 13) * a if s < _FLOAT else 7 * s
                kept += copies * self.inner * m + (8 if self.kind == "space" else 10) * rank * m * a
            return kept
        before = 4 * self.c_in * m * s if self.kind == "up" else 0                     # enlarged
        before += 2 * self.c_in * m * s if self.name == "conv_out" else 0              # normed, activated
        return before + self.output(s) + weights

    def turning(self, s: int, mode: str) -> float:
        """What the forward needs beside `kept` at its worst, or the backward: the larger."""
        m = self.cells
        if self.kind == "resnet":
            return (2 * self.c_in + self.c_out) * m * s
        if self.kind == "tempconv":
            return 2 * self.c_in * m * s
        if self.kind in ("space", "time"):
            wide = self.inner * m
            return wide * (22 * s if s < _FLOAT else 10 * s) if mode == "learned" else 14 * wide * s
        return 2 * self.output(s)

    def maps(self) -> float:
        """Of the attention that can be watched in it: to words (space, attn2) or to frames (time, both)."""
        if self.kind == "space":
            return self.heads * self.context[0] * self.cells * _FLOAT
        return 2 * self.heads * self.frames * self.cells * _FLOAT if self.kind == "time" else 0

    def read_out(self, s: int) -> float:
        """Copies of queries and keys that a watched map keeps for its backward."""
        return {"space": 1, "time": 4}.get(self.kind, 0) * self.inner * self.cells * s


def half(size: int) -> int:
    """What a convolution of stride 2 leaves."""
    return -(-size // 2)


def pair(value: object, count: int) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value] * count


def unet(c: Mapping, tokens: int, *, rows: int, frames: int, h: int, w: int) -> list[Block]:
    """UNet3DConditionModel in order of execution. tokens: of a prompt. h, w: of the latents."""
    widths, layers = c["block_out_channels"], c["layers_per_block"]
    dims, first, time = pair(c["attention_head_dim"], len(widths)), widths[0], 4 * widths[0]
    context, sizes = (tokens, c["cross_attention_dim"]), [(h, w)]
    for _ in widths[1:]:
        sizes.append((half(sizes[-1][0]), half(sizes[-1][1])))

    def layer(name: str, level: int, c_in: int, cross: bool, **how: object) -> list[Block]:
        width, base = widths[level], Block("", 0, 0, *sizes[level], frames, rows, name=name)
        heads = dict(c_in=width, c_out=width, inner=width, heads=width // dims[level])
        out = [replace(base, kind="resnet", c_in=c_in, c_out=width, time=time, extra=how.pop("extra", 0)),
               replace(base, kind="tempconv", c_in=width, c_out=width)]
        if cross:
            out += [replace(base, kind="space", **heads, context=context), replace(base, kind="time", **heads)]
        return [*out[:-1], replace(out[-1], **how)]

    def edge(kind: str, name: str, c_in: int, c_out: int, level: int, skip: bool = False) -> Block:
        return Block(kind, c_in, c_out, *sizes[level], frames, rows, skip=skip, name=name)

    start = 8 * dims[0]
    blocks = [edge("edge", "conv_in", c["in_channels"], first, 0),
              Block("time", first, first, h, w, frames, rows, inner=start, heads=8, skip=True, name="transformer_in")]
    skips = [first]
    for level, kind in enumerate(c["down_block_types"]):
        for index in range(layers):
            c_in = widths[max(0, level - 1)] if index == 0 else widths[level]
            blocks += layer(f"down_blocks.{level}", level, c_in, "CrossAttn" in kind, skip=True)
            skips.append(widths[level])
        if level < len(widths) - 1:
            blocks.append(edge("down", f"down_blocks.{level}", widths[level], widths[level], level, skip=True))
            skips.append(widths[level])
    last = len(widths) - 1
    blocks += layer("mid_block", last, widths[last], True) + layer("mid_block", last, widths[last], False)
    width = widths[last]
    for index, kind in enumerate(c["up_block_types"]):
        level = last - index
        for _ in range(layers + 1):
            extra = skips.pop()
            blocks += layer(f"up_blocks.{index}", level, width + extra, "CrossAttn" in kind, extra=extra)
            width = widths[level]
        if level:
            blocks.append(edge("up", f"up_blocks.{index}", width, width, level))
    return [*blocks, edge("edge", "conv_out", first, c["out_channels"], 0)]


def unet_parameters(c: Mapping) -> int:
    """All weights, the time embedding and the last norm among them."""
    first = c["block_out_channels"][0]
    blocks = unet(c, 0, rows=1, frames=1, h=8, w=8)
    return sum(b.parameters for b in blocks) + (4 * first * first + 4 * first) + (16 * first**2 + 4 * first) + 2 * first


def vae(c: Mapping, h: int, w: int, pictures: int, *, down: bool) -> list[Block]:
    """AutoencoderKL's encoder (down) or decoder. h, w: of the pictures."""
    widths, latent = list(c["block_out_channels"]), c["latent_channels"]
    scale = 2 ** (len(widths) - 1)

    def at(level: int) -> tuple[int, int]:
        return (h >> level, w >> level)

    def block(kind: str, c_in: int, c_out: int, level: int) -> Block:
        return Block(kind, c_in, c_out, *at(level), rows=pictures, name=str(level))

    deepest, top = len(widths) - 1, widths[-1]
    middle = [block("resnet", top, top, deepest), block("resnet", top, top, deepest)]
    if c.get("mid_block_add_attention", True):
        middle.insert(1, Block("attention", top, top, h // scale, w // scale, rows=pictures))
    if down:
        blocks = [replace(block("edge", c["in_channels"], widths[0], 0), name="conv_in")]
        for level, width in enumerate(widths):
            for index in range(c["layers_per_block"]):
                blocks.append(block("resnet", widths[max(0, level - 1)] if index == 0 else width, width, level))
            if level < deepest:
                blocks.append(block("down", width, width, level))
        return [*blocks, *middle, block("edge", top, 2 * latent, deepest)]
    blocks = [block("edge", latent, top, deepest), *middle]
    width = top
    for level in range(deepest, -1, -1):
        for _ in range(c["layers_per_block"] + 1):
            blocks.append(block("resnet", width, widths[level], level))
            width = widths[level]
        if level:
            blocks.append(block("up", width, width, level))
    return [*blocks, replace(block("edge", width, c["out_channels"], 0), name="conv_out")]
