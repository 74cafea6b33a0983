"""Counting the bytes of tensors that are alive, as torch.cuda.max_memory_allocated does, on any device.

What an operation needs only while it runs (a convolution's workspace) is not seen, and neither is the allocator's
rounding.
"""
from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_READ, _MOVE = torch.ops.aten._local_scalar_dense.default, torch.ops.aten._to_copy.default


_attention = torch.nn.functional.scaled_dot_product_attention


def _flash(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **how: object) -> Tensor:
    """On "meta" torch takes the attention that writes out every map; a device that trains does not."""
    if query.is_meta and attn_mask is None and not how.get("is_causal"):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value)[0]
    return _attention(query, key, value, attn_mask=attn_mask, **how)


class LiveBytes(TorchDispatchMode):
    """Inside, `live` is how many bytes the tensors of this kind of device hold that operations have read or made, and
    `peak` the most it was.

    On the device "meta" tensors have a shape and no values, and a network of any size runs in no memory; where a number
    is asked for there, for a report, it is made up.
    """

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.live = self.peak = 0
        self._device = device
        self._known: dict[int, weakref.ref] = {}

    def __enter__(self):
        torch.nn.functional.scaled_dot_product_attention = _flash
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        torch.nn.functional.scaled_dot_product_attention = _attention

    def hold(self, module: nn.Module) -> None:
        """Weights are there from the start."""
        for tensor in (*module.parameters(), *module.buffers()):
            self._count(tensor)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is _READ and args[0].is_meta:
            return {torch.bool: True, torch.int64: 0}.get(args[0].dtype, 0.5)
        if func is _MOVE and args[0].is_meta and torch.device(kwargs.get("device") or "meta").type != "meta":
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        out = func(*args, **kwargs)
        for leaf in tree_leaves((args, kwargs, out)):
            if isinstance(leaf, Tensor) and leaf.device.type == self._device:
                self._count(leaf)
        return out

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()

        def gone(_: weakref.ref) -> None:
            del self._known[key]
            self.live -= size

        self._known[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)
