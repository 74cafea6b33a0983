"""SAM2 (Ravi et al., 2024): a thing pointed at in one frame -> its mask in every frame, forward and backward.

The frames are swept once forward and once backward for all things together, so that the features of a picture are
computed once for each sweep. Nothing grows with the number of frames but the masks at the network's own size: pictures
are prepared when they are looked at, and memories are forgotten when they are out of the network's reach.

Here through transformers' port; sam2_package.py is the same through the package `sam2`.
Legend: F frames, H W their pixels, h w the network's masks, S its pictures' side.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import Sam2VideoModel
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceCache, Sam2VideoInferenceSession

from ..core.errors import BadInput
from ..core.vision import IMAGENET, Preparation, checked_frames, read_model
from . import Hint
from .models import locate
from .tracks import Job, Track

WHAT = "SAM2"
REMEDY = "Fetch it anew: videomage fetch facebook/sam2.1-hiera-tiny; or name another: --tracker"
# transformers 4.56, which wrote the files of the hub, kept one of the two; transformers 5 asks for both
TWINS = {"prompt_encoder.shared_embedding.positional_embedding": "shared_image_embedding.positional_embedding"}
MEMORY = ("maskmem_features", "object_pointer")                         # of a tracked frame, what later ones look at
MASKS = ("pred_masks", "object_score_logits")                           # of a prompted one, what it is asked for again


class Pictures(Sequence):
    """The frames as the network sees them, each prepared when it is asked for: float32 (3, S, S)."""

    def __init__(self, frames_FHWC: np.ndarray, prepare: Preparation) -> None:
        self.frames, self.prepare = checked_frames(frames_FHWC), prepare

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, frame: int) -> Tensor:
        return self.prepare(self.frames[frame:frame + 1])[0]

    @property
    def size(self) -> tuple[int, int]:
        return self.frames.shape[1:3]


class Session(Protocol):
    """One thing in one clip."""

    def prompt(self, hint: Hint) -> None:
        """Point at it in a frame."""

    def step(self, frame: int, backward: bool) -> tuple[Tensor, float]:
        """Logits (h, w) in a frame, and the score of being in sight; the frame before, or behind, comes first."""

    def forget(self, frame: int) -> None:
        """A frame that no later step of this sweep looks at."""

    reach: int              # how many frames back it remembers


def read(name: str, device: str) -> tuple[nn.Module, Preparation, Path]:
    """transformers' Sam2VideoModel by folder or hub id, how its pictures are prepared, and its folder. Raises
    MissingPrerequisite where it is not on this machine, BadInput where it cannot be used."""
    folder = locate(name, WHAT)
    network = read_model({"sam2_video": Sam2VideoModel.from_pretrained}, folder, WHAT, REMEDY, device, TWINS)
    side, prompted = network.config.image_size, network.config.prompt_encoder_config.image_size
    if side != prompted or side < 1:
        raise BadInput(f"{WHAT} in {folder} has pictures of {side} pixels and prompts on {prompted}", REMEDY)
    prepare = Preparation.of(folder, side, whole=True, colours=IMAGENET, remedy=REMEDY)
    return network, Preparation((side, side), None, prepare.mean, prepare.std, prepare.resample), folder


def points_of(hint: Hint, size: tuple[int, int], side: int) -> tuple[Tensor, Tensor]:
    """A hint as SAM2 takes it: points (n, 2) in pixels of its square picture, labels (n,): 0 outside, 1 inside, 2 and 3
    the corners of a box."""
    corners = ([(*hint.box[:2], 2), (*hint.box[2:], 3)] if hint.box else [])
    points = [*corners, *((x, y, int(inside)) for x, y, inside in hint.points)]
    where = torch.tensor([point[:2] for point in points], dtype=torch.float32)
    return where * side / torch.tensor(size[::-1]), torch.tensor([point[2] for point in points], dtype=torch.int32)


class Sam2:
    """Holds the network."""

    def __init__(self, name: str, device: str) -> None:
        self.network, self.prepare, _ = read(name, device)
        self.device = device

    def track(self, frames: np.ndarray, jobs: Sequence[Job]) -> list[Track]:
        """frames: uint8 (F, H, W, 3)."""
        pictures, cache = Pictures(frames, self.prepare), Sam2VideoInferenceCache(self.device, self.device, 1)
        return sweep(jobs, lambda: _Session(self.network, pictures, cache, self.device))


def sweep(jobs: Sequence[Job], session: Callable[[], Session]) -> list[Track]:
    """Follow all jobs through one sweep forward and one backward. session: makes one; sessions share the features of
    the picture they looked at last."""
    starts = [min(hint.frame for hint in job.prompts if job.first <= hint.frame <= job.last) for job in jobs]
    sessions, tracks = [session() for _ in jobs], [None] * len(jobs)
    for frame, n in sorted((hint.frame, n) for n, job in enumerate(jobs) for hint in job.prompts):
        if frame != starts[n]:                                  # further prompts are known from the start
            sessions[n].prompt(next(hint for hint in jobs[n].prompts if hint.frame == frame))
    for backward in (False, True):
        order = range(min(job.first for job in jobs), max(job.last for job in jobs) + 1)
        for frame in reversed(order) if backward else order:
            for n, job in enumerate(jobs):
                if not (job.first <= frame < starts[n] if backward else starts[n] <= frame <= job.last):
                    continue
                if frame == starts[n]:
                    sessions[n].prompt(next(hint for hint in job.prompts if hint.frame == frame))
                logits, score = sessions[n].step(frame, backward)
                if tracks[n] is None:
                    length = job.last - job.first + 1
                    tracks[n] = Track(job.first, np.zeros((length, *logits.shape), np.float16),
                                      np.zeros(length, np.float32))
                tracks[n].logits[frame - job.first] = logits.float().cpu().numpy()
                tracks[n].score[frame - job.first] = score
                sessions[n].forget(frame + sessions[n].reach * (1 if backward else -1))
    return tracks


def forget(outputs: dict[str, dict[int, dict]], frame: int, reach: int) -> None:
    """Drop what was remembered of a tracked frame, but for those just behind a prompt: the way back begins there."""
    if not any(0 <= frame - prompted <= reach for prompted in outputs["cond_frame_outputs"]):
        outputs["non_cond_frame_outputs"].pop(frame, None)


class _Session:
    """Through transformers. Each thing has an inference session of its own, since things start in different frames."""

    def __init__(self, network: nn.Module, pictures: Pictures, cache: Sam2VideoInferenceCache, device: str) -> None:
        self.network, self.pictures = network, pictures
        self.state = Sam2VideoInferenceSession(None, *pictures.size, device, device, "cpu", torch.float32, 1)
        self.state.processed_frames, self.state.cache = pictures, cache
        self.state.obj_id_to_idx(0)
        self.outputs = self.state.output_dict_per_obj[0]
        self.places: Tensor | None = None                   # position encoding of memories, the same for all frames
        self.reach = max(network.config.num_maskmem, network.config.max_object_pointers_in_encoder)

    def prompt(self, hint: Hint) -> None:
        points, labels = points_of(hint, self.pictures.size, self.network.config.image_size)
        self.state.add_point_inputs(0, hint.frame, {"point_coords": points[None, None],
                                                    "point_labels": labels[None, None]})
        self.state.obj_with_new_inputs = [0]
        self.step(hint.frame, False)

    def step(self, frame: int, backward: bool) -> tuple[Tensor, float]:
        out = self.network(self.state, frame_idx=frame, reverse=backward)
        for kind, kept in (("cond_frame_outputs", MEMORY + MASKS), ("non_cond_frame_outputs", MEMORY)):
            if (whole := self.outputs[kind].get(frame)) is not None:
                self.places = whole["maskmem_pos_enc"] if self.places is None else self.places
                self.outputs[kind][frame] = {name: whole[name] for name in kept} | {"maskmem_pos_enc": self.places}
        return out.pred_masks[0, 0], float(out.object_score_logits.flatten()[0])

    def forget(self, frame: int) -> None:
        forget(self.outputs, frame, self.reach)
