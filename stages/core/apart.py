"""A process apart, in which every codec runs: limits on time, memory and writing, and nothing of ours to lose.

Whatever a person names as a video or a photo is decoded there (codecs.py) and nowhere else. The process is started
anew, not forked off this one, which may have threads; it imports no torch, knows none of our environment, may write to
no file, and ends when this process does. It is kept for the next file, so that its start is paid once. A file that
crashes it, or takes it too long or too much memory, is a BadInput that names the file; what it sends are lengths,
JSON and raw bytes, which are checked and never run.
"""
from __future__ import annotations

import atexit
import fcntl
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from . import errors
from .errors import BadInput, OutOfResources, VideomageError

HEAD = struct.Struct(">IQ")                        # lengths of a message's JSON and of the bytes after it
KINDS = {"|u1": np.uint8, "|b1": np.bool_, "<f8": np.float64}
ENV = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ", "SYSTEMROOT")
PIPE = 1 << 20                                     # bytes: what Linux allows anyone
MOST_WORDS = 1 << 16                               # bytes of JSON in one message
PLAIN = "Make a plain copy of it first: ffmpeg -i IN -c:v libx264 -crf 12 OUT.mp4; or, of a photo, a PNG"


@dataclass(frozen=True)
class Limits:
    """seconds: for one file, and one more for each `rate` bytes of it; of processor time for each core as well. memory:
    bytes of address space. answer: bytes of one array that is handed back. whole: of all arrays of one request, which
    whoever asked may hold together: 119 photos of 24 megapixels, or 512 frames (the most of a clip) of 5, while black
    frames of ten times that are a small file."""

    seconds: float = 120.0
    rate: float = 1e6
    memory: int = 4 << 30
    answer: int = 1 << 30
    whole: int = 8 << 30

    def of(self, path: Path) -> float:
        """Seconds that this file may take."""
        with suppress(OSError):
            return self.seconds + path.stat().st_size / self.rate
        return self.seconds


LIMITS = Limits()
_idle: list[Decoder] = []                                  # at most one, which waits for the next file
_lock = threading.Lock()


def ask(what: str, paths: list[Path], **how: object) -> Iterator[tuple[dict, np.ndarray | None]]:
    """The answers of codecs.py to one request, one after another: (facts, an array or None). paths: what is read, the
    first of which is named where the process dies. Raises what was raised there, and BadInput where a limit was
    passed or a codec crashed."""
    limits = LIMITS
    request = {"what": what, "paths": list(map(str, paths)), "here": _here(), **how, "limits": asdict(limits)}
    request["limits"]["seconds"] = sum(map(limits.of, paths))
    decoder = _take()
    try:
        try:
            yield from decoder.answers(request, limits)
        except _Gone:                                      # while it waited, which is no fault of this file
            decoder.end()
            decoder = Decoder()
            yield from decoder.answers(request, limits)
    finally:
        _give(decoder)


def _too_much(path: str, count: int, array: np.ndarray, limits: Limits) -> BadInput:
    size = " x ".join(map(str, array.shape[1::-1]))
    return BadInput(f"{path} is too much to read at once: {count} pictures, the last of {size} pixels, are more than "
                    f"{limits.whole / 2**30:.3g} GiB, which is the limit", "Make them smaller or fewer first; of a "
                    "clip, cut out a part: ffmpeg -ss START -t SECONDS -i IN -c copy OUT.mp4")


class _Gone(Exception):
    """A process that had served before was gone before it heard of this request."""


def _here() -> str | None:
    with suppress(OSError):                                # a folder that is gone: then only whole paths can be found
        return str(Path.cwd())


def _take() -> Decoder:
    with _lock:
        return _idle.pop() if _idle else Decoder()


def _give(decoder: Decoder) -> None:
    """Keep it for the next request, or be rid of it."""
    if decoder.between:
        with _lock:
            if not _idle:
                return _idle.append(decoder)
    decoder.end()
    return None


def _after_fork() -> None:
    """A fork of this process (of a library, or of Ray) shares no decoder with it."""
    global _lock
    _lock = threading.Lock()
    while _idle:
        _idle.pop().let_go()


def _at_exit() -> None:
    while _idle:
        _idle.pop().end()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)


