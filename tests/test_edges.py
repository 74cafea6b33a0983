"""core/edges.py: masks brought to the edges of the picture, against the truth of rendered photos and clips."""
import numpy as np
import pytest

from stages import segmenters
from stages.core.edges import outlined, snapped, trimmed
from stages.sprites.looks import SUBJECTS
from stages.sprites.world import photos


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.fixture(scope="module")
def clipseg():
    return segmenters.load("clipseg")


@pytest.mark.parametrize("name", SUBJECTS)
def test_masks_of_photos_come_to_the_edges_of_the_subject(clipseg, name):
    """Black things at night, and thin tips, are what CLIPSeg misses; a rim of the ground is what it adds."""
    for shot in photos(name, 6, 9, 32, close=False):
        drawn = clipseg.masks(shot.frames, [SUBJECTS[name][1]])[SUBJECTS[name][1]].masks
        true = shot.masks[0]
        edged = snapped(shot.frames, drawn)
        assert overlap(edged, true) > 0.9 and overlap(edged, true) >= overlap(drawn, true) - 0.02


def scene(side=32, frames=2):
    """A purple square on sand, one half dark, a row of half-covered pixels above it -> frames, its truth."""
    pictures = np.tile(np.uint8([190, 166, 124]), (frames, side, side, 1))
    true = np.zeros((frames, side, side), bool)
    true[:, 10:20, 10:20] = True
    pictures[true] = (150, 52, 204)
    pictures[:, 10:20, 15:20] = (30, 20, 60)
    third = (np.float32([190, 166, 124]) * 2 + np.float32([150, 52, 204])) / 3
    pictures[:, 9, 10:15] = third.astype(np.uint8)                 # one third of the thing, two of the ground
    return pictures, true


def test_a_mask_grows_over_what_differs_and_sheds_what_is_mixed():
    frames, true = scene()
    drawn = np.zeros_like(true)
    drawn[:, 9:20, 10:16] = True                                   # most of one half, and the mixed row above it
    assert np.array_equal(snapped(frames, drawn), true)
    around = np.ones_like(true)
    around[:, 7:22, 8:22] = False
    from_tone = frames - np.float32([190, 166, 124])
    grown = outlined(from_tone, drawn, around)
    assert (grown & ~true).sum() == 2 * 5                          # the mixed row of each frame, which is trimmed off
    assert np.array_equal(trimmed(from_tone, grown), true)


def test_a_dark_thing_beside_a_bright_one_is_no_mixture():
    """Black, a third as far from the night as orange is, but not on the way from one to the other."""
    frames = np.tile(np.uint8([34, 36, 66]), (1, 32, 32, 1))
    true = np.zeros((1, 32, 32), bool)
    true[:, 10:20, 10:20] = True
    frames[:, 10:20, 10:15], frames[:, 10:20, 15:20] = (250, 140, 24), (16, 16, 16)
    assert np.array_equal(trimmed(frames - np.float32([34, 36, 66]), true), true)


def test_masks_that_cannot_be_bettered_stay():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    drawn = np.zeros((2, 32, 32), bool)
    drawn[:, 8:20, 8:20] = True
    assert overlap(snapped(noise, drawn), drawn) > 0.8, "surroundings too varied to differ from"
    frames, _ = scene()
    nothing, everything = np.zeros_like(drawn), np.ones_like(drawn)
    assert np.array_equal(snapped(frames, nothing), nothing)
    assert np.array_equal(snapped(frames, everything), everything)
    empty = drawn.copy()
    empty[1] = False                                               # a frame in which it was not found stays so
    assert not snapped(np.tile(np.uint8([9, 9, 9]), (2, 32, 32, 1)), empty)[1].any()


def test_larger_pictures():
    """The reach is in shares of the height: the same picture, four times as large, has the same mask as large."""
    frames, true = scene()
    drawn = np.zeros_like(true)
    drawn[:, 9:20, 10:16] = True
    large = [np.repeat(np.repeat(part, 4, 1), 4, 2) for part in (frames, drawn, true)]
    assert overlap(snapped(large[0], large[1]), large[2]) > 0.9
