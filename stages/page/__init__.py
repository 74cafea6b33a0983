"""One self-contained page over the samples of a project: inputs, videos in step, curves and scores (eval --html).

Everything is in the file: pictures as data URIs, style and script inline, and a policy that lets nothing else run or
load, so it opens offline and can be mailed. Videos up to pictures.EXACT pixels are lossless, drawn frame by frame from
one clock. About 40 kB for a video of the sprites base; above EXACT, reduced JPEGs of some 10 kB per frame: name the
samples for a smaller page. The same project gives the same bytes. **Ours.**
"""
from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

from ..core import store
from ..core.errors import UsageError
from ..core.workspace import Workspace
from .curves import curves, tracks
from .gather import (
    Clip,
    Subject,
    Video,
    mapping,
    names_of,
    rate,
    read_motion,
    read_rates,
    read_subject,
    read_video,
    words,
)
from .pictures import Sheet
from .tables import (
    CHANGE,
    COSTS,
    contract_columns,
    figure,
    judgement_table,
    legend,
    matrices,
    options_of,
    overview,
    paper_columns,
)

__all__ = ["write_page"]
FILE = "index.html"                     # in scores/
LEGIBLE = 256                           # pixels: the width up to which a small video is enlarged by whole numbers


def write_page(project: Workspace, samples: Sequence[str] | None = None, path: Path | str | None = None) -> Path:
    """The page over these samples (None: every one that was made, scored or ordered) -> its path (None:
    scores/index.html). Nothing is scored here: what was not measured, or failed, is shown as that. Written beside the
    target first, then renamed. Raises UsageError for a sample that nobody knows, MissingPrerequisite without any."""
    path = Path(path) if path else project.root / "scores" / FILE
    if path.is_dir():
        raise UsageError(f"{path} is a folder", f"name a file in it: --html {path / FILE}")
    videos = [read_video(project, name) for name in names_of(project, samples)]
    text = render(project.root.resolve().name, videos, [read_subject(project, name) for name in project.subjects()],
                  [read_motion(project, name) for name in project.motions()], rate(project),
                  {} if samples else read_rates(project))
    store.write(path, text)
    return path


