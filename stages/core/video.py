"""Clips, pictures and masks, in and out. Frames are uint8 (F, H, W, 3) sRGB, masks are bool (F, H, W).

Nothing is ever shortened in silence: a file that yields less than it declares is refused, by name and number. Every
file is decoded in a process apart (apart.py), with limits on time, memory, pixels and frames: none crashes this one.

    what a file has             what is read
    a rotation, EXIF            upright, also where it is mirrored
    a variable frame rate       each frame once, with its own time stamp (clip_times); nothing is doubled or left out
    frames at one time          each a tick of the file's clock after the one before; later ones keep their times
    empty chunks in an AVI      the frame before lasts longer: a gap in the times
    an edit (a trimmed mp4)     the frames that it shows, also where it hides the key frame that they need
    no key frame at first       (a stream cut out of a longer one) from the first key frame on, what cannot be decoded
                                without one being left out; refused where the file counts those frames among its own
    several video streams       one of more than a single frame; of those the default, else the longest, else the first
    10 and 12 bits, SDR         rounded to 8
    HDR (PQ, HLG)               tone-mapped to SDR, the curve stands in colour.py; wide gamuts are brought to sRGB's
    no word on its colours      BT.601 below 720 lines, BT.709 from there, limited range: as players take it; HDR is
                                BT.2020's then. The frames' word counts before the container's
    interlaced fields           one whole frame for each stored one (bwdif)
    oblong pixels               square ones; the shorter side of the picture's pixels is stretched
    transparency                on white
    an ICC profile              converted to sRGB (Display P3, Adobe RGB, CMYK ...); CMYK without one: as Pillow does
    a PNG's cICP, AVIF's nclx   P3 and BT.2020 are brought to sRGB; PQ and HLG are refused; a PNG's gAMA and cHRM count
                                for nothing
    16 bits, float              scaled to 8 bits, not clipped; float beyond 0..1 from its least to its most
    grey, a palette             their colours
    GIF, WebP, APNG             each frame as it is shown, with its duration; a GIF's 10 ms and less are 100 ms
    another kind than its name  what its content says: a photo named .mp4 is a clip of one frame
    several pictures            refused where one photo is wanted; the depth map behind a phone's JPEG is left alone
    a clock that jumps back     (transport streams joined by cat) refused, with the number of the frame
    a hole in mkv, webm, ts,    refused, where the chain of elements, packets or pages breaks (gaps.py); libav goes on
    mpg, ogv                    behind
    frames after a damaged one  refused up to the next key frame, and those before that lean on it (order.py)
    over 134 million pixels     refused, as photo or frame; over a million frames, too
    damage, HEIC, playlists,    refused by name, with the number of frames that can be decoded, or with what to do
    text, sound, bombs
"""
from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image, PngImagePlugin

from .apart import ask
from .errors import BadInput
from .framing import fit_size
from .kinds import ANIMATIONS, PICTURES, STRIP, UNREADABLE
from .paths import head_of, is_folder, reached, to_png
from .store import replacing

__all__ = ["ANIMATIONS", "PICTURES", "Extent", "clip_times", "count_pictures", "enlarge", "extent", "list_images",
           "natural", "photos_of", "read_clip", "read_frames", "read_images", "read_mask", "read_masks", "write_frames",
           "write_images", "write_masks", "write_video"]
SHOWN = 256                                      # pixels: smaller videos are enlarged to at least this short side


# -- reading --------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Extent:
    """times: seconds of every frame from the first one shown, increasing, float64 (F,), exact to the file's clock; None
    for what has no time stamps: a folder, a strip of write_frames, a still picture. count: F. of: how many frames the
    file says it has, more than F where it is damaged and its beginning is taken."""

    times: np.ndarray | None
    count: int
    of: int


def extent(path: Path | str, *, partial: bool = False) -> Extent:
    """Of a video nothing but its packets and one frame is decoded (all of it only where packets may be half frames,
    H.264 fields in a transport stream, and for `partial`). partial: of a damaged file what comes before the damage is
    taken, where else it is refused. Raises BadInput as read_clip does."""
    path = Path(path)
    if is_folder(path):
        count = len(list_images(path))
        return Extent(None, count, count)
    head_of(path)
    (facts, times), = ask("extent", [path], partial=partial)
    return Extent(times, int(facts["count"]), int(facts["of"]))


