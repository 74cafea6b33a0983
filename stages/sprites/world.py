"""The sprites world: captioned clips rendered from a seed, with exact masks, identities and paths.

Places and sizes are in frame widths (x right, y down), time is in frames. Everything drawn is a function of the numpy
Generator handed in: the same seed gives the same bytes on every machine.
"""
from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from .looks import SUBJECTS, Look, Vocabulary, background
from .paths import path_alone, paths_of_roles

MOTIONS = ("still", "left", "right", "up", "down", "bounce")          # of each object alone
ROLE_MOTIONS = ("push", "approach", "jump")                           # of two: the first word's object does it
HELD_OUT_MOTIONS = ("orbit", "chase", "leapfrog", "zigzag", "eight")  # never captioned, never rendered in training
VERBS = {  # motion -> (one, one is, many)
    "still": ("stays still", "is standing still", "stay still"),
    "left": ("moves left", "is moving left", "move left"),
    "right": ("moves right", "is moving right", "move right"),
    "up": ("moves up", "is moving up", "move up"),
    "down": ("moves down", "is moving down", "move down"),
    "bounce": ("bounces", "is bouncing", "bounce"),
    "push": ("pushes", "is pushing", "push"),
    "approach": ("approaches", "is approaching", "approach"),
    "jump": ("jumps over", "is jumping over", "jump over"),
    "orbit": ("orbits", "is orbiting", "orbit"),
    "chase": ("chases", "is chasing", "chase"),
    "leapfrog": ("leapfrogs", "is leapfrogging", "leapfrog"),
    "zigzag": ("dodges", "is dodging", "dodge"),
    "eight": ("circuits", "is circuiting", "circuit"),
}
PLACES = {"night": ("at night", "in the night"), "snow": ("in the snow", "on snow"),
          "sand": ("on the sand", "on sand"), "grass": ("on the grass", "on grass")}


@dataclass(frozen=True)
class Actor:
    """One object of a clip. path: (frames, 2) centres (x, y); radius: of the disc of the same area."""

    look: Look
    radius: float
    path: np.ndarray


@dataclass
class Clip:
    """One rendered clip and the truth about it.

    frames: uint8 (F, H, W, 3). masks: bool (N, F, H, W), what is visible of each actor. caption: the words. nouns: for
    each actor the index of its noun among the caption's words, or -1 where the caption leaves the actor out.
    """

    frames: np.ndarray
    masks: np.ndarray
    actors: list[Actor]
    background: str
    motion: str
    caption: str = ""
    nouns: list[int] = field(default_factory=list)
    says_motion: bool = True
    says_place: bool = True


def render(actors: list[Actor], place: str, rng: np.random.Generator, size: int, supersample: int = 3):
    """Draw actors, later ones in front -> frames uint8 (F, size, size, 3), visible masks bool (N, F, size, size)."""
    frames_n = len(actors[0].path)
    canvas = np.repeat(background(place, rng, size)[None], frames_n, 0)
    fine = size * supersample
    axis = (np.arange(fine, dtype=np.float32) + 0.5) / fine
    masks = np.zeros((len(actors), frames_n, size, size), np.float32)
    for n, actor in enumerate(actors):
        for f in range(frames_n):
            x, y = actor.path[f]
            lo_x, hi_x = (int(np.clip((x + s * 1.7 * actor.radius) * size + s, 0, size)) for s in (-1, 1))
            lo_y, hi_y = (int(np.clip((y + s * 1.7 * actor.radius) * size + s, 0, size)) for s in (-1, 1))
            if hi_x <= lo_x or hi_y <= lo_y:
                continue
            u = (axis[None, lo_x * supersample:hi_x * supersample] - x) / actor.radius
            v = (axis[lo_y * supersample:hi_y * supersample, None] - y) / actor.radius
            inside, rgb = actor.look.paint(u, v)
            cells = (hi_y - lo_y, supersample, hi_x - lo_x, supersample)
            cover = inside.reshape(cells).mean((1, 3), dtype=np.float32)
            ink = (rgb * inside[..., None]).reshape(*cells, 3).mean((1, 3))
            box = np.s_[lo_y:hi_y, lo_x:hi_x]
            canvas[f][box] = canvas[f][box] * (1 - cover[..., None]) + ink
            masks[:n, f][:, lo_y:hi_y, lo_x:hi_x] *= 1 - cover
            masks[n, f][box] = cover
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8), masks > 0.5


