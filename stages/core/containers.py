"""What a video file says of itself: its frames' times, size, turn, colours. Every packet is read, one frame decoded.

One mechanism, the demuxer of libav (PyAV), with the file protocol only and a closed list of formats: a playlist that
points at other files, or a text with a video's name, is refused before anything in it is followed. PyAV prints nothing
of what libav has to say unless it is asked to.
"""
from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np

from .errors import BadInput
from .kinds import ANIMATIONS, PICTURES

REMEDY = "Make a plain copy of it first: ffmpeg -i IN -c:v libx264 -crf 12 OUT.mp4"
INDEXED = {"mov", "matroska"}                              # where a seek lands on the key frame that one meant
LARGEST = 2 ** 27                                          # pixels of a frame: as many as 16K video has
HD = 720                                                   # lines: untagged video from there is BT.709, else BT.601
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,asf,flv,ogg,mxf,nut,ivf,dv,yuv4mpegpipe"
MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}            # of H.273, that can be converted; 6 is 5
UNSAID = (0, 2)                                            # H.273: RGB (of YUV an error), unspecified


@dataclass(frozen=True)
class Colours:
    """pixels: libav's name of the layout. matrix, transfer, primaries: H.273's numbers, the first tagged or guessed.
    full: all codes are used."""

    pixels: str
    bits: int
    alpha: bool
    matrix: int
    tagged: bool
    full: bool
    transfer: int
    primaries: int


@dataclass(frozen=True)
class Film:
    """times: float64 (F,), seconds from the first frame. ticks: the same as the file counts them, or None where frames
    can only be told apart by counting. keys: numbers of the frames that decoding can begin at. size: (H, W) as stored.
    turn: (a, b, c, d): column x and row y are shown at ax + cy and bx + dy, but for scale and place. pixel: width by
    height of one."""

    path: Path
    stream: int
    format: str
    codec: str
    times: np.ndarray
    ticks: np.ndarray | None
    keys: tuple[int, ...]
    size: tuple[int, int]
    turn: tuple[int, int, int, int]
    pixel: Fraction
    interlaced: bool
    colours: Colours


def look(path: Path | str) -> Film:
    """Raises BadInput where there is no video, or less of it than the file declares. The last few files are remembered:
    to read one in parts costs its packets once."""
    path = Path(path)
    head_of(path)
    about = path.stat()
    return _look(path, (about.st_ino, about.st_size, about.st_mtime_ns))


@lru_cache(maxsize=8)
def _look(path: Path, version: tuple[int, ...]) -> Film:
    """version: what changes when the file does; only to tell it from what is remembered."""
    with opened(path) as container:
        stream = _moving(path, container)
        declared = _declared(stream, container)
        packets, frame, end, shown = _packets(container, stream)
        if not packets or frame is None:
            raise BadInput(f"{path} is damaged: decoded 0 of {max(declared, len(packets), 1)} frames", REMEDY)
        ticks = _ticks(packets, shown)
        times = _times(ticks, len(packets), stream)
        matrix = frame.side_data.get("DISPLAYMATRIX")
        turn = np.frombuffer(bytes(matrix), "<i4")[[0, 1, 3, 4]].tolist() if matrix else (1, 0, 0, 1)
        family = _family(container)
        exact = ticks is not None and family in INDEXED and bool((np.diff(ticks) > 0).all())
        keys = _keys(packets, ticks) if exact else (0,)
        film = Film(path, stream.index, family, stream.codec_context.name, times, ticks if exact else None, keys,
                    (frame.height, frame.width), tuple(turn), Fraction(stream.sample_aspect_ratio or 1),
                    bool(frame.interlaced_frame), _colours(path, stream, frame))
        promised = max(declared, len(times) + _missing(container, stream, times, end))
    if len(packets) < promised:
        raise damaged(film, promised)
    return film


@contextmanager
def opened(path: Path) -> Iterator[av.container.InputContainer]:
    """The file, open for reading; what libav has against it becomes BadInput."""
    head = head_of(path)
    if head.removeprefix(b"\xef\xbb\xbf").lower().startswith((b"#extm3u", b"ffconcat", b"[playlist]")):
        raise BadInput(f"{path} is a playlist that points at other files", "Give the video file itself")
    if head[4:11] in (b"ftyphei", b"ftyphev", b"ftypmif", b"ftypmsf"):
        raise BadInput(f"{path} is a HEIC picture, which is not read here",
                       f"Save it as PNG or JPEG first: {to_png(path)}")
    try:
        with av.open(f"file:{path.absolute()}", metadata_errors="ignore",
                     options={"protocol_whitelist": "file", "format_whitelist": FORMATS}) as container:
            yield container
    except av.error.FFmpegError as damage:
        what = "neither a picture nor a video" if path.suffix.lower() in PICTURES | ANIMATIONS else "no video"
        why = "its format is unknown or not taken" if damage.errno == errno.EINVAL else "its header makes no sense"
        raise BadInput(f"{path} is {what} that can be read ({why})", REMEDY) from damage


def head_of(path: Path) -> bytes:
    """The first 32 bytes. Raises BadInput where there are none, or none to be had."""
    if not path.is_file():
        raise BadInput(f"{path} does not exist", "Mind the folder that you are in")
    try:
        with path.open("rb") as file:
            head = file.read(32)
    except OSError as locked:
        raise BadInput(f"{path} cannot be opened ({locked.strerror})", "Mind who may read it") from locked
    if not head:
        raise BadInput(f"{path} is empty (0 bytes)", "Copy it again")
    return head


def to_png(path: Path) -> str:
    return f"magick {path.name} {path.stem}.png"


