"""How a stage says what it is doing. The console draws a bar, a test collects a list, a library user hears nothing."""
from __future__ import annotations

from typing import Protocol


class Report(Protocol):
    """report(step=12, of=500, loss=0.03) for progress; report(note="...") for a sentence."""

    def __call__(self, **facts: object) -> None: ...


def silent(**facts: object) -> None:
    """The default report: nothing."""
