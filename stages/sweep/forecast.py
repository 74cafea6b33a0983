"""What a sweep would make, and how long that took where it was made before. Imports no torch."""
from __future__ import annotations

from collections import Counter
from statistics import mean

from .. import STAGES
from .schedule import Schedule
from .store import Made, Store


def forecast(store: Store) -> list[dict[str, object]]:
    """A row for each stage: how many are to make, how many are fresh, the mean seconds of those that are there (None:
    there is none to tell), and the product."""
    to_make = Counter()
    for job in Schedule(store).waiting.values():
        for made in job.makes:
            to_make[made.stage] += not (made.stage == "sample" and store.fresh(made))
            to_make["eval"] += job.judged is not None
    every: dict[str, set[Made]] = {stage: set() for stage in STAGES}
    for cell in store.grid.cells:
        sample = store.sample(cell)
        if sample not in every["sample"]:
            every["sample"].add(sample)
            every["eval"].add(store.score(cell))
    known: set[tuple[str, Made]] = set()
    groups = {(cell.row, tuple(sorted(cell.subjects)), cell.clip): store.sample(cell) for cell in store.grid.cells}
    for (row, _, _), sample in groups.items():
        _gather(store, row, sample, every, known)
    rows = []
    for stage, all_of_it in every.items():
        spent = [manifest["seconds"] for made in all_of_it if (manifest := store.manifest(made))]
        each = round(mean(spent), 2) if spent else None
        rows.append({"what": stage, "make": to_make[stage], "fresh": len(all_of_it) - to_make[stage], "each": each,
                     "seconds": None if each is None else round(each * to_make[stage], 1)})
    return rows


def _gather(store: Store, row: str, made: Made, every: dict[str, set[Made]], known: set[tuple[str, Made]]) -> None:
    if (row, made) in known:
        return
    known.add((row, made))
    for need in store.needs(row, made):
        every[need.stage].add(need)
        _gather(store, row, need, every, known)
