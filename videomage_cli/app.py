"""The `videomage` command: one function for each stage, and init, status, unlock, doctor, demo. Imports no torch."""
from __future__ import annotations

import os
import signal
import warnings
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from . import refuse_foreign_stages

refuse_foreign_stages()                     # before anything of `stages` is imported

from stages import CLIPS_ALONE, STAGES  # noqa: E402
from stages.core.errors import MissingPrerequisite, UsageError  # noqa: E402
from stages.core.report import ask_to_stop, asked_to_stop, can_stop  # noqa: E402
from stages.core.settings import did_you_mean  # noqa: E402
from stages.core.workspace import Workspace, fused_name  # noqa: E402

from . import checks, console, files  # noqa: E402
from .flags import (  # noqa: E402
    Base,
    Call,
    Device,
    Dtype,
    Html,
    Json,
    MotionName,
    Project,
    Run,
    Seed,
    Subjects,
    stage_command,
)
from .sources import ensure_project, photos_of, segment_sources, typed_before  # noqa: E402
from .status import status  # noqa: E402
from .sweep import sweep  # noqa: E402
from .unlock import unlock  # noqa: E402
from .words import SpreadCommand  # noqa: E402

app = typer.Typer(name="videomage", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich",
                  help="Several subjects and one motion into one video, from a few photos and a clip (VideoMage).")


def main() -> None:
    """The entry point: quiet libraries, SIGTERM as a request to stop after the step."""
    if not console.debugging():
        warnings.simplefilter("ignore")
        for name in ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY"):
            os.environ.setdefault(name, "error")
    signal.signal(signal.SIGTERM, _on_sigterm)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:          # a job in the background is deaf to it
        signal.signal(signal.SIGINT, _on_ctrl_c)
    app()


def _on_ctrl_c(*_: object) -> None:
    """The first lets a loop finish its step and save; the second, or one where no such loop runs, ends at once."""
    if asked_to_stop() or not can_stop():
        raise KeyboardInterrupt
    console.ctrl_c = True
    os.write(2, b"\nstopping after this step, which is saved; Ctrl-C again stops at once\n")
    ask_to_stop()


def _on_sigterm(*_: object) -> None:
    """A loop finishes its step and saves; where no such loop runs, it ends at once (or, where the interpreter drops the
    exception, at the next place that asks)."""
    ask_to_stop()
    if not can_stop():
        console.terminated = True
        raise KeyboardInterrupt


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        console.out(version("videomage"))
        raise typer.Exit


@app.callback()
def _whole(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (or set VIDEOMAGE_DEBUG=1).")] = False,
           version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_version,
                                                 is_eager=True)] = False) -> None:
    if debug:
        os.environ["VIDEOMAGE_DEBUG"] = "1"


# -- the project ------------------------------------------------------------------------------------------------------
@app.command()
def init(base: Base = "sprites", folder: Project = Path()) -> None:
    """Make a project: a folder with a commented project.yaml to edit. Nothing is downloaded."""
    with console.guarded():
        from stages.backbones import locate, on_hub, terms, video

        if base != "sprites" and not on_hub(base):
            base = str(locate(base).absolute())
        project = Workspace.create(folder, base=base)
        console.say(f"the base {base}: {terms(base) or 'its terms are not known yet'}")
        try:
            console.say(f"it makes {video(base)}, unless project.yaml says otherwise")
            locate(base)
        except MissingPrerequisite as missing:
            console.say(f"{missing.what}. {missing.remedy}")
        console.say("a new project. Edit its subjects, motion and prompts, then: videomage status")
        console.out(str(project.root / "project.yaml"))


app.command()(status)
app.command()(unlock)


