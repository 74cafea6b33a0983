"""What can be said of a file before any codec sees it, and how much it may hold. Imports no codec."""
from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import BadInput

LARGEST = 2 ** 27          # pixels of a frame or a photo: as many as 16K video has
LONGEST = 1_000_000        # frames of a clip: nine hours at 30 a second


def head_of(path: Path) -> bytes:
    """The first 32 bytes. Raises BadInput where there are none, or none to be had."""
    with reached(path):
        if not path.is_file():
            raise BadInput(f"{path} {'is no file' if path.exists() else 'does not exist'}",
                           "Mind the folder that you are in")
        with path.open("rb") as file:
            head = file.read(32)
    if not head:
        raise BadInput(f"{path} is empty (0 bytes)", "Copy it again")
    return head


@contextmanager
def reached(path: Path) -> Iterator[None]:
    """What the system has against a path becomes BadInput: a folder that one may not enter, a name that is too long."""
    try:
        yield
    except OSError as shut:
        raise BadInput(f"{path} cannot be opened ({shut.strerror})", "Mind its name, and who may read it") from shut


def is_folder(path: Path) -> bool:
    with reached(path):
        return path.is_dir()


def is_heic(head: bytes) -> bool:
    return head[4:11] in (b"ftyphei", b"ftyphev", b"ftypmif", b"ftypmsf")


def heic(path: Path) -> BadInput:
    return BadInput(f"{path} is a HEIC picture, which is not read here",
                    f"Save it as PNG or JPEG first: {to_png(path)}")


def to_png(path: Path) -> str:
    """The command, as it can be typed: a name is no option and nothing that a shell would run."""
    plain = re.fullmatch(r"\w[\w. -]*", path.name)
    names = [shlex.quote(name if plain else f"./{name}") for name in (path.name, f"{path.stem}.png")]
    return f"magick {' '.join(names)}"
