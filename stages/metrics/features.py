"""What the feature scores have in common: L2-normalised features per picture, cosines, plain means.

**Nothing is skipped**: where a picture, a reference or a subject is missing, or a feature is not a number, there is an
error and no mean over the rest. Legend: F frames, R references, D width of a feature.
"""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import BadInput, NumericError, UsageError

SPRITES = Path(__file__).parent.parent / "sprites" / "weights"


def folder_of(name: str, folder: Path | str | None, base: str) -> Path:
    """The folder of a judge, "clip" or "dino": the one given, else the one that comes with the sprites base. Raises
    UsageError for another base: a judge that knows only coloured shapes says nothing about real videos."""
    if folder is None and base != "sprites":
        raise UsageError(f"the {name.upper()} model for videos of the base '{base}' was not named",
                         f"name its folder: --{name} FOLDER")
    return Path(folder) if folder is not None else SPRITES / name


def unit(features_ND: Tensor) -> Tensor:
    """Each row divided by its length, in float64. Raises NumericError for a row that is not finite or is zero."""
    features = features_ND.double()
    lengths = features.norm(dim=-1, keepdim=True)
    bad = torch.nonzero(~(torch.isfinite(lengths) & (lengths > 0)).flatten()).flatten().tolist()
    if bad:
        raise NumericError(f"the feature of picture or text {bad[0]} is zero or not finite",
                           "look at the video; where it is sound, the model's folder is damaged")
    return features / lengths


def mean_cosine(a_ND: Tensor, b_MD: Tensor) -> float:
    """The mean of cos(a_n, b_m) over all N x M pairs."""
    for features in (a_ND, b_MD):
        if features.ndim != 2 or len(features) == 0:
            raise BadInput(f"features come as (N, D) with one row at least, not as {tuple(features.shape)}",
                           "give at least one picture")
    return float((unit(a_ND) @ unit(b_MD).T).mean())


def likeness(frames_FD: Tensor, references: Mapping[str, Tensor]) -> float:
    """CLIP-I and DINO-I: for each subject the mean over frames and its reference pictures {name: (R, D)}, then the mean
    over subjects (which so count alike, however many photos each has)."""
    if not references:
        raise BadInput("there is no subject to compare the video with", "score a sample that shows a subject")
    for name, features in references.items():
        if len(features) == 0:
            raise BadInput(f"the subject '{name}' has no reference pictures", "give its photos in project.yaml")
    return sum(mean_cosine(frames_FD, features) for features in references.values()) / len(references)
