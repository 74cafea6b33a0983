"""Calls side by side in processes of their own."""
from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from stages.core.errors import BadInput, Interrupted
from stages.core.jobs import side_by_side
from stages.core.report import ask_to_stop, asked_to_stop, clear_stop


def _threads(report) -> tuple[int, int]:
    import torch

    report(step=1, of=1)
    return torch.get_num_threads(), os.getpid()


def _meet(own: Path, other: Path, report) -> bool:
    """Whether the other call is under way at the same time."""
    own.touch()
    return any(other.exists() or time.sleep(0.05) for _ in range(1200))


def _leave(path: Path, report) -> None:
    time.sleep(0.3)
    path.touch()


def _is_there(path: Path, report) -> bool:
    return path.exists()


def _fail(report) -> None:
    raise BadInput("the clip is empty", "choose another")


def _until_stopped(begun: Path, ended: Path, report) -> None:
    begun.touch()
    for _ in range(1200):
        if asked_to_stop():
            ended.touch()
            raise Interrupted("stopped")
        time.sleep(0.05)


def test_calls_run_in_processes_of_one_thread_and_report_under_their_name():
    heard = []
    found = side_by_side({"a": _threads, "b": _threads}, workers=2, report=lambda **facts: heard.append(facts))
    assert list(found) == ["a", "b"] and all(n == 1 and pid != os.getpid() for n, pid in found.values())
    assert sorted(heard, key=str) == [{"call": "a", "step": 1, "of": 1}, {"call": "b", "step": 1, "of": 1}]


def test_calls_run_at_once_and_one_waits_for_what_it_needs(tmp_path):
    a, b, c = (tmp_path / name for name in "abc")
    found = side_by_side({"later": partial(_is_there, c), "a": partial(_meet, a, b), "b": partial(_meet, b, a),
                          "first": partial(_leave, c)}, workers=2, after={"later": ["first"]})
    assert list(found.values()) == [True, True, True, None]


def test_an_error_arrives_whole_and_stops_the_others(tmp_path):
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    with pytest.raises(BadInput) as failure:
        side_by_side({"long": partial(_until_stopped, begun, ended), "bad": _fail}, workers=2)
    assert (failure.value.what, failure.value.remedy) == ("the clip is empty", "choose another")
    assert ended.exists() or not begun.exists()


def test_a_request_to_stop_reaches_the_calls(tmp_path):
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    threading.Thread(target=lambda: [time.sleep(0.05) for _ in range(1200) if not begun.exists()] and ask_to_stop()
                     ).start()
    try:
        with pytest.raises(Interrupted):
            side_by_side({"long": partial(_until_stopped, begun, ended)}, workers=1)
    finally:
        clear_stop()
    assert ended.exists()


def _work_on(path: Path, report) -> None:
    while True:
        path.write_text(str(os.getpid()))
        time.sleep(0.05)


def _still_written(path: Path) -> bool:
    before = path.stat().st_mtime_ns
    time.sleep(0.5)
    return path.stat().st_mtime_ns != before


def test_a_killed_parent_leaves_no_worker_behind(tmp_path):
    at_work = tmp_path / "at-work"
    parent = subprocess.Popen([sys.executable, "-c", f"""if __name__ == "__main__":
        from functools import partial
        from pathlib import Path
        from stages.core.jobs import side_by_side
        from tests.test_jobs import _work_on
        side_by_side({{"work": partial(_work_on, Path({str(at_work)!r}))}}, workers=1)"""],
                              cwd=Path(__file__).parents[1])
    assert any(at_work.exists() or time.sleep(0.05) for _ in range(1200))
    parent.kill()
    parent.wait()
    assert any(not _still_written(at_work) for _ in range(20))
