"""How a stage says what it is doing, and how it is told to stop.

The console draws a bar, a test collects a list, a library user hears nothing. Stopping is one flag of the process: the
command line raises it on SIGTERM and, inside a loop that is `stoppable`, on the first Ctrl-C; the loop asks for it
after every step: `fit(..., stop=asked_to_stop)`.
"""
from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

_stop = threading.Event()
_inside: list[None] = []              # an entry for each stoppable loop that runs


class Report(Protocol):
    """report(step=12, of=500, loss=0.03) for progress; report(note="...") for a sentence."""

    def __call__(self, **facts: object) -> None: ...


def silent(**facts: object) -> None:
    """The default report: nothing."""


def ask_to_stop() -> None:
    """Ask every loop of this process to finish its step, save and raise Interrupted. Safe in a signal handler."""
    _stop.set()


def asked_to_stop() -> bool:
    """Whether this process was asked to stop. Hand it to `fit(stop=...)`; other long loops ask it between steps."""
    return _stop.is_set()


def clear_stop() -> None:
    """Forget the request (a library that goes on after an Interrupted; tests)."""
    _stop.clear()


@contextmanager
def stoppable() -> Iterator[None]:
    """Inside, this process looks at asked_to_stop() every now and then, and saves before it stops. Also a decorator."""
    _inside.append(None)
    try:
        yield
    finally:
        _inside.pop()


def can_stop() -> bool:
    """Whether a stoppable loop runs: else a request would be heard late, or never."""
    return bool(_inside)