class Decoder:
    """The process, and what is said to and fro. between: it waits for a request, and none is half answered. served:
    it has answered one."""

    def __init__(self) -> None:
        self.between = self.served = False
        root = str(Path(__file__).absolute().parents[2])
        places = [root, *(place or str(Path.cwd()) for place in sys.path if place != root)]
        code = f"import sys; sys.path[:] = {places!r}; from stages.core.codecs import main; main()"
        env = {name: os.environ[name] for name in ENV if name in os.environ}
        env |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
        flags = ["-X", "utf8"] if sys.flags.utf8_mode else []
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-S", *flags, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, bufsize=0, env=env, start_new_session=True)       # Ctrl-C is for us alone
        except OSError as error:
            raise OutOfResources(f"no process can be started to decode media in ({error.strerror})",
                                 "Close other programs, and try again") from error
        if hasattr(fcntl, "F_SETPIPE_SZ"):                 # whole frames at once: fewer turns on a busy machine
            with suppress(OSError):
                fcntl.fcntl(self.process.stdout, fcntl.F_SETPIPE_SZ, PIPE)
        self._poll = select.poll()
        self._poll.register(self.process.stdout, select.POLLIN)

    def answers(self, request: Mapping, limits: Limits) -> Iterator[tuple[dict, np.ndarray | None]]:
        self.between, heard, total, count = False, False, 0, 0
        path, seconds = request["paths"][0], request["limits"]["seconds"]
        until = time.monotonic() + seconds
        try:
            words = json.dumps(request).encode()
            self.process.stdin.write(struct.pack(">I", len(words)) + words)
            while True:
                facts, array = self._message(until, limits)
                heard, path = True, facts.get("path", path)
                if "error" in facts:
                    self.between = self.served = sys.platform != "darwin"          # there, it ends after a refusal
                    self._raise(facts, path, limits)
                if "end" in facts:
                    self.between = self.served = True
                    return
                if "path" not in facts:
                    count, total = count + 1, total + (0 if array is None else array.nbytes)
                    if total > limits.whole:
                        raise _too_much(path, count, array, limits)
                    yield facts, array
        except TimeoutError:
            raise BadInput(f"{path} took longer to decode than {seconds:.3g} s, which is the limit", PLAIN) from None
        except (EOFError, BrokenPipeError):
            if self.served and not heard:
                raise _Gone from None
            raise self._death(path) from None

    def _raise(self, facts: Mapping, path: str, limits: Limits) -> NoReturn:
        if facts["error"] == "memory":
            raise BadInput(f"{path} needs more memory to decode than {limits.memory / 2**30:.3g} GiB, which is the "
                           "limit", "Make it smaller first")
        kind = getattr(errors, str(facts["error"]), None)
        whole = isinstance(kind, type) and issubclass(kind, VideomageError)
        raise (kind if whole else BadInput)(str(facts.get("what")), str(facts.get("remedy", "")))

    def _message(self, until: float, limits: Limits) -> tuple[dict, np.ndarray | None]:
        """Raises TimeoutError, and EOFError where the process is gone or makes no sense."""
        words, size = HEAD.unpack(self._exactly(np.empty(HEAD.size, np.uint8), until))
        if words > MOST_WORDS or size > limits.answer:
            raise EOFError
        try:
            facts = dict(json.loads(bytes(self._exactly(np.empty(words, np.uint8), until))))
            if "shape" not in facts:
                return facts, None
            array = np.empty(tuple(map(int, facts.pop("shape"))), KINDS[facts.pop("kind")])
        except (ValueError, TypeError, KeyError, RecursionError, MemoryError):
            raise EOFError from None
        if array.nbytes != size:
            raise EOFError
        if size:
            self._exactly(array.reshape(-1).view(np.uint8), until)
        return facts, array

    def _exactly(self, room: np.ndarray, until: float) -> np.ndarray:
        """Fill it."""
        left, out = memoryview(room), self.process.stdout.fileno()
        while left:
            wait = until - time.monotonic()
            if not self._poll.poll(max(0.0, wait) * 1000):
                if wait <= 0:                              # asked once more: we may have been stopped (Ctrl-Z)
                    raise TimeoutError
                continue
            if not (count := os.readv(out, [left])):
                raise EOFError
            left = left[count:]
        return room

    def _death(self, path: str) -> BadInput:
        """Why it is gone, in words."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        code = self.process.returncode or 0
        number = -code if code < 0 else code - 128
        if number == signal.SIGXCPU:
            return BadInput(f"{path} took more processor time to decode than the limit", PLAIN)
        if number == signal.SIGKILL:
            return BadInput(f"{path} could not be decoded: the process that decoded it was killed, for want of memory "
                            "perhaps", "Make it smaller first, or close other programs")
        if number in set(signal.Signals):
            return BadInput(f"{path} is damaged: it crashed the codec that read it ({signal.Signals(number).name})",
                            PLAIN)
        os.set_blocking(self.process.stderr.fileno(), False)
        last = (self.process.stderr.read() or b"").decode(errors="replace").strip().rpartition("\n")[2]
        return BadInput(f"{path} cannot be decoded ({last or f'the codec ended with code {code}'})", PLAIN)

    def end(self) -> None:
        """Now, with whatever it is doing."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.let_go()

    def let_go(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            pipe.close()
        if self.process.returncode is None:                # a fork's copy: not its child, and not to be waited for
            self.process.returncode = 0
