"""Frames of a video file as they are meant to be seen, chosen by number: upright, square pixels, sRGB, deinterlaced.

PyAV decodes, from the key frame before the first frame wanted, and holds no more than one at a time. decord decodes
whole plain files where it is installed: bit for bit what PyAV gives of them (8 bits, 4:2:0, progressive). But it hands
damaged frames over in silence, so the bitstream is gone over first, which is cheap without the reconstruction.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

import av
import numpy as np
from av.filter import Graph
from PIL import Image

from .colour import is_hdr, is_wide, over_white, to_srgb
from .containers import REMEDY, Film, damaged, opened
from .errors import BadInput
from .order import Order
from .packets import BOUNDS, LEAP, STAMPS, decoded, demuxed
from .paths import LARGEST

PLAIN = {"h264", "hevc", "vp8", "vp9", "mpeg4"}            # codecs that decord reads as PyAV does
NEAR = 48                                                  # frames to decode on for, rather than to seek
EXACT = 0x4 | 0x2000 | 0x40000     # SWS_BICUBIC, FULL_CHR_H_INT, ACCURATE_RND: else 10 bits lose 2 of 255
REORDER = 16                                               # B-frames in a row, at most, that lean on a later frame
QUICK = {"skip_idct": "all", "skip_loop_filter": "all"}


def frames_of(film: Film, numbers: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(number, uint8 (H, W, 3)) of each frame wanted, once and in ascending order. Raises BadInput for damage."""
    wanted = sorted(set(numbers))
    if len(wanted) == len(film.times) and is_plain(film):
        reader = _decord(film)
        if reader is not None:
            for begin in range(0, len(wanted), 16):
                yield from zip(wanted[begin:], reader.get_batch(wanted[begin:begin + 16]).asnumpy())
            return
    for run in _runs(film, wanted):
        yield from _run(film, run)


def is_plain(film: Film) -> bool:
    """Whether decord gives of this file just what PyAV does."""
    colours = film.colours
    if film.size[0] % 2 or film.size[1] % 2 or not film.whole:     # other colours of an odd last row; another stream
        return False
    if colours.matrix != 5 and not (colours.tagged and colours.matrix == 1):       # untagged is BT.601 to decord
        return False
    return (film.codec in PLAIN and colours.pixels in ("yuv420p", "yuvj420p") and not colours.alpha and film.pixel == 1
            and not (is_hdr(colours.transfer) or is_wide(colours.primaries)) and film.ticks is not None
            and not film.interlaced and film.turn[1:3] == (0, 0) and min(film.turn[0], film.turn[3]) > 0)


def survey(film: Film) -> tuple[int, int | None]:
    """How many frames can be decoded without an error, all looking alike in format; and the number of the first that is
    to be shown before the one that it comes after. Nothing is reconstructed."""
    sound, count, back, before, looks = 0, 0, None, None, set()
    leap = LEAP if film.format in STAMPS else float("inf")
    with opened(film.path) as container:
        stream = container.streams[film.stream]
        stream.codec_context.options = {**BOUNDS, **QUICK}
        for packet in demuxed(container, stream):
            for frame in decoded(stream.codec_context, packet):
                looks.add((frame.width, frame.height, frame.format.name, frame.interlaced_frame, frame.colorspace))
                sound += not frame.is_corrupt and len(looks) == 1
                if back is None and None not in (before, frame.pts) and not 0 <= frame.pts - before < leap:
                    back = count
                before, count = frame.pts if frame.pts is not None else before, count + 1
    return sound, back


def beginning(film: Film, ticks: np.ndarray | None, hole: int | None) -> int:
    """How many frames come before the first that is damaged, is not there, or is of another size than the first. ticks:
    as Film's, also where one may not seek by them. Frames that can only be counted give no hint of which of them lean
    on a later one: with B-frames, REORDER of them are left out. hole: the place in the file of bytes that are none of
    it (gaps.py): frames that were there are decoded, and so shown, after the last one before."""
    exact, most = ticks is not None and bool((np.diff(ticks) > 0).all()), len(film.times)
    with opened(film.path) as container:
        stream = container.streams[film.stream]
        several = bool(stream.codec_context.has_b_frames)
        if hole is not None:
            before = [packet.dts for packet in demuxed(container, stream) if packet and (packet.pos or 0) < hole]
            before = before[:-1] if film.format in STAMPS else before      # its last packet may reach into the hole
            most = len(before) - REORDER * several
            if exact and before and before[-1] is not None:
                most = int(np.searchsorted(ticks, before[-1], "right"))
    count = 0
    for number, frame in _numbered(replace(film, ticks=ticks if exact else None), None, set(range(len(film.times))),
                                   **QUICK):
        if number != count or count >= most or (frame.height, frame.width) != film.size:
            break
        count += 1
    return max(0, count - REORDER) if several and not exact and count < film.of else count


