"""Where the cells of a row live. Rows that differ in how they sample are of the project itself; one that learns
otherwise is of a variant of the project, sweeps/variants/NAME/, a workspace with a project.yaml of its own.

Each artefact exists once. It lies in the variant that differs from the project in nothing but what shapes it; the other
variants hold links to it. So a row's place follows from its options alone, and a grid may grow or be put in another
order. The cache is the project's, for all.
"""
from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import yaml

from ..backbones import NAMES
from ..core import store
from ..core.borders import inside
from ..core.errors import BadInput
from ..core.foreign import holds
from ..core.settings import FILE
from ..core.stage import plain
from ..core.workspace import Workspace
from ..options import Options, kind, show

# the options of which stages shape what a stage makes
SHAPED_BY = {"segment": ("segment",), "invert": ("segment", "invert"),
             "learn-motion": ("segment", "invert", "learn-motion"), "learn-subject": ("segment", "learn-subject"),
             "fuse": ("segment", "learn-subject", "fuse")}
FAMILIES = {"subjects": "learn-subject", "motions": "learn-motion", "fused": "fuse"}      # folder: its last stage
LENT = {"subjects": ("segment",), "motions": ("segment", "invert")}            # what it holds of earlier stages
LONGEST = 60                                                                     # of a name made of options
Difference = Mapping[str, Mapping[str, object]]                                  # {stage: {option: value}}


def shapes(cls: type[Options], name: str) -> bool:
    """Whether a result depends on an option: on its value, or on what lies at the path that it is."""
    return cls.__dataclass_fields__[name].metadata["identity"] or kind(cls, name)[0] is Path


def differences(own: Mapping[str, Options], wanted: Mapping[str, Options], stages: tuple[str, ...]) -> Difference:
    """{stage: {option: its wanted value}} for what shapes the results of these stages and is not as in `own`."""
    found = {}
    for stage in stages:
        changed = {name: getattr(wanted[stage], name) for name in wanted[stage].__dataclass_fields__
                   if shapes(type(wanted[stage]), name)
                   and getattr(wanted[stage], name) != getattr(own[stage], name)}
        if changed:
            found[stage] = changed
    return found


def named(difference: Difference, *, stages: bool = True) -> str:
    """A difference as a name, "learn-subject.lambda1=0": what is too long, or cannot stand in a name, is cut off and a
    hash of the whole put in its place. "" for none."""
    def shown(value: object) -> str:
        short = show(value)
        return repr(value) if isinstance(value, float) and float(short) != value else short

    text = ",".join(f"{stage + '.' if stages else ''}{option}={shown(value)}"
                    for stage, given in sorted(difference.items()) for option, value in sorted(given.items()))
    clean = re.sub(r"[^A-Za-z0-9_.,=+-]+", "-", text)
    if clean == text and len(text) <= LONGEST:
        return text
    return f"{clean[:LONGEST].rstrip('-,=.')}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


