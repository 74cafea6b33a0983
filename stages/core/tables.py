"""Tables of captions, .csv or .jsonl, as WebVid and Panda-70M ship them and as people write them (see captions.py).

They list millions of clips, of which a folder holds some: rows are read one by one, and what a row says is looked at
only where its clip is there.
"""
from __future__ import annotations

import ast
import csv
import posixpath
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from io import TextIOWrapper
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from .errors import BadInput, Refused
from .foreign import loads, opened

if TYPE_CHECKING:
    from .captions import Places

FILE = ("file", "path", "video", "filename", "file_name")
ID = ("videoid",)
CAPTION = ("caption", "text", "prompt", "name")
CELL = 1 << 22                                # characters of a line: the csv module's 131,072 are few for a video's
_PLAIN = re.compile(r"[\w-][\w.-]*(?:/[\w-][\w.-]*)*")      # most places: nothing in them needs a second look
_CLOCK = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d*)?)")


class Part(NamedTuple):
    """A clip, or a part of one (start, end in seconds), and its caption; "": it stands in a file beside the clip."""

    clip: str
    window: tuple[float, float] | None = None
    caption: str = ""


@dataclass
class Content:
    """What a table says of the folder. named: the clips it speaks of, also one whose pieces are taken in its place.
    rows: how many it has; absent: how many of them name no clip that is there."""

    parts: list[Part] = field(default_factory=list)
    named: set[str] = field(default_factory=set)
    rows: int = 0
    absent: int = 0


class Row(NamedTuple):
    """The cells of a row that count, as they were read; None where the table has no such column."""

    line: int
    file: object
    id: object
    folder: object
    caption: object
    timestamp: object


def read_table(table: Path, places: Places) -> Content:
    """What the table says of the clips that are in the folder.

    Raises BadInput naming file and line for a bad row, Refused for one that points out of the folder.
    """
    read = _read_csv if table.suffix.lower() == ".csv" else _read_jsonl
    content = Content()
    limit = csv.field_size_limit(CELL)
    try:
        for row in read(table):
            content.rows += 1
            found = _parts(row, places, table, content.named)
            content.parts += found
            content.absent += not found
    except UnicodeDecodeError as damage:
        raise BadInput(f"{table} is not UTF-8 text ({damage})", "Save it again as UTF-8") from damage
    except (OSError, ValueError) as shut:
        raise BadInput(f"{table} cannot be read ({getattr(shut, 'strerror', shut)})",
                       "See what it is, and who may read it") from shut
    finally:
        csv.field_size_limit(limit)
    return content


# -- rows -----------------------------------------------------------------------------------------------------------
def _lines(table: Path) -> Iterator[str]:
    """One after another, ends and all: of millions none is kept, and none is endless."""
    with TextIOWrapper(opened(table), encoding="utf-8-sig", newline="") as file:
        for number in count(1):
            if len(line := file.readline(CELL + 1)) > CELL:
                _bad(table, number, f"it has more than the {CELL} characters that are read at most")
            if not line:
                return
            yield line


def _read_csv(table: Path) -> Iterator[Row]:
    with closing(_lines(table)) as lines:
        reader, line = csv.reader(lines), 1
        try:
            header = next(reader, [])
            cell = _columns([name.strip() for name in header], table)
            line = reader.line_num + 1
            for cells in reader:
                if cells and len(cells) != len(header):
                    _bad(table, line, f"it has {len(cells)} cells, but the header names {len(header)}",
                         'Put a caption with a comma into quotes: "..."')
                if cells:
                    yield Row._make([line, *[None if n is None else cells[n] for n in cell]])
                line = reader.line_num + 1
        except csv.Error as damage:
            _bad(table, line, f"it cannot be read ({damage})")


def _read_jsonl(table: Path) -> Iterator[Row]:
    known, cell = None, []
    with closing(_lines(table)) as lines:
        for line, text in enumerate(lines, 1):
            if not text.strip():
                continue
            try:
                entry = loads(text)
            except ValueError as damage:
                _bad(table, line, f"it is not JSON ({damage})")
            if not isinstance(entry, dict):
                _bad(table, line, "it is no {...}")
            names, values = list(entry), list(entry.values())
            if names != known:
                known, cell = names, _columns(names, table, line)
            yield Row._make([line, *[None if n is None else values[n] for n in cell]])


def _columns(names: Sequence[str], table: Path, line: int = 1) -> list[int | None]:
    """Where file, id, folder, caption and timestamp stand among the names."""
    low = [name.lower() for name in names]

    def first(wanted: Sequence[str]) -> int | None:
        return next((low.index(name) for name in wanted if name in low), None)

    file, id, caption = first(FILE), first(ID), first(CAPTION)
    for there, what, wanted in ((file is not None or id is not None, "the clip", (*FILE, "videoID")),
                                (caption is not None, "a caption", CAPTION)):
        if not there:
            _bad(table, line, f"no column holds {what}; there is: {', '.join(names) or 'nothing'}",
                 f"Name one {', '.join(wanted[:-1])} or {wanted[-1]}")
    return [file, id if file is None else None, first(("page_dir",)), caption, first(("timestamp",))]