def _decord(film: Film):
    """A reader, or None where decord is not installed or does not see the file as its container says it is."""
    try:
        import decord
    except ImportError:
        return None
    decord.logging.set_level(decord.logging.FATAL)
    if survey(film)[0] < len(film.times):
        return None                                        # PyAV says what is wrong
    try:
        reader = decord.VideoReader(str(film.path.absolute()), num_threads=1)
        if len(reader) != len(film.times):
            return None
        times = reader.get_frame_timestamp(range(len(reader)))[:, 0]
        return reader if np.abs(times - times[0] - film.times).max() < 1e-3 else None
    except (decord.DECORDError, RuntimeError, UnicodeError):          # it takes no name that is not UTF-8
        return None


# -- PyAV -----------------------------------------------------------------------------------------------------------
def _runs(film: Film, wanted: list[int]) -> list[list[int]]:
    """The frames wanted, parted where a later one is better sought than decoded towards."""
    if film.ticks is None or len(wanted) == len(film.times):
        return [wanted] if wanted else []
    runs: list[list[int]] = []
    for _, group in groupby(wanted, lambda number: _key(film, number)):
        numbers = list(group)
        if runs and film.keys[_key(film, numbers[0])] - runs[-1][-1] < NEAR:
            runs[-1] += numbers
        else:
            runs.append(numbers)
    return runs


def _key(film: Film, number: int) -> int:
    """Place in film.keys of the last one that is shown no later than this frame, nor, interlaced, than that before."""
    return max(0, int(np.searchsorted(film.keys, max(0, number - film.interlaced), "right")) - 1)


