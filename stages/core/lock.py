"""Locks of a project: one writer or several readers of an artefact, each with a record of who it is.

The lock is an flock on a small file, which the kernel frees when its holder dies. Beside it each holder leaves a record
(host, boot id, pid, its start time, command), so that who has to wait is told for whom. A record whose holder is gone:

    same host, and the kernel has given us the lock     its process was killed: cleared, with a notice
    same host, another boot                             the same
    another host                                        never cleared silently: a shared folder may not carry flocks
                                                        between hosts. Locked, until `videomage unlock` clears it
"""
from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import platform
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from .errors import Interrupted, Locked
from .foreign import read_json
from .report import Report, asked_to_stop, silent

POLL_SECONDS = 0.2
LONGEST_COMMAND = 120                      # characters
LONGEST_RECORD = 2**14                     # bytes
_numbers = itertools.count()


@dataclass(frozen=True)
class Owner:
    """Who holds, or held, a lock. mode: "write" or "read"; doing: what for; started: clock ticks after the boot;
    since: UTC."""

    host: str
    boot: str
    pid: int
    started: int
    command: str
    mode: str
    doing: str
    since: str

    @classmethod
    def here(cls, mode: str, doing: str) -> Owner:
        command = " ".join((Path(sys.argv[0] or "python").name, *sys.argv[1:]))[:LONGEST_COMMAND]
        return cls(platform.node(), _boot(), os.getpid(), started(os.getpid()) or 0, command, mode, doing,
                   time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))

    @property
    def state(self) -> str:
        """"working", "dead", or "on another host", of which nothing can be known here."""
        if self.host != platform.node():
            return "on another host"
        return "working" if self.boot == _boot() and started(self.pid) == self.started else "dead"

    def __str__(self) -> str:
        where = f" on {self.host}" if self.host != platform.node() else ""
        return f"process {self.pid}{where} ({self.doing}; {self.command}; since {self.since})"


@cache
def _boot() -> str:
    """This boot of this host; "" where the system does not say."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


@cache
def here() -> str:
    """This boot of this host, in eight letters."""
    return hashlib.sha256(f"{platform.node()} {_boot()}".encode()).hexdigest()[:8]


def started(pid: int) -> int | None:
    """When a living process started, in clock ticks after the boot (0 where the system does not say); else None."""
    with suppress(OSError, ValueError):                            # field 22; the second may hold spaces and brackets
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] in ("Z", "X") else int(fields[19])
    if Path("/proc/self/stat").exists():
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return 0


# -- records ----------------------------------------------------------------------------------------------------------
def records(path: Path) -> dict[Path, Owner]:
    """{file: owner} of a lock's records that can be read."""
    found = {}
    for file in sorted(path.parent.glob(f"{path.name}.*")):
        with suppress(OSError, ValueError, TypeError):
            found[file] = Owner(**read_json(file, LONGEST_RECORD))
    return found


def all_records(folder: Path) -> dict[str, dict[Path, Owner]]:
    """{lock: its records} of every lock in a folder."""
    names = sorted({file.name.rpartition(".lock.")[0] for file in folder.glob("*.lock.*")})
    return {name: found for name in names if (found := records(folder / f"{name}.lock"))}


def clear(path: Path) -> list[Owner]:
    """Remove the records of a lock whose owners are not at work -> them. Raises Locked where one is: as this host sees
    it, or because the kernel holds the lock for somebody who cannot be seen from here."""
    found = records(path)
    for owner in found.values():
        if owner.state == "working":
            raise Locked(f"{path.stem} is in use by {owner}", f"wait for it, or stop it (kill {owner.pid})")
    if not _unlink(path, found):
        raise Locked(f"{path.stem} is held by a process that cannot be seen from here", "wait for it, or stop it where "
                     "it runs")
    return list(found.values())


