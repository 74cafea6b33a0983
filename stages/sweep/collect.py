"""The table of a sweep: a line for each cell that was attempted, failed ones with it. Imports no torch."""
from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from ..core.cells import cell as csv_cell
from ..core.errors import BadInput, MissingPrerequisite, UsageError
from ..core.foreign import read_json
from ..core.store import replacing
from .grid import Cell
from .store import Store

OWN = ("row", "against", "cast", "motion", "prompt", "seed", "state", "success", "sample", "seconds", "why")
LEFT_OUT = ("sample", "prompt", "subjects", "motion")                    # of a score file: they stand in OWN


def collect(store: Store) -> list[dict[str, object]]:
    """A flat line for each cell that is fresh or failed, all with the same columns. Scores are named by their path in
    the score file, "judged.oracle.identity.min"; a subject by its number in the prompt's roles, from 1; lists are left
    there. Of a failed cell every score is 0, as of a video in which nothing is right. against: the row whose cell of
    the same cast, motion, prompt and seed it is compared with; None: it is of the first row."""
    lines, scores = [], {}
    first, *others = store.grid.rows
    against = {first.name: None} | {row.name: row.against or first.name for row in others}
    for cell, (state, why) in store.states().items():
        if state == "missing":
            continue
        made = store.sample(cell)
        line = {"row": cell.row, "against": against[cell.row], "cast": "+".join(cell.cast), "motion": cell.motion,
                "prompt": cell.prompt, "seed": cell.seed, "state": state, "success": False, "sample": None,
                "seconds": None, "why": why}
        if state == "fresh":
            path = store.score_file(cell)
            if path not in scores:
                scores[path] = flat(_score(path), cell)
            line |= scores[path]
            line |= {"sample": store.project.show(path.parent.parent / "samples" / made.name),
                     "seconds": store.manifest(made)["seconds"], "success": scores[path].get("success")}
        lines.append(line)
    columns = dict.fromkeys([*OWN, *(column for line in lines for column in line)])
    numeric = {column for line in lines for column, value in line.items() if _is_number(value) and column not in OWN}
    return [{column: line.get(column, 0.0 if line["state"] == "failed" and column in numeric else None)
             for column in columns} for line in lines]


def _score(path: Path) -> Mapping[str, object]:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        found = None
    if not isinstance(found, Mapping):
        raise BadInput(f"{path} is damaged", f"delete it, and score it again: videomage eval {path.stem}")
    return found


def flat(score: Mapping[str, object], cell: Cell) -> dict[str, object]:
    """{"a.b.c": number, truth or word} of a score file."""
    roles = {subject: str(number + 1) for number, subject in enumerate(cell.subjects)}
    found: dict[str, object] = {}

    def walk(value: object, path: tuple[str, ...]) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                walk(item, (*path, roles.get(key, key)))
        elif path[-1] == "reasons" and isinstance(value, list):
            found[".".join(path)] = "; ".join(map(str, value))
        elif not isinstance(value, list):
            found[".".join(path)] = float(value) if _is_number(value) else value

    walk({key: value for key, value in score.items() if key not in LEFT_OUT}, ())
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def write(lines: list[dict[str, object]], path: Path) -> Path:
    """A table as .csv (empty where a value is None; text that a spreadsheet would run as a formula has an apostrophe
    before it) or .parquet. Raises UsageError for another ending,
    MissingPrerequisite for parquet without pyarrow."""
    if path.suffix not in (".csv", ".parquet"):
        raise UsageError(f"'{path.name}' is no table that can be written", "name it .csv or .parquet")
    columns = list(lines[0]) if lines else list(OWN)
    if path.suffix == ".csv":
        with replacing(path) as half, half.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow([csv_cell(column) for column in columns])
            table.writerows([csv_cell(line[column]) for column in columns] for line in lines)
        return path
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise MissingPrerequisite("parquet needs pyarrow, which is not installed",
                                  "Run: pip install 'videomage[sweep]'   (or write a .csv)") from None
    with replacing(path) as half:
        parquet.write_table(pyarrow.table({column: [line[column] for line in lines] for column in columns}), half)
    return path
