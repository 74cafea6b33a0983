"""The judgement of one video: what of the method's promises it keeps (scores/NAME.json, "judged"). **Ours**.

Per subject first, then the minimum or the geometric mean over subjects; nothing is skipped, a missing subject scores 0.
A video is a **success** if all its subjects are together in at least TOGETHER of its frames, every margin is above 0,
every role is right, the motion fidelity of each subject (normalised) is at least MOTION, and nothing leaks. Conditions
that a video cannot have (no motion) do not count; without a subject there is nothing to succeed in (None), and where
the leak could not be measured a video that keeps everything else is neither a success nor a failure (None).
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .identity import LEAK, bleed, confusion, identity, margins
from .looks import Gallery
from .motion import binding, fidelity, magnitude, resampled
from .tracks import Track

TOGETHER, MOTION = 0.8, 0.5


@dataclass(frozen=True)
class Reference:
    """The motion that was to be followed. roles: {subject: actor}. paths: {actor: (F, 2)}, of every actor of the clip.
    others: the paths of other motions' actors, lists in the order of their roles: the null."""

    roles: Mapping[str, str]
    paths: Mapping[str, np.ndarray]
    others: Sequence[Sequence[np.ndarray]] = field(default_factory=tuple)


def judge(tracks: Mapping[str, Track], gallery: Gallery, reference: Reference | None, leak: Mapping | None,
          why: str = "") -> dict:
    """tracks: of all subjects of the video, one at least. leak: as the file has it, None where there can be none, or,
    with `why`, where it is not known. -> the judgement, plain values as JSON has them."""
    names = list(tracks)
    there = {name: one.presence for name, one in tracks.items()}
    likeness = {name: one.likeness for name, one in tracks.items()}
    each = {name: identity(likeness[name], there[name], name, gallery) for name in names}
    matrix = confusion(likeness)
    motion, roles = (None, None) if reference is None or not reference.roles else _motion(tracks, reference)
    out = {"presence": {name: own.astype(int).tolist() for name, own in there.items()},
           "together": float(np.logical_and.reduce(list(there.values())).mean()), "identity": _over(each),
           "confusion": {"rows": names, "columns": list(gallery.names), "matrix": matrix.tolist()},
           "margins": margins(matrix, names, gallery), "bleed": bleed(likeness, there, gallery), "motion": motion,
           "binding": roles, "leak": leak, **({"why": why} if why else {}),
           "magnitude": {name: magnitude(one.path) for name, one in tracks.items()},
           "paths": {name: _points(one.path) for name, one in tracks.items()},
           "reference paths": {} if motion is None else {
               name: _points(resampled(reference.paths[actor], len(tracks[name].path)))
               for name, actor in reference.roles.items() if name in tracks}}
    return out | verdict(out)


def verdict(judged: Mapping) -> dict:
    """{"success": true | false | null, "reasons": which condition failed, in words}."""
    reasons = []
    if judged["together"] < TOGETHER:
        reasons.append(f"together in {judged['together']:.0%} of the frames")
    reasons += [f"{name} is no more like itself than like another" for name, value in judged["margins"].items()
                if value <= 0]
    if judged["binding"]:
        reasons += [f"{name} does not play its role" for name, right in judged["binding"]["right"].items() if not right]
    if judged["motion"]:
        reasons += [f"{name} does not follow its path ({one['normalised']:.2f})"
                    for name, one in judged["motion"]["each"].items() if one["normalised"] < MOTION]
    if judged["leak"]:
        reasons += [f"the clip's actor shows through {name} ({one['leak']:.2f})"
                    for name, one in judged["leak"]["each"].items() if one["leak"] > LEAK]
    if reasons:
        return {"success": False, "reasons": reasons}
    if judged.get("why"):
        return {"success": None, "reasons": [f"the leak is not known: {judged['why']}"]}
    return {"success": True, "reasons": []}


def geomean(values: Sequence[float]) -> float:
    """0 where any is 0 or less."""
    found = np.asarray(values, np.float64)
    return float(np.exp(np.log(found).mean())) if (found > 0).all() else 0.0


def _motion(tracks: Mapping[str, Track], reference: Reference) -> tuple[dict, dict]:
    playing = {name: reference.roles[name] for name in tracks if name in reference.roles}
    frames = len(next(iter(tracks.values())).path)
    paths = {actor: resampled(path, frames) for actor, path in reference.paths.items()}
    places, each = list(paths), {}
    for name, actor in playing.items():
        null = _null(paths[actor], places.index(actor), reference.others, frames)
        oracle = fidelity(paths[actor], paths[actor])
        score = fidelity(tracks[name].path, paths[actor])
        each[name] = {"score": score, "null": null, "oracle": oracle,
                      "normalised": float(np.clip((score - null) / max(oracle - null, 1e-3), 0, 1))}
    order = dict.fromkeys([*playing.values(), *paths])
    bound = binding({name: tracks[name].path for name in playing}, {actor: paths[actor] for actor in order}, playing)
    return _over(each), {"matrix": bound.matrix.tolist(), "roles": list(order), "assigned": bound.assigned,
                         "right": bound.right, "chance corrected": bound.corrected}


def _null(path: np.ndarray, role: int, others: Sequence[Sequence[np.ndarray]], frames: int) -> float:
    """What another motion's actor of the same place in its sentence would score, and what one that stands still would,
    on average. A path that is itself still has no null of the second kind."""
    scores = [fidelity(resampled(own[role], frames), path) for own in others if role < len(own)]
    still = fidelity(np.full((frames, 2), 0.5), path)
    return float(np.mean([*scores, *([still] if still == 0 else [])] or [0.0]))


def _over(each: Mapping[str, Mapping[str, float]]) -> dict:
    values = [one["normalised"] for one in each.values()]
    return {"each": dict(each), "min": float(min(values)), "geomean": geomean(values)}


def _points(path_F2: np.ndarray) -> list[list[float] | None]:
    return [[float(x), float(y)] if np.isfinite(x) else None for x, y in path_F2]
