"""The border of a project: what its files say, and what lies in its folder, may not lead out of it.

A project may come from a stranger. What a person types may lie anywhere; photos, clips and masks that project.yaml or a
manifest names lie in the project, after every link has been followed: a stage copies them, and a page shows them. (A
base and the models of eval may lie elsewhere. They are read, after checks, and nothing of them is copied.) The folders
that stages write to hold files and folders; a link in them stays inside. Imports no torch.
"""
from __future__ import annotations

import fnmatch
import itertools
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from .errors import BadInput, Refused

FILE = "project.yaml"
OWN = ("subjects", "motions", "fused", "samples", "scores", "sweeps", "exports", ".cache", ".partial")
_WILD = set("*?[")
LONGEST, MOST = 4096, 100_000                 # characters of a pattern; places that it may match


def border_of(root: Path) -> Path:
    """The folder, links followed, that nothing may lead out of: the project's; of a variant that a sweep made
    (sweeps/variants/NAME), that of the project it belongs to."""
    root = root.resolve()
    if root.parent.name == "variants" and root.parent.parent.name == "sweeps":
        outer = root.parents[2]
        if (outer / FILE).is_file():
            return outer
    return root


def inside(path: Path, border: Path) -> bool:
    """Whether a path, links followed, lies within the border. What cannot be followed does not."""
    try:
        path.exists()                                      # raises for a name that no file can have
        return path.resolve().is_relative_to(border)       # and this for a loop of links
    except (OSError, RuntimeError, ValueError):
        return False


def entries(folder: Path | str, *, hidden: bool = True) -> Iterator[tuple[str, os.DirEntry]]:
    """(its place in the folder, an entry) of all that lies in it and below, sorted; linked folders are entered as well,
    each folder once. An entry comes before it is entered, so that who finds it amiss can stop. hidden: also what begins
    with a dot. Names and kinds are looked at, and no more: there may be thousands."""
    waiting, seen = [("", str(folder))], set()
    while waiting:
        place, here = waiting.pop()
        try:
            facts = Path(here).stat()
            with os.scandir(here) as found:
                inner = sorted(found, key=lambda entry: entry.name)
        except OSError:                                    # gone, or shut: nobody else reads it either
            continue
        if (facts.st_dev, facts.st_ino) in seen:
            continue
        seen.add((facts.st_dev, facts.st_ino))
        below = []
        for entry in inner:
            if hidden or not entry.name.startswith("."):
                yield f"{place}{entry.name}", entry
                if is_folder(entry):
                    below.append((f"{place}{entry.name}/", entry.path))
        waiting += reversed(below)


def is_folder(entry: os.DirEntry) -> bool:
    """Whether it is one or leads to one."""
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and Path(entry).is_dir())


def astray(path: Path, border: Path) -> Path | None:
    """The first place at which a file, or a folder with all that is in it, every link followed, leads out of the
    border; None where it does not."""
    if not inside(path, border):
        return path
    links = (Path(entry) for _, entry in entries(path) if entry.is_symlink())
    return next((one for one in links if not inside(one, border)), None)


def named(item: str, root: Path, border: Path) -> tuple[list[Path], Path | None]:
    """What project.yaml names by a file, a folder or a glob -> (the files inside the border, the first place outside of
    it or None). Outside, nothing is looked at."""
    path = root / os.path.expanduser(item)                 # noqa: PTH111 (it never raises)
    fixed = Path(*itertools.takewhile(lambda part: not _WILD & set(part), path.parts))
    pattern = path.parts[len(fixed.parts):]
    if not inside(fixed, border) or ".." in pattern:
        return [], fixed
    if len(item) > LONGEST or any("**" in part and part != "**" for part in pattern):
        raise BadInput(f"{FILE}: '{item}' is no pattern of files", "write * for any part of a name")
    found, before = [fixed], ""
    for part in pattern or ("*",) * fixed.is_dir():
        if part == before == "**":                         # which together are one
            continue
        within = [one for one in found if one == fixed or not one.is_symlink()]     # links in a circle have no end
        found, before = list(itertools.islice(_matching(within, part), MOST + 1)), part
        if len(found) > MOST:
            raise BadInput(f"{FILE}: '{item}' matches more than {MOST} files and folders", "name a smaller folder")
    files = [one for one in found if one.is_file() or one.is_symlink()]
    out = next((one for one in files if not inside(one, border)), None)
    return [one for one in files if one.is_file() and inside(one, border)], out


def _matching(folders: list[Path], part: str) -> Iterator[Path]:
    """What lies in these folders under one part of a pattern; `**`: they themselves and all folders below."""
    for folder in folders:
        if part == "**":
            yield from (Path(here) for here, _, _ in os.walk(folder))
        elif folder.is_dir():
            with suppress(PermissionError):
                yield from (one for one in folder.iterdir() if fnmatch.fnmatchcase(one.name, part))


def leaves(what: str, path: Path | str, remedy: str = "copy it into the project, or name it on the command line"
           ) -> Refused:
    """The refusal of a place outside."""
    return Refused(f"{what} would be read from {path}, which lies outside the project", remedy)


def check_folder(border: Path) -> None:
    """Look through the folders that stages read and write by themselves, every link followed. Raises Refused for one
    that leads out of the project, and for what is neither file nor folder (a pipe would keep whoever reads it waiting
    for ever)."""
    for name in (*OWN, FILE):
        _check_entry(border / name, border)
        for _, entry in entries(border / name):
            if not (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)):
                _check_entry(Path(entry), border)


def _check_entry(path: Path, border: Path) -> None:
    if path.is_symlink() and not inside(path, border):
        raise Refused(f"{path.relative_to(border)} is a link that leads out of the project",
                      f"delete the link, or put what it leads to in its place: {path}")
    if path.exists() and not (path.is_dir() or path.is_file()):
        raise _strange(path, border)


def _strange(path: Path, border: Path) -> Refused:
    return Refused(f"{path.relative_to(border)} is neither a file nor a folder", f"delete it: {path}")


def check_inside(path: Path, border: Path, remedy: str) -> Path:
    """A path inside the border, as it is. Raises Refused for any other."""
    if not inside(path, border):
        raise Refused(f"{path} lies outside the project, whose files name it", remedy)
    return path
