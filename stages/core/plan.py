"""One artefact of a project: what it is made from, whether it is fresh, and how it is made without half-written files.

    plan = project.plan(STAGES["fuse"], "dog+toy", options, seed=0, base=identity("sprites"))
    if plan.state() and not force: return plan.artifact()
    with plan.making() as out:          # `out` is a temporary folder; leave there what the stage makes
        save(lora, out / "lora.safetensors")
    return plan.artifact()

Fresh means: the options that shape the result, what was asked (prompt, class word), base and revision, seed and every
input's hash are those of the manifest, and the files are those that the stage left. Nothing goes by time stamps.
"""
from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from . import formats, store
from .changes import changes, damage, differences, named
from .errors import BadInput, MissingPrerequisite
from .lock import locked
from .report import Report, silent
from .settings import FILE
from .stage import Artifact, Input, Stage, State, plain, versions

if TYPE_CHECKING:
    from .team import Team
    from .workspace import Workspace

PATIENCE = 1.0          # seconds to wait for a lock: one who opens the project may just sweep up after a killed run
ROOM = 16 * 2**20       # bytes that a stage wants free before it begins, beside twice what it made the last time


@dataclass
class Plan:
    """One artefact to make; see the module's example. `facts` (figures worth keeping) go into the manifest."""

    project: Workspace
    stage: Stage
    name: str
    options: object
    seed: int
    base: Mapping[str, str] | None
    request: dict
    given: Mapping[str, Path | tuple[Path, ...]]
    facts: dict = field(default_factory=dict)
    made: bool = False
    kept: dict[str, str] = field(default_factory=dict)     # {file that a person changed and that stays: what we made}
    began: dict[str, str] | None = None                    # while it is made: the hashes of its inputs as it began

    def __post_init__(self) -> None:
        self.folder: Path = self.project.root / self.stage.folder(self.project, self.name)
        self.sources = dict(self.stage.inputs(self.project, self.name, self.options, self.request))
        for label, path in self.given.items():
            here = self.sources.get(label)
            self.sources[label] = dataclasses.replace(here, path=path, problem=None) if here else Input(path, label)
        self.inputs: dict[str, Path | tuple[Path, ...]] = {key: item.path for key, item in self.sources.items()}
        self.manifest_path = self.folder / self.stage.manifest.format(stage=self.stage.name, name=self.name)
        self.home = self._home(self.folder)
        self.partial = self.home / ".partial" / key_of(self.stage.name, self.name)

    # -- identity -----------------------------------------------------------------------------------------------
    def settings(self) -> dict[str, object]:
        """The options that shape the result and the request, as JSON values."""
        ignored = self.stage.ignores(self.stage.folder(self.project, self.name), self.options)
        shaping = {f.name: getattr(self.options, f.name) for f in dataclasses.fields(self.options)
                   if f.metadata.get("identity", True) and f.name not in ignored}
        return plain({**shaping, **{key: value for key, value in self.request.items() if key not in ignored}})

    def hashes(self) -> dict[str, str]:
        """{label or label/file: sha256} of the inputs that are there."""
        found = {}
        for label, source in self.sources.items():
            for path in source.files():
                whole = isinstance(source.path, Path)
                key = label if whole and source.path.is_file() else f"{label}/{path.name}"
                if whole and source.path.is_dir():
                    key = f"{label}/{path.relative_to(source.path).as_posix()}"
                while key in found:                                   # equal names from different folders
                    key += "'"
                found[key] = self.project.sha256(path)
        return found

    @property
    def identity(self) -> str:
        """One hash over everything that defines the result; a checkpoint of another identity is not resumed. While it
        is made that stays what it was at the beginning, whatever becomes of the inputs."""
        whole = {"stage": self.stage.name, "name": self.name, "settings": self.settings(), "seed": self.seed,
                 "base": plain(self.base), "inputs": self.hashes() if self.began is None else self.began}
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()

    @property
    def checkpoints(self) -> Path:
        """Where a stage saves its progress: one folder for one identity, gone when the artefact is whole."""
        return self.partial / f"checkpoints-{self.identity[:16]}"

    # -- freshness ----------------------------------------------------------------------------------------------
    def edited(self, manifest: Mapping) -> list[str]:
        """The files of the artefact whose content is no longer what the stage left."""
        there = ((name, sha, self.folder / name) for name, sha in manifest["files"].items())
        return [name for name, sha, path in there if path.is_file() and self.project.sha256(path) != sha]

    def recorded(self) -> dict | None:
        """The manifest, or None."""
        return self.project.manifest(self.manifest_path)

    def state(self, *, deep: bool = True) -> State:
        """Fresh, or stale with the reasons, or missing. deep: stale, too, when one of those it is made from is."""
        old = self.recorded()
        if old is None:
            absent = [source.what for source in self.sources.values() if not source.files()]
            return State("missing", tuple(f"needs {what}" for what in absent))
        skip = set(old.get("given", ())) - self.by_hand()       # compared only when it is named by hand again
        reasons = [*damage(self, old), *changes(self._as_before(old["settings"]), self.settings(), "")]
        if old["seed"] != self.seed:
            reasons.append(f"seed {old['seed']} -> {self.seed}")
        if self.stage.uses_base and self.base is not None and old["base"] != plain(self.base):
            reasons.append(f"base {named(old['base'])} -> {named(self.base)}")
        now, then = ({k: v for k, v in side.items() if k.split("/")[0] not in skip}
                     for side in (self.hashes(), old["inputs"]))
        reasons += [f"input {key} {verb}" for key, verb in differences(then, now)]
        if deep:
            reasons += [f"follows {stage.name} '{name}', which is {state.kind}"
                        for stage, name, state in self.upstream() if state.kind == "stale"]
        return State("stale" if reasons else "fresh", tuple(reasons))

    def _as_before(self, settings: Mapping) -> dict[str, object]:
        """Settings of an older manifest, with the options that have been added since at their defaults: by those an
        added option does what was done before it."""
        added = {f.name: plain(f.default) for f in dataclasses.fields(self.options) if f.name not in settings}
        return {**added, **settings}

    def upstream(self) -> list[tuple[Stage, str, State]]:
        """The artefacts that this one is made from, and their states."""
        makers = {(s.stage.name, s.name): s.stage for s in self.sources.values() if s.stage}
        return [(stage, name, self.project.state_of(stage, name, self.base)) for (_, name), stage in makers.items()]

    def require(self, *, stale_too: bool = True) -> None:
        """Raise MissingPrerequisite for an input that is not there, or (stale_too) is not what it should be by now."""
        for source in self.sources.values():
            if source.problem:
                raise source.problem
            if source.files():
                continue
            if source.stage:
                raise MissingPrerequisite(f"{self.stage.name} needs {source.what}, which has not been made",
                                          f"Run: {source.stage.command(source.name)}")
            raise BadInput(f"{self.stage.name} needs {source.what}, and there is nothing at "
                           f"{self.project.show(source.path)}", source.remedy)
        for stage, name, state in self.upstream() if stale_too else ():
            if state.kind == "stale":
                raise MissingPrerequisite(f"{self.stage.name} builds on {stage.name} '{name}', which is stale "
                                          f"({'; '.join(state.reasons)})",
                                          f"Run: {stage.command(name)}   (--force builds on it as it is)")

    # -- making -------------------------------------------------------------------------------------------------
    @contextmanager
    def making(self, report: Report = silent, *, force: bool = False, team: Team | None = None) -> Iterator[Path]:
        """A temporary folder for the stage's files; when the block ends well they are hashed and published with their
        manifest (store.py). When it raises, the artefact from before stands untouched. team: the processes that make it
        together (core/team.py): the first one does all this, the others write nothing and wait for it.

        Raises MissingPrerequisite before anything is done (force: a stale prerequisite is taken as it is), Locked where
        another process makes the same artefact or one that it is made from, or reads this one; BadInput where the
        folder cannot be written to; OutOfResources when the disk is full, or will be."""
        self.require(stale_too=not force)
        if team and not team.main:
            yield self.partial
            team.wait()
            self.made = True
            return
        while self.project.notices:
            report(note=self.project.notices.pop(0))
        for place in (self.partial, self.folder):
            store.probe(place, ROOM + 2 * sum(path.stat().st_size for path in self._there()))
        with store.room_for(self.project.root), self._locked(report):
            out = self.partial / f"out-{os.getpid()}"
            started = time.monotonic()
            try:
                self._make_room(out)
                inputs = self.began = self.hashes()
                yield out
                if self.hashes() != inputs:
                    report(note="an input changed while this ran: the artefact will count as stale")
                self._publish(out, inputs, time.monotonic() - started)
            finally:
                self.began = None
                shutil.rmtree(out, ignore_errors=True)
            self.made = True
        if team:
            team.wait()

    def _home(self, folder: Path) -> Path:
        """The project that an artefact's folder is part of: this one, or, where a sweep's variant holds a link to it,
        the one that the link leads to. Its lock and half-written work are there, whoever makes it."""
        real, root = folder.resolve(), self.project.root
        if real.is_relative_to(root.resolve()):
            return root
        return next((place for place in real.parents if (place / FILE).is_file()), root)

    @contextmanager
    def _locked(self, report: Report) -> Iterator[None]:
        """The only one that makes this, and nobody remakes what it is made from."""
        doing = f"{self.stage.name} '{self.name}'"
        makers = {(s.stage.name, s.name): s.stage for s in self.sources.values() if s.stage}
        how = {"doing": doing, "patience": PATIENCE, "report": report}
        with ExitStack() as held:
            held.enter_context(locked(self.partial.with_name(f"{self.partial.name}.lock"), doing, **how))
            for (_, name), stage in makers.items():
                home = self._home(self.project.root / stage.folder(self.project, name))
                path = home / ".partial" / f"{key_of(stage.name, name)}.lock"
                held.enter_context(locked(path, f"{stage.name} '{name}'", shared=True, **how))
            yield

    def _make_room(self, out: Path) -> None:
        """An empty folder to work in, what a killed run left swept away."""
        ready = self.partial / store.READY
        if ready.exists():                                   # made whole by a run that was killed just then
            store.carry_out(self.home, ready)
        for leftover in self.partial.glob("out-*"):
            store.remove_folder(leftover)
        store.make_folder(out)

    def _there(self) -> list[Path]:
        """The files of the artefact from before."""
        old = self.recorded() or {"files": {}}
        return [path for path in (self.folder / name for name in old["files"]) if path.is_file()]

    def _publish(self, out: Path, inputs: Mapping[str, str], seconds: float) -> None:
        names = sorted(str(p.relative_to(out).as_posix()) for p in out.rglob("*") if p.is_file())
        assert names, f"{self.stage.name} left no file"
        manifest = {**self._record(), "inputs": dict(inputs), "seconds": round(seconds, 1),
                    "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "facts": plain(self.facts),
                    "files": {name: self.kept.get(name) or self.project.sha256(out / name) for name in names}}
        old = self.recorded() or {"files": {}}
        folder = self.folder if self.home == self.project.root else self.folder.resolve()
        store.carry_out(self.home, store.publish(
            self.home, out, folder=folder, manifest=folder / self.manifest_path.relative_to(self.folder),
            record=manifest, gone=old["files"].keys() - set(names)))

    def _record(self) -> dict[str, object]:
        """What the manifest says of the order. overrides: the settings that were asked for this once and are not the
        project's, so that `status` does not call the result stale; given: inputs named by hand, for the same reason."""
        options = {key: self.project.show(value) if isinstance(value, Path) else value
                   for key, value in vars(self.options).items()}
        return {formats.KEY: formats.MANIFEST, "stage": self.stage.name, "name": self.name, "identity": self.identity,
                "options": plain(options), "request": plain(self.request), "settings": self.settings(),
                "overrides": sorted(self.overrides()), "given": sorted(self.by_hand()),
                "base": plain(self.base) if self.stage.uses_base else None, "seed": self.seed, "versions": versions()}

    def overrides(self) -> dict[str, object]:
        """The settings that differ from what the project itself asks of this artefact."""
        wanted = dataclasses.replace(self, options=self.stage.intent(self.project.settings), given={},
                                     request=self.stage.request(self.project, self.name)).settings()
        return {key: value for key, value in self.settings().items() if key not in wanted or wanted[key] != value}

    def by_hand(self) -> set[str]:
        """The labels of the inputs that are not those which the project itself names."""
        own = self.stage.inputs(self.project, self.name, self.stage.intent(self.project.settings), self.request)
        return {label for label, item in self.sources.items()
                if not item.stage and (label not in own or _real(own[label]) != _real(item))}

    def artifact(self) -> Artifact:
        """The artefact as its manifest describes it. Raises MissingPrerequisite where there is none."""
        manifest = self.recorded()
        if manifest is None:
            raise MissingPrerequisite(f"{self.stage.name} '{self.name}' has not been made",
                                      f"Run: {self.stage.command(self.name)}")
        main = self.folder / self.stage.files[0].format(name=self.name)
        return Artifact(self.stage.name, self.name, self.folder, main,
                        tuple(self.folder / name for name in manifest["files"]), manifest, self.made)


def key_of(stage: str, name: str) -> str:
    """An artefact's name in .partial/: of its folder there, and of its lock."""
    return f"{stage}-{name.replace('/', '-')}"


def _real(source: Input) -> list[Path]:
    return [path.resolve() for path in (source.path if isinstance(source.path, tuple) else (source.path,))]
