"""core/sampling.py and core/framing.py: which frames, and which part of each, by the stated rules."""
from __future__ import annotations

import numpy as np
import pytest

from stages.core.errors import BadInput
from stages.core.framing import box_of, fit_size, frame_box
from stages.core.sampling import sample


def steady(rate: float, seconds: float) -> np.ndarray:
    return np.arange(round(rate * seconds)) / rate


def slow_nearest(times, instants):
    return [min(range(len(times)), key=lambda n: (abs(times[n] - t), n)) for t in instants]


# -- which frames -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rate", [8, 12, 23.976, 25, 29.97, 50, 60, 120])
def test_any_rate_is_sampled_by_time_at_the_rate_of_the_base(rate):
    times = steady(rate, 10)
    found = sample(times, len(times), fps=8, frames=24)
    assert list(found.chosen) == slow_nearest(times, np.arange(24) / 8)
    assert found.start == 0 and found.step == 1 / 8 and found.speed == 1 and found.windows == (0,)
    assert found.end == 3 and found.repeated == 0
    assert found.uneven == max(abs(times[n] - k / 8) for k, n in enumerate(found.chosen)) <= 0.5 / rate + 1e-9


def test_a_variable_rate_is_even_in_time_not_in_count():
    """24 frames a second, then a stretch of 96: every eighth of a second has a frame, and it is taken."""
    times = np.concatenate([np.arange(24) / 24, 1 + np.arange(96) / 96, 2 + np.arange(48) / 24])
    times = times + np.random.default_rng(0).uniform(-4e-4, 4e-4, len(times))
    times -= times[0]
    found = sample(times, len(times), fps=8, frames=24)
    assert found.uneven < 1e-3
    assert np.abs(np.diff(found.times) - 1 / 8).max() < 2e-3
    evenly_counted = np.linspace(0, len(times) - 1, 24).round().astype(int)
    assert np.abs(np.diff(times[evenly_counted]) - 1 / 8).max() > 0.05, "what counting frames would do"


def test_a_part_of_the_clip():
    times = steady(24, 10)
    found = sample(times, len(times), fps=8, frames=24, start=4.5)
    assert found.times[0] == 4.5 and found.end == 7.5 and found.chosen[:3] == (108, 111, 114)
    with pytest.raises(BadInput, match=r"shows its last frame at 9.96 s, and the part asked for begins at 11 s"):
        sample(times, len(times), fps=8, frames=24, start=11)
    with pytest.raises(BadInput, match=r"the part asked for ends at 11.88 s. lower --start or --seconds"):
        sample(times, len(times), fps=8, frames=24, start=8, seconds=4)


def test_a_longer_part_is_cut_into_windows_that_cover_it():
    times = steady(24, 10)
    found = sample(times, len(times), fps=8, frames=24, seconds=10)
    assert len(found.chosen) == 80 and len(found.windows) == 4 and found.length == 24
    covered = {k for first in found.windows for k in range(first, first + 24)}
    assert covered == set(range(80))
    assert found.windows == (0, 19, 37, 56)
    assert sample(times, len(times), fps=8, frames=24, seconds=6).windows == (0, 24)


def test_speed():
    times = steady(24, 10)
    twice = sample(times, len(times), fps=8, frames=24, speed=2)
    assert twice.step == 1 / 4 and twice.end == 6 and twice.speed == 2
    short = sample(times, len(times), fps=8, frames=24, seconds=1.5)             # shown slower, to fill the window
    assert short.speed == 0.5 and short.end == 1.5 and len(short.chosen) == 24
    with pytest.raises(BadInput, match="has 1 s of it, too little at --speed 1. use --speed 0.33"):
        sample(times, len(times), fps=8, frames=24, seconds=1, speed=1)


def test_a_clip_that_is_too_short_is_played_slower_and_not_below_half():
    times = steady(24, 2)
    found = sample(times, len(times), fps=8, frames=24)
    assert found.chosen[0] == 0 and found.chosen[-1] == 47 and 0.6 < found.speed < 0.7
    with pytest.raises(BadInput, match=r"would have to be played 0\.\d\d times as fast.*--speed 0\.\d\d") as refused:
        sample(steady(24, 1), 24, fps=8, frames=24)
    typed = float(str(refused.value).split("--speed ")[1])
    assert len(sample(steady(24, 1), 24, fps=8, frames=24, speed=typed).chosen) == 24
    assert sample(steady(8, 3), 24, fps=8, frames=24).speed == 1                 # exactly as long as it must be
    assert sample(steady(25, 2.92), 73, fps=8, frames=24).speed == 1             # short by less than half a frame


def test_frames_that_stand_still_are_counted_and_one_picture_is_no_motion():
    found = sample(steady(4, 6), 24, fps=8, frames=16)
    assert found.repeated == 8
    for times in (np.zeros(1), np.array([0, 30.0])):
        with pytest.raises(BadInput, match="one picture"):
            sample(times, len(times), fps=8, frames=8)
    assert sample(np.zeros(1), 1, fps=8, frames=1).chosen == (0,)


def test_pictures_without_time_stamps_are_frames_of_the_base():
    assert sample(None, 30, fps=8, frames=24).chosen == tuple(range(24))
    assert sample(None, 48, fps=8, frames=24, seconds=6).windows == (0, 24)


# -- which part of each -----------------------------------------------------------------------------------------------
def test_cover_takes_the_largest_middle_part_or_the_part_around():
    cut = (720 - 1280 / 1.8) / 2
    assert frame_box((720, 1280), (320, 576)) == pytest.approx((0, cut, 1280, 720 - cut))
    left, top, right, bottom = frame_box((100, 300), (10, 10), around=(0, 0, 40, 40))
    assert (left, right, top, bottom) == (0, 100, 0, 100)                        # as far as the picture reaches
    assert frame_box((100, 300), (10, 10), around=(180, 0, 220, 100))[:3:2] == (150, 250)
    assert frame_box((100, 300), (10, 30)) == (0, 0, 300, 100)


def test_contain_keeps_everything_and_repeats_the_edge():
    picture = np.zeros((1, 40, 20, 3), np.uint8)
    picture[:, :, 0], picture[:, :, -1] = 100, 200
    out = fit_size(picture, (40, 40), "contain")
    assert out.shape == (1, 40, 40, 3)
    assert (out[:, :, :11] == 100).all() and (out[:, :, 29:] == 200).all() and np.array_equal(out[:, :, 10:30], picture)
    masks = np.ones((1, 40, 20), bool)
    fitted = fit_size(masks, (40, 40), "contain")
    assert fitted[:, :, 10:30].all() and not fitted[:, :, :10].any() and not fitted[:, :, 30:].any()


def test_masks_and_pictures_stay_together():
    """A mask fitted by any rule covers what it covered."""
    rng = np.random.default_rng(0)
    for fit, size in (("cover", (30, 50)), ("contain", (30, 50)), ("cover", (64, 20)), ("contain", (64, 20))):
        mask = np.zeros((1, 90, 120), bool)
        y, x = rng.integers(20, 50, 2)
        mask[:, y:y + 30, x:x + 40] = True
        picture = np.where(mask[..., None], np.uint8(255), np.uint8(0)).repeat(3, -1)
        box = box_of(mask[0])
        assert box == (x, y, x + 40, y + 30)
        shown, fitted = fit_size(picture, size, fit, box), fit_size(mask, size, fit, box)
        assert ((shown[..., 0] > 127) == fitted).mean() > 0.99
    assert box_of(np.zeros((4, 4), bool)) is None