def sweep(folder: Path) -> list[str]:
    """Remove the records of owners that are dead, and their locks -> a notice for each that was writing."""
    said = []
    for file in folder.glob("*.lock.*"):                       # of one who died before there was a word in it
        where, _, number = file.name.rpartition(".")[2].partition("-")
        with suppress(OSError, ValueError):
            if where == here() and not file.stat().st_size and started(int(number.partition("-")[0])) is None:
                file.unlink()
    for name, found in all_records(folder).items():
        dead = {file: owner for file, owner in found.items() if owner.state == "dead"}
        with suppress(OSError):
            if dead and _unlink(folder / f"{name}.lock", dead):
                said += [_gone(owner) for owner in dead.values() if owner.mode == "write"]
    return said


def _unlink(path: Path, files: Iterable[Path]) -> bool:
    """Remove records of a lock, and its file where none is left; not while anybody holds it, seen or not -> whether."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for file in files:
            file.unlink(missing_ok=True)
        _drop(path, handle)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True


def _gone(owner: Owner) -> str:
    return f"process {owner.pid}, which made {owner.doing} since {owner.since}, is gone: its lock is cleared"


def _drop(path: Path, handle: int) -> None:
    """Remove a lock's file, unless somebody holds it or is on record."""
    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)               # fails while others read: they remove it
        if not records(path) and _still_there(path, handle):
            path.unlink(missing_ok=True)


# -- holding ----------------------------------------------------------------------------------------------------------
@contextmanager
def locked(path: Path, what: str, *, shared: bool = False, wait: bool = False, patience: float = 0.0,
           doing: str = "", report: Report = silent) -> Iterator[None]:
    """Hold `path` for the block, alone or (shared) beside other readers. what: the thing, for messages; doing: what it
    is held for. wait: stand in line until asked_to_stop(); else raise Locked after `patience` seconds. report: hears of
    dead owners."""
    path.parent.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + patience
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            if not wait and time.monotonic() >= until:
                raise _refused(path, what) from None
            if asked_to_stop():
                raise Interrupted(f"stopped while waiting for {what}", "run the same command again") from None
            time.sleep(POLL_SECONDS if wait else POLL_SECONDS / 10)
            continue
        if _still_there(path, handle):
            break
        os.close(handle)                    # the holder before us removed the file between our open and our lock
    record = None
    try:
        _judge_left_over(path, what, shared, report)
        record = _put_on_record(path, Owner.here("read" if shared else "write", doing or what))
        yield
    finally:
        with suppress(OSError):
            if record:
                record.unlink(missing_ok=True)
        _drop(path, handle)
        os.close(handle)


def _put_on_record(path: Path, owner: Owner) -> Path:
    """-> the record, a file of its own: hosts and containers may have processes of one number."""
    while True:
        record = path.with_name(f"{path.name}.{here()}-{owner.pid}-{next(_numbers)}")
        with suppress(FileExistsError), record.open("x", encoding="utf-8") as file:
            try:
                file.write(json.dumps(asdict(owner)))
                file.flush()
            except OSError:                                              # the disk is full
                record.unlink()
                raise
            return record


def _judge_left_over(path: Path, what: str, shared: bool, report: Report) -> None:
    """We hold the lock: whoever is on record and cannot hold it beside us is dead, or on another host."""
    for file, owner in records(path).items():
        if shared and owner.mode == "read":
            continue                                                        # may well be alive, and does not matter
        if owner.state == "on another host":
            raise Locked(f"{what} was locked by {owner}, and whether that is at work still cannot be seen from here",
                         f"if it is not: videomage unlock {path.stem}")
        file.unlink(missing_ok=True)
        report(note=_gone(owner))


def _refused(path: Path, what: str) -> Locked:
    owners = list(records(path).values())
    if not owners:
        return Locked(f"{what} is in use by another process", "wait, then run this again")
    owner = min(owners, key=lambda owner: (owner.mode != "write", owner.pid == os.getpid()))
    verb = "made" if owner.mode == "write" else "read"
    return Locked(f"{what} is being {verb} by {owner}", "wait, then run this again (videomage unlock shows all locks)")


def _still_there(path: Path, handle: int) -> bool:
    try:
        return path.stat().st_ino == os.fstat(handle).st_ino
    except FileNotFoundError:
        return False
