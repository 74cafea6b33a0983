"""project.yaml: what the human wants. Read and checked here, written only once (by `videomage init`)."""
from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from . import formats, store
from .errors import BadInput, Refused, UsageError
from .foreign import parse_yaml, read_yaml

FILE = "project.yaml"
KEYS = (formats.KEY, "base", "preset", "video", "subjects", "motion", "motions", "prompts", "options")
PRESET_NAMES = ("tuned", "paper")
SUBJECT_KEYS = ("class", "images")
MOTION_KEYS = ("name", "clip", "prompt")
MORE_KEYS = ("clip", "prompt")                     # of one of several motions, which its key names
VIDEO_KEYS = ("frames", "fps", "height", "width")
LONGEST = 10_000                                   # characters of a prompt; a text encoder reads 77 tokens
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")            # of a subject, a motion, a sweep
FUSED = re.compile(rf"{NAME.pattern}(\+{NAME.pattern})*")    # of several subjects: "dog+toy"
SAMPLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.,=+-]{0,199}")       # "0001-toy-is-riding"; of a sweep, its options


@dataclass(frozen=True)
class Subject:
    """A subject to learn: name `toy` (its token is `<toy>`), its plain class word, and where its photos are."""

    name: str
    class_word: str
    images: tuple[str, ...] = ()          # files, folders or globs, relative to the project


@dataclass(frozen=True)
class Motion:
    """The motion to learn: a clip, and a prompt that puts its actors in brackets, "a [person] is riding a [horse]"."""

    name: str
    clip: str | None = None               # relative to the project
    prompt: str = ""


@dataclass(frozen=True)
class Settings:
    """The whole of project.yaml. options: {stage: {option: value}} as written; options.resolve checks them. video: what
    shall be otherwise than the base's own of VIDEO_KEYS, in frames, frames per second and pixels. preset: "tuned", all
    that suits the base, or "paper", the method as published (presets.py). motion: the one that is meant where none is
    named; motions: every one, {name: Motion}, it among them."""

    base: str = "sprites"
    preset: str = "tuned"
    subjects: Mapping[str, Subject] = field(default_factory=dict)
    motion: Motion | None = None
    motions: Mapping[str, Motion] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()
    options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    video: Mapping[str, int] = field(default_factory=dict)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """"did you mean 'steps'?", or the list of what there is."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"there is: {', '.join(known) or 'nothing'}"


def check_name(name: str, what: str, where: str | None = None) -> str:
    """A name becomes a folder and a token: NAME. Raises Refused for anything that leaves the project, BadInput (or
    UsageError when no file is to blame) for other characters."""
    if ".." in name or name.startswith(("/", "~")):
        raise Refused(f"{what} '{name}' would leave the project folder", "use a plain name, such as toy")
    if not NAME.fullmatch(name):
        blame = BadInput if where else UsageError
        raise blame(f"{where + ': ' if where else ''}{what} '{name}' is not a plain name",
                    "use small letters, digits, - and _ only, at most 63: it names a folder and the token <name>")
    return name


def check_prompt(text: str) -> str:
    """A prompt or a caption as it is. Raises BadInput for one that is too long to be any."""
    if len(text) > LONGEST:
        raise BadInput(f"the prompt '{text[:40]}...' has {len(text)} characters, and {LONGEST} are read at most",
                       "write it shorter")
    return text


def _mapping(value: object, where: str, keys: Iterable[str] | None = None) -> Mapping[str, object]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadInput(f"{FILE}: {where} should be a mapping, not {type(value).__name__}",
                       "see the comments of a new project: videomage init")
    for key in value:
        if keys is not None and key not in keys:
            raise BadInput(f"{FILE}: unknown key '{key}' in {where}", did_you_mean(str(key), keys))
    found: dict[str, object] = {}
    for key, item in value.items():
        if str(key) in found:                                      # a number and a text, say
            raise BadInput(f"{FILE}: {where} has the key '{key}' twice", "keep one of them")
        found[str(key)] = item
    return found


def _words(value: object, where: str) -> tuple[str, ...]:
    """A string or a list of strings -> a tuple."""
    if value is None:
        return ()
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise BadInput(f"{FILE}: {where} should be text or a list of texts", f"it is {value!r}")
    return tuple(items)


def parse(data: object) -> Settings:
    """The parsed YAML -> Settings. Raises BadInput naming the key, with a did-you-mean for a misspelt one."""
    if isinstance(data, Mapping):                     # of a newer one not even the keys are known
        formats.number(data.get(formats.KEY), formats.PROJECT, FILE)
    top = _mapping(data, "the file", KEYS)
    subjects = {}
    for name, entry in _mapping(top.get("subjects"), "subjects").items():
        entry = _mapping(entry, f"subjects.{name}", SUBJECT_KEYS)
        class_word = _words(entry.get("class"), f"subjects.{name}.class")
        if len(class_word) != 1:
            raise BadInput(f"{FILE}: subjects.{name} has no class",
                           f"say what it is in a plain word, for example class: {name}")
        images = _words(entry.get("images"), f"subjects.{name}.images")
        subjects[check_name(name, "the subject", FILE)] = Subject(name, class_word[0], images)
    motion, motions = _motions(top)
    base = top.get("base") or "sprites"
    if not isinstance(base, str):
        raise BadInput(f"{FILE}: base should be a name or a folder", f"it is {base!r}")
    options = {stage: _mapping(given, f"options.{stage}")
               for stage, given in _mapping(top.get("options"), "options").items()}
    video = _mapping(top.get("video"), "video", VIDEO_KEYS)
    for key, value in video.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise BadInput(f"{FILE}: video.{key} should be a whole number above 0", f"it is {value!r}")
    preset = top.get("preset") or PRESET_NAMES[0]
    if preset not in PRESET_NAMES:
        raise BadInput(f"{FILE}: there is no preset {preset!r}", did_you_mean(str(preset), PRESET_NAMES))
    return Settings(base, preset, subjects, motion, motions, _words(top.get("prompts"), "prompts"), options, video)


def _motions(top: Mapping[str, object]) -> tuple[Motion | None, dict[str, Motion]]:
    """`motion`, a mapping with a name, and `motions`, {name: mapping}. Where only the latter stands and holds one, that
    is the project's motion; of several none is meant before it is named."""
    def read_one(entry: object, where: str, keys: Iterable[str], name: str = "") -> Motion:
        entry = _mapping(entry, where, keys)
        found = {key: next(iter(_words(entry.get(key), f"{where}.{key}")), "") for key in keys}
        name = check_name(name or found.get("name") or "motion", "the motion", FILE)
        return Motion(name, found["clip"] or None, found["prompt"])

    one = read_one(top["motion"], "motion", MOTION_KEYS) if top.get("motion") else None
    several = {str(name): read_one(entry, f"motions.{name}", MORE_KEYS, str(name))
               for name, entry in _mapping(top.get("motions"), "motions").items()}
    if one and one.name in several:
        raise BadInput(f"{FILE}: the motion '{one.name}' stands under motion and under motions", "keep one of them")
    motions = {**({one.name: one} if one else {}), **several}
    return one or (next(iter(several.values())) if len(several) == 1 else None), motions


