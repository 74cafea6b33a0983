"""VideoMage, one file per stage. This file is the table of stages: names, what each reads and where it leaves what it
makes. It imports no torch, so that `videomage status` and `--help` need none.

The library is `from stages.fuse import fuse` and its six siblings; they meet on disk, in a project (core/workspace.py).
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial

from . import materials
from .backbones import base_of, video
from .controls import control_of
from .core.errors import MissingPrerequisite
from .core.settings import check_name
from .core.workspace import Input, Stage, Workspace
from .options import OPTIONS, resolve
from .prompts import motion_prompt

__all__ = ["STAGES"]
STAGES: dict[str, Stage] = {}
CONTRACT = 3            # of evaluation: what a score file holds and how it is measured


# -- segment: names are "motions/NAME" or "subjects/NAME"; a bare name is looked up in the project -------------------
CLIPS_ALONE = {"start", "seconds", "speed", "fit"}
GROUNDED_ALONE = {"detector", "tracker", "through", "box_threshold", "text_threshold", "instances"}


def _segmented(project: Workspace, name: str) -> str:
    family, _, own = name.rpartition("/")
    family = family or ("motions" if name in project.motions() else "subjects")
    return f"{family}/{check_name(own, 'the motion' if family == 'motions' else 'the subject')}"


def _segment_ignores(folder: str, options) -> set[str]:
    """What does not shape these masks: of photos the options of clips, of others than Grounded-SAM2 its own."""
    return (CLIPS_ALONE if folder.startswith("subjects/") else set()) | ({"phrases"} if options.actors else set()) | {
        "grounded-sam2": set(), "clipseg": GROUNDED_ALONE, "given": {*GROUNDED_ALONE, "threshold"}}[options.segmenter]


def _fuse_ignores(folder: str, options) -> set[str]:
    """Of two subjects, and of none that is trained, it does not matter what the steps are counted for."""
    return {"steps_per"} if not options.steps or folder.count("+") == 1 else set()


def _segment_names(project: Workspace) -> list[str]:
    photos = [name for name in project.subjects() if (project.subject_folder(name) / "segment.json").exists()]
    return [*(f"motions/{name}" for name in project.motions()), *(f"subjects/{name}" for name in photos)]


def _segment_inputs(project: Workspace, name: str, options, request: Mapping) -> dict[str, Input]:
    family, own = _segmented(project, name).split("/", 1)
    if family == "motions":
        inputs = {"clip": materials.clip(project, own)}
    else:
        inputs = {"images": Input(project.photos(own), f"photos of the subject '{own}'",
                                  remedy=f"name them: videomage segment --name {own} PHOTOS...",
                                  problem=materials.missing_photo(project, own))}
    if options.masks:
        masks = Input(project.locate(options.masks), "the folder of masks", remedy="mend --masks")
        inputs["masks"] = materials.kept_in(project, masks, "segment", "masks", options)
    return inputs


def _segment_request(project: Workspace, name: str) -> dict:
    """What to look for where --actors says nothing: the clip's bracketed words, the photos' class word."""
    family, own = _segmented(project, name).split("/", 1)
    if family == "motions":
        prompt = project.motion(own).prompt if own in project.motions() else ""
        return {"phrases": list(motion_prompt(prompt).actors) if prompt else [], **_sampled_for(project)}
    return {"phrases": [project.subject(own).class_word] if _known(project, own) else []}


def _known(project: Workspace, subject: str) -> bool:
    """Whether somebody said what the subject is: project.yaml, or who learned it."""
    return subject in project.settings.subjects or (
        project.subject_folder(subject) / "learn-subject.json").is_file()


def _sampled_for(project: Workspace) -> dict:
    """The videos of the base, for which the clip's frames are sampled; nothing while the base cannot say."""
    try:
        return {"video": asdict(video(base_of(project), project.settings.video))}
    except MissingPrerequisite:
        return {}


def _prompt(project: Workspace, name: str) -> dict:
    prompt = project.motion(name).prompt if name in project.motions() else ""
    return {"prompt": prompt} if prompt else {}


def _frames(project: Workspace, motion: str) -> Input:
    """The frames that segment took of the clip (core/takes.py)."""
    folder = project.motion_folder(motion)
    return Input((folder / "frames", folder / "frames.json"), f"the frames of the clip of '{motion}'",
                 STAGES["segment"], f"motions/{motion}")


# -- invert, learn-motion --------------------------------------------------------------------------------------------
def _invert_inputs(project: Workspace, name: str, options, request: Mapping) -> dict[str, Input]:
    folder, made = project.motion_folder(name), {"stage": STAGES["segment"], "name": f"motions/{name}"}
    return {"frames": _frames(project, name),
            "masks": Input(folder / "masks", f"the masks of the actors of '{name}'", **made)}


