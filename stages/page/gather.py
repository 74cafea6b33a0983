"""What the page shows, read from a project. Whatever cannot be read is kept as a sentence: nothing is left out."""
from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..backbones import base_of, video
from ..core.errors import BadInput, MissingPrerequisite, UsageError, VideomageError
from ..core.foreign import read_json
from ..core.framing import fit_size
from ..core.settings import SAMPLE, did_you_mean
from ..core.stage import natural
from ..core.takes import read_take, read_track
from ..core.video import read_frames
from ..core.workspace import Workspace
from ..photos import Photo, read_photos
from .pictures import Picture, Sheet, drawn, fitting, picture, sheet

SCORES, SUMMARY, MANIFEST = "scores", "summary.json", ".manifest.json"
RATE = ("rate", "low", "high", "of")
ORDER = ("prompt", "subjects", "motion")                # of a sample's settings: what was asked, not how it was made
FPS = 8.0                                               # where the base does not say


@dataclass(frozen=True)
class Video:
    """A sample. asked: its prompt, subjects and motion; changed: the options that were typed for it. sheet: its frames,
    None with the reason in `missing`. score: scores/<name>.json, None with the reason in `unscored`."""

    name: str
    asked: Mapping[str, object] = field(default_factory=dict)
    seed: int | None = None
    changed: Mapping[str, object] = field(default_factory=dict)
    sheet: Sheet | None = None
    missing: str = ""
    score: Mapping[str, object] | None = None
    unscored: str = ""

    @property
    def prompt(self) -> str:
        return str(self.asked.get("prompt") or (self.score or {}).get("prompt") or "no prompt is known")

    @property
    def motion(self) -> str:
        return str(self.asked.get("motion") or (self.score or {}).get("motion") or "")

    @property
    def judged(self) -> dict[str, Mapping]:
        """{judge: its judgement}, the segmenter's first."""
        found = mapping((self.score or {}).get("judged"))
        return {who: mapping(found[who]) for who in sorted(found, key=lambda who: (who != "segmenter", who))}

    def success(self, judge: str | None = None) -> bool | None:
        """By this judge (None: the first). A video that is not there is no success, whoever judges; None where nobody
        can say."""
        judgement = self.judged.get(judge) if judge else next(iter(self.judged.values()), self.score)
        said = mapping(judgement).get("success")
        return False if said is None and self.sheet is None else said if isinstance(said, bool) else None


@dataclass(frozen=True)
class Subject:
    """photos: with their masks drawn, and whether there is one. problem: why there are none."""

    name: str
    class_word: str
    photos: Sequence[tuple[Picture, bool]] = ()
    problem: str = ""


@dataclass(frozen=True)
class Clip:
    """plain, masked: the frames that are learned from, without and with the masks of the actors."""

    name: str
    prompt: str
    actors: Sequence[str] = ()
    plain: Sheet | None = None
    masked: Sheet | None = None
    problem: str = ""


def mapping(value: object) -> Mapping:
    """The value where it is a mapping, else an empty one: a score may lack anything."""
    return value if isinstance(value, Mapping) else {}


def words(value: object) -> list[str]:
    """The words of a list; none where it is no list."""
    return [str(word) for word in value] if isinstance(value, list) else []


# -- samples ----------------------------------------------------------------------------------------------------------
def names_of(project: Workspace, samples: Sequence[str] | None = None) -> list[str]:
    """Every sample that is there, that was scored, or that was ordered and never came; or these. Raises UsageError for
    one that nobody knows, MissingPrerequisite where there is none."""
    scored = {path.stem for path in (project.root / SCORES).glob("*.json")
              if path.name != SUMMARY and not path.name.endswith(MANIFEST) and SAMPLE.fullmatch(path.stem)}
    there = sorted({*project.samples(), *scored, *_ordered(project)}, key=lambda name: natural(Path(name)))
    for name in samples or ():
        if name not in there:
            raise UsageError(f"there is no sample '{name}'", did_you_mean(name, there))
    if not there:
        raise MissingPrerequisite("there is no sample to show", "Run: videomage sample")
    return list(samples or there)


