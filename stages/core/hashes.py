"""sha256 of weights, which are large and rarely change: what was read once is not read again by the next run."""
from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from .foreign import read_json
from .store import write

_KEPT = 2**26                                          # bytes from which on a file's hash is kept between runs
_hashes: dict[str, list] = {}                          # path -> [size, mtime in ns, sha256], of this process


def home() -> Path:
    """Where converted bases and kept hashes lie: VIDEOMAGE_HOME, else videomage/ in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("VIDEOMAGE_HOME") or Path(cache) / "videomage")


def content(folder: Path, paths: Iterable[Path]) -> str:
    """One sha256 over the names in the folder and the content of those of its files."""
    whole = hashlib.sha256()
    for path in paths:
        whole.update(f"{path.relative_to(folder).as_posix()} {sha256(path)}\n".encode())
    return whole.hexdigest()


def sha256(path: Path) -> str:
    """Hash of one file. Gigabytes take long to read: those of large files are kept in `home()`, with the size and time
    stamp that they belong to."""
    facts, key = path.stat(), str(path.resolve())
    stamp = [facts.st_size, facts.st_mtime_ns]
    kept = home() / "hashes.json"
    large = facts.st_size >= _KEPT
    if key not in _hashes and large:
        _hashes.update({k: v for k, v in _read(kept).items() if k not in _hashes})
    if _hashes.get(key, [])[:2] != stamp:
        with path.open("rb") as handle:
            digest = hashlib.sha256()
            while block := handle.read(1 << 20):
                digest.update(block)
        _hashes[key] = [*stamp, digest.hexdigest()]
        if large:
            _keep(kept, {**_read(kept), key: _hashes[key]})
    return _hashes[key][2]


def _keep(path: Path, hashes: dict[str, list]) -> None:
    """Best effort: where the cache cannot be written, the next run reads the files again."""
    with suppress(OSError):
        write(path, json.dumps(hashes))


def _read(path: Path) -> dict[str, list]:
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
