"""What a person points at: --box and --point, as typed, and the frames that they mean. Imports no torch.

    --box horse=40,30,200,180        left, top, right, bottom, in the pixels of frames/ (the overlay sheet has rulers)
    --point person=120,90            inside the person;   person!=150,200   not the person
    --box "tall horse@12=..."        in frame 12, in place of --frame

With one actor its name may be left out: --box 40,30,200,180.
"""
from __future__ import annotations

import re
from collections.abc import Sequence

from .core.errors import BadInput, UsageError
from .core.settings import did_you_mean
from .segmenters import Hint

_NUMBER = r"-?[\d.]+"
_TYPED = re.compile(r"(?:(?P<actor>[^=@!]*?)(?:@(?P<frame>\d+))?(?P<sign>!?=))?"
                    rf"(?P<numbers>{_NUMBER}(?:\s*,\s*{_NUMBER})*)")


def hints_of(boxes: Sequence[str], points: Sequence[str], actors: Sequence[str], *, frame: int,
             sizes: Sequence[tuple[int, int]]) -> list[Hint]:
    """boxes, points: as typed. actors: the phrases looked for. frame: the one meant where none is named. sizes: (H, W)
    of each. One Hint for each actor and frame. Raises UsageError for what cannot be read or names no
    actor, BadInput for what lies outside the clip."""
    found: dict[tuple[str, int], Hint] = {}
    for text, wanted in (*((box, 4) for box in boxes), *((point, 2) for point in points)):
        actor, at, inside, numbers = _parse(text, wanted, actors, frame)
        if at >= len(sizes):
            raise BadInput(f"'{text}' means frame {at}, and there are {len(sizes)}",
                           f"name one of 0 to {len(sizes) - 1}")
        _within(text, numbers, sizes[at])
        old = found.get((actor, at), Hint(actor, at))
        if wanted == 4:
            if not inside or old.box:
                raise UsageError(f"'{text}' is a second box for '{actor}' in frame {at}" if inside else
                                 f"'{text}': a box says where something is, not where it is not",
                                 "say more with --point")
            left, top, right, bottom = numbers
            found[actor, at] = Hint(actor, at, (left, top, right, bottom), old.points)
        else:
            found[actor, at] = Hint(actor, at, old.box, (*old.points, (*numbers, inside)))
    for (actor, at), hint in found.items():
        if not hint.box and not any(point[2] for point in hint.points):
            raise UsageError(f"the points for '{actor}' in frame {at} only say where it is not",
                             f"add one inside it: --point {actor}=X,Y")
    return list(found.values())


def _parse(text: str, wanted: int, actors: Sequence[str], frame: int) -> tuple[str, int, bool, list[float]]:
    match = _TYPED.fullmatch(text.strip())
    try:
        numbers = [float(part) for part in match["numbers"].split(",")] if match else []
    except ValueError:
        numbers = []
    if len(numbers) != wanted:
        shape = "ACTOR=LEFT,TOP,RIGHT,BOTTOM" if wanted == 4 else "ACTOR=X,Y, or ACTOR!=X,Y for outside"
        raise UsageError(f"'{text}' cannot be read", f"write it like {shape}")
    actor = (match["actor"] or "").strip()
    if not actor and len(actors) != 1:
        raise UsageError(f"'{text}' does not say which of {', '.join(actors) or 'no actors'} it means",
                         "write its name before it: --box person=...")
    actor = actor or actors[0]
    if actor not in actors:
        raise UsageError(f"'{text}' names '{actor}', which is not looked for", did_you_mean(actor, actors))
    return actor, int(match["frame"] or frame), match["sign"] != "!=", numbers


def _within(text: str, numbers: Sequence[float], size: tuple[int, int]) -> None:
    """Raise BadInput for what lies outside a picture of `size` (H, W), or is no box."""
    height, width = size
    across, down = numbers[0::2], numbers[1::2]
    if not all(0 <= x <= width for x in across) or not all(0 <= y <= height for y in down):
        raise BadInput(f"'{text}' lies outside the frames, which are {width} x {height}",
                       "read the place off the rulers of overlay.png")
    if len(numbers) == 4 and not (across[0] < across[1] and down[0] < down[1]):
        raise BadInput(f"'{text}' is no box", "write left, top, right, bottom, in that order")
