"""Seconds of a step of loops that report every step, interleaved, and their ratios with a spread.

A machine is never quiet, and is slower in one minute than in the next. So what is compared is run in turn, round after
round, and a ratio is taken inside each round; told are its median over the rounds, the lowest and the highest. Seconds
are the processor's: what other processes take in the meantime does not count. One thread is meant: two threads that
wait for each other spend seconds on waiting.
"""
from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import process_time

import torch

from stages.core.report import Report

Loop = Callable[[Report], object]                # calls report(step=...) after each step, as the stages' loops do
Cell = Callable[[], float]                       # runs something once -> seconds


def a_step(loop: Loop) -> float:
    """Seconds from a report to the next, their mean. What comes before the first step, and that step itself, in which
    an optimizer makes its moments and a scope its weights, are not counted."""
    moments: list[float] = []

    def listen(**facts: object) -> None:
        if "step" in facts:
            moments.append(process_time())

    loop(listen)
    return (moments[-1] - moments[0]) / (len(moments) - 1)


def whole(run: Callable[[], object]) -> float:
    """Seconds from beginning to end."""
    start = process_time()
    run()
    return process_time() - start


def interleaved(cells: Mapping[str, Cell], rounds: int, tell: Callable[[str], None] = lambda line: None
                ) -> dict[str, list[float]]:
    """{name: seconds in each round}. Each round begins with another cell, so that none always follows the same one."""
    seconds: dict[str, list[float]] = {name: [] for name in cells}
    names = list(cells)
    for n in range(rounds):
        first = n * len(names) // rounds
        for name in [*names[first:], *names[:first]]:
            seconds[name].append(cells[name]())
        tell(f"round {n + 1} of {rounds}")
    return seconds


@dataclass(frozen=True)
class Spread:
    """Of one number over the rounds."""

    median: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})" if self.rounds > 1 else f"{self.median:.2f}"


def spread(values: Sequence[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values), len(values))


def ratio(seconds: Mapping[str, Sequence[float]], over: str, under: str) -> Spread:
    """Of two cells, inside each round."""
    return spread([a / b for a, b in zip(seconds[over], seconds[under])])


def machine() -> str:
    """Its kind: processor, cores, torch. No name of a host, no path."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return (f"{named or platform.processor() or platform.machine()}, {os.cpu_count()} cores; "
            f"Python {sys.version_info.major}.{sys.version_info.minor}, torch {torch.__version__}, "
            f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}, float32")
