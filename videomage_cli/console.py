"""Everything that is printed: results on stdout, talk on stderr, errors as one sentence with its remedy."""
from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from stages.core.errors import BadInput, Interrupted, OutOfResources, VideomageError
from stages.core.foreign import read_json
from stages.core.store import is_full

from .visible import as_json, message, visible

QUIET_SECONDS = 15.0            # without a terminal: at most one line of progress in so many seconds
CTRL_C = 130
ctrl_c = False                  # whether a request to stop came from the keyboard
terminated = False              # whether SIGTERM stopped what cannot stop by itself
DEFECT = 1                      # an exit code of no meaning: something we did not foresee


def _stderr():
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True, highlight=False)


def out(text: str) -> None:
    """A line of data."""
    sys.stdout.write(f"{visible(text, lines=True)}\n")


def out_json(value: object) -> None:
    """Data as JSON; paths as text."""
    sys.stdout.write(f"{as_json(value)}\n")


def say(text: str, style: str | None = None) -> None:
    """A line of talk."""
    from rich.text import Text

    _stderr().print(Text(message(text), style or ""))


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, data: bool = True) -> None:
    """data: on stdout, because it is what was asked for; else on stderr. A pipe gets lines that are not cut."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    stream = sys.stdout if data else sys.stderr
    console = Console(file=stream, highlight=False, width=None if stream.isatty() else 200)
    grid = Table(title=Text(visible(title)), title_justify="left", box=None, pad_edge=False, header_style="bold",
                 title_style="bold")
    for column in columns:
        grid.add_column(Text(visible(column)), overflow="fold")
    for row in rows:
        grid.add_row(*(Text(visible(number(cell))) for cell in row))
    console.print(grid)


def number(value: object) -> str:
    """A figure at a sensible length; anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Talk:
    """The report of a stage: a bar on a terminal, a line now and then elsewhere. A context manager."""

    def __init__(self, label: str) -> None:
        self.label, self.bar = label, None
        self.tasks: dict[str, int] = {}              # of the bar, and when each was last spoken of
        self.spoken: dict[str, float] = {}

    def __enter__(self) -> Talk:
        if sys.stderr.isatty():
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            label, facts = (TextColumn(f"{{task.{what}}}", markup=False) for what in ("description", "fields[facts]"))
            self.bar = Progress(label, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), facts,
                                console=_stderr(), transient=True)
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar:
            self.bar.stop()

    def __call__(self, **facts: object) -> None:
        """step, of: progress. note: a sentence. call: which of several that run at once says it. Everything else is
        shown beside the bar as name=value."""
        note, step, of, call = (facts.pop(key, None) for key in ("note", "step", "of", "call"))
        label = visible(f"{self.label}: {call}" if call else self.label)
        if note is not None and self.bar:
            self.bar.console.print(message(f"{label}: {note}"), markup=False, emoji=False)
        elif note is not None:
            say(f"{label}: {note}")
        if step is None:
            return
        shown = visible(" ".join(f"{key}={number(value)}" for key, value in facts.items()))
        if self.bar:
            if label not in self.tasks:
                self.tasks[label] = self.bar.add_task(label, facts="")
            self.bar.update(self.tasks[label], completed=step, total=of, facts=shown)
        elif step == of or time.monotonic() - self.spoken.get(label, -QUIET_SECONDS) > QUIET_SECONDS:
            self.spoken[label] = time.monotonic()
            say(f"{label}: {step} of {of} {shown}".rstrip())


def debugging() -> bool:
    return os.environ.get("VIDEOMAGE_DEBUG", "") not in ("", "0")


def refusal(error: BaseException) -> VideomageError | None:
    """What can be told of an error as one of ours: itself, or memory and disk running out."""
    if isinstance(error, VideomageError):
        return error
    if memory_ran_out(error):
        torch = sys.modules.get("torch")
        where = " on the device" if torch and isinstance(error, torch.OutOfMemoryError) else ""
        return OutOfResources(f"memory ran out{where}", "`videomage doctor --plan STAGE` shows what a "
                              "stage needs, and what lowers it")
    if isinstance(error, OSError) and is_full(error):
        return OutOfResources("the disk is full", "make room, and run it again")
    return None


