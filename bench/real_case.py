"""python -m bench.real_case DIR [--quick]: real photographs and a real clip through every stage on the sprites base.

    nice -n 10 env OMP_NUM_THREADS=1 python -m bench.real_case DIR      # as the presets have it: half an hour and more
    python -m bench.real_case DIR --quick                              # a few steps of everything: it runs, no more

Nobody expects a good video: the base knows coloured shapes of 32 x 32 pixels. What is asked is whether any stage breaks
on files that nobody made for it, and what comes out. The segmenter that comes with sprites is asked first, so that one
sees what it makes of photographs; then the masks are drawn by hand (bench/real_files.py), as `segmenter: given`.
Printed: what each stage said, how much of the pictures the base's own autoencoder keeps, a table of the stages, one of
the scores; real.png shows it all. The exit code is 1 where a stage broke.
"""
from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stages import segmenters
from stages.backbones import load
from stages.core.denoise import encode
from stages.core.errors import VideomageError
from stages.core.report import Report, silent
from stages.core.sheets import contact_sheet, overlay
from stages.core.takes import read_take, read_track
from stages.core.video import read_clip
from stages.core.workspace import Artifact, Workspace
from stages.evaluate import evaluate
from stages.fuse import fuse
from stages.invert import invert
from stages.learn_motion import learn_motion
from stages.learn_subject import learn_subject
from stages.options import resolve
from stages.photos import read_photos
from stages.sample import sample
from stages.segment import segment

from .real_files import ACTORS, CLASSES, START, write_files

MOTION, ASKED = "pass", "a [man] passes a [bicycle]"
WANTED = "a <moto> passes a <cup> in the snow"
SHEET = "real.png"
METHOD = "the method"

# By hand: the segmenter, the part of the clip, and a frame in which both actors are in the base's square.
OPTIONS: dict[str, dict[str, object]] = {
    "segment": {"segmenter": "given", "masks": "masks", "start": START}, "invert": {"token_frame": 2}}
QUICK: dict[str, dict[str, object]] = {
    "invert": {"token_steps": 3, "inversion_steps": 4},
    "learn-subject": {"steps": 2, "auxiliary_count": 2, "video_steps": 2, "preview_every": 0},
    "learn-motion": {"steps": 2},
    "fuse": {"steps": 2, "videos": 1, "video_steps": 2, "compositions": 2},
    "sample": {"steps": 4, "tau": 2, "motion_steps": 2}}


@dataclass(frozen=True)
class Row:
    """One call of a stage. problem: "" where it ran. seconds: what its manifests say, over all it made."""

    stage: str
    name: str
    made: tuple[Artifact, ...]
    problem: str = ""

    @property
    def seconds(self) -> float:
        return sum(float(artifact.manifest["seconds"]) for artifact in self.made)

    @property
    def left(self) -> str:
        files = dict.fromkeys(name.split("/")[0] + "/" * ("/" in name) for one in self.made
                              for name in one.manifest["files"])
        folders = dict.fromkeys(one.folder.name for one in self.made)
        return f"{', '.join(folders)}: {', '.join(files)}" if len(self.made) == 1 else f"{len(self.made)} artefacts"


def make(folder: Path, *, quick: bool = False) -> Workspace:
    """The project on the real files, made new or as it is there. Raises ValueError where it is of the other form."""
    options = {stage: {**OPTIONS.get(stage, {}), **(QUICK.get(stage, {}) if quick else {})}
               for stage in dict.fromkeys([*OPTIONS, *(QUICK if quick else ())])}
    if (folder / "project.yaml").exists():
        project = Workspace(folder)
        if dict(project.settings.options) != options:
            raise ValueError(f"{folder} holds a project of the other form: choose another folder")
        return project
    folder.mkdir(parents=True, exist_ok=True)
    write_files(folder)
    return Workspace.create(folder, prompts=[WANTED], options=options, subjects={
        name: {"class": word, "images": f"photos/{name}"} for name, word in CLASSES.items()},
        motion={"name": MOTION, "clip": "clip.mp4", "prompt": ASKED})


