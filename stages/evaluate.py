"""eval: CLIP-T, CLIP-I, DINO-I and T. Cons. of samples (METHOD 6), per video and summarised.

The numbers depend on the judges: compare only what the same CLIP and DINO models scored. A score that a sample cannot
have (CLIP-I and DINO-I without a subject, T. Cons. of a single frame) is null and takes no part in any mean.

Legend: F frames, R reference photos, D width of a feature.
"""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import STAGES
from .core.errors import MissingPrerequisite
from .core.report import Report, silent
from .core.video import read_clip
from .core.workspace import Artifact, Workspace
from .metrics import clip as clip_metric
from .metrics import dino as dino_metric
from .metrics.clip import Clip
from .metrics.dino import Dino
from .options import EvalOptions
from .orders import target_of
from .photos import Photo, read_photos

SUMMARY = "summary.json"
CUT = ", cut out"          # columns of identity whose references are the subject without its photo's surroundings


def evaluate(project: Workspace, samples: Sequence[str] | None = None, options: EvalOptions | None = None, *,
             device: str = "cpu", dtype: str = "fp32", seed: int = 0, force: bool = False,
             report: Report = silent) -> list[Artifact]:
    """Score samples by name (None: all of the project) -> scores/<name>.json each, and scores/summary.json over all.

    The judges always compute in float32; dtype plays no part. Raises MissingPrerequisite without a sample, UsageError
    where the base has no judges of its own and none were named.
    """
    names = list(samples or project.samples())
    if not names:
        raise MissingPrerequisite("there is no sample to score", "Run: videomage sample")
    judges, artifacts = None, []
    for index, name in enumerate(names):
        plan = project.plan(STAGES["eval"], name, options, seed=seed)
        if force or not plan.state():
            with plan.making(report, force=force) as out:
                judges = judges or _judges(project, plan.inputs, device)
                photos = {subject: read_photos(plan.inputs[f"photos-{subject}"], plan.inputs.get(f"masks-{subject}"))
                          for subject in plan.request["subjects"]}
                prompt = target_of(project, plan.request["prompt"]).plain
                scores = score(*judges, read_clip(plan.inputs["frames"]), prompt, photos)
                found = {"sample": name, "prompt": prompt, **scores}
                (out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            report(step=index + 1, of=len(names), **{key: value for key, value in scores.items() if value is not None})
        artifacts.append(plan.artifact())
    _summarise(project, report)
    return artifacts


def score(clip: Clip, dino: Dino, frames_FHWC: np.ndarray, prompt: str,
          photos: Mapping[str, Sequence[Photo]]) -> dict[str, float | None]:
    """The scores of one video. prompt: with class words. photos: {subject: its photos}. Where every photo was
    segmented, CLIP-I and DINO-I are given against the subject cut out of them as well (**ours**): the place of a photo
    counts for the former and not for the latter."""
    seen, alike = clip.image_features(frames_FHWC), dino.image_features(frames_FHWC)
    whole = {name: [photo.picture for photo in own] for name, own in photos.items()}
    cut = {name: [photo.cut_out() for photo in own] for name, own in photos.items()
           if all(photo.mask is not None for photo in own)}
    out = {"CLIP-T": clip_metric.clip_t(seen, clip.text_features([prompt])[0]), "CLIP-I": None, "DINO-I": None,
           "T. Cons.": clip_metric.t_cons(seen) if len(frames_FHWC) > 1 else None}
    for column, pictures in (("", whole), (CUT, cut if len(cut) == len(photos) else {})):
        if pictures:
            shown = {name: _features(clip, own) for name, own in pictures.items()}
            identity = {name: _features(dino, own) for name, own in pictures.items()}
            out |= {f"CLIP-I{column}": clip_metric.clip_i(seen, shown),
                    f"DINO-I{column}": dino_metric.dino_i(alike, identity)}
    return out


def summary(scores: Mapping[str, Mapping[str, object]]) -> dict[str, object]:
    """{video: its scores} -> the mean of each score over the videos that have it, and how many those are."""
    own = (column for one in scores.values() for column in one if column.endswith(CUT))
    columns = dict.fromkeys(["CLIP-T", "CLIP-I", "DINO-I", "T. Cons.", *own])
    there = {column: [one[column] for one in scores.values() if one.get(column) is not None] for column in columns}
    means = {column: float(np.mean(found)) if found else None for column, found in there.items()}
    return {"videos": len(scores), "mean": means, "of": {column: len(found) for column, found in there.items()},
            "each": dict(scores)}


def _features(judge: Clip | Dino, pictures: Sequence[np.ndarray]) -> Tensor:
    """(R, D); photos may be of several sizes."""
    return torch.cat([judge.image_features(picture[None]) for picture in pictures])


def _judges(project: Workspace, inputs: Mapping[str, object], device: str) -> tuple[Clip, Dino]:
    base = project.settings.base
    return (clip_metric.load(inputs.get("clip"), base=base, device=device),
            dino_metric.load(inputs.get("dino"), base=base, device=device))


def _summarise(project: Workspace, report: Report) -> Path:
    """scores/summary.json over every score whose sample is still there; an equal one keeps its time stamp."""
    folder, scores = project.root / "scores", {}
    for name in project.samples():
        if (folder / f"{name}.json").is_file():
            scores[name] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    whole = summary(scores)
    report(note="mean of {} videos: {}".format(len(scores), ", ".join(
        f"{key} {value:.3f}" for key, value in whole["mean"].items() if value is not None)))
    text, path = json.dumps(whole, indent=1) + "\n", folder / SUMMARY
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        partial = path.with_suffix(".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    return path
