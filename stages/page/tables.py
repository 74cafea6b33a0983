"""The scores as HTML: figures with what stands for them where there is none, and the tables of a judgement."""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import chain

from .curves import key
from .gather import Video, mapping, words

ABSENT = '<span class="none">not measured</span>'
PAPER = ("CLIP-T", "CLIP-I", "DINO-I", "T. Cons.")
NAMED = (("video", "its name"), ("prompt", "as it was asked"), ("seed", "of its noise"), ("options", "typed for it"))
SPANS = ("null", "oracle")                       # what a score stands between
MOST = 1e300                                     # beyond, nothing is a figure, and sums overflow
DEEPEST = 60                                     # per cent of colour in the warmest cell: figures stay readable


def figure(value: object, digits: int = 3) -> str:
    """A number, a yes, a word; ABSENT for what is not there or no number."""
    if value is None or isinstance(value, float) and not math.isfinite(value):
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{round(value, digits) + 0.0:.{digits}f}" if isinstance(value, float) else escape(str(value))   # no -0.000


def number(value: object) -> float | None:
    """The value where it is a finite number."""
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf
    return value if fits and abs(value) < MOST else None


def legend(names: Sequence[str], labels: Mapping[str, str] | None = None, among: Sequence[str] = ()) -> str:
    """Names after their colours, which they have among these (none: among themselves). labels: what to say for some."""
    return " ".join(f'<span><span class="key {key(among or names, name)}"></span>'
                    f"{escape((labels or {}).get(name, name))}</span>" for name in names)


def judgement_table(judgement: Mapping, names: Sequence[str]) -> str:
    """What one judge found: a column per subject, and one for the whole video."""
    def part(*keys: str) -> object:
        found: object = judgement
        for one in keys:
            found = mapping(found).get(one)
        return found

    def row(label: str, about: str, each: Callable[[str], str], whole: str) -> str:
        cells = "".join(f"<td>{each(name)}</td>" for name in names)
        return f'<tr><th scope="row" title="{escape(about)}">{label}</th>{cells}<td>{whole}</td></tr>'

    def between(kind: str) -> Callable[[str], str]:
        return lambda name: _between(mapping(part(kind, "each", name)))

    def extremes(kind: str) -> str:
        return f'{figure(part(kind, "min"))}<small>geometric mean {figure(part(kind, "geomean"), 2)}</small>'

    margins = [value for name in names if (value := number(part("margins", name))) is not None]
    control, differs = part("leak", "control"), part("leak", "differs")
    differs = f", which differs in {', '.join(map(str, differs))}" if isinstance(differs, list) and differs else ""
    why = f"without the motion LoRA: {control}{differs}" if control else part("why")
    rows = [
        row("in sight", "share of the frames", lambda name: _share(part("presence", name)),
            f"together {figure(part('together'))}"),
        row("identity", "0: as its null, 1: as the real photos", between("identity"), f"least {extremes('identity')}"),
        row("margin", "likeness to its own photos beyond that to any other subject's",
            lambda name: figure(part("margins", name)), f"least {figure(min(margins, default=None))}"),
        row("bleed", "share of the frames in which it looks more like another subject",
            lambda name: figure(part("bleed", name)), ""),
        row("motion", "0: as its null, 1: as the clip", between("motion"), f"least {extremes('motion')}"),
        row("follows", "the role whose path it takes", lambda name: _role(part("binding"), name),
            f"beyond chance {figure(part('binding', 'chance corrected'))}"),
        row("leak", "looks of the clip's actors, with the motion LoRA and without",
            lambda name: _leak(mapping(part("leak", "each", name))),
            f"most {figure(part('leak', 'max'))}"),
        row("magnitude", "rms distance from the middle of its path, in frame widths",
            lambda name: figure(part("magnitude", name)), "")]
    heads = "".join(f'<th scope="col">{legend([name], among=names)}</th>' for name in names)
    note = f"<p><small>leak: {escape(str(why))}</small></p>" if why else ""
    return (f'<div class="scroll"><table><thead><tr><td></td>{heads}<th scope="col">the video</th></tr></thead>'
            f'<tbody>{"".join(rows)}</tbody></table></div>{note}')


