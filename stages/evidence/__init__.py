"""The experiment on sprites (`make evidence`): a project with twelve held-out subjects and four held-out motions, and
the grids that `videomage sweep` runs on it.

A cast is who plays: six pairs and two triples. The development split chose whatever was chosen; the confirmation split
was run once for the table. A triple has clips of its own, with three actors. The fifth held-out motion, leapfrog, is
left out: one actor hides the other for so long that of rendered videos of the very subjects on the very paths 13 of 36
have both in sight in 80 % of their frames.

python -m stages.evidence.report says what came of it (report.py).
"""
from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from ..core.video import write_video
from ..core.workspace import Workspace
from ..sprites.example import CAST, ENLARGE
from ..sprites.looks import SUBJECTS
from ..sprites.sizes import SIZES
from ..sprites.world import photos, reference_clip

MOTIONS = ("chase", "orbit", "zigzag", "eight")
DEVELOPMENT = (("toy", "pet"), ("gem", "drum"), ("kite", "moth"), ("toy", "pet", "gem"))
CONFIRMATION = (("leaf", "cup"), ("fan", "moon"), ("lamp", "bell"), ("bell", "cup", "moon"))
GRIDS = Path(__file__).parent.parent / "sprites" / "grids"

PHOTOS, PHOTO_SEED, CLIP_SEED = 6, 9, 7           # those of sprites/example.py: the demo's files are the same


def prepare(folder: Path, *, size_name: str = "small") -> Workspace:
    """Photos, clips, project.yaml and *.yaml of GRIDS in the folder. What is there is not touched."""
    size = SIZES[size_name]
    for name in SUBJECTS:
        own = folder / "photos" / name
        own.mkdir(parents=True, exist_ok=True)
        for k, photo in enumerate(photos(name, PHOTOS, PHOTO_SEED, size.pixels, close=False)):
            path, large = own / f"{k}.png", np.kron(photo.frames[0], np.ones((ENLARGE, ENLARGE, 1), np.uint8))
            if not path.exists():
                Image.fromarray(large).save(path)
    motions = {}
    for motion in MOTIONS:
        for actors in (2, 3):
            name = motion if actors == 2 else f"{motion}-3"
            clip = reference_clip(motion, list(CAST[:actors]), CLIP_SEED, size.frames, size.pixels)
            prompt = clip.caption
            for actor in clip.actors:
                phrase = f"{actor.look.colour} {actor.look.shape}"
                prompt = prompt.replace(phrase, f"[{phrase}]")
            motions[name] = {"clip": f"clips/{name}.mp4", "prompt": prompt}
            if not (folder / "clips" / f"{name}.mp4").exists():
                (folder / "clips").mkdir(parents=True, exist_ok=True)
                write_video(folder / "clips" / f"{name}.mp4", clip.frames, fps=8)
    for grid in GRIDS.glob("*.yaml"):
        if not (folder / grid.name).exists():
            shutil.copyfile(grid, folder / grid.name)
    if (folder / "project.yaml").exists():
        return Workspace(folder)
    return Workspace.create(folder, base="sprites", motions=motions, subjects={
        name: {"class": word, "images": f"photos/{name}"} for name, (_, word) in SUBJECTS.items()})