def _motion_inputs(project: Workspace, name: str, options, request: Mapping) -> dict[str, Input]:
    path = project.motion_folder(name) / "tokens.safetensors"
    return {"frames": _frames(project, name),
            "tokens": Input(path, f"the actors' tokens of '{name}'", STAGES["invert"], name)}


# -- learn-subject, fuse ---------------------------------------------------------------------------------------------
def _subject_inputs(project: Workspace, name: str, options, request: Mapping) -> dict[str, Input]:
    inputs = {"images": materials.photos(project, name), **_photo_masks(project, name)}
    if options.auxiliary and options.lambda1 > 0:
        inputs["auxiliary"] = materials.auxiliary(project, options)
    return inputs


def _photo_masks(project: Workspace, name: str, label: str = "masks") -> dict[str, Input]:
    """Where the subject is in its photos; nothing for photos that were not segmented."""
    folder = project.subject_folder(name) / "masks"
    stage = STAGES["segment"] if (folder.parent / "segment.json").is_file() else None
    if stage is None and not folder.is_dir():
        return {}
    return {label: Input(folder, f"the masks of the photos of '{name}'", stage, f"subjects/{name}")}


def _subject_request(project: Workspace, name: str) -> dict:
    return {"class": project.subject(name).class_word} if _known(project, name) else {}


def _learned(project: Workspace, name: str) -> dict[str, Input]:
    """The LoRA and the token of one subject."""
    folder, made = project.subject_folder(name), {"stage": STAGES["learn-subject"], "name": name}
    return {f"{name}/lora": Input(folder / "lora.safetensors", f"the subject LoRA '{name}'", **made),
            f"{name}/token": Input(folder / "token.safetensors", f"the token of the subject '{name}'", **made)}


def _fuse_inputs(project: Workspace, name: str, options, request: Mapping) -> dict[str, Input]:
    inputs = {label: item for subject in name.split("+") for label, item in _learned(project, subject).items()}
    for subject in name.split("+") if options.cuts == "photos" else ():
        inputs |= {f"{subject}/images": materials.photos(project, subject),
                   **_photo_masks(project, subject, f"{subject}/masks")}
    return inputs


def _finder(project: Workspace, subjects: list[str]) -> dict:
    """How Grounded-SAM2 is set up where fuse looks with it: as the options of segment say. Nothing where it does not,
    because all cuts are from photos that were segmented."""
    options = resolve("fuse", project.settings)
    drawn = options.cuts == "photos" and all(_photo_masks(project, subject) for subject in subjects)
    if options.segmenter != "grounded-sam2" or drawn:
        return {}
    own = resolve("segment", project.settings)
    return {"finder": [own.detector, own.tracker, own.through, own.box_threshold, own.text_threshold]}


def _fuse_request(project: Workspace, name: str) -> dict:
    """The subjects and their plain class words, which the segmenter looks for in their videos."""
    known, subjects = project.subjects(), name.split("+")
    return {"subjects": {subject: project.subject(subject).class_word for subject in subjects}
            if all(subject in known for subject in subjects) else {}, **_finder(project, subjects)}


# -- sample, eval ----------------------------------------------------------------------------------------------------
def _sample_inputs(project: Workspace, name: str, options, request: Mapping) -> dict[str, Input]:
    """Tokens of each subject and one LoRA (its own, or the fused one); the motion's LoRA and its inverted noise."""
    subjects, motion = list(request.get("subjects") or ()), request.get("motion")
    inputs = {label: item for subject in subjects for label, item in _learned(project, subject).items()}
    if len(subjects) > 1:
        key = "+".join(sorted(subjects))
        inputs = {label: item for label, item in inputs.items() if label.endswith("/token")}
        path = project.fused_folder(subjects) / "lora.safetensors"
        inputs["fused"] = Input(path, f"the fused LoRA of {key}", STAGES["fuse"], key)
    if motion:
        folder = project.motion_folder(motion)
        inputs["motion/lora"] = Input(folder / "lora.safetensors", f"the motion LoRA '{motion}'",
                                      STAGES["learn-motion"], motion)
        inputs["motion/noise"] = Input(folder / "noise.safetensors", f"the inverted noise of '{motion}'",
                                       STAGES["invert"], motion)
    if motion and subjects and options.inverted == "cast" and options.beta > 0:
        inputs |= {f"motion/{label}": item for label, item in _invert_inputs(project, motion, options, request).items()}
        for subject in subjects:
            inputs |= {f"{subject}/images": materials.photos(project, subject),
                       **_photo_masks(project, subject, f"{subject}/masks")}
    return inputs


def _sample_request(project: Workspace, name: str) -> dict:
    """What was asked of a sample: its prompt, subjects and motion, as its manifest has them."""
    manifest = project.manifest(project.sample_folder(name) / "sample.json")
    return dict(manifest["request"]) if manifest else {}


