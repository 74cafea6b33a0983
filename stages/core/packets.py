"""The packets of a video file: which of them are shown, when, and at which of them decoding can begin.

libav leaves out of what it shows the packets that an edit of an mp4 hides, and what lies before the first key; so does
this. A hidden packet may be the key of shown ones: it counts for where decoding begins, and for nothing else.
"""
from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from .errors import BadInput
from .paths import LARGEST, LONGEST

PART = "Cut out the part that is meant: ffmpeg -ss START -t SECONDS -i IN -c copy OUT.mp4"
BOUNDS = {"max_pixels": str(LARGEST)}                      # of a decoder: a frame may be larger than its header says
INDEXED = {"mov", "matroska"}                              # where a seek lands on the key frame that one meant
STAMPS = {"mpegts", "mpeg"}                                # formats whose clock has 33 bits and begins again after that
LEAP = 2 ** 32                                             # ticks: half of that, as libav mends a clock that jumps back


class Packet(NamedTuple):
    """pts, dts: when it is shown and decoded, in the stream's unit, None where it is not said."""

    pts: int | None
    dts: int | None
    key: bool
    shown: bool


class Listed(NamedTuple):
    """packets: the shown ones from the first key on. begins: that key's pts. frame: the first decoded. end: of the last
    packet of any stream, seconds. stamps: pts of every frame, by decoding, where packets may be half frames. back: the
    decoding times decrease somewhere, which few sound files do. hidden: an edit leaves some packets out. torn: the file
    ends within one more packet."""

    packets: list[Packet]
    begins: int | None
    frame: av.VideoFrame | None
    end: float
    stamps: list | None
    back: bool
    hidden: bool
    torn: bool


def family(container) -> str:
    return container.format.name.split(",")[0]


def demuxed(container, *streams) -> Iterator:
    """Packets of these streams (default: of all), as far as they can be read; then None."""
    try:
        yield from (packet for packet in container.demux(*streams) if packet.size)
    except av.error.MemoryError:                           # the limit of it (apart.py) is no damage
        raise
    except av.error.FFmpegError:
        pass                                               # the file breaks off here: what is missing is counted
    yield None


def decoded(context, packet) -> list:
    """What comes out of the decoder for a packet (None: the rest); nothing where it fails."""
    try:
        return context.decode(packet)
    except av.error.MemoryError:
        raise
    except av.error.FFmpegError:
        return []


