"""The cache: the same bits computed or read, another value for another content, nothing lost where it is deleted."""
from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.core import cache as caches
from stages.core.cache import Cache, digest
from stages.core.errors import BadInput, Locked
from stages.core.workspace import Workspace

SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture
def project(tmp_path) -> Workspace:
    return Workspace.create(tmp_path / "project")


def notes(into: list):
    return lambda **facts: into.append(facts)


def entries(project: Workspace, kind: str = "*") -> list[Path]:
    """The files of the cache."""
    return sorted((project.root / ".cache").glob(f"{kind}/*"))


class Counted:
    """A computation that counts how often it was asked for."""

    def __init__(self, value: torch.Tensor) -> None:
        self.value, self.times = value, 0

    def __call__(self) -> torch.Tensor:
        self.times += 1
        return self.value


# -- one value --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", [torch.randn(2, 3, 4).transpose(0, 2), torch.randn(3, dtype=torch.float64),
                                   torch.randn(4, 5).to(torch.bfloat16), torch.rand(2, 3) > 0.5, torch.tensor(-0.0),
                                   torch.tensor([float("nan"), float("inf")])])
def test_a_value_is_read_as_it_was_computed(project, value):
    make = Counted(value)
    cold, warm = (Cache(project, ["base"]).tensor("kind", [1], make) for _ in range(2))
    assert make.times == 1 and cold.dtype == warm.dtype == value.dtype
    assert cold.stride() == warm.stride() and cold.is_contiguous()
    assert digest(cold) == digest(warm) == digest(value)
    assert not list(project.partial.iterdir())


def test_several_tensors_may_be_one_value(project):
    value = {"target": torch.randn(2, 3), "t": torch.arange(4)}
    found = [Cache(project).tensors("targets", [7], lambda: value) for _ in range(2)]
    assert all(torch.equal(tensors[name], value[name]) for tensors in found for name in value)
    assert len(entries(project)) == 1


def test_another_content_is_another_value(project):
    make, pixels = Counted(torch.zeros(1)), np.zeros((2, 4), np.uint8)
    base = Cache(project, ["base", "fp32"])
    other = pixels.copy()
    other[1, 3] = 1
    keys = [[pixels], [other], [pixels.reshape(4, 2)], [pixels.astype(np.int8)], [pixels, None], [[pixels]], ["a", "b"],
            ["ab"], ["a,b"], [["a"], "b"], [1], [1.0], [True], ["1"], [{"a": 1}], [{"a": 2}], [{"b": 1}], [], [""]]
    for key in keys:
        base.tensor("kind", key, make)
    assert make.times == len(keys) == len(entries(project))
    Cache(project, ["base", "fp16"]).tensor("kind", [1], make)
    Cache(project, ["another", "fp32"]).tensor("kind", [1], make)
    base.tensor("another", [1], make)
    assert make.times == len(keys) + 3
    base.tensor("kind", [torch.from_numpy(pixels)], make), base.tensor("kind", [{"a": 1}], make)
    assert make.times == len(keys) + 3


def test_other_libraries_are_another_value(project, monkeypatch):
    make = Counted(torch.zeros(1))
    Cache(project).tensor("kind", [1], make)
    monkeypatch.setattr(caches, "versions", lambda: {"torch": "1.0"})
    Cache(project).tensor("kind", [1], make)
    assert make.times == 2


def test_a_key_holds_content_and_no_name(project):
    with pytest.raises(TypeError, match="no PosixPath"):
        Cache(project).tensor("kind", [Path("clip.mp4")], Counted(torch.zeros(1)))


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:7], lambda data: b"",
                                    lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: b"{" + data])
def test_a_damaged_file_is_made_anew_with_a_note(project, damage):
    make, said = Counted(torch.arange(5.0)), []
    Cache(project).tensor("kind", [1], make)
    path, = entries(project)
    path.write_bytes(damage(path.read_bytes()))
    again = Cache(project, report=notes(said)).tensor("kind", [1], make)
    assert torch.equal(again, make.value) and make.times == 2
    assert [facts["note"] for facts in said] == [f".cache/kind/{path.name} is damaged: what was in it is made anew"]
    assert torch.equal(Cache(project).tensor("kind", [1], make), make.value) and make.times == 2