def clip_times(path: Path | str) -> np.ndarray | None:
    """Extent.times; a folder's pictures are not looked for."""
    return None if is_folder(Path(path)) else extent(path).times


def read_clip(path: Path | str, *, at: Sequence[int] | None = None, size: tuple[int, int] | None = None,
              partial: bool = False) -> np.ndarray:
    """A video file, an animated picture, a strip written by write_frames or a folder of pictures -> (F, H, W, 3) uint8.

    at: exactly these frames, by number, in this order, repeats allowed (default: every frame); no others are held, and
    a video is decoded from the key frame before them. size: (H, W); the middle is cropped to this aspect, then resized.
    partial: as for `extent`. Raises BadInput, naming the file, if it is missing, damaged, too short, decodes to fewer
    frames than it declares, or passes a limit of apart.py.
    """
    path = Path(path)
    if is_folder(path):
        files = list_images(path)
        numbers = range(len(files)) if at is None else list(map(int, at))
        if far := [number for number in numbers if not 0 <= number < len(files)]:
            raise BadInput(f"{path} holds {len(files)} frames, there is no frame {far[0]}",
                           f"The last one is {len(files) - 1}")
        return read_images([files[number] for number in numbers], size)
    head_of(path)
    wanted = None if at is None else list(map(int, at))
    held = {facts["number"]: picture for facts, picture in ask(
        "frames", [path], at=None if at is None else sorted(set(wanted)), size=size, partial=partial)}
    numbers = list(held) if at is None else wanted
    return np.stack([held[number] for number in numbers]) if numbers else np.zeros((0, *(size or (0, 0)), 3), np.uint8)


def read_frames(path: Path | str) -> np.ndarray:
    """What write_frames left -> (F, H, W, 3) uint8. Raises BadInput for any other file, whatever it is called: a small
    clip may unfold to more than memory holds."""
    path = Path(path)
    head_of(path)
    return np.stack([picture for _, picture in ask("strip", [path])])


def count_pictures(path: Path | str) -> int:
    """How many pictures the file holds; 0: it is no picture. Raises BadInput for a damaged one."""
    path = Path(path)
    head_of(path)
    (facts, _), = ask("pictures", [path])
    return int(facts["count"])


def read_images(paths: Path | str | Sequence[Path | str], size: tuple[int, int] | None = None) -> np.ndarray:
    """Pictures (a list of files, or a folder) -> uint8 (N, H, W, 3). Without `size` all must have one size already."""
    if isinstance(paths, (str, Path)):
        paths = list_images(Path(paths)) if is_folder(Path(paths)) else [paths]
    if not paths:
        raise BadInput("no picture was given", "Name at least one PNG or JPEG file")
    out = [fit_size(photo[None], size)[0] if size else photo for photo in photos_of(paths)]
    odd = [path for path, picture in zip(paths, out) if picture.shape != out[0].shape]
    if odd:
        raise BadInput(f"{odd[0]} is {_sides(out[list(paths).index(odd[0])])}, but {paths[0]} is {_sides(out[0])}",
                       "Frames of one clip need one size")
    return np.stack(out)


def photos_of(paths: Sequence[Path | str]) -> Iterator[np.ndarray]:
    """Photos, each of its own size, uint8 (H, W, 3), decoded in one go."""
    return _each("photo", paths)


def read_mask(path: Path | str) -> np.ndarray:
    """bool (H, W): white is inside; what is transparent is outside, and so is what looks darker than mid-grey."""
    return list(_each("mask", [path]))[0]


def _each(what: str, paths: Sequence[Path | str]) -> Iterator[np.ndarray]:
    """Photos or masks, one after another, decoded in one go."""
    files = list(map(Path, paths))
    for path in files:
        head_of(path)
    for _, picture in ask(what, files):
        yield picture


