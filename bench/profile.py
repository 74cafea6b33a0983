"""Where the time of a step goes: torch.profiler's operations by the time they take themselves, in groups.

    python -m bench.profile                       # a training step and a guided step, on 58 M parameters
    python -m bench.profile --base sprites --top 20

"the rest" is what the processor did outside of torch's operations: Python, and the profiler's own part of it.
"""
from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, process_time

import torch
from torch.profiler import ProfilerActivity, profile

from stages.core.report import Report

from . import rows

GROUPS = {
    "attention": ("scaled_dot_product", "softmax"),
    "norms": ("norm",),
    "convolutions": ("conv",),
    "products": ("mm", "addmm", "bmm", "baddbmm", "linear"),
    "copies": ("copy_", "cat", "clone", "contiguous", "_to_copy", "index", "fill_", "zero_", "split"),
    "element by element": ("add", "mul", "div", "sub", "gelu", "silu", "sigmoid", "exp", "sqrt", "pow", "sum", "mean",
                           "neg", "where", "addcmul", "addcdiv", "lerp", "adam", "foreach"),
}
WHOLE = {"mm", "cat", "add", "mul"}                                 # names that are parts of others
STEPS = 4                                                          # of a loop, the first of them not looked at


def group_of(name: str) -> str:
    """The group of an operation of torch, by its name."""
    plain = name.removeprefix("aten::")
    return next((group for group, parts in GROUPS.items() if any(
        part == plain if part in WHOLE else part in plain for part in parts)), "other operations")


def profiled(loop: Callable[[Report], object]) -> tuple[dict[str, tuple[float, int]], float, int]:
    """{operation: (share of the time, calls)}, seconds of the processor, and steps, of all steps but the first."""
    profiler, begun = profile(activities=[ProfilerActivity.CPU]), []

    def listen(**facts: object) -> None:
        if "step" not in facts:
            return
        if not begun:
            profiler.start()
            begun.append((perf_counter(), process_time()))
        elif facts["step"] == STEPS:
            begun.append((perf_counter(), process_time()))
            profiler.stop()

    loop(listen)
    passed, seconds = (b - a for a, b in zip(*begun))
    found = {event.key: (event.self_cpu_time_total / 1e6 / passed, event.count) for event in profiler.key_averages()}
    return found, seconds, STEPS - 1


def table(name: str, loop: Callable[[Report], object], top: int) -> str:
    """By group, then the single operations that take most."""
    operations, seconds, steps = profiled(loop)
    groups: dict[str, list[float]] = defaultdict(lambda: [0.0, 0])
    for key, (share, calls) in operations.items():
        groups[group_of(key)][0] += share
        groups[group_of(key)][1] += calls
    groups["the rest"] = [1 - sum(share for share, _ in operations.values()), 0]
    lines = [f"| {name} | share | ms of a step | calls |", "|---|---:|---:|---:|",
             f"| all of it | 100.0% | {1e3 * seconds / steps:.1f} | |"]
    single = sorted(((f"`{key}`", *own) for key, own in operations.items()), key=lambda row: -row[1])[:top]
    for key, share, calls in [*sorted(((key, *own) for key, own in groups.items()), key=lambda row: -row[1]), *single]:
        lines.append(f"| {key} | {share:.1%} | {1e3 * share * seconds / steps:.1f} | {calls / steps:.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", choices=rows.BASES, default="bench")
    parser.add_argument("--top", type=int, default=10, help="single operations")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        s = rows.setting(args.base, Path(folder))
        steps = {"plain step": lambda report: rows.sampling(s, STEPS, report, branches="none"),
                 "unguided step": lambda report: rows.sampling(s, STEPS, report),
                 "guided step, maps as far as mid": lambda report: rows.sampling(s, STEPS, report, tau=STEPS),
                 "step of learn-motion": lambda report: rows.motion(s, STEPS, report)}
        for name, loop in steps.items():
            print(table(name, loop, args.top), flush=True)
            print()


if __name__ == "__main__":
    main()
