"""Reading attention maps inside a scope, without leaving a trace.

A map is recomputed from what the layer's to_q and to_k gave, softmax(q k^T / sqrt d), and gradients flow from the maps
to everything before them. What is watched is a Site of a backbone: any module with `to_q`, `to_k`, `heads` and `scale`.

Legend: B batch, F frames, h w latent cells, N = h w, L text tokens, A heads.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import isqrt
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Site:
    """One attention layer. name: its path in the denoiser. kind: what it attends to, the same cells (self) or the text
    (cross). axis: what one row of its batch extends over, the cells of a frame (space) or the frames of a cell (time).
    """

    name: str
    kind: Literal["self", "cross"]
    axis: Literal["space", "time"]


@contextmanager
def watch(model: nn.Module, sites: Sequence[Site], *, of: Sequence[bool] | None = None, explicit: bool = False
          ) -> Iterator[dict[str, Tensor]]:
    """with watch(model, sites) as maps: one forward; then maps[site.name] are the probabilities of that forward.

    Shapes: cross over space (B F, A, N, L); self over time (B N, A, F, F). The graph is kept. Open it inside the scope
    that applies a LoRA, not around it: hooks run in the order in which they were set, and the map must see the LoRA.

    of: which rows of the batch are read; None: all. explicit: the layer's own output is computed from the map, too, in
    place of its processor: one softmax instead of two, there and on the way back, for an output that may differ in its
    last bits (not under checkpointing: its second forward comes after this scope). Otherwise no bit of it changes.
    """
    maps: dict[str, Tensor] = {}
    with ExitStack() as stack:
        for site in sites:
            layer = model.get_submodule(site.name)
            read = _explicit if explicit else _listening
            stack.enter_context(read(layer, site.name, maps, of))
        yield maps


@contextmanager
def _listening(layer: nn.Module, name: str, maps: dict[str, Tensor], of: Sequence[bool] | None) -> Iterator[None]:
    """Inside, each forward of this layer leaves its map in `maps`."""
    queries: list[Tensor] = []

    def on_query(module: nn.Module, args: tuple, q: Tensor) -> None:
        queries[:] = [_rows(q, of)]

    def on_key(module: nn.Module, args: tuple, k: Tensor) -> None:
        maps[name] = probabilities(queries.pop(), _rows(k, of), layer.heads, layer.scale)

    handles = [layer.to_q.register_forward_hook(on_query), layer.to_k.register_forward_hook(on_key)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _explicit(layer: nn.Module, name: str, maps: dict[str, Tensor], of: Sequence[bool] | None) -> Iterator[None]:
    """Inside, this layer computes its map and its output from one softmax, and leaves the map in `maps`."""
    before = layer.processor
    layer.processor = _Explicit(name, maps, of)
    try:
        yield
    finally:
        layer.processor = before


class _Explicit:
    """An attention processor as diffusers' layers call one: out = to_out(P v), P = softmax(q k^T / sqrt d)."""

    def __init__(self, name: str, maps: dict[str, Tensor], of: Sequence[bool] | None) -> None:
        self.name, self.maps, self.of = name, maps, of

    def __call__(self, attn: nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
                 attention_mask: Tensor | None = None) -> Tensor:
        plain = attention_mask is attn.group_norm is attn.spatial_norm is None and attn.rescale_output_factor == 1
        assert plain and not attn.norm_cross and not attn.residual_connection, f"{self.name} is another attention"
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        p_RAnm = probabilities(attn.to_q(hidden_states), attn.to_k(context), attn.heads, attn.scale)
        self.maps[self.name] = _rows(p_RAnm, self.of)
        v_RAmd = attn.to_v(context).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        out = (p_RAnm.to(v_RAmd.dtype) @ v_RAmd).transpose(1, 2).flatten(2)
        for layer in attn.to_out:                                                  # a linear layer, then dropout
            out = layer(out)
        return out


def _rows(x: Tensor, of: Sequence[bool] | None) -> Tensor:
    """Of what a layer gave, (B n, ...), the rows of the batch that are asked for."""
    if of is None or all(of):
        return x
    return x.unflatten(0, (len(of), -1))[[row for row, asked in enumerate(of) if asked]].flatten(0, 1)


def probabilities(q: Tensor, k: Tensor, heads: int, scale: float) -> Tensor:
    """softmax(scale q k^T): q (R, n, D), k (R, m, D) of R rows -> (R, A, n, m), in float32 or better."""
    q_RAnd, k_RAmd = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k))
    return (scale * q_RAnd @ k_RAmd.mT).softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32))


