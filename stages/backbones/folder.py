"""Is a folder a whole TextToVideoSDPipeline? Looked at before anything is loaded, from names and headers alone.
Imports no torch."""
from __future__ import annotations

import math
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from ..core.configs import refuse_code
from ..core.errors import BadInput, Refused
from ..core.foreign import MOST_CONFIG, read_json
from ..core.headers import PICKLED, Header
from ..core.headers import header as header_of

CLASSES = {"unet": ("UNet3DConditionModel",), "vae": ("AutoencoderKL",), "text_encoder": ("CLIPTextModel",),
           "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast")}
WHAT = {"unet": "the denoiser", "vae": "the autoencoder", "text_encoder": "the text encoder",
        "tokenizer": "the tokenizer"}
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
LIBRARIES = {"diffusers", "transformers", None}        # whose classes an index may name
_AGAIN = "copy or fetch the base again"


@dataclass(frozen=True)
class Weights:
    """The weight files of one part. variant: "fp16" where the half-precision files are taken, else None."""

    files: tuple[Path, ...]
    variant: str | None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """{name of a tensor: its shape}, from the headers."""
        return {name: entry.shape for path in self.files for name, entry in header(path).entries.items()}

    def parameters(self) -> int:
        """How many numbers they hold."""
        return sum(math.prod(shape) for shape in self.shapes().values())


def check(folder: Path, base: str, *, half: bool = False) -> dict[str, Weights]:
    """{part: its weights} of a base's folder. half: take the fp16 variant where there are both.

    Raises BadInput, by name, for a part of another class, without config, with a shard missing, or with a file that is
    cut off or damaged; Refused for one that comes as a pickle only, or asks for code of its own.
    """
    check_index(folder / "model_index.json", base)
    for part in CLASSES:
        needed = "tokenizer_config.json" if part == "tokenizer" else "config.json"
        if not (folder / part / needed).is_file():
            raise BadInput(f"the base '{base}' lacks {part}/{needed}", _AGAIN)
    if not (folder / "scheduler" / "scheduler_config.json").is_file():
        raise BadInput(f"the base '{base}' lacks scheduler/scheduler_config.json", _AGAIN)
    if not (folder / "tokenizer" / "tokenizer.json").is_file():        # without words every prompt would be one
        for name in ("vocab.json", "merges.txt"):
            if not (folder / "tokenizer" / name).is_file():
                raise BadInput(f"the base '{base}' lacks tokenizer/{name}", _AGAIN)
    for part in (*CLASSES, "scheduler"):
        refuse_code(folder / part, f"{part} of the base '{base}'")
    return {part: weights(folder, part, base, half=half) for part in CLASSES if part != "tokenizer"}


def check_index(path: Path, base: str) -> None:
    """Raises BadInput where a model_index.json is damaged or names a part of another class."""
    try:
        index = read_json(path, MOST_CONFIG)
        named = {part: said for part, said in index.items() if isinstance(said, list)}
        kinds = {part: named.get(part, [None, None])[1] for part in CLASSES}
        libraries = {part: said[0] for part, said in named.items()}
        foreign = [part for part, library in libraries.items() if library not in LIBRARIES]
    except (OSError, ValueError, AttributeError, TypeError, IndexError):
        raise BadInput(f"the model_index.json of the base '{base}' is damaged", _AGAIN) from None
    if foreign:
        raise Refused(f"the model_index.json of the base '{base}' asks for code of its own ('{foreign[0]}' from "
                      f"{libraries[foreign[0]]!r})", "use a base of diffusers' and transformers' own classes")
    for part, classes in CLASSES.items():
        if kinds[part] not in classes:
            raise BadInput(f"{WHAT[part]} of the base '{base}' is {'missing' if kinds[part] is None else 'a '}"
                           f"{kinds[part] or ''}", f"use a base with a {classes[0]}")


def weights(folder: Path, part: str, base: str, *, half: bool = False) -> Weights:
    """The files of one part, each looked into. Raises BadInput as `check` does."""
    there = {}
    for variant in (None, "fp16"):
        own = sorted(p for p in (folder / part).iterdir() if is_weights(p.name, part, variant))
        listed = [path for path in own if path.suffix == ".json"]
        whole = [path for path in own if path.name.count("-of-") == 0 and path.suffix != ".json"]
        if listed or whole:                           # where there are both, the libraries go by the index
            there[variant] = _shards(folder / part, listed[0], base) if listed else whole
    if not there:
        raise _without(folder, part, base)
    variant = "fp16" if "fp16" in there and (half or None not in there) else None
    own = there[variant]
    for path in own:
        header(path)
    return Weights(tuple(own), variant)


def is_weights(name: str, part: str, variant: str | None) -> bool:
    """Is a file of this name a safetensors file of a part, whole or a shard, or the index of shards? variant: "fp16" or
    None, the one asked for."""
    v = rf"\.{variant}" if variant else ""
    shard = r"-\d+-of-\d+"
    return re.fullmatch(rf"{STEMS[part]}({v}({shard})?|{shard}{v})\.safetensors"
                        rf"|{STEMS[part]}\.safetensors({v}\.index|\.index{v})\.json", name) is not None


def is_pickle(name: str, part: str) -> bool:
    """Is a file of this name the pickled weights of a part: whole, a shard, or either's fp16 variant?"""
    stem = {"text_encoder": "pytorch_model"}.get(part, STEMS[part])
    endings = "|".join(map(re.escape, PICKLED))
    return re.fullmatch(rf"{stem}(\.fp16)?(-\d+-of-\d+)?(\.fp16)?({endings})", name) is not None


def _without(folder: Path, part: str, base: str) -> BadInput | Refused:
    """The refusal of a part without safetensors."""
    pickled = [path.name for path in sorted((folder / part).iterdir()) if is_pickle(path.name, part)]
    if pickled:
        return Refused(f"{WHAT[part]} of the base '{base}' comes as a pickle alone ({part}/{pickled[0]}), which could "
                        "run code when it is read", f"convert it once, in a process of its own: videomage fetch "
                        f"{shlex.quote(base)} --convert")
    return BadInput(f"{WHAT[part]} of the base '{base}' has no weights: there is no {part}/{STEMS[part]}.safetensors",
                    _AGAIN)


def _shards(folder: Path, index: Path, base: str) -> list[Path]:
    """The files that an index names. Raises BadInput where one is missing or lacks what it should hold."""
    try:
        owner = read_json(index)["weight_map"]
        names = sorted(set(owner.values()))
        if not all(isinstance(name, str) for name in names):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise BadInput(f"{index} is damaged", _AGAIN) from None
    for name in names:
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise BadInput(f"the base '{base}' lacks {folder.name}/{name}, one of the {len(names)} files of "
                           f"{WHAT[folder.name]}", _AGAIN)
        absent = {key for key, file in owner.items() if file == name} - header(path).entries.keys()
        if absent:
            raise BadInput(f"{path} lacks '{min(absent)}', which its index promises", _AGAIN)
    return [folder / name for name in names]


def header(path: Path) -> Header:
    """Of a file of a base. Raises BadInput where it is cut off or damaged."""
    return header_of(path, _AGAIN)
