"""The jobs of a sweep, in the order of their worth, and what becomes of them. Imports no torch.

The first row of the grid comes first, whole; then row by row. Before the first video of a cast and a motion stands what
has to be learned for it. A job is what one stage makes, or several videos of one cast and one motion, each with its
score.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..options import Options
from .store import Made, Store

TOGETHER = 6                         # videos of a job: what is read for them is read once
CERTAIN = {2, 3, 4, 7, 8}            # exit codes of errors that come again: a second try of the same would tell nothing


@dataclass(frozen=True)
class Job:
    """makes: one artefact of a learning stage, or some samples. after: the keys of jobs that come before. judged: the
    options of eval, for samples."""

    key: str
    makes: tuple[Made, ...]
    after: tuple[str, ...] = ()
    judged: Options | None = None


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
        self.failed: dict[str, Failure] = {}                       # {key of a job: why it, or a part of it, failed}
        self._tries: dict[Made, int] = {}
        self._learned: dict[tuple[str, Made], str | None] = {}
        self._add_cells()
        self.total = len(self.waiting)

    def _add_cells(self) -> None:
        groups: dict[tuple, list[tuple[Made, bool]]] = {}
        seen: set[Made] = set()
        for cell in self.store.grid.cells:
            made = self.store.sample(cell)
            if made in seen:
                continue
            seen.add(made)
            groups.setdefault((cell.row, made.root, tuple(sorted(cell.subjects)), cell.clip), []).append(
                (made, self.store.fresh(made) and self.store.fresh(self.store.score(cell))))
        for (row, *_), videos in groups.items():
            before = [key for need in self.store.needs(row, videos[0][0]) if (key := self._learn(row, need))]
            wanted = [made for made, fresh in videos if before or not fresh]
            for n in range(0, len(wanted), TOGETHER):
                part = tuple(wanted[n:n + TOGETHER])
                key = f"sample {part[0].name}" + (f" and {len(part) - 1} more" if len(part) > 1 else "")
                key += "" if part[0].root == self.store.project.root else f" ({part[0].root.name})"
                self.waiting[key] = Job(key, part, tuple(before), self.store.grid.effective[row]["eval"])

    def _learn(self, row: str, made: Made) -> str | None:
        """The key of the job that makes this, or None where it is fresh with all before it."""
        if made not in self._learned:
            before = [key for need in self.store.needs(row, made) if (key := self._learn(row, need))]
            self._learned[made] = None
            if before or not self.store.fresh(made):
                self._learned[made] = key = self.store.title(made)
                self.waiting[key] = Job(key, (made,), tuple(before))
        return self._learned[made]

    @property
    def ended(self) -> int:
        return self.total - len(self.waiting) - len(self.running)

    def next(self) -> Job | None:
        """The first job whose prerequisites are there; None where there is none now."""
        for key, job in self.waiting.items():
            if not any(other in self.waiting or other in self.running for other in job.after):
                self.running[key] = self.waiting.pop(key)
                self.store.variants.lend(job.makes[0].root)           # what came before may have made more to lend
                return job
        return None

    def done(self, job: Job, failures: Mapping[Made, Failure]) -> list[dict[str, object]]:
        """failures: of what the job should have made. What may be tried again waits again, without what went well.
        -> the lines for attempts.jsonl."""
        del self.running[job.key]
        lines, again = [], []
        for made, failure in failures.items():
            self._tries[made] = tries = self._tries.get(made, 0) + 1
            given_up = tries > self.retries or failure.code in CERTAIN
            if given_up:
                self.failed.setdefault(job.key, failure)
            else:
                again.append(made)
            lines.append({"what": self.store.title(made), "mark": made.mark, "try": tries, "error": failure.what,
                          "code": failure.code, "given up": given_up})
        if again:
            self.waiting = {job.key: replace(job, makes=tuple(again)), **self.waiting}
        elif job.key in self.failed and job.judged is None:
            self._without(job.key)
        return lines

    def _without(self, key: str) -> None:
        """What comes after a job that failed for good is not tried: it would fail of the same."""
        for other in [other for other, job in self.waiting.items() if key in job.after]:
            del self.waiting[other]
            self._without(other)
