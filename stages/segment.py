"""segment: phrases in, one mask track per actor out (METHOD 3.1), with an overlay sheet to look at.

A clip gives the actors of the motion, photos give the subject in them. What draws the masks is behind the seam of
segmenters/; the paper uses Grounded-SAM2. Of a clip this is also where the frames are chosen that every later stage
learns from: upright, by time stamp at the base's rate, in its aspect (core/sampling.py, core/framing.py).

Masks that a person has painted over since are kept when they are drawn anew.
"""
from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from . import STAGES, segmenters
from .backbones import base_of, video
from .core import store
from .core.errors import BadInput, UsageError
from .core.framing import fit_size
from .core.mask_sheet import Row, Sheet
from .core.report import Report, silent
from .core.sampling import sample
from .core.takes import FRAMES, take, write_take
from .core.video import extent, list_images, photos_of, read_mask, write_masks
from .core.workspace import Artifact, Plan, Workspace, keep, kept_names
from .findings import Seen, about_clip, cuts_of, facts_of, row_of, sheet_of
from .hints import hints_of
from .options import SegmentOptions
from .photos import COPIES
from .prompts import slug
from .segmenters import Hint, Instance, Masks, Segmenter, Setup, Source, models

PICTURED = (f"{FRAMES}/", f"{COPIES}/")   # what masks are drawn on
ASIDE = "masks-by-hand"                   # where edited masks go that no longer have a place
MOST = 512               # frames of a clip that are learned from: what a person would look at, and memory holds
USUAL = 0.5, 0.002       # what nobody asked for counts as found: in this share of the pictures, filling this of each


def segment(project: Workspace, name: str | None = None, options: SegmentOptions | None = None, *,
            clip: Path | None = None, images: Sequence[Path] | None = None, device: str = "cpu", dtype: str = "fp32",
            seed: int = 0, force: bool = False, report: Report = silent) -> Artifact:
    """Masks of a motion's clip or of a subject's photos -> masks/<actor>/0000.png ..., overlay.png; of a clip frames/
    and frames.json as well, and a copy of it, clip.<its ending>.

    name: "motions/riding", "subjects/toy" or the bare name; None: the project's motion. clip, images: files given by
    hand, in place of those that project.yaml names; they are kept beside the masks. What to look for: options.actors,
    else the bracketed words of the motion's prompt or the subject's class word, else what the segmenter knows to move.
    dtype and seed play no part.
    Raises BadInput for a clip or a photo that cannot be used, and where an actor is found in no picture; then the sheet
    that shows it lies under .partial/.
    """
    if clip and images:
        raise UsageError("segment was given a clip and photos", "give one of them: they are segmented apart")
    name = name or (project.settings.motion.name if project.settings.motion else "motion")
    if "/" not in name and (clip or images):
        name = f"motions/{name}" if clip else f"subjects/{name}"
    name = STAGES["segment"].folder(project, name)
    given = {"clip": Path(clip)} if clip else {"images": tuple(map(Path, images))} if images else {}
    plan = project.plan(STAGES["segment"], name, options, seed=seed, given=given)
    if plan.state() and not force:
        return plan.artifact()
    with plan.making(report, force=force) as out:
        finder = segmenters.load(plan.options.segmenter, setup_of(plan, device))
        seen = _clip(plan, out, report) if "clip" in plan.inputs else _photos(plan, out)
        found = look(finder, seen, plan)
        for phrase, (masks, _) in found.items():
            write_masks(out / "masks" / slug(phrase), masks, seen.names)
        aside = _keep_edits(plan, out, found, seen, report)
        rows = [row_of(phrase, masks, judged) for phrase, (masks, judged) in found.items()]
        sheet = sheet_of(plan, seen, rows)
        _all_found(plan, rows, sheet, asked=bool(plan.options.actors or plan.request["phrases"]))
        sheet.save(out / "overlay.png")
        _set_aside(plan, aside, report)
        plan.facts |= facts_of(rows, plan, seen)
        for row in rows:
            report(note=f"'{row.name}': {sheet.found(row)}")
    return plan.artifact()


def setup_of(plan: Plan, device: str) -> Setup:
    """What the options say of a segmenter. A model may be a folder of the project."""
    options, project = plan.options, plan.project
    return Setup(device, options.threshold, options.box_threshold, options.text_threshold, options.instances,
                 models.placed(options.detector, project), models.placed(options.tracker, project), options.through,
                 masks=plan.inputs.get("masks"))


