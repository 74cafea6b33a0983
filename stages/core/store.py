"""Every change that a project's folder keeps is made here, so that a crash at any moment leaves the old or the new.

A file: written beside its place, flushed to the disk (fsync), renamed, its folder flushed. An artefact, which is many
files among those of other stages:

    1. the stage leaves its files in a folder of its own under .partial/; each is flushed
    2. what is to be done is written down beside them (`.commit`, `.manifest`), flushed, and the folder renamed to
       `ready`: from here on the new artefact is the one that stands, whatever happens
    3. the old manifest goes, files that are no longer made go, the new ones are moved in, the new manifest comes last

Whoever opens the project after a crash in 3 finds `ready` and does 3 again from its beginning: each of its moves is one
that may have been made already. Before 2 ends, the old artefact stands untouched.

Every single operation passes `operation(...)`, where a test can make it fail or kill the process: the environment
variable VIDEOMAGE_FAILPOINT holds `kill@7` (SIGKILL before the seventh), `EIO@7`, `ENOSPC@7` (the seventh raises), or
`trace@FILE` (a line for each).
"""
from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from .borders import border_of, inside
from .errors import BadInput, Locked, OutOfResources, Refused
from .foreign import read_json
from .lock import here, locked, started, sweep

READY = "ready"                                # the folder of a finished artefact that is being moved into place
COMMIT, MANIFEST = ".commit", ".manifest"      # in it: what is to be done; the manifest to come
FAILPOINT = "VIDEOMAGE_FAILPOINT"
DAY = 86400.0                                  # seconds

_count, _counting = 0, threading.Lock()


def operation(verb: str, path: Path) -> None:
    """Before each operation on the folder. Does nothing but where FAILPOINT says so."""
    wanted = os.environ.get(FAILPOINT)
    if not wanted:
        return
    global _count
    with _counting:
        _count += 1
        number = _count
    how, at = wanted.split("@", 1)
    if how == "trace":
        with Path(at).open("a", encoding="utf-8") as trace:
            trace.write(f"{number} {verb} {path.name}\n")
    elif number == int(at) and how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif number == int(at):
        raise OSError(getattr(errno, how), os.strerror(getattr(errno, how)), str(path))


# -- single operations ------------------------------------------------------------------------------------------------
def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    operation("fsync", path)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def rename(source: Path, target: Path) -> None:
    """One atomic step; takes the place of a file that is there, never of a folder that holds something."""
    operation("rename", target)
    source.rename(target)


def make_folder(path: Path) -> None:
    """With its parents."""
    if not path.is_dir():
        operation("mkdir", path)
        path.mkdir(parents=True, exist_ok=True)
        sync(path.parent)


def remove(path: Path) -> None:
    """A file, if it is there."""
    operation("unlink", path)
    path.unlink(missing_ok=True)


def remove_folder(path: Path) -> None:
    """With all that is in it; what cannot be removed stays (a later run sweeps it)."""
    if path.exists():
        operation("rmtree", path)
        shutil.rmtree(path, ignore_errors=True)


# -- a file -----------------------------------------------------------------------------------------------------------
@contextmanager
def replacing(path: Path, via: Path | None = None) -> Iterator[Path]:
    """A path to write to, which becomes `path` when the block ends well. When it raises, `path` is as it was. via: the
    folder, on the same disk, that it is in until then (default: that of `path`); settle() looks there for what a killed
    process left."""
    make_folder(path.parent)
    if via:
        make_folder(via)
    half = (via or path.parent) / f".{path.name}.{here()}-{os.getpid()}-{threading.get_ident()}.partial"
    try:
        yield half
        sync(half)
        rename(half, path)
        sync(path.parent)
    finally:
        with suppress(OSError):
            half.unlink(missing_ok=True)


def _sweep_halves(folder: Path) -> None:
    """Remove what killed processes of this host had half-written there; of another host, what is a day old."""
    for half in folder.glob(".*.partial"):
        where, _, pid = half.name.split(".")[-2].rpartition("-")[0].partition("-")
        with suppress(OSError, ValueError):
            number = int(pid)                                        # else it is none of ours
            if where == here() and started(number) is None or time.time() - half.stat().st_mtime > DAY:
                half.unlink(missing_ok=True)


def write(path: Path, content: str | bytes) -> None:
    """A whole file."""
    with replacing(path) as half:
        operation("write", path)
        half.write_bytes(content.encode() if isinstance(content, str) else content)


def append(path: Path, lines: Iterable[str]) -> None:
    """Lines at the end of a file of lines. One that a crash has cut short before them stays a line of its own."""
    make_folder(path.parent)
    operation("write", path)
    if path.is_symlink():
        raise Refused(f"{path} is a link, which nothing of ours leaves there", "delete it")
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            file.write(b"" if file.read(1) == b"\n" else b"\n")
        file.write("".join(f"{line}\n" for line in lines).encode())
    sync(path)


def publish_folder(half: Path, folder: Path) -> None:
    """A folder of files that is no artefact, finished beside its place (on the same disk): flushed, and renamed to
    `folder`, where nothing is yet."""
    for path in (*sorted(half.rglob("*")), half):
        sync(path)
    rename(half, folder)
    sync(folder.parent)


