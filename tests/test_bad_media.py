"""Media that are damaged, hostile or absurd: true frames or an error that names the file; never a crash, a hang, a
shorter clip, another file opened. Real files, real codecs, in the process where they run (core/apart.py)."""
from __future__ import annotations

import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_import_rules import FILES, imported, module_of
from test_media import FAST, LOSSLESS, SHAPE, blank, cut_in, film, noisy, packets, pillow, save, scene, text
from test_segment import collect, make, typed

from stages.auxiliary import shortened
from stages.core import apart, video
from stages.core.errors import BadInput
from stages.core.paths import LONGEST
from stages.core.takes import read_take, sampled
from stages.options import LearnSubjectOptions, resolve
from stages.segment import segment

ROOT = Path(__file__).parent.parent
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
BFRAMES = {"crf": "20", "bf": "3", "g": "12", "x264-params": "b-adapt=0:scenecut=0"}


def idle() -> apart.Decoder:
    """The process that waits for the next file, after it has read one."""
    return apart._idle[0]


def worker_of(process: int) -> int:
    """The one that reads files; a template forks it off."""
    return int(Path(f"/proc/{process}/task/{process}/children").read_text().split()[0])


def gone(process: int, within: float = 10.0) -> bool:
    until = time.monotonic() + within
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


# -- the process ------------------------------------------------------------------------------------------------------
@LINUX
def test_it_has_limits_knows_no_torch_and_is_kept(tmp_path):
    path = film(tmp_path / "a.mp4", scene())
    video.read_clip(path)
    first = idle().process.pid
    worker = worker_of(first)
    lines = Path(f"/proc/{worker}/limits").read_text().splitlines()
    limits = {line[:26].strip(): line[26:].split()[0] for line in lines}
    assert limits["Max file size"] == "0" and limits["Max core file size"] == "0"
    assert limits["Max address space"] == str(apart.LIMITS.memory) and limits["Max cpu time"] != "unlimited"
    assert "torch" not in Path(f"/proc/{worker}/maps").read_text()
    assert b"HOME=" not in Path(f"/proc/{worker}/environ").read_bytes()
    video.read_images([save("a.png", noisy(1)[0])(tmp_path)])
    assert idle().process.pid == first and worker_of(first) == worker
    with pytest.raises(BadInput):
        video.read_clip(text("b.mp4")(tmp_path))
    video.read_clip(path)
    assert idle().process.pid == first and worker_of(first) != worker, "what met damage meets no other file"


SCRIPT = """
import os, sys, threading
from pathlib import Path
from stages.core import apart, video
path = sys.argv[1]
found = [video.read_clip(path)]
assert "torch" not in sys.modules and "av" not in sys.modules and "decord" not in sys.modules
thread = threading.Thread(target=lambda: found.append(video.read_clip(path)))
thread.start(), thread.join()
first, child = apart._idle[0].process.pid, os.fork()
if not child:
    os._exit((video.read_clip(path) == found[0]).all() and apart._idle[0].process.pid != first and 7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert len(found) == 2 and (video.read_clip(path) == found[1]).all() and apart._idle[0].process.pid == first
print(first, flush=True)
sys.stdin.read()
"""


@LINUX
def test_in_a_thread_in_a_fork_without_a_terminal_and_it_dies_with_its_parent(tmp_path):
    path = film(tmp_path / "a.mp4", scene())
    parent = subprocess.Popen([sys.executable, "-c", SCRIPT, str(path)], cwd=ROOT, stdin=subprocess.PIPE, text=True,
                              stdout=subprocess.PIPE, start_new_session=True)
    process = int(parent.stdout.readline())
    worker = worker_of(process)
    parent.kill()
    parent.communicate()
    assert gone(process) and gone(worker)


