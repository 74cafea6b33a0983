"""How good are the judges of the sprites world? Measured on data drawn from other seeds than training's."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPModel, CLIPSegForImageSegmentation, Dinov2Model

from .judge_data import draw_foreign, identity_views, phrase_of
from .looks import SUBJECTS
from .sizes import Size
from .train_judges import WEIGHTS, Judge, segment_logits, tokens_of
from .train_vae import to_tensor
from .world import draw_clip, photos

FRESH = 3_000_000        # first seed of the measurements: far from those of training


@torch.no_grad()
def clip_of_20(judge: Judge, size: Size, groups: int = 40) -> float:
    """Share of held-out frames whose own caption, of 20, CLIP likes best."""
    clips = [draw_clip(np.random.default_rng([FRESH, k]), size.vocabulary, size.frames, size.pixels)
             for k in range(20 * groups)]
    x = to_tensor(np.stack([clip.frames[k % size.frames] for k, clip in enumerate(clips)]))
    hits = 0
    for group in range(groups):
        part = slice(20 * group, 20 * group + 20)
        captions = [clip.caption for clip in clips[part]]
        likes = judge.model(input_ids=tokens_of(judge.tokenizer, captions), pixel_values=x[part]).logits_per_image
        hits += sum(captions[int(best)] == captions[k] for k, best in enumerate(likes.argmax(1)))
    return hits / (20 * groups)


@torch.no_grad()
def dino_of_50(judge: Judge, size: Size, groups: int = 10) -> float:
    """Share of pictures of unseen identities (the held-out subjects and foreign ones) whose own other picture, of 50,
    DINO likes best; place, size and background differ."""
    looks = [look for look, _ in SUBJECTS.values()]
    hits = 0
    for group in range(groups):
        rng = np.random.default_rng([FRESH + 1, group])
        fifty = looks + [draw_foreign(rng) for _ in range(50 - len(looks))]
        views = np.stack([identity_views(look, 2, rng, size.pixels) for look in fifty])
        z = [F.normalize(judge.model(pixel_values=to_tensor(views[:, k])).pooler_output, dim=-1) for k in (0, 1)]
        hits += int(((z[0] @ z[1].mT).argmax(1) == torch.arange(50)).sum())
    return hits / (50 * groups)


@torch.no_grad()
def clipseg_iou(judge: Judge, size: Size, count: int = 200) -> dict[str, float]:
    """Mean intersection over union at probability 0.5: "world": phrases of colour, texture and shape on held-out clips;
    "subjects": class words and general words on photos of the held-out subjects; "all": the mean of the two."""
    rows = []
    for k in range(count):
        rng = np.random.default_rng([FRESH + 2, k])
        clip = draw_clip(rng, size.vocabulary, size.frames, size.pixels)
        n, f = int(rng.integers(len(clip.actors))), int(rng.integers(size.frames))
        if clip.masks[n, f].any():
            rows.append((clip.frames[f], phrase_of(clip.actors[n].look, rng), clip.masks[n, f]))
    world = len(rows)
    for name, (_, noun) in SUBJECTS.items():
        shots = photos(name, 12, FRESH, size.pixels) + photos(name, 12, FRESH + 1, size.pixels, close=False)
        rows += [(shot.frames[0], ("object", "thing", noun)[k % 3], shot.masks[0, 0]) for k, shot in enumerate(shots)]
    A = torch.cat([segment_logits(judge.model, to_tensor(np.stack([r[0] for r in part])),
                                  tokens_of(judge.tokenizer, [r[1] for r in part]))
                   for part in (rows[lo:lo + 50] for lo in range(0, len(rows), 50))])
    seen, M = (A > 0).numpy(), np.stack([r[2] for r in rows])
    each = (seen & M).sum((1, 2)) / (seen | M).sum((1, 2))
    found = dict(world=float(each[:world].mean()), subjects=float(each[world:].mean()))
    return dict(found, all=(found["world"] + found["subjects"]) / 2)


def judge_quality(size: Size, weights: Path = WEIGHTS, count: int = 200) -> dict[str, float]:
    """What the shipped judges reach on data drawn from other seeds than training's: each figure is defined above.
    count: clips for CLIPSeg; CLIP sees four times as many, DINO two and a half."""
    overlap = clipseg_iou(Judge.load(CLIPSegForImageSegmentation, weights / "clipseg"), size, count)
    return dict(clip_of_20=clip_of_20(Judge.load(CLIPModel, weights / "clip"), size, count // 5),
                dino_of_50=dino_of_50(Judge.load(Dinov2Model, weights / "dino"), size, count // 20),
                clipseg_iou=overlap["all"], clipseg_iou_world=overlap["world"],
                clipseg_iou_subjects=overlap["subjects"])
