"""Pretrained vision networks from local folders, and the pixels they expect: what segmenters and metrics share.

A network is read in transformers' format, safetensors only, float32, frozen. One whose weights are not all in the file
is refused: a layer left at random would still give numbers. The picture's preparation is read from the file beside the
weights and done here with Pillow: transformers' own processors want torchvision for some models.
"""
from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPTokenizer, PretrainedConfig
from transformers.utils import logging

from .errors import BadInput

CHUNK = 16                                                          # pictures through a network at a time
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))          # mean, deviation


@dataclass(frozen=True)
class Preparation:
    """uint8 frames -> what a network sees. size: (H, W) to resize to, or a short side whose aspect is kept; crop: the
    (H, W) of the middle that is looked at, None for all; resample: Pillow's number of the filter (3 is bicubic);
    longest: what the long side may have at most where size is a short side, None for no bound."""

    size: tuple[int, int] | int
    crop: tuple[int, int] | None
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    resample: int = int(Image.Resampling.BICUBIC)
    longest: int | None = None

    @classmethod
    def of(cls, folder: Path, image_size: int, *, whole: bool = False,
           colours: tuple[tuple[float, ...], tuple[float, ...]] = (CLIP_MEAN, CLIP_STD)) -> Preparation:
        """As preprocessor_config.json in the folder says. What it leaves open: bicubic, colours (mean and deviation),
        and CLIP's rule of a short side of image_size and its middle (a longest side without a crop means the whole
        frame); whole: the whole frame at image_size squared."""
        said = _said(folder)
        size = _size(said.get("size"), (image_size, image_size) if whole else image_size)
        longest = said["size"].get("longest_edge") if isinstance(said.get("size"), Mapping) else None
        cropped = said.get("do_center_crop", isinstance(size, int) and longest is None)
        crop = _size(said.get("crop_size"), (image_size, image_size)) if cropped else None
        plain = said.get("do_normalize") is False
        return cls(size, (crop, crop) if isinstance(crop, int) else crop,
                   (0.0,) * 3 if plain else tuple(said.get("image_mean", colours[0])),
                   (1.0,) * 3 if plain else tuple(said.get("image_std", colours[1])),
                   int(said.get("resample", cls.resample)), longest)

    def __call__(self, frames_FHWC: np.ndarray) -> Tensor:
        """uint8 (F, H, W, 3) -> float32 (F, 3, h, w)."""
        height, width = frames_FHWC.shape[1:3]
        size = self.size if isinstance(self.size, tuple) else self._whole(height, width)
        out = [np.asarray(frame if (height, width) == size else
                          Image.fromarray(frame).resize(size[::-1], self.resample)) for frame in frames_FHWC]
        pixels = np.stack(out).astype(np.float32)
        if self.crop:
            top, left = ((have - wanted) // 2 for have, wanted in zip(size, self.crop))
            pixels = pixels[:, max(top, 0):, max(left, 0):][:, :self.crop[0], :self.crop[1]]
        pixels = (pixels / 255 - np.float32(self.mean)) / np.float32(self.std)
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))

    def _whole(self, height: int, width: int) -> tuple[int, int]:
        """The (H, W) of a frame whose short side is size, or less where its long side is longest."""
        short, long = sorted((height, width))
        side = self.size if self.longest is None else min(self.size, self.longest * short / long)
        other = int(side * long / short)
        side = max(round(side), 1)
        return (side, other) if height <= width else (other, side)

    def save(self, folder: Path) -> Path:
        """Write preprocessor_config.json, as `of` and transformers' processors read it."""
        def said(size: tuple[int, int] | int) -> dict[str, int]:
            longest = {"longest_edge": self.longest} if self.longest else {}
            return {"shortest_edge": size, **longest} if isinstance(size, int) else {"height": size[0],
                                                                                    "width": size[1]}

        path = folder / "preprocessor_config.json"
        path.write_text(json.dumps({
            "do_resize": True, "size": said(self.size), "resample": int(self.resample), "do_rescale": True,
            "rescale_factor": 1 / 255, "do_center_crop": self.crop is not None, "do_normalize": True,
            "image_mean": list(self.mean), "image_std": list(self.std),
            **({"crop_size": said(self.crop)} if self.crop else {})}, indent=2) + "\n", encoding="utf-8")
        return path


