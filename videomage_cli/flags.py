"""From an options dataclass to a command: its fields become flags, beside the flags that every stage has.

A command's body gets a Run and its own arguments, and returns Calls of the stage's function (the table names it), each
with the plans of what it will make. The function, and torch with it, is imported only when it is called.
"""
from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from stages import STAGES
from stages.core.errors import OutOfResources, UsageError
from stages.core.settings import Settings
from stages.core.stage import Artifact
from stages.core.workspace import Plan, Workspace
from stages.options import OPTIONS, kind, resolve, show, span

from . import console
from .estimates import Setting, advice, sentence
from .estimates import as_json as as_json_estimate
from .words import SpreadCommand, words

if TYPE_CHECKING:
    from stages.backbones.cost import Estimate

TRAINS = ("invert", "learn-subject", "learn-motion", "fuse")
BASE_FLAGS = ("low_memory", "compiled")          # how the base is run
DTYPES = ("auto", "fp32", "amp", "bf16", "fp16")
Project = typing.Annotated[Path, typer.Option("--project", "-p", help="The project's folder.", show_default="here")]
Device = typing.Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps; auto: the GPU if there is one.")]
Dtype = typing.Annotated[str, typer.Option(
    help=f"Arithmetic of the networks: {', '.join(DTYPES)}. amp: float32 weights, products in bfloat16. auto: bf16, or "
    "fp16, on a CUDA GPU, but for the sprites base; else fp32.")]
LowMemory = typing.Annotated[bool, typer.Option(
    "--low-memory", help="Less memory, more time, the same numbers: what trains is computed twice, batches go row by "
    "row, frames one by one.")]
Compile = typing.Annotated[bool, typer.Option(
    "--compile", help="Parts of the denoiser run as code that torch.compile makes at their first use, within minutes: "
    "shorter steps, the same numbers to rounding. For long training and GPUs; needs a C++ compiler.")]
Base = typing.Annotated[str, typer.Option(
    help="sprites (built in), zeroscope, modelscope, owner/name of the hub, or the folder of a diffusers model.")]
Seed = typing.Annotated[int, typer.Option(help="All randomness comes from it.", min=0, max=2**31 - 1)]
Json = typing.Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Html = typing.Annotated[str | None, typer.Option(
    "--html", metavar="[FILE.html]", show_default=False, help="Write one page to look at, that opens anywhere: inputs, "
    "videos in step, curves, scores. Default: scores/index.html.")]
Devices, NoDevices = (typing.Annotated[list[str] | None, typer.Option(
    "--devices", metavar="DEVICE...", callback=words, show_default=False, hidden=hidden,
    help="Train on several, as in: --devices cuda:0,cuda:1. They share a batch; the result is that of one device.")]
    for hidden in (False, True))
Subjects = typing.Annotated[list[str], typer.Option("--subjects", metavar="NAME...", callback=words,
                                                    help="Names, as in: --subjects toy dog.")]
MotionName = typing.Annotated[str | None, typer.Argument(
    metavar="MOTION", help="Which motion. Default: the project's.", show_default=False)]


@dataclass(frozen=True)
class Call:
    """One call of the stage's function: function(project, first, options, **keywords), and what it will make."""

    first: object                      # the name, names or prompts
    plans: list[Plan]                  # for --dry-run
    keywords: Mapping[str, object] = field(default_factory=dict)
    show: Callable[[list[Artifact]], None] | None = None           # says more of what was made, on stderr
    after: Callable[[], Artifact] | None = None                    # makes something of what is there then


