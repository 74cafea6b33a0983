"""The jobs of a sweep, in the order of their worth, and what becomes of them. Imports no torch.

The first row of the grid comes first, whole; then row by row. Before the first video of a cast and a motion stands what
has to be learned for it; after some videos of them come their controls and their scores. Clips are segmented before all
else: a score compares with the actors of every motion. A job is what one stage makes once, or a few videos, or a few
scores.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from .grid import Cell
from .store import Made, Store

TOGETHER = 6                         # videos of a job: what is read for them is read once
CERTAIN = {2, 3, 4, 7, 8}            # exit codes of errors that come again: a second try of the same would tell nothing


@dataclass(frozen=True)
class Job:
    """makes: artefacts of one stage in one workspace. after: the keys of jobs that come before."""

    key: str
    makes: tuple[Made, ...]
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """code: the exit code of the error."""

    what: str
    code: int = 1


class Schedule:
    """The jobs of all that is not fresh. next() gives one whose prerequisites are there, done() takes its outcome."""

    def __init__(self, store: Store, retries: int = 2) -> None:
        self.store, self.retries = store, retries
        self.waiting: dict[str, Job] = {}
        self.running: dict[str, Job] = {}
        self.failed: dict[str, Failure] = {}                       # {what: why it failed for good}
        self._tries: dict[Made, int] = {}
        self._makers: dict[Made, str | None] = {}                  # {artefact: the job that makes it, None: fresh}
        self._controls: dict[Made, Made | None] = {}               # {score: the sample that it is compared with}
        self._add_all()
        self.total = len(self.waiting)

    # -- what there is to do ------------------------------------------------------------------------------------------
    def _add_all(self) -> None:
        groups: dict[tuple, list[Cell]] = {}
        for cell in self.store.grid.cells:
            groups.setdefault((cell.row, tuple(sorted(cell.subjects)), cell.clip), []).append(cell)
        for cells in groups.values():
            self._segment(self.store.sample(cells[0]))
        segments = tuple(self.waiting)
        for cells in groups.values():
            for n in range(0, len(cells), TOGETHER):
                part = cells[n:n + TOGETHER]
                self._videos([self.store.sample(cell) for cell in part])
                controls = [control for cell in part if (control := self.store.control(cell))]
                self._videos(controls)
                self._scores(part, segments)

    def _segment(self, made: Made) -> None:
        for need in self.store.needs(made):
            if need.stage == "segment":
                self._learn(need)
            self._segment(need)

    def _learn(self, made: Made) -> str | None:
        """The key of the job that makes this, or None where it is fresh with all before it."""
        if made not in self._makers:
            before = self._before([made])
            self._makers[made] = None
            if before or not self.store.fresh(made):
                self._makers[made] = key = self.store.title(made)
                self.waiting[key] = Job(key, (made,), before)
        return self._makers[made]

    def _before(self, some: Iterable[Made]) -> tuple[str, ...]:
        keys = (self._learn(need) for made in some for need in self.store.needs(made))
        return tuple(dict.fromkeys(key for key in keys if key))

    def _videos(self, some: Sequence[Made]) -> None:
        """Of one variant, cast and motion."""
        new = [made for made in dict.fromkeys(some) if made not in self._makers]
        for root in dict.fromkeys(made.root for made in new):
            here = [made for made in new if made.root == root]
            before = self._before(here[:1])
            self._makers |= dict.fromkeys(here)
            if wanted := [made for made in here if before or not self.store.fresh(made)]:
                self._add(wanted, before)

    def _scores(self, cells: Sequence[Cell], segments: tuple[str, ...]) -> None:
        wanted, before = [], dict.fromkeys(segments)
        for cell in cells:
            score, control = self.store.score(cell), self.store.control(cell)
            if score in self._controls:
                continue
            self._controls[score] = control
            makers = [key for made in (self.store.sample(cell), control) if made and (key := self._makers[made])]
            if makers or not self.store.whole(cell):
                wanted.append(score)
                before |= dict.fromkeys(makers)
        if wanted:
            self._add(wanted, tuple(before))

    def _add(self, makes: Sequence[Made], before: tuple[str, ...]) -> None:
        first = self.store.title(makes[0])
        key = first if len(makes) == 1 else f"{first} and {len(makes) - 1} more"
        self.waiting[key] = Job(key, tuple(makes), before)
        self._makers |= dict.fromkeys(makes, key)

    # -- as it goes on ------------------------------------------------------------------------------------------------
    @property
    def ended(self) -> int:
        return self.total - len(self.waiting) - len(self.running)

    def next(self) -> Job | None:
        """The first job whose prerequisites are there; None where there is none now."""
        for key, job in self.waiting.items():
            if not any(other in self.waiting or other in self.running for other in job.after):
                self.running[key] = self.waiting.pop(key)
                self._lend(job)
                return job
        return None

    def _lend(self, job: Job) -> None:
        """Links to what jobs before have made, into the workspace of this one."""
        self.store.variants.lend(job.makes[0].root)
        for made in job.makes:
            if control := self._controls.get(made):
                self.store.variants.lend_sample(control.name, control.root, made.root)

    def done(self, job: Job, failures: Mapping[Made, Failure]) -> list[dict[str, object]]:
        """failures: of what the job should have made. What may be tried again waits again, without what went well, and
        without what a worker had made before it died. -> the lines for attempts.jsonl."""
        del self.running[job.key]
        lines, again = [], []
        for made, failure in failures.items():
            if self.store.fresh_by_now(made, self._controls.get(made)):
                continue
            self._tries[made] = tries = self._tries.get(made, 0) + 1
            given_up = tries > self.retries or failure.code in CERTAIN
            if given_up:
                self.failed[self.store.title(made)] = failure
                self._without(made, job.key)
            else:
                again.append(made)
            lines.append({"what": self.store.title(made), "mark": made.mark, "try": tries, "error": failure.what,
                          "code": failure.code, "given up": given_up})
        if again:
            self.waiting = {job.key: replace(job, makes=tuple(again)), **self.waiting}
        return lines

    def _without(self, made: Made, key: str) -> None:
        """What comes after what failed for good is not tried, for it would fail of the same: of a video its score, of
        anything learned all that builds on it."""
        for other in [other for other, job in self.waiting.items() if key in job.after]:
            job = self.waiting.get(other)
            if job is None:                                    # gone with something else that built on this
                continue
            if made.stage != "sample":
                del self.waiting[other]
                for lost in job.makes:
                    self._without(lost, other)
            elif left := tuple(score for score in job.makes if (score.root, score.name) != (made.root, made.name)):
                self.waiting[other] = replace(job, makes=left)
            else:
                del self.waiting[other]
