"""One job, done in this process: a stage's own function, some videos, or some scores. On a CPU in one thread, so that a
result does not depend on how many are at work."""
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


class Hand:
    """What a process does its jobs with. It keeps what judges videos; the base is kept by backbones.kept."""

    def __init__(self, how: How) -> None:
        self.how = how
        self._judges: dict = {}

    def work(self, job: Job, report: Report = silent) -> dict[Made, Failure]:
        """Make what the job says, but for what is fresh -> what went wrong, {artefact: why}. Raises Interrupted where
        this process was asked to stop."""
        if self.how.device.startswith("cpu"):
            import torch

            torch.set_num_threads(1)
        failures: dict[Made, Failure] = {}
        for number, made in enumerate(job.makes):
            if asked_to_stop():
                raise Interrupted("stopped between two artefacts", "run the same command again")
            try:
                self._patiently(made, report)
            except (Interrupted, KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:                 # whatever it is: the other artefacts can be made
                failures[made] = failure_of(error)
                forget()
            if made.stage in ("sample", "eval"):
                report(step=number + 1, of=len(job.makes))
        return failures

    def _patiently(self, made: Made, report: Report) -> None:
        """Again and again while another process holds the same artefact, within LOCK_SECONDS."""
        started = time.monotonic()
        while True:
            try:
                return {"sample": self._video, "eval": self._score}.get(made.stage, self._learn)(made, report)
            except Locked:
                if time.monotonic() - started > LOCK_SECONDS:
                    raise
            time.sleep(0.5)

    def _learn(self, made: Made, report: Report) -> None:
        module, function = STAGES[made.stage].function.split(":")
        how = vars(self.how) if STAGES[made.stage].uses_base else {"device": self.how.device}
        name = made.name.split("+") if made.stage == "fuse" else made.name
        getattr(import_module(module), function)(Workspace(made.root), name, made.options, seed=made.seed,
                                                 report=report, **how)

    def _video(self, made: Made, report: Report) -> None:
        """Silently: of thousands nobody wants to hear each note."""
        from ..orders import sample_plans
        from ..sample import make_samples

        project, request = Workspace(made.root), made.asked
        plans = sample_plans(project, [request["prompt"]], replace(made.options, count=1), seed=made.seed,
                             subjects=request["subjects"], motion=request["motion"] or "none",
                             base=identity_of(project), names=[made.name])
        make_samples(project, plans, **vars(self.how))

    def _score(self, made: Made, report: Report) -> None:
        from ..evaluate import score_plan
        from ..judging import Judges

        project = Workspace(made.root)
        plan = project.plan(STAGES["eval"], made.name, made.options)
        if not plan.state():
            if made.options not in self._judges:
                self._judges = {made.options: Judges(project, made.options, device=self.how.device)}
            score_plan(plan, self._judges[made.options])


def failure_of(error: BaseException) -> Failure:
    if isinstance(error, VideomageError):
        return Failure(error.what, error.exit_code)
    return Failure(f"{type(error).__name__}: {error}", 6 if isinstance(error, MemoryError) else 1)


def codes(failures: Mapping[str, Failure]) -> int:
    """The exit code of a sweep: that of the first failure; 0 without one."""
    return next((failure.code for failure in failures.values()), 0)