def look(finder: Segmenter, seen: Seen, plan: Plan) -> dict[str, tuple[list[np.ndarray], Masks]]:
    """-> {phrase: (its mask (H, W) in each picture, what else is known of it)}, shot by shot. Where nobody says what to
    look for, only what is found is there. Raises BadInput where a segmenter does not know by itself what moves."""
    options = plan.options
    asked = list(options.actors or plan.request["phrases"])
    phrases = list(dict.fromkeys(asked or finder.usual))
    if not phrases:
        raise BadInput(f"nothing says what to look for in '{plan.name}'",
                       'say it: --actors person horse; or give the motion a prompt with brackets: "a [person] waves"')
    if twice := [phrase for phrase in phrases if [slug(other) for other in phrases].count(slug(phrase)) > 1]:
        raise UsageError(f"'{twice[0]}' and '{twice[1]}' would be one folder of masks, {slug(twice[0])}",
                         "name one of them otherwise, in the letters a to z")
    hints = hints_of(options.box, options.point, phrases, frame=options.frame,
                     sizes=[picture.shape[:2] for shot in seen.shots for picture in shot])
    asked += [hint.phrase for hint in hints]
    parts: dict[str, list[Masks]] = {phrase: [] for phrase in phrases}
    for k, (shot, source) in enumerate(zip(seen.shots, seen.sources)):
        own = hints if len(seen.shots) == 1 else [Hint(h.phrase, 0, h.box, h.points) for h in hints
                                                  if h.frame == k]
        for phrase, masks in finder.masks(shot, phrases, own, source).items():
            parts[phrase].append(masks)
    found = {phrase: _joined(shots) for phrase, shots in parts.items()}
    share, least = USUAL
    return {phrase: one for phrase, one in found.items()
            if phrase in asked or np.mean([mask.mean() >= least for mask in one[0]]) >= share}


def _joined(shots: list[Masks]) -> tuple[list[np.ndarray], Masks]:
    """The masks of all shots in a row. Of photos, each thing is counted in its own photo."""
    masks = [mask for shot in shots for mask in shot.masks]
    if len(shots) == 1:
        return masks, shots[0]
    instances = tuple(Instance(k, thing.box, thing.confidence, thing.taken)
                      for k, shot in enumerate(shots) for thing in shot.instances)
    notes = tuple(f"photo {k}: {note}" for k, shot in enumerate(shots) for note in shot.notes)
    sure = np.concatenate([shot.confidence for shot in shots])
    return masks, Masks(np.empty((0, 0, 0), bool), sure, instances, notes)


# -- what is looked at ------------------------------------------------------------------------------------------------
def _clip(plan: Plan, out: Path, report: Report) -> Seen:
    """Choose the frames of the clip, and keep them and the clip itself: a file byte by byte, a folder's pictures."""
    path, options = plan.inputs["clip"], plan.options
    base = video(base_of(plan.project), plan.project.settings.video)         # raises where the base cannot say
    there = extent(path, partial=options.allow_partial)
    times, count = there.times, there.count
    sampling = sample(times, count, fps=base.fps, frames=base.frames, start=options.start, seconds=options.seconds,
                      speed=options.speed, what=str(path))
    if len(sampling.chosen) > MOST:
        raise BadInput(f"{sampling.end - sampling.start:g} s of the clip are {len(sampling.chosen)} frames at the rate "
                       f"of the base, and at most {MOST} are taken", f"lower --seconds to {MOST * sampling.step:g}")
    frames, whole, part = take(path, sampling, (base.height, base.width), options.fit,
                               partial=options.allow_partial)
    write_take(out, frames, sampling)
    if path.is_dir():
        keep(list_images(path), out / "clip")
    else:
        shutil.copyfile(path, out / f"clip{path.suffix.lower()}")
    last = float(times[-1]) if times is not None else (count - 1) / base.fps
    about = about_clip(sampling, count, last, base.fps, whole.shape[:2], frames.shape[1:3], part, options.fit)
    plan.facts["frames of the clip"] = {"sound": count, "of": there.of}
    if count < there.of:
        about.append(f"The clip is damaged: decoded {count} of {there.of} frames, and these are taken "
                     "(--allow-partial).")
    if cuts := cuts_of(frames):
        about.append(f"The picture changes all at once at {'frame' if len(cuts) == 1 else 'frames'} "
                     f"{', '.join(map(str, cuts))}: if that is a cut, take one shot (--start, --seconds).")
    for line in about:
        report(note=line)
    labels = [f"frame {k}   {sampling.start + k * sampling.step:.2f} s" for k in range(len(frames))]
    names = [f"{k:04d}" for k in range(len(frames))]
    source = Source(count, sampling.chosen, whole.shape[:2], options.fit)
    return Seen([frames], [source], names, labels, about, whole, part, sampling)


