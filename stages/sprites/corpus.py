"""What the sprites models are trained on: rendered once from a seed, in parallel, kept as uint8 on disk."""
from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from .looks import ALL_COLOURS, HELD_OUT_COLOURS, Vocabulary
from .sizes import SIZES
from .world import Clip, draw_clip

CHUNK = 500


def _repaint(frame: np.ndarray, masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Paint one object with a foreign two-colour pattern (any colours; the decoder must show what nobody captioned)."""
    size = len(frame)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    angle, turns, phase = rng.uniform(0, np.pi), rng.uniform(2, 26), rng.uniform(0, 6.3)
    wave = np.sin(turns * (x * np.cos(angle) + y * np.sin(angle)) + phase) > 0
    named = np.array(list(ALL_COLOURS.values()))
    two = np.where(rng.random((2, 1)) < 0.5, rng.integers(0, 256, (2, 3)), named[rng.integers(0, len(named), 2)])
    ink = np.where(wave[..., None], two[0], two[1])
    mask = masks[rng.integers(len(masks))][..., None]
    return np.where(mask, ink, frame).astype(np.uint8)


def _chunk(job) -> tuple[np.ndarray, np.ndarray, list[dict]]:
    """Render CHUNK clips -> frames (n, F, H, W, 3) uint8, masks (n, 3, F, H/4, W/4) uint8 (0..255), facts (n)."""
    size_name, frames, seed, chunk, foreign, mixed = job
    size = SIZES[size_name]
    pictures, covers, facts = [], [], []
    for k in range(CHUNK):
        rng = np.random.default_rng([seed, chunk, k])
        clip = draw_clip(rng, size.vocabulary, frames, size.pixels, mixed=mixed)
        picture = clip.frames
        if foreign and rng.random() < 0.6:
            picture = _repaint(picture[0], clip.masks[:, 0], rng)[None]
        pictures.append(picture)
        covers.append(coverage(clip))
        facts.append(dict(caption=clip.caption, nouns=clip.nouns + [-1] * (3 - len(clip.nouns))))
    return np.stack(pictures), np.stack(covers), facts


def coverage(clip: Clip) -> np.ndarray:
    """Share of each latent cell (4 x 4 pixels) that each actor covers -> (3, F, h, w) uint8, 255 = all of it."""
    n, f, h, w = clip.masks.shape
    cells = clip.masks.reshape(n, f, h // 4, 4, w // 4, 4).mean((3, 5))
    out = np.zeros((3, f, h // 4, w // 4), np.uint8)
    out[:n] = np.round(cells * 255)
    return out


def corpus(folder: Path, name: str, size_name: str, frames: int, count: int, seed: int, workers: int,
           foreign: bool = False, mixed: bool = False) -> tuple[np.ndarray, np.ndarray, list[dict]]:
    """`count` clips of `frames` frames of the training world, from the folder if they are there, else rendered.
    foreign: repaint some objects with patterns of any colours. mixed: of world.draw_clip."""
    pictures, covers, facts = (folder / f"{name}{end}" for end in ("-frames.npy", "-masks.npy", "-captions.json"))
    if not facts.exists():
        folder.mkdir(parents=True, exist_ok=True)
        jobs = [(size_name, frames, seed, chunk, foreign, mixed) for chunk in range(-(-count // CHUNK))]
        with ProcessPoolExecutor(workers) as pool:
            parts = list(pool.map(_chunk, jobs))
        np.save(pictures, np.concatenate([p[0] for p in parts])[:count])
        np.save(covers, np.concatenate([p[1] for p in parts])[:count])
        facts.write_text(json.dumps([f for p in parts for f in p[2]][:count]))
    return np.load(pictures, mmap_mode="r"), np.load(covers, mmap_mode="r"), json.loads(facts.read_text())


def words_of(vocabulary: Vocabulary, clips: int = 4000) -> list[str]:
    """Captions that show every word of the world: what the tokenizer is trained on."""
    return [draw_clip(np.random.default_rng([11, k]), vocabulary, 4 if k % 3 else 1, 8).caption for k in range(clips)]


def is_held_out(caption: str, words: set[str] = frozenset(HELD_OUT_COLOURS)) -> bool:
    return bool(words & set(caption.replace(".", " ").split()))
