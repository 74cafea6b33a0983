"""What a person typed as sources: a clip, photos, a folder of them, or a name of the project."""
from __future__ import annotations

from pathlib import Path

from stages.core.errors import UsageError
from stages.core.settings import did_you_mean
from stages.core.stage import natural
from stages.core.workspace import IMAGES, Workspace

CLIPS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".gif")
Given = dict[str, Path | tuple[Path, ...]]


def segment_sources(project: Workspace, sources: list[str], name: str | None) -> tuple[str, Given]:
    """-> ("motions/NAME" or "subjects/NAME", the inputs named by hand). Raises UsageError for what is none of these."""
    wanted = project.settings.motion
    if not sources:
        return name or f"motions/{project.motion().name}", {}
    if len(sources) == 1 and Path(sources[0]).suffix.lower() in CLIPS:
        clip = _there(sources[0])
        return f"motions/{name or (wanted.name if wanted else clip.stem)}", {"clip": clip}
    if len(sources) == 1 and not Path(sources[0]).suffix and not Path(sources[0]).exists():
        motions, subjects = project.motions(), project.subjects()
        if sources[0] not in (*motions, *subjects):
            raise UsageError(f"'{sources[0]}' is no file, motion or subject",
                             did_you_mean(sources[0], [*motions, *subjects]))
        return f"{'motions' if sources[0] in motions else 'subjects'}/{sources[0]}", {}
    photos = photos_of(sources)
    return f"subjects/{name or _owner(project, photos)}", {"images": photos}


def photos_of(sources: list[str]) -> tuple[Path, ...]:
    """Files and folders of photos, as typed -> files. Raises UsageError for one that is not there."""
    found: list[Path] = []
    for source in map(_there, sources):
        inside = source.iterdir() if source.is_dir() else [source]
        found += sorted((path for path in inside if path.suffix.lower() in IMAGES), key=natural)
    if not found:
        raise UsageError(f"{', '.join(sources)}: no photos there", f"their names end in {', '.join(IMAGES)}")
    return tuple(found)


def _there(source: str) -> Path:
    if not Path(source).exists():
        raise UsageError(f"there is no file {source}", "mind the folder that you are in")
    return Path(source)


def _owner(project: Workspace, photos: tuple[Path, ...]) -> str:
    """The subject whose photos these are, else the name of their folder."""
    here = {path.resolve() for path in photos}
    owners = [name for name in project.subjects() if here <= {path.resolve() for path in project.photos(name)}]
    return owners[0] if owners else photos[0].absolute().parent.name
