"""What a person brings, as inputs of stages: the clip, the photos, masks, auxiliary clips. Imports no torch.

Typed, they may lie anywhere; what project.yaml names lies in the project (core/borders.py), and what does not is not
read: it is told where the stage would run.
"""
from __future__ import annotations

from dataclasses import replace

from .core.borders import astray, leaves, named
from .core.captions import select
from .core.errors import BadInput, VideomageError
from .core.workspace import Input, Workspace

__all__ = ["auxiliary", "clip", "kept_in", "missing_photo", "photos"]


def clip(project: Workspace, motion: str) -> Input:
    """The clip that project.yaml names, else the copy that segment keeps."""
    wanted = project.settings.motions.get(motion)
    kept = next(iter(sorted(project.motion_folder(motion).glob("clip*"))), project.motion_folder(motion) / "clip.mp4")
    path = project.locate(wanted.clip) if wanted and wanted.clip else kept
    what, problem = f"the clip of the motion '{motion}'", None
    if out := astray(path, project.border):
        path, problem = kept, leaves(what, out)
    return Input(path if path.exists() or not kept.exists() else kept, what, problem=problem,
                 remedy="name it: videomage segment CLIP, or motion.clip in project.yaml")


def photos(project: Workspace, name: str) -> Input:
    remedy = f"name them: videomage learn-subject {name} PHOTOS..., or subjects.{name}.images in project.yaml"
    return Input(project.photos(name), f"photos of the subject '{name}'", remedy=remedy,
                 problem=missing_photo(project, name))


def missing_photo(project: Workspace, subject: str) -> VideomageError | None:
    """What is wrong where one of the photos that project.yaml lists lies outside the project, or some are there and
    another is not. Where none is, the kept copies serve."""
    own = project.settings.subjects.get(subject)
    for item in own.images if own else ():
        if out := named(item, project.root, project.border)[1]:
            return leaves(f"a photo of the subject '{subject}'", out)
    listed = [item for item in own.images if not set("*?[") & set(item)] if own else []
    gone = [item for item in listed if not project.locate(item).exists()]
    if not gone or len(gone) == len(own.images):
        return None
    return BadInput(f"the photo {gone[0]} of the subject '{subject}' is not there",
                    f"mend subjects.{subject}.images in project.yaml")


def auxiliary(project: Workspace, options) -> Input:
    """The clips that L_reg will see and where their captions are: of a folder of thousands, what is used is hashed."""
    folder, what = project.locate(options.auxiliary), "auxiliary clips"
    if _written(project, "learn-subject", "auxiliary", options) and (out := astray(folder, project.border)):
        return Input((), what, problem=leaves(what, out))                # before links are followed to who knows where
    try:
        return Input(select(folder, options.auxiliary_count).files, what)
    except VideomageError as problem:
        return Input((), f"auxiliary clips ({problem.what})", problem=problem)


def kept_in(project: Workspace, source: Input, stage: str, option: str, options) -> Input:
    """A source that an option names: where project.yaml says so, it lies in the project; what was typed may lie
    anywhere."""
    if not _written(project, stage, option, options):
        return source
    paths = source.path if isinstance(source.path, tuple) else (source.path,)
    out = next(filter(None, (astray(path, project.border) for path in paths)), None)
    return replace(source, path=(), problem=leaves(source.what, out)) if out else source


def _written(project: Workspace, stage: str, option: str, options) -> bool:
    """Whether an option is as project.yaml has it. A path that is typed is made absolute, as the command line does."""
    written = {str(key).replace("-", "_"): value for key, value in project.settings.options.get(stage, {}).items()}
    return str(written.get(option)) == str(getattr(options, option))