def run(project: Workspace, report: Report = silent) -> list[Row]:
    """Every stage, in order; one that breaks is a row like any other, and the next is tried all the same."""
    calls: list[tuple[str, str, Callable[[], Artifact | list[Artifact]]]] = [
        ("segment", f"motions/{MOTION}", lambda: segment(project, f"motions/{MOTION}", report=report)),
        *(("segment", f"subjects/{name}", lambda name=name: segment(project, f"subjects/{name}", report=report))
          for name in CLASSES),
        ("invert", MOTION, lambda: invert(project, MOTION, report=report)),
        *(("learn-subject", name, lambda name=name: learn_subject(project, name, report=report)) for name in CLASSES),
        ("learn-motion", MOTION, lambda: learn_motion(project, MOTION, report=report)),
        ("fuse", "+".join(sorted(CLASSES)), lambda: fuse(project, list(CLASSES), report=report)),
        ("sample", METHOD, lambda: samples(project, report)),
        ("eval", "all samples", lambda: evaluate(project, report=report))]
    rows = []
    for stage, name, call in calls:
        report(note=f"-- {stage} {name}")
        try:
            made = call()
            rows.append(Row(stage, name, tuple(made if isinstance(made, list) else [made])))
        except VideomageError as error:
            rows.append(Row(stage, name, (), f"refused: {error}"))
        except Exception as error:                               # what this is for: a stage that breaks on real input
            traceback.print_exc()
            rows.append(Row(stage, name, (), f"crashed: {type(error).__name__}: {error}"))
    return rows


def samples(project: Workspace, report: Report = silent) -> list[Artifact]:
    """The method's video, and from the same seed what its parts are without the others: `shown` has their names."""
    own = resolve("sample", project.settings)
    chosen = [own, replace(own, branches="subject"), replace(own, branches="none"),
              replace(own, branches="none", beta=0.0)]
    return [sample(project, [WANTED], options, report=report)[0] for options in chosen]


SAMPLES = (METHOD, "without the motion LoRA", "the inverted noise without any LoRA", "the plain base")


def found(project: Workspace) -> Iterator[tuple[str, str, float, float, float]]:
    """What CLIPSeg of the sprites base makes of each photo and of the clip: (where, phrase, share of the pictures that
    it paints, share that was drawn by hand, their intersection over union). Asked are the right words, and "circle",
    which is in none of the pictures."""
    finder = segmenters.load("clipseg")
    take = read_take(project.motion_folder(MOTION))
    tracks = {actor: read_track(project.motion_folder(MOTION) / "masks" / actor, range(len(take.frames)),
                                take.frames.shape[1:3]) for actor in ACTORS}
    looked = [(f"photos of {name}", {word: [(photo.picture[None], photo.mask[None]) for photo in read_photos(
        project.photos(name), project.subject_folder(name) / "masks")]}) for name, word in CLASSES.items()]
    looked.append(("the clip", {actor: [(take.frames, track)] for actor, track in tracks.items()}))
    for where, by_word in looked:
        for word, pairs in by_word.items():
            for asked in (word, "circle"):
                drawn = np.concatenate([masks.ravel() for _, masks in pairs])
                seen = np.concatenate([finder.masks(frames, [asked])[asked].masks.ravel() for frames, _ in pairs])
                label = asked if asked == word else f"{asked} (in place of {word})"
                yield where, label, seen.mean(), drawn.mean(), (seen & drawn).sum() / max(1, (seen | drawn).sum())


@dataclass(frozen=True)
class Shown:
    """What the base sees of photos or of a clip: uint8 (F, H, W, 3) at its own size, the masks {word: (F, H, W)}, and
    the pictures there and back through its autoencoder."""

    label: str
    frames: np.ndarray
    masks: dict[str, np.ndarray]
    back: np.ndarray

    @property
    def psnr(self) -> float:
        """Of `back`, in decibels: no video of this base can come nearer."""
        return float(10 * np.log10(255**2 / ((self.frames.astype(float) - self.back) ** 2).mean()))