@dataclass
class Run:
    """What was typed for one stage, and what follows from it."""

    stage: str
    folder: Path
    device: str
    dtype: str
    seed: int
    force: bool
    dry_run: bool
    low_memory: bool = False
    compiled: bool = False
    devices: list[str] = field(default_factory=list)
    typed: Mapping[str, object] = field(default_factory=dict)

    @cached_property
    def project(self) -> Workspace:
        return Workspace(self.folder)

    @cached_property
    def options(self) -> typing.Any:
        """The stage's options: typed > project.yaml > preset > paper. A typed path is relative to here."""
        typed = {key: value.absolute() if isinstance(value, Path) else value for key, value in self.typed.items()}
        return resolve(self.stage, self.project.settings, typed)

    @property
    def settings(self) -> Settings:
        """The project's, its base as it can be found from here."""
        from stages.backbones import base_of

        return replace(self.project.settings, base=base_of(self.project))

    @cached_property
    def base(self) -> dict[str, str] | None:
        from stages.backbones import identity_of

        return identity_of(self.project) if STAGES[self.stage].uses_base else None

    def plan(self, name: str, *, request: Mapping | None = None, given: Mapping | None = None,
             seed: int | None = None) -> Plan:
        """The plan of one artefact of this stage, as the stage itself will make it."""
        return self.project.plan(STAGES[self.stage], name, self.options, seed=self.seed if seed is None else seed,
                                 base=self.base, request=request, given=given)


def flags_of(stage: str) -> list[inspect.Parameter]:
    """A parameter for every option of the stage. None means that it was not typed."""
    out = []
    for spec in fields(OPTIONS[stage]):
        plain, _ = kind(OPTIONS[stage], spec.name)
        unit, paper = spec.metadata["unit"], spec.metadata["paper"]
        facts = [f"default {show(spec.default)}" if show(spec.default) != "-" else "", span(spec), unit, paper]
        facts = "; ".join(filter(None, facts))
        text = spec.metadata["help"] + (f" ({facts})" if facts else "")
        flag = "--" + spec.name.replace("_", "-")
        many = plain is tuple
        hint = typing.Annotated[
            (list[str] if many else plain) | None,
            typer.Option(flag, help=text, show_default=False, rich_help_panel="Hyper-parameters",
                         metavar={int: "N", float: "X", Path: "PATH", tuple: "WORD...", bool: None}.get(plain, "TEXT"),
                         callback=words if many and not spec.metadata["whole"] else None)]
        out.append(inspect.Parameter(spec.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint))
    return out


def stage_command(app: typer.Typer, stage: str) -> Callable:
    """Decorate `body(run, own arguments...) -> list[Call]` as the command of a stage."""
    def decorate(body: Callable[..., list[Call]]) -> Callable[..., list[Call]]:
        hints = typing.get_type_hints(body, include_extras=True)
        own = [p.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
               for name, p in inspect.signature(body).parameters.items() if name != "run"]
        options = flags_of(stage)
        common = [p for p in inspect.signature(_common, eval_str=True).parameters.values()
                  if p.name not in BASE_FLAGS or STAGES[stage].uses_base]
        common = [p.replace(annotation=NoDevices) if p.name == "devices" and stage not in TRAINS else p for p in common]

        def command(**typed: typing.Any) -> None:
            with console.guarded():
                asked = {p.name: typed.pop(p.name) for p in own}
                chosen = {p.name: value for p in options if (value := typed.pop(p.name)) not in (None, [])}
                as_json = typed.pop("json")
                if typed["dtype"] not in DTYPES:
                    raise UsageError(f"there is no dtype '{typed['dtype']}'", f"use one of {', '.join(DTYPES)}")
                if typed["devices"] and stage not in TRAINS:
                    raise UsageError(f"{stage} trains nothing that --devices could share", "name one: --device cuda:0")
                if typed["devices"] and typed["device"] != "auto":
                    raise UsageError("both --device and --devices are there", "leave one of them out")
                run = Run(stage, typed=chosen, **typed)
                _perform(run, body(run, **asked), as_json)

        command.__signature__ = inspect.Signature([*own, *common, *options])
        command.__annotations__ = {p.name: p.annotation for p in (*own, *common, *options)}
        command.__name__, command.__doc__ = body.__name__, body.__doc__
        app.command(stage, cls=SpreadCommand)(command)
        return body
    return decorate


