"""python -m bench.segment [--clips 60]: how well the stage `segment` cuts actors out, where the truth is known.

Held-out clips of the sprites world go through the public stage as files: written as mp4, read, sampled, segmented by
CLIPSeg, written as PNGs, read back. Each actor's mask in each frame is compared with the rendered one. **Ours**: a clip
is drawn from seeds that no training used; its motions are the held-out ones, its actors are of the words that the base
knows, named by colour and shape as a user would.
"""
from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from stages.core.framing import fit_size
from stages.core.video import read_masks, write_video
from stages.core.workspace import Workspace
from stages.prompts import motion_prompt, slug
from stages.segment import segment
from stages.sprites.looks import SMALL, Look
from stages.sprites.sizes import SIZES
from stages.sprites.world import HELD_OUT_MOTIONS, Clip, reference_clip

SEED = 910_000                 # no training draws from here
PLACES = SMALL.backgrounds


def held_out(k: int) -> tuple[Clip, str]:
    """The k-th clip and its prompt, actors in brackets."""
    size, rng = SIZES["small"], np.random.default_rng([SEED, k])
    colours = rng.permutation(SMALL.colours)[:2]
    looks = [Look(str(rng.choice(SMALL.shapes)), str(colour)) for colour in colours]
    clip = reference_clip(HELD_OUT_MOTIONS[k % len(HELD_OUT_MOTIONS)], looks, SEED + k, size.frames, size.pixels,
                          PLACES[k % len(PLACES)])
    prompt = clip.caption
    for look in looks:
        prompt = prompt.replace(f"{look.colour} {look.shape}", f"[{look.colour} {look.shape}]")
    return clip, prompt


def overlaps(clip: Clip, prompt: str, folder: Path) -> list[float]:
    """Intersection over union of each actor's mask in each frame that shows it, at the clip's own resolution; 0 for one
    that was not found."""
    write_video(folder / "clip.mp4", clip.frames, fps=8)
    project = Workspace.create(folder, motion={"name": "held-out", "clip": "clip.mp4", "prompt": prompt})
    found, out = segment(project), []
    for actor, truth in zip(motion_prompt(prompt).actors, clip.masks):
        seen = fit_size(read_masks(found.path / slug(actor)), truth.shape[1:])
        out += [float((a & b).sum() / (a | b).sum()) for a, b in zip(seen, truth.astype(bool)) if b.any()]
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=60)
    count, rows = parser.parse_args().clips, []
    for k in range(count):
        with tempfile.TemporaryDirectory() as folder:
            clip, prompt = held_out(k)
            rows.append(overlaps(clip, prompt, Path(folder)))
        print(f"{k:3d} {np.mean(rows[-1]):.3f} worst {min(rows[-1]):.3f}  {prompt} ({clip.background})")
    each, by_clip = np.concatenate(rows), np.array([np.mean(row) for row in rows])
    print(f"{count} clips, {len(each)} masks: mean IoU by mask and frame {each.mean():.3f} (5th percentile "
          f"{np.quantile(each, 0.05):.3f}, worst {each.min():.3f}); by clip {by_clip.mean():.3f} +- "
          f"{by_clip.std():.3f}; below 0.5: {(each < 0.5).mean():.1%}")


if __name__ == "__main__":
    main()
