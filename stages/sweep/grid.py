"""GRID.yaml: which videos a sweep makes. Read and checked here as a whole, before anything runs. Imports no torch.

    casts: [[toy, pet], [gem, toy, pet]]          subjects in the order of their roles; default: all of the project
    motions: {chase: {2: chase, 3: chase-3}}      or a list of the project's; the clip for a cast of two, of three
    prompts: ["{motion} in the snow", "<1> and <2> stand still"]
    seeds: [0, 1, 2]
    options: {sample: {steps: 25}}                common to all rows, laid over project.yaml's
    rows:
      full: {}
      no guidance: {sample: {tau: 0}}
      exchanged: {roles: exchanged, only: {casts: [0], seeds: [0]}}
      as published: {preset: paper}
    sweeps:
      learn-subject.lambda1: {values: [0.1, 1], only: {casts: [toy+pet]}}       a row for each value
    control: true                                 beside each video the same without the motion LoRA; false: none

A cell is (row, cast, motion, prompt, seed): one video and its score. {motion} is the motion's own prompt with the cast
in its brackets; <1> is the first of the cast. roles: exchanged turns the cast round by one in the prompt. Without its
control it cannot be told what of the clip's looks the motion LoRA brought along, and so whether a video is a success.
"""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from ..core.errors import BadInput, VideomageError
from ..core.settings import FILE, PRESET_NAMES, Settings, check_name, did_you_mean
from ..core.workspace import Workspace
from ..options import OPTIONS, Options, resolve
from ..prompts import motion_prompt, placeholder, placeholders

KEYS = ("name", "casts", "motions", "prompts", "seeds", "control", "options", "rows", "sweeps")
ONLY_KEYS = ("casts", "motions", "prompts", "seeds")
STAGE_KEYS = tuple(stage for stage in OPTIONS if stage != "eval")
ROW_KEYS = ("roles", "preset", "only", *STAGE_KEYS)
NO_NAMES = ("variants",)                          # a folder of sweeps/ that is no sweep's
Cast = tuple[str, ...]
Given = Mapping[str, Mapping[str, object]]        # {stage: {option: value}}


@dataclass(frozen=True)
class Row:
    """What is otherwise in this row's videos than in those of a row without anything. only: {key: what of it}."""

    name: str
    options: Given = field(default_factory=dict)
    exchanged: bool = False
    preset: str | None = None
    only: Mapping[str, tuple] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One video. motion, prompt: as the grid has them; clip: the motion of the project (None: none), text: what is
    asked for, subjects: in the order in which the prompt has them in its roles."""

    row: str
    cast: Cast
    motion: str | None
    prompt: str
    seed: int
    clip: str | None
    text: str
    subjects: Cast


@dataclass(frozen=True)
class Grid:
    """The whole file. motions: {name: {size of a cast: motion of the project}}, 0 for any. effective: {row: {stage:
    its options}}, paths absolute; common: the same of a row that says nothing."""

    name: str
    casts: tuple[Cast, ...]
    motions: Mapping[str | None, Mapping[int, str | None]]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    control: bool
    common: Mapping[str, Options]
    effective: Mapping[str, Mapping[str, Options]]
    cells: tuple[Cell, ...]


def find(project: Workspace, path: Path) -> Path:
    """The grid's file: as typed, or in the project's folder. Raises BadInput where it is in neither."""
    for place in (path, project.root / path):
        if place.is_file():
            return place
    raise BadInput(f"there is no grid {path}", "name a file GRID.yaml; `videomage sweep --help` shows one")


def read(project: Workspace, path: Path) -> Grid:
    """A checked grid with all its cells. Raises BadInput naming the key, with a did-you-mean for a misspelt one."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise BadInput(f"{path}{f', line {mark.line + 1}' if mark else ''} is not YAML: "
                       f"{getattr(error, 'problem', None) or error}", "mend that line") from None
    try:
        return parse(project, data, path.stem)
    except BadInput as error:
        raise BadInput(f"{path.name}: {error.what}", error.remedy) from None


