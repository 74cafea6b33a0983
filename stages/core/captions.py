"""Captioned clips in a folder, as people and downloaders leave them: which clip has which words. Imports no torch.

The folder is searched with all below it; hidden files are left out. A clip takes its caption from the first of

* `clip.txt` beside it, which is also what video2dataset leaves (00000/0000012_00003.mp4, .txt, .json);
* one table, .csv or .jsonl, at the top of the folder, with a header or keys of one of these kinds:
    file | path | video | filename, caption | text | prompt | name    the clip's place in the folder, or below videos/
    videoid, page_dir, name                                           WebVid: videoid.mp4 wherever it lies
    videoID, timestamp, caption                                       Panda-70M: lists of [start, end] and of captions
* `clip.json` beside it, its "caption".

Of Panda-70M, pieces cut already are videoID_0.mp4 or videoID.0.mp4, ..., their number being the place in the lists
(its own downloader counts files instead and leaves a .txt beside each); of a whole videoID.mp4 the time stamps say
which part is meant.
"""
from __future__ import annotations

import hashlib
import heapq
import json
import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .borders import entries, is_folder
from .errors import BadInput
from .foreign import MOST, loads, read_text
from .kinds import CLIPS
from .stage import natural
from .tables import Content, Part, read_table

NOTES = {".txt", ".json"}
TABLES = {".csv", ".jsonl"}
_READ = CLIPS | NOTES | TABLES
_PIECE = re.compile(r"(.+?)[._](?:segment_)?(\d+)")


@dataclass(frozen=True)
class Captioned:
    """A clip. window: the part of it that is meant, (start, end) in seconds; None: all. note: the file beside it that
    holds its caption; None: the table gave the caption."""

    path: Path
    window: tuple[float, float] | None = None
    note: Path | None = None
    caption: str = ""

    def text(self) -> str:
        """The caption, in one line. Raises BadInput where there is none after all."""
        return self.caption if self.note is None else _read_note(self.note, self.path)


@dataclass(frozen=True)
class Selection:
    """What `select` took. of: how many it took from. rows: of the table; absent: those whose clip is not there."""

    clips: tuple[Captioned, ...]
    of: int
    table: Path | None = None
    rows: int = 0
    absent: int = 0

    @property
    def files(self) -> tuple[Path, ...]:
        """All that the clips and captions taken were read from."""
        used = [path for clip in self.clips for path in (clip.path, clip.note or self.table)]
        return tuple(dict.fromkeys(path for path in used if path))


def select(folder: Path, count: int) -> Selection:
    """At most `count` captioned clips of a folder, in natural order.

    Of more, a lottery by the hash of place, part and caption takes so many: always the same ones, on every machine, and
    a clip that is added or removed changes one of them at most. Only tables are read, and they row by row.
    Raises BadInput where there is no clip, naming a clip without a caption or the line of a bad row; Refused for a row
    that points out of the folder.
    """
    if not folder.is_dir():
        raise BadInput(f"{folder} is no folder", "Name a folder of clips with captions: --auxiliary FOLDER")
    clips, notes, tables = _listing(folder)
    if not clips:
        raise BadInput(f"{folder} holds no clips", f"Put some there ({', '.join(sorted(CLIPS))}), with their captions")
    if len(tables) > 1:
        raise BadInput(f"{folder} holds {len(tables)} tables: {', '.join(tables)}", "Leave the one there that is meant")
    stat = (folder / tables[0]).stat() if tables else None
    return _select(folder, count, clips, notes, tables[0] if tables else "", stat and (stat.st_size, stat.st_mtime_ns))


