"""A tiny project on the sprites base for the tests of sweeps, and ways to look at what a sweep left."""
from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from stages.core.workspace import Workspace
from stages.sprites.example import write_example
from stages.sweep.collect import collect
from stages.sweep.grid import parse
from stages.sweep.store import Store

TINY = {"invert": {"token_steps": 1, "token_batch": 1, "inversion_steps": 1},
        "learn-subject": {"steps": 1, "rank": 2, "alpha": 2, "batch": 1, "auxiliary_count": 1, "video_steps": 1,
                          "preview_every": 0},
        "learn-motion": {"steps": 1, "rank": 2, "alpha": 2, "batch": 1},
        "fuse": {"steps": 1, "videos": 1, "video_steps": 1, "compositions": 1, "together": 2},
        "sample": {"steps": 2, "tau": 1, "motion_steps": 2}}
GRID = {"casts": [["toy", "pet"]], "motions": ["chase"], "prompts": ["{motion} in the snow"], "seeds": [0, 1],
        "control": False,
        "rows": {"full": {},
                 "the same": {"sample": {"tau": 1}},
                 "no motion LoRA": {"sample": {"branches": "subject"}, "only": {"seeds": [0]}},
                 "w = 0": {"learn-motion": {"w": 0.0}, "control": True, "only": {"seeds": [0]}},
                 "mean of LoRAs": {"fuse": {"steps": 0}, "only": {"seeds": [0]}}}}
OF_TIME = ("seconds", "cost.seconds", "cost.peak memory")      # columns that no two runs have alike


def make_project(root: Path) -> Path:
    """Two subjects, a clip, two photos each, and GRID as grid.yaml."""
    example = write_example(root, subjects=("toy", "pet"), motion="chase", count=2)
    Workspace.create(root, base="sprites", options=TINY, prompts=["a <toy>"],
                     subjects={"toy": {"class": "circle", "images": "photos/toy"},
                               "pet": {"class": "square", "images": "photos/pet"}},
                     motion={"name": "chase", "clip": "clip.mp4", "prompt": example.prompt})
    write_grid(root, GRID)
    return root


def write_grid(root: Path, grid: dict) -> None:
    (root / "grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))


def store_of(root: Path, grid: dict = GRID) -> Store:
    project = Workspace(root)
    return Store(project, parse(project, grid, "grid"))


def half_done(swept: Path, root: Path) -> Path:
    """A copy in which the subjects and the clip are learned, but not what the clip moves like, nor any video."""
    shutil.copytree(swept, root, symlinks=True)
    for gone in ("samples", "scores", "sweeps", "fused"):
        shutil.rmtree(root / gone)
    for gone in ("learn-motion.json", "lora.safetensors"):
        (root / "motions" / "chase" / gone).unlink()
    return root


@contextmanager
def command(root: Path, *args: str) -> Iterator[subprocess.Popen]:
    """`videomage sweep` in a process of its own, which does not outlive the test."""
    with (root / "said.txt").open("w") as said:
        process = subprocess.Popen([sys.executable, "-m", "videomage_cli.app", "sweep", "grid.yaml", "-p", str(root),
                                    "--device", "cpu", *args], stdout=said, stderr=subprocess.STDOUT)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def ended(root: Path, process: subprocess.Popen, code: int = 0) -> str:
    """What it said."""
    process.wait(timeout=900)
    said = (root / "said.txt").read_text()
    assert process.returncode == code, said
    return said


def swept_again(root: Path, *args: str) -> str:
    with command(root, *args) as process:
        return ended(root, process)


def videos(root: Path) -> dict[str, str]:
    """{frames.png of each sample: its sha256}."""
    found = [path for path in root.rglob("frames.png") if not path.parent.is_symlink()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def table(root: Path) -> list[dict[str, object]]:
    """What is collected, but for what it took."""
    return [{key: value for key, value in line.items() if key not in OF_TIME} for line in collect(store_of(root))]


def stamps(root: Path) -> dict[str, int]:
    """{manifest: when it was written}."""
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.rglob("*.json")
            if not path.is_symlink()}
