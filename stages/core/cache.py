"""What is dear to compute and comes out the same every time, kept in the project's .cache/ by its content.

    cache = Cache(project, [backbone.revision, ...])
    x = cache.tensor("latents", [frames], lambda: encode(frames))

A value lies under the sha256 of all that it depends on: what the cache is of (`about`), the key, the versions of the
libraries that compute it. Keys hold content (pixels, token rows, weights, numbers, prompts), never a name, a place or a
time: whatever changes is another value, and nothing has to be declared stale. What is read is what was computed, bit
for bit and in the same layout. Processes that need the same value at once make it once: the others wait for it.

Kept are, by kind (a folder each; sizes at 576x320, 24 frames, float32):

    latents    of a photo (46 kB), of a clip (1.1 MB)             noise     a clip's inverted noise (1.1 MB)
    auxiliary  of a part of a file (1.1 MB)                       text      a prompt's vectors (0.3 MB)
    videos     latents drawn to be learned from (1.1 MB)          masks     what a segmenter drew (4.4 MB)
    bank       answers to c_ap, 16 draws a file (18 MB)

Not kept is what one run alone can use: compositions of CutMix, previews, samples. Where a run that has something to add
finds more than MOST bytes, what was longest not used goes first. All of it can be deleted at any time, by anybody.
"""
from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .errors import BadInput, Locked, VideomageError
from .report import Report, silent
from .saving import save_tensors
from .stage import versions
from .tensors import checksum, raw, read_tensors
from .workspace import Workspace

MOST = 4 * 2**30           # bytes
RECENT_SECONDS = 3600.0    # what was used since is never taken away: by this run, most likely, or one beside it
_ONE = "value"


class Cache:
    """The cache of a project, for values that depend on `about`, as well. Without a project nothing is kept, and every
    value is computed. report: hears of damaged files."""

    def __init__(self, project: Workspace | None = None, about: Sequence = (), report: Report = silent) -> None:
        self._project, self._about, self._report = project, [*about], report
        self._trimmed = self._told = False

    def tensors(self, kind: str, key: Sequence, make: Callable[[], Mapping[str, Tensor]], *, keep: bool = True,
                wait: bool = True) -> dict[str, Tensor]:
        """What make() returns, computed or read; on the CPU where it was read: move it. key: what it depends on, see
        `digest`. keep: False computes it. wait: False raises Locked where another process is making it just now."""
        if self._project is None or not keep:
            return {name: _plain(value) for name, value in make().items()}
        path = self._path(kind, key)
        found = self._read(path)
        if found is None:
            with self._project.lock(f"{kind}-{path.stem[:16]}", wait=wait):
                found = self._read(path)                                         # another has made it meanwhile
                if found is None:
                    found = {name: _plain(value) for name, value in make().items()}
                    self._write(path, found)
        return found

    def tensor(self, kind: str, key: Sequence, make: Callable[[], Tensor], *, keep: bool = True, wait: bool = True
               ) -> Tensor:
        """The same of one tensor."""
        return self.tensors(kind, key, lambda: {_ONE: make()}, keep=keep, wait=wait)[_ONE]

    def several(self, kind: str, jobs: Sequence[tuple[Sequence, Callable[[], Tensor]]], *,
                made: Callable[[int], None] = lambda k: None,
                failed: Callable[[int, BadInput], None] | None = None) -> list[Tensor]:
        """The values of several jobs (key, make), in order. Processes that are at the same jobs share them: each makes
        first what nobody is making, then waits for the rest.

        made(k) is called after job k was computed here. failed(k, error): where making it raised BadInput; the others
        are made nevertheless, and the list lacks it. None: the error is raised at once.
        """
        found: dict[int, Tensor | None] = {}
        for wait in (False, True):
            for k, (key, make) in enumerate(jobs):
                computed = []
                try:
                    if k not in found:
                        found[k] = self.tensor(kind, key, lambda: computed.append(1) or make(), wait=wait)  # noqa: B023
                except Locked:
                    continue
                except BadInput as error:
                    if failed is None:
                        raise
                    found[k] = failed(k, error)
                if computed and found[k] is not None:
                    made(k)
        return [value for _, value in sorted(found.items()) if value is not None]

    def has(self, kind: str, key: Sequence) -> bool:
        """Whether it would be read."""
        return self._project is not None and self._path(kind, key).is_file()

    def _path(self, kind: str, key: Sequence) -> Path:
        return self._project.root / ".cache" / kind / f"{digest(versions(), self._about, [*key])}.safetensors"

    def _read(self, path: Path) -> dict[str, Tensor] | None:
        if not os.access(path, os.R_OK):                     # not there, or out of reach, which is no damage
            return None
        try:
            read, said = read_tensors(path, "a value of the cache", finite=False)
            found = {name: value.clone() for name, value in read.items()}
        except VideomageError:
            found, said = {}, {}
        if not found or said.get("crc32") != checksum(found):
            self._report(note=f"{self._project.show(path)} is damaged: what was in it is made anew")
            path.unlink(missing_ok=True)
            return None
        with suppress(OSError):                                                            # deleted meanwhile
            os.utime(path)
        return found

    def _write(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Best effort: a value is as good where it cannot be kept (no room, no right, the folder just deleted)."""
        try:
            if not self._trimmed:
                self._trim()
            save_tensors(tensors, path, {"crc32": checksum(tensors)}, self._project.partial)
        except OSError as error:
            if not self._told:
                self._report(note=f"{self._project.show(path.parent)} cannot be written ({error}): it will be computed "
                                  "again")
            self._told = True

    def _trim(self) -> None:
        self._trimmed = True
        there = [(facts.st_mtime, facts.st_size, path) for path, facts in self._project.cached()]
        over, recent = sum(size for _, size, _ in there) - MOST, time.time() - RECENT_SECONDS
        for used, size, path in sorted(there):
            if over <= 0 or used > recent:
                break
            path.unlink(missing_ok=True)
            over -= size


def digest(*parts: object) -> str:
    """sha256 over content: numbers, text, None, tensors and arrays (kind of number, shape, bytes), and sequences and
    mappings of those. Raises TypeError for anything else, such as a path: it would tell nothing of what lies there."""
    whole = hashlib.sha256()
    _add(whole, parts)
    return whole.hexdigest()


def _add(whole, part: object) -> None:
    """Each piece says its kind and its length before its bytes, so that no two contents read alike."""
    if isinstance(part, np.ndarray):
        part = torch.from_numpy(np.ascontiguousarray(part))
    if isinstance(part, Tensor):
        whole.update(f"{part.dtype} {tuple(part.shape)} ".encode())
        whole.update(raw(part))
    elif isinstance(part, Mapping):
        whole.update(f"mapping {len(part)} ".encode())
        for key in sorted(part):
            _add(whole, key)
            _add(whole, part[key])
    elif isinstance(part, (list, tuple)):
        whole.update(f"sequence {len(part)} ".encode())
        for item in part:
            _add(whole, item)
    elif part is None or isinstance(part, (str, int, float)):
        whole.update(f"{json.dumps(part)} ".encode())
    else:
        raise TypeError(f"a key holds content, and no {type(part).__name__}")


def _plain(value: Tensor) -> Tensor:
    """Without history and in the layout of one that was read: other strides would be other kernels, and other bits."""
    return value.detach().clone(memory_format=torch.contiguous_format)
