"""Gradient checkpointing for diffusers' UNet3DConditionModel, which has none of its own.

Inside `checkpointed(unet)` a block (a resnet, a temporal convolution, a transformer, an upsampler) keeps its inputs
alone; whatever else its backward needs is computed a second time when the backward arrives there. That costs one more
forward and changes no result.

A second forward is right only if it computes what the first one did. What a block computes with beside its inputs are
the hooks and the forwards that `attention.watch` and `lora.branches` put into its layers, which by then may have been
removed or read other rows, and its layers and weights. The former are kept as they were; that the latter have not
changed is checked.
"""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CellType, FunctionType

import torch
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch.utils.checkpoint import checkpoint

# None of them holds another. A Downsample2D is left out: a lone convolution, it keeps nothing but its input anyway.
BLOCKS = (ResnetBlock2D, TemporalConvLayer, Transformer2DModel, TransformerTemporalModel, Upsample2D)


@contextmanager
def checkpointed(denoiser: nn.Module) -> Iterator[None]:
    """Forwards run inside keep the inputs of blocks only; their backward may run after the scope has ended.

    Where gradients are off, nothing differs. LoRAs, adapters and weights must be the same in the forward and in the
    backward, which is asserted; watched layers and the rows of `lora.branches` need not be.
    """
    blocks = [module for module in denoiser.modules() if isinstance(module, BLOCKS)]
    found = [vars(block).get("forward") for block in blocks]                    # put there by compiling.py
    assert not any(hasattr(own, "recomputes") for own in found), "a checkpointing scope is already open"
    try:
        for block in blocks:
            block.forward = _recomputing(block)
        yield
    finally:
        for block, own in zip(blocks, found):
            put_forward(block, own)


def put_forward(module: nn.Module, own: Callable | None) -> None:
    """Give a module a forward of its own, or with None that of its class again."""
    if own is None:
        vars(module).pop("forward", None)
    else:
        module.forward = own


def _recomputing(block: nn.Module) -> Callable:
    """The block's forward, checkpointed."""
    plain = block.forward

    def forward(*args: object, **kwargs: object) -> object:
        if not torch.is_grad_enabled():
            return plain(*args, **kwargs)
        moment, stopped = _Moment(block), []

        def run(*args: object, **kwargs: object) -> object:
            if not moment.over:
                try:
                    return plain(*args, **kwargs)
                except BaseException as stop:            # attention.stop_after ends a forward in the middle of a block:
                    stopped.append(stop)                 # what came before has its graph, and checkpoint() must end
                    return None
                finally:
                    moment.over = True
            with moment.again():
                return plain(*args, **kwargs)

        # without the state of the generators: in eval mode nothing is drawn
        out = checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)
        if stopped:
            raise stopped.pop()
        return out

    forward.recomputes = True
    return forward


class _Moment:
    """What a block computes with, beside its inputs, at one forward."""

    def __init__(self, block: nn.Module) -> None:
        self.over = False
        self._block = block
        self._parts = _parts(block)
        self._put = _copied(_put(block))

    @contextmanager
    def again(self) -> Iterator[None]:
        """The block as it was. Hooks get copies of what they note down: a map recomputed is no map captured."""
        assert _parts(self._block) == self._parts, \
            "a LoRA, an adapter or a weight was changed between forward and backward under checkpointing"
        now = _put(self._block)
        try:
            for module, hooks, own in _copied(self._put):
                module._forward_hooks = hooks
                put_forward(module, own)
            yield
        finally:
            for module, hooks, own in now:
                module._forward_hooks = hooks
                put_forward(module, own)


Put = list[tuple[nn.Module, OrderedDict, Callable | None]]


def _put(block: nn.Module) -> Put:
    """What scopes have put into the layers of a block: hooks, and a forward of its own or None."""
    return [(module, module._forward_hooks, vars(module).get("forward")) for module in block.modules()
            if module is not block]


def _parts(block: nn.Module) -> list[tuple]:
    """Its layers, whether a LoRA layer is switched off, and its weights with the number of changes made in place."""
    layers = [(id(module), getattr(module, "disable_adapters", None)) for module in block.modules()]
    return layers + [(id(p), p._version) for p in block.parameters()]


def _copied(put: Put) -> Put:
    """The same, with copies of the lists and dicts in their closures, shared as the originals are."""
    copies: dict[int, object] = {}

    def copied(function: Callable | None) -> Callable | None:
        if not (isinstance(function, FunctionType) and function.__closure__):
            return function
        inside = [cell.cell_contents for cell in function.__closure__]
        cells = (CellType(copies.setdefault(id(value), value.copy()) if isinstance(value, (list, dict)) else value)
                 for value in inside)
        return FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__,
                            tuple(cells))

    return [(module, OrderedDict((key, copied(hook)) for key, hook in hooks.items()), copied(own))
            for module, hooks, own in put]
