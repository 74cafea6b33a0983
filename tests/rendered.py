"""A project of the sprites world whose samples are rendered, not drawn by a network: the truth about each is known."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from stages import STAGES
from stages.core.sampling import Sampling
from stages.core.takes import write_take
from stages.core.video import write_frames, write_images
from stages.core.workspace import Plan, Workspace
from stages.options import SampleOptions
from stages.prompts import slug
from stages.sprites.looks import SUBJECTS, Look
from stages.sprites.world import Actor, photos, reference_clip, render

ACTORS = (Look("circle", "red"), Look("square", "blue"))
RADIUS = 0.175


@dataclass(frozen=True)
class Mixed:
    """A look on its way to another: the first's shape, in a mixture of the colours of both. share: of the second."""

    first: Look
    second: Look
    share: float

    def paint(self, u, v):
        inside, own = self.first.paint(u, v)
        other = self.second.paint(u, v)[1]
        return inside, (1 - self.share) * own + self.share * other


def film(looks, paths, place: str = "snow", seed: int = 0) -> np.ndarray:
    """uint8 (F, 32, 32, 3): looks along paths (F, 2); NaN: not there in that frame."""
    actors = [Actor(look, RADIUS, np.where(np.isfinite(path), path, 9.0)) for look, path in zip(looks, paths)]
    return render(actors, place, np.random.default_rng(seed), 32)[0]


def make_project(root: Path, subjects=("toy", "pet", "gem", "kite"), motions=("chase", "zigzag"), seed: int = 0
                 ) -> Workspace:
    """Photos of the subjects and the clips of the motions, acted by ACTORS, with their true masks."""
    data = {"base": "sprites", "subjects": {}, "motions": {}}
    for n, name in enumerate(subjects):
        write_images(root / "photos" / name, [clip.frames[0] for clip in photos(name, 6, n + 1, 32)])
        data["subjects"][name] = {"class": SUBJECTS[name][1], "images": f"photos/{name}"}
    for motion in motions:
        clip, folder = reference_clip(motion, list(ACTORS), seed, 8, 32), root / "motions" / motion
        write_take(folder, clip.frames, Sampling(tuple(range(8)), tuple(np.arange(8) / 8), 0.0, 1 / 8, 1.0, (0,), 8))
        for look, masks in zip(ACTORS, clip.masks):
            write_images(folder / "masks" / slug(f"{look.colour} {look.shape}"), masks.astype(np.uint8) * 255)
        data["motions"][motion] = {"prompt": f"a [red circle] is {motion} a [blue square]"}
    (root / "project.yaml").write_text(yaml.safe_dump(data))
    return Workspace(root)


def add_sample(project: Workspace, frames: np.ndarray, motion: str = "chase", subjects=("toy", "pet"), *, seed: int = 0,
               branches: str = "auto") -> str:
    """A sample with these frames, as `videomage sample` would have left it -> its name."""
    request = {"prompt": f"a <{subjects[0]}> is {motion} a <{subjects[1]}> in the snow", "subjects": sorted(subjects),
               "motion": motion}
    options = SampleOptions(branches=branches)
    name = project.sample_name(STAGES["sample"], options, request=request, seed=seed)
    plan = project.plan(STAGES["sample"], name, options, seed=seed, request=request)
    plan.sources.clear()
    with plan.making() as out:
        write_frames(out / "frames.png", frames)
    return name


def score_plan_of(project: Workspace, name: str) -> Plan:
    return project.plan(STAGES["eval"], name)
