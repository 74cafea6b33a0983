"""Clips, pictures and masks, in and out: the only file that touches codecs.

Frames are uint8 (F, H, W, 3) sRGB, masks are bool (F, H, W). Nothing is ever shortened in silence: a file that yields
fewer frames than its container declares is refused, by name and number.
"""
from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageOps, ImageSequence, PngImagePlugin, UnidentifiedImageError

from .containers import count_frames, declared_frames
from .errors import BadInput
from .framing import fit_size

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}
ANIMATIONS = {".gif", ".webp", ".apng"}          # what Pillow reads frame by frame; decord fails on GIF
SHOWN = 256                                      # pixels: smaller videos are enlarged to at least this short side
REMEDY = "Make a plain copy of it first: ffmpeg -i IN -c:v libx264 -crf 12 OUT.mp4"


# -- reading --------------------------------------------------------------------------------------------------------
def read_clip(path: Path | str, *, frames: int | None = None, size: tuple[int, int] | None = None,
              fps: float | None = None, window: tuple[float, float] | None = None) -> np.ndarray:
    """A video file, an animated picture, a strip written by write_frames or a folder of pictures -> (F, H, W, 3) uint8.

    fps: take the frames nearest to this rate (default: every frame). frames: how many; with fps the first ones, without
    it evenly spaced over the whole clip. size: (H, W); the middle is cropped to this aspect, then resized.
    window: (start, end) in seconds; what is shown before start, or from end on, is left out as if it were not there.
    Raises BadInput, naming the file, if it is missing, damaged, too short, or decodes to fewer frames than it declares.
    """
    path = Path(path)
    if window and (path.is_dir() or path.suffix.lower() in ANIMATIONS | PICTURES):
        raise BadInput(f"{path} has no time stamps, so nothing can be cut out of it by time", REMEDY)
    if path.is_dir():
        return read_images(_evenly(list_images(path), frames, path), size)
    if not path.is_file():
        raise BadInput(f"{path} does not exist", "Give a video file or a folder of frames")
    if path.suffix.lower() in ANIMATIONS | PICTURES:
        pictures = _read_animation(path)
        pictures = pictures[_choose(len(pictures), None, frames, None, path)]
    else:
        pictures = _read_decord(path, frames, fps, window)
    return fit_size(pictures, size) if size else pictures


def read_images(paths: Path | str | Sequence[Path | str], size: tuple[int, int] | None = None) -> np.ndarray:
    """Pictures (a list of files, or a folder) -> uint8 (N, H, W, 3). Without `size` all must have one size already."""
    if isinstance(paths, (str, Path)):
        paths = list_images(Path(paths)) if Path(paths).is_dir() else [paths]
    out = [_open(Path(path)) for path in paths]
    if not out:
        raise BadInput("no picture was given", "Name at least one PNG or JPEG file")
    if size:
        return np.concatenate([fit_size(picture[None], size) for picture in out])
    odd = [path for path, picture in zip(paths, out) if picture.shape != out[0].shape]
    if odd:
        raise BadInput(f"{odd[0]} is {_sides(out[list(paths).index(odd[0])])}, but {paths[0]} is {_sides(out[0])}",
                       "Frames of one clip need one size")
    return np.stack(out)


def list_images(folder: Path | str) -> list[Path]:
    """The pictures of a folder in natural order (2.png before 10.png), hidden files left out."""
    folder = Path(folder)
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder", "Give a folder of PNG or JPEG files")
    found = [p for p in folder.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith(".")]
    if not found:
        raise BadInput(f"{folder} holds no pictures", f"It needs files ending in {', '.join(sorted(PICTURES))}")
    return natural(found)


def natural(paths: Sequence[Path]) -> list[Path]:
    """Sorted as a person counts: frame2 before frame10."""
    return sorted(paths, key=lambda p: [(int(s), "") if s.isdigit() else (-1, s) for s in re.split(r"(\d+)", p.name)])


def read_masks(folder: Path | str, size: tuple[int, int] | None = None) -> np.ndarray:
    """A folder of mask pictures (white: inside), in natural order -> bool (F, H, W). size: (H, W) to bring them to."""
    pictures = [Image.fromarray(_open(path)).convert("L") for path in list_images(folder)]
    if size:
        pictures = [picture.resize(size[::-1], Image.Resampling.NEAREST) for picture in pictures]
    if len({picture.size for picture in pictures}) > 1:
        raise BadInput(f"the masks in {folder} have several sizes", "Frames of one clip need one size")
    return np.stack([np.asarray(picture) > 127 for picture in pictures])


