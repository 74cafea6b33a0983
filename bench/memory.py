"""Counted memory of the real steps beside what stages/backbones/cost.py estimates, as a markdown table.

    python -m bench.memory --size tiny mid          # on the CPU, in float32: tensors that hold numbers
    python -m bench.memory --size full              # on the meta device, in bfloat16: ZeroScope at 576x320x24
    python -m bench.memory --size mid --resident    # what the operating system saw, each step in a process of its own
"""
from __future__ import annotations

import argparse
import gc
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from .bases import SIZES, STEPS, RandomBase, expected, write
from .live import LiveBytes

MIB = 2**20


def counted(name: str, size: str, folder: Path, *, device: str = "cpu", dtype: str = "fp32", low_memory: bool = False
            ) -> tuple[int, int]:
    """(bytes alive at the peak of a step, of which weights)."""
    gc.collect()
    with LiveBytes(device) as live:
        backbone = RandomBase(SIZES[size], folder, device=device, dtype=dtype, low_memory=low_memory)
        for part in STEPS[name].parts:
            live.hold(backbone._part(part, backbone.device))
        weights = live.live
        STEPS[name].run(backbone, STEPS[name].turns)
    return live.peak, weights


def resident(name: str, size: str, low_memory: bool) -> int:
    """Bytes by which a process grows while it runs a step, beyond what it is once the weights are there."""
    command = [sys.executable, "-m", "bench.memory", "--child", name, "--size", size]
    out = subprocess.run([*command, "--low-memory"] if low_memory else command, capture_output=True, text=True,
                         check=True, cwd=Path(__file__).parent.parent,
                         env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"})
    return int(out.stdout)


def _child(name: str, size: str, folder: Path, low_memory: bool) -> None:
    backbone = RandomBase(SIZES[size], folder, low_memory=low_memory)
    for part in STEPS[name].parts:
        backbone._part(part, backbone.device)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    STEPS[name].run(backbone, STEPS[name].turns)
    print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["tiny", "mid"])
    parser.add_argument("--step", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--resident", action="store_true", help="measure processes too")
    parser.add_argument("--low-memory", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--child", choices=STEPS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        folders = {size: write(SIZES[size], Path(temporary) / size) for size in args.size}
        if args.child:
            return _child(args.child, args.size[0], folders[args.size[0]], args.low_memory)
        print("| size | step | --low-memory | weights MiB | counted peak MiB | estimated MiB | |"
              + (" grown by, counted MiB | the process MiB |" if args.resident else ""))
        print("|---|---|---|---:|---:|---:|---:|" + ("---:|---:|" if args.resident else ""))
        for size, folder in folders.items():
            # processes first: one inherits the peak of the one that starts it
            grown = {(low, name): resident(name, size, low) for low in (False, True) for name in args.step
                     } if args.resident else {}
            how = {"device": "meta", "dtype": "bf16"} if size == "full" else {"device": "cpu", "dtype": "fp32"}
            for low in (False, True):
                for name in args.step:
                    peak, weights = counted(name, size, folder, low_memory=low, **how)
                    guess = expected(name, SIZES[size], folder, how["dtype"], low)
                    row = [size, name, "yes" if low else "", f"{weights / MIB:.1f}", f"{peak / MIB:.1f}",
                           f"{guess / MIB:.1f}", f"{guess / peak - 1:+.1%}"]
                    if args.resident:
                        row += [f"{(peak - weights) / MIB:.1f}", f"{grown[low, name] / MIB:.1f}"]
                    print("| " + " | ".join(row) + " |", flush=True)
    return None


if __name__ == "__main__":
    main()
