"""Seconds and peak memory of the method at its real size on a GPU, beside what was estimated: make bench-gpu.

    python -m bench.gpu                             # ZeroScope's size, 576x320x24, random weights, bfloat16
    python -m bench.gpu --size tiny --device cpu    # the same script in a minute, to see that it runs

Training steps of each kind, sampling steps unguided and guided, and the autoencoder, each ordinarily and with
--low-memory; seconds are of one step, the mean of three. On a CPU the memory is that of counted tensors. A step that
does not fit is said to, and the next one is tried.
"""
from __future__ import annotations

import argparse
import gc
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import torch
from torch import nn

from stages.backbones.cost import EFFICIENCY, throughput
from stages.backbones.unet3d import DTYPES

from .bases import SIZES, STEPS, RandomBase, Step, expected, operations, write
from .live import LiveBytes

GIB = 2**30


class Gauge:
    """Peak memory and time of what runs inside."""

    def __init__(self, device: torch.device, weights: Sequence[nn.Module]) -> None:
        self._device, self._weights = device, weights
        self._live = None if device.type == "cuda" else LiveBytes()

    def __enter__(self) -> Gauge:
        if self._live is not None:
            self._live.__enter__()
            for module in self._weights:
                self._live.hold(module)
        else:
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
        self._start = perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.__exit__(*error)
            self.peak = self._live.peak
        else:
            torch.cuda.synchronize(self._device)
            self.peak = torch.cuda.max_memory_allocated(self._device)
        self.seconds = perf_counter() - self._start


def measured(step: Step, size: str, folder: Path, device: torch.device, dtype: str, low_memory: bool
             ) -> tuple[float, int] | None:
    """(seconds of a turn, peak bytes) of a step; None where it does not fit. A GPU runs it once before, to choose
    its kernels."""
    turns = 3 if device.type == "cuda" else step.turns
    backbone = RandomBase(SIZES[size], folder, device=str(device), dtype=dtype, low_memory=low_memory)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            weights = [backbone._part(part, device) for part in step.parts]
            if device.type == "cuda":
                step.run(backbone, step.turns)
            with Gauge(device, weights) as gauge:
                step.run(backbone, turns)
        return gauge.seconds / turns, gauge.peak
    except torch.OutOfMemoryError:
        return None
    finally:
        backbone = weights = None
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bf16, on a CPU fp32")
    parser.add_argument("--step", nargs="+", choices=STEPS, default=list(STEPS))
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("this needs a CUDA device, and torch sees none; on a CPU: python -m bench.gpu --size tiny --device cpu",
              file=sys.stderr)
        return 3
    dtype = args.dtype or ("bf16" if device.type == "cuda" else "fp32")
    rate = throughput(str(device), dtype)
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{named}, torch {torch.__version__}, {dtype}, {rate / 1e12:.2f} TFLOP/s in one product, size {args.size}\n")
    print("| step | --low-memory | seconds | estimated | peak GiB | estimated |")
    print("|---|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = write(SIZES[args.size], Path(temporary) / "base")
        for name in args.step:
            for low in (False, True):
                found = measured(STEPS[name], args.size, folder, device, dtype, low)
                guess = operations(name, SIZES[args.size], folder, low) / (rate * EFFICIENCY)
                memory = expected(name, SIZES[args.size], folder, dtype, low) / GIB
                shown = (f"{found[0]:.2f}", f"{found[1] / GIB:.4g}") if found else ("does not fit", "does not fit")
                print(f"| {name} | {'yes' if low else ''} | {shown[0]} | {guess:.2f} | {shown[1]} | {memory:.4g} |",
                      flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