def listed(path: Path, container, stream) -> Listed:
    """All packets are read. Decoded is one frame, or all where packets may be half frames: H.264 fields outside mp4."""
    packets, first, end, stamps, halves, hidden, last = [], None, 0.0, [], False, False, None
    codec, plain = stream.codec_context.name, family(container) in INDEXED
    stream.codec_context.options = BOUNDS
    for packet in demuxed(container):
        if packet is not None:
            moment = packet.dts if packet.pts is None else packet.pts
            if moment is not None and packet.time_base:
                end = max(end, float((moment + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index != stream.index:
                continue
            silent = codec == "vp8" and not bytes(packet)[0] & 16          # VP8 has frames that are only referred to
            key = packet.is_keyframe and (not packets or _begins(packet, stream))
            packets.append(Packet(packet.pts, packet.dts, key, not (packet.is_discard or silent)))
            if len(packets) > LONGEST:
                raise BadInput(f"{path} holds more than {LONGEST} frames", PART)
            hidden |= packet.is_discard
            last = packet
        if first is None or halves:
            for frame in decoded(stream.codec_context, packet):
                first = first or frame
                stamps.append(frame.pts)
            halves = first is not None and first.interlaced_frame and codec == "h264" and not plain
    torn = last is not None and _torn(path, last, family(container))
    if torn and family(container) != "yuv4mpegpipe":
        packets.pop()
    begin = next((n for n, packet in enumerate(packets) if packet.key), 0)
    begins = packets[begin].pts if packets else None
    shown = [packet for packet in packets[begin:] if packet.shown]
    return Listed(shown, begins, first, end, stamps if halves else None, _goes_back(packets, family(container)), hidden,
                  torn)


def _torn(path: Path, last, kind: str) -> bool:
    """Whether the file ends within a packet: libav marks it, but fills it up in DV, and leaves it out in y4m."""
    if kind not in ("dv", "yuv4mpegpipe"):
        return last.is_corrupt
    with path.open("rb") as file:
        file.seek(last.pos)
        mark = len(file.readline(1 << 10)) if kind != "dv" else 0
    rest = path.stat().st_size - last.pos - mark - last.size
    return rest < 0 if kind == "dv" else rest > 0


def _goes_back(packets: list[Packet], kind: str) -> bool:
    steps = np.diff(np.array([packet.dts for packet in packets if packet.dts is not None], np.int64))
    return bool((steps < 0).any() or (kind in STAMPS and (steps >= LEAP).any()))


def ticks_of(found: Listed) -> np.ndarray | None:
    """When each frame is shown, in the stream's own unit, sorted; of the decoding times where a packet lacks the other.
    None without either."""
    if found.stamps is not None:
        stamps = found.stamps
    elif any(packet.pts is None for packet in found.packets):
        stamps = [packet.dts for packet in found.packets]
    else:                                                  # frames shown before the key need what is not there
        stamps = [packet.pts for packet in found.packets if found.begins is None or packet.pts >= found.begins]
    return None if None in stamps or not stamps else np.sort(np.array(stamps, np.int64))


def times_of(ticks: np.ndarray | None, count: int, stream) -> np.ndarray:
    """Seconds from the first frame, increasing: of frames at one time each is a tick later than the one before it."""
    if ticks is None:
        return np.arange(count) / float(stream.average_rate or stream.guessed_rate or 25)
    steps = np.arange(len(ticks))
    return (np.maximum.accumulate(ticks - ticks[0] - steps) + steps) * float(stream.time_base)


def keys_of(packets: list[Packet], ticks: np.ndarray) -> tuple[int, ...]:
    numbers = {tick: n for n, tick in enumerate(ticks.tolist())}
    return tuple(sorted({0, *(numbers[packet.pts] for packet in packets if packet.key and packet.pts in numbers)}))


def _begins(packet, stream) -> bool:
    """Whether decoding can truly begin at a packet marked as a key: H.264 marks some that only begin to be right, so
    there it must hold an IDR slice (a NAL unit of type 5; ISO 14496-10, 7.4.1)."""
    if stream.codec_context.name != "h264":
        return True
    extra, data = stream.codec_context.extradata or b"", bytes(packet)
    if extra[:1] != b"\x01":                                    # units between start codes, not after their lengths
        return any(part[0] & 31 == 5 for part in data.split(b"\0\0\1")[1:] if part)
    length, at = (extra[4] & 3) + 1, 0
    while at + length < len(data):
        if data[at + length] & 31 == 5:
            return True
        at += length + int.from_bytes(data[at:at + length], "big")
    return False


# -- how many there should be ---------------------------------------------------------------------------------------
def promised(path: Path, container, stream, found: Listed, times: Sequence[float] = ()) -> int:
    """Frames that the file says it has: by its list of them, or by its duration; no fewer than it does have. times: of
    those that it has, as far as they are known."""
    if family(container) == "mov" and len(stream.index_entries):
        count = sum(not entry.is_discard for entry in stream.index_entries)
    else:
        count = stream.frames
    if family(container) == "avi" and count > len(found.packets):
        count -= _empty(path, stream.index)
    lacking = _lacking(container, times, found.end) if family(container) != "mov" or not stream.frames else 0
    return max(count, len(times) + lacking + found.torn)


def _lacking(container, times: Sequence[float], end: float) -> int:
    """Frames by which a header that only says how long the file is promises more, if by more than the longest frame."""
    if family(container) not in ("matroska", "flv", "asf", "mxf", "mov") or not container.duration or len(times) < 2:
        return 0
    steps = np.diff(times)
    lacking = container.duration / av.time_base - (end or times[-1] + steps[-1])       # MXF may tell no times
    if lacking < 1.5 * steps.max() + 0.01:
        return 0
    return max(1, round(lacking * (len(times) - 1) / times[-1]))


def _empty(path: Path, index: int) -> int:
    """Chunks of no bytes in an AVI, counted in its header: the picture before is shown on. libav passes over them."""
    count, place, end = 0, 0, path.stat().st_size
    names = {b"%02d" % index + kind for kind in (b"dc", b"db")}
    with path.open("rb") as file:
        while place + 8 <= end:
            file.seek(place)
            name, size = struct.unpack("<4sI", file.read(8))
            if b"\0" in name:                              # no name: the list of chunks is damaged
                break
            count += name in names and not size
            place += 12 if name in (b"RIFF", b"LIST") else 8 + size + size % 2
    return count