@LINUX
def test_a_crash_a_hang_and_a_kill_are_errors_that_name_the_file(tmp_path, survived):
    path, small = film(tmp_path / "a.mp4", noisy(24).repeat(4, 1).repeat(4, 2)), film(tmp_path / "b.mp4", scene())
    for number, words in ((signal.SIGSEGV, "crashed the codec that read it .SIGSEGV"), (signal.SIGABRT, "SIGABRT"),
                          (signal.SIGKILL, "was killed, for want of memory"), (signal.SIGXCPU, "processor time")):
        video.read_clip(small)
        process = idle().process.pid
        answers = apart.ask("frames", [path], at=None, size=None, partial=False)
        next(answers)
        os.kill(worker_of(process), number)
        with pytest.raises(BadInput, match=f"a.mp4 .*{words}") as refusal:
            list(answers)
        assert refusal.value.exit_code == 3 and refusal.value.remedy and gone(process)
        survived("bad media: the decoding process", number.name)
    video.read_clip(small)
    os.killpg(idle().process.pid, signal.SIGKILL)
    assert len(video.read_clip(small)) == 4, "what ended while it waited is no fault of the next file"


@LINUX
def test_what_hangs_is_given_up(tmp_path, monkeypatch, survived):
    path = film(tmp_path / "a.mp4", scene())
    video.read_clip(path)
    monkeypatch.setattr(apart, "LIMITS", apart.Limits(seconds=0.5))
    process = idle().process.pid
    os.kill(worker_of(process), signal.SIGSTOP)
    with pytest.raises(BadInput, match=r"a.mp4 took longer to decode than 0.5\d* s"):
        video.read_clip(path)
    assert gone(process)
    survived("bad media: the decoding process", "stopped")


@pytest.mark.parametrize("name", ["a.png", "a.mp4", pytest.param("b.mp4", marks=pytest.mark.faults)])
def test_memory_has_a_limit(name, tmp_path, monkeypatch, survived):
    """By Pillow, by decord, by PyAV."""
    big = np.zeros((2, 3000, 4000, 3), np.uint8)
    path = tmp_path / name
    if name == "a.png":
        Image.fromarray(np.dstack([big[0], big[0, ..., :1]])).save(path, compress_level=1)
    else:
        film(path, big, tagged=True, options={"preset": "ultrafast"}, rotate=None if name == "a.mp4" else 90)
    monkeypatch.setattr(apart, "LIMITS", apart.Limits(memory=300 << 20))
    with pytest.raises(BadInput, match=f"{name} (needs more memory to decode than 0.293 GiB|.*crashed the codec)"):
        video.read_clip(path)
    monkeypatch.undo()
    assert video.read_clip(path, size=(30, 40)).shape[1:] == (30, 40, 3), "the same file, under the usual limit"
    survived("bad media: limits", f"memory, {name}")


def test_what_is_read_at_once_has_a_limit(tmp_path, monkeypatch, survived):
    """Black frames are a small file, whatever they unfold to: of a clip, of photos, and of masks."""
    path = film(tmp_path / "a.mp4", np.zeros((30, 400, 600, 3), np.uint8))
    photos = [save(f"{k}.png", np.zeros((400, 600, 3), np.uint8))(tmp_path) for k in range(30)]
    monkeypatch.setattr(apart, "LIMITS", apart.Limits(whole=10 * 400 * 600 * 3))
    for read, name in ((lambda: video.read_clip(path), "a.mp4"), (lambda: list(video.photos_of(photos)), "10.png")):
        with pytest.raises(BadInput, match=f"{name} is too much .*: 11 pictures, .* 600 x 400 .* 0.00671 GiB"):
            read()
    assert len(video.read_clip(path, at=range(10))) == len(video.read_clip(path, size=(40, 60))) - 20 == 10
    assert apart.Limits().whole == 8 << 30
    survived("bad media: limits", "what is held together")


