"""segment: phrases in, one mask track per actor out (METHOD 3.1), with an overlay sheet to look at.

A clip gives the actors of the motion, photos give the subject in them. What draws the masks is behind the seam of
segmenters/; the paper uses Grounded-SAM2.
"""
from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from . import STAGES, segmenters
from .core.errors import BadInput, UsageError
from .core.report import Report, silent
from .core.sheets import contact_sheet, overlay
from .core.video import read_clip, read_images, write_masks, write_video
from .core.workspace import Artifact, Workspace, keep
from .options import SegmentOptions
from .prompts import slug

SHOWN = 8          # frames of the overlay sheet


def segment(project: Workspace, name: str | None = None, options: SegmentOptions | None = None, *,
            clip: Path | None = None, images: Sequence[Path] | None = None, device: str = "cpu", dtype: str = "fp32",
            seed: int = 0, force: bool = False, report: Report = silent) -> Artifact:
    """Masks of a motion's clip or of a subject's photos -> masks/<actor>/0000.png ..., overlay.png.

    name: "motions/riding", "subjects/toy" or the bare name; None: the project's motion. clip, images: files given by
    hand, in place of those that project.yaml names; they are kept beside the masks. What to look for: options.actors,
    else the bracketed words of the motion's prompt, else the subject's class word. dtype and seed play no part.
    Raises BadInput where nothing says what to look for, or where an actor is found in no frame.
    """
    if clip and images:
        raise UsageError("segment was given a clip and photos", "give one of them: they are segmented apart")
    name = name or (project.settings.motion.name if project.settings.motion else "motion")
    if "/" not in name and (clip or images):
        name = f"motions/{name}" if clip else f"subjects/{name}"
    given = {"clip": Path(clip)} if clip else {"images": tuple(map(Path, images))} if images else {}
    plan = project.plan(STAGES["segment"], name, options, seed=seed, given=given)
    if plan.state() and not force:
        return plan.artifact()
    phrases = list(plan.options.actors or plan.request["phrases"])
    if not phrases:
        raise BadInput(f"nothing says what to look for in '{name}'",
                       'say it: --actors person horse; or give the motion a prompt with brackets: "a [person] waves"')
    with plan.making(report, force=force) as out:
        frames_FHWC = _keep(plan.inputs, out)
        masks = segmenters.load(plan.options.segmenter, segmenters.Setup(
            device, plan.options.threshold, masks=plan.inputs.get("masks"))).masks(frames_FHWC, phrases)
        tracks = {phrase: masks[phrase].masks for phrase in phrases}
        plan.facts["shares of the frames"] = _shares(tracks, report)
        for phrase, track in tracks.items():
            write_masks(out / "masks" / slug(phrase), track)
        shown = np.linspace(0, len(frames_FHWC) - 1, min(SHOWN, len(frames_FHWC))).round().astype(int)
        contact_sheet([(name, overlay(frames_FHWC[shown], {p: t[shown] for p, t in tracks.items()}))],
                      out / "overlay.png", scale=1)
    return plan.artifact()


def _keep(inputs: Mapping[str, Path | tuple[Path, ...]], out: Path) -> np.ndarray:
    """Copy the clip or the photos into the project -> their frames (F, H, W, 3). An mp4 is copied byte by byte. Photos
    of several sizes are looked at in the shape of the first one."""
    if "clip" in inputs:
        frames = read_clip(inputs["clip"])
        if inputs["clip"].suffix == ".mp4":
            shutil.copyfile(inputs["clip"], out / "clip.mp4")
        else:
            write_video(out / "clip.mp4", frames)
        return frames
    keep(inputs["images"], out / "images")
    size = read_images(inputs["images"][:1]).shape[1:3]
    return read_images(inputs["images"], size)


def _shares(tracks: Mapping[str, np.ndarray], report: Report) -> dict[str, list[float]]:
    """How much of each frame each actor fills. Raises BadInput for one that is nowhere."""
    shares = {phrase: [round(float(mask.mean()), 4) for mask in track] for phrase, track in tracks.items()}
    for phrase, share in shares.items():
        seen = sum(value > 0 for value in share)
        if not seen:
            raise BadInput(f"'{phrase}' was found in none of {len(share)} pictures",
                           "describe it in other words (--actors), lower --threshold, or give masks of your own: "
                           "--segmenter given --masks FOLDER")
        report(note=f"'{phrase}': in {seen} of {len(share)} pictures, {np.mean(share):.1%} of them")
    return shares