def render(title: str, videos: Sequence[Video], subjects: Sequence[Subject], clips: Sequence[Clip], fps: float,
           rates: Mapping[str, Mapping]) -> str:
    """The page's text, the same for the same arguments."""
    style, script = (files(__package__).joinpath(name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    places = {video.name: f"v{n}" for n, video in enumerate(videos)}
    shown = [*(video.sheet for video in videos), *(clip.plain for clip in clips)]
    count = max((sheet.frames for sheet in shown if sheet), default=1)
    judges = dict.fromkeys(judge for video in videos for judge in video.judged)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}: VideoMage scores</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; \
script-src 'sha256-{allowed}'; base-uri 'none'; form-action 'none'">
<style>
{style}</style></head>
<body><a class="skip" href="#videos">to the videos</a>
<header><h1>{escape(title)}: scores of {_plural(len(videos), "video")}</h1>
{_headline(videos, list(judges), rates)}</header>
<main>{_summary(videos, places)}
<section aria-labelledby="inputs"><h2 id="inputs">Inputs</h2>{"".join(map(_subject, subjects))}
{"".join(_clip(clip, n) for n, clip in enumerate(clips))}</section>
<section aria-labelledby="videos"><h2 id="videos">Videos</h2>
<p class="about">Space plays and stops all of them, the arrows go from frame to frame, t chooses the tracks, m the masks
of the clips. Tracks and solid curves are the subjects' own, dashed ones the paths of their roles; x goes to the right,
y down, both in shares of the frame.</p>{_groups(videos, clips, places)}</section></main>
{_transport(count, fps, list(judges))}
<script>{script}</script></body></html>
"""


def _plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


# -- over all ---------------------------------------------------------------------------------------------------------
def _headline(videos: Sequence[Video], judges: Sequence[str], rates: Mapping[str, Mapping]) -> str:
    """Of all that was attempted, what succeeded: nothing drops out of the count."""
    lines = []
    for judge in judges or ("",):
        said = [video.success(judge or None) for video in videos]
        by = f" by the {escape(judge)}'s tracks" if judge else ""
        among = "; scores/summary.json: {rate:.0%} ({low:.0%} to {high:.0%}) of {of}".format(**rates[judge]) \
            if judge in rates else ""
        lines.append(f'<p class="headline">{said.count(True)} of {len(said)} succeed{by}</p><p class="about">'
                     f"{said.count(False)} do not, {said.count(None)} not decided{among}</p>")
    gone = sum(video.sheet is None for video in videos)
    bare = sum(video.score is None for video in videos)
    facts = [f"{gone} without a video" if gone else "", f"{bare} without a score" if bare else ""]
    return "".join(lines) + (f'<p class="about">{", ".join(filter(None, facts))}</p>' if gone or bare else "")


def _summary(videos: Sequence[Video], places: Mapping[str, str]) -> str:
    return ('<section aria-labelledby="summary"><h2 id="summary">Summary</h2>'
            + overview("Success, and what it is decided by. A head sorts.", videos, places, contract_columns(videos))
            + "<h3>Paper protocol</h3>"
            + overview("As the paper scores: to be compared only between videos that the same CLIP and DINO scored.",
                       videos, places, paper_columns(videos), mean=True) + "</section>")


def _transport(count: int, fps: float, judges: Sequence[str]) -> str:
    choices = "".join(f'<option value="{escape(judge)}">{escape(judge)}</option>' for judge in judges)
    speeds = "".join(f'<option value="{value}"{" selected" if value == 1 else ""}>{value}×</option>'
                     for value in (0.25, 0.5, 1, 2))
    return (f'<nav class="transport" aria-label="playback of all videos"><button type="button" id="play">Play</button>'
            f'<input type="range" id="at" min="0" max="{count - 1}" value="0" data-fps="{fps:g}" aria-label="frame">'
            f'<output id="frame" for="at">frame 1 of {count}</output>'
            f'<label>speed <select id="speed">{speeds}</select></label>'
            f'<label>tracks <select id="judge">{choices}<option value="">none</option></select></label>'
            f'<label><input type="checkbox" id="masks" checked> masks</label></nav>')


# -- inputs -----------------------------------------------------------------------------------------------------------
def _subject(subject: Subject) -> str:
    word = f", a {escape(subject.class_word)}" if subject.class_word else ""
    head = f"<h3>Subject &lt;{escape(subject.name)}&gt;{word}</h3>"
    if subject.problem:
        return f'{head}<p class="none">{escape(subject.problem)}</p>'
    unmasked = sum(not masked for _, masked in subject.photos)
    note = "no photo was segmented" if unmasked == len(subject.photos) else \
        f"{unmasked} of {len(subject.photos)} photos were not segmented" if unmasked else "outlined: its masks"
    pictures = "".join(
        f'<img src="{photo.uri}" width="{photo.width}" height="{photo.height}" alt="photo {n + 1} of '
        f'{escape(subject.name)}{", its mask outlined" if masked else ""}">'
        for n, (photo, masked) in enumerate(subject.photos))
    return f'{head}<p class="about">{note}</p><div class="photos">{pictures}</div>'


def _clip(clip: Clip, n: int) -> str:
    head = f"<h3>Motion {escape(clip.name)}</h3>" + (f"<p>{escape(clip.prompt)}</p>" if clip.prompt else "")
    problem = f'<p class="none">{escape(clip.problem)}</p>' if clip.problem else ""
    if not clip.plain:
        return head + problem
    inks = legend(clip.actors) if clip.actors else "no actor was segmented"
    what = f"the clip of {clip.name}"
    player = _player(f"c{n}", clip.plain, what, masked=f"m{n}" if clip.masked else "")
    player += _image(f"c{n}", clip.plain, what)
    if clip.masked:
        player += _image(f"m{n}", clip.masked, f"{what}, its actors outlined")
    return (f'{head}<div class="row inks"><figure>{player}<figcaption>{inks}</figcaption></figure></div>'
            f"{problem}")


def _player(place: str, sheet: Sheet, what: str, over: str = "", masked: str = "") -> str:
    """A canvas that draws the current frame of the sheet at this place, and what lies over it. masked: the place of
    the sheet to draw while masks are wanted."""
    times = max(1, LEGIBLE // sheet.width)
    other = f' data-masked="{masked}"' if masked else ""
    return (f'<div class="stage"><canvas data-sheet="{place}"{other} width="{sheet.width * times}" '
            f'height="{sheet.height * times}" role="img" aria-label="{escape(what)}, {sheet.frames} frames"></canvas>'
            f"{over}</div>")


def _image(place: str, sheet: Sheet, what: str) -> str:
    """The sheet itself: what is drawn from, and what is seen on paper and without a script."""
    alt = escape(f"{what}: its {sheet.frames} frames, row by row")
    return (f'<img class="sheet" id="{place}" src="{sheet.uri}" alt="{alt}" data-frames="{sheet.frames}" '
            f'data-columns="{sheet.columns}" data-width="{sheet.width}" data-height="{sheet.height}" '
            f'data-exact="{str(sheet.exact).lower()}">')


# -- videos -----------------------------------------------------------------------------------------------------------
def _groups(videos: Sequence[Video], clips: Sequence[Clip], places: Mapping[str, str]) -> str:
    """What was asked for in the same words stands together, one seed beside its equals."""
    groups: dict[tuple[str, str], dict[object, list[Video]]] = {}
    for video in videos:
        groups.setdefault((video.prompt, video.motion), {}).setdefault(video.seed, []).append(video)
    out = []
    for (prompt, motion), seeds in groups.items():
        n, clip = next(((n, clip) for n, clip in enumerate(clips) if clip.name == motion), (0, None))
        beside = f' <small>motion {escape(motion)}</small>' if motion else ""
        out.append(f"<h3>{escape(prompt)}{beside}</h3>")
        rows = [own for _, own in sorted(seeds.items(), key=lambda item: (item[0] is None, item[0] or 0))]
        for own in rows if any(len(own) > 1 for own in rows) else [sum(rows, [])]:
            shown = ""
            if clip and clip.plain:
                player = _player(f"c{n}", clip.plain, f"the clip of {clip.name}", masked=f"m{n}" if clip.masked else "")
                shown = f'<figure class="card reference">{player}<figcaption>the clip</figcaption></figure>'
            out.append(f'<div class="row">{shown}{"".join(_video(video, places[video.name]) for video in own)}</div>')
    return "".join(out)


def _video(video: Video, place: str) -> str:
    """The section of one sample, whatever became of it."""
    success = video.success()
    kind = {True: "ok", False: "bad"}.get(success, "")
    names = words((video.score or {}).get("subjects")) or words(video.asked.get("subjects"))
    roles = mapping((video.score or {}).get("roles"))
    tags = " · ".join(filter(None, [f"seed {video.seed}" if video.seed is not None else "", options_of(video)]))
    labels = {name: f"{name} as {roles[name]}" for name in names if name in roles}
    out = [f'<section class="card sample {kind}" id="{place}" aria-labelledby="{place}h"><h4 id="{place}h">'
           f'{escape(video.name)}</h4><p class="tags">{escape(tags)}</p>']
    if video.sheet:
        over = "".join(tracks(judge, found, names, video.sheet.width / video.sheet.height)
                       for judge, found in video.judged.items())
        what = f"the video {video.name}"
        out.append(_player(f"{place}s", video.sheet, what, over) + _image(f"{place}s", video.sheet, what))
        if not video.sheet.exact:
            out.append('<p class="none">reduced for this page; frames.png is exact</p>')
    else:
        out.append(f'<p class="none missing">{escape(video.missing)}</p>')
    out.append(_outcome(video))
    out.append(f'<p class="legend">{legend(names, labels)}</p>' if names else "")
    for n, (judge, found) in enumerate(video.judged.items()):
        inner = (curves(found, names, f"frame by frame, {video.name}, by the {judge}") + judgement_table(found, names)
                 + f"<details><summary>likeness and roles as tables</summary>{matrices(video, found, names)}</details>")
        out.append(f"<h5>by the {escape(judge)}'s tracks</h5>{inner}" if n == 0 else
                   f"<details><summary>by the {escape(judge)}'s tracks: {_said(video.success(judge))}</summary>{inner}"
                   "</details>")
    paper = mapping((video.score or {}).get("paper protocol"))
    out.append(_figures("paper protocol", {**paper, CHANGE[0]: CHANGE[2](video)} if paper else {}))
    out.append(_figures("cost", {name: look(video) for name, _, look in COSTS}))
    return "".join(out) + "</section>"


def _said(success: bool | None) -> str:
    return {True: "success", False: "no success"}.get(success, "not decided")


def _outcome(video: Video) -> str:
    judgement = next(iter(video.judged.values()), video.score or {})
    reasons = judgement.get("reasons")
    why = [str(reason) for reason in reasons] if isinstance(reasons, list) else []
    if video.score is None:
        why.append(video.unscored)
    mark = {True: "✓ ", False: "✗ "}.get(video.success(), "")
    return f'<p class="outcome">{mark}{_said(video.success())}{escape(": " + "; ".join(why) if why else "")}</p>'


def _figures(title: str, found: Mapping) -> str:
    """A line of figures."""
    inner = ", ".join(f"{escape(str(name))} {figure(value)}" for name, value in found.items())
    return f'<p class="about"><b>{title}</b>: {inner or figure(None)}</p>'
