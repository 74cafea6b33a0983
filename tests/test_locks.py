"""Who may work on what at the same time, and what is said to the one who has to wait."""
from __future__ import annotations

import itertools
import json
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from test_cli import run
from test_workspace import make, make_all, plan_of, root  # noqa: F401 (root is a fixture)

from stages.core import lock
from stages.core.errors import Locked
from stages.core.lock import Owner, locked
from stages.core.workspace import Workspace

HOLD = """
import sys, time
from pathlib import Path
from stages.core.lock import locked
with locked(Path(sys.argv[1]), "it", shared=sys.argv[2] == "read", doing="fuse 'a+b'"):
    print("held", flush=True)
    time.sleep(600)
"""


class Holder:
    """Another process that holds a lock until it is killed."""

    def __init__(self, path: Path, mode: str = "write") -> None:
        self.process = subprocess.Popen([sys.executable, "-c", HOLD, str(path), mode], stdout=subprocess.PIPE,
                                        text=True)
        assert self.process.stdout.readline() == "held\n"

    def __enter__(self) -> Holder:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()


def leave_record(path: Path, **changed: object) -> Owner:
    """A lock as an owner leaves it who was killed."""
    owner = replace(Owner.here("write", "fuse 'a+b'"), **changed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    path.with_name(f"{path.name}.1-0").write_text(json.dumps(asdict(owner)))
    return owner


def test_readers_share_and_exclude_the_writer(tmp_path):
    path = tmp_path / "x.lock"
    with Holder(path, "read") as holder, locked(path, "it", shared=True), pytest.raises(
            Locked, match=rf"it is being read by process {holder.process.pid} \(fuse 'a\+b'; -c ") as no, \
            locked(path, "it"):
        pass
    assert no.value.exit_code == 5
    with Holder(path) as holder, pytest.raises(Locked, match=f"being made by process {holder.process.pid} "), \
            locked(path, "it", shared=True):
        pass
    with locked(path, "it"):
        pass
    assert not list(tmp_path.iterdir())                              # of the killed ones, too, nothing is left


def test_what_something_is_made_from_is_not_remade_meanwhile(root):  # noqa: F811
    make_all(root)
    with plan_of(root, "fuse", "pet+toy", seed=5).making() as out:
        (out / "lora.safetensors").write_text("x")
        with pytest.raises(Locked, match=r"learn-subject 'toy' is being read by process .*\(fuse 'pet\+toy'"):
            make(root, "learn-subject", "toy", seed=4)
        make(root, "learn-motion", "chase", seed=4)                     # of which no fusion is made
    make(root, "learn-subject", "toy", seed=4)
    with plan_of(root, "learn-subject", "toy", seed=6).making() as out:
        (out / "lora.safetensors").write_text("x")
        with pytest.raises(Locked, match="learn-subject 'toy' is being made"):
            make(root, "fuse", "pet+toy", seed=7, force=True)


def test_the_dead_are_cleared_with_a_notice(tmp_path):
    for changed in ({"pid": 2 ** 22 + 1}, {"started": 1}, {"boot": "another"}):
        path, said = tmp_path / "x.lock", []
        leave_record(path, **changed)
        with locked(path, "it", report=lambda **facts: said.append(facts["note"])):              # noqa: B023
            assert len(lock.records(path)) == 1
        assert len(said) == 1 and "is gone" in said[0] and not list(tmp_path.iterdir())


def test_one_of_another_host_is_never_cleared_silently(tmp_path):
    path = tmp_path / "x.lock"
    leave_record(path, host="elsewhere", boot="another")
    for shared in (False, True):
        with pytest.raises(Locked, match=f"process {os.getpid()} on elsewhere .*videomage unlock x"), \
                locked(path, "it", shared=shared):
            pass
    assert lock.sweep(tmp_path) == [] and len(lock.records(path)) == 1
    assert [owner.host for owner in lock.clear(path)] == ["elsewhere"]
    with locked(path, "it"):
        pass


def test_a_record_of_another_host_is_not_taken_for_ours(tmp_path, monkeypatch):
    """Containers have processes of one number: a record under the very name that ours would get stays."""
    path, name = tmp_path / "x.lock", f"x.lock.{lock.here()}-{os.getpid()}-7"
    leave_record(path, host="elsewhere", boot="another")
    path.with_name("x.lock.1-0").rename(tmp_path / name)
    monkeypatch.setattr(lock, "_numbers", itertools.count(7))
    for _ in range(2):
        with pytest.raises(Locked, match="videomage unlock x"), locked(path, "it"):
            pass
    record = json.loads((tmp_path / name).read_text())
    (tmp_path / name).write_text(json.dumps(record | {"mode": "read"}))
    monkeypatch.setattr(lock, "_numbers", itertools.count(7))
    with locked(path, "it", shared=True):                                # beside a reader of another host
        assert len(lock.records(path)) == 2
    assert json.loads((tmp_path / name).read_text())["host"] == "elsewhere"


def test_whoever_holds_a_lock_unseen_is_left_alone(tmp_path):
    """A process that /proc does not show (of another container) looks dead by its record; the kernel knows better."""
    path = tmp_path / "x.lock"
    with Holder(path):
        file, owner = next(iter(lock.records(path).items()))
        file.write_text(json.dumps(asdict(owner) | {"pid": 2 ** 22 + 1}))
        assert lock.sweep(tmp_path) == [] and len(lock.records(path)) == 1
        with pytest.raises(Locked, match="x is held by a process that cannot be seen from here"):
            lock.clear(path)
    assert len(lock.sweep(tmp_path)) == 1 and not list(tmp_path.iterdir())


def test_an_empty_record_of_the_dead_is_swept(tmp_path):
    empty = [tmp_path / f"x.lock.{lock.here()}-{pid}-0" for pid in (2 ** 22 + 1, os.getpid())]
    for file in (*empty, tmp_path / "x.lock.01234567-1-0"):                  # of another host: nobody knows
        file.touch()
    assert lock.sweep(tmp_path) == []
    assert sorted(tmp_path.iterdir()) == sorted([empty[1], tmp_path / "x.lock.01234567-1-0"])


def test_a_full_disk_leaves_no_record(tmp_path):
    code = ("import resource, sys; from pathlib import Path; from stages.core.lock import locked\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
            "with locked(Path(sys.argv[1]), 'x'): pass")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "x.lock")], stderr=subprocess.PIPE, text=True)
    assert "File too large" in done.stderr and not list(tmp_path.iterdir())