def _photos(plan: Plan, out: Path) -> Seen:
    """The photos as they are, upright, each of its own size; copied under the names that their masks get."""
    paths = plan.inputs["images"]
    keep(paths, out / COPIES)
    names, shots = kept_names(paths), [photo[None] for photo in photos_of(paths)]
    stems = tuple(path.stem for path in paths)
    sources = [Source(len(paths), (k,), shot.shape[1:3], names=stems) for k, shot in enumerate(shots)]
    labels = [f"photo {k}   {shortened}   {shot.shape[2]} x {shot.shape[1]}"
              for k, (shot, shortened) in enumerate(zip(shots, (path.name[-24:] for path in paths)))]
    return Seen(shots, sources, names, labels, [f"{len(paths)} photos."])


# -- what comes of it -------------------------------------------------------------------------------------------------
def _keep_edits(plan: Plan, out: Path, found: dict[str, tuple[list[np.ndarray], Masks]], seen: Seen, report: Report
                ) -> list[str]:
    """Masks that a person changed take the places of the new ones, as long as their picture is the same and their actor
    is looked for -> the others, which shall not be lost. Where nothing tells any longer who drew what is there, that is
    all of it."""
    old = plan.recorded()
    if old is None:
        return [path.relative_to(plan.folder).as_posix() for path in sorted((plan.folder / "masks").glob("*/*.png"))]
    pictures = {Path(name).stem: sha for name, sha in old["files"].items() if name.startswith(PICTURED)}
    now = {path.stem: plan.project.sha256(path) for part in PICTURED for path in (out / part).glob("*")}
    folders, kept, aside = {slug(phrase): masks for phrase, (masks, _) in found.items()}, [], []
    for name in plan.edited(old):
        if not name.startswith(plan.stage.editable):
            continue
        _, folder, file = Path(name).parts
        stem = Path(file).stem
        if (out / name).is_file() and pictures.get(stem) == now.get(stem):
            masks, k = folders[folder], seen.names.index(stem)
            masks[k] = fit_size(read_mask(plan.folder / name)[None], masks[k].shape)[0]
            plan.kept[name] = plan.project.sha256(out / name)
            shutil.copyfile(plan.folder / name, out / name)
            kept.append(name)
        else:
            aside.append(name)
    if kept:
        report(note=f"{len(kept)} masks were edited by hand and are kept ({_few(kept)}); delete one to have it drawn "
                    "anew")
    return aside


def _set_aside(plan: Plan, names: Sequence[str], report: Report) -> None:
    """Copy masks that lose their places to ASIDE, under names that nothing has there."""
    for name in names:
        path, folder = plan.folder / name, plan.folder / ASIDE / Path(name).parent.name
        there = (folder / other for other in (path.name, *(f"{path.stem}-{n}.png" for n in range(2, 10_000))))
        store.write(next(o for o in there if not o.exists() or o.read_bytes() == path.read_bytes()), path.read_bytes())
    if names:
        report(note=f"{len(names)} masks were edited by hand for other pictures or actors: they are in "
                    f"{plan.project.show(plan.folder / ASIDE)} now ({_few(names)})")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")


def _all_found(plan: Plan, rows: list[Row], sheet: Sheet, *, asked: bool) -> None:
    """Raise BadInput for an actor that is nowhere; leave the sheet where it can be looked at."""
    nowhere = [row for row in rows if len(row.missing) == len(row.masks)]
    if rows and not nowhere:
        return
    plan.partial.mkdir(parents=True, exist_ok=True)
    place = plan.project.show(sheet.save(plan.partial / "overlay.png"))
    count = len(sheet.pictures)
    remedy = ("describe it in other words (--actors), lower --box-threshold or --threshold, point at it (--box), or "
              "give masks of your own: --segmenter given --masks FOLDER")
    if not rows:
        raise BadInput(f"nothing that is looked for by itself was found in {count} pictures ({place})",
                       f"say what to look for: --actors person horse; {remedy}" if not asked else remedy)
    notes = f" ({nowhere[0].notes[0]})" if nowhere[0].notes else ""
    raise BadInput(f"'{nowhere[0].name}' was found in none of {count} pictures{notes}; see {place}", remedy)


