"""The auxiliary set of L_reg (METHOD 2): captioned clips that have nothing to do with the subject.

The paper takes them from Panda-70M. Here they are at most `auxiliary_count` clips of a folder (core/captions.py says
what may lie there), or, **ours**, so many drawn once from the frozen base itself. Their latents are kept in the cache
and shared by all subjects: which clips they are depends on no subject and on no seed.
"""
from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .backbones.unet3d import UNet3D as Backbone
from .core.captions import Captioned, Selection, select
from .core.denoise import drawing, encode, gaussian, go_on
from .core.errors import BadInput
from .core.report import Report, silent
from .core.takes import sampled
from .core.video import extent
from .core.workspace import Workspace
from .options import LearnSubjectOptions
from .presets import auxiliary_prompts

NAMED = 5                                     # unusable clips that an error names


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
    jobs = [drawing(backbone, prompt, gaussian(backbone, backbone.frames, k), steps=options.video_steps,
                    guidance=options.guidance) for k, prompt in enumerate(prompts)]
    if not all(backbone.cache.has("videos", key) for key, _ in jobs):
        report(note=f"no auxiliary set is named: {len(prompts)} clips are drawn from the base itself and kept")
    latents = backbone.cache.several("videos", jobs, made=lambda k: report(step=k + 1, of=len(jobs),
                                                                           drawing=prompts[k]))
    return [(prompt, x.to(backbone.device)) for prompt, x in zip(prompts, latents)]


def taken(project: Workspace, backbone: Backbone, options: LearnSubjectOptions, report: Report
          ) -> list[tuple[str, Tensor]]:
    """Auxiliary clips of the folder options.auxiliary, encoded. A clip's latents depend on its content, the part of it
    that is meant and the base; not on its name, its place or its caption. They are found by the file's hash, so that
    no clip is decoded again."""
    found = select(project.locate(options.auxiliary), options.auxiliary_count)
    _tell(found, report)
    captions = [clip.text() for clip in found.clips]
    size = (backbone.height, backbone.width)

    def job(clip: Captioned) -> tuple[list, Callable[[], Tensor]]:
        def make() -> Tensor:
            go_on()
            return encode(backbone, sampled(clip.path, fps=backbone.fps, frames=backbone.frames, size=size,
                                            window=clip.window, partial=options.allow_partial)[None], keep=False)

        whole = [project.sha256(clip.path), clip.window, backbone.frames, backbone.fps, size]
        return [*whole, "partial"] if options.allow_partial else whole, make

    unusable: list[str] = []                              # the others are made nevertheless: they wait for the next run
    latents = backbone.cache.several(
        "auxiliary", [job(clip) for clip in found.clips], failed=lambda k, error: unusable.append(error.what),
        made=lambda k: report(step=k + 1, of=len(captions), encoding=found.clips[k].path.name))
    if unusable:
        more = [f"{len(unusable) - NAMED} more"] if len(unusable) > NAMED else []
        raise BadInput(f"{len(unusable)} of {len(captions)} auxiliary clips cannot be used: "
                       f"{'; '.join([*unusable[:NAMED], *more])}",
                       "Mend them, or take them out of the folder: others take their places")
    return [(caption, x.to(backbone.device)) for caption, x in zip(captions, latents)]


def shortened(project: Workspace, options: LearnSubjectOptions, report: Report = silent) -> dict[str, list[int]]:
    """{clip: [frames before the damage, frames that it says it has]} of the damaged clips of the folder that are taken
    nevertheless, as allow_partial says; the report says so, too."""
    if not (options.auxiliary and options.lambda1):
        return {}
    out = {}
    for path in dict.fromkeys(clip.path for clip in select(project.locate(options.auxiliary), options.auxiliary_count
                                                            ).clips):
        go_on()
        try:
            there = extent(path, partial=True)
        except BadInput:                                  # `taken` says so, with all the others
            continue
        if there.count < there.of:
            out[path.name] = [there.count, there.of]
            report(note=f"the auxiliary clip {path.name} is damaged: decoded {there.count} of {there.of} frames, and "
                        "these are taken")
    return out


def _tell(found: Selection, report: Report) -> None:
    if found.absent:
        report(note=f"{found.absent} of {found.rows} rows of {found.table.name} name clips that are not in the folder")
    if found.of > len(found.clips):
        report(note=f"{len(found.clips)} of {found.of} auxiliary clips are taken, as auxiliary_count says")
