"""Photos of held-out subjects and a clip of a held-out motion, as ordinary files: what a user would bring.

python -m stages.sprites.example DIR [--subjects toy pet] [--motion chase] writes DIR/photos/NAME/0.png .. and clip.mp4.
"""
from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from ..core.video import write_video
from .looks import SUBJECTS, Look
from .sizes import SIZES
from .world import HELD_OUT_MOTIONS, photos, reference_clip

ENLARGE = 8                      # each world pixel becomes 8 x 8: files that a viewer shows at a sensible size
CAST = (Look("circle", "red"), Look("square", "blue"), Look("triangle", "green"))      # who acts in the clip


def write_example(folder: Path, *, subjects: tuple[str, ...] = ("toy", "pet"), motion: str = "chase", count: int = 4,
                  seed: int = 7, size_name: str = "small") -> dict[str, object]:
    """Write the files -> {"photos": {name: folder}, "clip": path, "prompt": the clip's bracketed prompt}."""
    size = SIZES[size_name]
    folders = {}
    for name in subjects:
        folders[name] = folder / "photos" / name
        folders[name].mkdir(parents=True, exist_ok=True)
        for k, photo in enumerate(photos(name, count, seed, size.pixels)):
            large = np.kron(photo.frames[0], np.ones((ENLARGE, ENLARGE, 1), np.uint8))
            Image.fromarray(large).save(folders[name] / f"{k}.png")
    clip = reference_clip(motion, list(CAST[: len(subjects)]), seed, size.frames, size.pixels)
    write_video(folder / "clip.mp4", clip.frames, fps=8)
    words = clip.caption.split()
    prompt = " ".join(f"[{word}]" if k in clip.nouns else word for k, word in enumerate(words))
    return {"photos": folders, "clip": folder / "clip.mp4", "prompt": prompt}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--subjects", nargs="+", default=["toy", "pet"], choices=SUBJECTS)
    parser.add_argument("--motion", default="chase", choices=HELD_OUT_MOTIONS)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args(argv)
    write_example(args.folder, subjects=tuple(args.subjects), motion=args.motion, seed=args.seed)


if __name__ == "__main__":
    main()
