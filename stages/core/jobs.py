"""Library calls side by side, each in a process of one thread: on a CPU faster than one call with all the threads."""
from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from queue import Empty

from .errors import Refused
from .report import Report, ask_to_stop, asked_to_stop, silent, stoppable

REQUESTS = (signal.SIGINT, signal.SIGTERM)
POLL_SECONDS = 0.2
SAFE = "PYTHONSAFEPATH"
_facts = None                                            # of a worker: the queue that leads to the parent's report


@contextmanager
def safe_path() -> Iterator[None]:
    """Inside, processes that are started take no module from the folder that they are started in, which may be the
    project of a stranger: multiprocessing starts them by `python -c`, for which Python looks there first.

    Python 3.10 has no such switch: there, raises Refused where the folder holds what would stand for a module of it."""
    if sys.version_info < (3, 11):
        for path in sorted(Path.cwd().iterdir()):
            if path.name.split(".")[0] in sys.stdlib_module_names and (path.is_dir() or ".py" in path.suffixes):
                raise Refused(f"{path} would be taken for a module of Python by the processes that are to be started",
                              "work from another folder: videomage -p DIR")
    before = os.environ.get(SAFE)
    os.environ[SAFE] = "1"
    try:
        yield
    finally:
        os.environ.pop(SAFE)
        if before is not None:
            os.environ[SAFE] = before


@safe_path()
@stoppable()
def side_by_side(calls: Mapping[str, Callable[..., object]], *, workers: int,
                 after: Mapping[str, Sequence[str]] | None = None, report: Report = silent) -> dict[str, object]:
    """Run every call as call(report=...) in a pool of `workers` processes -> {name: what it returned}.

    calls: picklable (functools.partial of a function of a module), started in their order; after: {name: the names that
    must have ended before it starts}. What they report is passed on with the call's name: report(call=name, ...).
    A call that fails, Ctrl-C, or a request to stop ends the others at their next checkpoint; then the error is raised.
    """
    after, spawn = after or {}, multiprocessing.get_context("spawn")
    facts, stopping = spawn.Queue(), spawn.Event()
    waiting, running, done = dict(calls), {}, {}
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_begin, initargs=(facts, stopping)) as pool:
        try:
            while waiting or running:
                for name in [name for name in waiting if all(other in done for other in after.get(name, ()))]:
                    with deaf():
                        running[pool.submit(_call, name, waiting.pop(name))] = name
                ended, _ = wait(running, POLL_SECONDS, FIRST_COMPLETED)
                _pass_on(facts, report)
                for future in ended:
                    done[running.pop(future)] = future.result()
                if asked_to_stop():
                    stopping.set()
        except BaseException:
            stopping.set()
            _cancel(running)
            raise
    _pass_on(facts, report)
    return {name: done[name] for name in calls}


@contextmanager
def deaf() -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM wait, in the processes that are started here, too: until they `begin`, which may take
    seconds, they could but die of them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, REQUESTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(facts, stopping) -> None:
    global _facts
    begin(stopping)
    _facts = facts


def begin(stopping, threads: int = 1) -> None:
    """In a worker: its threads; Ctrl-C and SIGTERM are the parent's to answer, who lets us know by the event
    `stopping`. Where the parent was killed, so are we: nobody else would tell us that nobody waits for our work."""
    for number in REQUESTS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, REQUESTS)
    import torch

    torch.set_num_threads(threads)
    alive = multiprocessing.parent_process().sentinel
    threading.Thread(target=lambda: wait_for([alive]) and os._exit(1), daemon=True).start()
    threading.Thread(target=lambda: stopping.wait() and ask_to_stop(), daemon=True).start()


def _call(name: str, call: Callable[..., object]) -> object:
    return call(report=lambda **facts: _facts.put({"call": name, **facts}))


def _pass_on(facts, report: Report) -> None:
    while True:
        try:
            report(**facts.get_nowait())
        except Empty:
            return


def _cancel(running: Mapping[Future, str]) -> None:
    for future in running:
        future.cancel()
