"""The process apart (apart.py) in which codecs run: reads requests from its standard input, answers on its output.

A template imports the codecs once and opens no file; a worker that it forks off (it has no threads) does. After a
refusal the worker ends, and a fresh one takes its place within milliseconds: what damage may have left in its memory
meets no other file. A worker that dies takes the template with it, and its parent says of which file. Where a fork is
not safe beside the system's frameworks (macOS), there is no template: the process ends after a refusal.
"""
from __future__ import annotations

import json
import os
import resource
import select
import signal
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np

from . import reading
from .apart import HEAD
from .errors import VideomageError

ANEW = 64                                          # exit code of a worker: all is well, but another shall go on
WRITES = 1 << 20
FULL = 0.75                                        # of the limit of memory: who had so much and failed, failed by that


def main() -> None:
    """Serve until the parent closes our input, or is gone."""
    out = os.dup(1)
    os.dup2(2, 1)                                          # what a library prints is no answer
    os.set_blocking(2, False)                              # and nobody waits for it to be read
    for what in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE):
        resource.setrlimit(what, (0, 0))                   # writes to no file, not even when it crashes
    if sys.platform == "darwin":
        raise SystemExit(_work(out))
    while True:
        worker = os.fork()
        if not worker:
            raise SystemExit(_work(out))
        code = os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1])
        if code != ANEW:
            raise SystemExit(128 - code if code < 0 else code)


def _work(out: int) -> int:
    """Answer requests until one is refused -> exit code."""
    most = [0]
    threading.Thread(target=_watch, args=(most,), daemon=True).start()
    while head := _exactly(4):
        request = json.loads(_exactly(struct.unpack(">I", head)[0]))
        if request["here"]:
            os.chdir(request["here"])
        most[0] = _limited(**request["limits"])
        try:
            for facts, array in _answers(request):
                _send(out, facts, array)
            _send(out, {"end": True})
        except VideomageError as refusal:
            if _peak() > FULL * most[0]:                   # to many a codec, no memory and damage are one error
                _send(out, {"error": "memory"})
                return ANEW
            _send(out, {"error": type(refusal).__name__, "what": refusal.what, "remedy": refusal.remedy})
            return ANEW
        except MemoryError:
            _send(out, {"error": "memory"})
            return ANEW
        except av.error.FFmpegError as failure:            # no thread, no buffer
            what = f"{request['paths'][0]} cannot be decoded ({failure.strerror})"
            _send(out, {"error": "memory" if _peak() > FULL * most[0] else "BadInput", "what": what,
                        "remedy": "Make a plain copy of it first: ffmpeg -i IN -c:v libx264 -crf 12 OUT.mp4"})
            return ANEW
    return 0


def _answers(request: dict) -> Iterator[tuple[dict, np.ndarray | None]]:
    what, paths = request["what"], [Path(path) for path in request["paths"]]
    for path in paths:
        yield {"path": str(path)}, None                    # which one it is that may bring us down
        if what == "extent":
            times, count, of = reading.extent(path, request["partial"])
            yield {"count": count, "of": of}, times
        elif what == "frames":
            size = tuple(request["size"]) if request["size"] else None
            for number, picture in reading.frames(path, request["at"], size, request["partial"]):
                yield {"number": number}, picture
        elif what == "strip":
            for number, picture in reading.read_strip(path):
                yield {"number": number}, picture
        elif what == "pictures":
            yield {"count": reading.count_pictures(path) if reading.is_picture(path) else 0}, None
        else:
            yield {}, (reading.read_photo if what == "photo" else reading.read_mask)(path)


def _limited(seconds: float, memory: int, **_: float) -> int:
    """Set the limits of one request: of address space, which threads' stacks and codecs' pools count towards, and of
    processor time, on top of what is spent -> memory."""
    spent = resource.getrusage(resource.RUSAGE_SELF)
    cpu = int(spent.ru_utime + spent.ru_stime + seconds * (os.cpu_count() or 1)) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    if sys.platform != "darwin":
        resource.setrlimit(resource.RLIMIT_AS, (memory, resource.getrlimit(resource.RLIMIT_AS)[1]))
    return memory


def _watch(most: list[int]) -> None:
    """End with the parent, whatever is being decoded; and, where the system holds no limit of memory, at that."""
    gone = select.poll()
    gone.register(0, select.POLLHUP)
    while not any(event & (select.POLLHUP | select.POLLERR) for _, event in gone.poll(
            200 if sys.platform == "darwin" else None)):
        if most[0] and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > most[0]:          # macOS counts bytes
            os._exit(128 + signal.SIGKILL)
    os._exit(0)


def _peak() -> int:
    """Bytes of address space, at most, that this process has had; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmPeak")), 0)


def _exactly(count: int) -> bytes:
    """From standard input, without a buffer that would be lost with this process; b"" at its end."""
    found = b""
    while len(found) < count:
        part = os.read(0, count - len(found))
        if not part:
            return b""
        found += part
    return found


def _send(out: int, facts: dict, array: np.ndarray | None = None) -> None:
    if array is not None:
        array = np.ascontiguousarray(array)
        facts = {**facts, "shape": array.shape, "kind": array.dtype.str}
    words = json.dumps(facts).encode()
    body = b"" if array is None else array.reshape(-1).view(np.uint8)
    for part in (HEAD.pack(len(words), len(body)) + words, body):
        left = memoryview(part)
        while left:
            left = left[os.write(out, left[:WRITES]):]
