"""Have the jobs of a sweep done: in this process, one after the other, or by Ray (on_ray.py). Imports no torch.

A driver that is killed loses nothing but what its jobs were at: the same command goes on from there.
"""
from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from ..backbones import kept
from ..core.errors import Interrupted, MissingPrerequisite
from ..core.report import Report, asked_to_stop, silent, stoppable
from .schedule import Failure, Job, Schedule
from .store import Made, Store
from .work import Hand, How


@dataclass(frozen=True)
class Crew:
    """Who works. workers: how many at once; address: of a Ray cluster that shares the project's folder; gpus: what each
    holds of a GPU, 0 without."""

    workers: int = 1
    address: str | None = None
    gpus: float = 0.0


def run(store: Store, how: How, crew: Crew | None = None, *, retries: int = 2, report: Report = silent
        ) -> dict[str, Failure]:
    """Make what is not fresh -> {artefact: why it failed for good}. Raises Interrupted on a request to
    stop, Locked where another process runs this sweep, MissingPrerequisite for several workers without Ray."""
    crew = crew or Crew()
    several = crew.workers > 1 or crew.address is not None
    if several and not find_spec("ray"):
        raise MissingPrerequisite("several workers need Ray, which is not installed",
                                  "Run: pip install 'videomage[sweep]'   (or leave --workers and --address out)")
    with store.project.lock(f"sweep-{store.grid.name}", wait=False):
        schedule = Schedule(store, retries)
        report(note=f"{len(schedule.waiting)} jobs to do")
        if not schedule.waiting:
            return {}
        if several:
            from .on_ray import carry_out

            carry_out(schedule, how, crew, report)
        else:
            alone(schedule, how, report)
        return schedule.failed


@stoppable()
def alone(schedule: Schedule, how: How, report: Report) -> None:
    """Every job in this process, with the base kept in memory. A request to stop is heard after each video."""
    hand = Hand(how)
    with kept():
        while job := schedule.next():
            if asked_to_stop():
                raise Interrupted(f"stopped before job {schedule.ended} of {schedule.total}",
                                  "run the same command again")
            started = time.monotonic()
            failures = hand.work(job, lambda **facts: report(call=job.key, **facts))              # noqa: B023
            finish(schedule, job, failures, time.monotonic() - started, "driver", report)


def finish(schedule: Schedule, job: Job, failures: Mapping[Made, Failure], seconds: float, worker: str, report: Report
           ) -> None:
    """Enter the outcome of a job, and tell of it."""
    lines = schedule.done(job, failures)
    schedule.store.record({**line, "worker": worker, "seconds": round(seconds, 1)} for line in lines)
    for line in lines:
        then = "given up" if line["given up"] else "it will be tried again"
        report(note=f"{line['what']} failed: {line['error']} ({then})")
    report(step=schedule.ended, of=schedule.total, last=job.key)
