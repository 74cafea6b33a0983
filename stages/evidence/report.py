"""What came of the experiment, for people: python -m stages.evidence.report DIR GRID.yaml DOCS

    DOCS/evidence.md     its tables, between marks; what stands around them is written by hand and stays
    DOCS/evidence/       results.csv, a line per video; sheets of videos drawn at random

A row is compared with the first one ("full"), or with the one that it names, on the cells that both attempted: the
same cast, clip, prompt and seed.
Intervals are bootstraps over casts and motions (metrics/stats.py).
"""
from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ..core.errors import MissingPrerequisite
from ..core.foreign import read_json
from ..core.sheets import contact_sheet
from ..core.video import read_frames
from ..core.workspace import Workspace
from ..metrics.stats import Interval, difference, interval
from ..option_tables import fill
from ..options import OPTIONS, deviations, show
from ..sweep import grid as grids
from ..sweep.collect import collect, write
from ..sweep.store import Store
from . import CONFIRMATION, DEVELOPMENT, alone

Line = Mapping[str, object]
SPLITS = {"confirmation": CONFIRMATION, "development": DEVELOPMENT}
KEPT = ("row", "against", "cast", "motion", "prompt", "seed", "state", "success", "judged.oracle.success",
        "judged.segmenter.success", "judged.oracle.reasons", "judged.oracle.together", "judged.oracle.identity.min",
        "judged.oracle.motion.min", "judged.oracle.binding.chance corrected", "judged.oracle.leak.max",
        "judged.oracle.place", "judged.segmenter.together", "judged.segmenter.identity.min",
        "judged.segmenter.motion.min", "judged.segmenter.binding.chance corrected", "judged.segmenter.leak.max",
        "paper protocol.CLIP-T", "paper protocol.CLIP-I", "paper protocol.DINO-I", "paper protocol.T. Cons.",
        "magnitude.pixels", "cost.seconds", "cost.forwards")
REASONS = {"in sight": "together in", "identity": "like itself", "role": "play its role", "path": "follow its path",
           "leak": "shows through", "leak not known": "leak is not known"}      # {what is said: a mark of its sentence}
DRAWN = 10                                             # videos on a sheet
J = "judged.oracle."                                   # whose verdict the tables give


def split_of(line: Line) -> str:
    cast = tuple(str(line["cast"]).split("+"))
    return next(name for name, casts in SPLITS.items() if cast in casts)


def number(line: Line, column: str) -> float:
    """A score as it counts: one that is not there is 0, as of a video in which nothing is right."""
    value = line.get(column)
    return float(value) if value is not None else 0.0


def every(line: Line, prefix: str, holds: Callable[[float], bool]) -> float:
    """1 where something holds of every subject of a video, "prefix.1", "prefix.2" ..., else 0."""
    values = [line.get(f"{prefix}.{k}") for k in range(1, len(str(line["cast"]).split("+")) + 1)]
    return float(all(value is not None and holds(float(value)) for value in values))


SCORES: dict[str, Callable[[Line], float]] = {
    "success": lambda line: float(bool(line.get(J + "success"))),
    "all in sight": lambda line: number(line, J + "together"),
    "identity": lambda line: number(line, J + "identity.min"),
    "margins > 0": lambda line: every(line, J + "margins", lambda value: value > 0),
    "roles right": lambda line: every(line, J + "binding.right", bool),
    "motion": lambda line: number(line, J + "motion.min"),
    "place right": lambda line: float(str(line.get(J + "place")) in str(line["prompt"]).split()),
    "leak": lambda line: 1.0 if line["state"] == "failed" else number(line, J + "leak.max")}      # the most
PAPER = {name: f"paper protocol.{name}" for name in ("CLIP-T", "CLIP-I", "DINO-I", "T. Cons.")}


def by_row(lines: Sequence[Line]) -> dict[str, dict[tuple, Line]]:
    """{row: {cell: line}}."""
    found: dict[str, dict[tuple, Line]] = {}
    for line in lines:
        found.setdefault(str(line["row"]), {})[key(line)] = line
    return found


