"""eval: the evaluation contract, and the paper's scores (METHOD 6) apart, per video and summarised.

Attempted equals scored: a video that is missing or crashed counts with every score 0 (`failed`), a missing subject
scores 0, nothing is skipped. What a judgement holds is said in metrics/contract.py; what the paper's protocol cannot
say of a video (CLIP-I and DINO-I without a subject, T. Cons. of a single frame) is null and in no mean of that.

The numbers depend on the judges: compare only what the same CLIP, DINO and segmenter scored.
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
from .core import store
from .core.errors import MissingPrerequisite
from .core.foreign import holds, read_json
from .core.report import Report, silent
from .core.video import read_frames
from .core.workspace import Artifact, Plan, Workspace
from .judging import Judges, cast_of, subjects_of
from .metrics import clip as clip_metric
from .metrics import dino as dino_metric
from .metrics.clip import Clip
from .metrics.dino import Dino
from .metrics.stats import interval
from .options import EvalOptions
from .orders import target_of
from .photos import Photo, read_photos

SUMMARY = "summary.json"
CUT = ", cut out"          # columns of identity whose references are the subject without its photo's surroundings
PAPER = "paper protocol"
HEADLINE = ("success", "together", "identity", "margin", "motion", "roles", "leak")


def evaluate(project: Workspace, samples: Sequence[str] | None = None, options: EvalOptions | None = None, *,
             device: str = "cpu", dtype: str = "fp32", seed: int = 0, force: bool = False,
             report: Report = silent) -> list[Artifact]:
    """Score samples by name (None: all of the project) -> scores/<name>.json each, and scores/summary.json over all.

    The judges always compute in float32; dtype plays no part. Raises MissingPrerequisite without a sample, or where the
    segmenter's weights are not here, UsageError where the base has no judges of its own and none were named.
    """
    names = list(samples or project.samples())
    if not names:
        raise MissingPrerequisite("there is no sample to score", "Run: videomage sample")
    judges, artifacts = None, []
    for index, name in enumerate(names):
        plan = project.plan(STAGES["eval"], name, options, seed=seed)
        if force or not plan.state():
            judges = judges or Judges(project, plan.options, device=device, report=report)
            found = score_plan(plan, judges, force=force, report=report)
            said = {key: value for key, value in headline(found).items() if value is not None}
            report(step=index + 1, of=len(names), **said)
        artifacts.append(plan.artifact())
    _summarise(project, report)
    return artifacts


def score_plan(plan: Plan, judges: Judges, *, force: bool = False, report: Report = silent) -> dict:
    """Score one plan of eval -> its score file, which is written. For callers that score thousands: nothing is
    summarised, and `judges` are kept by the caller."""
    with plan.making(report, force=force) as out:
        found = scores_of(plan, judges)
        (out / f"{plan.name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def scores_of(plan: Plan, judges: Judges) -> dict:
    """The score file of one plan of eval."""
    project, request = plan.project, plan.request
    frames = read_frames(plan.inputs["frames"])
    photos = {subject: read_photos(plan.inputs[f"photos-{subject}"], plan.inputs.get(f"masks-{subject}"))
              for subject in request["subjects"]}
    prompt = target_of(project, request["prompt"]).plain
    judged = judges.judged(plan, frames)
    made = project.manifest(project.sample_folder(plan.name) / "sample.json") or {}
    facts = made.get("facts", {})
    return {**_named(project, plan.name, request, prompt),
            "success": next((one["success"] for one in judged.values()), None),
            PAPER: score(judges.clip, judges.dino, frames, prompt, photos),
            "cost": {"seconds": made.get("seconds"), "forwards": facts.get("forwards"),
                     "peak memory": facts.get("peak memory")},
            "magnitude": {"pixels": _change(frames)}, "judged": judged}


def failed(project: Workspace, name: str, request: Mapping, why: str) -> dict:
    """The score file of a video that was attempted and is not there: no success, every score 0. request: prompt,
    subjects and motion, as asked of sample."""
    prompt = target_of(project, request["prompt"]).plain
    nothing = {"presence": {}, "together": 0.0, "identity": {"each": {}, "min": 0.0, "geomean": 0.0},
               "confusion": {"rows": [], "columns": [], "matrix": []}, "margins": {}, "bleed": {},
               "motion": {"each": {}, "min": 0.0, "geomean": 0.0} if request.get("motion") else None,
               "binding": {"matrix": [], "roles": [], "assigned": {}, "right": {}, "chance corrected": 0.0}
               if request.get("motion") else None, "leak": None, "magnitude": {}, "paths": {}, "reference paths": {},
               "success": False, "reasons": [why]}
    return {**_named(project, name, request, prompt), "success": False,
            PAPER: {"CLIP-T": 0.0, "CLIP-I": 0.0, "DINO-I": 0.0, "T. Cons.": 0.0},
            "cost": {"seconds": None, "forwards": None, "peak memory": None}, "magnitude": {"pixels": 0.0},
            "judged": {"segmenter": nothing}, "failed": why}


def _named(project: Workspace, name: str, request: Mapping, prompt: str) -> dict:
    return {"sample": name, "prompt": prompt, "subjects": subjects_of(project, request),
            "motion": request.get("motion"),
            "roles": {subject: actor for actor, subject in cast_of(project, request).items()}}


def _change(frames_FHWC: np.ndarray) -> float:
    """How much the pixels change from frame to frame, the mean of |difference|, 0 to 1: beside T. Cons., which calls a
    frozen video consistent."""
    if len(frames_FHWC) < 2:
        return 0.0
    return float(np.abs(np.diff(frames_FHWC.astype(np.float32), axis=0)).mean() / 255)


def headline(found: Mapping, judge: str = "segmenter") -> dict[str, float | None]:
    """What a score file says at a glance, by one judge; None where the video cannot have it. success: 1 or 0. identity,
    motion: the least of its subjects, normalised. margin: the least. roles: corrected for chance. leak: the most."""
    one = found["judged"].get(judge)
    if one is None:
        return dict.fromkeys(HEADLINE)
    margins = list(one["margins"].values())
    return {"success": None if one["success"] is None else float(one["success"]), "together": one["together"],
            "identity": one["identity"]["min"], "margin": min(margins) if margins else 0.0,
            "motion": one["motion"] and one["motion"]["min"],
            "roles": one["binding"] and one["binding"]["chance corrected"], "leak": one["leak"] and one["leak"]["max"]}


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


def summary(scores: Mapping[str, Mapping]) -> dict[str, object]:
    """{video: its score file} -> per judge the mean of each score of the headline over the videos that can have it, how
    many those are, and the success rate with its interval (bootstrap over subjects and motions); the means of the
    paper's protocol apart; each: the headlines, {video: {judge: headline}}."""
    judges = list(dict.fromkeys(judge for one in scores.values() for judge in one["judged"]))
    out: dict[str, object] = {"videos": len(scores), "judged": {}}
    for judge in judges:
        lines = {name: headline(one, judge) for name, one in scores.items()}
        out["judged"][judge] = {**_means(lines.values(), HEADLINE), "success": rate(scores, judge)}
    columns = dict.fromkeys(["CLIP-T", "CLIP-I", "DINO-I", "T. Cons.", *(
        column for one in scores.values() for column in one[PAPER] if column.endswith(CUT))])
    each = {name: {judge: headline(one, judge) for judge in one["judged"]} for name, one in scores.items()}
    return out | {PAPER: _means([one[PAPER] for one in scores.values()], columns), "each": each}


