"""`make test-faults`: what a crash at any moment leaves. Every stage is killed at the first, the second ... operation
on the project until it passes untouched, and operations are made to fail; training is killed at random steps; the disk
fills up; nothing may be written. After each, the project holds what was there before or what the stage makes."""
from __future__ import annotations

import itertools
import random
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sweeping import make_project
from zygote import Zygote

pytestmark = pytest.mark.faults
VIDEO = "0001-toy-is-chasing-pet-in-the-snow"
PROMPT = "<toy> is chasing <pet> in the snow"
MAKE = {"segment": "chase", "invert": "chase", "learn-subject": "toy", "learn-motion": "chase", "fuse": "pet+toy",
        "sample": PROMPT, "eval": VIDEO}
KEYS = {stage: f"{stage} {name}" for stage, name in MAKE.items()} | {
    "segment": "segment motions/chase", "sample": f"sample {VIDEO}"}
OTHERWISE = {"segment": {"threshold": 0.4}, "invert": {"token_steps": 3}, "learn-subject": {"steps": 3},
             "learn-motion": {"steps": 3}, "fuse": {"steps": 3}, "sample": {}, "eval": {}}           # sample: see renew
LONG = {"invert": {"token_steps": 30}, "learn-subject": {"steps": 30}, "learn-motion": {"steps": 30},
        "fuse": {"steps": 30}}
KILLS = 20


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    process = Zygote()
    yield process
    process.close()


@pytest.fixture(scope="module")
def calm(zygote, tmp_path_factory) -> Path:
    """A project in which everything has been made."""
    root = make_project(tmp_path_factory.mktemp("calm") / "project")
    for stage, name in (*list(MAKE.items())[:3], ("learn-subject", "pet"), *list(MAKE.items())[3:]):
        code, said = zygote.run(root, stage, name)
        assert code == 0, said
    assert set(zygote.look(root)["states"].values()) == {"fresh"}
    return root


@dataclass
class Case:
    """One stage of a project that is to be made otherwise: from `before` to `after`, seen by `look`."""

    zygote: Zygote
    stage: str
    root: Path
    before: dict
    after: dict

    def run(self, **how) -> tuple[int, str]:
        """A checkpoint after every step: the third sends the first away."""
        return self.zygote.run(self.root, self.stage, MAKE[self.stage], options=OTHERWISE[self.stage], force=True,
                               seed=int(self.stage != "sample"), every_steps=1, **how)

    def holds_one(self) -> str:
        """Asserts that what is there is the old or the new -> which. Everything else is as it was."""
        seen, key = self.zygote.look(self.root), KEYS[self.stage]
        assert not [name for name in seen["left"] if name.endswith(".partial")]             # swept by the look at it
        others = {name: files for name, files in seen["files"].items() if name != key}
        assert others == {name: files for name, files in self.before["files"].items() if name != key}
        old = self.stage == "sample" and seen["manifests"][key] == self.before["manifests"][key]
        assert seen["states"][key] == ("stale" if old else "fresh"), seen["states"]
        assert seen["manifests"][key] in (self.before["manifests"][key], self.after["manifests"][key])
        if seen["manifests"][key] == self.after["manifests"][key]:
            assert seen["files"][key] == self.after["files"][key]
            assert not seen["left"]
            return "new"
        assert seen["files"][key] == self.before["files"][key]
        return "old"


@pytest.fixture
def case(request, zygote, calm, tmp_path) -> Case:
    """The stage that the test is for. The new is made in the same place: a sheet names it."""
    case = Case(zygote, request.param, tmp_path / "project", zygote.look(calm), {})
    renew(case, calm)
    code, said = case.run()
    assert code == 0, said
    case.after = zygote.look(case.root)
    if case.stage != "eval":                                                # whose judgement is what it was
        assert case.after["manifests"][KEYS[case.stage]] != case.before["manifests"][KEYS[case.stage]]
    renew(case, calm)
    return case


def renew(case: Case, calm: Path) -> None:
    """What was there before. Another seed, or what is typed, is another sample: one that is to be made otherwise is so
    by project.yaml."""
    shutil.rmtree(case.root, ignore_errors=True)
    shutil.copytree(calm, case.root)
    if case.stage == "sample":
        path = case.root / "project.yaml"
        path.write_text(path.read_text().replace("  sample:\n", "  sample:\n    guidance: 3.0\n"))


