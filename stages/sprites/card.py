"""The model card of the sprites weights: what they saw, for how long, how good they are, what they cannot do."""
from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from .looks import HELD_OUT_COLOURS, HELD_OUT_SHAPES, HELD_OUT_TEXTURES, SUBJECTS
from .sizes import Size
from .world import HELD_OUT_MOTIONS

SNIPPET = '''import torch
from diffusers import TextToVideoSDPipeline

pipe = TextToVideoSDPipeline.from_pretrained("stages/sprites/weights/base", dtype=torch.float32)
video = pipe("a red circle is jumping over a blue square on the sand", num_frames={frames}, height={pixels},
             width={pixels}, num_inference_steps={steps}, guidance_scale={guidance},
             generator=torch.Generator().manual_seed(0)).frames[0]
print(video.shape)                                             # ({frames}, {pixels}, {pixels}, 3), values 0..1
'''


def table(rows: Sequence) -> str:
    """The quality table in markdown."""
    lines = ["| quality | measured | floor | goal | of |", "|---|---|---|---|---|"]
    for row in rows:
        mark = "" if row.passed else " **below the floor**"
        lines.append(f"| {row.name} | {row.shown(row.value)}{mark} | {row.shown(row.floor)} | {row.shown(row.goal)} "
                     f"| {row.count} |")
    return "\n".join(lines)


def write_card(path: Path, size: Size, rows: Sequence, history: list[dict], steps: int, guidance: float,
               sheet: str) -> None:
    """history: what weights/history.json keeps of each training run: models, steps, hours, machine, last losses."""
    runs = "\n".join(f"| {run['model']} | {run['steps']} | {run['hours']:.1f} | {run['machine']} | {run['seed']} | "
                     f"{run['curve']} |" for run in history)
    vocabulary = size.vocabulary
    path.write_text(f"""# Model card: the sprites base ({size.name})

A text-to-video base small enough for a laptop's CPU, trained from nothing by `train.py`, in the runs listed below,
on a world that this project renders. It is videomage's laboratory bench: every object, mask and path of its world is
known.

* **Data**: {size.corpus_clips:,} clips of {size.frames} frames and {size.corpus_photos:,} single pictures,
  {size.pixels} x {size.pixels} pixels, rendered by `world.py` from seeds 1 and 2; no picture and no
  text from anywhere else. Licence: Apache-2.0, as the rest.
* **Words**: {", ".join(vocabulary.colours)}; {", ".join(vocabulary.shapes)}; {", ".join(vocabulary.textures)};
  {", ".join(vocabulary.backgrounds)}.
* **Held out** of every caption and frame: the colours {", ".join(HELD_OUT_COLOURS)}, the shapes
  {", ".join(HELD_OUT_SHAPES)}, the textures {", ".join(HELD_OUT_TEXTURES)}, the subjects {", ".join(SUBJECTS)}, the
  motions {", ".join(HELD_OUT_MOTIONS)}. (The VAE alone sees foreign patterns.)
* **Sampling**: DDIM, eta = 0, {steps} steps, guidance {guidance:g}, v-prediction, trailing timesteps.

## Quality

Written by `make sprites-quality`: held-out captions, fixed seeds, judged from the pixels by `oracle.py`.

{table(rows)}

![24 held-out captions, every other frame]({sheet})

## Training

| model | steps | hours | machine | seed | curve (step: loss) |
|---|---|---|---|---|---|
{runs}

Go on from these weights on any machine: `python -m stages.sprites.train --size {size.name} --from-shipped`.

## Sample it with diffusers alone

```python
{SNIPPET.format(frames=size.frames, pixels=size.pixels, steps=steps, guidance=guidance)}```

## What it cannot do

It knows the words above and no others. An unknown verb means "some motion". More than three objects, colours that share
a clip, sizes, counts and camera moves are outside its world. Clips have {size.frames} frames.
""")


def read_history(weights: Path) -> list[dict]:
    path = weights / "history.json"
    return json.loads(path.read_text()) if path.exists() else []
