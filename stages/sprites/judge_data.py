"""What the judges are trained on beside the corpus: foreign identities of endless variety, and phrases with masks.

A Foreign look is a random outline with two random inks in a random arrangement. None of them is a held-out subject,
and no held-out outline or texture enters; a judge that tells thousands of these apart tells the subjects apart.
"""
from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .looks import BACKGROUNDS, SHAPES, Vocabulary
from .sizes import SIZES
from .words import MORE_WORDS
from .world import Actor, draw_clip, draw_look, render

CHUNK = 250
GENERIC = ("object", "thing", *(word for word in MORE_WORDS if word not in ("object", "thing")))


@dataclass(frozen=True)
class Foreign:
    """An identity nobody named. outline: Fourier radii ("blob"), edge distances ("polygon") or a name of SHAPES; scale:
    brings it to the area of the unit disc. pattern: (kind, angle, a, b); inks: two sRGB triples."""

    kind: str
    outline: tuple[float, ...]
    scale: float
    pattern: tuple[str, float, float, float]
    inks: tuple[tuple[int, int, int], tuple[int, int, int]]

    def covers(self, u, v):
        u, v = u * self.scale, v * self.scale
        if self.kind in SHAPES:
            return SHAPES[self.kind](u, v)
        if self.kind == "polygon":
            sides = len(self.outline) // 2
            edges = zip(self.outline[:sides], self.outline[sides:])
            return np.logical_and.reduce([u * np.cos(a) + v * np.sin(a) <= d for a, d in edges])
        theta, radius = np.arctan2(v, u), 1.0
        for k, (cosine, sine) in enumerate(zip(self.outline[::2], self.outline[1::2]), 1):
            radius = radius + cosine * np.cos(k * theta) + sine * np.sin(k * theta)
        return u * u + v * v <= np.maximum(radius, 0.25) ** 2

    def paint(self, u, v):
        """-> (inside, rgb) at object coordinates, as Look.paint."""
        kind, angle, a, b = self.pattern
        along, across = u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)
        second = {"plain": lambda: along < -9, "half": lambda: along > a, "band": lambda: abs(along - a) < 0.2 + b / 4,
                  "ring": lambda: (u - a) ** 2 + v * v < 0.2 + b / 3, "corners": lambda: (along - a) * (across - a) > 0,
                  "waves": lambda: np.sin((3 + 4 * b) * along + 9 * a) > 0,
                  "dots": lambda: np.cos((3 + 2 * b) * along + a) * np.cos((3 + 2 * b) * across) > 0.3}[kind]()
        return self.covers(u, v), np.where(second[..., None], np.float32(self.inks[1]), np.float32(self.inks[0]))


def draw_foreign(rng: np.random.Generator, shape: str | None = None) -> Foreign:
    """A random identity; shape: one of SHAPES, repainted, in place of a random outline."""
    kind = shape or str(rng.choice(["blob", "polygon"]))
    outline: tuple[float, ...] = ()
    if kind == "blob":
        falling = np.repeat(0.34 / np.arange(1, 6) ** 0.5, 2) * rng.choice([0.4, 1.0])
        outline = tuple(rng.normal(0, 1, 10) * falling * rng.integers(0, 2, 10))
    elif kind == "polygon":
        sides = int(rng.integers(3, 7))
        turns = (np.arange(sides) + rng.uniform(-0.3, 0.3, sides)) * 2 * np.pi / sides + rng.uniform(0, 6.3)
        outline = (*turns, *rng.uniform(0.7, 1.2, sides))
    raw = Foreign(kind, outline, 1.0, ("plain", 0.0, 0.0, 0.0), ((0, 0, 0), (0, 0, 0)))
    v, u = np.mgrid[-2.5:2.5:80j, -2.5:2.5:80j]
    scale = float(np.sqrt(raw.covers(u, v).mean() * 25 / np.pi))
    pattern = str(rng.choice(["plain", "half", "half", "band", "ring", "corners", "waves", "dots"]))
    return Foreign(kind, outline, scale, (pattern, rng.uniform(0, 6.3), rng.uniform(-0.3, 0.3), rng.uniform()),
                   _two_inks(rng))