# -- writing --------------------------------------------------------------------------------------------------------
def write_video(path: Path | str, frames_FHWC: np.ndarray, fps: float = 8.0) -> Path:
    """H.264 in mp4, playable everywhere. Small frames are enlarged by a whole number (nearest) to a short side of at
    least SHOWN, so that neither chroma subsampling nor players blur them; read_clip(size=) undoes that exactly but for
    the codec's rounding. Written beside the target first, then renamed."""
    path, frames = Path(path), np.ascontiguousarray(frames_FHWC, np.uint8)
    short = min(frames.shape[1:3])
    if short < SHOWN:
        frames = enlarge(frames, -(-SHOWN // (2 * short)) * 2)
    even = frames.shape[1] % 2 == 0 and frames.shape[2] % 2 == 0
    partial = path.with_name(f".{path.stem}.partial.mp4")
    writer = imageio_ffmpeg.write_frames(
        str(partial), frames.shape[2:0:-1], fps=fps, codec="libx264", macro_block_size=1, quality=None,
        pix_fmt_out="yuv420p" if even else "yuv444p", ffmpeg_log_level="error",
        output_params=["-crf", "10", "-preset", "medium", "-movflags", "+faststart"])
    writer.send(None)
    for frame in frames:
        writer.send(frame.tobytes())
    writer.close()
    partial.replace(path)
    return path


def write_frames(path: Path | str, frames_FHWC: np.ndarray) -> Path:
    """The frames side by side in one PNG, lossless; their number is written into the file, and read_clip reads it."""
    note = PngImagePlugin.PngInfo()
    note.add_text("frames", str(len(frames_FHWC)))
    Image.fromarray(np.concatenate(list(frames_FHWC), 1)).save(path, pnginfo=note)
    return Path(path)


def write_images(folder: Path | str, pictures_NHWC: np.ndarray) -> list[Path]:
    """folder/0000.png, 0001.png, ... -> their paths."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = [Path(folder) / f"{n:04d}.png" for n in range(len(pictures_NHWC))]
    for path, picture in zip(paths, pictures_NHWC):
        Image.fromarray(picture).save(path)
    return paths


def write_masks(folder: Path | str, masks_FHW: np.ndarray) -> list[Path]:
    """folder/0000.png, ... white inside, black outside. Pictures of a longer track that lie there are removed."""
    folder = Path(folder)
    for old in folder.glob("[0-9]" * 4 + ".png"):
        old.unlink()
    return write_images(folder, np.asarray(masks_FHW, np.uint8) * 255)


def enlarge(frames: np.ndarray, times: int) -> np.ndarray:
    """Every pixel becomes times x times pixels: (F, H, W, ...) -> (F, H * times, W * times, ...)."""
    return frames.repeat(times, 1).repeat(times, 2)


# -- decoders -------------------------------------------------------------------------------------------------------
def _open(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            return np.array(ImageOps.exif_transpose(picture).convert("RGB"))
    except (OSError, UnidentifiedImageError, SyntaxError) as damage:
        raise BadInput(f"{path} cannot be read as a picture ({damage})", "Save it again as PNG or JPEG") from damage


def _read_animation(path: Path) -> np.ndarray:
    """A GIF, or a strip of write_frames, or one picture as a clip of one frame."""
    try:
        with Image.open(path) as picture:
            strip = int(picture.info.get("frames", 1)) if path.suffix.lower() == ".png" else 1
            frames = [np.array(f.convert("RGB")) for f in ImageSequence.Iterator(picture)]
            declared = getattr(picture, "n_frames", 1)
    except (OSError, UnidentifiedImageError, SyntaxError) as damage:
        raise BadInput(f"{path} cannot be read ({damage})", REMEDY) from damage
    _all_there(path, len(frames), declared)
    return np.stack(np.split(frames[0], strip, 1) if strip > 1 else frames)


def _read_decord(path: Path, frames: int | None, fps: float | None, window: tuple[float, float] | None) -> np.ndarray:
    """decord where it is installed and can read the file; else PyAV."""
    try:
        import decord
    except ImportError:
        return _read_pyav(path, frames, fps, window)
    decord.logging.set_level(decord.logging.FATAL)
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        _all_there(path, len(reader), declared_frames(path))
        inside = range(len(reader))
        if window:
            times = reader.get_frame_timestamp(inside)[:, 0]
            inside = np.flatnonzero((times - times[0] >= window[0]) & (times - times[0] < window[1]))
        chosen = _choose(len(inside), reader.get_avg_fps(), frames, fps, _part(path, window))
        return reader.get_batch([inside[n] for n in chosen]).asnumpy()
    except (decord.DECORDError, RuntimeError):            # AV1, or damage: PyAV says which, and reads the former
        return _read_pyav(path, frames, fps, window)


def _read_pyav(path: Path, frames: int | None, fps: float | None, window: tuple[float, float] | None) -> np.ndarray:
    try:
        import av
    except ImportError as missing:
        decoded, declared = count_frames(path), declared_frames(path)
        if declared and decoded < declared:
            raise BadInput(f"{path} is damaged: decoded {decoded} of {declared} frames", REMEDY) from missing
        raise BadInput(f"{path} cannot be decoded here", f"Install PyAV (pip install av). Or: {REMEDY}") from missing
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or 0) or None
            shown = _decode(container, stream, window)
            declared = None if window else stream.frames or declared_frames(path)
    except (av.error.FFmpegError, IndexError) as damage:
        raise BadInput(f"{path} cannot be decoded: decoded {count_frames(path)} of {declared_frames(path)} frames "
                       f"({damage})", REMEDY) from damage
    if not window:
        _all_there(path, len(shown), declared)
    return np.stack([shown[n] for n in _choose(len(shown), rate, frames, fps, _part(path, window))])


def _decode(container, stream, window: tuple[float, float] | None) -> list[np.ndarray]:
    """Every frame; or those of the window, from the key frame before it and no further than its end: what a window
    needs of a video of hours fits into memory."""
    if not window:
        return [_upright(frame) for frame in container.decode(stream)]
    begin = float((stream.start_time or 0) * stream.time_base)
    container.seek(max(0, int((begin + window[0]) / stream.time_base)), stream=stream)
    found = []
    for frame in container.decode(stream):
        if frame.time - begin >= window[1]:
            break
        if frame.time - begin >= window[0]:
            found.append(_upright(frame))
    return found


def _upright(frame) -> np.ndarray:
    """PyAV hands frames over as stored; `rotation` (degrees, counter-clockwise) is left to the reader."""
    return np.rot90(frame.to_ndarray(format="rgb24"), round(getattr(frame, "rotation", 0) / 90))


def _part(path: Path, window: tuple[float, float] | None) -> str:
    return f"{path}, from {window[0]:g} s to {window[1]:g} s," if window else str(path)


def _choose(there: int, rate: float | None, frames: int | None, fps: float | None, path: Path | str) -> list[int]:
    """Which of the `there` decoded frames answer to `frames` and `fps` (see read_clip)."""
    if not fps or not rate:
        return _evenly(list(range(there)), frames, path)
    chosen = [round(k * rate / fps) for k in range(int((there - 1) * fps / rate + 1e-6) + 1)]
    if frames and len(chosen) < frames:
        raise BadInput(f"{path} holds {len(chosen)} frames at {fps:g} a second, {frames} are needed",
                       "Give a longer clip or fewer frames")
    return chosen[:frames]


def _evenly(items: list, frames: int | None, path: Path | str) -> list:
    if len(items) < (frames or 1):
        raise BadInput(f"{path} holds {len(items)} frames, {frames or 1} are needed",
                       "Give a longer clip or fewer frames")
    return [items[round(k)] for k in np.linspace(0, len(items) - 1, frames)] if frames else items


def _all_there(path: Path, decoded: int, declared: int | None) -> None:
    if decoded == 0 or (declared and decoded < declared):
        raise BadInput(f"{path} is damaged: decoded {decoded} of {declared} frames", REMEDY)


def _sides(picture: np.ndarray) -> str:
    return f"{picture.shape[1]} x {picture.shape[0]}"