def parse(project: Workspace, data: object, name: str) -> Grid:
    """The parsed YAML -> Grid. name: where the file says none."""
    top, settings = _mapping(data, "the file", KEYS), project.settings
    name = check_name(str(top.get("name") or re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-_")), "the sweep", "name")
    if name in NO_NAMES:
        raise BadInput(f"a sweep cannot be called '{name}'", "give it another name")
    casts = _casts(top.get("casts"), settings)
    motions = _motions(top.get("motions"), settings)
    prompts = _texts(top.get("prompts"), "prompts") or settings.prompts
    if not prompts:
        raise BadInput("there are no prompts", 'give some: prompts: ["{motion} in the snow"]')
    seeds = _list(top.get("seeds", [0]), "seeds")
    if not seeds or not all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds):
        raise BadInput("seeds should be a list of whole numbers", f"it is {top.get('seeds')!r}")
    known = {"casts": casts, "motions": tuple(motions), "prompts": prompts, "seeds": tuple(seeds)}
    rows = _rows(top, known)
    common = _options(top.get("options"), "options", tuple(OPTIONS))
    control = top.get("control", True)
    if not isinstance(control, bool):
        raise BadInput(f"control is {control!r}", "it should be true or false")
    effective = {row.name: _effective(project, common, row) for row in rows}
    grid = Grid(name, casts, motions, prompts, tuple(dict.fromkeys(seeds)), rows, control,
                _effective(project, common, Row("common")), effective, ())
    return replace(grid, cells=tuple(cell for row in rows for cell in _cells(project, grid, row)))


# -- the parts of the file -------------------------------------------------------------------------------------------
def _mapping(value: object, where: str, keys: Sequence[str] | None = None) -> dict[str, object]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadInput(f"{where} should be a mapping, not {type(value).__name__}", "see: videomage sweep --help")
    for key in value:
        if keys is not None and key not in keys:
            raise BadInput(f"unknown key '{key}' in {where}", did_you_mean(str(key), keys))
    return dict(value)


def _list(value: object, where: str) -> list:
    if not isinstance(value, list):
        raise BadInput(f"{where} should be a list", f"it is {value!r}")
    return value


def _texts(value: object, where: str) -> tuple[str, ...]:
    items = [] if value is None else [value] if isinstance(value, str) else _list(value, where)
    if bad := [item for item in items if not isinstance(item, str)]:
        raise BadInput(f"{where} should be a list of texts", f"one of them is {bad[0]!r}")
    return tuple(dict.fromkeys(items))


def _casts(value: object, settings: Settings) -> tuple[Cast, ...]:
    found = [tuple(settings.subjects)] if value is None else [
        tuple(cast.split("+") if isinstance(cast, str) else _list(cast, "a cast")) for cast in _list(value, "casts")]
    for cast in found:
        for subject in cast:
            if subject not in settings.subjects:
                raise BadInput(f"casts: {FILE} has no subject '{subject}'", did_you_mean(str(subject),
                                                                                         settings.subjects))
        if len(set(cast)) < len(cast):
            raise BadInput(f"casts: '{'+'.join(cast)}' names a subject twice", "each plays one role")
    return tuple(dict.fromkeys(found))


def _motions(value: object, settings: Settings) -> dict[str | None, dict[int, str | None]]:
    if value is None:
        default = settings.motion.name if settings.motion else None
        return {default: {0: default}}
    if isinstance(value, Mapping):
        found = {name: {int(size): clip for size, clip in entry.items()} if isinstance(entry, Mapping) and all(
            str(size).isdigit() for size in entry) else {0: name if entry is None else entry}
            for name, entry in value.items()}
    else:
        found = {name: {0: name} for name in _texts(value, "motions")}
    for clips in found.values():
        for clip in clips.values():
            if clip not in settings.motions:
                raise BadInput(f"motions: {FILE} has no motion '{clip}'", did_you_mean(str(clip), settings.motions))
    return found or {None: {0: None}}


def _options(value: object, where: str, stages: Sequence[str]) -> dict[str, dict[str, object]]:
    """{stage: {option: value}}, options under the names of the dataclass. Raises for one that does not exist."""
    found = {}
    for stage, given in _mapping(value, where, stages).items():
        known = OPTIONS[stage].__dataclass_fields__
        named = {str(key).replace("-", "_"): item for key, item in _mapping(given, f"{where}.{stage}").items()}
        for key in named:
            if key not in known:
                raise BadInput(f"{where}.{stage} has no option '{key}'", did_you_mean(key, known))
        if "count" in named and stage == "sample":
            raise BadInput(f"{where}.sample.count is not for a sweep", "list seeds instead")
        found[stage] = named
    return found


def _rows(top: Mapping[str, object], known: Mapping[str, tuple]) -> tuple[Row, ...]:
    rows = []
    for name, entry in (_mapping(top.get("rows"), "rows") or {"full": {}}).items():
        where = f"rows.{name}"
        entry = _mapping(entry, where, ROW_KEYS)
        roles, preset = entry.pop("roles", None), entry.pop("preset", None)
        for key, value, words in (("roles", roles, ("exchanged",)), ("preset", preset, PRESET_NAMES)):
            if value is not None and value not in words:
                raise BadInput(f"{where}.{key} is {value!r}", did_you_mean(str(value), words))
        only = _only(entry.pop("only", None), where, known)
        rows.append(Row(str(name), _options(entry, where, STAGE_KEYS), roles == "exchanged", preset, only))
    for name, entry in _mapping(top.get("sweeps"), "sweeps").items():
        stage, _, option = str(name).rpartition(".")
        if stage not in STAGE_KEYS:
            raise BadInput(f"sweeps.{name} names no stage", "write it as learn-subject.lambda1")
        entry = {"values": entry} if isinstance(entry, list) else _mapping(entry, f"sweeps.{name}", ("values", "only"))
        only = _only(entry.get("only"), f"sweeps.{name}", known)
        rows += [Row(f"{name}={value}", _options({stage: {option: value}}, f"sweeps.{name}", STAGE_KEYS), only=only)
                 for value in _list(entry.get("values"), f"sweeps.{name}.values")]
    if twice := [row.name for n, row in enumerate(rows) if row.name in [other.name for other in rows[:n]]]:
        raise BadInput(f"the row '{twice[0]}' is there twice", "name one of them otherwise")
    return tuple(rows)


def _only(value: object, where: str, known: Mapping[str, tuple]) -> dict[str, tuple]:
    """{key: the things of the grid that are meant}. They are named as they stand there; casts, motions and prompts by
    their number from 0 as well, casts as toy+pet, too."""
    found = {}
    for key, items in _mapping(value, f"{where}.only", ONLY_KEYS).items():
        names = {"+".join(thing) if key == "casts" else thing: thing for thing in known[key]}
        chosen = []
        for item in _list(items, f"{where}.only.{key}"):
            item = "+".join(item) if isinstance(item, list) else item
            number = isinstance(item, int) and key != "seeds"
            if item not in names and not (number and 0 <= item < len(known[key])):
                raise BadInput(f"{where}.only.{key}: there is no '{item}'", did_you_mean(str(item), map(str, names)))
            chosen.append(known[key][item] if number else names[item])
        found[key] = tuple(chosen)
    return found


def _effective(project: Workspace, common: Given, row: Row) -> dict[str, Options]:
    """The options of every stage for a row: the row's > the grid's > project.yaml's > the preset's > the paper's."""
    settings, merged = project.settings, {}
    for stage in OPTIONS:
        own = {str(key).replace("-", "_"): value for key, value in settings.options.get(stage, {}).items()}
        resolve(stage, settings)                              # project.yaml's own mistakes are told as its own
        merged[stage] = {**own, **common.get(stage, {}), **row.options.get(stage, {})}
    whole = replace(settings, options=merged, preset=row.preset or settings.preset)
    try:
        return {stage: placed(project, resolve(stage, whole)) for stage in OPTIONS}
    except VideomageError as error:
        what = error.what.removeprefix(f"{FILE}: options.")
        raise BadInput(f"row '{row.name}': {what}", error.remedy) from None


def placed(project: Workspace, options: Options) -> Options:
    """With the paths among them absolute: they are the project's, wherever the row's videos lie."""
    paths = {name: project.locate(value).absolute() for name, value in vars(options).items() if isinstance(value, Path)}
    return replace(options, **paths)


# -- expansion -------------------------------------------------------------------------------------------------------
def _cells(project: Workspace, grid: Grid, row: Row) -> list[Cell]:
    """In the order in which the grid lists things; a motion without a clip for casts of this size has no cells."""
    whole = {"casts": grid.casts, "motions": tuple(grid.motions), "prompts": grid.prompts, "seeds": grid.seeds}
    casts, motions, prompts, seeds = ([thing for thing in whole[key] if thing in row.only.get(key, whole[key])]
                                      for key in ONLY_KEYS)
    cells = []
    for cast in casts:
        for motion in motions:
            sizes = grid.motions[motion]
            if len(cast) not in sizes and 0 not in sizes:
                continue
            clip = sizes.get(len(cast), sizes.get(0))
            turned = (*cast[1:], *cast[:1]) if row.exchanged else cast
            for prompt in prompts:
                text = _filled(project.settings, prompt, clip, turned)
                cells += [Cell(row.name, cast, motion, prompt, seed, clip, text, turned) for seed in seeds]
    return cells


def _filled(settings: Settings, template: str, clip: str | None, cast: Cast) -> str:
    """A prompt for a cast. Raises BadInput where cast, motion and prompt do not fit together."""
    if "{motion}" in template:
        if clip is None:
            raise BadInput(f"the prompt '{template}' asks for a motion, and there is none", "list motions")
        wanted = motion_prompt(settings.motions[clip].prompt)
        if len(wanted.actors) != len(cast):
            mine = len(wanted.actors)
            raise BadInput(f"the motion '{clip}' has {mine} actors, the cast {'+'.join(cast)} {len(cast)}",
                           f"give another clip for it: motions: {{{clip}: {{{mine}: {clip}, {len(cast)}: ...}}}}")
        actors = iter(cast)
        sentence = re.sub(r"\[[^\[\]]*\]", lambda _: placeholder(next(actors)), wanted.text)
        template = template.replace("{motion}", sentence)
    numbered = {str(n + 1): subject for n, subject in enumerate(cast)}
    for name in placeholders(template):
        if name not in numbered and name not in cast:
            raise BadInput(f"the prompt '{template}' names <{name}>, and the cast {'+'.join(cast)} has no such role",
                           "leave it out of that row with only, or mend it")
    return re.sub(r"<(\d+)>", lambda found: placeholder(numbered[found[1]]) if found[1] in numbered else found[0],
                  template)
