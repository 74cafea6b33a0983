"""What a container says of itself, and what ffmpeg says of a file. video.py holds the two against each other."""
from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import BinaryIO

import imageio_ffmpeg


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
    header = ffmpeg_says("-i", str(path))
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


def count_frames(path: Path) -> int:
    """Frames that ffmpeg can decode: only to say how bad the damage is."""
    counts = re.findall(r"frame= *(\d+)", ffmpeg_says("-i", str(path), "-map", "0:v:0", "-f", "null", "-"))
    return int(counts[-1]) if counts else 0


def ffmpeg_says(*arguments: str) -> str:
    """What ffmpeg (the one that imageio-ffmpeg brings along) says about a file; an error is an answer too."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", *arguments]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False).stderr