@pytest.mark.parametrize("case", MAKE, indirect=True)
def test_killed_at_every_operation(case, calm, survived):
    found = set()
    for number in itertools.count(1):
        code, said = case.run(failpoint=f"kill@{number}")
        if code == 0:
            break
        assert code == -signal.SIGKILL, said
        which = case.holds_one()
        survived(f"killed at an operation: {case.stage}", f"{number}: {which}")
        first = which not in found
        found.add(which)
        if number % 10 == 0 or first:                                       # and the same command again makes it whole
            code, said = case.run()
            assert code == 0 and case.holds_one() == "new", said
        renew(case, calm)
    assert number > 15 and (found == {"old", "new"} or case.stage == "eval")
    assert case.holds_one() == "new" or case.stage == "eval"


@pytest.mark.parametrize("case", MAKE, indirect=True)
@pytest.mark.parametrize("what", ["EIO", "ENOSPC"])
def test_operations_fail(case, calm, survived, what):
    """Every fourth, and of a full disk every fourth from the third. The error is told, with the exit code of a full
    disk where it is one; or it did not matter (the cache)."""
    for number in itertools.count(1 if what == "EIO" else 3, 4):
        code, said = case.run(failpoint=f"{what}@{number}")
        which = case.holds_one()
        if code == 0 and number > 15 and not _reached(case, what, number):
            break
        assert code in ({"EIO": (0, 99), "ENOSPC": (0, 6)}[what]), (number, code, said)
        survived(f"an operation fails: {case.stage}", f"{what} at {number}: {which}")
        renew(case, calm)


def _reached(case: Case, what: str, number: int) -> bool:
    """Whether a run of this stage has so many operations at all."""
    trace = case.root / "trace"
    trace.unlink(missing_ok=True)
    case.run(failpoint=f"trace@{trace}")
    return len(trace.read_text().splitlines()) >= number


@pytest.mark.parametrize("stage", LONG)
def test_twenty_kills_end_in_the_calm_run_s_weights(zygote, calm, tmp_path, survived, stage):
    """Killed at random steps, again and again: what is learned in the end is what one calm run learns, to the bit."""
    quiet, root, draw = tmp_path / "quiet", tmp_path / "project", random.Random(stage)
    shutil.copytree(calm, quiet)
    shutil.copytree(calm, root)
    how = {"options": LONG[stage], "seed": 2}
    assert zygote.run(quiet, stage, MAKE[stage], **how)[0] == 0
    for step in sorted(draw.sample(range(1, 30), KILLS)):
        code, said = zygote.run(root, stage, MAKE[stage], kill_at_step=step, every_steps=1, **how)
        assert code == -signal.SIGKILL and said == f"killed after step {step}", said
        survived(f"killed at a step: {stage}", said)
    code, said = zygote.run(root, stage, MAKE[stage], **how)
    assert code == 0, said
    key = KEYS[stage]
    assert zygote.look(root)["files"][key] == zygote.look(quiet)["files"][key]


@pytest.mark.parametrize("case", MAKE, indirect=True)
def test_the_disk_is_full(case, calm, survived):
    """No file may grow beyond so many bytes, as on a disk that is nearly full; then there is room again."""
    for limit in (0, 1 << 9, 1 << 11, 1 << 13, 1 << 15, 1 << 17):
        shutil.rmtree(case.root / ".cache", ignore_errors=True)
        code, said = case.run(file_limit=limit)
        assert code in (0, 6), (limit, code, said)
        which = case.holds_one()
        assert (which == "new") == (code == 0) or case.stage == "eval"
        if code:
            assert "full" in said
            survived(f"the disk is full: {case.stage}", f"{limit} bytes")
            code, said = case.run()
            assert code == 0 and case.holds_one() == "new", said
        renew(case, calm)


@pytest.mark.parametrize("case", MAKE, indirect=True)
def test_nothing_may_be_written(case, survived):
    """Refused before any work is done, by name."""
    places = [case.root, *(path for path in case.root.rglob("*") if path.is_dir())]
    for path in places:
        path.chmod(0o555)
    try:
        code, said = case.run(nobody=True)
        assert code == 3 and "cannot be written to" in said, (code, said)
        assert "step" not in said
    finally:
        for path in places:
            path.chmod(0o755)
    assert case.holds_one() == "old" or case.stage == "eval"
    survived("a folder that may not be written to", case.stage)