def test_the_frames_of_a_sample_are_a_strip(tmp_path, survived):
    """A stranger's samples/x/frames.png may be a clip of a hundred thousand frames: content decides what a file is."""
    strip = video.write_frames(tmp_path / "frames.png", scene())
    assert np.array_equal(video.read_frames(strip), scene()) and len(video.read_frames(
        video.write_frames(tmp_path / "one.png", scene()[:1]))) == 1
    film(tmp_path / "a.mp4", scene()).rename(strip)
    (tmp_path / "x.png").write_bytes(pillow("a.gif", scene(), duration=100)(tmp_path).read_bytes())
    for path in (strip, tmp_path / "x.png", save("photo.png", scene()[0])(tmp_path)):
        with pytest.raises(BadInput, match=f"{path.name} is no (strip of frames|picture)") as refused:
            video.read_frames(path)
        assert refused.value.remedy
    read = re.compile(r"read_clip\([^)]*(frames\.png|inputs\[\"frames\"\])")
    assert not [path for path in FILES if read.search(path.read_text(encoding="utf-8"))], "read_frames does that"
    survived("bad media: limits", "a sample's frames")


def test_time_has_a_limit(tmp_path, monkeypatch):
    path = film(tmp_path / "a.mp4", noisy(24).repeat(8, 1).repeat(8, 2), options={"preset": "ultrafast"})
    video.extent(path)
    monkeypatch.setattr(apart, "LIMITS", apart.Limits(seconds=0.001, rate=1e12))
    with pytest.raises(BadInput, match="a.mp4 took longer to decode than 0.001 s.*Make a plain copy"):
        video.read_clip(path)


# -- absurd sizes -----------------------------------------------------------------------------------------------------
def vast_png(path: Path) -> Path:
    head = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(bytes(1 << 20))), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks))
    return path


def vast_mkv(path: Path) -> Path:
    """50,000 x 50,000 by the header of a real one: PixelWidth (B0) and PixelHeight (BA)."""
    data = film(path, scene(4, (288, 352)), "ffv1", tagged=False).read_bytes()
    for old, name in ((352, b"\xb0"), (288, b"\xba")):
        place = name + b"\x82" + struct.pack(">H", old)
        assert data.count(place) == 1
        data = data.replace(place, name + b"\x82" + struct.pack(">H", 50_000))
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("make_it", [
    lambda d: vast_png(d / "vast.png"), lambda d: vast_mkv(d / "vast.mkv"),
    lambda d: text("vast.y4m", "YUV4MPEG2 W50000 H50000 F8:1 C420\nFRAME\n")(d)], ids=["png", "mkv", "y4m"])
def test_50000_by_50000(make_it, tmp_path, survived):
    path = make_it(tmp_path)
    started = time.monotonic()
    for read in (video.read_clip, video.extent, lambda path: video.read_images([path])):
        with pytest.raises(BadInput, match="vast.* (too large|frames of 50000 x 50000|more than 134217728|is no)"):
            read(path)
    assert time.monotonic() - started < 20
    survived("bad media: limits", path.name)


def test_ten_hours(tmp_path, survived):
    """Ten hours of few frames are read by their times; a header that claims ten hours, and has less, is refused; one
    of an mp4 that only says so counts for nothing beside its list of frames."""
    long = film(tmp_path / "long.mp4", scene(37), times=[1000 * k for k in range(37)], base=Fraction(1, 1))
    times = video.clip_times(long)
    assert len(times) == 37 and times[-1] == 36_000
    assert np.array_equal(video.read_clip(long, at=[36]), video.read_clip(long)[[36]])
    data = film(tmp_path / "claims.mp4", scene()).read_bytes()
    place = data.index(b"mvhd") + 16
    scale = struct.unpack(">I", data[place:place + 4])[0]
    (tmp_path / "claims.mp4").write_bytes(data[:place + 4] + struct.pack(">I", 36_000 * scale) + data[place + 8:])
    assert video.extent(tmp_path / "claims.mp4").count == 4
    data = film(tmp_path / "claims.mkv", scene()).read_bytes()
    place = data.index(b"\x44\x89\x88") + 3                           # Duration, float64 of milliseconds
    (tmp_path / "claims.mkv").write_bytes(data[:place] + struct.pack(">d", 36e6) + data[place + 8:])
    with pytest.raises(BadInput, match=r"claims.mkv is damaged: decoded 4 of 28\d{4} frames"):
        video.read_clip(tmp_path / "claims.mkv")
    survived("bad media: limits", "ten hours")


