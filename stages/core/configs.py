"""The JSON files beside a model's weights: libraries read them, and some keys would make them fetch or run what is
elsewhere. Imports no torch."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from .errors import BadInput, Refused
from .foreign import MOST_CONFIG, read_json

CODE = ("auto_map", "custom_pipelines", "custom_pipeline", "trust_remote_code")
PACKED = ("quantization_config",)                  # weights that another library has to unpack
MOST_TEXT = 2**26                                  # bytes of a text beside weights: CLIP's words are 2 MB, others' 33
ATTENTION = ("attn_implementation", "_attn_implementation")


def refuse_code(folder: Path, what: str, remedy: str = "copy or fetch it again") -> None:
    """Raise Refused where a config in the folder asks for code or weights that do not come with the libraries: Python
    of its own, a kernel of the hub, an adapter on another model; BadInput, with the remedy, where one is damaged. what:
    how the error calls the model. Of the other texts there, which the libraries read whole, the size is looked at."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix in (".json", ".txt") and path.is_file() and path.stat().st_size > MOST_TEXT:
            raise BadInput(f"{what} cannot be loaded: {path} has more than the {MOST_TEXT} bytes that are read at most",
                           remedy)
    for path in sorted(folder.glob("*config*.json")) if folder.is_dir() else ():
        try:
            said = read_json(path, MOST_CONFIG)
        except (OSError, ValueError) as damage:
            raise BadInput(f"{what} cannot be loaded: {path} is damaged ({damage})", remedy) from None
        if key := next(_asked(said), None):
            raise Refused(f"{what} asks for code or weights that do not come with it ({path.name}: {key})",
                          "do not trust this folder; use a model of diffusers' and transformers' own classes")
    if (folder / "adapter_config.json").is_file():
        raise Refused(f"{what} is an adapter on another model (adapter_config.json)", "take that file away, or name a "
                      "whole model")


def _asked(said: object) -> Iterator[str]:
    """The keys in a config, and in those inside it, that ask for what is elsewhere."""
    level = [said]
    while level:
        one = level.pop()
        if isinstance(one, Mapping):
            yield from (key for key in (*CODE, *PACKED) if one.get(key))
            yield from (key for key in ATTENTION if "/" in str(one.get(key)))
        level += [*one.values()] if isinstance(one, Mapping) else one if isinstance(one, list) else []
