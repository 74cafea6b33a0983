"""`videomage doctor`: is all here that is needed, and will a stage fit this machine? Imports no torch."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from stages.core.errors import BadInput, MissingPrerequisite, Refused, UsageError
from stages.core.settings import Settings, did_you_mean
from stages.core.workspace import Workspace
from stages.options import resolve

from . import console
from .estimates import Setting, as_json, gib, sentence
from .flags import Device, Dtype, Json, LowMemory, Project


def doctor(folder: Project = Path(), plan: Annotated[str | None, typer.Option(
        metavar="STAGE", help="What this stage would take: memory, time, and what lowers them.",
        show_default=False)] = None, base: Annotated[str | None, typer.Option(
            help="Of this base, in place of the project's.", show_default=False)] = None,
        device: Device = "auto", dtype: Dtype = "auto", low_memory: LowMemory = False, json: Json = False) -> None:
    """Check this machine, this installation and the base; with --plan, what a stage would take. Downloads nothing."""
    with console.guarded():
        from stages.backbones import base_of

        try:
            project = Workspace(folder)
            settings = replace(project.settings, base=base_of(project))
        except MissingPrerequisite:                     # not in a project: the built-in base, no options
            settings = Settings()
        if base:
            settings = Settings(base=base, options=settings.options)
        if plan:
            return _plan(plan, settings, device, dtype, low_memory, json)
        if (device, dtype, low_memory) != ("auto", "auto", False):
            raise UsageError("--device, --dtype and --low-memory say how a stage would run", "add --plan STAGE")
        return _examine(settings, json)


def _examine(settings: Settings, json: bool) -> None:
    from .doctor import examine

    found = examine(settings)
    if json:
        console.out_json([vars(finding) for finding in found])
    else:
        console.table("doctor", ("", "what", "found", "remedy"), [
            (f.mark, f.what, f.found, "" if f.mark == "ok" else f.remedy) for f in found])
    bad = [finding for finding in found if finding.mark == "bad"]
    if bad:
        error = {kind.exit_code: kind for kind in (BadInput, Refused)}.get(bad[0].exit_code, MissingPrerequisite)
        raise error(f"not ready: {', '.join(finding.what for finding in bad)}", bad[0].remedy)


def _plan(stage: str, settings: Settings, device: str, dtype: str, low_memory: bool, json: bool) -> None:
    """The phases of a stage and their memory, its time, whether it fits, and the knobs by their effect."""
    from stages.backbones import terms, video
    from stages.backbones.cost import STAGES, throughput

    from .doctor import memory_of, pick_device, pick_dtype

    if stage not in STAGES:
        raise UsageError(f"there is nothing to plan for '{stage}'", did_you_mean(stage, STAGES))
    device = pick_device(device)
    dtype = pick_dtype(dtype, device, settings.base)
    setting = Setting(stage, resolve(stage, settings), settings, dtype, low_memory)
    found, there = setting.estimate(throughput(device, dtype)), memory_of(device)
    if json:
        return console.out_json({**as_json(found), "device": device, "dtype": dtype, "low_memory": low_memory,
                                 "device_bytes": there, "knobs": {text: e.peak_bytes for text, e in setting.knobs()}})
    console.out(f"{stage} on {settings.base} ({terms(settings.base)}): {video(settings.base, settings.video)}")
    console.out(f"in {dtype}{', low memory' if low_memory else ''}, on {device}, which has {gib(there)}\n")
    console.table("phases", ("", "memory at its peak"), [(name, gib(size)) for name, size in found.phases.items()])
    console.out(f"\n{sentence(found)}")
    least, most = found.peak_bytes * (1 - found.error), found.peak_bytes * (1 + found.error)
    console.out("it fits\n" if most < there else "it may just fit, or not\n" if least < there else "it does not fit\n")
    console.table("what lowers it, each alone", ("", "memory at its peak"),
                  [(text, gib(other.peak_bytes)) for text, other in setting.knobs()])
    return None
