"""What safety costs: the share of a training run that goes into checkpoints, hashes and waiting for the disk.

    videomage demo DEMO
    python -m bench.safety DEMO

Every stage that trains is run again, with the options of a finished demo's project, and timed: the whole call, and in
it the checkpoints, the hashes of inputs and results, and the publishing of what was made (fsync, rename). The demo
stays as it is: the work is done on a copy beside it, on the same disk.
"""
from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.core import store
from stages.core.checkpoints import Checkpoints
from stages.core.workspace import Workspace
from stages.fuse import fuse
from stages.invert import invert
from stages.learn_motion import learn_motion
from stages.learn_subject import learn_subject

PARTS: dict[str, tuple[object, tuple[str, ...]]] = {
    "checkpoints": (Checkpoints, ("save", "restore")),
    "hashes": (Workspace, ("sha256",)),
    "fsync, rename": (store, ("publish", "carry_out", "settle", "probe"))}


@contextmanager
def watched() -> Iterator[dict[str, float]]:
    """Inside, PARTS are timed -> {part: seconds}, of what is not inside another part."""
    seconds: dict[str, float] = defaultdict(float)
    inside = []

    def timed(part: str, function: Callable) -> Callable:
        def wrapped(*args: object, **how: object) -> object:
            inside.append(part)
            started = time.perf_counter()
            try:
                return function(*args, **how)
            finally:
                inside.pop()
                if not inside:
                    seconds[part] += time.perf_counter() - started
        return wrapped

    before = [(owner, name, getattr(owner, name)) for owner, names in PARTS.values() for name in names]
    try:
        for part, (owner, names) in PARTS.items():
            for name in names:
                setattr(owner, name, timed(part, getattr(owner, name)))
        yield seconds
    finally:
        for owner, name, function in before:
            setattr(owner, name, function)


def costs(demo: Path) -> None:
    """Print a row for each stage."""
    stages = {"invert": invert, "learn-subject": learn_subject, "learn-motion": learn_motion, "fuse": fuse}
    with tempfile.TemporaryDirectory(dir=demo.parent) as copy:
        root = Path(copy) / "project"
        shutil.copytree(demo, root)
        for stage, function in stages.items():
            project = Workspace(root)
            what = sorted(project.settings.subjects)
            first = {"learn-subject": what[0], "fuse": what}.get(stage, project.motion().name)
            started = time.perf_counter()
            with watched() as seconds:
                function(project, first, force=True)
            whole = time.perf_counter() - started
            shares = [f"{seconds[part] / whole:.2%}" for part in PARTS]
            print(f"| {stage} | {whole:.0f} s | {' | '.join(shares)} | {sum(seconds.values()) / whole:.2%} |")


def main() -> None:
    parser = argparse.ArgumentParser(description="What checkpoints, hashes and flushes cost a training run.")
    parser.add_argument("demo", type=Path, help="the folder of a finished `videomage demo`")
    given = parser.parse_args()
    print(f"| stage | whole run | {' | '.join(PARTS)} | together |\n|---|---|{'---|' * (len(PARTS) + 1)}")
    costs(given.demo)


if __name__ == "__main__":
    main()