# -- nothing else is opened -------------------------------------------------------------------------------------------
class Canary:
    """A socket that nobody may call, and a file that nobody may read: the system notes when it was."""

    def __init__(self, folder: Path) -> None:
        self.file = film(folder / "second.mp4", scene())
        os.utime(self.file, (1e9, 1.2e9))                              # read before it was written: the next is noted
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.settimeout(0.05)
        self.port = self._server.getsockname()[1]

    def __enter__(self) -> Canary:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.close()

    def sang(self) -> bool:
        try:
            self._server.accept()[0].close()
            return True
        except TimeoutError:
            return self.file.stat().st_atime != 1e9


def points(path: Path, kind: bytes, record: bytes) -> Path:
    """A whole mp4 whose frames are said to lie elsewhere: this record in place of its data reference."""
    data = bytearray(film(path, scene()).read_bytes())
    assert data.index(b"mdat") < data.index(b"moov"), "places of the frames stay as they are"
    box = data.index(b"url \0\0\0\1") - 4
    new = struct.pack(">I", 12 + len(record)) + kind + b"\0\0\0\0" + record
    for name in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        place = data.index(name) - 4
        data[place:place + 4] = struct.pack(">I", struct.unpack(">I", data[place:place + 4])[0] + len(new) - 12)
    path.write_bytes(bytes(data[:box]) + new + bytes(data[box + 12:]))
    return path


def alias(target: Path) -> bytes:
    """An Apple alias record with one item: the absolute path (type 2)."""
    name, whole = target.name.encode(), str(target).encode()
    return (bytes(6 + 4) + bytes([1]) + b"/".ljust(27, b"\0") + bytes(12) + bytes([len(name)]) + name.ljust(63, b"\0")
            + bytes(16) + struct.pack(">HH", 1, 1) + bytes(16) + struct.pack(">HH", 2, len(whole)) + whole
            + b"\0" * (len(whole) % 2) + struct.pack(">HH", 0xFFFF, 0) + bytes(64))


PLAYLISTS = {
    "a.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{0}\n#EXT-X-ENDLIST\n",
    "m3u8.mp4": "#EXTM3U\n#EXTINF:1,\n{0}\n", "spaced.mp4": "\n #EXTM3U\n{0}\n", "a.m3u": "{0}\n",
    "concat.mp4": "ffconcat version 1.0\nfile '{0}'\n", "a.ffconcat": "ffconcat version 1.0\nfile '{0}'\n",
    "bare.txt": "file '{0}'\n", "a.pls": "[playlist]\nFile1={0}\nNumberOfEntries=1\n",
    "a.asx": "<asx version='3.0'><entry><ref href='{0}'/></entry></asx>", "ref.asf": "[Reference]\nRef1={0}\n",
    "a.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\na=control:{0}\nm=video {1} RTP/AVP 96\n"
             "a=rtpmap:96 H264/90000\n",
    "a.mpd": "<MPD xmlns='urn:mpeg:dash:schema:mpd:2011' type='static' mediaPresentationDuration='PT1S'><Period>"
             "<AdaptationSet mimeType='video/mp4'><Representation id='1' bandwidth='1'><BaseURL>{0}</BaseURL>"
             "</Representation></AdaptationSet></Period></MPD>",
    "a.svg": "<svg xmlns='http://www.w3.org/2000/svg'><image href='{0}'/></svg>", "a.qtl":
    "<?xml version='1.0'?><?quicktime type='application/x-quicktime-media-link'?><embed src='{0}'/>",
    "a.eps": "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n({0}) run\n"}


USUAL = {"m3u8.mp4", "concat.mp4", "a.sdp", "url.mp4", "alias.mov"}


@pytest.mark.parametrize("name", [name if name in USUAL else pytest.param(name, marks=pytest.mark.faults)
                                  for name in (*PLAYLISTS, "url.mp4", "alias.mov")])