@app.command(cls=SpreadCommand)
def demo(folder: Annotated[Path, typer.Argument(help="Where to put it.")] = Path("demo"), subjects: Subjects = None,
         motion: Annotated[str, typer.Option(help="Which motion of the sprites world.")] = "chase",
         device: Device = "auto", dtype: Dtype = "auto", seed: Seed = 0, json: Json = False) -> None:
    """The whole method on the built-in base, from files it makes itself: eight to nine minutes on two idle cores.

    Subjects and motion are of the sprites world, and held out of all that the base was trained on (default: toy and
    pet, chase).
    """
    with console.guarded():
        from stages.sprites.looks import SUBJECTS
        from stages.sprites.world import HELD_OUT_MOTIONS

        names = tuple(dict.fromkeys(subjects or ("toy", "pet")))
        for name, there in (*((name, SUBJECTS) for name in names), (motion, HELD_OUT_MOTIONS)):
            if name not in there:
                raise UsageError(f"the sprites world has no '{name}'", did_you_mean(name, list(there)))
        from stages.demo import demo as run_demo

        from .doctor import pick_device, pick_dtype

        device = pick_device(device)
        with console.Talk("demo") as report:
            made = run_demo(folder, subjects=names, motion=motion, device=device, seed=seed,
                            dtype=pick_dtype(dtype, device, "sprites"), report=report)
        if json:
            return console.out_json({"files": [str(path) for path in made.files], "verdicts": {
                row: vars(verdict) for row, verdict in made.verdicts.items()}})
        console.scores(made.scores)
        console.say("")
        console.table("seen by the oracle of the sprites world", ("video", "all in sight", "each in sight",
                      "path follows its role", "the other role"), [
            (row, f"{seen.together:.0%}",
             "  ".join(f"{name} {share:.0%}" for name, share in zip(seen.subjects, seen.presence)),
             "  ".join(f"{path:.2f}" for path in seen.paths), f"{seen.exchanged:.2f}")
            for row, seen in made.verdicts.items()], data=False)
        first, verdict = next(iter(made.verdicts.items()))
        console.say(f"{first} {'meets' if verdict.passed else 'misses'} the bar: all in sight in 80 % of the frames, "
                    "each path at 0.8")
        for path in made.files:
            console.out(str(path))
    return None


app.command()(checks.doctor)
app.command()(files.fetch)
app.command()(files.export)
app.command()(sweep)


# -- the seven stages -------------------------------------------------------------------------------------------------
@stage_command(app, "segment")
def segment(run: Run, sources: Annotated[list[str] | None, typer.Argument(
        help="A clip, or photos, or the name of a subject or motion of the project (default: its motion).",
        show_default=False)] = None,
        name: Annotated[str | None, typer.Option(help="What to call it, where the project does not say.")] = None,
        base: Annotated[str | None, typer.Option(show_default=False, help="Of the project that is made where there is "
                                                 "none (default: a real one that is here, else sprites).")] = None,
        ) -> list[Call]:
    """Find the actors of a clip, or the subject of photos: a mask track for each. In a folder without a project, makes
    one."""
    if taken := [actor for actor in run.typed.get("actors") or () if Path(actor).is_file()]:
        raise UsageError(f"'{taken[0]}' is a file, and stands among --actors", "type files before it")
    ensure_project(run, sources or [], name, base)
    name, given = segment_sources(run.project, sources or [], name)
    photos = STAGES["segment"].folder(run.project, name).startswith("subjects/")
    if photos and (alone := [key for key in run.typed if key in CLIPS_ALONE]):
        raise UsageError(f"--{alone[0]} is for clips, and these are photos", "leave it out")
    typed_before(run, name, bool(given))
    keywords = {"images" if label == "images" else "clip": path for label, path in given.items()}
    return [Call(name, [run.plan(name, given=given)], keywords, show=partial(_look_at, run.project))]


def _look_at(project: Workspace, artifacts: list) -> None:
    """What to do next: look, and say what happens in the clip, where nobody has."""
    for artifact in artifacts:
        console.say(f"look at {artifact.folder / 'overlay.png'}")
        motion = project.settings.motions.get(artifact.folder.name)
        if motion and not motion.prompt:
            actors = " ... ".join(f"a [{actor}]" for actor in artifact.manifest["facts"]["shares of the frames"])
            then = f"{'' if artifact.manifest['options']['actors'] else 'videomage segment, and '}videomage invert"
            console.say(f'then say in project.yaml what happens, motion.prompt: "{actors}"; then: {then}')