# -- places --------------------------------------------------------------------------------------------------------
def _apart(rng, n: int, radius: float, low, high) -> np.ndarray:
    """n starting places (n, 2) within the box low..high, at least 2 radii apart where chance allows."""
    best, gap = None, -1.0
    for _ in range(24):
        places = rng.uniform(low, high, (n, 2))
        away = min((np.hypot(*(places[i] - places[j])) for i in range(n) for j in range(i)), default=9.0)
        if away > gap:
            best, gap = places, away
        if gap > 2.1 * radius:
            break
    return best


# -- captions -------------------------------------------------------------------------------------------------------
def _noun_phrase(look: Look, rng, complete: bool) -> list[str]:
    words = [rng.choice(["a", "a", "a", "the", "one"])]
    words += [look.colour] if rng.random() < 0.93 or complete else []
    if look.texture != "plain":
        named = rng.random() < 0.3 or look.second != "white"
        words += (["and", look.second] if named and len(words) > 1 else []) + [look.texture]
    return [*words, look.shape]


def _nonsense(rng) -> str:
    return "".join(rng.choice(list("bdfgklmnprstvz")) + rng.choice(list("aeiou")) for _ in range(rng.integers(1, 4)))


def caption(clip: Clip, motions: list[str], rng: np.random.Generator, complete: bool = False) -> Clip:
    """Write a caption for the clip: varied wording; unless `complete`, now and then without the motion, the place, a
    colour or an object, or with a verb nobody knows (so that an unknown word means "some motion" and not noise)."""
    keep = list(range(len(clip.actors)))
    if not complete and len(keep) > 1 and rng.random() < 0.06:
        keep.pop(rng.integers(len(keep)))
    chance = rng.random() if not complete else 1.0
    says = "none" if chance < 0.10 else "nonsense" if chance < 0.15 else "verb"
    phrases = {n: _noun_phrase(clip.actors[n].look, rng, complete) for n in keep}
    form = int(rng.random() < 0.4)
    photo = len(clip.frames) == 1

    def verb(motion, many=False):
        if says != "verb":
            return [_nonsense(rng)] if says == "nonsense" else []
        return (VERBS[motion][2 if many else form]).split()

    words, nouns = [], [-1] * len(clip.actors)

    def put(n):
        words.extend(phrases[n])
        nouns[n] = len(words) - 1

    static = motions[0] == "still" and len(set(motions)) == 1
    if photo:
        words += str(rng.choice(["", "", "a photo of", "a picture of"])).split()
    elif static and says == "verb" and rng.random() < 0.5:
        words += ["a", "static", "video", "of"]
        says = "none"
    elif rng.random() < 0.25:
        words += ["a", "video", "of"]
    if clip.motion in ROLE_MOTIONS and len(keep) == 2:
        put(0)
        words += verb(clip.motion) or ["and"]
        put(1)
    elif len(set(motions)) == 1 and clip.motion not in ROLE_MOTIONS:
        for i, n in enumerate(keep):
            words += ["and"] if i else []
            put(n)
        words += [] if photo else verb(motions[0], many=len(keep) > 1)
    else:
        for i, n in enumerate(keep):
            words += ["and"] if i else []
            put(n)
            words += verb(motions[n]) if clip.motion not in ROLE_MOTIONS else []
    says_place = complete or rng.random() < 0.9
    if says_place:
        words += str(rng.choice(PLACES[clip.background])).split()
    return replace(clip, caption=" ".join(words) + ("." if rng.random() < 0.1 else ""), nouns=nouns,
                   says_motion=says == "verb" or static, says_place=says_place)


# -- scenes ---------------------------------------------------------------------------------------------------------
def draw_look(vocabulary: Vocabulary, rng, colour: str) -> Look:
    texture = "plain" if rng.random() < 0.66 else str(rng.choice(vocabulary.textures[1:]))
    return Look(str(rng.choice(vocabulary.shapes)), colour, texture)


def _mixed(look: Look, vocabulary: Vocabulary, rng) -> Look:
    if look.texture == "plain" or rng.random() < 0.5:
        return look
    return replace(look, second=str(rng.choice([c for c in vocabulary.colours if c != look.colour])))