def _run(film: Film, wanted: list[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Frames of one stretch: sought, or, should that not do (a key that is none), decoded from the file's beginning."""
    key = film.keys[_key(film, wanted[0])]
    left = list(wanted)
    for seek in ([int(film.ticks[key]), None] if key else [None]):
        for number, frame in _stretch(film, left, seek):
            if number != left[0]:
                break
            yield number, _finish(film, frame)
            left.pop(0)
        if not left:
            return
    raise damaged(film)


def _stretch(film: Film, wanted: list[int], seek: int | None) -> Iterator[tuple[int, av.VideoFrame]]:
    """The frames wanted as decoded, less damaged ones; deinterlaced, for which the frames beside are looked at too."""
    around = set(wanted)
    if film.interlaced:
        around |= {number + step for number in wanted for step in (-1, 1)}
    frames = _numbered(film, seek, around)
    chosen = ((number, frame) for number, frame in frames if number in around)
    asked = set(wanted)
    yield from (pair for pair in (_deinterlaced(chosen) if film.interlaced else chosen) if pair[0] in asked)


def _numbered(film: Film, seek: int | None, wanted: set[int], **how: str) -> Iterator[tuple[int, av.VideoFrame]]:
    """Frames with their numbers, sound ones only, until all that are wanted are there, or should have been long ago.
    Where packets bear no exact times frames are counted, which an error puts an end to. how: options of the decoder."""
    left, last = {number for number in wanted if 0 <= number < len(film.times)}, max(wanted) + NEAR
    numbers = {tick: n for n, tick in enumerate(film.ticks.tolist())} if film.ticks is not None else None
    order, held, over = Order(film.keys), [], False
    with opened(film.path) as container:
        stream, count = container.streams[film.stream], 0
        context = _decoder(film, stream)
        context.options = {**BOUNDS, **how}
        if seek is not None:
            container.seek(seek, stream=stream)
        for packet in demuxed(container, stream):
            number = numbers.get(packet.pts) if numbers and packet else None
            order.feed(number)
            try:
                found = context.decode(packet)
            except av.error.MemoryError:
                raise
            except av.error.FFmpegError:
                if numbers is None:
                    return
                order.lose(number)
                continue
            for frame in found:
                number = count if numbers is None else numbers.get(frame.pts)
                count += 1
                if number is not None and not frame.is_corrupt:
                    held.append((number, frame))
                elif numbers is None:
                    return
                if number is not None:
                    order.see(number, sound=not frame.is_corrupt)
                    over |= number >= last
            while held and (packet is None or order.is_settled(held[0][0])):
                number, frame = held.pop(0)
                left.discard(number)
                if not order.is_spoilt(number):
                    yield number, frame
                if not left:
                    return
            if over:
                return


def _decoder(film: Film, stream):
    """The stream's own, but for VP8 and VP9 with alpha, which only libvpx reads."""
    if film.codec in ("vp8", "vp9") and film.colours.alpha:
        return av.CodecContext.create({"vp8": "libvpx", "vp9": "libvpx-vp9"}[film.codec], "r")
    return stream.codec_context


def _deinterlaced(frames: Iterator[tuple[int, av.VideoFrame]]) -> Iterator[tuple[int, av.VideoFrame]]:
    """bwdif, a frame for a frame; frames that are flagged progressive pass as they are, and so does what is tiny."""
    graph, waiting = None, []
    for number, frame in frames:
        if min(frame.width, frame.height) < 4:
            yield number, frame
            continue
        if graph is None:
            graph = Graph()
            source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format,
                                      time_base=frame.time_base)
            graph.link_nodes(source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink"))
            graph.configure()
        waiting.append(number)
        frame.pts = len(waiting)
        graph.vpush(frame)
        yield from _pulled(graph, waiting)
    if graph is not None:
        graph.vpush(None)
        yield from _pulled(graph, waiting)


def _pulled(graph: Graph, waiting: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    while True:
        try:
            frame = graph.vpull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        yield waiting.pop(0), frame


# -- one frame ------------------------------------------------------------------------------------------------------
def _finish(film: Film, frame: av.VideoFrame) -> np.ndarray:
    if (frame.height, frame.width) != film.size:
        raise BadInput(f"{film.path} changes its size within, from {film.size[1]} x {film.size[0]} to {frame.width} x "
                       f"{frame.height}", REMEDY)
    return upright(_square(_coloured(film, frame), film), film.turn)


def _coloured(film: Film, frame: av.VideoFrame) -> np.ndarray:
    """uint8 (H, W, 3) sRGB of a frame as stored."""
    colours = film.colours
    if colours.matrix:
        frame.colorspace, frame.color_range = colours.matrix, 2 if colours.full else 1
    if is_hdr(colours.transfer) or is_wide(colours.primaries):
        codes = frame.to_ndarray(format="rgba64le" if colours.alpha else "rgb48le", interpolation=EXACT)
        white = 0xFF00 if colours.matrix or colours.bits == 8 else 0xFFFF      # libav's is 255 << 8, but of deep RGB
        picture = to_srgb(codes[..., :3] / np.float32(white), colours.transfer, colours.primaries)
        if colours.alpha:
            picture = over_white(np.dstack([picture, codes[..., 3] >> 8]))
        return picture
    if colours.alpha:
        return over_white(frame.to_ndarray(format="rgba", interpolation=EXACT))
    if colours.pixels.startswith("gray") and int(frame.color_range) == 1:                    # which libav passes over
        grey = (frame.to_ndarray(format="rgb24", interpolation=EXACT).astype(np.float32) - 16) * (255 / 219)
        return np.rint(grey.clip(0, 255)).astype(np.uint8)
    if colours.pixels in ("yuv420p", "yuvj420p"):
        return frame.to_ndarray(format="rgb24")            # as decord does
    return frame.to_ndarray(format="rgb24", interpolation=EXACT)


def _square(picture: np.ndarray, film: Film) -> np.ndarray:
    """Oblong pixels become square, the longer side being kept: nothing of the picture is lost."""
    if film.pixel == 1:
        return picture
    height, width = picture.shape[:2]
    wide = film.pixel > 1
    size = (max(1, round(width * film.pixel)), height) if wide else (width, max(1, round(height / film.pixel)))
    if size[0] * size[1] > LARGEST:
        raise BadInput(f"{film.path} declares pixels of {film.pixel}, which makes {size[0]} x {size[1]} of it", REMEDY)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def upright(picture: np.ndarray, turn: tuple[int, int, int, int]) -> np.ndarray:
    """As the display matrix wants it shown: the nearest of the eight quarter turns and reflections."""
    a, b, c, d = turn
    if abs(a) < abs(c):
        picture, a, d = picture.swapaxes(0, 1), c, b
    return np.ascontiguousarray(picture[::-1 if d < 0 else 1, ::-1 if a < 0 else 1])
