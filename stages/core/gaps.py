"""Where a video file breaks off, or holds bytes that are none of its own, by the skeleton of its container.

Matroska, Ogg, program and transport streams do not say how many frames they have, and libav goes on behind a hole as if
nothing had been there. So the chain of their elements, pages or packets is followed from end to end; what they hold is
not looked at. Ogg marks the last page of a stream, and ASF says how many bytes it has; the end of a program or a
transport stream is where it ends.
"""
from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

# EBML's numbers (RFC 8794, 9559) of what may stand in a file, a segment or a cluster; INTO: what is gone into
SEGMENT, CLUSTER, TRACKS = 0x18538067, 0x1F43B675, 0x1654AE6B
INTO, BLOCKS = {SEGMENT, CLUSTER}, {0xA3, 0xA0}
KNOWN = {0x1A45DFA3, SEGMENT, CLUSTER, TRACKS, 0x114D9B74, 0x1549A966, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367,
         0xEC, 0xBF, 0xE7, 0xA3, 0xA0, 0xAB, 0xA7, 0xAF, 0x5854}
MOST = 1 << 12                             # bytes of an element that are looked at
SYNC, LENGTHS = 0x47, (188, 192, 204)      # of a transport stream's packets: plain, a time before each, parity behind
AT_ONCE = 1 << 16                          # packets that are looked at together
PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")       # of an ASF file, among the first objects


def broken_at(path: Path, family: str) -> int | None:
    """The place of the first byte that is not as it should be, in a file of this format; None: there is none, or this
    format is not looked through."""
    look = {"matroska": _matroska, "mpegts": _transport, "mpeg": _program, "ogg": _ogg, "asf": _asf}.get(family)
    return look(path) if look else None


def _matroska(path: Path) -> int | None:
    end, place, tracks = path.stat().st_size, 0, set()
    with path.open("rb") as file:
        while place < end:
            file.seek(place)
            name, size, length = _element(file.read(12))
            body = place + length
            if name not in KNOWN or (name not in INTO and (size is None or body + size > end)):
                return place
            if name == TRACKS:
                tracks |= {int.from_bytes(number, "big") for kind, entry in _children(file, body, size) if kind == 0xAE
                           for number in [_first(entry, 0xD7)]}
            if name in BLOCKS and not _belongs(file, name, body, size, tracks):
                return place
            if name == SEGMENT and size is not None:
                end = min(end, body + size)                # what is put behind it counts; what is missing is found
            place = body if name in INTO else body + size
    return None


def _element(head: bytes) -> tuple[int, int | None, int]:
    """(its number, 0 for what is none; the bytes in it, None where that is not said; the bytes before them)."""
    length = 9 - head[0].bit_length() if head else 9
    wide = 9 - head[length].bit_length() if len(head) > length else 9
    if length > 4 or wide > 8 or len(head) < length + wide:
        return 0, None, 0
    size = int.from_bytes(head[length:length + wide], "big") & (1 << 7 * wide) - 1
    return int.from_bytes(head[:length], "big"), None if size == (1 << 7 * wide) - 1 else size, length + wide


def _children(file: BinaryIO, place: int, size: int) -> Iterator[tuple[int, bytes]]:
    """(number, the first bytes of what is in it) of the elements in one."""
    end = place + size
    while place < end:
        file.seek(place)
        name, inside, length = _element(file.read(12))
        if not name or inside is None:
            return
        file.seek(place + length)
        yield name, file.read(min(inside, MOST))
        place += length + inside


def _first(entry: bytes, wanted: int) -> bytes:
    """What is in the first child of this number."""
    while entry:
        name, size, length = _element(entry[:12])
        if not name or size is None or name == wanted:
            return entry[length:length + (size or 0)]
        entry = entry[length + size:]
    return b""


def _belongs(file: BinaryIO, name: int, body: int, size: int, tracks: set[int]) -> bool:
    """Whether a block is of a track that there is; libav passes over others without a word."""
    file.seek(body)
    data = file.read(min(size, 16)) if name == 0xA3 else next(
        (data for kind, data in _children(file, body, size) if kind == 0xA1), b"")
    wide = 9 - data[0].bit_length() if data else 9
    return wide <= 8 and int.from_bytes(data[:wide], "big") & (1 << 7 * wide) - 1 in tracks


def _transport(path: Path) -> int | None:
    size = path.stat().st_size
    if size < 3 * max(LENGTHS):
        return None
    data = np.memmap(path, np.uint8, "r")
    first, length = next(((first, length) for length in LENGTHS for first in range(length)
                          if (data[first:first + 3 * length:length] == SYNC).all()), (0, 0))
    if not length:
        return 0
    for begin in range(first, size, AT_ONCE * length):
        bad = np.flatnonzero(data[begin:begin + AT_ONCE * length:length] != SYNC)
        if len(bad):
            return begin + int(bad[0]) * length
    rest = (size - first) % length
    return size - rest if 0 < rest < 188 else None


def _program(path: Path) -> int | None:
    """Of packs and packets (ISO 13818-1, 2.5.3) after their lengths; behind what is neither it is not gone on."""
    end, place = path.stat().st_size, 0
    with path.open("rb") as file:
        while place < end:
            file.seek(place)
            head = file.read(14).ljust(14, b"\0")
            if head[:3] != b"\0\0\1" or head[3] < 0xB9:
                return None
            length = 4 if head[3] == 0xB9 else 6 + int.from_bytes(head[4:6], "big")
            if head[3] == 0xBA:
                length = 14 + (head[13] & 7) if head[4] >> 6 == 1 else 12
            if place + length > end:
                return place
            place += length
    return None


def _ogg(path: Path) -> int | None:
    """Of pages (RFC 3533, 6); of every stream the last one is marked as such."""
    end, place, going = path.stat().st_size, 0, {}
    with path.open("rb") as file:
        while place < end:
            file.seek(place)
            head = file.read(27)
            table = file.read(head[26]) if len(head) == 27 and head[:4] == b"OggS" else None
            if table is None or len(table) < head[26] or place + 27 + len(table) + sum(table) > end:
                return place
            going[head[14:18]] = not head[5] & 4
            place += 27 + len(table) + sum(table)
    return end if any(going.values()) else None


def _asf(path: Path) -> int | None:
    end = path.stat().st_size
    with path.open("rb") as file:
        said = file.read(1 << 16).partition(PROPERTIES)[2][24:76].ljust(52, b"\0")      # behind its length and a number
    size, flags = struct.unpack("<Q40xI", said)
    return end if end < size and not flags & 1 else None                     # 1: it was sent while it was made


def missing(times: np.ndarray) -> int:
    """Frames that a hole took, by the gaps in the times of the others: 1 at least."""
    steps = np.diff(times)
    usual = float(np.median(steps)) if len(steps) else 0.0
    return max(1, int(sum(round(step / usual) - 1 for step in steps if step > 1.5 * usual)) if usual else 1)

