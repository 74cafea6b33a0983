"""What a sweep would make, and how long that took where it was made before. Imports no torch."""
from __future__ import annotations

from statistics import mean

from .. import STAGES
from .schedule import Schedule
from .store import Made, Store


def forecast(store: Store) -> list[dict[str, object]]:
    """A row for each stage: how many are to make, how many are fresh, the mean seconds of those that are there (None:
    there is none to tell), and the product."""
    every: dict[str, set[Made]] = {stage: set() for stage in STAGES}
    for cell in store.grid.cells:
        every["eval"].add(store.score(cell))
        every["sample"] |= {made for made in (store.sample(cell), store.control(cell)) if made}
    groups = {(made.root, *made.asked["subjects"], made.asked["motion"]): made for made in every["sample"]}
    for made in groups.values():
        _gather(store, made, every)
    jobs, rows = Schedule(store).waiting.values(), []
    for stage, some in every.items():
        make = sum(len(job.makes) for job in jobs if job.makes[0].stage == stage)
        spent = [manifest["seconds"] for made in some if (manifest := store.manifest(made))]
        each = round(mean(spent), 2) if spent else None
        rows.append({"what": stage, "make": make, "fresh": len(some) - make, "each": each,
                     "seconds": None if each is None else round(each * make, 1)})
    return rows


def _gather(store: Store, made: Made, every: dict[str, set[Made]]) -> None:
    for need in store.needs(made):
        if need not in every[need.stage]:
            every[need.stage].add(need)
            _gather(store, need, every)
