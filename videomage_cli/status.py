"""`videomage status`: what is fresh, stale or missing. Imports no torch."""
from __future__ import annotations

from pathlib import Path

from stages import STAGES
from stages.core import lock
from stages.core.errors import VideomageError
from stages.core.workspace import Workspace
from stages.options import deviations, show

from . import console
from .flags import Json, Project


def status(folder: Project = Path(), json: Json = False) -> None:
    """Show what is fresh, stale (and why) or missing, and where the options differ from the paper's."""
    with console.guarded():
        project = Workspace(folder)
        with project.looking():
            rows = _states(project)
        differing = [{"stage": stage, "option": name, "value": value, "paper": paper, "why": why}
                     for stage in STAGES for name, value, paper, why in deviations(stage, project.settings)]
        kept = sum(facts.st_size for _, facts in project.cached())
        if json:
            return console.out_json({"project": str(project.root), "base": project.settings.base, "artefacts": rows,
                                     "differs_from_paper": differing, "cache_bytes": kept})
        console.table(f"{project.root.resolve()} on {project.settings.base}", ("stage", "name", "state", "why", "next"),
                      [(row["stage"], row["name"], row["state"], "; ".join(row["reasons"]), row["next"])
                       for row in rows])
        if not rows:
            console.say("the project names nothing yet: edit its subjects, motion and prompts")
        console.out("")
        console.table("differs from the paper", ("stage", "option", "here", "paper", "why"),
                      [(d["stage"], d["option"], show(d["value"]), show(d["paper"]), d["why"]) for d in differing])
        for name, found in lock.all_records(project.partial).items():
            for owner in found.values():
                console.say(f"{name}: {owner.mode} lock of {owner}, {owner.state}")
        if kept:
            console.say(f".cache holds {kept / 1e6:.1f} MB of what need not be computed again; it can be deleted")
    return None


def _states(project: Workspace) -> list[dict[str, object]]:
    """A row for every artefact that the project wants or has."""
    from stages.backbones import identity_of

    try:
        base = identity_of(project)
    except VideomageError as error:
        base = None
        console.say(f"note: {error.what}; whether it changed is not compared", "yellow")
    rows = []
    for stage in STAGES.values():
        for name in stage.names(project):
            state = project.state_of(stage, name, base)
            rows.append({"stage": stage.name, "name": name, "state": state.kind, "reasons": list(state.reasons),
                         "next": "" if state else stage.command(name)})
        if stage.name == "sample":
            made = {stage.request(project, name).get("prompt") for name in project.samples()}
            rows += [{"stage": stage.name, "name": prompt, "state": "missing", "reasons": [],
                      "next": stage.command(prompt)} for prompt in project.settings.prompts if prompt not in made]
    return rows