def draw_clip(rng: np.random.Generator, vocabulary: Vocabulary, frames: int, size: int, *, objects: int | None = None,
              motion: str | None = None, complete: bool = False, mixed: bool = False) -> Clip:
    """One captioned clip of the training world. One object covers 8 to 15 % of the frame in clips (5 to 8 % where there
    are three) and, when frames is 1 (a photo of one object), up to 40 %. Colours within a clip differ. mixed: half of
    the textures show a second colour of the vocabulary, named in the caption, instead of white."""
    n = objects or int(rng.choice([1, 2, 3], p=[0.42, 0.46, 0.12]))
    colours = [str(c) for c in rng.permutation(vocabulary.colours)[:n]]
    looks = [draw_look(vocabulary, rng, c) for c in colours]
    looks = [_mixed(look, vocabulary, rng) for look in looks] if mixed else looks
    low, high = {1: (0.16, 0.218), 2: (0.16, 0.19), 3: (0.13, 0.155)}[n]
    if frames == 1 and n == 1 and rng.random() < 0.5:
        low, high = 0.22, 0.36
    radius = float(rng.uniform(low, high))
    if motion is None:
        roles = n == 2 and frames > 1 and rng.random() < 0.4
        motion = str(rng.choice(ROLE_MOTIONS if roles else MOTIONS)) if frames > 1 else "still"
    if motion in ROLE_MOTIONS:
        paths, motions = paths_of_roles(motion, frames, radius, rng), [motion] * n
    else:
        together = rng.random() < 0.7 or complete
        motions = [motion] + [motion if together else str(rng.choice(MOTIONS)) for _ in range(n - 1)]
        travel = float(rng.uniform(0.34, 0.5)) if n == 1 else float(rng.uniform(0.26, 0.36))
        travel = min(travel, 0.94 - 2 * radius)
        middles = _apart(rng, n, radius, radius + 0.03, 0.97 - radius)
        paths = np.stack([_fit(path_alone(m, p, frames, travel), radius) for m, p in zip(motions, middles)])
    order = rng.permutation(n)                                     # who is in front does not follow the sentence
    actors = [Actor(look, radius, path) for look, path in zip(looks, paths)]
    place = str(rng.choice(vocabulary.backgrounds))
    pictures, masks = render([actors[i] for i in order], place, rng, size)
    back = np.argsort(order)
    clip = Clip(pictures, masks[back], actors, place, motion if len(set(motions)) == 1 else "mixed")
    return caption(clip, motions, rng, complete)


def _fit(path: np.ndarray, radius: float) -> np.ndarray:
    """Shift a path so that the object stays in the frame throughout."""
    for axis in (0, 1):
        low, high = path[:, axis].min(), path[:, axis].max()
        path[:, axis] += max(0.0, radius + 0.02 - low) - max(0.0, high - (0.98 - radius))
    return path


def photos(subject: str, count: int, seed: int, size: int, close: bool = True) -> list[Clip]:
    """`count` photos of a held-out subject at other places, sizes and backgrounds; close: 18 to 36 % of the frame."""
    look, _ = SUBJECTS[subject]
    out = []
    for k in range(count):
        rng = np.random.default_rng([seed, k])
        radius = rng.uniform(0.24, 0.34) if close else rng.uniform(0.16, 0.22)
        actor = Actor(look, float(radius), rng.uniform(radius + 0.06, 0.94 - radius, (1, 2)))
        place = list(PLACES)[(seed + k) % len(PLACES)]
        frames, masks = render([actor], place, rng, size)
        out.append(Clip(frames, masks, [actor], place, "still", f"a {look.shape}", [1]))
    return out


def reference_clip(motion: str, looks: list[Look], seed: int, frames: int, size: int, place: str = "sand"
                   ) -> Clip:
    """The clip of a motion with roles, acted by `looks` in the order of their roles; two are as large as two objects
    are in the training clips, three as large as three."""
    radius = 0.175 if len(looks) < 3 else 0.145
    rng = np.random.default_rng([seed, 77])
    paths = paths_of_roles(motion, frames, radius, rng, len(looks))
    actors = [Actor(look, radius, path) for look, path in zip(looks, paths)]
    pictures, masks = render(actors, place, rng, size)
    phrases = [f"{look.colour} {look.shape}" for look in looks]
    words = f"a {phrases[0]} {VERBS[motion][1]} " + " and ".join(f"a {phrase}" for phrase in phrases[1:])
    return Clip(pictures, masks, actors, place, motion, words, [words.split().index(look.shape) for look in looks])
