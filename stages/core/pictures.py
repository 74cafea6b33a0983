"""Pictures as they are meant to be seen: photos, animated pictures, masks; by Pillow, told by content, not by name.

Every reader opens through `opened`, so damage, a bomb or a foreign file is a BadInput that names the file. A picture
may have as many pixels as a video's frame (paths.LARGEST, 134 million) and no more than Pillow takes (twice
Image.MAX_IMAGE_PIXELS, 179 million); Pillow's warning from half of that on is for servers.
"""
from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from . import colour
from .errors import BadInput
from .kinds import STRIP, UNREADABLE
from .paths import LARGEST, LONGEST, head_of, heic, is_heic, to_png

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "TIFF", "BMP", "AVIF", "JPEG2000", "PPM")
MOVING = {"GIF", "WEBP", "PNG", "AVIF"}                    # formats whose further pictures are frames with a duration
SLOW = 0.1                                                 # seconds that browsers give a GIF's frame of 10 ms or less
DAMAGE = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, struct.error,
          zlib.error)
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
         8: Image.Transpose.ROTATE_90}                     # EXIF's Orientation: what makes it upright
AGAIN = "Save it again as PNG or JPEG"
PART = "Copy it again; --allow-partial takes the frames before the damage"


@contextmanager
def opened(path: Path, *, partial: bool = False) -> Iterator[Image.Image]:
    """The picture, open; whatever Pillow meets in it becomes BadInput, and what it merely warns of is no matter.
    partial: a PNG's checksums are not looked at."""
    head = head_of(path)
    if path.suffix.lower() in UNREADABLE:
        raise BadInput(f"{path} is of a kind that is not read here ({path.suffix.lower()[1:]})",
                       f"Save it as PNG or JPEG first: {to_png(path)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_known()) as picture:
                _bounded(path, picture)
                if picture.format == "PNG" and not partial:
                    picture.verify()                       # the checksums; it is used up by that
            with Image.open(path, formats=_known()) as picture:
                yield picture
    except Image.DecompressionBombError as bomb:
        raise _too_large(path) from bomb
    except UnidentifiedImageError as foreign:
        raise (heic(path) if is_heic(head) else BadInput(f"{path} is no picture that can be read", AGAIN)) from foreign
    except DAMAGE as damage:
        raise BadInput(f"{path} is a damaged picture ({damage})", AGAIN) from damage


def _bounded(path: Path, picture: Image.Image) -> None:
    if picture.width * picture.height > LARGEST:
        raise _too_large(path)


def _too_large(path: Path) -> BadInput:
    return BadInput(f"{path} is too large a picture: more than {min(LARGEST, 2 * Image.MAX_IMAGE_PIXELS)} pixels",
                    "Make it smaller first")


def is_picture(path: Path, *, partial: bool = False) -> bool:
    """Whether the file's first bytes are those of a picture, moving or not. Raises BadInput for a bomb."""
    try:
        with opened(path, partial=partial):
            return True
    except BadInput as refused:
        if isinstance(refused.__cause__, UnidentifiedImageError):
            return False
        raise


def read_photo(path: Path) -> np.ndarray:
    """uint8 (H, W, 3) sRGB. Raises BadInput, also for what holds several pictures."""
    with opened(path) as picture:
        count = getattr(picture, "n_frames", 1)
        if count > 1 and picture.format in MOVING | {"TIFF"}:       # MPO: phones put a depth map behind the photo
            what = "an animation" if picture.format in MOVING else "a file"
            raise BadInput(f"{path} is {what} of {count} pictures, where a photo is wanted", "Save the one meant alone")
        return to_srgb(picture, _primaries(path, picture))


def read_mask(path: Path) -> np.ndarray:
    """bool (H, W): white is inside; what is transparent is outside, and so is what looks darker than mid-grey."""
    with opened(path) as picture:
        grey = np.asarray(_eight_bits(_upright(picture)).convert("RGBA").convert("LA"), np.uint32)
    return grey[..., 0] * grey[..., 1] > 127 * 255


def read_animation(path: Path, numbers: Sequence[int] | None = None, *, partial: bool = False
                   ) -> Iterator[tuple[int, np.ndarray]]:
    """(number, uint8 (H, W, 3)) of an animated picture's frames, of a strip's (see video.write_frames), or of a single
    picture as the only one; each once, ascending, one held at a time. numbers: which (default: all)."""
    with opened(path, partial=partial) as picture:
        begin, end = _span(path, picture, partial)
        primaries, strip = _primaries(path, picture), strip_of(picture)
        wanted = range(strip or end - begin) if numbers is None else sorted(set(numbers))
        if strip:
            frames = np.split(to_srgb(picture, primaries), strip, 1)
        for number in wanted:
            if not strip:
                picture.seek(begin + number)
                _bounded(path, picture)                    # pages may differ in size
            yield number, frames[number] if strip else to_srgb(picture, primaries)


def count_pictures(path: Path, *, partial: bool = False) -> int:
    with opened(path, partial=partial) as picture:
        begin, end = _span(path, picture, partial)
        return strip_of(picture) or end - begin


def animation_times(path: Path, *, partial: bool = False) -> np.ndarray | None:
    """Seconds of each frame from the first one, float64 (F,); None where the picture does not move."""
    with opened(path, partial=partial) as picture:
        begin, end = _span(path, picture, partial)
        if picture.format not in MOVING or (end - begin < 2 and picture.format != "GIF"):
            return None
        durations = []
        for number in range(begin, end):
            picture.seek(number)
            picture.load()
            durations.append(picture.info.get("duration", 0) / 1000)
        if picture.format == "GIF":
            durations = [SLOW if duration <= 0.01 else duration for duration in durations]
    return np.concatenate([[0.0], np.cumsum(np.maximum(durations[:-1], 1e-3))])


def beginning(path: Path) -> tuple[int, int]:
    """(how many frames of an animated picture can be decoded one after another, how many it has, the damaged one
    counted where it says no number). WebP breaks off as a whole: of a shorter file nothing can be decoded."""
    with opened(path, partial=True) as picture:
        of = 1
        with suppress(*DAMAGE):
            of = getattr(picture, "n_frames", 1)
        first, count = int(bool(picture.info.get("default_image")) and of > 1), 0
        whole = {"GIF": _whole_gif, "PNG": _whole_apng}.get(picture.format, lambda _: (of, False))(path.read_bytes())[0]
        with suppress(*DAMAGE):
            while count < min(of - first, whole):
                picture.seek(first + count)
                picture.load()
                count += 1
    return count, of - first


def _span(path: Path, picture: Image.Image, partial: bool = False) -> tuple[int, int]:
    """The first and one past the last of the pictures that are shown. Raises BadInput where the file breaks off."""
    count = getattr(picture, "n_frames", 1) if picture.format in MOVING | {"TIFF"} else 1      # MPO: see read_photo
    if count > LONGEST:
        raise BadInput(f"{path} holds more than {LONGEST} frames", "Make it shorter first")
    hidden = bool(picture.info.get("default_image")) and count > 1   # an APNG's still, not in its animation
    if partial and picture.format in MOVING and count > 1:
        there, of = beginning(path)
        if not there:
            raise BadInput(f"{path} is damaged from its first frame on: decoded 0 of {of} frames", AGAIN)
        return int(hidden), int(hidden) + there
    if picture.format == "GIF" and (whole := _whole_gif(path.read_bytes()))[1]:
        there, of = min(whole[0], count), max(whole[0] + 1, count)
        raise BadInput(f"{path} is damaged: decoded {there} of {of} frames, where it breaks off", PART)
    return int(hidden), count


def _whole_gif(gif: bytes) -> tuple[int, bool]:
    """(how many pictures of a GIF are there to their last byte, whether it ends within a block). Not every writer puts
    a trailer at the end; some put more after it."""
    def table(flags: int) -> int:
        return 3 << (flags & 7) + 1 if flags & 128 else 0

    count = 0
    try:
        place = 13 + table(gif[10])
        while place < len(gif) and gif[place] in b"!,":    # an extension, a picture; all else ends it
            picture = gif[place] == 44
            place += 11 + table(gif[place + 9]) if picture else 2
            while gif[place]:                              # its data, in parts after their lengths
                place += 1 + gif[place]
            place, count = place + 1, count + picture
    except IndexError:
        return count, True
    return count, False


def _whole_apng(png: bytes) -> tuple[int, bool]:
    """(how many frames of an APNG come before the first chunk that is cut off or fails its checksum, whether there is
    such a one)."""
    place, count = 8, 0
    while place + 12 <= len(png):
        size = int.from_bytes(png[place:place + 4], "big")
        name, end = png[place + 4:place + 8], place + 8 + size
        if png[end:end + 4] != zlib.crc32(png[place + 4:end]).to_bytes(4, "big"):
            break
        if name == b"IEND":
            return count, False
        count += name == b"fcTL"
        place = end + 4
    return max(0, count - 1), True                         # the last one begun may lack some


def strip_of(picture: Image.Image) -> int:
    """Frames side by side in a PNG, as we note it; 0: it is none."""
    noted = str(picture.info.get(STRIP, "")) if picture.format == "PNG" else ""
    count = int(noted) if noted.isdecimal() and len(noted) < 7 else 0
    return count if 0 < count <= picture.width and picture.width % count == 0 else 0


def _primaries(path: Path, picture: Image.Image) -> int:
    """H.273's number of the primaries that a PNG's cICP or an AVIF's nclx states; 2: not stated. Raises BadInput where
    the same says that it is HDR: of that Pillow gives the codes alone, and of a PNG's 16 bits but eight."""
    primaries, transfer = 2, 2
    with path.open("rb") as file:
        if picture.format == "PNG":
            file.seek(8)
            while len(chunk := file.read(8)) == 8 and chunk[4:] not in (b"IDAT", b"IEND"):
                if chunk[4:] == b"cICP":
                    primaries, transfer = file.read(2)
                    break
                file.seek(int.from_bytes(chunk[:4], "big") + 4, io.SEEK_CUR)
        elif picture.format == "AVIF" and (found := file.read(1 << 16).partition(b"colrnclx")[2]):
            primaries, transfer = struct.unpack(">HH", found[:4])
    if colour.is_hdr(transfer):
        raise BadInput(f"{path} is a picture of high dynamic range ({'PQ' if transfer == colour.PQ else 'HLG'}), which "
                       "is not read here", "Export it as SDR, in sRGB or Display P3")
    return primaries


def _known() -> list[str]:
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]              # AVIF: Pillow from 11.3 on


