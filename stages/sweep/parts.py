"""The parts of GRID.yaml, each checked where it is read. Imports no torch."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..core.errors import BadInput
from ..core.settings import FILE, PRESET_NAMES, Settings, did_you_mean
from ..options import OPTIONS

ONLY_KEYS = ("casts", "motions", "prompts", "seeds")
STAGE_KEYS = tuple(stage for stage in OPTIONS if stage != "eval")
ROW_KEYS = ("roles", "preset", "only", "seeds", "control", "against", *STAGE_KEYS)
Cast = tuple[str, ...]
Given = Mapping[str, Mapping[str, object]]        # {stage: {option: value}}


@dataclass(frozen=True)
class Row:
    """What is otherwise in this row's videos than in those of a row without anything. only: {key: what of it}. control:
    whether its videos get one each; None: as the grid says. against: the row it is compared with; None: the first.
    seeds: its own; none: the grid's."""

    name: str
    options: Given = field(default_factory=dict)
    exchanged: bool = False
    preset: str | None = None
    only: Mapping[str, tuple] = field(default_factory=dict)
    control: bool | None = None
    against: str | None = None
    seeds: tuple[int, ...] = ()


def mapping_in(value: object, where: str, keys: Sequence[str] | None = None) -> dict[str, object]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise BadInput(f"{where} should be a mapping, not {type(value).__name__}", "see: videomage sweep --help")
    for key in value:
        if keys is not None and key not in keys:
            raise BadInput(f"unknown key '{key}' in {where}", did_you_mean(str(key), keys))
    return dict(value)


def listed_in(value: object, where: str) -> list:
    if not isinstance(value, list):
        raise BadInput(f"{where} should be a list", f"it is {value!r}")
    return value


def seeds_in(value: object, where: str) -> tuple[int, ...]:
    seeds = listed_in(value, where)
    if not seeds or not all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds):
        raise BadInput(f"{where} should be a list of whole numbers", f"it is {value!r}")
    return tuple(dict.fromkeys(seeds))


def truth_in(value: object, where: str) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise BadInput(f"{where} is {value!r}", "it should be true or false")
    return value


def texts_in(value: object, where: str) -> tuple[str, ...]:
    items = [] if value is None else [value] if isinstance(value, str) else listed_in(value, where)
    if bad := [item for item in items if not isinstance(item, str)]:
        raise BadInput(f"{where} should be a list of texts", f"one of them is {bad[0]!r}")
    return tuple(dict.fromkeys(items))


def casts_in(value: object, settings: Settings) -> tuple[Cast, ...]:
    found = [tuple(settings.subjects)]
    if value is not None:
        found = [tuple(cast.split("+") if isinstance(cast, str) else listed_in(cast, "a cast"))
                 for cast in listed_in(value, "casts")]
    for cast in found:
        for subject in cast:
            if subject not in settings.subjects:
                raise BadInput(f"casts: {FILE} has no subject '{subject}'", did_you_mean(str(subject),
                                                                                         settings.subjects))
        if len(set(cast)) < len(cast):
            raise BadInput(f"casts: '{'+'.join(cast)}' names a subject twice", "each plays one role")
    return tuple(dict.fromkeys(found))


def motions_in(value: object, settings: Settings) -> dict[str | None, dict[int, str | None]]:
    if value is None:
        default = settings.motion.name if settings.motion else None
        return {default: {0: default}}
    if isinstance(value, Mapping):
        found = {name: {int(size): clip for size, clip in entry.items()} if isinstance(entry, Mapping) and all(
            str(size).isdigit() for size in entry) else {0: name if entry is None else entry}
            for name, entry in value.items()}
    else:
        found = {name: {0: name} for name in texts_in(value, "motions")}
    for clips in found.values():
        for clip in clips.values():
            if clip not in settings.motions:
                raise BadInput(f"motions: {FILE} has no motion '{clip}'", did_you_mean(str(clip), settings.motions))
    return found or {None: {0: None}}


