"""torch.compile for the blocks of diffusers' UNet3DConditionModel, one by one.

Inside `compiled(unet)` a block runs as code that torch made of it. The same blocks recur through the network: those of
equal layers and inputs share their code, so there is far less to compile than the whole. Results are the same to
rounding.

Compiled code does not see a hook that is put into a block's layers afterwards (attention.watch, lora.branches), for
torch does not ask for it again; and for each forward (merged.py) or attention processor of another's, it would compile
anew. So a block that holds anything of that kind runs as it is. What it holds is asked at every opening of the scope,
that is at every forward of the network. A LoRA that learns is a layer like others, and is compiled with them.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from torch import Tensor, nn

from ..core.errors import MissingPrerequisite

TRANSFORMERS = (Transformer2DModel, TransformerTemporalModel)
BLOCKS = (ResnetBlock2D, TemporalConvLayer, *TRANSFORMERS)            # none holds another
KINDS = {"cpu": TRANSFORMERS, "cuda": BLOCKS}       # by device; on a CPU compiled convolutions are slower than torch's

BACKEND = "inductor"

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_PROCESSORS = (type(None), AttnProcessor2_0)
_functions: dict[tuple, Callable] = {}               # for blocks and inputs alike, in this process


@contextmanager
def compiled(denoiser: nn.Module, kinds: tuple[type[nn.Module], ...] = BLOCKS) -> Iterator[None]:
    """Blocks of these kinds run as compiled code inside, and in the backward of what was computed inside; but for those
    into which something was put. Open it around `checkpointed`, which then computes them twice."""
    found = [(block, _layers(block)) for block in denoiser.modules() if isinstance(block, kinds)]
    chosen = [(block, layers) for block, layers in found if layers]
    try:
        for block, layers in chosen:
            block.forward = _quick(block, layers)
        yield
    finally:
        for block, _ in chosen:
            vars(block).pop("forward", None)


def _layers(block: nn.Module) -> tuple:
    """A block's layers by class and weight, equal for blocks that are alike; () where something was put into it."""
    found, waiting = [], [block]
    while waiting:
        module = waiting.pop()
        own = vars(module)
        if "forward" in own or any(own[hooks] for hooks in _HOOKS) or type(own.get("processor")) not in _PROCESSORS:
            return ()
        weight = own["_parameters"].get("weight")
        found.append((type(module), *(() if weight is None else (weight.shape, weight.dtype, weight.requires_grad))))
        waiting.extend(own["_modules"].values())
    return tuple(found)


def _quick(block: nn.Module, layers: tuple) -> Callable:
    """The block's forward, compiled."""
    def forward(*args: object, **kwargs: object) -> object:
        return _function(type(block), layers, args, kwargs)(block, *args, **kwargs)

    return forward


def _function(kind: type[nn.Module], layers: tuple, args: tuple, kwargs: dict[str, object]) -> Callable:
    """The code for a block of these layers and inputs of these shapes, compiled when it is first called.

    torch keeps what it compiled of a function with the conditions under which it holds (types, shapes, whether
    gradients are on ...), tries one after the other, and after eight gives up on the function without a word: too few
    for the widths and batches of a network. So whatever differs here gets a function of its own. What the key does not
    tell apart, torch's conditions do.
    """
    key = (kind, layers, torch.is_grad_enabled(), *map(_of, args), *kwargs, *map(_of, kwargs.values()))
    if key not in _functions:
        plain = kind.forward
        twin = FunctionType(plain.__code__.replace(), plain.__globals__, plain.__name__, plain.__defaults__,
                            plain.__closure__)
        _functions[key] = torch.compile(twin, dynamic=False, backend=BACKEND)
    return _functions[key]


def _of(value: object) -> object:
    """What code depends on of an argument: all of a number, the form of a tensor."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device, value.requires_grad
    return value if value is None or isinstance(value, (bool, int, float, str)) else type(value)


def check(device: torch.device) -> None:
    """Compile something small. Raises MissingPrerequisite where that does not work here, for want of a C++ compiler, or
    of triton for a GPU."""
    def twice(x: Tensor) -> Tensor:
        return x.sin() + x

    if device.type not in KINDS:
        raise MissingPrerequisite(f"torch.compile is not used on {device.type}", "leave --compile out")
    try:
        torch.compile(twice, dynamic=False)(torch.zeros(8, device=device))
    except (RuntimeError, ImportError, OSError) as error:
        cause = error.__cause__ or error
        first = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__).strip()
        wanted = "a C++ compiler (on Linux: g++)" if device.type == "cpu" else "triton and a C compiler (on Linux: gcc)"
        raise MissingPrerequisite(f"torch.compile does not work here: {first}",
                                  f"install {wanted}, or leave --compile out") from error