def test_a_file_that_points_elsewhere_opens_nothing_else(name, tmp_path, survived):
    with Canary(tmp_path) as canary:
        there = str(canary.file)
        for target in (f"http://127.0.0.1:{canary.port}/a.mp4", there, f"file://{there}", "second.mp4"):
            if name in PLAYLISTS:
                path = text(name, PLAYLISTS[name].format(target, canary.port))(tmp_path)
            else:
                record = alias(canary.file) if name == "alias.mov" else target.encode() + b"\0"
                path = points(tmp_path / name, b"alis" if name == "alias.mov" else b"url ", record)
            for read in (video.read_clip, video.extent, lambda path: video.read_images([path])):
                try:
                    read(path)
                    assert name in ("url.mp4", "alias.mov"), "it was taken for a clip"
                except BadInput as refusal:
                    assert name in refusal.what and refusal.remedy
            assert not canary.sang(), target
        survived("bad media: nothing else opened", name)
        canary.file.read_bytes()                                       # both of them can sing
        noted = canary.sang()
        os.utime(canary.file, (1e9, 1.2e9))
        socket.create_connection(("127.0.0.1", canary.port)).close()
        assert canary.sang()
    if not noted:
        pytest.skip("this file system does not note when a file is read: only the socket was watched")


# -- a part of what is damaged ----------------------------------------------------------------------------------------
def again(path: Path):
    """Makes the same file once more: an encoder's second run may differ."""
    data = path.read_bytes()

    def making(folder: Path) -> Path:
        (folder / path.name).write_bytes(data)
        return folder / path.name
    return making


@pytest.mark.parametrize(("name", "options"), [
    ("a.mp4", BFRAMES), ("a.mp4", LOSSLESS), ("a.mkv", BFRAMES), ("a.ts", BFRAMES)])
def test_the_frames_before_the_damage_are_true(name, options, tmp_path):
    path = film(tmp_path / name, noisy(), options=options, wrap=FAST["wrap"] if name == "a.mp4" else {})
    whole, truth, order = again(path), video.read_clip(path), packets(path)
    for number in (1, 7, 13, 20):
        for harm in (cut_in, blank) if name != "a.ts" else (blank,):       # a stream has no end to be missed
            path = harm(whole, number)(tmp_path)
            if harm is cut_in:
                path.write_bytes(path.read_bytes()[:order[number][0]])
            try:
                there = video.extent(path, partial=True)
            except BadInput as refusal:
                assert "decoded 0 of" in refusal.what or name == "a.ts"
                continue
            assert there.count == len(there.times) <= there.of
            assert np.array_equal(video.read_clip(path, partial=True), truth[:there.count]), (number, harm)
            assert there.count <= number or name == "a.ts"
    with pytest.raises(BadInput, match="a.mp4 is damaged.*: decoded 0 of 24 frames"):
        video.read_clip(blank(lambda d: film(d / "a.mp4", noisy(), **FAST), 0)(tmp_path), partial=True)


def test_what_leans_on_a_damaged_frame_is_damaged(tmp_path):
    """B-frames come before the frame that they need, and libav hands them over as if they were whole."""
    path = film(tmp_path / "a.mp4", noisy(36), options=BFRAMES, **FAST)
    whole, truth = again(path), video.read_clip(path)
    path = blank(whole, 13)(tmp_path)                                  # the first P-frame of the second group
    good, asked = [], [0, 7, 11, 12, 13, 14, 15, 16, 20, 23, 24, 30, 35]
    for k in asked:
        try:
            assert np.array_equal(video.read_clip(path, at=[k])[0], truth[k]), f"frame {k} is not what it was"
            good.append(k)
        except BadInput:
            pass
    assert good == [k for k in asked if not 13 <= k < 24]


