"""Clips, pictures and masks, in and out: the only file that touches codecs.

Frames are uint8 (F, H, W, 3) sRGB, masks are bool (F, H, W). Nothing is ever shortened in silence: a file that yields
fewer frames than its container declares is refused, by name and number.
"""
from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageOps, ImageSequence, PngImagePlugin, UnidentifiedImageError

from .errors import BadInput

PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}
ANIMATIONS = {".gif", ".webp", ".apng"}          # what Pillow reads frame by frame; decord fails on GIF
SHOWN = 256                                      # pixels: smaller videos are enlarged to at least this short side
REMEDY = "Make a plain copy of it first: ffmpeg -i IN -c:v libx264 -crf 12 OUT.mp4"


# -- reading --------------------------------------------------------------------------------------------------------
def read_clip(path: Path | str, *, frames: int | None = None, size: tuple[int, int] | None = None,
              fps: float | None = None) -> np.ndarray:
    """A video file, an animated picture, a strip written by write_frames or a folder of pictures -> (F, H, W, 3) uint8.

    fps: take the frames nearest to this rate (default: every frame). frames: how many; with fps the first ones, without
    it evenly spaced over the whole clip. size: (H, W); the middle is cropped to this aspect, then resized.
    Raises BadInput, naming the file, if it is missing, damaged, too short, or decodes to fewer frames than it declares.
    """
    path = Path(path)
    if path.is_dir():
        return read_images(_evenly(list_images(path), frames, path), size)
    if not path.is_file():
        raise BadInput(f"{path} does not exist", "Give a video file or a folder of frames")
    if path.suffix.lower() in ANIMATIONS | PICTURES:
        pictures = _read_animation(path)
        pictures = pictures[_choose(len(pictures), None, frames, None, path)]
    else:
        pictures = _read_decord(path, frames, fps)
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