def options_in(value: object, where: str, stages: Sequence[str]) -> dict[str, dict[str, object]]:
    """{stage: {option: value}}, options under the names of the dataclass. Raises for one that does not exist."""
    found = {}
    for stage, given in mapping_in(value, where, stages).items():
        known = OPTIONS[stage].__dataclass_fields__
        named = {str(key).replace("-", "_"): item for key, item in mapping_in(given, f"{where}.{stage}").items()}
        for key in named:
            if key not in known:
                raise BadInput(f"{where}.{stage} has no option '{key}'", did_you_mean(key, known))
        if "count" in named and stage == "sample":
            raise BadInput(f"{where}.sample.count is not for a sweep", "list seeds instead")
        found[stage] = named
    return found


def rows_in(top: Mapping[str, object], known: Mapping[str, tuple]) -> tuple[Row, ...]:
    rows = []
    for name, entry in (mapping_in(top.get("rows"), "rows") or {"full": {}}).items():
        where = f"rows.{name}"
        entry = mapping_in(entry, where, ROW_KEYS)
        roles, preset = entry.pop("roles", None), entry.pop("preset", None)
        for key, value, words in (("roles", roles, ("exchanged",)), ("preset", preset, PRESET_NAMES)):
            if value is not None and value not in words:
                raise BadInput(f"{where}.{key} is {value!r}", did_you_mean(str(value), words))
        only = _only(entry.pop("only", None), where, known)
        control = truth_in(entry.pop("control", None), f"{where}.control")
        against = entry.pop("against", None)
        seeds = seeds_in(entry.pop("seeds"), f"{where}.seeds") if "seeds" in entry else ()
        if seeds and "seeds" in only:
            raise BadInput(f"{where} has seeds of its own, and only some of the grid's", "say one of them")
        rows.append(Row(str(name), options_in(entry, where, STAGE_KEYS), roles == "exchanged", preset, only, control,
                        None if against is None else str(against), seeds))
    for name, entry in mapping_in(top.get("sweeps"), "sweeps").items():
        stage, _, option = str(name).rpartition(".")
        if stage not in STAGE_KEYS:
            raise BadInput(f"sweeps.{name} names no stage", "write it as learn-subject.lambda1")
        where, entry = f"sweeps.{name}", {"values": entry} if isinstance(entry, list) else entry
        entry = mapping_in(entry, where, ("values", "only", "control"))
        only, control = _only(entry.get("only"), where, known), truth_in(entry.get("control"), f"{where}.control")
        rows += [Row(f"{name}={value}", options_in({stage: {option: value}}, where, STAGE_KEYS), only=only,
                     control=control) for value in listed_in(entry.get("values"), f"{where}.values")]
    if twice := [row.name for n, row in enumerate(rows) if row.name in [other.name for other in rows[:n]]]:
        raise BadInput(f"the row '{twice[0]}' is there twice", "name one of them otherwise")
    names = [row.name for row in rows]
    for row in rows:
        if row.against not in (None, *names) or row.against == row.name:
            raise BadInput(f"rows.{row.name}.against: there is no other row '{row.against}'",
                           did_you_mean(row.against, [name for name in names if name != row.name]))
    return tuple(rows)


def _only(value: object, where: str, known: Mapping[str, tuple]) -> dict[str, tuple]:
    """{key: the things of the grid that are meant}. They are named as they stand there; casts, motions and prompts by
    their number from 0 as well, casts as toy+pet, too."""
    found = {}
    for key, items in mapping_in(value, f"{where}.only", ONLY_KEYS).items():
        names = {"+".join(thing) if key == "casts" else thing: thing for thing in known[key]}
        chosen = []
        for item in listed_in(items, f"{where}.only.{key}"):
            item = "+".join(item) if isinstance(item, list) else item
            number = isinstance(item, int) and key != "seeds"
            if item not in names and not (number and 0 <= item < len(known[key])):
                raise BadInput(f"{where}.only.{key}: there is no '{item}'", did_you_mean(str(item), map(str, names)))
            chosen.append(known[key][item] if number else names[item])
        found[key] = tuple(chosen)
    return found