def rate(scores: Mapping[str, Mapping], judge: str = "segmenter") -> dict[str, object] | None:
    """The share of successes among all videos that were judged: {"rate", "low", "high", "of", "unknown"}; unknown:
    those that fail nothing else and whose leak could not be measured. They count as no success. None for no video."""
    said = [(one, one["judged"][judge]["success"]) for one in scores.values() if judge in one["judged"]]
    if not said:
        return None
    found = interval([success is True for _, success in said], [tuple(sorted(one["subjects"])) for one, _ in said],
                     [one["motion"] for one, _ in said])
    return {"rate": found.mean, "low": found.low, "high": found.high, "of": found.n,
            "unknown": sum(success is None for _, success in said)}


def _means(lines: Sequence[Mapping], columns: Sequence[str]) -> dict[str, dict]:
    there = {column: [one[column] for one in lines if one.get(column) is not None] for column in columns}
    return {"mean": {column: float(np.mean(found)) if found else None for column, found in there.items()},
            "of": {column: len(found) for column, found in there.items()}}


def _features(judge: Clip | Dino, pictures: Sequence[np.ndarray]) -> Tensor:
    """(R, D); photos may be of several sizes."""
    return torch.cat([judge.image_features(picture[None]) for picture in pictures])


def _whole(path: Path) -> Mapping | None:
    """A score file; None for one that is damaged, or of an older contract: it is stale."""
    try:
        found = read_json(path)
        lines = [headline(found, judge) for judge in found["judged"]]
        named = [isinstance(subject, str) for subject in found["subjects"]]
        fine = all(value is None or isinstance(value, (int, float)) for line in lines for value in line.values())
        fine = fine and all(value is None or isinstance(value, (int, float)) for value in found[PAPER].values())
        return found if fine and all(named) and isinstance(found["motion"], (str, type(None))) else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _summarise(project: Workspace, report: Report) -> Path:
    """scores/summary.json over every score whose sample is still there; an equal one keeps its time stamp."""
    folder, scores = project.root / "scores", {}
    for name in project.samples():
        if (folder / f"{name}.json").is_file():
            found = _whole(folder / f"{name}.json")
            scores |= {name: found} if found else {}
    whole = summary(scores)
    if found := rate(scores):
        report(note=f"success {found['rate']:.0%} ({found['low']:.0%} to {found['high']:.0%}) of {found['of']} videos")
    text, path = json.dumps(whole, indent=1) + "\n", folder / SUMMARY
    if not holds(path, text):
        store.write(path, text)
    return path
