"""What comes in from elsewhere and what goes out: `videomage fetch`, `export` and the page of `eval --html`. Imports no
torch."""
from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages.core.errors import UsageError
from stages.core.workspace import Artifact, Workspace
from stages.segmenters import models

from . import console
from .flags import Json, Project


def fetch(base: Annotated[str | None, typer.Argument(
        help="zeroscope, modelscope, owner/name of the hub, or a folder to convert; grounded-sam2 for what segments. "
             "Default: the project's base.",
        show_default=False)] = None, folder: Project = Path(), convert: Annotated[bool, typer.Option(
            "--convert", help="Turn pickled weights into safetensors, once, in a process of its own.")] = False,
        out: Annotated[Path | None, typer.Option(
            help="Where the converted base goes. Default: where its name finds it; of a folder, beside it.",
            show_default=False)] = None) -> None:
    """Download a base, or what segments, after saying its licence and size. No other command downloads anything."""
    with console.guarded():
        if base and models.is_one(base):
            return _fetch_models(base, convert or out is not None)
        from stages.backbones import base_of, on_hub, terms
        from stages.backbones import fetch as hub

        base = base or base_of(Workspace(folder))
        if out and not convert:
            raise UsageError("--out without --convert", "what is downloaded lies in the hub's cache: set HF_HOME")
        if not on_hub(base) and not convert:
            raise UsageError(f"the base '{base}' is not one of the hub", "there is nothing to fetch")
        if said := terms(base):
            console.say(f"the base {base}: {said}")
        with console.Talk("fetch") as report:
            made = hub.fetch(base, convert=convert, out=out, report=report)
        if out or not on_hub(base):
            console.say(f"to use it: videomage init --base {made}")
        console.out(str(made))
    return None


def _fetch_models(name: str, more: bool) -> None:
    from stages.segmenters.fetch import fetch as fetch_models

    if more:
        raise UsageError(f"--convert and --out are of bases, and {name} is none", "leave them away")
    for weights in models.KNOWN:
        if name in (models.NAME, weights.repo):
            console.say(f"{weights.what}, {weights.repo}: {models.terms(weights.repo)}")
    with console.Talk("fetch") as report:
        for folder in fetch_models(name, report):
            console.out(str(folder))


def export(name: Annotated[str, typer.Argument(
        metavar="LORA", help="A subject (toy), several fused (dog+toy), a motion, or the file of a LoRA or token.")],
        form: Annotated[str, typer.Option("--format", help="peft, diffusers or kohya.")] = "diffusers",
        out: Annotated[Path | None, typer.Option(
            help="The folder to write. Default: exports/LORA-FORMAT in the project.", show_default=False)] = None,
        folder: Project = Path(), json: Json = False, force: Annotated[bool, typer.Option(
            "--force", help="Replace files that are there.")] = False) -> None:
    """Write a LoRA and its tokens as files that other programs open: PEFT, diffusers, or what reads kohya's format."""
    with console.guarded():
        from stages.export import export as write
        from stages.export import files_of

        if Path(name).is_file():
            out = out or Path(f"{Path(name).stem}-{form}")
            files = write(Path(name), out, form, force=force)
        else:
            project = Workspace(folder)
            out = out or project.root / "exports" / f"{name}-{form}"
            with files_of(project, name) as sources:
                files = write(sources, out, form, force=force)
        if json:
            return console.out_json({"folder": out, "files": files})
        console.out(str(out))
    return None


def page(project: Workspace, samples: list[str] | None, typed: str) -> Artifact:
    """What --html asks for: typed is a path from here, or nothing."""
    from stages.page import write_page

    path = write_page(project, samples, typed or None)
    console.say(f"the page has {path.stat().st_size / 1e6:.1f} MB and needs no other file")
    return Artifact("eval", "page", path.parent, path, (path,), {})