def test_what_fails_leaves_nothing(project):
    def fails():
        raise BadInput("no clip", "give one")

    for _ in range(2):
        with pytest.raises(BadInput, match="no clip"):
            Cache(project).tensor("kind", [1], fails)
    assert not entries(project) and not list(project.partial.iterdir())


def test_nothing_is_kept_where_nobody_asks_for_it(project):
    make, base = Counted(torch.randn(2, 3).T), Cache(project)
    for cache, keep in ((Cache(), True), (base, False)):
        assert torch.equal(cache.tensor("kind", [1], make, keep=keep), make.value)
        assert not cache.has("kind", [1])
    assert make.times == 2 and not entries(project)
    base.tensor("kind", [1], make)
    assert base.has("kind", [1]) and not base.has("kind", [2])


# -- its size ---------------------------------------------------------------------------------------------------------
def test_what_was_longest_not_used_goes_first(project, monkeypatch):
    values = {k: Counted(torch.full((1000,), float(k))) for k in range(5)}
    for k, make in values.items():
        Cache(project).tensor("kind", [k], make)
    size = entries(project)[0].stat().st_size
    for path in entries(project):                         # in the order in which they were made, days ago
        k = int(caches.safe_open(path, "pt").get_tensor("value")[0])
        os.utime(path, (time.time() - 1e6 + k,) * 2)
    Cache(project).tensor("kind", [0], values[0])         # used: now it is the youngest
    monkeypatch.setattr(caches, "MOST", 3 * size)
    Cache(project).tensor("kind", [1], values[1])         # reading takes nothing away
    assert len(entries(project)) == 5
    Cache(project).tensor("kind", [5], Counted(torch.zeros(1000)))
    assert [Cache(project).has("kind", [k]) for k in range(6)] == [True, True, False, False, True, True]
    monkeypatch.setattr(caches, "MOST", 0)                # of a run's own things none are taken
    os.utime(project.cache("kind") / entries(project)[0].name)
    Cache(project).tensor("kind", [6], Counted(torch.zeros(1000)))
    assert all(Cache(project).has("kind", [k]) for k in (0, 1, 5, 6)) and not Cache(project).has("kind", [4])


# -- several processes ------------------------------------------------------------------------------------------------
def _make_slowly(root: Path, log: Path, jobs: int) -> None:
    def make(k: int):
        def slowly() -> torch.Tensor:
            with log.open("a") as file:
                file.write(f"{k} {os.getpid()}\n")
            time.sleep(0.5)
            return torch.full((3,), float(k))
        return slowly

    found = Cache(Workspace(root)).several("kind", [([k], make(k)) for k in range(jobs)])
    assert torch.stack(found)[:, 0].tolist() == list(range(jobs))


@pytest.mark.parametrize("jobs", [1, 4])
def test_two_processes_share_the_work(project, tmp_path, jobs):
    log = tmp_path / "log"
    processes = [SPAWN.Process(target=_make_slowly, args=(project.root, log, jobs)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert sorted(int(line.split()[0]) for line in log.read_text().splitlines()) == list(range(jobs))   # each once
    assert len(entries(project)) == jobs and not list(project.partial.iterdir())


def test_who_does_not_want_to_wait_is_told(project):
    with project.lock(f"kind-{Cache(project)._path('kind', [1]).stem[:16]}"), pytest.raises(Locked):
        Cache(project).tensor("kind", [1], Counted(torch.zeros(1)), wait=False)


def test_of_several_the_others_are_made_where_one_fails(project):
    def fails():
        raise BadInput("no clip", "give one")

    told, made, good = [], [], Counted(torch.ones(1))
    jobs = [([0], good), ([1], fails), ([2], good)]
    with pytest.raises(BadInput):
        Cache(project).several("kind", jobs[1:])
    found = Cache(project).several("kind", jobs, made=made.append, failed=lambda k, error: told.append((k, error.what)))
    assert len(found) == 2 and told == [(1, "no clip")] and made == [0, 2]
    assert len(Cache(project).several("kind", [jobs[0], jobs[2]], made=made.append)) == 2 and made == [0, 2]