def _common(*, folder: Project = Path(), device: Device = "auto", devices: Devices = None, dtype: Dtype = "auto",
            low_memory: LowMemory = False, compiled: Compile = False, seed: Seed = 0,
            force: typing.Annotated[bool, typer.Option("--force", help="Run it even if it is fresh.")] = False,
            dry_run: typing.Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
            json: Json = False) -> None:
    """The flags of every stage; BASE_FLAGS of those that use the base."""


def _perform(run: Run, calls: list[Call], as_json: bool) -> None:
    if run.dry_run:
        rows = [_forecast(run, plan) for call in calls for plan in call.plans]
        needed = _needed(run) if any(row["would"] == "make" for row in rows) else None
        if as_json:
            return console.out_json([{**row, "needs": as_json_estimate(needed)} if needed and row["would"] == "make"
                                     else row for row in rows])
        for row in rows:
            console.say(f"{row['stage']} '{row['name']}': {row['would']} ({'; '.join(row['reasons']) or row['state']})")
            console.out(row["path"])
        if needed:
            console.say(f"each: {sentence(needed)}")
        return None
    artifacts = _make(run, calls)
    for artifact in artifacts:
        if not artifact.made:
            console.say(f"{artifact.stage} '{artifact.name}' is fresh: nothing to do (--force runs it again)")
    further = [call.after() for call in calls if call.after]
    if as_json:
        return console.out_json([console.describe(artifact) for artifact in (*artifacts, *further)])
    for call in calls:
        if call.show:
            call.show(artifacts)
    for artifact in (*artifacts, *further):
        console.out(str(artifact.path))
    return None


def _make(run: Run, calls: list[Call]) -> list[Artifact]:
    """Import the stage's function and call it. Whatever can be refused without torch is refused before."""
    for call in calls:
        for plan in call.plans:
            if run.force or not plan.state():
                plan.require(stale_too=not run.force)
    if not run.force and calls and all(call.plans and all(plan.state() for plan in call.plans) for call in calls):
        return [plan.artifact() for call in calls for plan in call.plans]
    module, function = STAGES[run.stage].function.split(":")
    stage = getattr(import_module(module), function)
    from .doctor import pick_device, pick_dtype

    device = ",".join(map(pick_device, run.devices or [run.device]))
    common = {"device": device, "dtype": pick_dtype(run.dtype, device, run.project.settings.base), "seed": run.seed,
              "force": run.force, **{name: getattr(run, name) for name in BASE_FLAGS if STAGES[run.stage].uses_base}}
    artifacts: list[Artifact] = []
    try:
        with console.Talk(run.stage) as report:
            for call in calls:
                made = stage(run.project, call.first, run.options, **call.keywords, **common, report=report)
                artifacts += made if isinstance(made, (list, tuple)) else [made]
    except BaseException as error:
        if console.memory_ran_out(error) and STAGES[run.stage].uses_base:
            setting = Setting(run.stage, run.options, run.settings, common["dtype"], run.low_memory)
            raise OutOfResources(console.refusal(error).what, advice(setting)) from error
        raise
    return artifacts


def _needed(run: Run) -> Estimate | None:
    """What each artefact of this command takes of the device; None for a stage without the base's networks."""
    if not STAGES[run.stage].uses_base:
        return None
    from stages.backbones.cost import throughput

    from .doctor import pick_device, pick_dtype

    device = pick_device((run.devices or [run.device])[0])
    dtype = pick_dtype(run.dtype, device, run.project.settings.base)
    setting = Setting(run.stage, run.options, run.settings, dtype, run.low_memory)
    return setting.estimate(throughput(device, dtype))


def _forecast(run: Run, plan: Plan) -> dict[str, object]:
    """What this command would do about one artefact. Raises MissingPrerequisite as the command itself would."""
    state = plan.state()
    skipped = bool(state) and not run.force
    if not skipped:
        plan.require(stale_too=not run.force)
    reasons = [*state.reasons, *(["--force"] if state and run.force else [])]
    return {"stage": plan.stage.name, "name": plan.name, "state": state.kind, "reasons": reasons,
            "would": "skip" if skipped else "make", "path": str(plan.folder)}