def key(line: Line) -> tuple:
    """What two rows have in common: two lines of one key are compared."""
    return tuple(line[name] for name in ("cast", "motion", "prompt", "seed"))


def estimate(lines: Sequence[Line], score: Callable[[Line], float]) -> Interval:
    """Over videos; the interval is over casts and motions."""
    return interval([score(line) for line in lines], [line["cast"] for line in lines],
                    [line["motion"] for line in lines])


def against(row: Mapping[tuple, Line], other: Mapping[tuple, Line], score: Callable[[Line], float]) -> Interval:
    """Of row - other, on the cells of both."""
    both = [name for name in row if name in other]
    return difference([score(row[name]) for name in both], [score(other[name]) for name in both],
                      [name[0] for name in both], [name[1] for name in both])


# -- tables -----------------------------------------------------------------------------------------------------------
def headline(lines: Sequence[Line], split: str | None) -> str:
    """A row of the table for each row of the grid, on one split or (None) on all casts."""
    rows = by_row([line for line in lines if split in (None, split_of(line))])
    first = next(iter(rows), None)
    out = [["row", "n", *SCORES, f"success, against {first}"]]
    for name, cells in rows.items():
        own = list(cells.values())
        cell = [name, str(len(own)), percent(estimate(own, SCORES["success"]))]
        for column, score in list(SCORES.items())[1:]:
            share = column in ("all in sight", "margins > 0", "roles right", "place right")
            value = float(np.mean([score(line) for line in own]))
            cell.append(f"{value:.0%}" if share else f"{value:.2f}")
        other = own[0]["against"]
        shared = cells.keys() & rows.get(other, {}).keys()
        compared = percent(against(cells, rows[other], SCORES["success"]), signed=True) if shared else ""
        out.append([*cell, compared + (f", against {other}" if compared and other != first else "")])
    return markdown(out)


def parted(lines: Sequence[Line], grid: grids.Grid) -> tuple[list[Line], list[Line]]:
    """Those of the rows that ask for the same cells as the first, and those of all others with the first's of these."""
    asked: dict[str, set[tuple]] = {row.name: set() for row in grid.rows}
    for cell in grid.cells:
        asked[cell.row].add((cell.cast, cell.motion, cell.prompt, cell.seed))
    first = grid.rows[0].name
    whole = [line for line in lines if asked[str(line["row"])] == asked[first]]
    others = [line for line in lines if asked[str(line["row"])] != asked[first]]
    keys = {key(line) for line in others}
    return whole, [line for line in whole if line["row"] == first and key(line) in keys] + others


def paper(lines: Sequence[Line]) -> str:
    """The paper's own four scores, all casts, and beside T. Cons. how much moves at all."""
    out = [["row", "n", *PAPER, "motion magnitude"]]
    for name, cells in by_row(lines).items():
        own = list(cells.values())
        means = [estimate(own, partial(number, column=column)) for column in PAPER.values()]
        moved = float(np.mean([number(line, "magnitude.pixels") for line in own]))
        out.append([name, str(len(own)), *(f"{one.mean:.3f} ({one.low:.3f} to {one.high:.3f})" for one in means),
                    f"{moved:.4f}"])
    return markdown(out)


def where(lines: Sequence[Line]) -> str:
    """The first row's success by cast, motion and place, and why the others failed."""
    full = list(next(iter(by_row(lines).values()), {}).values())
    out = [["the full method", "n", "success", "what the failures fail in"]]
    for key in ("cast", "motion", "prompt"):
        for value in dict.fromkeys(line[key] for line in full):
            own = [line for line in full if line[key] == value]
            out.append([str(value), str(len(own)), f"{np.mean([SCORES['success'](line) for line in own]):.0%}",
                        _reasons(own)])
    return markdown(out)


def _reasons(lines: Sequence[Line]) -> str:
    counts: dict[str, int] = {}
    for line in lines:
        said = str(line.get(J + "reasons") or line.get("why") or "")
        for name in {next((name for name, mark in REASONS.items() if mark in reason), "not made")
                     for reason in filter(None, said.split("; "))}:
            counts[name] = counts.get(name, 0) + 1
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


