"""`videomage unlock`: who holds which lock, and how to clear one that nobody holds any more. Imports no torch."""
from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages.core import lock
from stages.core.errors import BadInput
from stages.core.settings import did_you_mean
from stages.core.workspace import Workspace

from . import console
from .flags import Json, Project


def unlock(names: Annotated[list[str] | None, typer.Argument(
        metavar="[LOCK]...", help="Which to clear, as the table calls them. Default: none is, all are shown.",
        show_default=False)] = None, folder: Project = Path(), json: Json = False) -> None:
    """Show who works on what, and clear locks that were left behind.

    A lock whose owner died on this machine is cleared by whoever comes next, with a notice. One that was taken on
    another machine is not, because nobody here can see whether its owner still works: find out, then name it here.
    """
    with console.guarded():
        folder = Workspace(folder).partial
        there = lock.all_records(folder)
        for name in names or ():
            if name not in there:
                raise BadInput(f"there is no lock '{name}'", did_you_mean(name, list(there)) if there else
                               "nothing is locked")
        for name in names or ():
            for owner in lock.clear(folder / f"{name}.lock"):
                console.say(f"cleared: {name}, of {owner}")
        rows = [(name, owner) for name, found in there.items() if name not in (names or ()) for owner in found.values()]
        if json:
            return console.out_json([{"lock": name, **vars(owner), "state": owner.state} for name, owner in rows])
        if rows:
            console.table("locks", ("lock", "for", "owner", "of", "since", "state"), [
                (name, f"{owner.mode}: {owner.doing}", f"process {owner.pid} on {owner.host}", owner.command,
                 owner.since, owner.state) for name, owner in rows])
        else:
            console.say("nothing is locked")
    return None
