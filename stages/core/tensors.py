"""Tensors from a file that may have been written by anybody: the one place that opens what a project brings."""
from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import BadInput
from .headers import header


def read_tensors(path: Path, what: str, remedy: str = "make it again with --force", *, finite: bool = True
                 ) -> tuple[dict[str, Tensor], dict[str, str]]:
    """({name: tensor}, metadata) of a safetensors file. what: how errors call it, "a LoRA".

    Raises Refused for a pickle, BadInput for a file whose header is not right (headers.py), that cannot be read, or
    (finite) that holds a number which is none.
    """
    try:
        said = header(path, remedy)
        with safe_open(path, "pt") as file:
            found = {name: file.get_tensor(name) for name in said.entries}
    except FileNotFoundError as gone:
        raise BadInput(f"{path} cannot be read as {what} (it is not there)", remedy) from gone
    except (SafetensorError, OSError) as damage:
        raise BadInput(f"{path} cannot be read as {what} ({damage})", remedy) from damage
    except BadInput as damage:
        raise BadInput(f"{path} cannot be read as {what}: {damage.what}", remedy) from None
    if finite and (name := not_finite(found)):
        raise BadInput(f"{path} cannot be read as {what}: '{name}' holds what is no number (NaN or infinite)", remedy)
    return found, said.metadata


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The first tensor that holds NaN or an infinite number; None where all are whole."""
    for name, value in tensors.items():
        if value.is_floating_point() and value.numel():
            least, most = torch.aminmax(value.detach())               # one pass, no copy; NaN stays NaN
            if not (torch.isfinite(least) and torch.isfinite(most)):
                return name
    return None


def raw(value: Tensor) -> np.ndarray:
    """The bytes of a tensor."""
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 over their bytes, by the order of their names: a bit that turned over on a disk is seen."""
    total = 0
    for name in sorted(tensors):
        total = zlib.crc32(raw(tensors[name]), total)
    return str(total)