def test_a_record_that_is_damaged_disturbs_nobody(tmp_path):
    path = tmp_path / "x.lock"
    path.with_name("x.lock.1-0").write_text("[" * 100_000)
    assert lock.records(path) == {} and lock.sweep(tmp_path) == []
    with locked(path, "it"):
        pass


def test_a_killed_stage_is_told_of_by_the_next(root):  # noqa: F811
    leave_record(root / ".partial" / "learn-subject-toy.lock", pid=2 ** 22 + 1, doing="learn-subject 'toy'")
    left = root / ".partial" / "learn-subject-toy" / "out-7"
    left.mkdir(parents=True)
    (left / "lora.safetensors").write_text("half")
    said, plan = [], plan_of(root, "learn-subject", "toy")
    assert not left.exists()
    with plan.making(report=lambda **facts: said.append(facts["note"])) as out:
        (out / "lora.safetensors").write_text("whole")
    assert len(said) == 1 and "learn-subject 'toy'" in said[0] and "is gone" in said[0]
    assert not [path for path in (root / ".partial").rglob("*") if path.is_file()]


def test_who_is_at_work_is_left_alone(root):  # noqa: F811
    path = root / ".partial" / "learn-subject-toy.lock"
    with Holder(path) as holder:
        working = root / ".partial" / "learn-subject-toy" / "out-7"
        working.mkdir(parents=True)
        Workspace(root)
        assert working.exists() and len(lock.records(path)) == 1
        shown, _ = run(root, "unlock", "--json")
        (row,) = json.loads(shown)
        assert row["lock"] == "learn-subject-toy" and row["state"] == "working" and row["pid"] == holder.process.pid
        assert f"kill {holder.process.pid}" in run(root, "unlock", "learn-subject-toy", code=5)[1]
        assert str(holder.process.pid) in run(root, "status")[1]


def test_unlock_shows_and_clears(root):  # noqa: F811
    assert "nothing is locked" in run(root, "unlock")[1]
    leave_record(root / ".partial" / "fuse-a+b.lock", host="elsewhere")
    shown, _ = run(root, "unlock")
    assert "elsewhere" in shown and "on another host" in shown
    assert "Did you mean 'fuse-a+b'" in run(root, "unlock", "fuse-ab", code=3)[1]
    assert "cleared: fuse-a+b" in run(root, "unlock", "fuse-a+b")[1]
    assert "nothing is locked" in run(root, "unlock")[1]


def test_an_owner_says_when_its_process_started():
    me = Owner.here("write", "it")
    assert me.state == "working" and me.host == platform.node()
    if Path("/proc/self/stat").exists():
        ticks = os.sysconf("SC_CLK_TCK")
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        assert 0 < me.started / ticks <= uptime and me.boot
    child = subprocess.Popen([sys.executable, "-c", ""])
    time.sleep(0.5)                                                  # it has ended, and nobody has asked for it
    assert replace(me, pid=child.pid).state == "dead"
    child.wait()


def test_what_a_killed_process_had_half_written_is_swept(root):  # noqa: F811
    from stages.core import store

    with store.replacing(root / ".cache" / "value", root / ".partial") as half:
        half.write_text("half")
        name = half.name
        Workspace(root)
        assert half.exists()                                         # we are at work on it
    assert (root / ".cache" / "value").read_text() == "half"
    mine, _, thread = name.rpartition("-")[0].rpartition("-")[0], None, name.rpartition("-")[2]
    dead, elsewhere = (root / ".partial" / f"{owner}-{thread}" for owner in (
        f"{mine}-{2 ** 22 + 1}", f".value.00000000-{os.getpid()}"))
    for path in (dead, elsewhere):
        path.write_text("half")
    Workspace(root)
    assert not dead.exists() and elsewhere.exists()
    os.utime(elsewhere, (0, 0))
    Workspace(root)
    assert not elsewhere.exists()
