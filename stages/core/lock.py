"""One writer at a time: an flock on a small file that says who holds it. The kernel frees it when the holder dies."""
from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import Interrupted, Locked
from .report import asked_to_stop


@contextmanager
def locked(path: Path, what: str, *, wait: bool = False) -> Iterator[None]:
    """Hold `path` for the block. wait: stand in line until asked_to_stop(); else raise Locked."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(handle, 40).decode(errors="replace").strip() or "another process"
            os.close(handle)
            if not wait:
                raise Locked(f"{what} is being made by {holder}", "wait, then run this again") from None
            if asked_to_stop():
                raise Interrupted(f"stopped while waiting for {what}", "run the same command again") from None
            time.sleep(0.2)
            continue
        if _still_there(path, handle):
            break
        os.close(handle)                    # the holder before us removed the file between our open and our lock
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()}\n".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _still_there(path: Path, handle: int) -> bool:
    try:
        return path.stat().st_ino == os.fstat(handle).st_ino
    except FileNotFoundError:
        return False
