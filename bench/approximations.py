"""What the approximations of `sample` do to the demo's result: the oracle's verdicts, seed by seed.

    videomage demo DEMO
    python -m bench.approximations DEMO --seeds 8

Samples of a finished demo's LoRAs, with the options of its project and, row by row, with one approximation each and
with all; the same seeds in every row. It works on a copy: the demo's folder stays as it is.
"""
from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stages.core.video import read_clip
from stages.core.workspace import Workspace
from stages.options import resolve
from stages.sample import sample
from stages.sprites.example import write_example
from stages.sprites.verdict import Verdict, judge

# the preset's 25 steps, 8 of them guided, 10 with the motion branch and with classifier-free guidance; half as many
# steps have half as many of each
HALF = {"solver": "dpm++", "steps": 12, "tau": 4, "motion_steps": 5, "guidance_steps": 5}
ROWS: dict[str, dict[str, object]] = {
    "as the preset has it": {},
    "`--unconditional shared`": {"unconditional": "shared"},
    "`--guidance-steps 5`": {"guidance_steps": 5},
    "`--guide-every 2`": {"guide_every": 2},
    "`--tau 0`": {"tau": 0},
    "12 steps of ddim": {**HALF, "solver": "ddim"},
    "12 steps of dpm++": HALF,
    "all: 12 steps of dpm++, 3 with guidance, shared": {**HALF, "unconditional": "shared", "guidance_steps": 3,
                                                         "guide_every": 2},
}


@dataclass(frozen=True)
class Outcome:
    """Of one row over the seeds: shares of frames that show all subjects, and the worst path of each video."""

    together: np.ndarray
    worst_path: np.ndarray
    passed: int

    @classmethod
    def of(cls, verdicts: list[Verdict]) -> Outcome:
        return cls(np.array([v.together for v in verdicts]), np.array([min(v.paths) for v in verdicts]),
                   sum(v.passed for v in verdicts))

    def against(self, other: Outcome, draws: int = 10_000) -> tuple[float, float, float]:
        """Difference of the share, and its 95 % interval: a bootstrap over seeds, paired."""
        pairs = self.together - other.together
        picked = np.random.default_rng(0).integers(len(pairs), size=(draws, len(pairs)))
        low, high = np.percentile(pairs[picked].mean(1), [2.5, 97.5])
        return float(pairs.mean()), float(low), float(high)


def outcomes(demo: Path, seeds: int) -> dict[str, Outcome]:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "demo"
        shutil.copytree(demo, copy)
        project, example = Workspace(copy), write_example(copy)
        options, found = resolve("sample", project.settings), {}
        for row, other in ROWS.items():
            chosen = replace(options, **other)
            made = [sample(project, [example.wanted], chosen, subjects=example.subjects, seed=seed)[0]
                    for seed in range(seeds)]
            found[row] = Outcome.of([judge(read_clip(video.folder / "frames.png"), example.subjects, example.paths)
                                     for video in made])
            print(line(row, found[row], found["as the preset has it"]), flush=True)
    return found


def line(row: str, outcome: Outcome, plain: Outcome) -> str:
    share, path = outcome.together, outcome.worst_path
    difference, low, high = outcome.against(plain)
    cells: Mapping[str, str] = {
        "row": row, "both": f"{share.mean():.0%} ({share.min():.0%} to {share.max():.0%})",
        "path": f"{path.mean():.2f} ({path.min():.2f})", "passed": f"{outcome.passed} of {len(share)}",
        "difference": f"{difference:+.0%} ({low:+.0%} to {high:+.0%})" if row != "as the preset has it" else ""}
    return "| " + " | ".join(cells.values()) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("demo", type=Path)
    parser.add_argument("--seeds", type=int, default=8)
    given = parser.parse_args()
    print("| sampling | both in sight | worst path (lowest) | over the bar | difference in sight, 95 % |\n"
          "|---|---|---|---|---|")
    outcomes(given.demo, given.seeds)


if __name__ == "__main__":
    main()
