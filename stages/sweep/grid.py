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
      no guidance either: {preset: paper, sample: {tau: 0}, against: as published}      default: the first row
      more of full: {seeds: [3, 4, 5]}                                                  default: the grid's
    sweeps:
      learn-subject.lambda1: {values: [0.1, 1], only: {casts: [toy+pet]}}       a row for each value
    control: true             beside each video the same without the motion LoRA; false: none; a row may say its own

A cell is (row, cast, motion, prompt, seed): one video and its score. {motion} is the motion's own prompt with the cast
in its brackets; <1> is the first of the cast. roles: exchanged turns the cast round by one in the prompt. Without its
control it cannot be told what of the clip's looks the motion LoRA brought along, and so whether a video is a success.
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..core.errors import BadInput, VideomageError
from ..core.foreign import read_yaml
from ..core.settings import FILE, Settings, check_name
from ..core.workspace import Workspace
from ..options import OPTIONS, Options, resolve
from ..prompts import motion_prompt, placeholder, placeholders
from .parts import (
    ONLY_KEYS,
    Cast,
    Given,
    Row,
    casts_in,
    mapping_in,
    motions_in,
    options_in,
    rows_in,
    seeds_in,
    texts_in,
    truth_in,
)

KEYS = ("name", "casts", "motions", "prompts", "seeds", "control", "options", "rows", "sweeps")
NO_NAMES = ("variants",)                          # a folder of sweeps/ that is no sweep's


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
    controls: Mapping[str, bool]
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
    data = read_yaml(path)
    try:
        return parse(project, data, path.stem)
    except BadInput as error:
        raise BadInput(f"{path.name}: {error.what}", error.remedy) from None


def parse(project: Workspace, data: object, name: str) -> Grid:
    """The parsed YAML -> Grid. name: where the file says none."""
    top, settings = mapping_in(data, "the file", KEYS), project.settings
    plain = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_")
    name = check_name(str(top.get("name") or plain), "the sweep", "name")
    if name in NO_NAMES:
        raise BadInput(f"a sweep cannot be called '{name}'", "give it another name")
    casts = casts_in(top.get("casts"), settings)
    motions = motions_in(top.get("motions"), settings)
    prompts = texts_in(top.get("prompts"), "prompts") or settings.prompts
    if not prompts:
        raise BadInput("there are no prompts", 'give some: prompts: ["{motion} in the snow"]')
    seeds = seeds_in(top.get("seeds", [0]), "seeds")
    known = {"casts": casts, "motions": tuple(motions), "prompts": prompts, "seeds": seeds}
    rows = rows_in(top, known)
    common = options_in(top.get("options"), "options", tuple(OPTIONS))
    control = truth_in(top.get("control"), "control") is not False
    controls = {row.name: control if row.control is None else row.control for row in rows}
    effective = {row.name: _effective(project, common, row) for row in rows}
    grid = Grid(name, casts, motions, prompts, seeds, rows, controls,
                _effective(project, common, Row("common")), effective, ())
    return replace(grid, cells=tuple(cell for row in rows for cell in _cells(project, grid, row)))


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
    whole = {"casts": grid.casts, "motions": tuple(grid.motions), "prompts": grid.prompts,
             "seeds": row.seeds or grid.seeds}
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
