"""make bench: what a step and a video cost, as ratios inside one run, written into docs/performance.md.

    python -m bench.ratios docs/performance.md          # everything, two processes at a time, a thread each
    python -m bench.ratios --part sprites/steps         # one part, printed

Each part runs in a process of its own; what it compares it runs interleaved (timing.py). Seconds are the processor's.
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from time import perf_counter

import torch

from stages.option_tables import fill

from . import start, units
from .tables import ALL_SAVINGS, SAVINGS, tables
from .timing import Cell, a_step, interleaved, machine, whole

LINES = [("start", "bench/videos", "sprites/videos"), ("bench/steps", "sprites/steps")]    # one after the other
ROUNDS = {"start": 5, "bench/steps": 5, "bench/videos": 3, "sprites/steps": 7, "sprites/videos": 5}
STEPS = {"bench": 3, "sprites": 7}                         # of a loop that is timed, the first of them not counted


def cells(part: str, folder: Path) -> dict[str, Cell]:
    """What a part times, by name."""
    from . import peers, rows

    base, kind = part.split("/")
    s, n = rows.setting(base, folder), STEPS[base]
    if kind == "videos":
        videos = {"video, plain": {"branches": "none"}, "video": {}, "video, all of them *": ALL_SAVINGS}
        if base == "sprites":
            videos |= {f"video, {text}": options for text, options in SAVINGS.items()}
        return {name: partial(whole, partial(rows.sampling, s, **{"steps": 50, "tau": 15, **options}))
                for name, options in videos.items()}

    def stepping(loop, *args: object, **options: object) -> Cell:
        return lambda: a_step(lambda report: loop(*args, report=report, **options))

    depths = ("mid", "up_blocks.1", "all") if base == "bench" else ("mid", "up_blocks.0", "all")
    branch, both, vectors = rows.alone(s), rows.both(s), s.vectors("a <toy> chases a <pet>")
    rank, x0 = s.options["learn-motion"].rank, s.clip.repeat(s.options["learn-motion"].batch, 1, 1, 1, 1)
    naive = dict(guidance=9.0, alpha=1e4, steps=n)
    return {
        "plain": stepping(rows.sampling, s, n, branches="none"),
        "u": stepping(rows.one_row, s, n),
        "unguided": stepping(rows.sampling, s, n),
        **{f"guided, {depth}": stepping(rows.sampling, s, n, tau=n, layers=depth) for depth in depths},
        "bare, motion": stepping(rows.bare_motion, s, n),
        "motion, w = 0": stepping(rows.motion, s, n, w=0),
        "motion": stepping(rows.motion, s, n),
        "motion, bank": stepping(rows.motion, s, n, bank=4),
        "bare, subject": stepping(rows.bare_subject, s, n),
        "subject": stepping(rows.subject, s, n),
        "bare, fuse": stepping(rows.bare_fusing, s, n),
        "fuse": stepping(rows.fusing, s, n),
        "peer, sampling": stepping(peers.sample_plain, s.backbone, s.clip, branch, steps=n, guidance=9.0),
        "peer, SCS unguided": stepping(peers.sample_naively, s.backbone, s.clip, *both, tau=0, **naive),
        "peer, SCS guided": stepping(peers.sample_naively, s.backbone, s.clip, *both, tau=n, **naive),
        "peer, LoRA": stepping(peers.train_lora, s.backbone, x0, vectors, steps=n, rank=rank),
        "peer, MotionDirector": stepping(peers.train_director, s.backbone, x0, vectors, steps=n, rank=rank),
    }


def measured(part: str, rounds: int, only: str = "") -> dict[str, list[float]]:
    """{cell: seconds in each round}, in this process."""
    def tell(line: str) -> None:
        print(f"{part}: {line}", file=sys.stderr, flush=True)

    if part == "start":
        return start.seconds(rounds)
    with tempfile.TemporaryDirectory() as folder:
        chosen = {name: cell for name, cell in cells(part, Path(folder)).items() if only in name}
        return interleaved(chosen, rounds, tell)


def in_a_process(part: str, rounds: int) -> dict[str, list[float]]:
    """The same in a process of its own, with one thread."""
    done = subprocess.run([sys.executable, "-m", "bench.ratios", "--part", part, "--rounds", str(rounds)],
                          stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parent.parent,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    return json.loads(done.stdout)


def everything(jobs: int) -> dict[str, dict[str, list[float]]]:
    """All parts, so many at a time."""
    def line(parts: tuple[str, ...]) -> dict[str, dict[str, list[float]]]:
        return {part: in_a_process(part, ROUNDS[part]) for part in parts}

    with ThreadPoolExecutor(jobs) as pool:
        return {part: seconds for found in pool.map(line, LINES) for part, seconds in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path, nargs="?", help="where its tables are written between their marks")
    parser.add_argument("--part", choices=ROUNDS, help="this part alone, in this process: its seconds, as JSON")
    parser.add_argument("--rounds", type=int, help="of a part")
    parser.add_argument("--only", default="", help="of a part: cells with this in their name")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    args = parser.parse_args()
    torch.set_num_threads(1)                                           # of the parts, and of what is counted below
    if args.part:
        print(json.dumps(measured(args.part, args.rounds or ROUNDS[args.part], args.only)))
        return
    began = perf_counter()
    seconds = everything(args.jobs)
    with tempfile.TemporaryDirectory() as folder:
        found = {**tables(seconds, Path(folder)), "units": units.table(Path(folder) / "counted")}
    found["machine"] = f"{machine()}; {(perf_counter() - began) / 60:.0f} minutes."
    if args.page:
        filled = {mark: lambda text=text: text for mark, text in found.items()}
        args.page.write_text(fill(args.page.read_text(encoding="utf-8"), filled), encoding="utf-8")
    for mark, text in found.items():
        print(f"\n{mark}\n{text}")


if __name__ == "__main__":
    main()