# -- one picture ----------------------------------------------------------------------------------------------------
def to_srgb(picture: Image.Image, primaries: int = 2) -> np.ndarray:
    """uint8 (H, W, 3): upright, from its colour profile to sRGB, on white paper where it is transparent. primaries:
    H.273's number, for a picture without a profile."""
    profile = picture.info.get("icc_profile")
    picture = _eight_bits(_upright(picture))
    if not profile and colour.is_wide(primaries):
        rgba = np.asarray(picture.convert("RGBA"))
        paint = colour.to_srgb(rgba[..., :3] / np.float32(255), 13, primaries)
        return colour.over_white(np.dstack([paint, rgba[..., 3]]))
    if picture.mode in ("LA", "PA", "La", "RGBa") or picture.has_transparency_data:
        picture = picture.convert("RGBA")
        if profile:
            paint = _managed(picture.convert("RGB"), profile)
            paint.putalpha(picture.getchannel("A"))
            picture = paint
        return colour.over_white(np.asarray(picture))
    if picture.mode == "P":
        picture = picture.convert("RGB")
    return np.array(_managed(picture, profile).convert("RGB"))


def _upright(picture: Image.Image) -> Image.Image:
    """By its EXIF orientation; EXIF that is broken counts for nothing."""
    picture.load()                                         # which turns a TIFF, and then says so
    try:
        turn = TURNS.get(picture.getexif().get(0x0112, 1))
    except DAMAGE:
        turn = None
    return picture if turn is None else picture.transpose(turn)


def _managed(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """Through its ICC profile to sRGB; a profile that is broken, or of another kind of picture, counts for nothing."""
    if not profile and picture.mode != "LAB":
        return picture
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile)) if profile else ImageCms.createProfile("LAB")
        if profile and "srgb" in ImageCms.getProfileDescription(source).lower():
            return picture
        return ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB",
                                         renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
                                         flags=ImageCms.Flags.BLACKPOINTCOMPENSATION)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return picture


def _eight_bits(picture: Image.Image) -> Image.Image:
    """16 bits: their upper eight, rounded. Float: 0..1, or, where it exceeds that, from its least to its most; integers
    of 32 bits likewise, where they exceed 16."""
    if picture.mode not in ("I", "F") and not picture.mode.startswith("I;16"):
        return picture
    values = np.nan_to_num(np.asarray(picture).astype(np.float64))
    least, most = values.min(), values.max()
    top = 1.0 if picture.mode == "F" else 65535.0
    if least < 0 or most > top:
        values, top = values - least, most - least
    return Image.fromarray(np.rint(values / (top or 1) * 255).astype(np.uint8))
