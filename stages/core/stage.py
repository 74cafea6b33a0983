"""What the house knows of a stage: its row in the table, what it reads, what it left. Imports no torch."""
from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from .borders import entries

if TYPE_CHECKING:
    from .errors import VideomageError
    from .settings import Settings
    from .workspace import Workspace

VERSIONS = ("videomage", "torch", "diffusers", "transformers", "peft", "safetensors")


@dataclass(frozen=True)
class Input:
    """What a stage reads: a file, a folder (every file in it, links followed) or several files; how a person calls it;
    which stage makes it under which name (None: a person brings it, and `remedy` says how). problem: why what a person
    brought cannot be used; it is raised where the stage would run, and not before."""

    path: Path | tuple[Path, ...]
    what: str
    stage: Stage | None = None
    name: str = ""
    remedy: str = ""
    problem: VideomageError | None = None

    def files(self) -> list[Path]:
        """Every file, in natural order of their names; [] where there is none."""
        paths = self.path if isinstance(self.path, tuple) else (self.path,)
        found = []
        for path in paths:
            inside = (Path(entry) for _, entry in entries(path)) if path.is_dir() else ()
            found += sorted((p for p in inside if p.is_file() and not p.name.startswith(".")), key=natural)
            found += [path] if path.is_file() else []
        return found


@dataclass(frozen=True)
class Stage:
    """A row of the table of stages. The callables take the project, so that `status` needs nothing but this table."""

    name: str                                              # also the command
    function: str                                          # "stages.fuse:fuse"
    options: type                                          # the dataclass of its hyper-parameters
    kind: str                                              # subject | motion | fused | sample | score
    summary: str                                           # one line
    needs: tuple[str, ...]                                 # stages before it
    files: tuple[str, ...]                                 # what it makes, the main product first; {name} is filled in
    folder: Callable[[Workspace, str], str]                # name -> folder in the project
    names: Callable[[Workspace], list[str]]                # the artefacts that the project wants or has
    inputs: Callable[[Workspace, str, object, Mapping], dict[str, Input]]   # (project, name, options, request)
    request: Callable[[Workspace, str], dict]              # what the project asks of it beside options (prompt, class)
    intent: Callable[[Settings], object]                   # its options as the project has them
    command: Callable[[str], str]                          # name -> what to type
    editable: tuple[str, ...] = ()                         # folders of it whose files a person may change
    ignores: Callable[[str, object], set[str]] = lambda folder, options: set()   # what does not shape it
    uses_base: bool = True
    manifest: str = "{stage}.json"


@dataclass(frozen=True)
class State:
    """kind: fresh | stale | missing. reasons: what changed, one phrase each. True only when fresh."""

    kind: str
    reasons: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.kind == "fresh"


@dataclass(frozen=True)
class Artifact:
    """What a stage made. path: the main product. made: False where it was there already and fresh."""

    stage: str
    name: str
    folder: Path
    path: Path
    files: tuple[Path, ...]
    manifest: Mapping[str, object]
    made: bool = True


def natural(path: Path) -> list[object]:
    """Sort key: 2.png before 10.png."""
    return [int(part) if part.isdecimal() else part.lower() for part in re.split(r"(\d+)", str(path))]


def plain(value: object) -> object:
    """Tuples, paths and dataclasses as JSON has them, so that what is read back equals what was written."""
    return json.loads(json.dumps(value, default=lambda other: other.as_posix() if isinstance(other, Path) else
                                 sorted(other) if isinstance(other, set) else str(other)))


@cache
def versions() -> dict[str, str | None]:
    """Of the libraries that a result depends on."""
    return {name: _version(name) for name in VERSIONS}


def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version  # here: it would take a tenth of --help's time

    try:
        return version(name)
    except PackageNotFoundError:
        return None