def _said(folder: Path) -> Mapping:
    """What the folder says of the preparation: a file of an image processor, or that of a whole processor."""
    for name, key in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        if (folder / name).is_file():
            told = json.loads((folder / name).read_text(encoding="utf-8"))
            return told if key is None else told.get(key, {})
    return {}


def _size(said: object, otherwise: tuple[int, int] | int) -> tuple[int, int] | int:
    """A size as the files of several years write it: {"height", "width"}, {"shortest_edge"}, or a number squared."""
    if isinstance(said, Mapping):
        return said["shortest_edge"] if "shortest_edge" in said else (said["height"], said["width"])
    return otherwise if said is None else (int(said), int(said))


def checked_frames(frames: np.ndarray) -> np.ndarray:
    """uint8 (F, H, W, 3) with F >= 1, or BadInput."""
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise BadInput(f"pictures come as uint8 (F, H, W, 3) with one at least, not as {frames.dtype} {frames.shape}",
                       "read them with core.video")
    return frames


def in_chunks(function: Callable[[Tensor], Tensor], prepare: Preparation, frames_FHWC: np.ndarray,
              device: str) -> Tensor:
    """function over the prepared frames, CHUNK at a time, without gradient -> its results in one float32 CPU tensor."""
    frames = checked_frames(frames_FHWC)
    with torch.no_grad():
        return torch.cat([function(prepare(frames[lo:lo + CHUNK]).to(device)).float().cpu()
                          for lo in range(0, len(frames), CHUNK)])


def read_model(kinds: Mapping[str, Callable], folder: Path, what: str, remedy: str,
               device: str = "cpu", twins: Mapping[str, str] | None = None) -> nn.Module:
    """The network in a folder, frozen, float32. kinds: {model_type of its config.json: its from_pretrained}. what,
    remedy: how errors call it and what to do. twins: {tensor that files may leave out: the one it equals}. Raises
    BadInput where it is missing, of another kind, damaged, or lacks weights."""
    if not (folder / "config.json").is_file():
        raise BadInput(f"{what} is not in {folder}: there is no config.json", remedy)
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind not in kinds:
        raise BadInput(f"{what} in {folder} is of the kind '{kind}', and has to be {' or '.join(kinds)}", remedy)
    drawn, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()                       # what it would warn of is refused below
    try:
        model, told = kinds[kind](folder, use_safetensors=True, local_files_only=True, dtype=torch.float32,
                                      output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise BadInput(f"{what} in {folder} cannot be loaded ({error})", remedy) from error
    finally:
        logging.set_verbosity(level)
        if drawn:
            logging.enable_progress_bar()
    absent = sorted(map(str, [*told["missing_keys"], *told["mismatched_keys"]]))
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    for twin, source in (twins or {}).items():
        if twin in absent and source not in absent:
            tensors[twin].data.copy_(tensors[source].data)
            absent.remove(twin)
    if absent:
        raise BadInput(f"{what} in {folder} lacks {len(absent)} of its weights, {absent[0]} first", remedy)
    return model.to(device).eval().requires_grad_(False)


class Words:
    """The tokenizer beside a network of the CLIP family. encoder: the config of its text encoder."""

    def __init__(self, folder: Path, encoder: PretrainedConfig, what: str, remedy: str) -> None:
        whole = ({"tokenizer.json"}, {"vocab.json", "merges.txt"})      # without, transformers makes an empty tokenizer
        if not any(all((folder / name).is_file() for name in names) for names in whole):
            raise BadInput(f"{what} has no tokenizer in {folder}: there is no tokenizer.json", remedy)
        self._tokenizer, self._what = CLIPTokenizer.from_pretrained(folder), what
        self._reads = encoder.max_position_embeddings
        if len(self._tokenizer) > encoder.vocab_size:
            raise BadInput(f"the tokenizer in {folder} knows {len(self._tokenizer)} tokens, and {what} "
                           f"{encoder.vocab_size}: they do not belong together", remedy)

    def __call__(self, texts: list[str], device: str) -> dict[str, Tensor]:
        """-> input_ids and attention_mask (N, L). Raises BadInput for a text that the encoder would cut off."""
        tokens = self._tokenizer(texts, padding=True, return_tensors="pt")
        for text, used in zip(texts, tokens["attention_mask"].sum(1).tolist()):
            if used > self._reads:
                raise BadInput(f"'{text}' is {used} tokens long, and {self._what} reads {self._reads}", "Shorten it")
        return {name: tokens[name].to(device) for name in ("input_ids", "attention_mask")}