def read(path: Path) -> Settings:
    """project.yaml -> Settings. Raises BadInput with the line that YAML stumbled over, Refused where it asks for
    code."""
    return parse(read_yaml(path))


def write(path: Path, *, base: str, subjects: Mapping, motion: Mapping | None, prompts: Iterable[str],
          options: Mapping, motions: Mapping | None = None) -> None:
    """Write a first project.yaml, with comments where the human will edit. The keys are those of the file."""
    def block(key: str, value: object, comment: str, example: str) -> str:
        text = yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True, width=100) if value else example
        return f"# {comment}\n{text}"

    text = "\n".join((
        block("base", base, "The text-to-video model: sprites (built in), zeroscope, modelscope, owner/name of the "
              "hub, or a folder.", ""),
        block("video", {}, "Its own frames, rate and size, unless they stand here.",
              "# video: {frames: 24, fps: 8, height: 320, width: 576}\n"),
        block("subjects", dict(subjects), "What to learn from photos. `<toy>` in a prompt means the subject toy.",
              "# subjects:\n#   toy: {class: toy, images: photos/toy}\n"),
        block("motion", dict(motion or {}), "What to learn from a clip: its actors stand in brackets.",
              '# motion: {name: riding, clip: clip.mp4, prompt: "a [person] is riding a [horse]"}\n'),
        *([block("motions", dict(motions), "More of them; a command names the one that it means.", "")]
          if motions else ()),
        block("prompts", list(prompts), "What `videomage sample` makes when it is given no --prompt.",
              '# prompts:\n#   - "<toy> is riding <dog> in the snow"\n'),
        block("options", dict(options), "Hyper-parameters by stage; `videomage fuse --help` lists a stage's.",
              "# options:\n#   sample: {steps: 50}\n")))
    parse(parse_yaml(text, FILE))                     # what we write, we can read
    store.write(path, text)
