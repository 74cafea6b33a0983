"""Tensors to a file, whole or not at all."""
from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from . import store


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None,
                 via: Path | None = None) -> None:
    """As safetensors, from the CPU; what was at `path` stays until the new file is on the disk. via: as store.replacing
    has it. Raises OSError as any writing does: safetensors hides the system's error in the text of its own."""
    here = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with store.replacing(path, via) as half:
        store.operation("write", path)
        try:
            save_file(here, half, metadata=dict(metadata) if metadata else None)
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, str(error), str(path)) from error