@stage_command(app, "invert")
def invert(run: Run, motion: MotionName = None) -> list[Call]:
    """Learn the looks of the clip's actors as tokens, and find the noise the clip came from."""
    name = run.project.motion(motion).name
    return [Call(name, [run.plan(name)])]


@stage_command(app, "learn-subject")
def learn_subject(run: Run, name: Annotated[str | None, typer.Argument(
        help="The subject; its token is <name>. Default: every subject of project.yaml.", show_default=False)] = None,
        images: Annotated[list[str] | None, typer.Argument(
            help="Its photos, where project.yaml does not name them.", show_default=False)] = None,
        class_word: Annotated[str | None, typer.Option("--class", help="What it is, in a plain word.")] = None,
        ) -> list[Call]:
    """Learn a subject from a few photos: a token, and a LoRA in the spatial layers."""
    project, photos = run.project, photos_of(images) if images else None
    names, known = [name] if name else list(project.settings.subjects), project.subjects()
    if not names:
        raise UsageError("no subject is named", "type one: videomage learn-subject toy PHOTOS... --class toy")
    if class_word and not name:
        raise UsageError("--class without a subject's name", "type the name before it")
    if name and name not in known and not (photos and class_word):
        raise UsageError(f"the project has no subject '{name}' ({did_you_mean(name, known)})", "add it to project.yaml "
                         f"or type all that is needed: videomage learn-subject {name} PHOTOS... --class WORD")
    given, request = {"images": photos} if photos else None, {"class": class_word} if class_word else None
    return [Call(each, [run.plan(each, given=given, request=request)], {"images": photos, "class_word": class_word})
            for each in names]


@stage_command(app, "learn-motion")
def learn_motion(run: Run, motion: MotionName = None, prompt: Annotated[str | None, typer.Option(
        help='The clip in words, actors in brackets: "a \\[person] is riding a \\[horse]".')] = None) -> list[Call]:
    """Learn the clip's motion without its looks: a LoRA in the temporal layers."""
    name = run.project.motion(motion).name
    return [Call(name, [run.plan(name, request={"prompt": prompt} if prompt else None)], {"prompt": prompt})]


@stage_command(app, "fuse")
def fuse(run: Run, subjects: Subjects = None) -> list[Call]:
    """Fuse the LoRAs of two or more subjects into one that keeps them apart."""
    names = list(dict.fromkeys(subjects or run.project.settings.subjects))
    if len(names) < 2:
        raise UsageError(f"fuse takes two subjects or more, not {len(names)}", "type them: --subjects toy dog")
    for name in names:
        run.project.subject(name)                        # raises for one that nobody knows
    return [Call(names, [run.plan(fused_name(names))])]


@stage_command(app, "sample")
def sample(run: Run, prompt: Annotated[list[str] | None, typer.Option(
        help='What to make: "<toy> is riding <dog> in the snow". May be repeated. Default: the project\'s.')] = None,
        subjects: Subjects = None, motion: Annotated[str | None, typer.Option(
            help="Which motion; 'none' for none. Default: the project's.")] = None) -> list[Call]:
    """Make the video: subjects and motion in one denoising, Algorithm 1."""
    from stages.orders import sample_plans

    keywords = {"subjects": subjects or None, "motion": motion}
    plans = sample_plans(run.project, prompt or None, run.options, **keywords, seed=run.seed, base=run.base,
                         reserve=not run.dry_run)
    return [Call(prompt or None, plans, keywords)]


@stage_command(app, "eval")
def evaluate(run: Run, samples: Annotated[list[str] | None, typer.Argument(
        help="Names in samples/ (default: all).", show_default=False)] = None, html: Html = None) -> list[Call]:
    """Score the videos: CLIP-T, CLIP-I, DINO-I, T. Cons."""
    there = run.project.samples()
    for name in samples or ():
        if name not in there:
            raise UsageError(f"there is no sample '{name}'", did_you_mean(name, there))
    names = samples or there
    if not names:
        raise MissingPrerequisite("there is no sample to score", "Run: videomage sample")
    page = None if html is None else partial(files.page, run.project, samples, html)
    return [Call(names, [run.plan(name) for name in names], show=console.scores, after=page)]


if __name__ == "__main__":
    main()
