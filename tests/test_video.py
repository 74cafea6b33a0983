"""core/video.py and core/sheets.py: what is written is what is read, and nothing is shortened in silence."""
from __future__ import annotations

from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from stages.core import containers, reading, video
from stages.core.errors import BadInput
from stages.core.framing import fit_size
from stages.core.sheets import contact_sheet, overlay


@pytest.fixture
def frames() -> np.ndarray:
    """24 frames of 32 x 48 pixels: a saturated square over a slope; frame k holds its number in its brightness."""
    out = np.zeros((24, 32, 48, 3), np.uint8)
    for k, frame in enumerate(out):
        frame[:] = 20 + 8 * k
        frame[8:20, 4 + k:16 + k] = (222, 40, 40)
    return out


def encode(path: Path, frames: np.ndarray, *params: str) -> Path:
    writer = imageio_ffmpeg.write_frames(str(path), frames.shape[2:0:-1], fps=8, quality=None, macro_block_size=1,
                                         ffmpeg_log_level="error", output_params=["-crf", "10", *params])
    writer.send(None)
    for frame in frames:
        writer.send(frame.tobytes())
    writer.close()
    return path


def test_written_video_is_read_back_at_its_size_within_codec_rounding(tmp_path, frames):
    path = video.write_video(tmp_path / "a.mp4", frames, 8)
    back = video.read_clip(path, size=(32, 48))
    assert back.shape == frames.shape and back.dtype == np.uint8
    error = np.abs(back.astype(int) - frames)
    assert error.mean() < 2 and error.max() < 30
    assert video.read_clip(path).shape == (24, 256, 384, 3)             # enlarged by a whole number
    assert list(tmp_path.iterdir()) == [path]                           # no half-written file is left


def test_choice_of_frames(tmp_path, frames):
    path = video.write_video(tmp_path / "a.mp4", frames, 8)

    def numbers(**how):
        return [round((int(f[0, 40, 0]) - 20) / 8) for f in video.read_clip(path, size=(32, 48), **how)]

    assert numbers() == list(range(24))
    assert numbers(at=[23, 0, 5, 5]) == [23, 0, 5, 5]
    with pytest.raises(BadInput, match="a.mp4 holds 24 frames, there is no frame 24"):
        video.read_clip(path, at=[24])


def test_what_containers_say(tmp_path, frames):
    film = containers.look(encode(tmp_path / "a.mp4", frames))
    assert (film.format, film.codec, film.size, film.turn, film.pixel) == ("mov", "h264", (32, 48), (1, 0, 0, 1), 1)
    assert np.allclose(film.times, np.arange(24) / 8) and not film.interlaced and film.keys[0] == 0
    assert (film.colours.bits, film.colours.alpha, film.colours.matrix, film.colours.full) == (8, False, 5, False)
    assert len(containers.look(encode(tmp_path / "b.mkv", frames[:7])).times) == 7


def test_written_video_says_which_colours_it_has(tmp_path, frames):
    """Players take untagged HD for BT.709; ours is BT.601 whatever its size, and says so."""
    path = video.write_video(tmp_path / "a.mp4", np.full((1, 720, 1280, 3), (222, 40, 40), np.uint8))
    assert containers.look(path).colours.tagged
    assert np.abs(video.read_clip(path).astype(int) - (222, 40, 40)).max() <= 3


def test_pyav_reads_the_same_frames(tmp_path, frames, monkeypatch):
    path = video.write_video(tmp_path / "a.mp4", frames, 8)
    expected = video.read_clip(path)
    monkeypatch.setitem(__import__("sys").modules, "decord", None)
    for at in (range(24), [0, 12, 23]):
        assert np.array_equal(np.stack([picture for _, picture in reading.frames(path, at)]), expected[list(at)])


def test_gif_strip_and_folder_are_clips_too(tmp_path, frames):
    strip = video.write_frames(tmp_path / "frames.png", frames)
    assert np.array_equal(video.read_clip(strip), frames)               # lossless
    video.write_images(tmp_path / "folder", frames)
    assert np.array_equal(video.read_clip(tmp_path / "folder"), frames)
    pictures = [Image.fromarray(f) for f in frames[:5]]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=125)
    assert video.read_clip(tmp_path / "a.gif").shape == (5, 32, 48, 3)


def test_pictures_in_natural_order_and_one_size(tmp_path):
    for k in (10, 9, 2):
        Image.new("RGB", (40, 30), (k, 0, 0)).save(tmp_path / f"photo{k}.png")
    assert [p.name for p in video.list_images(tmp_path)] == ["photo2.png", "photo9.png", "photo10.png"]
    assert video.read_images(tmp_path)[:, 0, 0, 0].tolist() == [2, 9, 10]
    Image.new("RGB", (20, 20)).save(tmp_path / "small.png")
    with pytest.raises(BadInput, match="small.png is 20 x 20"):
        video.read_images(tmp_path)
    assert video.read_images(tmp_path, (16, 16)).shape == (4, 16, 16, 3)
    with pytest.raises(BadInput, match="holds no pictures"):
        (tmp_path / "empty").mkdir()
        video.list_images(tmp_path / "empty")


def test_fit_size_crops_the_middle_and_reduces_by_exact_means():
    picture = np.zeros((1, 64, 96, 3), np.uint8)
    picture[:, :, 16:80] = 200                                          # the middle square
    assert (fit_size(picture, (32, 32)) == 200).all()
    checks = np.indices((64, 64)).sum(0)[None, ..., None] % 2 * np.full(3, 200, np.uint8)
    assert (fit_size(checks.astype(np.uint8), (32, 32)) == 100).all()


def test_masks_round_trip_and_a_shorter_track_replaces_a_longer_one(tmp_path):
    masks = np.random.default_rng(0).random((12, 20, 30)) > 0.5
    video.write_masks(tmp_path / "m", masks)
    assert np.array_equal(video.read_masks(tmp_path / "m"), masks)
    video.write_masks(tmp_path / "m", masks[:3])
    assert np.array_equal(video.read_masks(tmp_path / "m"), masks[:3])
    assert video.read_masks(tmp_path / "m", (10, 15)).shape == (3, 10, 15)


def test_sheet_and_overlay(tmp_path, frames):
    masks = (frames == (222, 40, 40)).all(-1)
    drawn = overlay(frames[:4], {"a red square": masks[:4], "nothing": ~masks[:4] & False}, short_side=128)
    assert drawn.shape[0] == 4 and drawn.shape[2] == 48 * 4 and drawn.shape[1] > 32 * 4     # a legend beneath
    ink = (drawn[0, :128] == (255, 64, 160)).all(-1)
    assert ink.any() and not ink[:8 * 4].any() and not ink[9 * 4:19 * 4, 9 * 4:15 * 4].any()    # an outline, in place
    path = contact_sheet([("photos", frames[:2]), ("a longer row", frames)], tmp_path / "sheet.png", scale=2)
    with Image.open(path) as sheet:
        assert sheet.width >= 24 * 96 and sheet.height >= 2 * 64