def damaged(film: Film, promised: int | None = None) -> BadInput:
    """The error that says how many frames can be decoded, of how many (default: as many as there are packets)."""
    from .decode import sound_frames

    there = min(sound_frames(film), len(film.times))
    return BadInput(f"{film.path} is damaged: decoded {there} of {promised or len(film.times)} frames", REMEDY)


def _family(container) -> str:
    return container.format.name.split(",")[0]


def _moving(path: Path, container):
    """The first stream of moving pictures; the cover of a song is none."""
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise BadInput(f"{path} holds no video{', only sound' * bool(container.streams.audio)}", "Give a video file")
    context = streams[0].codec_context
    if context is None:
        raise BadInput(f"{path} is coded in a way that cannot be decoded here", REMEDY)
    if context.width * context.height > LARGEST:
        raise BadInput(f"{path} declares frames of {context.width} x {context.height} pixels", "Make it smaller first")
    return streams[0]


def _declared(stream, container) -> int:
    """Packets that the header promises; 0: it says nothing. mp4 lists them, less those that an edit cuts away."""
    if _family(container) == "mov" and len(stream.index_entries):
        return sum(not entry.is_discard for entry in stream.index_entries)
    return stream.frames


def _packets(container, stream) -> tuple[list, object, float, list | None]:
    """-> (pts, dts, is a key) of each packet that shows a frame; the first frame; where the last packet of any stream
    ends, in seconds. And the pts of all frames, decoded, where packets may be half frames: H.264 fields outside mp4."""
    packets, first, end, shown, halves = [], None, 0.0, [], False
    codec, plain = stream.codec_context.name, _family(container) in INDEXED
    for packet in _demuxed(container):
        if packet is not None and packet.size:
            moment = packet.dts if packet.pts is None else packet.pts
            if moment is not None and packet.time_base:
                end = max(end, float((moment + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index != stream.index:
                continue
            hidden = codec == "vp8" and not bytes(packet)[0] & 16          # VP8 has frames that are only referred to
            if not packet.is_discard and not hidden:
                key = packet.is_keyframe and (not packets or _begins(packet, stream))
                packets.append((packet.pts, packet.dts, key))
        if (packet is None or packet.size) and (first is None or halves):
            for frame in decoded(stream.codec_context, packet):
                first = first or frame
                shown.append(frame.pts)
            halves = first is not None and first.interlaced_frame and codec == "h264" and not plain
    begin = next((n for n, packet in enumerate(packets) if packet[2]), 0)  # what comes before a key cannot be decoded
    return packets[begin:], first, end, shown if halves else None


def _demuxed(container) -> Iterator:
    """Packets of all streams, as far as they can be read; then None."""
    with suppress(av.error.FFmpegError):                        # the file breaks off here: what is missing is counted
        yield from container.demux()
    yield None


def decoded(context, packet) -> list:
    """What comes out of the decoder for a packet (None: the rest); nothing where it fails."""
    try:
        return context.decode(packet)
    except av.error.FFmpegError:
        return []


def _ticks(packets: list, shown: list | None) -> np.ndarray | None:
    """When each frame is shown, in the stream's own unit, sorted; of the decoding times where a packet lacks the other.
    None without either."""
    if shown is not None:
        stamps = shown
    elif any(pts is None for pts, _, _ in packets):
        stamps = [dts for _, dts, _ in packets]
    else:
        first = next((pts for pts, _, key in packets if key), packets[0][0])     # earlier ones need what is not there
        stamps = [pts for pts, _, _ in packets if pts >= first]
    return None if None in stamps else np.sort(np.array(stamps, np.int64))


def _times(ticks: np.ndarray | None, count: int, stream) -> np.ndarray:
    if ticks is None:
        return np.arange(count) / float(stream.average_rate or stream.guessed_rate or 25)
    steps = np.maximum(np.diff(ticks), 1)                       # of two frames at one time the second is a tick late
    return np.concatenate([[0], np.cumsum(steps)]) * float(stream.time_base)


def _keys(packets: list, ticks: np.ndarray) -> tuple[int, ...]:
    numbers = {tick: n for n, tick in enumerate(ticks.tolist())}
    return tuple(sorted({0, *(numbers[pts] for pts, _, key in packets if key and pts in numbers)}))


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


def _missing(container, stream, times: np.ndarray, end: float) -> int:
    """Frames by which a header that only says how long the file is promises more, if by more than the longest frame."""
    if _family(container) not in ("matroska", "flv", "asf") or not container.duration or len(times) < 2:
        return 0
    lacking = container.duration / av.time_base - end
    if lacking < 1.5 * np.diff(times).max() + 0.01:
        return 0
    return max(1, round(lacking * (len(times) - 1) / times[-1]))


def _colours(path: Path, stream, frame) -> Colours:
    """Untagged video is taken as players do: BT.601 below 720 lines, BT.709 from there; limited range."""
    parts, context, matrix = frame.format.components, stream.codec_context, int(frame.colorspace)
    full = int(frame.color_range) == 2 or frame.format.name.startswith("yuvj")
    palette = frame.format.has_palette
    alpha = palette or any(part.is_alpha for part in parts) or stream.metadata.get("alpha_mode") == "1"
    if frame.format.is_rgb or palette or sum(not part.is_alpha for part in parts) < 3:
        matrix = 0
    elif matrix in UNSAID:
        matrix = 1 if frame.height >= HD else 5
    elif matrix not in MATRICES:
        raise BadInput(f"{path} stores its colours in a way that is not converted (matrix {matrix} of H.273)", REMEDY)
    return Colours(frame.format.name, max(part.bits for part in parts), alpha, MATRICES.get(matrix, 0),
                   int(frame.colorspace) in MATRICES, full, int(context.color_trc),
                   int(context.color_primaries))
