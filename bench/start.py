"""From the start of `videomage learn-motion` to its first training step, beside a script that only reads the denoiser.

    python -m bench.start                   # a table; --repetitions N

Each is a process of its own, and is ended when it has come so far; the first step itself is counted too, because the
command speaks after it. Caches are warm: all files were read before, and latents and text lie in the project's .cache/.
Seconds are the processor's, of one thread.
"""
from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from .timing import Cell, interleaved, ratio, spread

LOAD = """
import sys
from diffusers import UNet3DConditionModel
UNet3DConditionModel.from_pretrained(sys.argv[1])
print("loaded", flush=True)
"""
COMMAND = "from videomage_cli.app import main; main()"


def project(folder: Path) -> Path:
    """A project on the built-in base whose motion waits to be learned. Its actors' tokens are hardly learned, which
    takes no part here."""
    from stages.core.workspace import Workspace
    from stages.invert import invert
    from stages.segment import segment
    from stages.sprites.example import MOTION, write_example

    example = write_example(folder)
    made = Workspace.create(folder, motion={"name": MOTION, "clip": "clip.mp4", "prompt": example.prompt},
                            options={"invert": {"token_steps": 1, "inversion_steps": 1}})
    segment(made, f"motions/{MOTION}")
    invert(made)
    return folder


def until(mark: str, code: str, *arguments: object) -> float:
    """Seconds of a Python process from its start until it prints a line with this mark, or ends where there is none."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    said, seen = [], False
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          cwd=Path(__file__).parent.parent, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        for line in process.stdout:
            said.append(line)
            if seen := bool(mark) and mark in line:
                process.kill()
                break
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if not seen and (mark or process.returncode):
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {''.join(said)}")
    return used.ru_utime + used.ru_stime


def cells(folder: Path) -> dict[str, Cell]:
    """What is timed, by name, in a project that is made in `folder`. Everything has run once when this returns."""
    from stages.backbones import locate

    where = project(folder)
    found = {"load": partial(until, "loaded", LOAD, locate("sprites") / "unet"),
             "first step": partial(until, "learn-motion: 1 of", COMMAND, "learn-motion", "-p", where),
             "--help": partial(until, "", COMMAND, "--help"),
             "status": partial(until, "", COMMAND, "status", "-p", where)}
    for cell in found.values():
        cell()
    return found


def seconds(repetitions: int) -> dict[str, list[float]]:
    """{name of a cell: seconds in each round}."""
    with tempfile.TemporaryDirectory() as folder:
        return interleaved(cells(Path(folder)), repetitions)


def ratios(repetitions: int) -> dict[str, list[float]]:
    """{"first step / load": of each round}."""
    found = seconds(repetitions)
    return {"first step / load": [a / b for a, b in zip(found["first step"], found["load"])]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=9)
    found = seconds(parser.parse_args().repetitions)
    print("| | seconds, median (lowest to highest) |\n|---|---|")
    for name, values in found.items():
        print(f"| {name} | {spread(values)} |")
    print(f"| first step / load | {ratio(found, 'first step', 'load')} |")


if __name__ == "__main__":
    main()
