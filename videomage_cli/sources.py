"""What a person typed as sources: a clip, photos, a folder of them, or a name of the project."""
from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

from stages import STAGES
from stages.core.borders import check_inside, inside
from stages.core.errors import UsageError
from stages.core.kinds import CLIPS, PICTURES
from stages.core.settings import FILE, check_name, did_you_mean
from stages.core.stage import natural
from stages.core.workspace import IMAGES, Workspace
from stages.options import show

from . import console

if TYPE_CHECKING:
    from .flags import Run

REAL = ("zeroscope", "modelscope")          # bases of filmed video, the better first
Given = dict[str, Path | tuple[Path, ...]]


def ensure_project(run: Run, sources: list[str], name: str | None, base: str | None) -> None:
    """Where the folder holds no project yet, make one that names these sources, so that what follows can find them.
    Without sources, and for --dry-run, nothing is made. Raises UsageError for a base given where there is a project."""
    if (run.folder / FILE).is_file():
        if base:
            raise UsageError("--base is for a new project, and there is one", f"change it in {run.folder / FILE}")
        return
    if not sources or run.dry_run:
        return
    from stages.backbones import terms
    from stages.backbones.bases import find

    base = base or next((known for known in REAL if find(known)), "sprites")
    clip = _is_clip(sources)
    paths = [_there(source) for source in sources] if clip else list(photos_of(sources))
    own = check_name(name or _plain(paths[0].stem if clip else paths[0].absolute().parent.name),
                     "the motion" if clip else "the subject")
    _readable(paths, bool(run.typed.get("allow_partial")))      # a project that names what cannot be used is no help
    listed = _listed(paths, run.folder)
    actors = run.typed.get("actors") or [own]
    class_word = actors[0] if len(actors) == 1 else own
    subjects = {} if clip else {own: {"class": class_word, **({"images": listed} if listed else {})}}
    Workspace.create(run.folder, base=base, subjects=subjects,
                     motion={"name": own, **({"clip": listed[0]} if listed else {})} if clip else None)
    console.say(f"a new project on {base} ({terms(base)}): {run.folder / FILE}")
    if not clip and not run.typed.get("actors"):
        console.say(f"a '{class_word}' is looked for in the photos; another word: --actors, and class in {FILE}")
    if base == "sprites" and "segmenter" not in run.typed:
        console.say("its segmenter knows the rendered world of sprites only; for filmed material: videomage fetch "
                    "grounded-sam2, and --segmenter grounded-sam2")


def _listed(paths: list[Path], folder: Path) -> list[str]:
    """As project.yaml names them; nothing where one lies outside the project: there the copies that segment keeps stand
    for them."""
    if not all(inside(path, folder.resolve()) for path in paths):
        return []
    return [Path(os.path.relpath(path.absolute(), folder.absolute())).as_posix() for path in paths]


def _is_clip(sources: list[str]) -> bool:
    """Whether one clip was typed. Where the ending leaves open if it is animated, the content decides."""
    if len(sources) != 1 or (kind := Path(sources[0]).suffix.lower()) not in CLIPS:
        return False
    if kind not in IMAGES:
        return True
    from stages.core.video import count_pictures

    path = _there(sources[0])
    return path.is_file() and count_pictures(path) > 1


