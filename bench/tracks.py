"""python -m bench.tracks [--every N]: do the tracks of the segmenter and of the pixel oracle agree on rendered clips?

All 66 pairs of the 12 held-out subjects in the 5 held-out motions with roles, the place and who is first by turns: 330
clips of 8 frames, about 0.5 CPU seconds each. Two tracks agree in a frame where both say that the subject is absent, or
both that it is there and their centres lie within 0.1 frame widths. --every N: each N-th clip. Printed: the share of
subjects in frames that agree, that of frames in which both subjects do, by motion and by place, with intervals
(bootstrap over pairs and motions); and how often each of the two has a subject where it truly is.
"""
from __future__ import annotations

import argparse
from itertools import combinations

import numpy as np
import torch

from stages import segmenters
from stages.core.edges import snapped
from stages.judging import THING
from stages.metrics import dino
from stages.metrics.looks import Gallery, Looks
from stages.metrics.stats import interval
from stages.metrics.tracks import follow
from stages.segmenters import Segmenter
from stages.sprites.looks import SUBJECTS
from stages.sprites.oracle import find
from stages.sprites.world import HELD_OUT_MOTIONS, PLACES, photos, reference_clip

NEAR = 0.1              # frame widths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--every", type=int, default=1)
    every = parser.parse_args().every
    torch.set_num_threads(1)
    segmenter, looks = segmenters.load("clipseg"), Looks(dino.load())
    gallery = gallery_of(segmenter, looks)
    rows = []
    for number, (pair, motion) in enumerate((pair, motion) for pair in combinations(SUBJECTS, 2)
                                            for motion in HELD_OUT_MOTIONS):
        if number % every == 0:
            place = list(PLACES)[(number // len(HELD_OUT_MOTIONS) + number) % len(PLACES)]
            names = list(pair) if number % 2 else list(pair)[::-1]
            rows.append(compare(names, motion, place, number, segmenter, looks, gallery))
    report(rows)


def gallery_of(segmenter: Segmenter, looks: Looks) -> Gallery:
    """Of six photos of every subject, cut out by the segmenter."""
    vectors = {}
    for number, name in enumerate(SUBJECTS):
        pictures = np.concatenate([clip.frames for clip in photos(name, 6, number + 1, 32)])
        masks = [segmenter.masks(one[None], [THING])[THING].masks for one in pictures]
        masks = [snapped(one[None], mask)[0] for one, mask in zip(pictures, masks)]
        vectors[name] = looks(pictures, masks)
    return Gallery.of(vectors, looks.nothing)


def compare(names: list[str], motion: str, place: str, seed: int, segmenter: Segmenter, looks: Looks, gallery: Gallery
            ) -> dict:
    """One clip. agree, ours, oracle: bool (2, F), whether the two agree, and whether each is where the subject is."""
    shown = [SUBJECTS[name][0] for name in names]
    clip = reference_clip(motion, shown, seed, 8, 32, place)
    masks = snapped(clip.frames, segmenter.masks(clip.frames, [THING])[THING].masks)
    ours = [follow(clip.frames, masks, names, looks, gallery).tracks[name].path for name in names]
    theirs = [one.path for one in find(clip.frames, shown)]
    truth = [actor.path for actor in clip.actors]
    return {"pair": tuple(sorted(names)), "motion": motion, "place": place,
            "agree": np.stack([same(a, b) for a, b in zip(ours, theirs)]),
            "segmenter": np.stack([same(a, b) for a, b in zip(ours, truth)]),
            "oracle": np.stack([same(a, b) for a, b in zip(theirs, truth)])}


def same(one_F2: np.ndarray, other_F2: np.ndarray) -> np.ndarray:
    """bool (F,)."""
    there = [np.isfinite(path).all(1) for path in (one_F2, other_F2)]
    near = np.hypot(*np.where((there[0] & there[1])[:, None], one_F2 - other_F2, 0.0).T) <= NEAR
    return (there[0] == there[1]) & near


def report(rows: list[dict]) -> None:
    def said(what: str, values: list[float], among: list[dict]) -> None:
        found = interval(values, [row["pair"] for row in among], [row["motion"] for row in among])
        print(f"{what:44s} {found.mean:.3f}  ({found.low:.3f} to {found.high:.3f})  {found.n} clips")

    said("subjects in frames that agree", [row["agree"].mean() for row in rows], rows)
    said("frames in which both subjects agree", [row["agree"].all(0).mean() for row in rows], rows)
    for key in ("motion", "place"):
        for value in dict.fromkeys(row[key] for row in rows):
            among = [row for row in rows if row[key] == value]
            said(f"  {value}: frames", [row["agree"].all(0).mean() for row in among], among)
    for who in ("segmenter", "oracle"):
        said(f"{who}: subjects in frames at the truth", [row[who].mean() for row in rows], rows)
    worst = np.sort([row["agree"].all(0).mean() for row in rows])
    print(f"clips: sd {worst.std():.3f}, lowest {worst[0]:.3f}, 5 % below {np.quantile(worst, 0.05):.3f}")


if __name__ == "__main__":
    main()
