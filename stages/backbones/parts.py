"""Reading one part of a base through diffusers and transformers: safetensors alone, each weight once, none missing."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import UNet3DConditionModel
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from torch import nn
from transformers.utils import logging as transformers_logging

from ..core.errors import BadInput
from ..core.tensors import not_finite
from .folder import WHAT, Weights

_HARMLESS = ("position_ids",)          # buffers that older text encoders were saved with


class Denoiser(UNet3DConditionModel):
    """diffusers' network, but for one thing: its forward asks for `dtype`, for which diffusers looks through every
    module, some ten milliseconds, a tenth of a forward of the built-in base. Here it is that of a weight."""

    @property
    def dtype(self) -> torch.dtype:
        return self.conv_in.weight.dtype


def _kind(name: str) -> type:
    """The class of a part. Those that a run may do without, its latents and text being in the cache, are imported when
    they are read."""
    if name == "unet":
        return Denoiser
    if name == "vae":
        from diffusers import AutoencoderKL as Kind
    else:
        from transformers import CLIPTextModel as Kind
    return Kind


def read_part(folder: Path, name: str, weights: Weights, dtype: torch.dtype) -> nn.Module:
    """"unet", "vae" or "text_encoder" of a base's folder, frozen, in eval mode, on the CPU.

    The libraries fill a model that has no memory of its own yet, file by file, so that no weight is held twice.
    Raises BadInput where the files and the config do not fit: nothing is left at random values in silence.
    """
    # whatever its config says of attention: it may name a kernel of the hub
    how = {"attn_implementation": "sdpa"} if name == "text_encoder" else {}
    with quietly(folder):
        module, found = _kind(name).from_pretrained(
            folder / name, use_safetensors=True, variant=weights.variant, dtype=dtype, low_cpu_mem_usage=True,
            output_loading_info=True, ignore_mismatched_sizes=True, **how)
    for key, stored, wanted in found["mismatched_keys"]:
        raise BadInput(f"{WHAT[name]} in {folder}: the weight '{key}' is {tuple(stored)} in the file and "
                       f"{tuple(wanted)} by the config", "copy or fetch the base again")
    missing = sorted(found["missing_keys"])
    foreign = sorted(key for key in found["unexpected_keys"] if not key.endswith(_HARMLESS))
    if missing or foreign:
        raise BadInput(f"{WHAT[name]} in {folder} " + (f"lacks the weight '{missing[0]}'" if missing else
                       f"holds '{foreign[0]}', a weight that its config does not know") +
                       _others(len(missing or foreign)), "copy or fetch the base again")
    if broken := not_finite(dict(module.named_parameters())):
        raise BadInput(f"{WHAT[name]} in {folder}: the weight '{broken}' holds what is no number (NaN or infinite)",
                       "copy or fetch the base again")
    return module.eval().requires_grad_(False)


def _others(count: int) -> str:
    return f" and {count - 1} more" if count > 1 else ""


@contextmanager
def quietly(folder: Path) -> Iterator[None]:
    """The libraries without their progress bars, and their errors in our words."""
    libraries = [log for log in (diffusers_logging, transformers_logging) if log.is_progress_bar_enabled()]
    for log in libraries:
        log.disable_progress_bar()                     # a library does not draw
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate" in str(error):
            raise
        raise BadInput(f"the base in {folder} cannot be loaded ({error})", "copy or fetch it again") from error
    finally:
        for log in libraries:
            log.enable_progress_bar()