def _between(entry: Mapping) -> str:
    ends = " to ".join(figure(entry.get(end), 2) for end in SPANS)
    score = figure(entry.get("score"), 2)
    return figure(entry.get("normalised")) + (f"<small>{score} in {ends}</small>" if entry else "")


def _share(row: object) -> str:
    return figure(sum(map(bool, row)) / len(row)) if isinstance(row, list) and row else ABSENT


def _role(binding: object, name: str) -> str:
    right = mapping(mapping(binding).get("right")).get(name)
    mark = {True: " ✓ right", False: " ✗ wrong"}.get(right, "") if isinstance(right, bool) else ""
    return figure(mapping(mapping(binding).get("assigned")).get(name)) + mark


def _leak(entry: Mapping) -> str:
    return figure(entry.get("leak")) + (f"<small>{figure(entry.get('with'), 2)} with, "
                                        f"{figure(entry.get('without'), 2)} without</small>" if entry else "")


def matrix(caption: str, table: object, rows: Sequence[str], columns: Sequence[str], own: Mapping[str, str]) -> str:
    """A coloured table; own: {row: the column that should be its warmest}, framed. ABSENT where it does not fit."""
    found = table if isinstance(table, list) and all(isinstance(line, list) for line in table) else []
    if not found or len(found) != len(rows) or any(len(line) != len(columns) for line in found):
        return f"<p>{escape(caption)}: {ABSENT}</p>"
    there = [value for line in found for one in line if (value := number(one)) is not None]
    low, span = min(there, default=0), max(there, default=0) - min(there, default=0)
    heads = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = ""
    for name, line in zip(rows, found):
        warm = [0 if number(value) is None else round(DEEPEST * (value - low) / (span or 1)) for value in line]
        kinds = ("heat own" if own.get(name) == column else "heat" for column in columns)
        cells = (f'<td class="{kind}" style="--p:{share}%">{figure(value)}</td>'
                 for kind, share, value in zip(kinds, warm, line))
        body += f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>'
    return (f'<div class="scroll"><table><caption>{escape(caption)}</caption><thead><tr><td></td>{heads}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>")


def matrices(video: Video, judgement: Mapping, names: Sequence[str]) -> str:
    confusion, binding = mapping(judgement.get("confusion")), mapping(judgement.get("binding"))
    rows, columns = (words(confusion.get(side)) for side in ("rows", "columns"))
    roles = {str(name): str(actor) for name, actor in mapping((video.score or {}).get("roles")).items()}
    actors = words(binding.get("roles")) or [roles[name] for name in names if name in roles]
    return (matrix("each track against the photos of all subjects", confusion.get("matrix"), rows, columns,
                   {name: name for name in rows})
            + matrix("each track against the path of each role", binding.get("matrix"), names, actors, roles))


# -- tables over all videos -------------------------------------------------------------------------------------------
Column = tuple[str, str, Callable[[Video], object]]                # head, what it means, the figure


def _first(*keys: str) -> Callable[[Video], object]:
    """A figure of the first judge."""
    def look(video: Video) -> object:
        found: object = next(iter(video.judged.values()), {})
        for one in keys:
            found = mapping(found).get(one)
        return found
    return look


def _least_margin(video: Video) -> float | None:
    found = [value for one in mapping(_first("margins")(video)).values() if (value := number(one)) is not None]
    return min(found, default=None)


def _right(video: Video) -> str | None:
    right = mapping(_first("binding", "right")(video))
    return f"{sum(value is True for value in right.values())} of {len(right)}" if right else None


def _cost(name: str, per: float) -> Callable[[Video], object]:
    def look(video: Video) -> object:
        value = number(mapping((video.score or {}).get("cost")).get(name))
        return value if value is None or per == 1 else value / per
    return look


CHANGE: Column = ("change", "of the pixels from frame to frame, 0 to 1: T. Cons. calls a frozen video consistent",
                  lambda video: mapping((video.score or {}).get("magnitude")).get("pixels"))
COSTS: tuple[Column, ...] = (("seconds", "to make it", _cost("seconds", 1)),
                             ("forwards", "rows through the denoiser", _cost("forwards", 1)),
                             ("GB", "peak memory", _cost("peak memory", 1e9)))


def contract_columns(videos: Sequence[Video]) -> list[Column]:
    """Success by every judge, then what it was decided by."""
    judges = dict.fromkeys(chain.from_iterable(video.judged for video in videos)) or {"": None}
    return [*((f"success{f' ({who})' if who else ''}", "every condition is met", lambda video, who=who: {
                True: "yes", False: "no"}.get(video.success(who or None))) for who in judges),
            ("identity", "least of its subjects, 0 null to 1 oracle", _first("identity", "min")),
            ("margin", "least of its subjects", _least_margin),
            ("motion", "least of its subjects, 0 null to 1 oracle", _first("motion", "min")),
            ("roles", "subjects that follow their role", _right),
            ("leak", "most of its subjects", _first("leak", "max")),
            ("together", "share of the frames that show all subjects", _first("together")), *COSTS]


def paper_columns(videos: Sequence[Video]) -> list[Column]:
    """The paper's scores, and whatever else was measured by its protocol."""
    def found(video: Video) -> Mapping:
        return mapping((video.score or {}).get("paper protocol"))

    names = dict.fromkeys([*PAPER, *chain.from_iterable(map(found, videos))])
    return [*((name, "as in the paper", lambda video, name=name: found(video).get(name)) for name in names), CHANGE]


def overview(caption: str, videos: Sequence[Video], places: Mapping[str, str], columns: Sequence[Column], *,
             mean: bool = False) -> str:
    """A table with a row per video, sortable by every column. mean: a last row, over the videos that have the score."""
    heads = "".join(f'<th scope="col" title="{escape(about)}"><button type="button">{escape(head)}</button></th>'
                    for head, about in (*NAMED, *(column[:2] for column in columns)))
    body = "".join(_overview_row(video, places[video.name], columns) for video in videos)
    foot = ""
    if mean:
        found = [[value for video in videos if (value := number(look(video))) is not None] for _, _, look in columns]
        means = (figure(math.fsum(own) / len(own) if own else None) for own in found)
        cells = "".join(f"<td>{mean}<small>of {len(own)}</small></td>" for mean, own in zip(means, found))
        foot = f'<tfoot><tr><th scope="row" colspan="{len(NAMED)}">mean of those that have it</th>{cells}</tr></tfoot>'
    return (f'<div class="scroll"><table class="overview"><caption>{escape(caption)}</caption><thead><tr>{heads}</tr>'
            f"</thead><tbody>{body}</tbody>{foot}</table></div>")


def _overview_row(video: Video, place: str, columns: Sequence[Column]) -> str:
    def cell(value: object, kind: str = "") -> str:
        data = "" if value is None or isinstance(value, float) and number(value) is None else str(value)
        shown = figure(value) if data else "" if kind else '<abbr title="not measured">–</abbr>'
        kind = {"yes": "ok", "no": "bad"}.get(data, kind)
        return f'<td{f" class={kind}" if kind else ""} data-value="{escape(data)}">{shown}</td>'

    cells = "".join(cell(look(video)) for _, _, look in columns)
    return (f'<tr><th scope="row" data-value="{escape(video.name)}"><a href="#{place}">{escape(video.name)}</a></th>'
            f'{cell(video.prompt, "word")}{cell(video.seed)}{cell(options_of(video), "word")}{cells}</tr>')


def options_of(video: Video) -> str:
    return ", ".join(f"{name} {value}" for name, value in video.changed.items())