def shown(project: Workspace) -> Iterator[Shown]:
    """The photos of each subject, and the clip."""
    backbone = load(project.settings.base)
    size = backbone.height, backbone.width
    for name, word in CLASSES.items():
        photos = [photo.fitted(size) for photo in read_photos(project.photos(name),
                                                              project.subject_folder(name) / "masks")]
        frames = np.stack([photo.picture for photo in photos])
        yield Shown(f"photos of <{name}>", frames, {word: np.stack([photo.mask for photo in photos])},
                    backbone.decode(encode(backbone, frames[None]))[0])
    folder = project.motion_folder(MOTION)
    clip = read_take(folder, size).window()
    masks = {actor: read_track(folder / "masks" / actor, range(len(clip)), size) for actor in ACTORS}
    yield Shown(f"the clip: {ASKED}", clip, masks, backbone.decode(encode(backbone, clip[None]))[0])


def sheet(project: Workspace, seen: list[Shown], rows: list[Row]) -> Path:
    """What the base sees, then a row for each video."""
    pictures = []
    for one in seen:
        pictures += [(one.label, one.frames), ("and the masks drawn by hand", overlay(one.frames, one.masks)),
                     ("and what the autoencoder of the base keeps of it", one.back)]
    made = dict(zip(SAMPLES, next((row.made for row in rows if row.stage == "sample"), ())))
    pictures += [(f"{name}: {WANTED}", read_clip(one.folder / "frames.png")) for name, one in made.items()]
    return contact_sheet(pictures, project.root / SHEET)


def numbers(value: object, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a JSON value, by its path: "a.b", 0.5."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from numbers(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for k, item in enumerate(value):
            yield from numbers(item, f"{name}.{k}")
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name, float(value)


def tables(rows: list[Row]) -> Iterator[str]:
    """The lines that are printed at the end."""
    yield f"{'stage':14s} {'of':18s} {'seconds':>8s}  what it left"
    for row in rows:
        yield f"{row.stage:14s} {row.name:18s} {row.seconds:8.1f}  {row.problem or row.left}"
    scored = next((row.made for row in rows if row.stage == "eval"), ())
    for name, one in zip(SAMPLES, scored):
        scores = json.loads(one.path.read_text(encoding="utf-8"))
        yield f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in scores["paper protocol"].items())
        judged = scores["judged"]["segmenter"]
        yield (f"  by the segmenter's tracks: together in {judged['together']:.0%} of the frames, identity "
               f"{judged['identity']['min']:.2f}, smallest margin {min(judged['margins'].values()):.2f}, motion "
               f"{judged['motion']['min']:.2f}: {'a success' if judged['success'] else 'no success'}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true", help="a few steps of everything")
    asked = parser.parse_args(argv)
    try:
        project = make(asked.folder, quick=asked.quick)
    except (ValueError, VideomageError) as error:
        parser.error(str(error))
    rows = run(project, lambda **facts: print(facts["note"], flush=True) if "note" in facts else None)
    if not any(row.problem for row in rows if row.stage == "segment"):
        print("\nThe segmenter of sprites, asked for what is there and for what is not:")
        for where, phrase, share, drawn, overlap in found(project):
            print(f"  {where:15s} {phrase:33s} paints {share:5.1%}, by hand {drawn:5.1%}; IoU {overlap:.2f}")
        print("\nThere and back through the autoencoder of the base:")
        seen = list(shown(project))
        for one in seen:
            print(f"  {one.label:34s} {one.psnr:5.1f} dB")
        print(f"\n{sheet(project, seen, rows)}")
    print("\n" + "\n".join(tables(rows)))
    return int(any(row.problem for row in rows))


if __name__ == "__main__":
    sys.exit(main())
