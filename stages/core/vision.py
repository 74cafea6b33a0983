"""Pretrained vision networks from local folders, and the pixels they expect: what segmenters and metrics share.

A network is read in transformers' format, safetensors only, float32, frozen. One whose weights are not all in the file
is refused: a layer left at random would still give numbers; so is one whose files name what lies elsewhere, which
transformers would fetch. The picture's preparation is read from the file beside the weights and done here with Pillow:
transformers' own processors want torchvision for some models.
"""
from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPTokenizer, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from . import foreign
from .configs import refuse_code
from .errors import BadInput
from .headers import PICKLED, header, refuse_pickle
from .tensors import not_finite

CHUNK = 16                                                          # pictures through a network at a time
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))          # mean, deviation
LARGEST = 1 << 14                                                   # side of a picture that a network is said to see
ANEW = "Fetch the model anew, or name another"
# what transformers and safetensors raise over files that are damaged or of another version
DAMAGE = (OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError,
          ImportError, SafetensorError, StrictDataclassError)
ELSEWHERE = ("backbone", "use_pretrained_backbone", "use_timm_backbone", "quantization_config")


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
    def of(cls, folder: Path, image_size: int, *, whole: bool = False, remedy: str = ANEW,
           colours: tuple[tuple[float, ...], tuple[float, ...]] = (CLIP_MEAN, CLIP_STD)) -> Preparation:
        """As preprocessor_config.json in the folder says. What it leaves open: bicubic, colours (mean and deviation),
        and CLIP's rule of a short side of image_size and its middle (a longest side without a crop means the whole
        frame); whole: the whole frame at image_size squared. Raises BadInput for what no picture can be prepared by;
        remedy: what to do then."""
        path, said = _said(folder, remedy)

        def told(key: str, otherwise: object) -> object:
            return otherwise if said.get(key) is None else said[key]

        try:
            size = _size(said.get("size"), (image_size, image_size) if whole else image_size)
            longest = said["size"].get("longest_edge") if isinstance(said.get("size"), Mapping) else None
            cropped = said.get("do_center_crop", isinstance(size, int) and longest is None)
            crop = _size(said.get("crop_size"), (image_size, image_size)) if cropped else None
            plain = said.get("do_normalize") is False
            return cls(size, (crop, crop) if isinstance(crop, int) else crop,
                       (0.0,) * 3 if plain else _colours(told("image_mean", colours[0]), -math.inf),
                       (1.0,) * 3 if plain else _colours(told("image_std", colours[1]), 0.0),
                       int(Image.Resampling(told("resample", cls.resample))),
                       None if longest is None else _side(longest))
        except (ValueError, OverflowError) as error:
            raise BadInput(f"no picture can be prepared as {path} says: {error}", remedy) from error

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


def read_json(path: Path, what: str, remedy: str) -> dict[str, object]:
    """The object in a JSON file. what, remedy: how errors call the whole and what to do. Raises BadInput for a file
    that is damaged or holds something else."""
    try:
        said = foreign.read_json(path, foreign.MOST_CONFIG)
    except (OSError, ValueError) as error:
        raise BadInput(f"{what} cannot be loaded: {path} is damaged ({error})", remedy) from error
    if not isinstance(said, dict):
        raise BadInput(f"{what} cannot be loaded: {path} holds no JSON object", remedy)
    return said


def _said(folder: Path, remedy: str) -> tuple[Path, Mapping]:
    """What the folder says of the preparation, and where: a file of an image processor, or of a whole processor."""
    what = f"the preparation of pictures in {folder}"
    if (path := folder / "preprocessor_config.json").is_file():
        return path, read_json(path, what, remedy)
    if not (path := folder / "processor_config.json").is_file():
        return path.with_name("config.json"), {}
    said = read_json(path, what, remedy).get("image_processor", {})
    if not isinstance(said, Mapping):
        raise BadInput(f"{what} cannot be loaded: image_processor in {path} holds no JSON object", remedy)
    return path, said


def _size(said: object, otherwise: tuple[int, int] | int) -> tuple[int, int] | int:
    """A size as the files of several years write it: {"height", "width"}, {"shortest_edge"}, or a number squared.
    Raises ValueError for what is none."""
    if said is None:
        return (_side(otherwise[0]), _side(otherwise[1])) if isinstance(otherwise, tuple) else _side(otherwise)
    if not isinstance(said, Mapping):
        return _side(said), _side(said)
    return _side(said["shortest_edge"]) if "shortest_edge" in said else (_side(said.get("height")),
                                                                       _side(said.get("width")))


def _side(said: object) -> int:
    if type(said) is not int or not 0 < said <= LARGEST:
        raise ValueError(f"a side of {said!r} pixels is none of 1 to {LARGEST}")
    return said


def _colours(said: object, above: float) -> tuple[float, ...]:
    """A number for each of red, green and blue. Raises ValueError for others, and where one is not above `above`."""
    if not isinstance(said, (list, tuple)) or len(said) != 3 or not all(
            type(one) in (int, float) and math.isfinite(one) and one > above for one in said):
        raise ValueError(f"{said!r} is not {'a deviation above 0' if above == 0 else 'a mean'} of three colours")
    return tuple(said)


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


