"""What happens from frame to frame, as inline SVG: tracks over a video, presence, and paths beside the paths that they
should follow. Paths are [[x, y] | null per frame] in shares of the frame, x right, y down."""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape

from .gather import mapping

LEFT, RIGHT, WIDE = 42, 8, 320         # of the curves: where the plots begin, what stays free, the whole width
ROW, PLOT, GAP = 12, 64, 16            # heights: a subject's presence, a plot, the space above it
MOST = 1e6                             # shares of the frame: beyond, it is no place
KEYS = 6                               # colours in page.css, .k0 to .k5


def key(names: Sequence[str], name: str) -> str:
    """The colour's class of a name among these."""
    return f"k{names.index(name) % KEYS}" if name in names else "k0"


def points(path: object) -> list[tuple[float, float] | None]:
    """A path as it was read: whatever is not a finite place is None."""
    def place(at: object) -> tuple[float, float] | None:
        two = isinstance(at, list) and len(at) == 2 and all(isinstance(share, (int, float)) for share in at)
        return (float(at[0]), float(at[1])) if two and all(abs(share) < MOST for share in at) else None

    return [place(at) for at in path] if isinstance(path, list) else []


def tracks(judge: str, judgement: Mapping, names: Sequence[str], aspect: float) -> str:
    """An SVG to lie over the video: each path, and a dot that the page moves. aspect: width by height."""
    wide, lines, dots = 100 * aspect, "", ""
    for name, path in mapping(judgement.get("paths")).items():
        at = [None if p is None else (round(p[0] * wide, 2), round(p[1] * 100, 2)) for p in points(path)]
        if first := next((p for p in at if p), None):
            lines += f'<g class="{key(names, name)}">{_line(at, "halo")}{_line(at)}</g>'
            dots += (f'<circle class="dot {key(names, name)}" r="3.5" cx="{first[0]}" cy="{first[1]}" '
                     f'data-path="{escape(json.dumps(at))}"/>')
    return (f'<svg class="tracks" data-judge="{escape(judge)}" viewBox="0 0 {wide:g} 100" aria-hidden="true">'
            f"{lines}{dots}</svg>") if lines else ""


def curves(judgement: Mapping, names: Sequence[str], title: str) -> str:
    """Presence of each subject, then x and y of its path, dashed the path that its role should take."""
    presence = {name: row for name, row in mapping(judgement.get("presence")).items() if isinstance(row, list)}
    own, wanted = ({name: points(path) for name, path in mapping(judgement.get(what)).items()}
                   for what in ("paths", "reference paths"))
    count = max((len(row) for rows in (presence, own, wanted) for row in rows.values()), default=0)
    if not count:
        return '<p class="none">no curves: presence and paths were not measured</p>'
    step = (WIDE - LEFT - RIGHT) / count
    parts, top = [], 0.0
    for name, row in presence.items():
        parts.append(_label(name, top + ROW - 3) + "".join(
            f'<rect class="{key(names, name)} {"in" if seen else "out"}" x="{LEFT + n * step:.2f}" y="{top + 1:g}" '
            f'width="{step - 1:.2f}" height="{ROW - 2}"/>' for n, seen in enumerate(row)))
        top += ROW
    for axis, word in enumerate(("x", "y")) if own or wanted else ():
        top += GAP
        parts.append(f'<rect class="frame" x="{LEFT}" y="{top:g}" width="{WIDE - LEFT - RIGHT}" height="{PLOT}"/>'
                     + _label(word, top + PLOT / 2 + 3) + _label("0", top + 8) + _label("1", top + PLOT))
        for paths, kind in ((wanted, "wanted"), (own, "")):
            for name, path in paths.items():
                at = [None if p is None else (round(LEFT + (n + 0.5) * step, 2), round(top + PLOT * p[axis], 2))
                      for n, p in enumerate(path)]
                parts.append(f'<g class="{key(names, name)}">{_line(at, kind)}</g>')
        top += PLOT
    parts.append(f'<line class="now" x1="{LEFT + step / 2:.2f}" x2="{LEFT + step / 2:.2f}" y1="0" y2="{top:g}" '
                 f'data-from="{LEFT + step / 2:.2f}" data-step="{step:.4f}" data-count="{count}"/>')
    return (f'<svg class="curves" viewBox="0 0 {WIDE} {top + 2:g}" role="img" aria-label="{escape(title)}">'
            f'<title>{escape(title)}</title>{"".join(parts)}</svg>')


def _label(text: str, y: float) -> str:
    return f'<text x="{LEFT - 4}" y="{y:g}">{escape(text if len(text) < 9 else text[:7] + "…")}</text>'


def _line(at: Sequence[tuple[float, float] | None], kind: str = "") -> str:
    """The path in pieces: it breaks where a subject is not in sight, and a single place is a point."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for place in at:
        if place is None:
            pieces.append([])
        else:
            pieces[-1].append(place)
    drawn = (" ".join(f"{x:g},{y:g}" for x, y in (piece if len(piece) > 1 else piece * 2)) for piece in pieces if piece)
    kind = f' class="{kind}"' if kind else ""
    return "".join(f'<polyline{kind} points="{line}"/>' for line in drawn)