def fit_size(frames_FHWC: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Crop the middle to the aspect of size (H, W), then resize; whole-number reductions are exact means."""
    height, width = frames_FHWC.shape[1:3]
    if (height, width) == tuple(size):
        return frames_FHWC
    scale = min(height / size[0], width / size[1])
    tall, wide = size[0] * scale, size[1] * scale
    box = ((width - wide) / 2, (height - tall) / 2, (width + wide) / 2, (height + tall) / 2)
    how = Image.Resampling.BOX if scale >= 1 and scale == int(scale) else Image.Resampling.LANCZOS
    return np.stack([np.asarray(Image.fromarray(f).resize(size[::-1], how, box=box)) for f in frames_FHWC])


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


def _read_decord(path: Path, frames: int | None, fps: float | None) -> np.ndarray:
    """decord where it is installed and can read the file; else PyAV."""
    try:
        import decord
    except ImportError:
        return _read_pyav(path, frames, fps)
    decord.logging.set_level(decord.logging.FATAL)
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        _all_there(path, len(reader), declared_frames(path))
        chosen = _choose(len(reader), reader.get_avg_fps(), frames, fps, path)
        return reader.get_batch(chosen).asnumpy()
    except (decord.DECORDError, RuntimeError):            # AV1, or damage: PyAV says which, and reads the former
        return _read_pyav(path, frames, fps)


def _read_pyav(path: Path, frames: int | None, fps: float | None) -> np.ndarray:
    try:
        import av
    except ImportError as missing:
        decoded, declared = _count(path), declared_frames(path)
        if declared and decoded < declared:
            raise BadInput(f"{path} is damaged: decoded {decoded} of {declared} frames", REMEDY) from missing
        raise BadInput(f"{path} cannot be decoded here", f"Install PyAV (pip install av). Or: {REMEDY}") from missing
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or 0) or None
            shown = [_upright(frame) for frame in container.decode(stream)]
            declared = stream.frames or declared_frames(path)
    except (av.error.FFmpegError, IndexError) as damage:
        raise BadInput(f"{path} cannot be decoded: decoded {_count(path)} of {declared_frames(path)} frames ({damage})",
                       REMEDY) from damage
    _all_there(path, len(shown), declared)
    return np.stack([shown[n] for n in _choose(len(shown), rate, frames, fps, path)])


def _upright(frame) -> np.ndarray:
    """PyAV hands frames over as stored; `rotation` (degrees, counter-clockwise) is left to the reader."""
    return np.rot90(frame.to_ndarray(format="rgb24"), round(getattr(frame, "rotation", 0) / 90))


def _choose(there: int, rate: float | None, frames: int | None, fps: float | None, path: Path) -> list[int]:
    """Which of the `there` decoded frames answer to `frames` and `fps` (see read_clip)."""
    if not fps or not rate:
        return _evenly(list(range(there)), frames, path)
    chosen = [round(k * rate / fps) for k in range(int((there - 1) * fps / rate + 1e-6) + 1)]
    if frames and len(chosen) < frames:
        raise BadInput(f"{path} holds {len(chosen)} frames at {fps:g} a second, {frames} are needed",
                       "Give a longer clip or fewer frames")
    return chosen[:frames]


def _evenly(items: list, frames: int | None, path: Path) -> list:
    if frames and len(items) < frames:
        raise BadInput(f"{path} holds {len(items)} frames, {frames} are needed", "Give a longer clip or fewer frames")
    return [items[round(k)] for k in np.linspace(0, len(items) - 1, frames)] if frames else items


def _all_there(path: Path, decoded: int, declared: int | None) -> None:
    if decoded == 0 or (declared and decoded < declared):
        raise BadInput(f"{path} is damaged: decoded {decoded} of {declared} frames", REMEDY)


# -- what a container declares --------------------------------------------------------------------------------------
def declared_frames(path: Path | str) -> int | None:
    """How many video frames the container says it holds: exact for mp4 and mov (the sample table), else what duration
    and rate in the header give, less one for rounding; None where the header says nothing."""
    path = Path(path)
    with path.open("rb") as file:
        if file.read(8)[4:] in (b"ftyp", b"moov", b"mdat", b"wide", b"free"):
            whole = [(0, path.stat().st_size)]
            pictures = [track for track in _boxes(file, whole, b"moov", b"trak")
                        if any(_word(file, lo + 8) == b"vide" for lo, _ in _boxes(file, [track], b"mdia", b"hdlr"))]
            tables = _boxes(file, pictures, b"mdia", b"minf", b"stbl", b"stsz")
            return max((int.from_bytes(_word(file, lo + 8), "big") for lo, _ in tables), default=0) or None
    header = _ffmpeg("-i", str(path))
    duration, rate = re.search(r"Duration: (\d+):(\d+):([\d.]+)", header), re.search(r"Video:.* ([\d.]+) fps", header)
    if not duration or not rate:
        return None
    hours, minutes, seconds = map(float, duration.groups())
    return int((3600 * hours + 60 * minutes + seconds) * float(rate[1]) + 0.01) - 1 or None


def _boxes(file: BinaryIO, within: list[tuple[int, int]], *names: bytes) -> list[tuple[int, int]]:
    """Bounds of the contents of every ISO box on this path of names, inside the given bounds (ISO 14496-12, 4.2)."""
    found = []
    for at, limit in within:
        while at + 8 <= limit:
            length, begin = int.from_bytes(_word(file, at), "big"), at + 8
            if length == 1:
                length, begin = int.from_bytes(file.read(12)[4:], "big"), at + 16
            end = at + length if length else limit
            if _word(file, at + 4) == names[0]:
                found.append((begin, min(end, limit)))
            if end <= at:
                break
            at = end
    return _boxes(file, found, *names[1:]) if names[1:] else found


def _word(file: BinaryIO, at: int) -> bytes:
    file.seek(at)
    return file.read(4)


def _count(path: Path) -> int:
    """Frames that ffmpeg can decode: only to say how bad the damage is."""
    counts = re.findall(r"frame= *(\d+)", _ffmpeg("-i", str(path), "-map", "0:v:0", "-f", "null", "-"))
    return int(counts[-1]) if counts else 0


def _ffmpeg(*arguments: str) -> str:
    """What ffmpeg (the one that imageio-ffmpeg brings along) says about a file; an error is an answer too."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", *arguments]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False).stderr


def _sides(picture: np.ndarray) -> str:
    return f"{picture.shape[1]} x {picture.shape[0]}"