def agreement(lines: Sequence[Line]) -> str:
    """How the verdict from the segmenter's tracks compares with the oracle's, by row."""
    out = [["row", "success by the oracle", "by the segmenter", "same verdict", "all in sight, oracle",
            "all in sight, segmenter"]]
    for name, cells in by_row(lines).items():
        own = list(cells.values())
        a, b = (np.array([bool(line.get(f"judged.{who}.success")) for line in own]) for who in ("oracle", "segmenter"))
        seen = [float(np.mean([number(line, f"judged.{who}.together") for line in own]))
                for who in ("oracle", "segmenter")]
        out.append([name, *(f"{value:.0%}" for value in (a.mean(), b.mean(), (a == b).mean(), *seen))])
    return markdown(out)


def settings(project: Workspace) -> str:
    """What the row "full" ran with, where it differs from the paper."""
    return markdown([["stage", "option", "here", "paper", "why"], *(
        [stage, f"`--{name.replace('_', '-')}`", show(value), show(other), why]
        for stage in OPTIONS for name, value, other, why in deviations(stage, project.settings))])


def percent(found: Interval, signed: bool = False) -> str:
    mean, low, high = (f"{part:{'+' if signed else ''}.0%}" for part in (found.mean, found.low, found.high))
    return f"{mean} ({low} to {high})"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    first, *rest = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in (first, ["---"] * len(first), *rest))


# -- files ------------------------------------------------------------------------------------------------------------
def sheets(project: Workspace, lines: Sequence[Line], folder: Path, seed: int = 0) -> None:
    """success.png and failure.png: DRAWN videos each of the first row, drawn at random from the confirmation split."""
    full = [line for line in next(iter(by_row(lines).values()), {}).values() if split_of(line) == "confirmation"]
    rng = np.random.default_rng(seed)
    for name, wanted in (("success", True), ("failure", False)):
        those = [line for line in full if bool(SCORES["success"](line)) is wanted and line["sample"]]
        drawn = [those[k] for k in sorted(rng.permutation(len(those))[:DRAWN])]
        rows = [(f"{line['cast']}, {line['motion']}, {line['prompt']}, seed {line['seed']}"
                 + (f": {line.get(J + 'reasons')}" if not wanted else ""),
                 read_frames(project.root / str(line["sample"]) / "frames.png")) for line in drawn]
        if rows:
            contact_sheet(rows, folder / f"{name}.png", scale=2)


def report(project: Workspace, grid: Path, docs: Path) -> Path:
    """Write all that. Raises MissingPrerequisite where no cell has been attempted."""
    wanted = grids.read(project, grids.find(project, grid))
    lines = collect(Store(project, wanted))
    if not lines:
        raise MissingPrerequisite("no video of the grid has been made", f"Run: videomage sweep {grid}")
    folder = docs / "evidence"
    folder.mkdir(parents=True, exist_ok=True)
    write([{key: line.get(key) for key in KEPT} for line in lines], folder / "results.csv")
    sheets(project, lines, folder)
    page = docs / "evidence.md"
    whole, others = parted(lines, wanted)
    splits = [split for split in SPLITS if any(split_of(line) == split for line in whole)]
    tables = {**{split: partial(headline, whole, split) for split in splits}, "all": lambda: headline(whole, None),
              "where": lambda: where(lines), "paper": lambda: paper(whole), "agreement": lambda: agreement(whole),
              "settings": lambda: settings(project)}
    if others:
        tables["fewer"] = lambda: headline(others, None)
    if (project.root / "alone.json").is_file():
        tables["alone"] = lambda: alone.table(read_json(project.root / "alone.json"))
    text = page.read_text(encoding="utf-8") if page.is_file() else "# Evidence\n" + "".join(
        f"\n<!-- {mark} -->\n<!-- /{mark} -->\n" for mark in tables)
    page.write_text(fill(text, {mark: table for mark, table in tables.items() if f"<!-- {mark} -->" in text}),
                    encoding="utf-8")
    return page


def main(argv: list[str] | None = None) -> None:
    folder, grid, docs = map(Path, argv or sys.argv[1:4])
    print(report(Workspace(folder), grid, docs))


if __name__ == "__main__":
    main()
