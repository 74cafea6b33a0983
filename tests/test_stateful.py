"""Run, kill, edit, delete, tamper, move, in any order: a model that knows nothing of hashes says what must be fresh.

The stages are toys that write what they were made from into real plans of a real project; a run that is killed is a
process that gets SIGKILL in the middle of an operation on the project's folder.
"""
from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stages import STAGES
from stages.core.errors import MissingPrerequisite
from stages.core.store import FAILPOINT
from stages.core.workspace import Workspace
from stages.options import resolve

BASE = {"name": "sprites", "revision": "1" * 64}
ORDER = {"prompt": "<toy> is chasing <pet>", "subjects": ["pet", "toy"], "motion": "chase"}
SAMPLE = "0001-toy-is-chasing-pet"
CLIP, INVERTED, FUSED = ("segment", "motions/chase"), ("invert", "chase"), ("fuse", "pet+toy")
LEARNED = (("learn-subject", "toy"), ("learn-subject", "pet"))
NEEDS = {                                          # the method's graph: what each is made from, and of whose sources
    CLIP: ("clip",),
    INVERTED: (CLIP,),
    ("learn-subject", "toy"): ("toy",),
    ("learn-subject", "pet"): ("pet",),
    ("learn-motion", "chase"): (CLIP, INVERTED),
    FUSED: (*LEARNED, "toy", "pet"),
    ("sample", SAMPLE): (*LEARNED, FUSED, ("learn-motion", "chase"), INVERTED, CLIP, "toy", "pet"),
    ("eval", SAMPLE): (("sample", SAMPLE), CLIP, "toy", "pet")}
FILES = {"segment": ("clip.mp4", "frames.json", "frames/0000.png", "masks/red-circle/0000.png", "overlay.png")}
OPTION = {"segment": ("threshold", 0.4), "invert": ("token_rate", 0.01), "learn-subject": ("rate", 0.01),
          "learn-motion": ("rate", 0.01), "fuse": ("rate", 0.01), "sample": ("guidance", 3.0)}
MOST = 40                                          # operations of a toy stage, and some more
artefacts = st.sampled_from(list(NEEDS))