def list_images(folder: Path | str) -> list[Path]:
    """The pictures of a folder in natural order (2.png before 10.png), hidden files left out. Raises BadInput also for
    one that cannot be read, as HEIC: it would be missing in silence."""
    folder = Path(folder)
    if not is_folder(folder):
        raise BadInput(f"{folder} is not a folder", "Give a folder of PNG or JPEG files")
    with reached(folder):
        there = [path for path in folder.iterdir() if not path.name.startswith(".")]
    if foreign := natural([path for path in there if path.suffix.lower() in UNREADABLE]):
        raise BadInput(f"{foreign[0]} is of a kind that is not read here ({foreign[0].suffix.lower()[1:]})",
                       f"Save it as PNG or JPEG first, or take it away: {to_png(foreign[0])}")
    found = [path for path in there if path.suffix.lower() in PICTURES]
    if not found:
        raise BadInput(f"{folder} holds no pictures", f"It needs files ending in {', '.join(sorted(PICTURES))}")
    return natural(found)


def natural(paths: Sequence[Path]) -> list[Path]:
    """Sorted as a person counts: frame2 before frame10."""
    def parts(path: Path) -> tuple[list[tuple[int, str]], str]:
        split = re.split(r"(\d+)", path.name)
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in split], path.name

    return sorted(paths, key=parts)


def read_masks(folder: Path | str, size: tuple[int, int] | None = None) -> np.ndarray:
    """A folder of mask pictures as any editor saves them (white: inside; transparent: outside), in natural order ->
    bool (F, H, W). size: (H, W) to bring them to."""
    masks = list(_each("mask", list_images(folder)))
    if size:
        masks = [np.asarray(Image.fromarray(mask).resize(size[::-1], Image.Resampling.NEAREST)) for mask in masks]
    if len({mask.shape for mask in masks}) > 1:
        raise BadInput(f"the masks in {folder} have several sizes", "Frames of one clip need one size")
    return np.stack(masks)


def _sides(picture: np.ndarray) -> str:
    return f"{picture.shape[1]} x {picture.shape[0]}"


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
    with replacing(path) as half:
        writer = imageio_ffmpeg.write_frames(
            str(half), frames.shape[2:0:-1], fps=fps, codec="libx264", macro_block_size=1, quality=None,
            pix_fmt_out="yuv420p" if even else "yuv444p", ffmpeg_log_level="error",
            output_params=["-crf", "10", "-preset", "medium", "-movflags", "+faststart",
                           "-colorspace", "smpte170m", "-color_range", "tv", "-f", "mp4"])
        writer.send(None)
        for frame in frames:
            writer.send(frame.tobytes())
        writer.close()
    return path


def write_frames(path: Path | str, frames_FHWC: np.ndarray) -> Path:
    """The frames side by side in one PNG, lossless; their number is written into the file, and read_clip reads it."""
    note = PngImagePlugin.PngInfo()
    note.add_text(STRIP, str(len(frames_FHWC)))
    Image.fromarray(np.concatenate(list(frames_FHWC), 1)).save(path, pnginfo=note)
    return Path(path)


def write_images(folder: Path | str, pictures_NHWC: Sequence[np.ndarray], names: Sequence[str] | None = None
                 ) -> list[Path]:
    """folder/0000.png, 0001.png, ..., or under these names -> their paths."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = [Path(folder) / f"{name}.png" for name in names or (f"{n:04d}" for n in range(len(pictures_NHWC)))]
    for path, picture in zip(paths, pictures_NHWC):
        Image.fromarray(picture).save(path, compress_level=3)              # a third of the time for 5 % more bytes
    return paths


def write_masks(folder: Path | str, masks_FHW: Sequence[np.ndarray], names: Sequence[str] | None = None) -> list[Path]:
    """folder/0000.png, ..., or under these names: white inside, black outside. They may differ in size. Pictures of a
    longer track that lie there are removed."""
    folder = Path(folder)
    for old in folder.glob("[0-9]" * 4 + ".png"):
        old.unlink()
    return write_images(folder, [np.asarray(mask, np.uint8) * 255 for mask in masks_FHW], names)


def enlarge(frames: np.ndarray, times: int) -> np.ndarray:
    """Every pixel becomes times x times pixels: (F, H, W, ...) -> (F, H * times, W * times, ...)."""
    return frames.repeat(times, 1).repeat(times, 2)
