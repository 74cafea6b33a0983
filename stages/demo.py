"""The whole method on the sprites base, from files it makes itself: what `videomage demo` and `make demo` run.

Photos of two subjects and a clip of a motion that the base never saw are written as ordinary files; then the seven
stages run, as a user would run them. Beside the result stand the same seed without the motion LoRA, without inverted
noise, with the roles exchanged, with that noise and no LoRA, and the plain base: what the noise alone carries must not
pass for the method.
"""
from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from .core.jobs import side_by_side
from .core.report import Report, silent
from .core.sheets import contact_sheet
from .core.video import read_clip, read_frames, read_images
from .core.workspace import Artifact, Workspace
from .evaluate import evaluate
from .fuse import fuse
from .invert import invert
from .learn_motion import learn_motion
from .learn_subject import learn_subject
from .options import resolve
from .sample import sample
from .segment import segment
from .sprites.example import MOTION, Example, write_example
from .sprites.looks import SUBJECTS
from .sprites.verdict import Verdict, judge

VIDEO = "the method"             # the row that is the demo's result


@dataclass(frozen=True)
class Demo:
    """files: what the oracle saw (JSON), the sheet, and last the video. verdicts: {row: Verdict}. scores: of evaluate,
    of the video and of the plain base's."""

    files: tuple[Path, ...]
    verdicts: dict[str, Verdict]
    scores: list[Artifact]


def demo(folder: Path, *, subjects: tuple[str, ...] = ("toy", "pet"), motion: str = MOTION, device: str = "cpu",
         dtype: str = "fp32", seed: int = 0, report: Report = silent) -> Demo:
    """Make the project in `folder` (or go on with the one there) and run every stage that is not fresh."""
    example = write_example(folder, subjects=subjects, motion=motion)
    project = Workspace(folder) if (folder / "project.yaml").exists() else _create(folder, example)
    common = dict(device=device, dtype=dtype, report=report)
    workers = min(os.cpu_count() or 1, 1 + len(subjects)) if device == "cpu" else 1
    _learn(project, subjects, motion, dict(device=device, dtype=dtype, seed=seed), workers, report)
    made = _samples(project, example, seed, common)
    scores = evaluate(project, [made[VIDEO].name, made["the plain base"].name], **common)
    frames = {row: read_frames(artifact.folder / "frames.png") for row, artifact in made.items()}
    verdicts = {row: judge(video, example.turned if row == EXCHANGED else subjects, example.paths)
                for row, video in frames.items()}
    sheet = _sheet(folder / "demo.png", example, frames)
    table = folder / "demo.json"
    table.write_text(json.dumps({row: asdict(verdict) for row, verdict in verdicts.items()}, indent=1) + "\n")
    return Demo((table, sheet, made[VIDEO].folder / "video.mp4"), verdicts, scores)


def _learn(project: Workspace, subjects: tuple[str, ...], motion: str, common: dict, workers: int,
           report: Report) -> None:
    """Everything that is learned: side by side on a CPU, as far as nothing waits for another's product; one after the
    other on a GPU. The subjects come first, because their fusion takes longest."""
    own = {f"<{name}>": partial(learn_subject, project, name, **common) for name in subjects}
    calls = {**own, "the motion's actors": partial(_actors, project, motion, **common),
             "the motion": partial(learn_motion, project, motion, **common)}
    after = {"the motion": ["the motion's actors"]}
    if len(subjects) > 1:
        calls["together"] = partial(fuse, project, list(subjects), **common)
        after["together"] = list(own)
    if workers > 1:
        side_by_side(calls, workers=workers, after=after, report=report)
    else:
        for call in calls.values():
            call(report=report)


def _actors(project: Workspace, motion: str, seed: int, **common: object) -> Artifact:
    segment(project, f"motions/{motion}", **common)
    return invert(project, motion, seed=seed, **common)


EXCHANGED = "roles exchanged"


def _create(folder: Path, example: Example) -> Workspace:
    return Workspace.create(
        folder, base="sprites", prompts=[example.wanted],
        subjects={name: {"class": SUBJECTS[name][1], "images": f"photos/{name}"} for name in example.subjects},
        motion={"name": example.motion, "clip": "clip.mp4", "prompt": example.prompt})


def _samples(project: Workspace, example: Example, seed: int, common: dict) -> dict[str, Artifact]:
    """The result and its controls, all from the same seed."""
    options = resolve("sample", project.settings)
    rows = {VIDEO: (example.wanted, options),
            "without the motion LoRA": (example.wanted, replace(options, branches="subject")),
            "without the inverted noise (beta = 0)": (example.wanted, replace(options, beta=0.0)),
            EXCHANGED: (example.exchanged, options),
            "the inverted noise without any LoRA": (example.wanted, replace(options, branches="none")),
            "the plain base": (example.wanted, replace(options, branches="none", beta=0.0))}
    return {row: sample(project, [prompt], chosen, subjects=example.subjects, seed=seed, **common)[0]
            for row, (prompt, chosen) in rows.items()}


def _sheet(path: Path, example: Example, frames: dict[str, np.ndarray]) -> Path:
    """Photos, clip, what the plain base makes of the prompt, the result, the other controls."""
    size = frames[VIDEO].shape[1:3]
    photos = [(f"photos of <{name}>", read_images(sorted(folder.glob("*.png")), size))
              for name, folder in example.photos.items()]
    order = ["the plain base", VIDEO, *(row for row in frames if row not in ("the plain base", VIDEO))]
    return contact_sheet([*photos, (example.prompt, read_clip(example.clip, size=size)),
                          *((f"{row}: {example.wanted}" if row == VIDEO else row, frames[row]) for row in order)],
                         path, scale=4)
