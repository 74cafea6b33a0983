"""The project directory: names to paths, manifests, hashes. Plan (plan.py) makes one artefact of it.

    project.yaml    subjects/toy/    motions/riding/    fused/dog+toy/    samples/0001-toy-riding/    scores/
    .cache/  always safe to delete        .partial/  half-written work and checkpoints
"""
from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from . import borders, manifests, store
from . import settings as project_file
from .errors import BadInput, MissingPrerequisite, UsageError
from .foreign import read_json
from .kinds import PICTURES, UNREADABLE
from .lock import locked
from .plan import PATIENCE, Plan, key_of
from .settings import Motion, Settings, Subject, check_name, did_you_mean
from .stage import Artifact, Input, Stage, State, natural, plain

__all__ = ["Artifact", "Input", "Motion", "Plan", "Settings", "Stage", "State", "Subject", "Workspace"]

IMAGES = PICTURES | UNREADABLE          # what counts as a photo: what cannot be read is refused by name, not left out


class Workspace:
    """A project directory that holds a project.yaml. Raises MissingPrerequisite where there is none, BadInput
    (naming the key or the line) where it cannot be used, Refused where a link in its folders leads out of it."""

    def __init__(self, root: str | os.PathLike) -> None:
        self.root = Path(root)
        path = self.root / project_file.FILE
        if not path.is_file():
            raise MissingPrerequisite(f"{self.root.resolve()} holds no {project_file.FILE}, so it is not a project",
                                      "Run: videomage init   (or say -p DIR)")
        self.border = borders.border_of(self.root)
        borders.check_folder(self.border)                                         # before anything in it is touched
        self.settings: Settings = project_file.read(path)
        self.notices = store.settle(self.root)              # of what a killed process left; the next stage tells them
        self._ordered: dict[str, dict] = {}                       # names of samples given out by this process
        self._hashed: dict[Path, tuple[int, int, str]] = {}
        self._states: dict[tuple[str, str, str], State] | None = None         # while `looking`

    @classmethod
    def create(cls, root: str | os.PathLike, *, base: str = "sprites", subjects: Mapping[str, Mapping] | None = None,
               motion: Mapping | None = None, motions: Mapping[str, Mapping] | None = None,
               prompts: Iterable[str] = (), options: Mapping | None = None) -> Workspace:
        """Make the folder and its project.yaml (the arguments are its keys). Raises BadInput where one exists."""
        path = Path(root) / project_file.FILE
        if path.exists():
            raise BadInput(f"{path} is there already", "edit it, or choose another folder")
        project_file.write(path, base=base, subjects=subjects or {}, motion=motion, motions=motions, prompts=prompts,
                           options=options or {})
        return cls(root)

    # -- places -------------------------------------------------------------------------------------------------
    @property
    def partial(self) -> Path:
        return self.root / ".partial"

    def cached(self) -> list[tuple[Path, os.stat_result]]:
        """The files under .cache/, and their sizes and times."""
        found = []
        for folder, _, names in os.walk(self.root / ".cache"):
            for path in (Path(folder) / name for name in names):
                with suppress(FileNotFoundError):                          # whoever deletes it just now
                    found.append((path, path.stat()))
        return found

    @contextmanager
    def lock(self, name: str, *, wait: bool = True) -> Iterator[None]:
        """Hold a named lock of the project, for example around what two subjects share in .cache/."""
        with locked(self.partial / f"{name}.lock", name, wait=wait):
            yield

    def reading(self, stage: str, name: str, doing: str) -> AbstractContextManager:
        """Inside, nobody makes that artefact anew. Raises Locked where somebody does. Where nothing may be written,
        there is nobody who would."""
        if not os.access(self.root, os.W_OK | os.X_OK):
            return nullcontext()
        return locked(self.partial / f"{key_of(stage, name)}.lock", f"{stage} '{name}'", shared=True, patience=PATIENCE,
                      doing=doing)

    def subject_folder(self, name: str) -> Path:
        return self.root / "subjects" / check_name(name, "the subject")

    def motion_folder(self, name: str) -> Path:
        return self.root / "motions" / check_name(name, "the motion")

    def fused_folder(self, subjects: Iterable[str]) -> Path:
        return self.root / "fused" / fused_name(subjects)

    def sample_folder(self, name: str) -> Path:
        return self.root / "samples" / name

    def locate(self, path: str | os.PathLike) -> Path:
        """A path as project.yaml has it (relative to the project) -> a path that can be opened."""
        return self.root / os.path.expanduser(path)              # noqa: PTH111 (it never raises)

    def show(self, path: Path | tuple[Path, ...]) -> str:
        """A path as the project would write it: relative where it lies inside."""
        if isinstance(path, tuple):
            return ", ".join(map(self.show, path)) or "no file"
        inside = path.resolve().is_relative_to(self.root.resolve())
        return (path.resolve().relative_to(self.root.resolve()) if inside else path).as_posix()

    # -- what the project wants ---------------------------------------------------------------------------------
    def subject(self, name: str) -> Subject:
        """From project.yaml, or from the manifest of a subject learned from the command line."""
        if name in self.settings.subjects:
            return self.settings.subjects[name]
        manifest = self.manifest(self.subject_folder(name) / "learn-subject.json") or {}
        if "class" in manifest.get("request", {}):
            return Subject(name, str(manifest["request"]["class"]))
        raise BadInput(f"there is no subject '{name}'", did_you_mean(name, self.subjects()))

    def motion(self, name: str | None = None) -> Motion:
        """From project.yaml (None: its one motion), or from the manifest of one learned from the command line."""
        if name is None and self.settings.motion:
            return self.settings.motion
        if name in self.settings.motions:
            return self.settings.motions[name]
        there = self.motions()
        if name is None and len(there) == 1:
            name = there[0]
        if name is None or name not in there:
            raise BadInput(f"there is no motion '{name}'" if name else "the project names no motion",
                           did_you_mean(name, there) if name and there else
                           "give project.yaml a motion: {name, clip, prompt}, or run: videomage segment CLIP")
        manifest = self.manifest(self.motion_folder(name) / "learn-motion.json") or {}
        return Motion(name, None, str(manifest.get("request", {}).get("prompt", "")))

    def subjects(self) -> list[str]:
        """Names: of project.yaml, then of what lies in subjects/ beside them."""
        return list(dict.fromkeys([*self.settings.subjects, *self._listed("subjects")]))

    def motions(self) -> list[str]:
        """Names: of project.yaml, then of what lies in motions/ beside them."""
        return list(dict.fromkeys([*self.settings.motions, *self._listed("motions")]))

    def fusions(self) -> list[str]:
        """Keys: of all the subjects of project.yaml, when there are two or more, then of what lies in fused/."""
        wanted = [fused_name(self.settings.subjects)] if len(self.settings.subjects) > 1 else []
        return list(dict.fromkeys([*wanted, *self._listed("fused")]))

    def samples(self) -> list[str]:
        """Names in samples/, in order."""
        return self._listed("samples")

    def _listed(self, folder: str) -> list[str]:
        found = (self.root / folder).glob("*")
        rule = {"fused": project_file.FUSED, "samples": project_file.SAMPLE}.get(folder, project_file.NAME)
        return [path.name for path in sorted(found, key=natural) if path.is_dir() and rule.fullmatch(path.name)]

    def photos(self, subject: str) -> tuple[Path, ...]:
        """The photos of a subject: those that project.yaml names (files, folders, globs), else the kept copies."""
        named = self.settings.subjects[subject].images if subject in self.settings.subjects else ()
        found: list[Path] = []
        for item in (*named, *(() if named else (f"subjects/{subject}/images",))):
            files, _ = borders.named(item, self.root, self.border)
            found += sorted((p for p in files if p.suffix.lower() in IMAGES), key=natural)
        for copies in ("images", "photos"):            # of learn-subject, of segment: a project mailed without sources
            folder = self.root / "subjects" / subject / copies
            if not found and folder.is_dir():
                found = sorted((p for p in folder.iterdir() if p.suffix.lower() in IMAGES and
                                borders.inside(p, self.border)), key=natural)
        return tuple(dict.fromkeys(found))

    # -- artefacts ----------------------------------------------------------------------------------------------
    def plan(self, stage: Stage, name: str, options: object = None, *, seed: int = 0,
             base: Mapping[str, str] | None = None, request: Mapping | None = None,
             given: Mapping[str, Path | tuple[Path, ...]] | None = None) -> Plan:
        """The plan of one artefact. options None: the project's. request: what this call asks beside options (class
        word, prompt), laid over what the project asks. given: inputs named by hand in place of the project's.
        base: backbones.identity(...), for a stage that uses one."""
        options = stage.intent(self.settings) if options is None else options
        whole = {**stage.request(self, name), **(request or {})}
        return Plan(self, stage, name, options, seed, base if stage.uses_base else None, whole, dict(given or {}))

    def intended(self, stage: Stage, name: str, base: Mapping[str, str] | None = None) -> Plan:
        """The artefact as the project wants it, except for what its maker asked for by hand (seed, typed options):
        what `status` compares with, and what the next stage may rely on."""
        manifest = self.manifest(self.plan(stage, name, base=base).manifest_path)
        if manifest is None:
            return self.plan(stage, name, base=base)
        by_hand = {key: manifest["settings"][key] for key in manifest["overrides"]}
        options = stage.intent(self.settings)
        fields = type(options).__dataclass_fields__            # paths are in no settings: none comes from a manifest
        known = {key: value for key, value in by_hand.items() if key in fields and fields[key].metadata["identity"]}
        request = {key: value for key, value in by_hand.items() if key not in fields}
        try:
            options = type(options)(**{**vars(options), **known})
        except UsageError as error:
            raise BadInput(f"the manifest of {stage.name} '{name}' is damaged ({error.what})",
                           f"Run: {stage.command(name)} --force") from None
        return self.plan(stage, name, options, seed=manifest["seed"], base=base, request=request)

    def state_of(self, stage: Stage, name: str, base: Mapping[str, str] | None = None) -> State:
        """The state of an artefact as the project wants it."""
        if self._states is None:
            return self.intended(stage, name, base).state()
        key = (stage.name, name, json.dumps(plain(base) if stage.uses_base else None))
        if key not in self._states:
            self._states[key] = self.intended(stage, name, base).state()
        return self._states[key]

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Inside, nothing is expected to change: the state of an artefact is found out once, however many others are
        made from it. For `status`, which asks for thousands."""
        self._states = {}
        try:
            yield
        finally:
            self._states = None

    def sample_name(self, stage: Stage, options: object, *, request: Mapping, seed: int, reserve: bool = True) -> str:
        """The name, "0001-toy-is-riding", of the sample with this request, seed and by-hand options, or a new one.
        reserve: keep that number for it (under .partial/), so that two processes never share one."""
        probe = self.plan(stage, "0000", options, seed=seed, request=request)
        order = plain({"request": probe.request, "seed": seed, "options": {
            key: value for key, value in probe.overrides().items() if key not in probe.request}})
        if reserve:
            store.probe(self.partial, 0)
        with self.lock("samples") if reserve else nullcontext():
            taken = {name: self._sample_order(name) for name in self.samples()} | self._ordered
            for path in self.partial.glob("sample-*/order.json"):
                name = path.parent.name.removeprefix("sample-")
                with suppress(OSError, ValueError):                        # a damaged one is nobody's order
                    taken |= {name: read_json(path)} if project_file.SAMPLE.fullmatch(name) else {}
            name = next((name for name, other in taken.items() if other == order), None)
            if name is None:
                number = max((int(name.partition("-")[0]) for name in taken if name[:4].isdecimal()), default=0) + 1
                words = re.sub(r"[^a-z0-9]+", "-", str(probe.request.get("prompt", "")).lower()).strip("-")
                name = f"{number:04d}-{words[:40].rstrip('-') or 'video'}"
                self._ordered[name] = order
            if reserve and not self.sample_folder(name).exists():
                with store.room_for(self.root):
                    store.write(self.partial / f"sample-{name}" / "order.json", json.dumps(order))
        return name

    def _sample_order(self, name: str) -> dict | None:
        manifest = self.manifest(self.sample_folder(name) / "sample.json")
        return manifest and {"request": manifest["request"], "seed": manifest["seed"], "options": {
            key: manifest["settings"][key] for key in manifest["overrides"] if key not in manifest["request"]}}

    def manifest(self, path: Path) -> dict | None:
        """A manifest, or None where there is none. Raises what manifests.read does."""
        return manifests.read(path)

    def sha256(self, path: Path) -> str:
        """Of a file's content; remembered in this process while size and time stamp stay."""
        facts = path.stat()
        size, stamp, known = self._hashed.get(path, (-1, -1, ""))
        if (size, stamp) != (facts.st_size, facts.st_mtime_ns):
            with path.open("rb") as handle:
                digest = hashlib.sha256()
                while block := handle.read(1 << 20):
                    digest.update(block)
            known = digest.hexdigest()
            self._hashed[path] = (facts.st_size, facts.st_mtime_ns, known)
        return known


def keep(paths: Iterable[Path], folder: Path) -> None:
    """Copy files into a new folder, under `kept_names`."""
    folder.mkdir(parents=True)
    for path, name in zip(paths := list(paths), kept_names(paths)):
        shutil.copyfile(path, folder / f"{name}{path.suffix}")


def kept_names(paths: Iterable[Path]) -> list[str]:
    """The names, without endings, under which files are kept: their own, numbered where two would be called alike. A
    photo's mask has the same one."""
    stems = [path.stem for path in paths]
    alike = len({stem.lower() for stem in stems}) < len(stems)
    return [f"{number:04d}-{stem}" if alike else stem for number, stem in enumerate(stems)]


def fused_name(subjects: Iterable[str]) -> str:
    """{"toy", "dog"} -> "dog+toy": one key for one set."""
    return "+".join(sorted({check_name(name, "the subject") for name in subjects}))