def read_video(project: Workspace, name: str) -> Video:
    """A sample as it is, whatever of it is missing or damaged."""
    folder = project.sample_folder(name)
    score, unscored = _score(project.root / SCORES / f"{name}.json")
    seen, missing, manifest = None, "", {}
    try:
        manifest = project.manifest(folder / "sample.json") or {}
        if (folder / "frames.png").is_file():
            seen = sheet(read_frames(folder / "frames.png"))
        else:
            missing = "it has no video: it failed, or was never finished"
    except VideomageError as error:
        missing = f"it has no video that can be read: {_told(project, error)}"
    if manifest:
        settings = mapping(manifest["settings"])
        changed = {key: settings.get(key) for key in manifest["overrides"] if key not in ORDER}
        asked, seed = mapping(manifest["request"]), manifest["seed"]
    else:
        order = _ordered(project).get(name, {})
        asked, seed, changed = mapping(order.get("request")), order.get("seed"), mapping(order.get("options"))
        seed = seed if isinstance(seed, int) else None
    return Video(name, asked, seed, changed, seen, missing, score, unscored)


def read_rates(project: Workspace) -> dict[str, Mapping]:
    """{judge: {"rate", "low", "high", "of", "unknown"}} of scores/summary.json; {} where it has none."""
    found, _ = _score(project.root / SCORES / SUMMARY)
    rates = {who: mapping(mapping(own).get("success")) for who, own in mapping((found or {}).get("judged")).items()}
    return {who: own for who, own in rates.items() if all(isinstance(own.get(key), (int, float)) for key in RATE)}


def _ordered(project: Workspace) -> dict[str, Mapping]:
    """{name: what was asked} of the samples whose numbers were given out and whose videos are not there yet."""
    found = {}
    for path in project.partial.glob("sample-*/order.json"):
        try:
            order = mapping(read_json(path))
        except (OSError, ValueError):
            order = {}
        found[path.parent.name.removeprefix("sample-")] = order
    return {name: order for name, order in found.items() if SAMPLE.fullmatch(name)}


def _score(path: Path) -> tuple[Mapping | None, str]:
    try:
        found = read_json(path)
    except FileNotFoundError:
        return None, "it has not been scored"
    except (OSError, ValueError):
        return None, f"{path.name} is damaged"
    return (found, "") if isinstance(found, Mapping) else (None, f"{path.name} is damaged")


# -- inputs -----------------------------------------------------------------------------------------------------------
def read_subject(project: Workspace, name: str) -> Subject:
    """The photos of a subject, the masks drawn in where they were segmented."""
    word, masks = "", project.subject_folder(name) / "masks"
    try:
        word = project.subject(name).class_word
        paths = project.photos(name)
        found = read_photos(paths, masks if masks.is_dir() else None)
    except VideomageError as error:
        return Subject(name, word, problem=_told(project, error))
    return Subject(name, word, [(_photo(photo), photo.mask is not None) for photo in found],
                   "" if found else "its photos are not there")


def _photo(photo: Photo) -> Picture:
    size = fitting(photo.picture.shape[:2])
    small = photo.fitted(size)
    return picture(drawn(small.picture[None], {} if small.mask is None else {"": small.mask[None]})[0])


def read_motion(project: Workspace, name: str) -> Clip:
    """The first window of a motion's clip, and its actors' masks."""
    folder, prompt, actors, plain = project.motion_folder(name), "", [], None
    try:
        prompt = project.motion(name).prompt
        take = read_take(folder)
        first, size = take.windows[0], fitting(take.frames.shape[1:3])
        frames = fit_size(take.window(), size)
        plain = sheet(frames, exact=False)
        if (folder / "masks").is_dir():
            actors = sorted(path.name for path in (folder / "masks").iterdir() if path.is_dir())
        masks = {actor: read_track(folder / "masks" / actor, range(first, first + len(frames)), size)
                 for actor in actors}
    except VideomageError as error:
        return Clip(name, prompt, [], plain, problem=_told(project, error))
    return Clip(name, prompt, actors, plain, sheet(drawn(frames, masks), exact=False) if actors else None)


def _told(project: Workspace, error: VideomageError) -> str:
    """What is wrong, with paths as the project has them: the page may be mailed."""
    return error.what.replace(f"{project.root}{os.sep}", "")


def rate(project: Workspace) -> float:
    """Frames per second of the project's videos."""
    try:
        return float(video(base_of(project), project.settings.video).fps)
    except (MissingPrerequisite, BadInput):
        return float(project.settings.video.get("fps", FPS))