def _plain(name: str) -> str:
    letters = "".join(c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    return re.sub(r"[^a-z0-9_-]+", "-", letters.lower()).strip("-_")[:63] or "clip"


def typed_before(run: Run, name: str, anew: bool) -> None:
    """`videomage segment NAME` goes on with what was typed for these masks before, wherever nothing else is typed now:
    a command that mends must not undo what it does not mention. anew: files are typed, so it begins anew."""
    old = run.project.manifest(run.project.plan(STAGES["segment"], name).manifest_path) if not anew else None
    if old is None:
        return
    before = {key: old["settings"][key] for key in old["overrides"] if hasattr(run.options, key)}
    finder = run.typed.get("segmenter") or before.get("segmenter") or run.options.segmenter
    if finder == "given" and "masks" in old["given"] and old["options"].get("masks"):
        masks = run.project.locate(str(old["options"]["masks"]))
        before["masks"] = check_inside(masks, run.project.border, "type it again: --masks FOLDER")
    before = {key: value for key, value in before.items() if key not in run.typed}
    if before:
        run.typed = {**before, **run.typed}
        del run.options                                          # resolved before: once more
        words = {key: show(tuple(v) if isinstance(v, list) else v) for key, v in before.items()}
        told = " ".join(f"--{key.replace('_', '-')} {words[key]}".removesuffix(" True") for key in before)
        console.say(f"as before: {told}")


def segment_sources(project: Workspace, sources: list[str], name: str | None) -> tuple[str, Given]:
    """-> ("motions/NAME" or "subjects/NAME", the inputs named by hand). Raises UsageError for what is none of these."""
    if not sources:
        return name or f"motions/{project.motion().name}", {}
    if _is_clip(sources):
        clip = _there(sources[0])
        mine = next((motion.name for motion in project.settings.motions.values() if not motion.clip
                     or project.locate(motion.clip).resolve() == clip.resolve()), None)
        own = name or mine or _plain(clip.stem)
        old = None if name or mine else project.manifest(project.root / "motions" / own / "segment.json")
        if old and old["inputs"].get("clip") not in (None, project.sha256(clip)):
            raise UsageError(f"the motion '{own}' is of another clip", f"call this one otherwise: --name {own}-2")
        return f"motions/{check_name(own, 'the motion')}", {"clip": clip}
    family, _, own = sources[0].partition("/")
    if len(sources) == 1 and own in {"motions": project.motions(), "subjects": project.subjects()}.get(family, ()):
        return sources[0], {}                                    # as `status` calls it
    if len(sources) == 1 and not Path(sources[0]).suffix and "/" not in sources[0] and not Path(sources[0]).exists():
        motions, subjects = project.motions(), project.subjects()
        if sources[0] not in (*motions, *subjects):
            raise UsageError(f"'{sources[0]}' is no file, motion or subject",
                             did_you_mean(sources[0], [*motions, *subjects]))
        return f"{'motions' if sources[0] in motions else 'subjects'}/{sources[0]}", {}
    photos = photos_of(sources)
    return f"subjects/{check_name(name or _owner(project, photos), 'the subject')}", {"images": photos}


def _readable(paths: list[Path], partial: bool) -> None:
    """Raise BadInput for a clip or a photo whose content cannot be read; partial: not for a clip that has a sound
    beginning."""
    from stages.core.video import count_pictures, extent

    for path in paths:
        if path.suffix.lower() in IMAGES:
            count_pictures(path)
        else:
            extent(path, partial=partial)


def photos_of(sources: list[str]) -> tuple[Path, ...]:
    """Files and folders of photos, as typed -> files. Raises UsageError for one that is not there."""
    found: list[Path] = []
    for source in map(_there, sources):
        if source.is_file() and source.suffix.lower() not in IMAGES:
            kind = "a clip, and clips are segmented one at a time" if source.suffix.lower() in CLIPS else "no photo"
            raise UsageError(f"{source} is {kind}", f"photos end in {', '.join(sorted(PICTURES))}")
        inside = source.iterdir() if source.is_dir() else [source]
        found += sorted((path for path in inside if path.suffix.lower() in IMAGES), key=natural)
    if not found:
        raise UsageError(f"{', '.join(sources)}: no photos there", f"their names end in {', '.join(sorted(PICTURES))}")
    return tuple(found)


def _there(source: str) -> Path:
    """A file or folder that was typed, and can be looked into."""
    path = Path(source)
    try:
        if not path.exists():
            raise UsageError(f"there is no file {source}", "mind the folder that you are in")
        if path.is_dir():
            next(path.iterdir(), None)
    except OSError as error:
        raise UsageError(f"{source} cannot be reached ({error.strerror})", "see who may read it") from None
    return path


def _owner(project: Workspace, photos: tuple[Path, ...]) -> str:
    """The subject whose photos these are, else the name of their folder."""
    here = {path.resolve() for path in photos}
    owners = [name for name in project.subjects() if here <= {path.resolve() for path in project.photos(name)}]
    return owners[0] if owners else _plain(photos[0].absolute().parent.name)
