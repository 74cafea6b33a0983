"""How good each part is by itself, by the pixel oracle: python -m stages.evidence.alone DIR

    a subject alone      "a <toy> in the snow", its own LoRA, no motion
    a fusion alone       "a <toy> and a <pet> in the snow", the fused LoRA, no motion
    a motion alone       "a green circle is chasing a yellow square on the grass": things that the base knows and the
                         clip does not show; with the motion LoRA and without, with the clip's noise and without

Whether things move as in the clip is one question, who takes which path another: each has its column. The strangers'
colours are dealt out both ways round, for the one most like an actor of the clip is drawn to that actor's path. Each
part is guided in every step, as any prompt is: what the whole method leaves out of its motion branch its subject branch
has, and what it leaves out of its last steps the recast noise has. Results: DIR/alone.json.
"""
from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product
from pathlib import Path

import numpy as np

from ..backbones import identity_of
from ..core.report import Report, silent
from ..core.store import write
from ..core.video import read_frames
from ..core.workspace import Workspace
from ..options import SampleOptions, resolve
from ..orders import sample_plans
from ..prompts import motion_prompt, placeholder, slug
from ..sample import make_samples
from ..sprites.example import write_clip
from ..sprites.looks import SUBJECTS, Look
from ..sprites.oracle import find
from ..sprites.verdict import correlation
from . import CONFIRMATION, DEVELOPMENT, MOTIONS

PLACES = ("in the snow", "on the grass")
SEEDS = (0, 1, 2)
PARTS = {f"{what}, beta = {share}": {"branches": branches, "beta": beta}
         for what, branches in (("motion", "motion"), ("no LoRA", "none"))
         for share, beta in (("the preset's", None), (0.3, 0.3), (0, 0.0))}      # 0.3: the paper's
SHAPES = ("circle", "square", "triangle")       # strangers: none of them is an actor of a clip
COLOURS = (("green", "yellow", "red"), ("yellow", "green", "red"))
CASTS = (*DEVELOPMENT, *CONFIRMATION)


@dataclass(frozen=True)
class Order:
    """A video to make, and what shall be seen in it. paths: (F, 2) of each look, or None where none is asked for."""

    part: str
    what: str
    prompt: str
    subjects: tuple[str, ...]
    motion: str
    options: SampleOptions
    looks: tuple[Look, ...]
    paths: tuple[np.ndarray, ...] | None = None


def orders(project: Workspace, casts: Sequence[Sequence[str]] = CASTS) -> Iterator[Order]:
    """Every video but for its seed."""
    usual = resolve("sample", project.settings)
    guided = replace(usual, guidance_motion=None, guidance_steps=None)
    for place in PLACES:
        for name in dict.fromkeys(name for cast in casts for name in cast):
            yield Order("subject", name, f"a {placeholder(name)} {place}", (name,), "none", guided,
                        (SUBJECTS[name][0],))
        for cast in casts:
            text = " and ".join(f"a {placeholder(name)}" for name in cast)
            yield Order("fusion", "+".join(cast), f"{text} {place}", tuple(cast), "none", guided,
                        tuple(SUBJECTS[name][0] for name in cast))
    for actors in sorted({len(cast) for cast in casts}):
        for motion, colours in product(MOTIONS, COLOURS):
            looks = tuple(Look(shape, colour) for shape, colour in zip(SHAPES[:actors], colours))
            name = motion if actors == 2 else f"{motion}-3"
            asked = motion_prompt(project.motion(name).prompt)
            prompt = asked.words
            for actor, look in zip(asked.actors, looks):
                prompt = prompt.replace(actor, f"{look.colour} {look.shape}")
            _, truth = write_clip(project.locate(project.motion(name).clip), motion, actors)
            paths = tuple(actor.path for actor in truth.actors)
            for part, options in PARTS.items():
                given = {key: value for key, value in options.items() if value is not None}
                yield Order(part, name, f"{prompt} {PLACES[1]}", (), name, replace(guided, **given), looks, paths)


def followed(tracks: Sequence[np.ndarray], paths: Sequence[np.ndarray]) -> tuple[float, float]:
    """The worst correlation of a track (F, 2) with its role's path: (as the roles were asked for, under the best
    assignment of tracks to paths)."""
    worst = [min(correlation(track, path) for track, path in zip(tracks, order)) for order in permutations(paths)]
    return worst[0], max(worst)


def measure(project: Workspace, casts: Sequence[Sequence[str]] = CASTS, *, device: str = "cpu",
            report: Report = silent) -> list[dict]:
    """A line for each video: {part, what, prompt, seed, together, paths, moved: `followed` by whom it was asked of, and
    by anybody}."""
    base, lines = identity_of(project), []
    wanted = list(orders(project, casts))
    for n, order in enumerate(wanted):
        names = [f"alone--{slug(order.part)}--{order.what}--{slug(order.prompt, 200)}--s{seed}" for seed in SEEDS]
        plans = [sample_plans(project, [order.prompt], order.options, subjects=order.subjects or None,
                              motion=order.motion, seed=seed, base=base, names=[name])[0]
                 for seed, name in zip(SEEDS, names)]
        for seed, made in zip(SEEDS, make_samples(project, plans, device=device)):
            seen = find(read_frames(made.folder / "frames.png"), list(order.looks))
            worst = followed([one.path for one in seen], order.paths) if order.paths else (None, None)
            lines.append({"part": order.part, "what": order.what, "prompt": order.prompt, "seed": seed,
                          "paths": worst[0], "moved": worst[1],
                          "together": float(np.logical_and.reduce([one.presence for one in seen]).mean())})
        report(step=n + 1, of=len(wanted))
    return lines


def table(lines: Sequence[dict]) -> str:
    """For each part and what it is of: videos, frames with all in sight, the worst path by roles and by anybody."""
    out = ["| part | of | n | all in sight | in sight in 80 % of frames | worst path, roles as asked | by anybody |",
           "|---|---|---|---|---|---|---|"]
    for part in dict.fromkeys(line["part"] for line in lines):
        own = [line for line in lines if line["part"] == part]
        for what in ("all", *dict.fromkeys(line["what"] for line in own)):
            some = [line for line in own if what in ("all", line["what"])]
            there = [line["together"] for line in some]
            paths = [f"{np.mean([line[key] for line in some]):.2f}" if some[0][key] is not None else ""
                     for key in ("paths", "moved")]
            out.append(" | ".join(["", part, what, str(len(some)), f"{np.mean(there):.0%}",
                                   f"{np.mean([one >= 0.8 for one in there]):.0%}", *paths, ""]).strip())
    return "\n".join(out)


def main(argv: list[str] | None = None) -> None:
    import torch

    torch.set_num_threads(1)
    project = Workspace(Path((argv or sys.argv[1:])[0]))
    lines = measure(project)
    write(project.root / "alone.json", json.dumps(lines, indent=1) + "\n")
    print(table(lines))


if __name__ == "__main__":
    main()
