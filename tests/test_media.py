"""Whatever video and photos people really have: each is read by a stated rule (core/video.py) or refused by name."""
from __future__ import annotations

import os
import re
import struct
import subprocess
import zlib
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest
from av.video.reformatter import Colorspace
from PIL import Image

from stages.core import colour, containers, decode, reading, video
from stages.core.errors import BadInput
from stages.core.kinds import ANIMATIONS, CLIPS, PICTURES, UNREADABLE

RED, BLUE = (222, 40, 40), (40, 60, 200)
SHAPE = (64, 96)
MUTE = {"x265-params": "log-level=none"}
LOSSLESS = {"crf": "1", "preset": "ultrafast"}


def scene(count: int = 4, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """Red at the top left, blue at the bottom right; the frame's number is in the grey of the rest."""
    out = np.zeros((count, *shape, 3), np.uint8)
    height, width = shape
    for k, frame in enumerate(out):
        frame[:] = grey_of(k)
        frame[:height // 2, :width // 2] = RED
        frame[height // 2:, width // 2:] = BLUE
    return out


def grey_of(k: int) -> int:
    return 60 + 6 * (k % 30)


def numbers_in(frames: np.ndarray) -> list[int]:
    """What frames of `scene` say their numbers are."""
    height, width = frames.shape[1:3]
    return [round((float(f[height // 8:height // 3, 5 * width // 8:7 * width // 8].mean()) - 60) / 6) for f in frames]


def read_here(path: Path, at: list[int] | None = None) -> np.ndarray:
    """As video.read_clip does, but in this process, so that a test can look on."""
    held = dict(reading.frames(path, at))
    return np.stack([held[number] for number in (held if at is None else at)])


def need(*codecs: str) -> None:
    for codec in codecs:
        try:
            av.Codec(codec, "w")
        except av.codec.codec.UnknownCodecError:
            pytest.skip(f"PyAV has no encoder {codec} here")


def film(path: Path, frames: np.ndarray, codec: str = "libx264", pixels: str = "yuv420p", *,
         options: dict | None = None, times: list[int] | None = None, base: Fraction = Fraction(1, 8),
         matrix: int = 5, full: bool = False, tagged: bool = True, rotate: float | None = None, mirror: bool = False,
         shape: Fraction | None = None, wrap: dict | None = None, sound: int = 0, rate: int = 8, **context) -> Path:
    """Encode RGB (or, as `pixels`, ready VideoFrames) by PyAV. times: of the frames, in units of base."""
    need(codec)
    with av.open(str(path), "w", options=wrap or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or (LOSSLESS if codec == "libx264" else {}))
        ready = isinstance(frames[0], av.VideoFrame)
        stream.height, stream.width = (frames[0].height, frames[0].width) if ready else frames[0].shape[:2]
        stream.pix_fmt = pixels
        stream.time_base = base
        stream.codec_context.time_base = base
        if tagged:
            stream.codec_context.colorspace, stream.codec_context.color_range = matrix, 2 if full else 1
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        if shape:
            stream.codec_context.sample_aspect_ratio = shape
        if rotate is not None or mirror:
            stream.set_display_rotation(rotate or 0, hflip=mirror)
        noise = container.add_stream("aac", rate=8000) if sound else None
        for k, frame in enumerate(frames):
            if not ready:
                frame = coded(frame, pixels, matrix, full, tagged)
            frame.pts, frame.time_base = times[k] if times else k, base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if noise:
            hiss = av.AudioFrame.from_ndarray(np.zeros((1, sound), np.float32), "fltp", "mono")
            hiss.sample_rate = 8000
            container.mux(noise.encode(hiss))
            container.mux(noise.encode())
    return path


def coded(frame: np.ndarray, pixels: str, matrix: int = 5, full: bool = False, tagged: bool = True) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgba" if frame.shape[-1] == 4 else "rgb24")
    out = frame.reformat(format=pixels, dst_colorspace=Colorspace.ITU709 if matrix == 1 else Colorspace.ITU601,
                         dst_color_range=2 if full else 1, interpolation=decode.EXACT)
    out.colorspace, out.color_range = (matrix, 2 if full else 1) if tagged else (2, 0)
    return out


def flat(code: tuple[float, float, float], pixels: str = "yuv420p10le", red: float = 0.2627, blue: float = 0.0593
         ) -> av.VideoFrame:
    """One colour, R'G'B' in 0..1, in ten bits by BT.2020's definition (BT.2100, table 6 and 9)."""
    r, g, b = code
    luma = red * r + (1 - red - blue) * g + blue * b
    levels = (64 + 876 * luma, 512 + 896 * (b - luma) / (2 * (1 - blue)), 512 + 896 * (r - luma) / (2 * (1 - red)))
    frame = av.VideoFrame(64, 64, pixels)
    for plane, level in zip(frame.planes, levels):
        plane.update(np.full(plane.buffer_size // 2, round(level), np.uint16).tobytes())
    frame.colorspace, frame.color_range = 9, 1
    return frame


# -- slow references, from the standards -----------------------------------------------------------------------------
def pq_code(light: float) -> float:
    """ST 2084's inverse EOTF: cd/m2 -> code."""
    y = (light / 10000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375


def hlg_code(scene_light: float) -> float:
    """BT.2100's HLG OETF: 0..1 -> code."""
    if scene_light <= 1 / 12:
        return (3 * scene_light) ** 0.5
    return 0.17883277 * float(np.log(12 * scene_light - 0.28466892)) + 0.55991073


def srgb_code(light: float) -> float:
    return 12.92 * light if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055


def shown(light_2020: tuple[float, float, float]) -> list[int]:
    """cd/m2 of linear BT.2020 -> the 8-bit sRGB that colour.py promises, by BT.2087's matrix, number by number."""
    rows = ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187))
    rgb = [max(0.0, sum(m * x / 203 for m, x in zip(row, light_2020))) for row in rows]
    top = max(rgb)
    scale = 1.0 if top <= 0.75 else (0.75 + (top - 0.75) / (1 + 4 * (top - 0.75))) / top
    return [round(255 * srgb_code(x * scale)) for x in rgb]


LIGHTS = ((0.0, 0.0, 0.0), (20.0, 20.0, 20.0), (203.0, 203.0, 203.0), (900.0, 900.0, 900.0), (100.0, 40.0, 10.0),
          (400.0, 600.0, 300.0))


@pytest.mark.parametrize("light", LIGHTS)
def test_hdr_curves_against_the_standards(light):
    pq = np.array([[[pq_code(x) for x in light]]])
    assert np.abs(colour.pq_light(pq) - light).max() < 1e-6 * max(1, *light)
    assert np.abs(colour.to_srgb(pq, colour.PQ, 9)[0, 0].astype(int) - shown(light)).max() <= 1
    luma = 0.2627 * light[0] + 0.678 * light[1] + 0.0593 * light[2]
    scene_light = [x / 1000 * (luma / 1000) ** (-0.2 / 1.2) if luma else 0.0 for x in light]      # the OOTF undone
    hlg = np.array([[[hlg_code(x) for x in scene_light]]])
    assert np.abs(colour.hlg_light(hlg) - light).max() < 1e-4 * max(1, *light)
    assert np.abs(colour.to_srgb(hlg, colour.HLG, 9)[0, 0].astype(int) - shown(light)).max() <= 1


def test_shoulder_is_smooth_rising_and_ends_below_one():
    ramp = np.linspace(0, 60, 60001)[:, None] * np.array([1.0, 0.5, 0.25])
    out = colour.shoulder(ramp)
    assert np.array_equal(out[ramp[:, 0] <= 0.75], ramp[ramp[:, 0] <= 0.75]) and out.max() < 1
    assert (np.diff(out[:, 0]) > 0).all() and np.abs(np.diff(out[:, 0], 2)).max() < 1e-5      # no kink at the knee
    assert np.allclose(out[1:, 1] / out[1:, 0], 0.5)                                          # the hue stays
    codes = np.linspace(0, 1, 1001)
    assert np.allclose(colour.encode_srgb(colour.decode_srgb(codes)), codes, atol=1e-6)
    assert np.allclose(colour.to_709(9), ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083),
                                          (-0.0182, -0.1006, 1.1187)), atol=1e-4)


# -- the table: clips ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Case:
    """make(folder) -> the file. shape of the frames read. facts: (row, column, colour) as parts of height and width, of
    frame 0; None: what `scene` shows. numbers: whether the frames must say 0, 1, 2, ... near: codes of 255."""

    make: Callable[[Path], Path]
    shape: tuple[int, ...] = (4, *SHAPE, 3)
    facts: tuple | None = None
    numbers: bool = True
    near: int = 6


SCENE = ((0.2, 0.2, RED), (0.8, 0.8, BLUE), (0.2, 0.8, (60,) * 3), (0.8, 0.2, (60,) * 3))
CLEAR = np.concatenate([scene(), np.full((4, *SHAPE, 1), 255, np.uint8)], -1)
CLEAR[:, 32:, :48, 3] = 0                                               # bottom left: nothing
ON_WHITE = (*SCENE[:3], (0.8, 0.2, (255,) * 3))
PIXEL = np.full((1, 1, 1, 3), RED, np.uint8)
ONE = scene(1)[0]


def hdr(transfer: int, *codes: float):
    return lambda d: film(d / "a.mkv", [flat(codes), flat(codes)], "libx265", "yuv420p10le", matrix=9,
                          color_trc=transfer, color_primaries=9, options={**MUTE, "crf": "2"})


ALPHA = np.full((2, *SHAPE, 4), 191, np.uint8)                          # HLG's 0.75 is white
ALPHA[..., 3] = 255
ALPHA[:, 32:, :48, 3] = 0


def prores(frames: np.ndarray, pixels: str):
    return lambda d: film(d / "a.mov", frames, "prores_ks", pixels, matrix=9, color_trc=18, color_primaries=9,
                          options={"profile": "4"})


def deep_rgb(light: tuple[float, float, float], primaries: int):
    """cd/m2 in PQ, 16 bits of each of R, G, B."""
    def make(folder: Path) -> Path:
        frame = av.VideoFrame(64, 64, "gbrp16le")
        for plane, n in zip(frame.planes, (1, 2, 0)):
            plane.update(np.full(plane.buffer_size // 2, round(65535 * pq_code(light[n])), np.uint16).tobytes())
        return film(folder / "a.mkv", [frame, frame], "ffv1", "gbrp16le", tagged=False, color_trc=16,
                    color_primaries=primaries)
    return make


def everywhere(rgb, shape=(2, 64, 64, 3), near=3):
    return dict(shape=shape, facts=((0.2, 0.2, rgb), (0.8, 0.8, rgb)), numbers=False, near=near)


def pillow(name: str, frames=None, **how):
    """An animated picture by Pillow."""
    def make(folder: Path) -> Path:
        first, *rest = [Image.fromarray(f) for f in (scene() if frames is None else frames)]
        first.save(folder / name, **({"save_all": True, "append_images": rest} if rest else {}), **how)
        return folder / name
    return make


def save(name: str, picture, **how):
    def make(folder: Path) -> Path:
        out = picture() if callable(picture) else picture
        (out if isinstance(out, Image.Image) else Image.fromarray(out)).save(folder / name, **how)
        return folder / name
    return make


def renamed(make, name: str):
    return lambda d: make(d).rename(d / name)


CASES = {
    "plain": Case(lambda d: film(d / "a.mp4", scene())),
    **{f"turned by {angle}": Case(lambda d, angle=angle: film(
        d / "a.mp4", np.rot90(scene(), -angle // 90, (1, 2)), rotate=angle)) for angle in (90, 180, 270)},
    "mirrored": Case(lambda d: film(d / "a.mp4", scene()[:, :, ::-1], mirror=True)),
    "turned, in mov, with oblong pixels": Case(lambda d: film(
        d / "a.mov", np.rot90(scene(), -1, (1, 2)), rotate=90, shape=Fraction(2, 1)), (4, 128, 96, 3)),
    "variable rate": Case(lambda d: film(d / "a.mp4", scene(), times=[0, 100, 130, 900], base=Fraction(1, 1000))),
    "10 bits h264": Case(lambda d: film(d / "a.mp4", scene(), pixels="yuv420p10le")),
    "10 bits h265": Case(lambda d: film(d / "a.mp4", scene(), "libx265", "yuv420p10le", options=MUTE)),
    "12 bits 4:4:4 h265": Case(lambda d: film(d / "a.mkv", scene(), "libx265", "yuv444p12le", options=MUTE)),
    "PQ, white": Case(hdr(16, *[pq_code(203)] * 3), **everywhere(shown((203.0,) * 3))),
    "PQ, a colour": Case(hdr(16, *map(pq_code, (100, 40, 10))), **everywhere(shown((100.0, 40.0, 10.0)), near=5)),
    "HLG, white": Case(hdr(18, *[0.75] * 3), **everywhere(shown((203.0,) * 3))),
    "HLG, white, in ProRes, whose own head does not say so": Case(prores(ALPHA[..., :3], "yuv444p10le"), **everywhere(
        shown((203.0,) * 3), (2, *SHAPE, 3))),
    "HLG with alpha": Case(prores(ALPHA, "yuva444p10le"), (2, *SHAPE, 3), (
        (0.2, 0.8, shown((203.0,) * 3)), (0.8, 0.2, (255,) * 3)), False, 3),
    "PQ in RGB": Case(deep_rgb((50, 50, 50), 9), **everywhere(shown((50.0,) * 3), near=0)),
    "PQ in RGB, no word on primaries": Case(deep_rgb((100, 40, 10), 2), **everywhere(
        shown((100.0, 40.0, 10.0)), near=1)),
    "PQ in RGB, tagged BT.709": Case(deep_rgb((100, 40, 10), 1), **everywhere(
        [round(255 * srgb_code(light / 203)) for light in (100, 40, 10)], near=1)),
    "BT.2020 without HDR": Case(hdr(14, 0.6, 0.6, 0.6), **everywhere((153,) * 3)),
    "tagged BT.709": Case(lambda d: film(d / "a.mp4", scene(), matrix=1)),
    "untagged, small: BT.601": Case(lambda d: film(d / "a.mp4", scene(), tagged=False)),
    "untagged, HD: BT.709": Case(lambda d: film(d / "a.mp4", scene(2, (720, 1280)), matrix=1, tagged=False),
                                 (2, 720, 1280, 3)),
    "full range": Case(lambda d: film(d / "a.mp4", scene(), full=True)),
    "grey": Case(lambda d: film(d / "a.mkv", np.repeat(scene()[..., 1:2], 3, -1), "ffv1", "gray", tagged=False),
                 facts=((0.2, 0.2, (40,) * 3), (0.8, 0.8, (60,) * 3)), near=0),
    "grey of limited range": Case(lambda d: film(d / "a.mp4", np.repeat(
        scene()[..., 1:2], 3, -1), "libx265", "gray", options={**MUTE, "crf": "2"}),
                                  facts=((0.2, 0.2, (28,) * 3), (0.8, 0.8, (51,) * 3)), numbers=False),
    "4:4:4 tagged BT.709": Case(lambda d: film(d / "a.mp4", scene(), pixels="yuv444p", matrix=1)),
    "4:2:2 h264": Case(lambda d: film(d / "a.mkv", scene(), pixels="yuv422p")),
    "AV1": Case(lambda d: film(d / "a.mp4", scene(), "libsvtav1", options={"preset": "12", "crf": "10"}), near=10),
    "VP9": Case(lambda d: film(d / "a.webm", scene(), "libvpx-vp9", options={"crf": "8", "b": "0"}), near=10),
    "VP9 with alpha": Case(lambda d: film(d / "a.webm", CLEAR, "libvpx-vp9", "yuva420p", options={
        "crf": "4", "b": "0", "auto-alt-ref": "0"}), facts=ON_WHITE, near=10),
    "VP8 with hidden frames": Case(lambda d: film(d / "a.webm", scene(40), "libvpx", options={
        "b": "2M", "auto-alt-ref": "1", "lag-in-frames": "16", "qmax": "10"}), (40, *SHAPE, 3), numbers=False, near=10),
    "ProRes 4444 with alpha": Case(lambda d: film(d / "a.mov", CLEAR, "prores_ks", "yuva444p10le", options={
        "profile": "4"}), facts=ON_WHITE),
    "ProRes 422": Case(lambda d: film(d / "a.mov", scene(), "prores_ks", "yuv422p10le")),
    "QuickTime animation with alpha": Case(lambda d: film(d / "a.mov", CLEAR, "qtrle", "argb"), facts=ON_WHITE, near=0),
    "FFV1 in RGB": Case(lambda d: film(d / "a.mkv", scene(), "ffv1", "bgr0", tagged=False), near=0),
    "FFV1 of 16 bits": Case(lambda d: film(d / "a.mkv", scene(), "ffv1", "gbrp16le", tagged=False), near=1),
    "raw RGB in avi": Case(lambda d: film(d / "a.avi", scene(), "rawvideo", "bgr24", tagged=False), near=0),
    "Motion JPEG": Case(lambda d: film(d / "a.avi", scene(), "mjpeg", "yuvj420p", full=True, options={"qmin": "1"}),
                        near=10),
    "MPEG-4 with B frames in avi": Case(lambda d: film(d / "a.avi", scene(8), "mpeg4", options={
        "bf": "2", "qscale": "2"}), (8, *SHAPE, 3), near=10),
    "WMV": Case(lambda d: film(d / "a.wmv", scene(), "wmv2", options={"b": "4M"}), near=14),
    "FLV": Case(lambda d: film(d / "a.flv", scene())),
    "MPEG-2 programme": Case(lambda d: film(d / "a.mpg", scene(8), "mpeg2video", rate=25, base=Fraction(
        1, 25), options={"b": "4M", "bf": "2"}), (8, *SHAPE, 3), near=14),
    "transport stream": Case(lambda d: film(d / "a.ts", scene(8)), (8, *SHAPE, 3)),
    "fragmented mp4": Case(lambda d: film(d / "a.mp4", scene(8), options={**LOSSLESS, "g": "3"}, wrap={
        "movflags": "frag_keyframe+empty_moov"}), (8, *SHAPE, 3)),
    "with sound": Case(lambda d: film(d / "a.mp4", scene(), sound=16000)),
    "oblong pixels": Case(lambda d: film(d / "a.mp4", scene(), shape=Fraction(4, 3)), (4, 64, 128, 3)),
    "upright pixels": Case(lambda d: film(d / "a.mkv", scene(), shape=Fraction(1, 2)), (4, 128, 96, 3)),
    "odd sizes": Case(lambda d: film(d / "a.mp4", scene(4, (63, 97)), pixels="yuv444p"), (4, 63, 97, 3)),
    "odd sizes, subsampled": Case(lambda d: film(d / "a.webm", scene(4, (63, 97)), "libvpx-vp9", options={
        "crf": "8", "b": "0"}), (4, 63, 97, 3), near=10),
    "one frame": Case(lambda d: film(d / "a.mp4", scene(1)), (1, *SHAPE, 3)),
    "one pixel": Case(lambda d: film(d / "a.mkv", PIXEL, "ffv1", "bgr0", tagged=False), (1, 1, 1, 3),
                      ((0, 0, RED),), False, 0),
    "GIF": Case(pillow("a.gif", duration=[100, 50, 300, 20]), near=2),
    "WebP": Case(pillow("a.webp", duration=[100, 50, 300, 20], lossless=True), near=0),
    "WebP with alpha": Case(pillow("a.webp", CLEAR, duration=50, lossless=True, exact=True), facts=ON_WHITE, near=0),
    "APNG": Case(pillow("a.png", duration=[100, 50, 300, 20]), near=0),
    "APNG with a still before": Case(pillow("a.apng", np.concatenate([scene(9)[8:], scene()]), duration=50,
                                            default_image=True), near=0),
    "a GIF of one picture": Case(pillow("a.gif", scene(1)), (1, *SHAPE, 3), near=2),
    "a JPEG named mp4": Case(renamed(pillow("a.jpg", scene(1), quality=95), "b.mp4"), (1, *SHAPE, 3), near=10),
    "an mp4 named png": Case(lambda d: renamed(lambda d: film(d / "a.mp4", scene()), "b.png")(d)),
    "a file with odd signs in its name": Case(lambda d: film(d / "a.mp4", scene()).rename(d / "50%03d: #1 ä.mp4")),
}


@pytest.mark.parametrize("name", CASES)
def test_odd_clips(name, tmp_path, capfd):
    case = CASES[name]
    path = case.make(tmp_path)
    capfd.readouterr()
    frames = video.read_clip(path)
    assert frames.shape == case.shape and frames.dtype == np.uint8
    for row, column, rgb in SCENE if case.facts is None else case.facts:
        seen = frames[0, int(row * frames.shape[1]), int(column * frames.shape[2])].astype(int)
        assert np.abs(seen - rgb).max() <= case.near, (row, column, seen, rgb)
    if case.numbers:
        assert numbers_in(frames) == list(range(len(frames)))
    times, last = video.clip_times(path), len(frames) - 1
    assert times is None or (len(times) == len(frames) and times[0] == 0 and (np.diff(times) > 0).all())
    wanted = [last, 0, last // 2, 0]
    assert np.array_equal(video.read_clip(path, at=wanted), frames[wanted])
    assert not any(capfd.readouterr()), "libav is silent"


def test_what_reads_which():
    """By name. That decord gives what PyAV does is the next test's."""
    assert ANIMATIONS < CLIPS and not PICTURES & UNREADABLE and not CLIPS & UNREADABLE and ".webp" in PICTURES


PLAIN = {"plain", "variable rate", "tagged BT.709", "untagged, small: BT.601", "full range", "VP9", "with sound",
         "VP8 with hidden frames", "fragmented mp4", "one frame", "an mp4 named png"}
ORNATE = {"turned by 90", "mirrored", "10 bits h264", "PQ, white", "untagged, HD: BT.709", "AV1", "VP9 with alpha",
          "oblong pixels", "odd sizes, subsampled", "4:2:2 h264", "transport stream", "BT.2020 without HDR"}


@pytest.mark.parametrize("name", sorted(PLAIN | ORNATE))
def test_decord_is_asked_for_plain_files_only_and_gives_what_pyav_does(name, tmp_path, monkeypatch):
    path = CASES[name].make(tmp_path)
    assert decode.is_plain(containers.look(path)) == (name in PLAIN)
    if name in PLAIN:
        pytest.importorskip("decord")
        reader = decode._decord(containers.look(path))
        by_decord = reader.get_batch(range(len(reader))).asnumpy()
        monkeypatch.setitem(__import__("sys").modules, "decord", None)
        assert np.array_equal(by_decord, read_here(path)), "every picture, bit for bit"


# -- time, numbers, memory -------------------------------------------------------------------------------------------
TIMES = [0, 40, 41, 300, 333, 1000, 1017, 2500]                        # ms


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.webm", "a.ts", "a.flv"])
def test_times_of_a_variable_rate_are_those_it_was_written_with(name, tmp_path):
    codec = {"a.webm": ("libvpx-vp9", {"crf": "10", "b": "0"})}.get(name, ("libx264", {**LOSSLESS, "bf": "2"}))
    path = film(tmp_path / name, scene(8), codec[0], options=codec[1], times=[500 + t for t in TIMES],
                base=Fraction(1, 1000), rate=30)
    times = video.clip_times(path)
    assert times.dtype == np.float64 and np.abs(times - np.array(TIMES) / 1000).max() < 1e-3
    assert numbers_in(video.read_clip(path, at=[1, 4, 7])) == [1, 4, 7]


@pytest.mark.parametrize("make", [pillow("a.gif", duration=[100, 50, 300, 20]), pillow(
    "a.webp", duration=[100, 50, 300, 20], lossless=True), pillow("a.png", duration=[100, 50, 300, 20])])
def test_times_of_animated_pictures_are_their_durations(make, tmp_path):
    path = make(tmp_path)
    assert np.allclose(video.clip_times(path), [0, 0.1, 0.15, 0.45], atol=1e-9)


def test_what_has_no_times(tmp_path):
    video.write_images(tmp_path / "folder", scene())
    strip = video.write_frames(tmp_path / "strip.png", scene())
    for path in (tmp_path / "folder", strip, tmp_path / "folder" / "0000.png"):
        assert video.clip_times(path) is None
    assert numbers_in(video.read_clip(strip, at=[2, 0, 2])) == [2, 0, 2]
    assert numbers_in(video.read_clip(tmp_path / "folder", at=[3, 1])) == [3, 1]
    assert np.allclose(video.clip_times(pillow("fast.gif", duration=10)(tmp_path)), [0, 0.1, 0.2, 0.3])


LONG = 150
CLOSED = {**LOSSLESS, "g": "12", "bf": "3"}
OPEN = {"crf": "4", "x265-params": "log-level=none:keyint=12:open-gop=1:bframes=3"}


@pytest.mark.parametrize(("name", "codec", "options"), [
    ("a.mp4", "libx264", CLOSED), ("a.mkv", "libx264", CLOSED), ("a.mkv", "libx265", OPEN), ("a.mp4", "libx265", OPEN),
    ("a.avi", "mpeg4", {"g": "12", "bf": "2", "b": "20M", "qmax": "2"}), ("a.ts", "libx264", CLOSED),
    ("a.mp4", "libx264", {**LOSSLESS, "g": "300", "x264-params": "intra-refresh=1:keyint=12"})])
def test_frame_k_is_frame_k_wherever_decoding_begins(name, codec, options, tmp_path, monkeypatch):
    path = film(tmp_path / name, scene(LONG), codec, options=options)
    whole = video.read_clip(path)
    assert numbers_in(whole) == [k % 30 for k in range(LONG)]
    seen = []
    monkeypatch.setattr(decode, "_finish", lambda film, frame, real=decode._finish: seen.append(1) or real(film, frame))
    for wanted in ([149], [0], [70, 3, 141, 70], list(range(11, 149, 13)), [12, 24, 36, 11, 23]):
        seen.clear()
        assert np.array_equal(read_here(path, wanted), whole[wanted]), wanted
        assert len(seen) == len(set(wanted))                            # no other frame is converted, none is kept
    assert video.read_clip(path, at=[], size=(8, 8)).shape == (0, 8, 8, 3)
    assert video.read_clip(path, at=[149, 1], size=(16, 24)).shape == (2, 16, 24, 3)
    for wrong in ([150], [-1]):
        with pytest.raises(BadInput, match=f"holds 150 frames, there is no frame {wrong[0]}"):
            video.read_clip(path, at=wrong)


def test_decoding_begins_at_the_key_frame_before(tmp_path, monkeypatch):
    path, decoded = film(tmp_path / "a.mp4", scene(LONG), options=CLOSED), []
    real = decode._numbered

    def counting(*how):
        for pair in real(*how):
            decoded.append(pair[0])
            yield pair

    monkeypatch.setattr(decode, "_numbered", counting)
    read_here(path, [140])
    assert min(decoded) >= 132 and len(decoded) <= 12


def interlaced(folder: Path, name: str, codec: str, pixels: str = "yuv420p", **options) -> Path:
    """A bright bar that moves 4 pixels a field, over dark; fields woven, the upper first."""
    frames = np.full((8, 64, 96, 3), 30, np.uint8)
    for k in range(16):
        frames[k // 2, k % 2::2, 8 + 4 * k:24 + 4 * k] = 220
    graph = av.filter.Graph()
    source = graph.add_buffer(width=96, height=64, format=av.VideoFormat(pixels), time_base=Fraction(1, 25))
    graph.link_nodes(source, graph.add("setfield", "mode=tff"), graph.add("buffersink"))
    graph.configure()
    woven = []
    for k, frame in enumerate(frames):
        frame = coded(frame, pixels)
        frame.pts, frame.time_base = k, Fraction(1, 25)
        graph.vpush(frame)
        woven.append(graph.vpull())
    flags = av.codec.context.Flags.interlaced_dct | av.codec.context.Flags.interlaced_me
    return film(folder / name, woven, codec, pixels, base=Fraction(1, 25), rate=25, options=options, flags=int(flags))


@pytest.mark.parametrize(("name", "codec", "options"), [
    ("a.mkv", "mpeg2video", {"b": "4M"}), ("a.mpg", "mpeg2video", {"b": "4M"}), ("a.mp4", "libx264", LOSSLESS),
    ("a.ts", "libx264", LOSSLESS)])
def test_interlaced_video_is_deinterlaced_frame_by_frame(name, codec, options, tmp_path):
    path = interlaced(tmp_path, name, codec, **options)
    film_ = containers.look(path)
    assert film_.interlaced and not decode.is_plain(film_)
    frames = video.read_clip(path)
    assert frames.shape == (8, 64, 96, 3) and len(video.clip_times(path)) == 8
    comb = np.abs(np.diff(frames[..., 1].astype(int), axis=1)).mean((1, 2))
    assert comb.max() < 3, "rows of two moments would differ by 8 on average"
    left = [int(np.flatnonzero(frame[20, :, 1] > 120)[0]) for frame in frames]
    assert np.abs(np.array(left) - (8 + 8 * np.arange(8))).max() <= 3            # the upper field's moment
    assert np.array_equal(video.read_clip(path, at=[5, 2, 7, 0]), frames[[5, 2, 7, 0]])


def test_the_eight_turns_of_a_display_matrix():
    """By libav's own words: column p and row q are shown at (a p + c q, b p + d q)."""
    stored = np.arange(6).reshape(2, 3, 1).repeat(3, -1).astype(np.uint8)
    for a, b, c, d in [(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1), (0, 1, 1, 0), (0, -1, 1, 0),
                       (0, 1, -1, 0), (0, -1, -1, 0)]:
        placed = {(b * p + d * q, a * p + c * q): stored[q, p, 0] for q in range(2) for p in range(3)}
        rows, columns = (sorted({place[axis] for place in placed}) for axis in (0, 1))
        slow = np.array([[placed[row, column] for column in columns] for row in rows])
        assert np.array_equal(decode.upright(stored, tuple(65536 * x for x in (a, b, c, d)))[..., 0], slow)


def test_an_edited_mp4_has_the_frames_that_its_edit_shows(tmp_path):
    """As phones trim: an edit list that begins after the key frame. The frames before it are there, but not shown."""
    whole = film(tmp_path / "a.mp4", scene(12), options={**LOSSLESS, "bf": "0", "g": "12"})
    data = bytearray(whole.read_bytes())
    at = data.index(b"elst") + 4
    _, count, long, media = struct.unpack(">IIii", data[at:at + 16])
    scale = struct.unpack(">I", data[data.index(b"mdhd") + 16:data.index(b"mdhd") + 20])[0]
    assert count == 1 and media == 0
    data[at + 8:at + 16] = struct.pack(">ii", long * 7 // 12, scale * 5 // 8)
    (tmp_path / "trimmed.mp4").write_bytes(data)
    frames = video.read_clip(tmp_path / "trimmed.mp4")
    assert numbers_in(frames) == [5, 6, 7, 8, 9, 10, 11]
    assert np.allclose(video.clip_times(tmp_path / "trimmed.mp4"), np.arange(7) / 8)
    assert numbers_in(video.read_clip(tmp_path / "trimmed.mp4", at=[6, 1])) == [11, 6]


@pytest.mark.parametrize(("codec", "options"), [
    ("libx264", {**LOSSLESS, "bf": "0", "g": "6"}), ("libx264", {**LOSSLESS, "bf": "3", "g": "6"}),
    ("libx264", {"crf": "1", "g": "8", "x264-params": "bframes=3:b-pyramid=normal:open-gop=1"}),
    ("libx265", {"crf": "4", "x265-params": "log-level=none:keyint=6:bframes=3:open-gop=0"}),
    ("libx265", {"crf": "4", "x265-params": "log-level=none:keyint=6:bframes=3:open-gop=1"})])
@pytest.mark.parametrize(("end", "start"), [("mp4", 0.3), ("mov", 0.3), ("mp4", 0.9), ("mp4", 1.6)])
def test_a_clip_trimmed_without_coding_it_anew_has_the_frames_that_libav_shows(codec, options, end, start, tmp_path):
    """Some of its key frames are hidden by the edit, others are not; so are frames that are coded after shown ones."""
    whole, path = film(tmp_path / "a.mp4", scene(24), codec, options=options), tmp_path / f"trimmed.{end}"
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-ss", str(start), "-i", whole, "-c", "copy", path],
                   check=True, stdin=subprocess.DEVNULL)
    with av.open(str(path)) as container:
        expected = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    first = int(np.ceil(start * 8))
    assert numbers_in(expected) == list(range(first, 24)), "what libav shows of it is what was asked of ffmpeg"
    assert np.array_equal(video.read_clip(path), expected)
    assert np.allclose(video.clip_times(path), np.arange(24 - first) / 8)
    for k in (len(expected) - 1, 0, 1, len(expected) // 2):
        assert np.array_equal(video.read_clip(path, at=[k])[0], expected[k])


def test_a_stream_cut_out_of_a_longer_one_begins_at_its_first_key_frame(tmp_path):
    data = film(tmp_path / "whole.ts", scene(29), options={**LOSSLESS, "bf": "0", "g": "10"}).read_bytes()
    path = tmp_path / "a.ts"
    path.write_bytes(data[packets(tmp_path / "whole.ts")[4][0] // 188 * 188:])
    frames = video.read_clip(path)
    assert numbers_in(frames) == list(range(10, 29))
    assert np.allclose(video.clip_times(path), np.arange(19) / 8)


@pytest.mark.parametrize(("codec", "pixels"), [("mpeg4", "yuv420p"), ("mjpeg", "yuvj420p")])
def test_dropped_frames_of_an_avi_are_gaps_in_its_times(codec, pixels, tmp_path):
    times = [0, 1, 2, 6, 7, 12]
    path = film(tmp_path / "a.avi", scene(6), codec, pixels, full=pixels == "yuvj420p", times=times, rate=25,
                base=Fraction(1, 25), options={"qscale": "2"})
    assert numbers_in(video.read_clip(path)) == list(range(6))
    assert np.allclose(video.clip_times(path), np.array(times) / 25)


def test_frames_at_one_time_do_not_push_later_ones_back(tmp_path):
    path = restamped([0, 0, 0, 500, 500, 625])(tmp_path)
    assert np.allclose(video.clip_times(path), [0, 0.001, 0.002, 0.5, 0.501, 0.625])
    assert numbers_in(video.read_clip(path)) == list(range(6))


def several(path: Path, *films: tuple[int, bool]) -> Path:
    """Several video streams: how many frames, and whether the default. Stream n shows numbers from 8 n on."""
    with av.open(str(path), "w") as container:
        streams = []
        for _, default in films:
            stream = container.add_stream("libx264", rate=8, options=LOSSLESS)
            stream.height, stream.width, stream.pix_fmt = *SHAPE, "yuv420p"
            stream.disposition = av.stream.Disposition.default if default else 0
            streams.append(stream)
        for n, (stream, (count, _)) in enumerate(zip(streams, films)):
            for k, frame in enumerate(scene(8 * n + count)[8 * n:]):
                frame = coded(frame, "yuv420p")
                frame.pts, frame.time_base = k, Fraction(1, 8)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize(("films", "meant"), [
    (((1, True), (6, False)), 1), (((6, False), (6, True)), 1), (((6, False), (7, False)), 1),
    (((7, False), (4, True)), 1), (((6, True), (6, True)), 0), (((1, False), (1, False)), 0)])
def test_which_of_several_video_streams_is_the_film(films, meant, tmp_path):
    path = several(tmp_path / "a.mkv", *films)
    assert numbers_in(video.read_clip(path)) == [8 * meant + k for k in range(films[meant][0])]
    assert not decode.is_plain(containers.look(path)), "decord would choose by rules of its own"


def test_a_name_that_decord_does_not_take(tmp_path):
    path = film(tmp_path / "a.mp4", scene())
    frames = video.read_clip(path)
    try:
        odd = path.rename(tmp_path / os.fsdecode(b"bad\xff.mp4"))
    except OSError:
        pytest.skip("the file system takes no such name")
    assert np.array_equal(video.read_clip(odd), frames)


@contextmanager
def shut(folder: Path):
    """A folder that one may not enter; root may enter any, and is someone else meanwhile."""
    mode, user = folder.stat().st_mode, os.geteuid()
    folder.chmod(0)
    try:
        if user == 0:
            os.seteuid(65534)
        yield
    finally:
        os.seteuid(user)
        folder.chmod(mode)


READERS = (video.read_clip, video.clip_times, video.list_images, video.read_masks, video.read_images,
           lambda path: video.read_images([path]))


@pytest.mark.parametrize("read", READERS)
def test_what_the_system_refuses_is_named(read, tmp_path):
    with pytest.raises(BadInput, match="xxx"):
        read(tmp_path / ("x" * 300))
    inner = tmp_path / "shut" / "inner"
    inner.mkdir(parents=True)
    PNG(inner)
    with shut(tmp_path / "shut"):
        for path in (inner, inner / "a.png"):
            with pytest.raises(BadInput, match=f"{path.name} .*Mind"):
                read(path)


# -- the table: refusals ---------------------------------------------------------------------------------------------
def noisy(count: int = 24) -> np.ndarray:
    out = scene(count)
    return out ^ np.random.default_rng(0).integers(0, 64, out.shape, np.uint8)


def cut(make, part: float = 0.4):
    def cutting(folder: Path) -> Path:
        path = make(folder)
        data = path.read_bytes()
        path.write_bytes(data[:int(len(data) * part)])
        return path
    return cutting


def holes(make, begin: float = 0.5, size: int = 400):
    def piercing(folder: Path) -> Path:
        path = make(folder)
        data = bytearray(path.read_bytes())
        at = int(len(data) * begin)
        data[at:at + size] = np.random.default_rng(1).integers(0, 255, size, np.uint8).tobytes()
        path.write_bytes(data)
        return path
    return piercing


def packets(path: Path) -> list[tuple[int, int]]:
    """(place, length) in the file of the data of each packet of its video."""
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


def cut_in(make, number: int):
    """In the middle of this packet."""
    def cutting(folder: Path) -> Path:
        path = make(folder)
        place, size = packets(path)[number]
        path.write_bytes(path.read_bytes()[:place + size // 2])
        return path
    return cutting


def blank(make, number: int):
    """Zeros for the data of this packet."""
    def blanking(folder: Path) -> Path:
        path = make(folder)
        place, size = packets(path)[number]
        data = path.read_bytes()
        path.write_bytes(data[:place] + bytes(size) + data[place + size:])
        return path
    return blanking


def joined(*makes):
    """As `cat` joins files."""
    def joining(folder: Path) -> Path:
        whole = b"".join(make(folder).read_bytes() for make in makes)
        (folder / "a.ts").write_bytes(whole)
        return folder / "a.ts"
    return joining


def later(start: int, **how):
    return lambda d: film(d / "part.ts", scene(8, **how), times=[start + k for k in range(8)])


TS = later(0)


def restamped(times: list[int]):
    """Pictures each coded alone, in mkv, and these times in milliseconds for those written, 125 apart."""
    def stamping(folder: Path) -> Path:
        path = film(folder / "a.mkv", scene(len(times)), "mjpeg", "yuvj420p", full=True, options={"qmin": "1"})
        data = bytearray(path.read_bytes())
        for k, time in enumerate(times):                           # SimpleBlock: track 81, time
            place = packets(path)[k][0]
            assert data[place:place + 3] == b"\x81" + struct.pack(">h", 125 * k)
            data[place + 1:place + 3] = struct.pack(">h", time)
        path.write_bytes(data)
        return path
    return stamping


def text(name: str, words: str = "this is no video, " * 100):
    def make(folder: Path) -> Path:
        (folder / name).write_text(words)
        return folder / name
    return make


def song(folder: Path, cover: bool = False) -> Path:
    need("aac")
    with av.open(str(folder / "song.mp4"), "w") as container:
        sound = container.add_stream("aac", rate=8000)
        if cover:
            picture = container.add_stream("mjpeg")
            picture.width, picture.height, picture.pix_fmt = 96, 64, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
            container.mux(picture.encode(coded(ONE, "yuvj420p", full=True)))
        hiss = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        hiss.sample_rate = 8000
        container.mux(sound.encode(hiss))
        container.mux(sound.encode())
    return folder / "song.mp4"


def bomb(folder: Path) -> Path:
    head = struct.pack(">IIBBBBB", 200_000, 200_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    (folder / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks))
    return folder / "bomb.png"


def grown(folder: Path) -> Path:
    """A transport stream that changes its size half way."""
    return joined(TS, later(8, shape=(96, 64)))(folder)


def pages(folder: Path) -> Path:
    return save("pages.tif", ONE, save_all=True, append_images=[Image.fromarray(ONE)])(folder)


FAST = {"wrap": {"movflags": "faststart"}}
JPEG, PNG = save("a.jpg", noisy(1)[0], quality=95), save("a.png", noisy(1)[0])
KINDS = {"mp4": ("libx264", FAST), "mkv": ("libx264", {}), "flv": ("libx264", {}),
         "webm": ("libvpx-vp9", {"options": {"crf": "30", "b": "0"}}), "avi": ("mpeg4", {"options": {"qscale": "3"}}),
         "wmv": ("wmv2", {"options": {"b": "9M"}})}


def made(end: str, **how):
    codec, options = KINDS[end]
    return lambda d: film(d / f"a.{end}", noisy(), codec, **options, **how)


PAL = {"rate": 25, "base": Fraction(1, 25)}
CUTS = {**KINDS, "mxf": ("mpeg2video", PAL), "ogv": ("libvpx", {}), "ivf": KINDS["webm"], "mpg": ("mpeg2video", PAL),
        "ts": ("libx264", {}), "y4m": ("rawvideo", {}),
        "mov": ("libx264", {"wrap": {"movflags": "dash+frag_every_frame+global_sidx+empty_moov"}})}
FULL = {"mpg", "ts", "y4m"}             # where nothing says how many frames there are: cut between them they are whole


def parcels(path: Path) -> list[tuple[int, int]]:
    """(place, length) of the packets of a program stream, which are cut without regard to frames."""
    places = [found.start() for found in re.finditer(b"\0\0\1\xe0", path.read_bytes())]
    return [(place, following - place) for place, following in zip(places, places[1:])]


@pytest.mark.parametrize("where", [0.0, 0.5])
@pytest.mark.parametrize("end", CUTS)
def test_what_is_cut_off_is_missed_before_any_frame_is_decoded(end, where, tmp_path):
    """Between two packets and within one: a part of the clip is not taken for the whole, even where only its first
    seconds are wanted. No kind is in silence but FULL, cut between packets (docs/reliability.md)."""
    codec, options = CUTS[end]
    path = film(tmp_path / f"a.{end}", noisy(), codec, **options)
    assert video.extent(path).of == video.extent(path).count == 24
    parts = parcels(path) if end == "mpg" else packets(path)
    place, size = parts[len(parts) // 2]
    path.write_bytes(path.read_bytes()[:place + int(size * where)])
    if where or end not in FULL:
        with pytest.raises(BadInput, match=rf"a.{end} is damaged: decoded \d+ of \d+ frames|a.{end} is no video"):
            video.extent(path)
    else:
        assert video.extent(path).count < 16
    if end != "mp4":
        there = video.extent(path, partial=True)
        assert 0 < there.count < 16 and len(video.read_clip(path, at=[0], partial=True)) == 1


DROPPED = {"times": [*range(8), *range(20, 36)], "base": Fraction(1, 25), "rate": 25}
REFUSED = {
    **{f"{end} that breaks off": (cut_in(made(end), 12), f"a.{end} is damaged: decoded 12 of 24 frames. Copy it again")
       for end in KINDS if end != "wmv"},
    "wmv that breaks off": (cut_in(made("wmv"), 12), r"a.wmv is damaged: decoded 12 of \d+ frames"),
    "mp4 that lost its end, with the index": (cut(lambda d: film(d / "a.mp4", noisy())),
                                              "a.mp4 is no video that can be read.*copy it again"),
    "mkv of a variable rate that breaks off": (cut_in(lambda d: film(d / "a.mkv", noisy(8), times=TIMES, base=Fraction(
        1, 1000), rate=30), 3), r"a.mkv is damaged: decoded 3 of \d+ frames"),
    "avi with dropped frames that breaks off": (cut_in(made("avi", **DROPPED), 12),
                                                "a.avi is damaged: decoded 12 of 24 frames"),
    **{f"{end} with a hole": (blank(made(end), 12), rf"a.{end} is damaged: decoded {number} of 24 frames")
       for end, number in {"mp4": 23, "avi": 23, "mkv": 12, "webm": 12}.items()},     # in two the hole is also an end
    "two transport streams joined": (joined(TS, TS), "a.ts cannot be timed: its clock jumps back at frame 8"),
    "two of which the later is older": (joined(later(10000), TS),
                                        "a.ts cannot be timed: its clock jumps back at frame 8"),
    "a clock in mkv that goes back": (restamped([0, 125, 250, 375, 100, 225]),
                                      "a.mkv cannot be timed: its clock jumps back at frame 4"),
    "jpeg that breaks off": (cut(JPEG), "a.jpg is a damaged picture"),
    "png that breaks off": (cut(PNG), "a.png is a damaged picture"),
    "png with a hole": (holes(PNG), "a.png is a damaged picture"),
    "gif that breaks off": (cut(pillow("a.gif", noisy()), 0.5), "a.gif is (damaged|a damaged picture)"),
    "webp that breaks off": (cut(pillow("a.webp", noisy())), "a.webp is (a damaged|no) picture"),
    "apng that breaks off": (cut(pillow("a.apng", noisy())), "a.apng is a damaged picture"),
    "tiff that breaks off": (cut(save("a.tif", noisy(1)[0])), "a.tif is (a damaged|no) picture"),
    "an empty mp4": (text("a.mp4", ""), r"a.mp4 is empty \(0 bytes\)"),
    "an empty png": (text("a.png", ""), r"a.png is empty \(0 bytes\)"),
    "an empty gif": (text("a.gif", ""), r"a.gif is empty \(0 bytes\)"),
    "text named mp4": (text("a.mp4"), "a.mp4 is no video that can be read"),
    "text named png": (text("a.png"), "a.png is neither a picture nor a video"),
    "a page of the web": (text("a.mp4", "<html><body>404</body></html>"), "a.mp4 is no video that can be read"),
    "zeros": (lambda d: text("a.mov", "\0" * 5000)(d), "a.mov is no video that can be read"),
    "a song": (song, "song.mp4 holds no video, only sound"),
    "a song with a cover": (lambda d: song(d, cover=True), "song.mp4 holds no video, only sound"),
    "a playlist": (text("a.m3u8", "#EXTM3U\n#EXTINF:1,\n/etc/hostname\n"),
                   "a.m3u8 is a playlist that points at other files"),
    "a playlist named mp4": (text("a.mp4", "ffconcat version 1.0\nfile b.mp4\n"), "a.mp4 is a playlist"),
    "HEIC": (text("a.heic", "\0\0\0\x18ftypheic\0\0\0\0mif1heic"), "a.heic is of a kind that is not read here.*magick"),
    "HEIC named mp4": (text("a.mp4", "\0\0\0\x18ftypheic\0\0\0\0mif1heic"), "a.mp4 is a HEIC picture.*magick"),
    "a bomb": (bomb, "bomb.png is too large a picture"),
    "absurd dimensions": (text("vast.mkv", "YUV4MPEG2 W14000 H14000 F8:1 C420\nFRAME\n"),
                          "vast.mkv declares frames of 14000 x 14000 pixels"),
    "another size half way": (grown, "a.ts (changes its size|is damaged)"),
    "not there": (lambda d: d / "absent.mp4", "absent.mp4 does not exist"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name, tmp_path, capfd):
    make, words = REFUSED[name]
    path = make(tmp_path)
    capfd.readouterr()
    with pytest.raises(BadInput, match=words) as refusal:
        video.read_clip(path)
    assert refusal.value.exit_code == 3 and refusal.value.remedy
    assert not any(capfd.readouterr()), "libav and Pillow are silent"


def test_frames_before_and_after_the_damage_can_still_be_had(tmp_path):
    """Frames 24 to 31 need the key frame that is lost."""
    path = blank(lambda d: film(d / "a.mp4", noisy(48), options={**LOSSLESS, "g": "8"}, **FAST), 24)(tmp_path)
    assert len(video.clip_times(path)) == 48
    assert video.read_clip(path, at=[0, 23, 32]).shape == (3, 64, 96, 3)
    with pytest.raises(BadInput, match=r"a.mp4 is damaged: decoded 4\d of 48 frames"):
        video.read_clip(path)
    bad = {k for k in range(48) if refuses(path, k)}
    assert 24 in bad and bad <= set(range(24, 32))


def refuses(path: Path, k: int) -> bool:
    try:
        video.read_clip(path, at=[k])
    except BadInput:
        return True
    return False