# -- an artefact ------------------------------------------------------------------------------------------------------
def publish(root: Path, out: Path, *, folder: Path, manifest: Path, record: Mapping, gone: Iterable[str]) -> Path:
    """Steps 1 and 2: flush the files in `out`, write down what is to be done, rename to `ready` -> that folder, for
    carry_out. folder, manifest: where the files and the manifest go; record: the manifest; gone: files in `folder` that
    go. Paths may be absolute; what is written down is relative to root."""
    written = sorted(out.rglob("*"))
    task = {"folder": folder.relative_to(root).as_posix(), "manifest": manifest.relative_to(root).as_posix(),
            "gone": sorted(gone)}
    for name, content in ((MANIFEST, record), (COMMIT, task)):
        operation("write", out / name)
        (out / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        written.append(out / name)
    for path in (*written, out):
        sync(path)
    ready = out.parent / READY
    rename(out, ready)
    sync(ready.parent)
    return ready


def carry_out(root: Path, ready: Path) -> None:
    """Step 3, and the end of `ready` with the folder it is in; may be begun again after a crash anywhere in it. Raises
    BadInput or Refused for a `.commit` that is not ours: it leads outside, or is damaged."""
    try:
        task = read_json(ready / COMMIT)
        folder, manifest = (_within(root, task[key]) for key in ("folder", "manifest"))
        gone = [_within(root, f"{task['folder']}/{name}") for name in task["gone"]]
    except (OSError, ValueError, KeyError, TypeError) as damage:
        raise BadInput(f"{ready} is damaged ({type(damage).__name__})", "delete that folder") from damage
    there = sorted(ready.rglob("*"))
    if link := next((path for path in there if path.is_symlink()), None):      # moved, it would lead elsewhere
        raise Refused(f"{link} is a link, which no stage leaves", f"do not use this folder, or delete {ready}")
    moved = [path.relative_to(ready) for path in there
             if path.is_file() and path.relative_to(ready).as_posix() not in (COMMIT, MANIFEST)]
    make_folder(folder)
    if (ready / MANIFEST).exists():                      # else it has been moved already, and all before it
        remove(manifest)
        for path in gone:
            remove(path)
            with suppress(OSError):                      # of a folder that still holds something
                path.parent.rmdir()
        for name in moved:
            make_folder((folder / name).parent)
            rename(ready / name, folder / name)
        for place in {(folder / name).parent for name in moved} | {folder}:
            if place.is_dir():                           # moved by the run before, and gone since
                sync(place)
        rename(ready / MANIFEST, manifest)
        sync(manifest.parent)
    for left in ready.parent.iterdir():                  # checkpoints, an order: `ready` stays to say that they may go
        if left != ready:
            remove_folder(left) if left.is_dir() else remove(left)
    done = ready.with_name(f"out-{os.getpid()}-done")    # one step: half of `ready`, without its task, would be damage
    rename(ready, done)
    remove_folder(done)
    with suppress(OSError):                              # something has come that could not be removed
        ready.parent.rmdir()


def settle(root: Path) -> list[str]:
    """Finish what a killed process had begun to move into place, and sweep what it left half-written, its locks, too ->
    notices. Whoever is at work is left alone; where nothing may be written (a folder that is only looked at), all stays
    as it is."""
    notices = []
    with suppress(OSError):
        notices = sweep(root / ".partial")
        for folder in (root, root / "scores", root / ".partial", *(root / ".partial").glob("*/"),
                       *(root / ".partial").glob("*/checkpoints-*/")):
            _sweep_halves(folder)
    for left in sorted({*(root / ".partial").glob(f"*/{READY}"), *(root / ".partial").glob("*/out-*")}):
        try:
            with locked(left.parent.with_name(f"{left.parent.name}.lock"), left.parent.name):
                if left.name != READY:
                    remove_folder(left)
                elif left.exists():
                    carry_out(root, left)
        except (Locked, OSError):
            continue
    return notices


def _within(root: Path, name: str) -> Path:
    """A name that was written down, below root. Raises Refused for one that leads elsewhere."""
    path = root / name
    if Path(name).is_absolute() or ".." in Path(name).parts or not inside(path, border_of(root)):
        raise Refused(f"a file of this project names {name!r}, which lies outside", "do not use this folder, or delete "
                      "its .partial/")
    return path


# -- before a long run ------------------------------------------------------------------------------------------------
def probe(folder: Path, room: int) -> None:
    """Raise BadInput where nothing can be written to `folder` (or where it would be made), OutOfResources where its
    disk has fewer than `room` bytes left: now, and not after hours."""
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise BadInput(f"{there} cannot be written to", "give yourself the right to, or work in another folder: "
                       "videomage -p DIR")
    free = shutil.disk_usage(there).free
    if free < room:
        raise OutOfResources(f"the disk that holds {there} has {free / 2**20:.0f} MiB left, and this needs about "
                             f"{room / 2**20:.0f}", "make room (.cache/ is always safe to delete), and run it again")


def full(place: Path) -> OutOfResources:
    """What is said of a disk without room."""
    return OutOfResources(f"the disk that holds {place} is full",
                          "make room, and run it again: it goes on from its last checkpoint")


@contextmanager
def room_for(place: Path) -> Iterator[None]:
    """Inside, a disk that runs full is told as OutOfResources."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise full(place) from error
        raise


def is_full(error: OSError) -> bool:
    """No room, no quota, or a file larger than this process may write."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