def _two_inks(rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two colours that differ from each other and, the first one, from the backgrounds."""
    while True:
        inks = rng.integers(0, 256, (2, 3))
        far = min(np.linalg.norm(inks[0] - np.array(tone)) for tone in BACKGROUNDS.values())
        if np.linalg.norm(inks[0] - inks[1]) > 110 and far > 70:
            return tuple(inks[0].tolist()), tuple(inks[1].tolist())


def picture(looks: list, radius: float, rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Objects at random places on a random background -> uint8 (size, size, 3), visible masks bool (n, size, size)."""
    margin = min(radius + 0.04, 0.49)
    places = [rng.uniform(margin, 1 - margin, (1, 2)) for _ in looks]
    for _ in range(20 * (len(looks) - 1)):
        if min(np.abs(places[0] - place).max() for place in places[1:]) > 1.7 * radius:
            break
        places = [rng.uniform(margin, 1 - margin, (1, 2)) for _ in looks]
    actors = [Actor(look, radius, place) for look, place in zip(looks, places)]
    frames, masks = render(actors, str(rng.choice(list(BACKGROUNDS))), rng, size)
    return frames[0], masks[:, 0]


# -- identities -----------------------------------------------------------------------------------------------------
def identity_views(look, views: int, rng: np.random.Generator, size: int) -> np.ndarray:
    """One identity at random places, sizes and backgrounds -> uint8 (views, size, size, 3)."""
    return np.stack([picture([look], rng.uniform(0.15, 0.34), rng, size)[0] for _ in range(views)])


def _identities(job) -> np.ndarray:
    size, views, seed, chunk = job
    out = []
    for k in range(CHUNK):
        rng = np.random.default_rng([seed, chunk, k])
        shape = str(rng.choice(list(SHAPES))) if rng.random() < 0.35 else None
        out.append(identity_views(draw_foreign(rng, shape), views, rng, size))
    return np.stack(out)


def identities(folder: Path, size: int, count: int, views: int, seed: int, workers: int) -> np.ndarray:
    """`count` foreign identities in `views` pictures each, rendered once -> uint8 (count, views, size, size, 3)."""
    path = folder / f"identities-{size}-{count}-{seed}.npy"
    if not path.exists():
        jobs = [(size, views, seed, chunk) for chunk in range(-(-count // CHUNK))]
        _render_to(folder, workers, _identities, jobs, lambda parts: np.save(path, np.concatenate(parts)[:count]))
    return np.load(path, mmap_mode="r")


# -- phrases and masks ----------------------------------------------------------------------------------------------
def phrase_of(look, rng: np.random.Generator) -> str:
    """A phrase that names a look of the training world by its colour, and by its texture and shape or not."""
    texture = [look.texture] if look.texture != "plain" and rng.random() < 0.5 else []
    noun = look.shape if rng.random() < 0.85 else str(rng.choice(["object", "thing"]))
    return _article(" ".join([look.colour, *texture, noun]), rng)


def _article(words: str, rng: np.random.Generator) -> str:
    return str(rng.choice(["", "", "a ", "the "])) + words


def phrase_example(rng: np.random.Generator, vocabulary: Vocabulary, size: int) -> tuple[np.ndarray, str, np.ndarray]:
    """-> picture uint8 (size, size, 3), phrase, mask bool (size, size) of all that the phrase names."""
    chance = rng.random()
    if chance < 0.62:                               # mostly several things: a lone one teaches nothing of the phrase
        several = int(rng.choice([2, 3])) if rng.random() < 0.85 else 1
        clip = draw_clip(rng, vocabulary, 3, size, objects=several)
        at, looks = int(rng.integers(3)), [actor.look for actor in clip.actors]
        return (clip.frames[at], *_phrase_in_world(looks, clip.masks[:, at], vocabulary, rng))
    radius = rng.uniform(0.14, 0.34) if chance < 0.78 else rng.uniform(0.14, 0.19)
    shape = str(rng.choice(vocabulary.shapes)) if rng.random() < 0.35 else None
    one = draw_foreign(rng, shape)
    if chance < 0.78:                               # one foreign thing: any class word that a user may give it
        frame, masks = picture([one], radius, rng, size)
        word = shape if shape and rng.random() < 0.5 else str(rng.choice([*vocabulary.shapes, *GENERIC]))
        return frame, _article(word, rng), masks[0]
    if chance < 0.92:                               # a foreign thing beside one of the world
        two = draw_look(vocabulary, rng, str(rng.choice(vocabulary.colours)))
        frame, masks = picture([one, two], radius, rng, size)
        if rng.random() < 0.6:
            return frame, phrase_of(two, rng), masks[1]
        word = shape if shape and shape != two.shape else None
        return (frame, _article(word, rng), masks[0]) if word else (frame, _article("object", rng), masks.any(0))
    shapes = rng.permutation(vocabulary.shapes)[:2]                             # two repainted shapes, told by shape
    frame, masks = picture([draw_foreign(rng, str(s)) for s in shapes], radius, rng, size)
    return frame, _article(str(shapes[0]), rng), masks[0]


def _phrase_in_world(looks, masks, vocabulary: Vocabulary, rng) -> tuple[str, np.ndarray]:
    chance, k = rng.random(), int(rng.integers(len(looks)))
    if chance < 0.06:
        absent = [c for c in vocabulary.colours if c not in {look.colour for look in looks}]
        words = f"{rng.choice(absent)} {rng.choice(vocabulary.shapes)}"
        return _article(words, rng), np.zeros_like(masks[0])
    if chance < 0.12:
        return _article(str(rng.choice(["object", "thing"])), rng), masks.any(0)
    if chance < 0.28:
        same = np.array([look.shape == looks[k].shape for look in looks])
        return _article(looks[k].shape, rng), masks[same].any(0)
    return phrase_of(looks[k], rng), masks[k]


def _phrases(job) -> tuple[np.ndarray, list[str], np.ndarray]:
    size_name, seed, chunk = job
    size = SIZES[size_name]
    rows = [phrase_example(np.random.default_rng([seed, chunk, k]), size.vocabulary, size.pixels) for k in range(CHUNK)]
    return np.stack([r[0] for r in rows]), [r[1] for r in rows], np.stack([r[2] for r in rows])


def phrases(folder: Path, size_name: str, count: int, seed: int, workers: int
            ) -> tuple[np.ndarray, list[str], np.ndarray]:
    """`count` examples, rendered once -> pictures (N, S, S, 3) uint8, phrases (N), masks (N, S, S) bool."""
    stem = folder / f"phrases-{size_name}-{count}-{seed}"
    pictures, masks, words = (stem.with_name(stem.name + end) for end in ("-frames.npy", "-masks.npy", "-words.txt"))
    if not words.exists():
        def keep(parts):
            np.save(pictures, np.concatenate([p[0] for p in parts])[:count])
            np.save(masks, np.concatenate([p[2] for p in parts])[:count])
            words.write_text("\n".join([w for p in parts for w in p[1]][:count]))
        _render_to(folder, workers, _phrases, [(size_name, seed, chunk) for chunk in range(-(-count // CHUNK))], keep)
    return np.load(pictures, mmap_mode="r"), words.read_text().split("\n"), np.load(masks, mmap_mode="r")


def _render_to(folder: Path, workers: int, job, jobs: list, keep) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if workers <= 1:
        keep([job(one) for one in jobs])
        return
    with ProcessPoolExecutor(workers) as pool:
        keep(list(pool.map(job, jobs)))
