"""What a video file says of itself: its frames' times, size, turn, colours. Every packet is read (packets.py), one
frame decoded.

One mechanism, the demuxer of libav (PyAV), with the file protocol only and a closed list of formats: a playlist that
points at other files, or a text with a video's name, is refused before anything in it is followed. PyAV prints nothing
of what libav has to say unless it is asked to.
"""
from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np

from .errors import BadInput
from .gaps import broken_at, missing
from .kinds import ANIMATIONS, PICTURES
from .packets import BOUNDS, INDEXED, demuxed, family, keys_of, listed, promised, ticks_of, times_of
from .paths import LARGEST, head_of, heic, is_heic

REMEDY = "Make a plain copy of it first: ffmpeg -i IN -c:v libx264 -crf 12 OUT.mp4"
LOST = "Give a video file; if this should be one, copy it again"
AGAIN = ("Copy it again; --allow-partial takes the frames before the damage; to keep all that can be decoded: ffmpeg "
         "-i IN -c:v libx264 -crf 12 OUT.mp4")
HD = 720                                                   # lines: untagged video from there is BT.709, else BT.601
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,asf,flv,ogg,mxf,ivf,dv,yuv4mpegpipe"
MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}            # of H.273, that can be converted; 6 is 5
UNSAID = ((0, 2), (0,))                                    # H.273: RGB (of YUV an error), unspecified; libav's range


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
    height of one. whole: the file has no other video stream, and all that is in this one is shown. of: frames that the
    file says it has, more than there are times where only what comes before damage was asked for."""

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
    whole: bool
    colours: Colours
    of: int = 0


def look(path: Path | str, *, partial: bool = False) -> Film:
    """Raises BadInput where there is no video, or less of it than the file declares. partial: then, and where frames
    within are damaged, what comes before is taken, as a film that has no more; none of it is BadInput still. The last
    few files are remembered: to read one in parts costs its packets once."""
    path = Path(path)
    head_of(path)
    about = path.stat()
    return _look(path, (about.st_ino, about.st_size, about.st_mtime_ns), partial)


@lru_cache(maxsize=8)
def _look(path: Path, version: tuple[int, ...], partial: bool) -> Film:
    """version: what changes when the file does; only to tell it from what is remembered."""
    from .decode import beginning, survey

    with opened(path) as container:
        stream, only = _moving(path, container)
        said = _tags(stream.codec_context)                 # the container's; decoding writes the stream's own over them
        found = listed(path, container, stream)
        if not found.packets or found.frame is None:
            count = max(promised(path, container, stream, found), len(found.packets), 1)
            sized = stream.codec_context.width * stream.codec_context.height
            why = "" if sized else f", whose size is not said, or is more than {LARGEST} pixels"
            raise BadInput(f"{path} is damaged: decoded 0 of {count} frames{why}", LOST)
        frame, ticks, kind = found.frame, ticks_of(found), family(container)
        times = times_of(ticks, len(found.packets), stream)
        matrix = frame.side_data.get("DISPLAYMATRIX")
        turn = np.frombuffer(bytes(matrix), "<i4")[[0, 1, 3, 4]].tolist() if matrix else (1, 0, 0, 1)
        exact = ticks is not None and kind in INDEXED and bool((np.diff(ticks) > 0).all())
        keys = keys_of(found.packets, ticks) if exact else (0,)
        film = Film(path, stream.index, kind, stream.codec_context.name, times, ticks if exact else None, keys,
                    (frame.height, frame.width), tuple(turn), Fraction(stream.sample_aspect_ratio or 1),
                    bool(frame.interlaced_frame), only and not found.hidden, _colours(path, stream, frame, said))
        count = promised(path, container, stream, found, times)
    hole = broken_at(path, kind)
    if hole is not None:
        count = max(count, len(times) + missing(times))
    if found.back and (back := survey(film)[1]) is not None:
        raise _jumped(film, back)
    film = replace(film, of=max(count, len(times)))
    if partial:
        cut = hole if hole is not None or film.of == len(times) else path.stat().st_size
        there = beginning(film, ticks if found.stamps is None else None, cut)
        if not there:
            raise BadInput(f"{path} is damaged from its first frame on: decoded 0 of {film.of} frames", LOST)
        return film if there == film.of else replace(
            film, times=times[:there], ticks=ticks[:there] if exact else None, whole=False,
            keys=tuple(key for key in keys if key < there))
    if len(times) < count:
        raise damaged(film)
    return film


@contextmanager
def opened(path: Path) -> Iterator[av.container.InputContainer]:
    """The file, open for reading; what libav has against it becomes BadInput."""
    head = head_of(path)
    if head.removeprefix(b"\xef\xbb\xbf").lower().startswith((b"#extm3u", b"ffconcat", b"[playlist]")):
        raise BadInput(f"{path} is a playlist that points at other files", "Give the video file itself")
    if is_heic(head):
        raise heic(path)
    try:
        with av.open(f"file:{path.absolute()}", metadata_errors="ignore",
                     options={
                "protocol_whitelist": "file", "format_whitelist": FORMATS, **BOUNDS}) as container:
            yield container
    except av.error.MemoryError:                           # the limit of memory is no damage
        raise
    except av.error.FFmpegError as damage:
        what = "neither a picture nor a video" if path.suffix.lower() in PICTURES | ANIMATIONS else "no video"
        foreign = damage.errno == errno.EINVAL
        why = "its format is unknown or not taken" if foreign else "its header makes no sense"
        raise BadInput(f"{path} is {what} that can be read ({why})", REMEDY if foreign else LOST) from damage


def damaged(film: Film) -> BadInput:
    """The error that says how many frames can be decoded, of how many."""
    from .decode import survey

    sound, back = survey(film)
    if back is not None and sound >= film.of:
        return _jumped(film, back)
    there = min(sound, len(film.times), film.of - 1)
    return BadInput(f"{film.path} is damaged: decoded {there} of {film.of} frames", AGAIN)


def _jumped(film: Film, number: int) -> BadInput:
    """When its frames are to be shown could be told in several ways."""
    return BadInput(f"{film.path} cannot be timed: its clock jumps back at frame {number}, as where files are joined",
                    REMEDY)


def _moving(path: Path, container) -> tuple[av.video.stream.VideoStream, bool]:
    """The stream of moving pictures, and whether there is only one. Of several: one of more than a frame, that which is
    marked as the default, the longest, the first. The cover of a song is none."""
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise BadInput(f"{path} holds no video{', only sound' * bool(container.streams.audio)}", "Give a video file")
    usable = [stream for stream in streams if stream.codec_context is not None]
    if not usable:
        raise BadInput(f"{path} is coded in a way that cannot be decoded here", REMEDY)
    if len(usable) > 1:
        with opened(path) as again:
            counts = Counter(packet.stream_index for packet in demuxed(again) if packet is not None)
        usable.sort(key=lambda s: (counts[s.index] > 1, bool(s.disposition & av.stream.Disposition.default),
                                   counts[s.index], -s.index), reverse=True)
    context = usable[0].codec_context
    if context.width * context.height > LARGEST:
        raise BadInput(f"{path} declares frames of {context.width} x {context.height} pixels", "Make it smaller first")
    return usable[0], len(streams) == 1


def _tags(said) -> tuple[int, int, int, int]:
    """H.273's matrix, transfer, primaries and libav's range (0: not said, 2: full) of a decoder or a frame."""
    return int(said.colorspace), int(said.color_trc), int(said.color_primaries), int(said.color_range)


def _colours(path: Path, stream, frame, said: tuple[int, ...]) -> Colours:
    """What the frame says, or where it does not, the container. Untagged video is taken as players do: BT.601 below 720
    lines, BT.709 from there; limited range."""
    matrix, transfer, primaries, extent = (late if late not in UNSAID[n == 3] else early
                                           for n, (late, early) in enumerate(zip(_tags(frame), said)))
    parts, tagged = frame.format.components, matrix in MATRICES
    palette = frame.format.has_palette
    alpha = palette or any(part.is_alpha for part in parts) or stream.metadata.get("alpha_mode") == "1"
    if frame.format.is_rgb or palette or sum(not part.is_alpha for part in parts) < 3:
        matrix = 0
    elif matrix in UNSAID[0]:
        matrix = 1 if frame.height >= HD else 5
    elif matrix not in MATRICES:
        raise BadInput(f"{path} stores its colours in a way that is not converted (matrix {matrix} of H.273)", REMEDY)
    return Colours(frame.format.name, max(part.bits for part in parts), alpha, MATRICES.get(matrix, 0), tagged,
                   extent == 2 or frame.format.name.startswith("yuvj"), transfer, primaries)
