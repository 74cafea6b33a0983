"""The border of a project: what its files say, and what lies in its folder, may not lead out of it.

A project may come from a stranger. What a person types may lie anywhere; photos, clips and masks that project.yaml or a
manifest names lie in the project, after every link has been followed: a stage copies them, and a page shows them. (A
base and the models of eval may lie elsewhere. They are read, after checks, and nothing of them is copied.) The folders
that stages write to hold files and folders; a link in them stays inside. Imports no torch.
"""
from __future__ import annotations

import itertools
import os
from pathlib import Path

from .errors import BadInput, Refused

FILE = "project.yaml"
OWN = ("subjects", "motions", "fused", "samples", "scores", "sweeps", "exports", ".cache", ".partial")
_WILD = set("*?[")


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


def astray(path: Path, border: Path) -> Path | None:
    """The first place at which a file, or a folder with all that is in it, leads out of the border; None where it does
    not."""
    if not inside(path, border):
        return path
    within = sorted(path.rglob("*")) if path.is_dir() else ()
    return next((one for one in within if one.is_symlink() and not inside(one, border)), None)


def named(item: str, root: Path, border: Path) -> tuple[list[Path], Path | None]:
    """What project.yaml names by a file, a folder or a glob -> (the files inside the border, the first place outside of
    it or None). Outside, nothing is looked at."""
    path = root / os.path.expanduser(item)                 # noqa: PTH111 (it never raises)
    fixed = Path(*itertools.takewhile(lambda part: not _WILD & set(part), path.parts))
    pattern = path.parts[len(fixed.parts):]
    if not inside(fixed, border) or ".." in pattern:
        return [], fixed
    try:
        found = fixed.glob("/".join(pattern)) if pattern else fixed.glob("*") if fixed.is_dir() else [fixed]
        found = list(found)
    except ValueError:                                     # `***`
        raise BadInput(f"{FILE}: '{item}' is no pattern of files", "write * for any part of a name") from None
    files = [one for one in found if one.is_file() or one.is_symlink()]
    out = next((one for one in files if not inside(one, border)), None)
    return [one for one in files if one.is_file() and inside(one, border)], out


def leaves(what: str, path: Path | str, remedy: str = "copy it into the project, or name it on the command line"
           ) -> Refused:
    """The refusal of a place outside."""
    return Refused(f"{what} would be read from {path}, which lies outside the project", remedy)


def check_folder(border: Path) -> None:
    """Look through the folders that stages read and write by themselves. Raises Refused for a link that leads out of
    the project, and for what is neither file nor folder (a pipe would keep whoever reads it waiting for ever)."""
    _check_entries(border, [border / name for name in (*OWN, FILE)])


def _check_entries(border: Path, paths: list[Path]) -> None:
    waiting = []
    for path in paths:
        if path.is_symlink():
            if not inside(path, border):
                raise Refused(f"{path.relative_to(border)} is a link that leads out of the project",
                              f"delete the link, or put what it leads to in its place: {path}")
        elif path.is_dir():
            waiting.append(str(path))
        elif path.exists() and not path.is_file():
            raise _strange(path, border)
    while waiting:                                        # of thousands of entries: names and kinds alone, no stat
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    _check_entries(border, [Path(entry.path)])
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif not entry.is_file(follow_symlinks=False):
                    raise _strange(Path(entry.path), border)


def _strange(path: Path, border: Path) -> Refused:
    return Refused(f"{path.relative_to(border)} is neither a file nor a folder", f"delete it: {path}")


def check_inside(path: Path, border: Path, remedy: str) -> Path:
    """A path inside the border, as it is. Raises Refused for any other."""
    if not inside(path, border):
        raise Refused(f"{path} lies outside the project, whose files name it", remedy)
    return path