def _score_request(project: Workspace, name: str) -> dict:
    """That of the sample, and which contract it is judged by: scores of another one are stale."""
    return {**_sample_request(project, name), "contract": CONTRACT}


def _score_inputs(project: Workspace, name: str, options, request: Mapping) -> dict[str, Input]:
    """The frames of the sample and of its control, the photos of all subjects, the actors of its motion and of others.
    What the sample does not show is compared with where it is there."""
    frames, own = project.sample_folder(name) / "frames.png", request.get("subjects") or ()
    inputs = {"frames": Input(frames, f"the frames of the sample '{name}'", STAGES["sample"], name)}
    theirs: dict[str, Input] = {}
    for subject in dict.fromkeys([*own, *project.subjects()]):
        photos = {f"photos-{subject}": Input(project.photos(subject), f"photos of the subject '{subject}'",
                                             STAGES["learn-subject"], subject)}
        (inputs if subject in own else theirs).update(photos | _photo_masks(project, subject, f"masks-{subject}"))
    for motion in dict.fromkeys([*filter(None, [request.get("motion")]), *project.motions()]):
        (inputs if motion == request.get("motion") else theirs).update({
            f"{label}:{motion}": item for label, item in _invert_inputs(project, motion, options, {}).items()})
    inputs |= {label: replace(item, stage=None) for label, item in theirs.items() if item.files()}
    if control := control_of(project, name):
        inputs["control"] = Input(project.sample_folder(control[0]) / "frames.png", f"the sample '{control[0]}'")
    for label in ("clip", "dino"):
        if getattr(options, label):
            folder = project.locate(getattr(options, label))
            inputs[label] = Input(folder, f"the {label.upper()} model", remedy=f"mend --{label}")
    return inputs


def _add(name: str, kind: str, summary: str, *, function: str = "", **rest) -> None:
    module = name.replace("-", "_")
    STAGES[name] = Stage(name=name, function=function or f"stages.{module}:{module}", options=OPTIONS[name], kind=kind,
                         summary=summary, intent=partial(resolve, name), **rest)


_add("segment", "motion", "Find the actors of a clip, or the subject of photos: a mask track for each.",
     needs=(), files=("masks", "overlay.png"), editable=("masks/",), ignores=_segment_ignores, folder=_segmented,
     names=_segment_names, inputs=_segment_inputs, request=_segment_request,
     command=lambda name: f"videomage segment {name.split('/')[-1]}", uses_base=False)
_add("invert", "motion", "Learn the looks of the clip's actors as tokens, and find the noise the clip came from.",
     needs=("segment",), files=("tokens.safetensors", "noise.safetensors", "invert-preview.png"),
     folder=lambda project, name: f"motions/{name}", names=Workspace.motions, inputs=_invert_inputs, request=_prompt,
     command=lambda name: f"videomage invert {name}")
_add("learn-subject", "subject", "Learn a subject from a few photos: a token, and a LoRA in the spatial layers.",
     needs=(), files=("lora.safetensors", "token.safetensors", "learn-subject-preview.png"),
     folder=lambda project, name: f"subjects/{name}", names=Workspace.subjects, inputs=_subject_inputs,
     request=_subject_request, command=lambda name: f"videomage learn-subject {name}")
_add("learn-motion", "motion", "Learn the clip's motion without its looks: a LoRA in the temporal layers.",
     needs=("segment", "invert"), files=("lora.safetensors", "learn-motion-preview.png"),
     folder=lambda project, name: f"motions/{name}", names=Workspace.motions, inputs=_motion_inputs, request=_prompt,
     command=lambda name: f"videomage learn-motion {name}")
_add("fuse", "fused", "Fuse the LoRAs of two or more subjects into one that keeps them apart.",
     needs=("learn-subject",), files=("lora.safetensors", "fuse-preview.png"),
     folder=lambda project, name: f"fused/{name}", names=Workspace.fusions, inputs=_fuse_inputs, request=_fuse_request,
     ignores=_fuse_ignores,
     command=lambda name: f"videomage fuse --subjects {name.replace('+', ' ')}")
_add("sample", "sample", "Make the video: subjects and motion in one denoising, Algorithm 1.",
     needs=("learn-subject", "fuse", "invert", "learn-motion"),
     files=("video.mp4", "frames.png", "sheet.png", "log.json"), folder=lambda project, name: f"samples/{name}",
     names=Workspace.samples, inputs=_sample_inputs, request=_sample_request, command=lambda name: "videomage sample")
_add("eval", "score", "Judge the videos: what succeeds, and the paper's scores.", function="stages.evaluate:evaluate",
     needs=("sample",), files=("{name}.json",), folder=lambda project, name: "scores", names=Workspace.samples,
     inputs=_score_inputs, request=_score_request, command=lambda name: f"videomage eval {name}", uses_base=False,
     manifest="{name}.manifest.json")
