"""The jobs of a sweep by Ray's actors: one for each worker, which keeps the base loaded. Ray is embedded, started here
and gone with this process, or a cluster whose machines see the project under the same path.

An actor that dies (killed, out of memory) loses its job's unfinished part; another takes its place, and the job counts
as tried once.
"""
from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..backbones import kept
from ..core.errors import Interrupted
from ..core.report import Report, ask_to_stop, asked_to_stop, stoppable
from .run import Crew, finish
from .schedule import Failure, Job, Schedule
from .work import Hand, How

POLL_SECONDS = 0.5
START_SECONDS = 600                # that Ray may take to start: on a busy machine more than the minute it allows itself
STORE_BYTES = 100_000_000          # Ray's shared memory, about the least that it takes: little goes through it


class Worker:
    """What an actor is: two threads, one that works and one that answers in the meantime."""

    def __init__(self, how: How, here: str) -> None:
        with suppress(OSError):                                # of another machine, where paths are absolute
            os.chdir(here)
        self._hand, self._facts = Hand(how), {}
        self._kept = kept()
        self._kept.__enter__()

    def work(self, job: Job):
        """-> ({artefact: Failure}, seconds), or None where it was asked to stop."""
        started = time.monotonic()
        self._facts.clear()
        try:
            failures = self._hand.work(job, self._hear)
        except Interrupted:
            return None
        return failures, time.monotonic() - started

    def _hear(self, **facts: object) -> None:
        self._facts["note" if "note" in facts else "step"] = facts

    def where(self) -> str:
        return f"{socket.gethostname()}:{os.getpid()}"

    def news(self) -> list[dict]:
        """What was last reported, once."""
        return [self._facts.pop(kind) for kind in list(self._facts)]

    def stop(self) -> None:
        ask_to_stop()


class Hands:
    """The actors, and who is at which job."""

    def __init__(self, ray, crew: Crew, how: How) -> None:
        self._ray, self._crew, self._how = ray, crew, how
        self._class = ray.remote(num_cpus=1, num_gpus=crew.gpus, max_concurrency=2)(Worker)
        self.free: list[tuple[object, str]] = []
        self.busy: dict[object, tuple[object, str, Job]] = {}              # {what will be the outcome: (actor, ...)}

    def hire(self) -> None:
        """As many as there should be."""
        while len(self.free) + len(self.busy) < self._crew.workers:
            actor = self._class.remote(self._how, str(Path.cwd()))
            self.free.append((actor, self._ray.get(actor.where.remote())))

    def give(self, job: Job) -> None:
        actor, name = self.free.pop(0)
        self.busy[actor.work.remote(job)] = (actor, name, job)

    def ended(self):
        """-> [(job, the worker's name, (failures, seconds) | None where it stopped)] of those that have ended."""
        outcomes, _ = self._ray.wait(list(self.busy), num_returns=1, timeout=POLL_SECONDS)
        found = []
        for outcome in outcomes:
            actor, name, job = self.busy.pop(outcome)
            try:
                found.append((job, name, self._ray.get(outcome)))
                self.free.append((actor, name))
            except self._ray.exceptions.RayError as error:
                why = str(error).strip().splitlines()[0][:200]
                found.append((job, name, ({made: Failure(f"its worker died ({why})") for made in job.makes}, 0.0)))
                with suppress(ValueError, self._ray.exceptions.RayError):
                    self._ray.kill(actor)
        return found

    def tell(self, report: Report) -> None:
        asked = {actor.news.remote(): job for actor, _, job in self.busy.values()}
        ready, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=POLL_SECONDS)
        for answer in ready:
            with suppress(self._ray.exceptions.RayError):
                for facts in self._ray.get(answer):
                    report(call=asked[answer].key, **facts)

    def stop(self) -> None:
        for actor, _, _ in self.busy.values():
            actor.stop.remote()


@stoppable()
def carry_out(schedule: Schedule, how: How, crew: Crew, report: Report) -> None:
    """Every job, several at once. Raises Interrupted when all have stopped at their next checkpoint."""
    ray = _begin(crew)
    try:
        hands, stopping = Hands(ray, crew, how), False
        while True:
            hands.hire()
            while not stopping and hands.free and (job := schedule.next()):
                hands.give(job)
            if not hands.busy:
                break
            for job, name, outcome in hands.ended():
                if outcome is not None:
                    finish(schedule, job, *outcome, name, report)
            if hands.busy:
                hands.tell(report)
            if asked_to_stop() and not stopping:
                stopping = True
                hands.stop()
        if stopping:
            raise Interrupted(f"stopped after {schedule.ended} of {schedule.total} jobs", "run the same command again")
    finally:
        ray.shutdown()


@contextmanager
def _aside() -> Iterator[None]:
    """Ray has its workers look for modules, before all others, in the folder that it is started in. That may be the
    project of a stranger: it is started in the root of the disk, and the workers go to our folder later."""
    here = Path.cwd()
    os.chdir(here.anchor)
    try:
        yield
    finally:
        os.chdir(here)


def _begin(crew: Crew):
    """Ray, started or joined; quiet, without its dashboard and its statistics. SIGTERM stays ours to answer."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_raylet_start_wait_time_s", str(START_SECONDS))
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    import ray

    quiet = dict(log_to_driver=False, logging_level=logging.ERROR, configure_logging=True)
    with _aside():
        if crew.address:
            ray.init(address=crew.address, **quiet)
        else:
            gpus = {"num_gpus": None} if crew.gpus else {"num_gpus": 0}
            ray.init(num_cpus=crew.workers, include_dashboard=False, object_store_memory=STORE_BYTES, **gpus, **quiet)
    if main:
        signal.signal(signal.SIGTERM, handler)
    return ray
