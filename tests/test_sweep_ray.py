"""videomage sweep with Ray's workers: the same videos, whoever is killed in between."""
from __future__ import annotations

import json
import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
from sweeping import command, ended, half_done, swept_again, table, videos

pytest.importorskip("ray")


def family(pid: int) -> dict[int, str]:
    """{process: its name} of all that descend from one, after what Ray calls them."""
    parents, names = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    found, new = {}, {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new and child not in found}
        found |= {child: names[child] for child in new}
    return found


def workers(pid: int) -> list[int]:
    return [child for child, name in family(pid).items() if name.startswith("ray::Worker")]


def alive(pid: int) -> bool:
    """Whether a process runs: one that has ended, and whom nobody has asked for, has no command line any more."""
    with suppress(OSError):
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    return False


def until(there, process=None, seconds: float = 600.0):
    """What `there` returns once it is something. process: that should not end before."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and (process is None or process.poll() is None):
        if found := there():
            return found
        time.sleep(0.1)
    raise AssertionError("it did not come")


def test_a_worker_that_is_killed_is_replaced_and_two_make_what_one_makes(swept, tmp_path):
    root = half_done(swept, tmp_path / "project")
    with command(root, "--workers", "2") as process:
        first = until(lambda: len(found := workers(process.pid)) == 2 and found, process)
        until(lambda: list(root.glob(".partial/*/out-*")), process)            # something is in the making
        time.sleep(random.Random("worker").uniform(0, 2))
        os.kill(first[0], signal.SIGKILL)
        ended(root, process)
    assert videos(root) == videos(swept) and table(root) == table(swept)
    tries = root / "sweeps" / "grid" / "attempts.jsonl"
    for line in tries.read_text().splitlines() if tries.is_file() else ():
        entry = json.loads(line)
        assert entry["error"].startswith("its worker died") and not entry["given up"]


def test_a_driver_that_is_killed_takes_its_workers_along_and_goes_on(swept, tmp_path):
    root = half_done(swept, tmp_path / "project")
    with command(root, "--workers", "2") as process:
        until(lambda: list(root.glob(".partial/*/out-*")), process)
        theirs = workers(process.pid)
        time.sleep(random.Random("driver").uniform(0, 3))
        process.send_signal(signal.SIGKILL)
        process.wait()
    until(lambda: not any(alive(pid) for pid in theirs))
    swept_again(root, "--workers", "2")
    assert videos(root) == videos(swept) and table(root) == table(swept)