def memory_ran_out(error: BaseException) -> bool:
    """Of the machine, or of a device."""
    torch = sys.modules.get("torch")
    on_device = torch is not None and isinstance(error, torch.OutOfMemoryError)
    return on_device or isinstance(error, MemoryError) or "DefaultCPUAllocator: can't allocate" in str(error)


def show_error(error: VideomageError) -> None:
    from rich.text import Text

    remedy = f" {error.remedy[0].upper()}{error.remedy[1:]}" if error.remedy else ""
    _stderr().print(Text.assemble(("error: ", "bold red"), message(f"{error.what}."), (message(remedy), "bold")))


@contextmanager
def guarded() -> Iterator[None]:
    """Turn what goes wrong inside into a sentence and an exit code; VIDEOMAGE_DEBUG lets the traceback through."""
    import typer

    try:
        yield
    except (typer.Exit, typer.BadParameter, SystemExit, BrokenPipeError):
        raise
    except KeyboardInterrupt:
        say("stopped. Nothing half-written was left; the same command goes on from its last checkpoint.")
        raise typer.Exit(Interrupted.exit_code if terminated else CTRL_C) from None
    except BaseException as error:
        if debugging():
            raise
        known = refusal(error)
        if known:
            show_error(known)
            raise typer.Exit(CTRL_C if ctrl_c and isinstance(known, Interrupted) else known.exit_code) from None
        say(f"error: {type(error).__name__}: {error}. This is a defect of videomage: run it again with --debug "
            "(videomage --debug COMMAND ...) and report what it shows.", "red")
        raise typer.Exit(DEFECT) from None


def describe(artifact: object) -> Mapping[str, object]:
    """An artefact as JSON has it."""
    return {"stage": artifact.stage, "name": artifact.name, "path": str(artifact.path), "made": artifact.made,
            "files": [str(path) for path in artifact.files], "facts": artifact.manifest.get("facts", {})}


def scores(artifacts: Sequence) -> None:
    """Two tables of eval on stderr, a row per video and their mean: the contract's, and the paper's protocol (the
    figures themselves are in the JSON files). A score that a video cannot have is shown as "-" and is in no mean."""
    from stages.evaluate import HEADLINE, PAPER, headline

    rows = []
    for artifact in artifacts:
        try:
            rows.append(read_json(artifact.path))
            for judge in rows[-1]["judged"]:
                headline(rows[-1], judge)
            dict(rows[-1][PAPER])
        except (ValueError, LookupError, TypeError, AttributeError) as damage:
            raise BadInput(f"{artifact.path} is damaged ({type(damage).__name__})",
                           f"Run: videomage eval {artifact.name} --force") from None
    for judge in dict.fromkeys(judge for row in rows for judge in row["judged"]):
        _score_table(f"judged by the {judge}'s tracks", HEADLINE,
                     {row["sample"]: headline(row, judge) for row in rows if judge in row["judged"]})
    _score_table(PAPER, list(dict.fromkeys(name for row in rows for name in row[PAPER])),
                 {row["sample"]: row[PAPER] for row in rows})


def _score_table(title: str, columns: Sequence[str], rows: Mapping[str, Mapping]) -> None:
    def shown(values: Sequence[object]) -> list[str]:
        return ["-" if value is None else f"{value:.3f}" for value in values]

    there = {name: [row[name] for row in rows.values() if row.get(name) is not None] for name in columns}
    mean = [sum(found) / len(found) if found else None for found in there.values()]
    table(title, ("video", *columns), [*((name, *shown([row.get(c) for c in columns])) for name, row in rows.items()),
                                       (f"mean of {len(rows)}", *shown(mean))], data=False)