@lru_cache(maxsize=8)                                # one order asks several times, `status` for every subject again
def _select(folder: Path, count: int, clips: tuple[str, ...], notes: frozenset[str], name: str,
            stamp: tuple[int, int] | None) -> Selection:
    """stamp: the table's size and time, there to read it again when it changes."""
    stems = {clip: posixpath.splitext(clip)[0] for clip in clips}
    mine = {clip for clip in clips if f"{stems[clip]}.txt" in notes}
    table = folder / name if name else None
    said = read_table(table, Places(clips)) if table else Content()
    told = said.named
    mute = [clip for clip in clips if clip not in mine and clip not in told and f"{stems[clip]}.json" not in notes]
    if table and not told and len(mute) == len(clips):
        raise BadInput(f"none of the {said.rows} rows of {table} names a clip that is there, such as {clips[0]}",
                       "See that its clips lie in the folder under the names that it gives them")
    if mute:
        others = f" (and {len(mute) - 1} more have none)" if len(mute) > 1 else ""
        row = f", add a row to {name}" if table else ""
        raise BadInput(f"the auxiliary clip {mute[0]} has no caption{others}",
                       f"Put it beside the clip: {Path(stems[mute[0]]).name}.txt{row}, or take the clip away")
    beside = [Part(clip) for clip in clips if clip in mine or clip not in told]
    whole = [*beside, *(part for part in said.parts if part.clip not in mine)]
    taken = whole if len(whole) <= count else heapq.nsmallest(count, whole, key=_lot)
    found = []
    for part in sorted(taken, key=lambda part: (natural(part.clip), part.window or (), part.caption)):
        note = None if part.caption else folder / (stems[part.clip] + (".txt" if part.clip in mine else ".json"))
        found.append(Captioned(folder / part.clip, part.window, note, part.caption))
    return Selection(tuple(found), len(whole), table, said.rows, said.absent)


def _lot(part: Part) -> bytes:
    return hashlib.sha256(json.dumps([part.clip, part.window, part.caption]).encode()).digest()


def _listing(folder: Path) -> tuple[tuple[str, ...], frozenset[str], list[str]]:
    """Clips, notes and tables by their places in the folder, with / between. Linked folders are followed, once each."""
    clips, notes, tables = [], [], []
    for place, entry in entries(folder, hidden=False):
        end = posixpath.splitext(place)[1].lower()
        if end not in _READ or is_folder(entry):
            continue
        if end in CLIPS:
            clips.append(place)
        elif end in NOTES:
            notes.append(place)
        elif "/" not in place:
            tables.append(place)
    return tuple(sorted(clips)), frozenset(notes), sorted(tables)


def _read_note(path: Path, clip: Path) -> str:
    try:
        text = read_text(path, MOST)
        found = loads(text) if path.suffix == ".json" else {"caption": text}
    except (OSError, ValueError) as damage:
        raise BadInput(f"{path} cannot be read ({damage})", "Save it as UTF-8 text, or take it away") from damage
    caption = found.get("caption") if isinstance(found, dict) else None
    if not isinstance(caption, str) or not caption.strip():
        raise BadInput(f"the auxiliary clip {clip} has no caption: {path.name} holds none",
                       f"Write it into {clip.stem}.txt, or take the clip away")
    return " ".join(caption.split())


class Places:
    """Where a row's clip lies: by its place in the folder, by an id, and the pieces that were cut of an id."""

    def __init__(self, clips: Iterable[str]) -> None:
        self._files: dict[str, str] = {}
        self._ids: dict[str, str] = {}
        self._pieces: dict[str, dict[int, str]] = {}
        for clip in clips:
            whole, _ = posixpath.splitext(clip)
            *_, parent, stem = ["", *whole.split("/")]
            self._files.setdefault(clip, clip)
            self._ids.setdefault(stem, clip)
            self._ids.setdefault(f"{parent}/{stem}", clip)
            if cut := _PIECE.fullmatch(stem):
                self._pieces.setdefault(cut[1], {}).setdefault(int(cut[2]), clip)

    def known(self, name: str) -> bool:
        """Whether a row of this name needs a second look; most of a table's need none."""
        return name in self._ids or name in self._pieces or self.file(name) is not None

    def file(self, place: str) -> str | None:
        return self._files.get(place) or self._files.get(f"videos/{place}")

    def id(self, name: str, folder: str = "") -> str | None:
        return (self._ids.get(f"{folder}/{name}") if folder else None) or self._ids.get(name)

    def pieces(self, name: str) -> dict[int, str]:
        return self._pieces.get(name, {})
