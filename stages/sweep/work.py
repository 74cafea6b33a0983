"""One job, done in this process: a stage's own function, or some videos and their scores. On a CPU in one thread, so
that a result does not depend on how many are at work."""
from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module

from .. import STAGES
from ..backbones import forget, identity_of
from ..core.errors import Interrupted, Locked, VideomageError
from ..core.report import Report, asked_to_stop, silent
from ..core.workspace import Workspace
from .schedule import Failure, Job
from .store import Made

LOCK_SECONDS = 60.0            # how long another process may hold what a job makes: one that was killed a moment ago


@dataclass(frozen=True)
class How:
    """How the networks run: as the flags of every command."""

    device: str = "cpu"
    dtype: str = "fp32"
    low_memory: bool = False
    compiled: bool = False


def work(job: Job, how: How, report: Report = silent) -> dict[Made, Failure]:
    """Make what the job says, but for what is fresh -> what went wrong, {artefact: why}. Raises Interrupted where this
    process was asked to stop."""
    if how.device.startswith("cpu"):
        import torch

        torch.set_num_threads(1)
    failures: dict[Made, Failure] = {}
    for number, made in enumerate(job.makes):
        if asked_to_stop():
            raise Interrupted("stopped between two artefacts", "run the same command again")
        try:
            if made.stage == "sample":                         # of thousands of videos nobody wants to hear each note
                _patiently(_video, made, job, how, silent)
            else:
                _patiently(_learn, made, job, how, report)
        except (Interrupted, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:                     # whatever it is: the other artefacts can be made
            failures[made] = failure_of(error)
            forget()
        if made.stage == "sample":
            report(step=number + 1, of=len(job.makes))
    return failures


def failure_of(error: BaseException) -> Failure:
    if isinstance(error, VideomageError):
        return Failure(error.what, error.exit_code)
    return Failure(f"{type(error).__name__}: {error}", 6 if isinstance(error, MemoryError) else 1)


def _patiently(make, made: Made, job: Job, how: How, report: Report) -> None:
    """Again and again while another process holds the same artefact, within LOCK_SECONDS."""
    started = time.monotonic()
    while True:
        try:
            return make(made, job, how, report)
        except Locked:
            if time.monotonic() - started > LOCK_SECONDS:
                raise
        time.sleep(0.5)


def _learn(made: Made, job: Job, how: How, report: Report) -> None:
    module, function = STAGES[made.stage].function.split(":")
    more = {"low_memory": how.low_memory, "compiled": how.compiled} if STAGES[made.stage].uses_base else {}
    name = made.name.split("+") if made.stage == "fuse" else made.name
    getattr(import_module(module), function)(Workspace(made.root), name, made.options, device=how.device,
                                             dtype=how.dtype, seed=made.seed, report=report, **more)


def _video(made: Made, job: Job, how: How, report: Report) -> None:
    from ..evaluate import evaluate
    from ..orders import sample_plans
    from ..sample import make_samples

    project, request = Workspace(made.root), made.asked
    plans = sample_plans(project, [request["prompt"]], replace(made.options, count=1), subjects=request["subjects"],
                         motion=request["motion"] or "none", seed=made.seed, base=identity_of(project),
                         names=[made.name])
    make_samples(project, plans, device=how.device, dtype=how.dtype, low_memory=how.low_memory, compiled=how.compiled,
                 report=report)
    evaluate(project, [made.name], job.judged, device=how.device, report=report)


def codes(failures: Mapping[str, Failure]) -> int:
    """The exit code of a sweep: that of the first failure; 0 without one."""
    return next((failure.code for failure in failures.values()), 0)
