"""What a run cost, as it was seen: rows through a network, and the most memory that was held."""
from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

try:
    import resource
except ImportError:                                                       # not on Windows
    resource = None


@contextmanager
def counting_rows(network: nn.Module) -> Iterator[list[int]]:
    """Inside, [n] counts the rows of every batch that goes into the network: a forward of a batch of one is 1. Forwards
    that end at an inner layer (attention.run_until) count as whole ones."""
    seen = [0]

    def count(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, object]) -> None:
        seen[0] += len(args[0] if args else kwargs["sample"])

    handle = network.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


def peak_memory(device: torch.device) -> int | None:
    """Bytes: of tensors on a CUDA device since the process began, elsewhere of the whole process; None where the system
    does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
