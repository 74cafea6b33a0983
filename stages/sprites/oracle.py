"""What a clip of the sprites world shows, read from its pixels alone: no network, nothing learned.

observe() names the objects of the training world (colour by nearest ink, shape and texture by the best agreement with
rendered looks over the frames in which the object is least hidden), the background and the motion. find() looks for
given looks, held-out subjects among them. Places are in frame widths (x right, y down), as in world.py.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .looks import ALL_COLOURS, ALL_TEXTURES, BACKGROUNDS, WHITE, Look, Vocabulary
from .match import Canvas, Match, components, grow, opened
from .movement import motion_alone, motion_together

SMALLEST = 0.008        # share of the frame that a colour must fill, thin edges left out, to be an object
VISIBLE = 0.25          # share of its own area that an object must show to be present in a frame
AGREES = 0.75           # agreement above which a frame shows a look (find): see the table in tests/test_oracle.py
JUDGED = 3              # frames on which shape and texture are judged
STRAY_TONE = 60.0       # a background farther than this from all of ours (8-bit RGB distance) has no name


@dataclass
class Seen:
    """One object through the clip. presence: bool (F,). path: (F, 2) centres x, y, NaN where absent. share: (F,) of the
    frame that shows it. score: (F,) agreement with the look. masks: bool (F, H, W). radius: frame widths."""

    look: Look
    presence: np.ndarray
    path: np.ndarray
    share: np.ndarray
    score: np.ndarray
    masks: np.ndarray
    radius: float

    @property
    def colour(self) -> str:
        return self.look.colour

    @property
    def shape(self) -> str:
        return self.look.shape

    @property
    def texture(self) -> str:
        return self.look.texture


@dataclass
class Scene:
    """objects: by colour. words: the motion of each alone. motion: what the clip shows as one of world.MOTIONS or
    ROLE_MOTIONS, "mixed" or "none". doer: index of the object that plays the first role, or None. strays: (F,) parts
    of an object's colour that lie apart from it."""

    objects: list[Seen]
    background: str
    motion: str
    words: list[str]
    doer: int | None
    strays: np.ndarray


# -- the training world ---------------------------------------------------------------------------------------------
def observe(frames: np.ndarray, vocabulary: Vocabulary) -> Scene:
    """frames: uint8 (F, S, S, 3), S 32 or 64. Raises ValueError for other shapes."""
    pixels = _checked(frames)
    inks = {name: ALL_COLOURS[name] for name in vocabulary.colours}
    place, tone = background_of(pixels, [*inks.values(), WHITE])
    labels = _nearest(pixels, [tone, WHITE, *inks.values()])
    there = [name for k, name in enumerate(inks, 2) if _is_object(labels == k)]
    labels = _nearest(pixels, [tone, WHITE, *(inks[name] for name in there)])
    parts = _with_white(labels)
    objects, strays = [], np.zeros(len(frames), int)
    for k, name in enumerate(there):
        others = np.any([part for n, part in enumerate(parts) if n != k], 0) if len(parts) > 1 else parts[k] & False
        seen, apart = _examine(pixels, tone, parts[k], others, name, vocabulary)
        objects.append(seen)
        strays += apart
    words = [motion_alone(seen.path) for seen in objects]
    motion, doer = motion_together(objects, words)
    return Scene(objects, place, motion, words, doer, strays)


def background_of(pixels: np.ndarray, inks: list) -> tuple[str, np.ndarray]:
    """-> (name, tone): the kind of most background pixels, "none" if it is like none of ours, and their median."""
    names = list(BACKGROUNDS)
    labels = _nearest(pixels, [*BACKGROUNDS.values(), *inks])
    kind = int(np.bincount(labels.ravel(), minlength=len(names))[:len(names)].argmax())
    chosen = pixels[labels == kind]
    tone = np.median(chosen, 0) if len(chosen) else np.float32(BACKGROUNDS[names[kind]])
    nearest = np.linalg.norm(pixels - tone, axis=-1) < STRAY_TONE
    known = np.linalg.norm(tone - np.float32(BACKGROUNDS[names[kind]])) < STRAY_TONE and nearest.mean() > 0.2
    return (names[kind] if known else "none"), tone