class Variants:
    """The variants of a project, made when they are asked for."""

    def __init__(self, project: Workspace) -> None:
        self.project = project
        self._made: dict[str, Workspace] = {}
        self._differences: dict[Path, Difference] = {project.root: {}}

    def of(self, difference: Difference) -> Workspace:
        """The workspace that differs from the project in this; the project itself where that is nothing."""
        if not difference:
            return self.project
        name = named(difference)
        if name not in self._made:
            folder = self.project.root / "sweeps" / "variants" / name
            folder.mkdir(parents=True, exist_ok=True)
            self._write(folder, difference)
            self._link(folder, difference)
            self._made[name] = Workspace(folder)
            self._differences[folder] = difference
        return self._made[name]

    def difference(self, root: Path) -> Difference:
        """In what the workspace there, which was asked for before, differs from the project."""
        return self._differences[root]

    def owner(self, stage: str, difference: Difference) -> Workspace:
        """Where what this stage makes under that difference lies."""
        return self.of({other: difference[other] for other in SHAPED_BY[stage] if other in difference})

    def lend(self, root: Path) -> None:
        """Put links to what earlier stages have made by now into the folders that this variant has of its own: a motion
        learned otherwise stands on the same frames, masks and noise."""
        for family, stages in LENT.items():
            if (root / family).is_symlink() or root == self.project.root:
                continue
            for stage in stages:
                there = self.owner(stage, self._differences[root]).root
                for folder in (there / family).glob("*/") if there != root else ():
                    self._lend_one(folder, root / family / folder.name, stage)

    def lend_sample(self, name: str, owner: Path, to: Path) -> None:
        """A link to a sample of another variant, which is the same in this one."""
        if owner != to:
            _symlink(to / "samples" / name, owner / "samples" / name)

    def _lend_one(self, folder: Path, to: Path, stage: str) -> None:
        manifest = self.project.manifest(folder / f"{stage}.json")
        by_hand = stage == "segment" and not manifest and (folder / "masks").is_dir()
        names = {Path(name).parts[0] for name in manifest["files"]} if manifest else {"masks"} if by_hand else set()
        for name in [*sorted(names), *([f"{stage}.json"] if manifest else [])]:
            to.mkdir(parents=True, exist_ok=True)
            _symlink(to / name, folder / name)

    def _link(self, folder: Path, difference: Difference) -> None:
        """.cache, and each family whose products another variant has."""
        (self.project.root / ".cache").mkdir(exist_ok=True)
        _symlink(folder / ".cache", self.project.root / ".cache")
        for family, stage in FAMILIES.items():
            own = {other: given for other, given in difference.items() if other in SHAPED_BY[stage]}
            if own == dict(difference):
                (folder / family).mkdir(exist_ok=True)
                continue
            there = self.of(own).root / family
            there.mkdir(exist_ok=True)
            _symlink(folder / family, there)

    def _write(self, folder: Path, difference: Difference) -> None:
        """Its project.yaml: the project's, with the difference in its options and paths that are right from here."""
        text = yaml.safe_dump(self._settings(folder, difference), sort_keys=False, allow_unicode=True, width=100)
        text = f"# written by `videomage sweep` from {FILE} of the project: edit that one\n{text}"
        path = folder / FILE
        if not holds(path, text):
            store.write(path, text)

    def _settings(self, folder: Path, difference: Difference) -> dict[str, object]:
        settings = self.project.settings
        options = {stage: {str(key).replace("-", "_"): value for key, value in given.items()}
                   for stage, given in settings.options.items()}
        for stage, given in difference.items():
            options[stage] = {**options.get(stage, {}), **plain(given)}
        for stage, given in options.items():
            for key, value in given.items():
                if value and stage in OPTION_PATHS and key in OPTION_PATHS[stage]:
                    given[key] = self._from(folder, value)
        whole = {"base": self._base(folder), "preset": settings.preset, "video": dict(settings.video),
                 "subjects": {name: {"class": subject.class_word, **({"images": [
                     self._from(folder, item) for item in subject.images]} if subject.images else {})}
                     for name, subject in settings.subjects.items()},
                 "motions": {name: {**({"clip": self._from(folder, motion.clip)} if motion.clip else {}),
                                    **({"prompt": motion.prompt} if motion.prompt else {})}
                             for name, motion in settings.motions.items()},
                 "prompts": list(settings.prompts), "options": {k: v for k, v in options.items() if v}}
        return {key: value for key, value in whole.items() if value}

    def _from(self, folder: Path, item: str | Path) -> str:
        """A path of the project's (a glob, too), as it is right in the variant."""
        item = Path(item).expanduser()
        return item.as_posix() if item.is_absolute() else Path(os.path.relpath(self.project.root / item, folder)
                                                               ).as_posix()

    def _base(self, folder: Path) -> str:
        """A base is known to manifests by its name, so that it has to be called the same here as in the project: a
        folder of the project gets a link at the same relative place."""
        base, root = self.project.settings.base, self.project.root
        if base in NAMES or Path(base).expanduser().is_absolute() or not (root / base / "model_index.json").is_file():
            return base
        link = Path(os.path.normpath(folder / base))
        own = inside(root / base, self.project.border)              # a link to another place would shut the project
        if not own or not link.is_relative_to(Path(os.path.normpath(root / "sweeps"))):
            raise BadInput(f"{FILE}: a sweep that learns otherwise cannot find the base {base}",
                           "write its path absolute, or put it into the project")
        _symlink(link, root / base)
        return base


OPTION_PATHS = {"segment": ("masks",), "learn-subject": ("auxiliary",), "eval": ("clip", "dino")}


def _symlink(link: Path, to: Path) -> None:
    """A relative link, so that the project can be moved. What lies there by another name is left as it is."""
    link.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(to, link.parent)
    if link.is_symlink() and link.readlink() == Path(target):
        return
    if link.exists() and not link.is_symlink():
        return
    partial = link.with_name(f".{link.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        partial.unlink()
    partial.symlink_to(target)
    store.rename(partial, link)