# -- what a row says ------------------------------------------------------------------------------------------------
def _parts(row: Row, places: Places, table: Path, named: set[str]) -> list[Part]:
    """The parts of a row that are in the folder, [] where its clip is not; its clips are added to `named`."""
    name = _inside(row.file if row.id is None else row.id, row, table)
    if not places.known(name):
        return []

    def bad(what: str, remedy: str = "Mend or remove this row") -> NoReturn:
        _bad(table, row.line, what, remedy)

    times, cut = row.timestamp, {}
    if row.id is None:
        whole = places.file(name)
        times = times if isinstance(times, list) or str(times).lstrip().startswith("[") else None     # else: of a day
    else:
        whole = places.id(name, _inside(row.folder, row, table) if row.folder else "")
        cut = places.pieces(name) if times else {}
    if whole is None and not cut:
        return []
    named |= {*cut.values(), *([whole] if whole else [])}
    captions = _captions(row.caption, bool(times), bad)
    if not times:
        return [Part(whole, None, caption) for caption in captions]
    windows = _windows(_list(times, bad), bad)
    if len(windows) != len(captions):
        bad(f"it has {len(windows)} time stamps and {len(captions)} captions")
    if cut and max(cut) >= len(captions):
        bad(f"it has {len(captions)} captions, so there can be no piece {cut[max(cut)]}",
            "Number the pieces from 0, as the row does")
    return [Part(cut[k], None, caption) if k in cut else Part(whole, windows[k], caption)
            for k, caption in enumerate(captions) if k in cut or whole]


def _inside(value: object, row: Row, table: Path) -> str:
    """A place in the folder as a row writes it, with / between. Raises Refused for one that leads out of it."""
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return value
    if not isinstance(value, (str, int)) or isinstance(value, bool) or not str(value).strip():
        _bad(table, row.line, f"it names no clip, but {value!r}")
    place = str(value).strip().replace("\\", "/")
    if place[0] == "/" or place[1:2] == ":" or ".." in place.split("/"):
        raise Refused(f"{table}, line {row.line}: '{value}' leads out of the folder",
                      "Name clips by their places in the folder")
    return posixpath.normpath(place) if "./" in place or "//" in place else place


def _captions(text: object, timed: bool, bad: Callable[..., NoReturn]) -> list[str]:
    """One caption; or several, where a list stands or, beside time stamps, is written out."""
    written = timed and isinstance(text, str) and text.lstrip().startswith("[")
    found = _list(text, bad) if written or isinstance(text, list) else [text]
    if not found or not all(isinstance(caption, str) and caption.strip() for caption in found):
        bad("its clip has no caption", "Write one, or remove the row and its clip")
    return [" ".join(caption.split()) for caption in found]


def _list(value: object, bad: Callable[..., NoReturn]) -> list:
    """A list, or one written in Python's way or JSON's."""
    if isinstance(value, str):
        try:
            with warnings.catch_warnings():                # a backslash in a caption is no news
                warnings.simplefilter("ignore")
                value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            bad(f"{_short(value)} is no list")
    if not isinstance(value, (list, tuple)):
        bad(f"{_short(value)} is no list")
    return list(value)


def _windows(pairs: list, bad: Callable[..., NoReturn]) -> list[tuple[float, float]]:
    """[[start, end], ...] or one [start, end] -> seconds."""
    if len(pairs) == 2 and not any(isinstance(item, (list, tuple)) for item in pairs):
        pairs = [pairs]
    found = []
    for pair in pairs:
        times = [_seconds(time) for time in pair] if isinstance(pair, (list, tuple)) else []
        if len(times) != 2 or None in times or not times[0] < times[1]:
            bad(f"{_short(pair)} is no time stamp", "Write [start, end] as 0:00:14.815, or in seconds")
        found.append((times[0], times[1]))
    return found


def _seconds(time: object) -> float | None:
    """Seconds, or H:MM:SS.mmm -> seconds; None for anything else."""
    if isinstance(time, (int, float)) and not isinstance(time, bool):
        return float(time) if 0 <= time < float("inf") else None
    match = _CLOCK.fullmatch(time.strip()) if isinstance(time, str) else None
    return 3600 * int(match[1] or 0) + 60 * int(match[2] or 0) + float(match[3]) if match else None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _bad(table: Path, line: int, what: str, remedy: str = "Mend or remove this row") -> NoReturn:
    raise BadInput(f"{table}, line {line}: {what}", remedy)