def _examine(pixels, tone, part, others, colour: str, vocabulary: Vocabulary) -> tuple[Seen, np.ndarray]:
    """One colour's object: which look it has, where it is in each frame, and how many strays each frame holds."""
    frames, side = pixels.shape[:2]
    body, strays = _body(part)
    areas = body.sum((1, 2))
    radius = np.sqrt(np.sort(areas)[-max(1, frames // 4):].mean() / np.pi)
    hidden = (grow(body) & others).sum((1, 2))
    canvases = [Canvas(pixel, tone, ignored) for pixel, ignored in zip(pixels, grow(others) & ~body)]
    judged = np.argsort(hidden - areas, kind="stable")[:JUDGED]
    look, radius = _identify([canvases[f] for f in judged], body[judged], radius, colour, vocabulary)
    presence = areas >= max(VISIBLE * np.pi * radius**2, SMALLEST * side**2 / 2)
    path, score = np.full((frames, 2), np.nan), np.zeros(frames)
    for f in np.flatnonzero(presence):
        best = _near(canvases[f], look, [round(4 * radius)], body[f], hidden=areas[f] < 0.85 * np.pi * radius**2)
        path[f], score[f] = (best.x / side, best.y / side), best.score
    return Seen(look, presence, path, areas / side**2, score, body, radius / side), strays


def _identify(canvases: list[Canvas], bodies: np.ndarray, radius: float, colour: str, vocabulary: Vocabulary):
    """-> (look, radius in pixels): the shape and texture that agree best, by a coarse round over all of them and a fine
    one over the best three."""
    looks = [Look(shape, colour, texture) for shape in vocabulary.shapes for texture in vocabulary.textures]
    coarse = [round(4 * radius), round(4.5 * radius)]
    rough = {look: sum(_near(canvas, look, coarse, body, halves=(0,)).score for canvas, body in zip(canvases, bodies))
             for look in looks}
    sizes = [round(4 * radius * k) for k in (0.9, 1.0, 1.1, 1.22)]
    matches = {look: [_near(canvas, look, sizes, body) for canvas, body in zip(canvases, bodies)]
               for look in sorted(looks, key=rough.get)[-3:]}
    best = max(matches, key=lambda look: sum(match.score for match in matches[look]))
    return best, float(np.median([match.radius for match in matches[best]]))


def _near(canvas: Canvas, look: Look, sizes: list[int], body: np.ndarray, hidden: bool = False,
          halves=(0, 1)) -> Match:
    """The best match about the middle of what is visible (of an object partly hidden, within its whole box)."""
    ys, xs = np.nonzero(body)
    side = len(body)
    if len(ys) == 0:
        return canvas.search(look, sizes[:1], range(0, side), range(0, side), halves=(0,))
    reach = 1 if not hidden else max(2, round(0.2 * max(sizes)))
    y, x = int(ys.mean() + 0.5), int(xs.mean() + 0.5)
    rows = range(max(0, y - reach), min(side, y + reach + 1))
    columns = range(max(0, x - reach), min(side, x + reach + 1))
    return canvas.search(look, sizes, rows, columns, halves)


def _body(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The main body of a colour in each frame, and the number of strays: other bodies of at least a third of its size.
    Pieces less than about 0.8 radii apart are one body: between them lies a white stripe that snow hides."""
    radius = np.sqrt(part.sum((1, 2)).max() / np.pi)
    labels = components(grow(part, max(1, round(0.4 * radius)))) * part
    body, strays = np.zeros_like(part), np.zeros(len(part), int)
    for f, label in enumerate(labels):
        names, sizes = np.unique(label[label > 0], return_counts=True)
        if len(names):
            body[f] = label == names[sizes.argmax()]
            strays[f] = (sizes >= sizes.max() / 3).sum() - 1
    return body, strays


def _with_white(labels: np.ndarray) -> list[np.ndarray]:
    """Masks (F, S, S) of labels 2, 3, ...: each with the white (label 1) that is nearest to it."""
    inks = range(2, max(int(labels.max()), 1) + 1)
    parts = [opened(labels == k) | ((labels == k) & grow(opened(labels == k))) for k in inks]
    free, near = labels == 1, parts
    for _ in range(round(0.12 * labels.shape[1])):      # pixel by pixel, across the dull seam of a blurred edge too
        near = [grow(mask) for mask in near]
        parts = [part | (mask & free) for part, mask in zip(parts, near)]
        free = free & ~np.any(near, 0) if near else free
    return parts


def _is_object(mask: np.ndarray) -> bool:
    """A colour is an object if it fills enough of enough frames, edges of other things left out."""
    filled = opened(mask).mean((1, 2)) >= SMALLEST
    return int(filled.sum()) >= max(1, len(mask) // 4)


def _nearest(pixels: np.ndarray, colours) -> np.ndarray:
    """Index of the nearest colour (8-bit RGB distance) of each pixel."""
    return np.stack([np.square(pixels - np.float32(c)).sum(-1) for c in colours]).argmin(0)


def _checked(frames: np.ndarray) -> np.ndarray:
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1] != frames.shape[2] or frames.shape[3] != 3:
        raise ValueError(f"the oracle reads uint8 (F, S, S, 3), not {frames.dtype} {frames.shape}")
    return frames.astype(np.float32)


# -- named looks ----------------------------------------------------------------------------------------------------
def find(frames: np.ndarray, looks: list[Look], *, smallest: float = 0.11, largest: float = 0.36,
         agrees: float = AGREES) -> list[Seen]:
    """Where each look is in each frame of uint8 (F, S, S, 3) -> one Seen a look. A frame shows a look if the best place
    in it agrees by at least `agrees`, the inks found there are nearest to the look's own of all named colours, and no
    other arrangement of the same inks agrees better. A look that is not found in a frame which shows another is looked
    for again beside and behind that. smallest, largest: radius, frame widths."""
    pixels = _checked(frames)
    inks = [ALL_COLOURS[name] for look in looks for name in (look.colour, look.second)]
    _, tone = background_of(pixels, inks)
    found = [_find_one(pixels, tone, look, inks, smallest, largest, agrees) for look in looks]
    for one in found:
        for f in np.flatnonzero(~one.presence) if one.presence.any() else ():
            hidden = np.any([other.masks[f] for other in found if other is not one] or [one.masks[f]], 0)
            if hidden.any():
                _find_behind(pixels[f], tone, one, f, hidden, inks, agrees)
    return found


def _find_one(pixels, tone, look: Look, inks, smallest, largest, agrees) -> Seen:
    count, side = pixels.shape[:2]
    path, score, radii = np.full((count, 2), np.nan), np.zeros(count), np.zeros(count)
    presence, masks = np.zeros(count, bool), np.zeros(pixels.shape[:3], bool)
    own = [ALL_COLOURS[look.colour], *([ALL_COLOURS[look.second]] if look.texture != "plain" else [])]
    for f, frame in enumerate(pixels):
        canvas, best = _anywhere(frame, tone, look, smallest, largest)
        score[f], radii[f] = best.score, best.radius / side
        presence[f] = best.score >= agrees and _is_itself(canvas, look, best)
        if presence[f]:
            path[f] = best.x / side, best.y / side
            masks[f] = _inside(look, best, side) & (_nearest(frame, [*own, tone, *inks]) < len(own))
    radius = float(np.median(radii[presence])) if presence.any() else 0.0
    return Seen(look, presence, path, masks.mean((1, 2)), score, masks, radius)


def _find_behind(frame, tone, one: Seen, f: int, hidden: np.ndarray, inks, agrees: float) -> None:
    """The look in one frame, at its size in the others, where `hidden` pixels (S, S), and those that touch them, count
    nowhere: half of it has to lie elsewhere. Entered into what was seen."""
    side, look = len(frame), one.look
    canvas, quarters = Canvas(frame, tone, grow(hidden)), 4 * one.radius * side
    rough = canvas.search(look, [round(quarters * k) for k in (0.92, 1, 1.08)], range(side), range(side), halves=(0,))
    best = _about(canvas, look, [round(4 * rough.radius)], rough.y, rough.x, 1)
    inside = _inside(look, best, side)
    if best.score < agrees or (inside & ~grow(hidden)).sum() < inside.sum() / 2 or not _is_itself(canvas, look, best):
        return
    own = [ALL_COLOURS[look.colour], *([ALL_COLOURS[look.second]] if look.texture != "plain" else [])]
    one.presence[f], one.score[f], one.path[f] = True, best.score, (best.x / side, best.y / side)
    one.masks[f] = inside & ~hidden & (_nearest(frame, [*own, tone, *inks]) < len(own))
    one.share[f] = one.masks[f].mean()


def _inside(look: Look, match: Match, side: int) -> np.ndarray:
    y, x = np.mgrid[0:side, 0:side] + 0.5
    return look.paint((x - match.x) / match.radius, (y - match.y) / match.radius)[0]


def _anywhere(frame: np.ndarray, tone: np.ndarray, look: Look, smallest: float, largest: float) -> tuple[Canvas, Match]:
    """Coarse over the whole frame (at 32 pixels), then fine about the best place."""
    side = len(frame)
    times = max(1, side // 32)
    small = frame.reshape(side // times, times, side // times, times, 3).mean((1, 3))
    rough = [round(4 * r * len(small)) for r in np.geomspace(smallest, largest, 9)]
    best = Canvas(small, tone).search(look, rough, range(len(small)), range(len(small)), halves=(0,))
    canvas, quarters = Canvas(frame, tone), 4 * best.radius * times
    sizes = sorted({round(quarters * k) for k in (0.92, 1, 1.08)})
    return canvas, _about(canvas, look, sizes, best.y * times, best.x * times, times)


def _about(canvas: Canvas, look: Look, sizes: list[int], y: float, x: float, reach: int, halves=(0, 1)) -> Match:
    """The best match within `reach` pixels of y, x."""
    rows, columns = (range(max(0, int(c) - reach), min(canvas.side, int(c) + reach + 1)) for c in (y, x))
    return canvas.search(look, sizes, rows, columns, halves)


def _is_itself(canvas: Canvas, look: Look, match: Match) -> bool:
    """Whether colours and arrangement are the look's: on snow anything dark agrees a little with anything dark."""
    first, second = (_name(ink, canvas.tone) for ink in canvas.inks(look, match))
    if first != look.colour or (look.texture != "plain" and second != look.second):
        return False
    others = [replace(look, texture=name) for name in ALL_TEXTURES]
    others += [replace(look, texture="plain", colour=look.second)]
    others += [replace(look, colour=look.second, second=look.colour)] if look.texture != "plain" else []
    sizes, reach = [round(4 * match.radius * k) for k in (0.72, 1.0, 1.4)], round(0.7 * match.radius)
    return all(match.score >= _about(canvas, other, sizes, match.y, match.x, reach, halves=(0,)).score
               for other in others if other != look)


def _name(ink: np.ndarray, tone: np.ndarray) -> str:
    """The nearest named colour, or "background"."""
    named = {**ALL_COLOURS, "background": tone}
    return min(named, key=lambda name: float(np.square(ink - np.float32(named[name])).sum()))