class _Stop(BaseException):
    """Ends a forward. A BaseException, so that no `except Exception` on the way takes it for a failure."""


@contextmanager
def stop_after(model: nn.Module, site: Site | str) -> Iterator[None]:
    """The forward run inside ends after this layer, and the body of the `with` with it: what lies deeper in the network
    is not computed."""
    stop = _Stop()

    def on_output(module: nn.Module, args: tuple, output: Tensor) -> None:
        raise stop

    handle = model.get_submodule(getattr(site, "name", site)).register_forward_hook(on_output)
    try:
        yield
    except _Stop as stopped:
        if stopped is not stop:
            raise
    finally:
        handle.remove()
        stop.__traceback__ = None      # or it and its frames, which hold the whole forward, keep each other alive


def run_until(model: nn.Module, site: Site | str, forward: Callable[[], object]) -> None:
    """Run forward(), which calls the model, as far as this layer and no further."""
    with stop_after(model, site):
        forward()


def choose(sites: Sequence[Site], where: str, kind: str | None = None, axis: str | None = None) -> list[Site]:
    """The sites whose maps guide the sampling, in order of execution (**ours**: the paper does not say which layers).

    where: "all"; or one block, such as "mid" or "up_blocks.1": everything up to and including it, for the depth of the
    deepest map sets the price; or several, comma-separated: exactly these ("mid," is the middle block alone).
    kind, axis: keep only such sites. Raises ValueError where a block does not exist.
    """
    def inside(name: str, block: str) -> bool:
        return name.startswith(block) and name[len(block):len(block) + 1] in ("", ".", "_")

    blocks = [block for block in where.replace(" ", "").split(",") if block]
    for block in blocks:
        if block != "all" and not any(inside(site.name, block) for site in sites):
            known = sorted({".".join(site.name.split(".")[:2 if "blocks" in site.name.split(".")[0] else 1])
                            for site in sites})
            raise ValueError(f"no attention layer lies in '{block}'; known blocks: all, mid, {', '.join(known)}")
    if blocks == ["all"]:
        chosen = list(sites)
    elif "," in where:
        chosen = [site for site in sites if any(inside(site.name, block) for block in blocks)]
    else:
        last = max(index for index, site in enumerate(sites) if inside(site.name, blocks[0]))
        chosen = list(sites[:last + 1])
    return [site for site in chosen if kind in (None, site.kind) and axis in (None, site.axis)]


def word_maps(maps: Mapping[str, Tensor], sites: Sequence[Site], words: Sequence[Sequence[int]], frames: int,
              size: tuple[int, int] | None = None) -> list[list[Tensor]]:
    """M_SCA of each word, out[word][site]: (B, F, h_i, w_i), values in 0..1 (METHOD 4 and 5). words: their positions.

    The mean over heads and the sum over the word's token positions (**ours**: the paper leaves both open): the share of
    its attention that a cell gives to the word. size: (h, w) of the latents, to unfold the cells of a layer that works
    at a half, a quarter ... of it; None where frames are square.
    """
    out: list[list[Tensor]] = [[] for _ in words]
    for site in sites:
        map_RANL = maps[site.name]
        chosen_LW = map_RANL.new_zeros(map_RANL.shape[-1], len(words))
        for w, positions in enumerate(words):
            chosen_LW[list(positions), w] = 1
        words_RNW = (map_RANL @ chosen_LW).mean(1)          # all words in one product: one way back through the map
        height, width = _grid(words_RNW.shape[1], size)
        for own, word_RN in zip(out, words_RNW.unbind(-1)):
            own.append(word_RN.reshape(-1, frames, height, width))
    return out


def _grid(cells: int, size: tuple[int, int] | None) -> tuple[int, int]:
    """Height and width of a layer with this many cells."""
    h, w = size or (isqrt(cells), isqrt(cells))
    while h * w > cells:
        h, w = -(-h // 2), -(-w // 2)              # a convolution of stride 2 and padding 1 rounds up
    if h * w != cells:
        raise ValueError(f"{cells} cells are no halving of {size or 'a square'}: give size=(h, w) of the latents")
    return h, w


def attention_loss(maps_a: Sequence[Tensor], maps_b: Sequence[Tensor]) -> Tensor:
    """|| M_a - M_b ||^2 (Algorithm 1, lines 7 and 8), as the mean over each pair's elements, then over the pairs.

    **Ours**: the mean. A plain sum would make alpha_t depend on the number and the size of the watched layers.
    """
    return torch.stack([(a - b).square().mean() for a, b in zip(maps_a, maps_b, strict=True)]).mean()
