"""Is a file what it says it is? The header of a safetensors file, looked at before anything in it is believed.

8 bytes (length of the header), the header (JSON: dtype, shape and place of each tensor), the tensors. The places have
to follow each other without a gap and end where the file ends, so that nothing is read twice and nothing hides between
them. Imports no torch.
"""
from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path

from .errors import BadInput, Refused
from .foreign import loads, opened

LIMIT = 2**25                                          # bytes of a header: a U-Net of 1.4 billion numbers has 0.2 MB
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
MOST_AXES = 8
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_AGAIN = "make or fetch it again"


@dataclass(frozen=True)
class Entry:
    """A tensor of a file: its kind of number, its shape, and from where to where its bytes go."""

    dtype: str
    shape: tuple[int, ...]
    span: tuple[int, int]


@dataclass(frozen=True)
class Header:
    """entries: {name: Entry}, in the order of their places. metadata: what is said beside them, text to text."""

    entries: dict[str, Entry] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


def refuse_pickle(path: Path, remedy: str = "") -> None:
    """Raise Refused for a file whose name, or whose content, is that of a pickle."""
    if path.suffix.lower() in PICKLED or _is_pickle(path):
        raise Refused(f"{path} is a pickle, which could run code when it is read", remedy or
                      "ask for it as .safetensors, or convert a base with it: videomage fetch FOLDER --convert")


def _is_pickle(path: Path) -> bool:
    """By its first bytes: torch.save writes a zip, other programs a bare pickle, which begins with the number of its
    protocol. The first eight may be the length of a header, too, with the header behind."""
    with opened(path) as handle:
        start = handle.read(9)
    plausible = len(start) == 9 and struct.unpack("<Q", start[:8])[0] <= LIMIT and start[8:9] == b"{"
    bare = start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and not plausible
    return start[:4] == b"PK\x03\x04" or bare


def header(path: Path, remedy: str = _AGAIN) -> Header:
    """The header of a safetensors file. Raises Refused for a pickle, BadInput for a file that is cut off, damaged, or
    says of itself what cannot be."""
    if not path.is_file():                            # a link whose target is gone, a pipe
        raise BadInput(f"{path} leads nowhere", remedy)
    refuse_pickle(path)
    size = path.stat().st_size
    with opened(path) as handle:
        start = handle.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= size - 8:
            raise BadInput(f"{path} is no safetensors file, or is cut off ({size} bytes)", remedy)
        if length > LIMIT:
            raise BadInput(f"the header of {path} has {length} bytes, and {LIMIT} are read at most", remedy)
        text = handle.read(length)
    try:
        found = loads(text)
        metadata = found.pop("__metadata__", None) or {}
        entries = {name: _entry(name, entry) for name, entry in found.items()}
        if not all(isinstance(word, str) for pair in metadata.items() for word in pair):
            raise ValueError("its metadata is not text")
    except (ValueError, KeyError, TypeError, AttributeError) as damage:
        raise BadInput(f"the header of {path} is damaged ({damage})", remedy) from None
    _check_places(path, entries, size - 8 - length, remedy)
    return Header(dict(sorted(entries.items(), key=lambda pair: pair[1].span)), metadata)


def _entry(name: str, said: dict) -> Entry:
    dtype, shape, places = said["dtype"], said["shape"], said["data_offsets"]
    if dtype not in BYTES:
        raise ValueError(f"'{name}' is of the kind {dtype!r}")
    if not (isinstance(shape, list) and len(shape) <= MOST_AXES and all(type(n) is int and n >= 0 for n in shape)):
        raise ValueError(f"'{name}' has no shape")
    if not (isinstance(places, list) and len(places) == 2 and all(type(n) is int and n >= 0 for n in places)):
        raise ValueError(f"'{name}' has no place")
    if places[1] - places[0] != math.prod(shape) * BYTES[dtype]:
        raise ValueError(f"'{name}' does not fit into its place")
    return Entry(dtype, tuple(shape), (places[0], places[1]))


def _check_places(path: Path, entries: dict[str, Entry], room: int, remedy: str) -> None:
    """One after the other, from the header's end to the file's."""
    at = 0
    for name, entry in sorted(entries.items(), key=lambda pair: pair[1].span):
        if entry.span[0] != at:
            raise BadInput(f"the header of {path} is damaged ('{name}' does not begin where the tensor before it ends)",
                           remedy)
        at = entry.span[1]
    if at != room:
        raise BadInput(f"{path} is {'cut off' if room < at else 'too long'}: {room} bytes of tensors, where its header "
                       f"promises {at}", remedy)