@pytest.mark.parametrize("name", ["a.gif", "a.apng"])
def test_the_pictures_before_the_damage(name, tmp_path):
    path = pillow(name, noisy(), duration=100)(tmp_path)
    truth, data = video.read_clip(path), path.read_bytes()
    path.write_bytes(data[:len(data) // 2])
    with pytest.raises(BadInput, match=f"{name} is (damaged: decoded|a damaged picture)"):
        video.read_clip(path)
    there = video.extent(path, partial=True)
    assert 5 < there.count < 20 and there.count < there.of <= 24 and len(there.times) == there.count
    assert np.array_equal(video.read_clip(path, partial=True), truth[:there.count])


def test_allow_partial_of_segment(tmp_path, base_folder, monkeypatch):
    drawn = {"horse": np.ones((30, 256, 320), bool)}
    project = make(tmp_path, base_folder, frames=30, fps=8, drawn=drawn, actors=["horse"])
    whole = segment(project)
    assert whole.manifest["facts"]["frames of the clip"] == {"sound": 30, "of": 30}
    place, _ = packets(tmp_path / "ref.mp4")[20]
    (tmp_path / "ref.mp4").write_bytes((tmp_path / "ref.mp4").read_bytes()[:place])
    with pytest.raises(BadInput, match=r"ref.mp4 is damaged: decoded \d+ of 30 frames.*--allow-partial"):
        segment(project)
    monkeypatch.chdir(tmp_path)
    assert "of 30 frames" in str(typed("segment", code=3))
    for k in range(30):
        (tmp_path / f"drawn/horse/{k:04d}.png").unlink()
    video.write_masks(tmp_path / "drawn/horse", np.ones((4, 256, 256), bool))
    typed("segment", "--allow-partial", code=0)
    made = project.manifest(whole.folder / "segment.json")
    there = made["facts"]["frames of the clip"]
    assert there["of"] == 30 and 8 <= there["sound"] <= 20 and made["settings"]["allow_partial"] is True
    assert "allow_partial" in made["overrides"] and len(read_take(whole.folder).frames) == 4
    told: list[str] = []
    segment(project, options=resolve("segment", project.settings, {"allow_partial": True}), force=True,
            report=collect(told))
    assert any(f"decoded {there['sound']} of 30 frames, and these are taken" in line for line in told)


def test_allow_partial_of_auxiliary_clips(tmp_path, base_folder):
    """The frames before the damage are taken of them, too, and the manifest can say of how many; without it they are
    refused, and the latents in the cache are kept apart."""
    project = make(tmp_path, base_folder)
    (tmp_path / "aux").mkdir()
    path = film(tmp_path / "aux/a.mp4", noisy(), options=LOSSLESS, **FAST)
    truth = video.read_clip(path)
    cut_in(again(path), 12)(tmp_path / "aux")
    (tmp_path / "aux/a.txt").write_text("a toy")
    film(tmp_path / "aux/b.mp4", noisy()).with_suffix(".txt").write_text("a dog")
    told: list[str] = []
    options = LearnSubjectOptions(auxiliary="aux", allow_partial=True)
    assert shortened(project, options, collect(told)) == {"a.mp4": [12, 24]}
    assert any("a.mp4 is damaged: decoded 12 of 24 frames, and these are taken" in line for line in told)
    with pytest.raises(BadInput, match="a.mp4 is damaged: decoded 12 of 24 frames"):
        sampled(path, fps=8, frames=4, size=SHAPE)
    assert np.array_equal(sampled(path, fps=8, frames=4, size=SHAPE, partial=True), truth[:4])


def test_codecs_are_known_to_the_process_apart_alone():
    inner = {f"stages.core.{name}" for name in ("containers", "decode", "packets", "pictures", "reading", "codecs")}
    for path in FILES:
        module, names = module_of(path), imported(path)
        assert module in inner or not names & (inner | {"av", "decord"}), module
        assert module == "stages.core.pictures" or "Image.open" not in path.read_text(encoding="utf-8"), module


# -- a hundred damaged files, and what is long ------------------------------------------------------------------------
faults = pytest.mark.faults


def webm(folder: Path) -> Path:
    return film(folder / "a.webm", noisy(), "libvpx-vp9", options={"crf": "30", "b": "0", "g": "8"})


SOUND = {"a.mp4": lambda d: film(d / "a.mp4", noisy(), options=BFRAMES, **FAST), "a.webm": webm,
         "a.mkv": lambda d: film(d / "a.mkv", noisy(), options=BFRAMES),
         "a.apng": pillow("a.apng", noisy(8), duration=100), "a.gif": pillow("a.gif", noisy(), duration=100),
         "b.png": save("b.png", noisy(1)[0]),
         "b.jpg": save("b.jpg", noisy(1)[0], quality=90), "b.webp": save("b.webp", noisy(1)[0], quality=90)}
UNSEEN = {"a.mp4", "a.webm", "a.mkv", "a.gif", "b.jpg", "b.webp"}       # kinds without checksums of what is shown


def harmed(data: bytes, kind: str, seed: int) -> bytes:
    """Cut off at a random place; or one bit in each of 1, 4 or 16 random bytes turned over."""
    dice, out = np.random.default_rng(seed), bytearray(data)
    if kind == "cut":
        return data[:int(dice.integers(1, len(data)))]
    for place in dice.integers(0, len(data), (1, 4, 16)[seed % 3]):
        out[place] ^= 1 << int(dice.integers(8))
    return bytes(out)


def outcome(path: Path, truth: np.ndarray) -> str:
    """true, changed (as many pictures, not the same; of a photo the size, too, is what its header says), or refused."""
    try:
        found = video.read_clip(path) if path.name.startswith("a.") else video.read_images([path])
    except BadInput as refusal:
        assert path.name in refusal.what and refusal.remedy and refusal.exit_code == 3
        return "refused"
    assert len(found) == len(truth) and (len(truth) == 1 or found.shape == truth.shape), "and not a word of it"
    return "true" if np.array_equal(found, truth) else "changed"


@faults
@pytest.mark.parametrize("name", SOUND)
def test_a_hundred_damaged_files(name, tmp_path, survived):
    """104 in all: 6 cut and 7 with bits turned over of each of eight kinds. What is cut is refused; a bit may go unseen
    where the format holds no checksum of it: then there are as many frames as there were, one of which looks otherwise.
    With `partial`, what is left of a cut clip is what was at its beginning."""
    path = SOUND[name](tmp_path)
    data = path.read_bytes()
    truth = video.read_clip(path) if name.startswith("a.") else video.read_images([path])
    for k in range(13):
        kind = "cut" if k < 6 else "bits"
        path.write_bytes(harmed(data, kind, 1000 * len(name) + ord(name[-1]) + k))
        started = time.monotonic()
        found = outcome(path, truth)
        assert found != "changed" or (kind == "bits" and name in UNSEEN), (k, found)
        if kind == "cut" and name.startswith("a."):
            try:
                part = video.read_clip(path, partial=True)
                assert np.array_equal(part, truth[:len(part)]) and len(part) <= len(truth), k
            except BadInput as refusal:
                assert path.name in refusal.what
        assert time.monotonic() - started < 60
        survived(f"bad media: {kind}, {found}", f"{name} {k}")


@faults
def test_a_clip_of_too_many_frames(tmp_path, survived):
    frame = b"FRAME\n" + bytes(3)
    (tmp_path / "long.y4m").write_bytes(b"YUV4MPEG2 W1 H1 F30:1 C444\n" + frame * (LONGEST + 1))
    with pytest.raises(BadInput, match="long.y4m holds more than 1000000 frames.*-ss START"):
        video.extent(tmp_path / "long.y4m")
    survived("bad media: limits", "frames")


@faults
def test_in_a_worker_of_ray(tmp_path):
    ray = pytest.importorskip("ray")
    path = film(tmp_path / "a.mp4", scene())
    damaged = text("b.mp4")(tmp_path)
    ray.init(num_cpus=1, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
    try:
        @ray.remote
        def read(path):
            try:
                return video.read_clip(path)
            except BadInput as refusal:
                return refusal.what

        whole, refused = ray.get([read.remote(path), read.remote(damaged)])
    finally:
        ray.shutdown()
    assert np.array_equal(whole, video.read_clip(path)) and "b.mp4 is no video" in refused