class _Loading:
    """A scope in which what transformers raises over the files of a folder becomes BadInput."""

    def __init__(self, what: str, folder: Path, remedy: str) -> None:
        self.what, self.folder, self.remedy = what, folder, remedy

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is Exception or (kind and issubclass(kind, DAMAGE)):        # `tokenizers` raises Exception itself
            raise BadInput(f"{self.what} in {self.folder} cannot be loaded ({kind.__name__}: "
                           f"{' '.join(str(error).split())})", self.remedy) from error


def read_model(kinds: Mapping[str, Callable], folder: Path, what: str, remedy: str, device: str = "cpu",
               twins: Mapping[str, str] | None = None, attention: str | Mapping[str, str] = "sdpa") -> nn.Module:
    """The network in a folder, frozen, float32. kinds: {model_type of its config.json: its from_pretrained}. what,
    remedy: how errors call it and what to do. twins: {tensor that files may leave out: the one it equals}. attention:
    as transformers names its implementations, whatever the folder says: it may name code of the hub. Raises BadInput
    where it is missing, of another kind, damaged, lacks weights, or names weights that are elsewhere."""
    if not (folder / "config.json").is_file():
        raise BadInput(f"{what} is not in {folder}: there is no config.json", remedy)
    said = read_json(folder / "config.json", f"{what} in {folder}", remedy)
    kind = said.get("model_type")
    if not isinstance(kind, str) or kind not in kinds:
        raise BadInput(f"{what} in {folder} is of the kind '{kind}', and has to be {' or '.join(kinds)}", remedy)
    if names := sorted(set(_elsewhere(said, folder, what, remedy))):
        raise BadInput(f"{what} in {folder} is not whole: its files name what is elsewhere or packed otherwise "
                       f"({', '.join(names)})", remedy)
    _look(folder, what, remedy)
    drawn, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()                       # what it would warn of is refused below
    try:
        with _Loading(what, folder, remedy):
            model, told = kinds[kind](folder, use_safetensors=True, local_files_only=True, dtype=torch.float32,
                                      output_loading_info=True, attn_implementation=attention)
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
    if broken := not_finite(dict(model.named_parameters())):
        raise BadInput(f"{what} in {folder}: the weight '{broken}' holds what is no number (NaN or infinite)", remedy)
    return model.to(device).eval().requires_grad_(False)


def _look(folder: Path, what: str, remedy: str) -> None:
    """Before anything is loaded: no code is asked for, and the weights are what their headers say."""
    refuse_code(folder, f"{what} in {folder}", remedy)
    files = sorted(folder.glob("*.safetensors"))
    for path in files or (path for path in sorted(folder.iterdir()) if path.suffix.lower() in PICKLED):
        refuse_pickle(path, remedy)
    for path in files:
        header(path, remedy)


def _elsewhere(said: Mapping, folder: Path, what: str, remedy: str) -> Iterator[str]:
    """What the files beside a config name that is not safetensors in this folder."""
    if (folder / "adapter_config.json").is_file():
        yield "adapter_config.json"
    index = folder / "model.safetensors.index.json"
    if index.is_file() and not (folder / "model.safetensors").is_file():
        shards = read_json(index, f"{what} in {folder}", remedy).get("weight_map")
        if not isinstance(shards, Mapping) or not all(
                isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors")
                for name in shards.values()):
            yield index.name
    level = [said]
    while level:                                        # the config, and those inside it
        one = level.pop()
        yield from (key for key in ELSEWHERE if one.get(key))
        if str(one.get("model_type")).startswith("timm"):
            yield str(one["model_type"])
        level += [value for value in one.values() if isinstance(value, Mapping)]


def read_tokenizer(kind: type[PreTrainedTokenizerBase], files: Mapping[str, tuple[str, ...]], folder: Path, what: str,
                   remedy: str) -> PreTrainedTokenizerBase:
    """The tokenizer beside a network. files: {one that tells it whole: others it needs beside}. Raises BadInput where
    it is missing or damaged."""
    # without, transformers makes an empty one
    if not any(all((folder / name).is_file() for name in (first, *more)) for first, more in files.items()):
        raise BadInput(f"{what} has no tokenizer in {folder}: there is no tokenizer.json", remedy)
    with _Loading(f"the tokenizer of {what}", folder, remedy):
        return kind.from_pretrained(folder, local_files_only=True)


class Words:
    """The tokenizer beside a network of the CLIP family. encoder: the config of its text encoder."""

    def __init__(self, folder: Path, encoder: PretrainedConfig, what: str, remedy: str) -> None:
        files = {"tokenizer.json": (), "vocab.json": ("merges.txt",)}
        self._tokenizer, self._what = read_tokenizer(CLIPTokenizer, files, folder, what, remedy), what
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