def make(root: Path, stage: str, name: str) -> None:
    """What the command does, with a toy in place of the stage's work."""
    project = Workspace(root)
    if stage == "sample":
        assert project.sample_name(STAGES[stage], resolve(stage, project.settings), request=ORDER, seed=0) == SAMPLE
    plan = project.plan(STAGES[stage], name, base=BASE, request=ORDER if stage == "sample" else None)
    if plan.state():
        return
    with plan.making() as out:
        for file in FILES.get(stage, STAGES[stage].files):
            path = out / file.format(name=name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{path.name} {plan.identity}")


class Project(RuleBasedStateMachine):
    """made: {artefact: what it was made from}, by its manifest; there: the same, of the files that lie there, with a
    manifest or without; sources: {source: version}; options: the stages whose option differs."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.root = self.home / "project"
        self.made: dict[tuple[str, str], tuple] = {}
        self.there: dict[tuple[str, str], tuple] = {}
        self.tampered: set[tuple[str, str]] = set()
        self.sources = {"toy": 0, "pet": 0, "clip": 0}
        self.options: set[str] = set()
        Workspace.create(self.root, prompts=[ORDER["prompt"]], subjects={
            name: {"class": "circle", "images": f"photos/{name}"} for name in ("toy", "pet")},
            motion={"name": "chase", "clip": "clip.mp4", "prompt": "a [red circle] is chasing a [square]"})
        for source in self.sources:
            self.write_source(source)

    def teardown(self) -> None:
        shutil.rmtree(self.home)

    # -- the model ------------------------------------------------------------------------------------------------
    def wanted(self, what: tuple[str, str]) -> tuple:
        """What it would be made from now."""
        of = tuple(self.sources[need] if isinstance(need, str) else self.there.get(need) for need in NEEDS[what])
        return (what, what[0] in self.options, of)

    def kind(self, what: tuple[str, str]) -> str:
        if what not in self.made:
            return "missing"
        stale = self.made[what] != self.wanted(what) or what in self.tampered or any(
            self.kind(need) == "stale" for need in NEEDS[what] if not isinstance(need, str))
        return "stale" if stale else "fresh"

    def possible(self, what: tuple[str, str]) -> bool:
        return all(need in self.there and self.kind(need) != "stale" for need in NEEDS[what]
                   if not isinstance(need, str))

    # -- what people, and machines, do ----------------------------------------------------------------------------
    @rule(what=artefacts)
    def run(self, what):
        if not self.possible(what):
            with pytest.raises(MissingPrerequisite):
                make(self.root, *what)
            return
        make(self.root, *what)
        self.is_made(what)

    def is_made(self, what):
        self.made[what] = self.there[what] = self.wanted(what)
        self.tampered.discard(what)

    @rule()
    def run_all(self):
        for what in NEEDS:
            self.run(what)

    @rule(what=artefacts, number=st.integers(1, MOST))
    def run_killed(self, what, number):
        """In a process that gets SIGKILL before its number-th operation, if it has so many."""
        if not self.possible(what) or self.kind(what) == "fresh":
            return
        child = os.fork()
        if not child:
            os.environ[FAILPOINT] = f"kill@{number}"
            try:
                make(self.root, *what)
                os._exit(0)
            finally:
                os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL)
        plan = Workspace(self.root).plan(STAGES[what[0]], what[1], base=BASE,
                                         request=ORDER if what[0] == "sample" else None)
        if code == 0 or plan.state():                    # it was killed after it was whole: new, else old
            assert plan.state()
            self.is_made(what)

    @rule(source=st.sampled_from(["toy", "pet", "clip"]), version=st.integers(0, 2))
    def edit_source(self, source, version):
        self.sources[source] = version
        self.write_source(source)

    @rule(stage=st.sampled_from(list(OPTION)))
    def edit_option(self, stage):
        self.options ^= {stage}
        path = self.root / "project.yaml"
        whole = yaml.safe_load(path.read_text())
        whole["options"] = {name: dict([OPTION[name]]) for name in sorted(self.options)}
        path.write_text(yaml.safe_dump(whole))

    @rule(what=artefacts, all_of_it=st.booleans())
    def delete(self, what, all_of_it):
        """Its manifest alone (what is made from it still finds its files), or every file. Of a sample its whole folder:
        a video without its manifest is nobody's order, and the next one gets a number of its own."""
        if what[0] == "sample":
            shutil.rmtree(self.root / "samples", ignore_errors=True)
            self.forget(what, with_files=True)
            return
        plan = self.plan(what)
        manifest, all_of_it = plan.recorded(), all_of_it or what in self.tampered
        for name in manifest["files"] if manifest and all_of_it else ():
            (plan.folder / name).unlink()
        plan.manifest_path.unlink(missing_ok=True)
        self.forget(what, with_files=manifest and all_of_it)

    def forget(self, what, *, with_files):
        self.made.pop(what, None)
        self.tampered.discard(what)
        if with_files:
            self.there.pop(what, None)

    @precondition(lambda self: self.made)
    @rule(data=st.data())
    def tamper(self, data):
        """Change a file that is nobody's to change."""
        what = data.draw(st.sampled_from(sorted(self.made)))
        plan = self.plan(what)
        (plan.folder / next(name for name in plan.recorded()["files"] if not name.startswith("masks/"))).write_text("?")
        self.tampered.add(what)

    @rule(number=st.integers(0, 3))
    def move(self, number):
        target = self.home / f"moved{number}"
        if target != self.root:
            self.root = self.root.rename(target)

    @rule()
    def sweep_cache_and_partial(self):
        for folder in (".cache", ".partial"):
            shutil.rmtree(self.root / folder, ignore_errors=True)

    # -- and after each -------------------------------------------------------------------------------------------
    @invariant()
    def what_is_fresh_is_what_the_model_says(self):
        seen = {what: self.plan(what).state().kind for what in NEEDS}
        assert seen == {what: self.kind(what) for what in NEEDS}
        left = [path for path in (self.root / ".partial").rglob("*") if path.is_file() and path.name != "order.json"]
        assert not left, left

    def plan(self, what: tuple[str, str]):
        return Workspace(self.root).intended(STAGES[what[0]], what[1], BASE)

    def write_source(self, source: str) -> None:
        path = self.root / ("clip.mp4" if source == "clip" else f"photos/{source}/1.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{source} {self.sources[source]}")


QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]
TestProject = Project.TestCase
TestProject.settings = settings(max_examples=8, stateful_step_count=25, deadline=None, derandomize=True,
                                suppress_health_check=QUIET)


@pytest.mark.faults
class TestProjectAtLength(Project.TestCase):
    settings = settings(max_examples=30, stateful_step_count=40, deadline=None, derandomize=True,
                        suppress_health_check=QUIET)
