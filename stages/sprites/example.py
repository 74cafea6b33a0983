"""Photos of held-out subjects and a clip of a held-out motion, as ordinary files: what a user would bring.

python -m stages.sprites.example DIR [--subjects toy pet] [--motion chase] writes DIR/photos/NAME/0.png .. and clip.mp4.
"""
from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..core.video import write_video
from .looks import SUBJECTS, Look
from .sizes import SIZES
from .world import HELD_OUT_MOTIONS, VERBS, Clip, photos, reference_clip

MOTION = "chase"
PLACE = "in the snow"            # where the wanted video is set: not where the clip is

ENLARGE = 8                      # each world pixel becomes 8 x 8: files that a viewer shows at a sensible size
CAST = (Look("circle", "red"), Look("square", "blue"), Look("triangle", "green"))      # who acts in the clip


@dataclass(frozen=True)
class Example:
    """Files a user would bring, and the truth about the clip. prompt: of the clip, actors in brackets. wanted: a prompt
    for the subjects, in the order of their roles; exchanged: with the roles turned round by one (`turned`). paths: of
    the clip's actors, (F, 2) each, in the order of the roles."""

    subjects: tuple[str, ...]
    motion: str
    photos: dict[str, Path]
    clip: Path
    prompt: str
    wanted: str
    exchanged: str
    paths: list[np.ndarray]

    @property
    def turned(self) -> tuple[str, ...]:
        return (*self.subjects[1:], self.subjects[0])


def write_photos(folder: Path, name: str, size_name: str = "small", count: int = 6, seed: int = 7) -> Path:
    """folder/NAME/0.png ...; files that are there stay as they are. They show the subject as large as a clip does:
    learned from close ones, two of them fill the frame and merge."""
    own = folder / name
    own.mkdir(parents=True, exist_ok=True)
    for k, photo in enumerate(photos(name, count, seed + 2, SIZES[size_name].pixels, close=False)):
        path, large = own / f"{k}.png", np.kron(photo.frames[0], np.ones((ENLARGE, ENLARGE, 1), np.uint8))
        if not path.exists():
            Image.fromarray(large).save(path)
    return own


def write_clip(path: Path, motion: str, actors: int, size_name: str = "small", seed: int = 7) -> tuple[str, Clip]:
    """The clip of a held-out motion, acted by CAST -> (its prompt, the actors in brackets by colour and shape; the
    truth about it). A file that is there stays as it is."""
    size = SIZES[size_name]
    clip = reference_clip(motion, list(CAST[:actors]), seed, size.frames, size.pixels)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, clip.frames, fps=8)
    prompt = clip.caption
    for actor in clip.actors:
        phrase = f"{actor.look.colour} {actor.look.shape}"
        prompt = prompt.replace(phrase, f"[{phrase}]")
    return prompt, clip


def write_example(folder: Path, *, subjects: tuple[str, ...] = ("toy", "pet"), motion: str = MOTION, count: int = 6,
                  seed: int = 7, size_name: str = "small") -> Example:
    """Write photos/NAME/0.png ... and clip.mp4 into the folder; files that are there stay as they are."""
    folders = {name: write_photos(folder / "photos", name, size_name, count, seed) for name in subjects}
    prompt, clip = write_clip(folder / "clip.mp4", motion, len(subjects), size_name, seed)
    verb = VERBS[motion][1]

    def wanted(names: tuple[str, ...]) -> str:
        return f"a <{names[0]}> {verb} " + " and ".join(f"a <{name}>" for name in names[1:]) + f" {PLACE}"

    return Example(tuple(subjects), motion, folders, folder / "clip.mp4",
                   prompt, wanted(tuple(subjects)), wanted((*subjects[1:], subjects[0])),
                   [actor.path for actor in clip.actors])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--subjects", nargs="+", default=["toy", "pet"], choices=SUBJECTS)
    parser.add_argument("--motion", default=MOTION, choices=HELD_OUT_MOTIONS)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args(argv)
    write_example(args.folder, subjects=tuple(args.subjects), motion=args.motion, seed=args.seed)


if __name__ == "__main__":
    main()
