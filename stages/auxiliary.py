"""The auxiliary set of L_reg (METHOD 2): captioned clips that have nothing to do with the subject.

The paper takes them from Panda-70M. Here they are at most `auxiliary_count` clips of a folder (core/captions.py says
what may lie there), or, **ours**, so many drawn once from the frozen base itself. Their latents are kept in
.cache/auxiliary and shared by all subjects: which clips they are depends on no subject and on no seed.
"""
from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load_file, save_file
from torch import Tensor

from .backbones.unet3d import UNet3D as Backbone
from .core.captions import Captioned, Selection, select
from .core.denoise import draw, encode, gaussian, go_on
from .core.errors import BadInput, Locked
from .core.report import Report
from .core.takes import sampled
from .core.workspace import Workspace
from .options import LearnSubjectOptions
from .presets import auxiliary_prompts

NAMED = 5                                     # unusable clips that an error names


class Latents(NamedTuple):
    """The latents of one clip: the file that keeps them, its lock's name, how to make them (1, C, F, h, w), and what a
    report shows meanwhile."""

    path: Path
    lock: str
    make: Callable[[], Tensor]
    shown: dict[str, str]


def auxiliary(project: Workspace, backbone: Backbone, options: LearnSubjectOptions, report: Report
              ) -> list[tuple[str, Tensor]]:
    """The auxiliary set, [(caption, latents (1, C, F, h, w))]; none where lambda1 = 0.

    Raises BadInput or Refused where the folder cannot be used (see captions.select), or naming the clips that cannot.
    """
    if options.lambda1 == 0:
        return []
    return drawn(project, backbone, options, report) if options.auxiliary is None else \
        taken(project, backbone, options, report)


def drawn(project: Workspace, backbone: Backbone, options: LearnSubjectOptions, report: Report
          ) -> list[tuple[str, Tensor]]:
    """Auxiliary clips sampled from the frozen base (**ours**): clip k depends on k and its prompt alone."""
    prompts = auxiliary_prompts(project.settings.base, options.auxiliary_count)
    key = [backbone.revision, str(backbone.dtype), prompts, options.video_steps, options.guidance]
    folder = project.cache("auxiliary") / _digest(key)

    def make(prompt: str, k: int) -> Tensor:
        return draw(backbone, prompt, gaussian(backbone, backbone.frames, k), steps=options.video_steps,
                    guidance=options.guidance)

    clips = [Latents(folder / f"{k}.safetensors", f"auxiliary-{k}", partial(make, prompt, k), {"drawing": prompt})
             for k, prompt in enumerate(prompts)]
    if not all(clip.path.is_file() for clip in clips):
        report(note=f"no auxiliary set is named: {len(prompts)} clips are drawn from the base itself and kept")
    return list(zip(prompts, _shared(project, backbone, clips, report)))


def taken(project: Workspace, backbone: Backbone, options: LearnSubjectOptions, report: Report
          ) -> list[tuple[str, Tensor]]:
    """Auxiliary clips of the folder options.auxiliary, encoded. A clip's latents depend on its content, the part of it
    that is meant and the base; not on its name, its place or its caption."""
    found = select(project.locate(options.auxiliary), options.auxiliary_count)
    _tell(found, report)
    captions = [clip.text() for clip in found.clips]
    size, folder = (backbone.height, backbone.width), project.cache("auxiliary") / "clips"

    def make(clip: Captioned) -> Tensor:
        return encode(backbone, sampled(clip.path, fps=backbone.fps, frames=backbone.frames, size=size,
                                        window=clip.window)[None])

    def key(clip: Captioned) -> str:
        return _digest([project.sha256(clip.path), clip.window, backbone.frames, backbone.fps, size,
                        backbone.revision, str(backbone.dtype)])

    clips = [Latents(folder / f"{key(clip)}.safetensors", f"auxiliary-{key(clip)}", partial(make, clip),
                     {"encoding": clip.path.name}) for clip in found.clips]
    return list(zip(captions, _shared(project, backbone, clips, report)))


def _tell(found: Selection, report: Report) -> None:
    if found.absent:
        report(note=f"{found.absent} of {found.rows} rows of {found.table.name} name clips that are not in the folder")
    if found.of > len(found.clips):
        report(note=f"{len(found.clips)} of {found.of} auxiliary clips are taken, as auxiliary_count says")


def _shared(project: Workspace, backbone: Backbone, clips: Sequence[Latents], report: Report) -> list[Tensor]:
    """The latents of all clips. Subjects learned at once share the work: first what nobody makes, then the rest."""
    unusable: dict[int, str] = {}
    for wait in (False, True):
        for k, clip in enumerate(clips):
            if k in unusable or clip.path.is_file():
                continue
            try:
                with project.lock(clip.lock, wait=wait):
                    if not clip.path.is_file():
                        go_on()
                        _keep(clip.make(), clip.path)
                        report(step=k + 1, of=len(clips), **clip.shown)
            except Locked:
                continue
            except BadInput as error:                     # the others are made nevertheless: they wait for the next run
                unusable[k] = error.what
    if unusable:
        more = [f"{len(unusable) - NAMED} more"] if len(unusable) > NAMED else []
        raise BadInput(f"{len(unusable)} of {len(clips)} auxiliary clips cannot be used: "
                       f"{'; '.join([*list(unusable.values())[:NAMED], *more])}",
                       "Mend them, or take them out of the folder: others take their places")
    return [load_file(clip.path)["latents"].to(backbone.device) for clip in clips]


def _keep(latents: Tensor, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    save_file({"latents": latents.cpu()}, partial_path := path.with_suffix(".partial"))
    partial_path.replace(path)


def _digest(key: list) -> str:
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
