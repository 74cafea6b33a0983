"""`videomage sweep`: a grid of subjects, motions, prompts, seeds and option values. Imports torch only to work."""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stages.core.errors import UsageError
from stages.core.workspace import Workspace

from . import console
from .flags import DTYPES, Compile, Device, Dtype, Json, LowMemory, Project

if TYPE_CHECKING:
    from stages.sweep.run import Crew
    from stages.sweep.store import Store
    from stages.sweep.work import How

SHOWN = 20                                         # failures that are told one by one


def sweep(grid: Annotated[Path, typer.Argument(
        metavar="GRID.yaml", help="casts, motions, prompts, seeds, rows and sweeps; here, or in the project's folder.",
        show_default=False)], folder: Project = Path(), status: Annotated[bool, typer.Option(
            "--status", help="Only count the cells of each row: fresh, failed, missing; failures are named.")] = False,
        collect: Annotated[Path | None, typer.Option(
            metavar="FILE", help="Write the table, FILE.csv or FILE.parquet: a line for each cell that was attempted. "
            "Nothing is made.", show_default=False)] = None, dry_run: Annotated[bool, typer.Option(
                "--dry-run", help="Only say what would be made, and how long that took before.")] = False,
        workers: Annotated[int | None, typer.Option(
            min=1, help="How many jobs at once; more than one needs Ray (pip install 'videomage\\[sweep]'). Default: "
            "with Ray one for each GPU, or for each core of a CPU; else 1.", show_default=False)] = None,
        address: Annotated[str | None, typer.Option(
            help="Of a Ray cluster whose machines see the project under the same path. Default: Ray on this machine.",
            show_default=False)] = None, gpus_per_job: Annotated[float | None, typer.Option(
                min=0, help="What a worker holds of a GPU; 0.5: two share one. Default: 1 on a GPU.",
                show_default=False)] = None, retries: Annotated[int, typer.Option(
                    min=0, help="How often a job that failed is tried again, if it may end otherwise: not what was "
                    "refused.")] = 2,
        device: Device = "auto", dtype: Dtype = "auto", low_memory: LowMemory = False, compiled: Compile = False,
        json: Json = False) -> None:
    """Make and score every video of a grid. What is there is not made again: stop it at any time, let the grid grow.

    Rows differ in options of any stage; the first comes first, whole. Cells that fail are counted and named, and the
    others go on; the exit code is that of the first failure. The same command tries them again. A grid:

    casts: \\[\\[toy, pet]], motions: \\[chase], prompts: \\["{motion} in the snow"], seeds: \\[0, 1, 2],
    rows: {full: {}, no guidance: {sample: {tau: 0}}, exchanged: {roles: exchanged}},
    sweeps: {learn-subject.lambda1: \\[0.1, 1]}
    """
    with console.guarded():
        from stages.sweep import grid as grids
        from stages.sweep.store import Store

        if sum((status, collect is not None, dry_run)) > 1:
            raise UsageError("--status, --collect and --dry-run exclude each other", "type one of them")
        if dtype not in DTYPES:
            raise UsageError(f"there is no dtype '{dtype}'", f"use one of {', '.join(DTYPES)}")
        project = Workspace(folder)
        store = Store(project, grids.read(project, grids.find(project, grid)))
        if status:
            return _status(store, json)
        if collect is not None:
            return _collect(store, collect)
        if dry_run:
            return _forecast(store, json)
        how, crew = _means(project, device, dtype, low_memory, compiled, workers, address, gpus_per_job)
        return _run(store, how, crew, retries, json)


def _means(project: Workspace, device: str, dtype: str, low_memory: bool, compiled: bool, workers: int | None,
           address: str | None, gpus: float | None) -> tuple[How, Crew]:
    """How the networks run, and who runs them."""
    import os
    from importlib.util import find_spec

    import torch

    from stages.sweep.run import Crew
    from stages.sweep.work import How

    from .doctor import pick_device, pick_dtype

    device = device if address and device != "auto" else pick_device(device)
    on_gpu = device.startswith("cuda")
    gpus = (1.0 if on_gpu else 0.0) if gpus is None else gpus
    if gpus and not on_gpu:
        raise UsageError(f"--gpus-per-job with --device {device}", "leave one of them out")
    if workers is None and (address or find_spec("ray")):
        one = device == "cpu" or ":" in device
        workers = (os.cpu_count() or 1) if device == "cpu" else 1 if one else max(1, int(
            torch.cuda.device_count() / (gpus or 1.0)))
    how = How(device, pick_dtype(dtype, device, project.settings.base), low_memory, compiled)
    return how, Crew(workers or 1, address, gpus)


def _run(store: Store, how: How, crew: Crew, retries: int, json: bool) -> None:
    from stages.sweep.run import run
    from stages.sweep.work import codes

    with console.Talk("sweep") as report:
        failed = run(store, how, crew, retries=retries, report=report)
    _status(type(store)(store.project, store.grid), json)
    if failed:
        raise typer.Exit(codes(failed))


def _status(store: Store, json: bool) -> None:
    from stages.sweep.store import counted

    states = store.states()
    table = counted(states, [row.name for row in store.grid.rows])
    failed = {cell: why for cell, (state, why) in states.items() if state == "failed"}
    if json:
        return console.out_json({"sweep": store.grid.name, "cells": len(states), "rows": table, "failed": [
            {"row": cell.row, "cast": "+".join(cell.cast), "motion": cell.motion, "prompt": cell.prompt,
             "seed": cell.seed, "why": why} for cell, why in failed.items()]})
    whole = {state: sum(counts[state] for counts in table.values()) for state in ("fresh", "failed", "missing")}
    console.table(f"{store.grid.name}: {len(states)} cells", ("row", *whole), [
        *((row, *counts.values()) for row, counts in table.items()), ("all", *whole.values())])
    for cell, why in list(failed.items())[:SHOWN]:
        console.say(f"failed: {cell.row}, {'+'.join(cell.cast)}, {cell.motion}, '{cell.prompt}', seed {cell.seed}: "
                    f"{why}")
    if len(failed) > SHOWN:
        console.say(f"and {len(failed) - SHOWN} more; --json names them all")
    return None


def _collect(store: Store, path: Path) -> None:
    from stages.sweep.collect import collect, write

    lines = collect(store)
    missing = len(store.grid.cells) - len(lines)
    console.out(str(write(lines, path)))
    console.say(f"{len(lines)} cells" + (f"; {missing} were not attempted yet" if missing else ""))


def _forecast(store: Store, json: bool) -> None:
    from stages.sweep.forecast import forecast

    rows = forecast(store)
    if json:
        return console.out_json(rows)
    console.table(f"{store.grid.name}: {len(store.grid.cells)} cells", ("what", "to make", "fresh", "seconds each",
                                                                       "seconds"),
                  [(row["what"], row["make"], row["fresh"], *("?" if row[key] is None else row[key]
                                                              for key in ("each", "seconds"))) for row in rows])
    return None
