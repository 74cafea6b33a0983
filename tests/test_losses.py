"""Each loss against a slow, obvious float64 version; CutMix against what can be seen."""
import numpy as np
import pytest
import torch

from stages.core import losses
from stages.core.cutmix import Cut, clean_background, compose, cutmix, overlap_share, place, recast


def draws(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# -- oracles: loops over numbers, no tensor operation -----------------------------------------------------------------
def slow_mean_square(a, b):
    pairs = list(zip(a.flatten().tolist(), b.flatten().tolist()))
    return sum((x - y) ** 2 for x, y in pairs) / len(pairs)


def slow_cover(mask, h, w):
    batch, frames, height, width = mask.shape
    tall, wide = height // h, width // w
    return [[[[sum(float(mask[b, f, y * tall + i, x * wide + j]) for i in range(tall) for j in range(wide))
               / (tall * wide) for x in range(w)] for y in range(h)] for f in range(frames)] for b in range(batch)]


def slow_attention(maps, masks):
    total = 0.0
    for sites, mask in zip(maps, masks):
        per_site = []
        for site in sites:
            want = slow_cover(mask, *site.shape[-2:])
            cells = [(float(site[b, f, y, x]) - want[b][f][y][x]) ** 2 for b in range(site.shape[0])
                     for f in range(site.shape[1]) for y in range(site.shape[2]) for x in range(site.shape[3])]
            per_site.append(sum(cells) / len(cells))
        total += sum(per_site) / len(per_site)
    return 0.5 * total


def test_denoising_loss_is_the_mean_square():
    a, b = draws(2, 3, 2, 4, 4), draws(2, 3, 2, 4, 4, seed=1)
    assert abs(float(losses.denoising(a, b)) - slow_mean_square(a, b)) < 1e-12


def test_masked_denoising_loss_averages_over_what_counts():
    a, b = draws(1, 3, 1, 4, 4), draws(1, 3, 1, 4, 4, seed=1)
    weight = torch.zeros(1, 1, 1, 4, 4, dtype=torch.float64)
    weight[..., 1:3, 2] = 1
    want = slow_mean_square(a[..., 1:3, 2], b[..., 1:3, 2])
    assert float(losses.denoising(a, b, weight)) == pytest.approx(want, rel=1e-12)
    assert float(losses.denoising(a, b, torch.ones(1, 1, 1, 4, 4))) == pytest.approx(slow_mean_square(a, b), rel=1e-12)


def test_subject_and_fusion_totals_are_the_papers_sums():
    one, two = torch.tensor(0.5), torch.tensor(0.25)
    assert losses.subject(one, two, 0.25).item() == 0.5 + 0.25 * 0.25
    assert losses.total_fusion(one, two, 0.6).item() == pytest.approx(0.5 + 0.6 * 0.25)


def test_fusion_loss_is_the_mean_over_subjects_and_spares_the_teacher():
    student, teacher = draws(3, 2, 2, 3, 3).requires_grad_(), draws(3, 2, 2, 3, 3, seed=1).requires_grad_()
    loss = losses.fusion(student, teacher)
    want = sum(slow_mean_square(student[n].detach(), teacher[n].detach()) for n in range(3)) / 3
    assert float(loss.detach()) == pytest.approx(want, rel=1e-12)
    loss.backward()
    assert teacher.grad is None and student.grad is not None


def test_attention_loss_against_the_slow_one():
    maps = [[draws(1, 2, 4, 4, seed=n).sigmoid(), draws(1, 2, 2, 2, seed=n + 5).sigmoid()] for n in range(2)]
    masks = [draws(1, 2, 8, 8, seed=n + 9) > 0 for n in range(2)]
    got = losses.attention(maps, masks)
    assert float(got) == pytest.approx(slow_attention(maps, masks), rel=1e-12)


def test_attention_loss_is_zero_where_the_map_is_the_mask():
    mask = torch.zeros(1, 2, 8, 8)
    mask[..., :4, :4] = 1
    assert float(losses.attention([[losses.cover(mask, (4, 4)), losses.cover(mask, (2, 2))]] * 2, [mask] * 2)) == 0


# -- CutMix -----------------------------------------------------------------------------------------------------------
def cut(colour, box, frames=3, size=16, back=100):
    pictures = np.full((frames, size, size, 3), back, np.uint8)
    masks = np.zeros((frames, size, size), bool)
    for f in range(frames):
        y, x, side = box[0], box[1] + f, box[2]
        pictures[f, y:y + side, x:x + side] = colour
        masks[f, y:y + side, x:x + side] = True
    return Cut(pictures, masks)


@pytest.mark.parametrize("front", [0, 1])
def test_the_front_subject_hides_what_it_covers(front):
    red, blue = cut((255, 0, 0), (2, 2, 6)), cut((0, 0, 255), (5, 4, 6))
    out = compose([red, blue], [1 - front, front], np.full((3, 16, 16, 3), 100, np.uint8))
    assert not (out.masks[0] & out.masks[1]).any()
    assert np.array_equal(out.masks[front], (red, blue)[front].masks)
    assert (out.frames[out.masks[0]] == (255, 0, 0)).all() and (out.frames[out.masks[1]] == (0, 0, 255)).all()
    assert np.array_equal(out.masks[0] | out.masks[1], red.masks | blue.masks)


def test_the_background_keeps_no_trace_of_the_subject():
    clean = clean_background(cut((255, 0, 0), (4, 4, 5)))
    assert (clean == 100).all()
    still = Cut(*(np.repeat(a[:1], 3, 0) for a in (cut((255, 0, 0), (4, 4, 5)).frames, cut(0, (4, 4, 5)).masks)))
    assert (clean_background(still) == 100).all()


def test_place_keeps_the_subject_whole_and_inside():
    rng = np.random.default_rng(0)
    for _ in range(20):
        placed = place(cut((255, 0, 0), (4, 4, 5)), 1.0, rng)
        assert (placed.masks.sum((1, 2)) == 25).all()
        assert (placed.frames[placed.masks] == (255, 0, 0)).all()


def test_a_subject_cut_from_a_photo_is_carried_along_a_straight_line():
    photo = cut((255, 0, 0), (4, 4, 5))
    still = Cut.of_photo(photo.frames[0], photo.masks[0], frames=5)
    for seed in range(8):
        placed = place(still, 1.0, np.random.default_rng(seed))
        assert (placed.masks.sum((1, 2)) == 25).all() and (placed.frames[placed.masks] == (255, 0, 0)).all()
        corners = np.array([np.argwhere(mask)[0] for mask in placed.masks])
        line = np.linspace(corners[0], corners[-1], 5)
        assert np.abs(corners - line).max() <= 0.5 and (corners[0] != corners[-1]).any()


def tracks_of(*boxes, frames=4, size=24):
    """Square actors that go one pixel to the right in every frame, on grey -> (clip, their masks)."""
    clip, tracks = np.full((frames, size, size, 3), 100, np.uint8), []
    for y, x, side in boxes:
        mask = np.zeros((frames, size, size), bool)
        for f in range(frames):
            mask[f, y:y + side, x + f:x + f + side] = True
        clip[mask] = (255, 0, 0)
        tracks.append(mask)
    return clip, tracks


def test_a_recast_clip_has_the_subjects_where_its_actors_were():
    clip, tracks = tracks_of((2, 2, 6), (12, 10, 6))
    photo, mask = np.full((24, 24, 3), 9, np.uint8), np.zeros((24, 24), bool)
    mask[3:15, 8:20] = True                                        # twice as tall and wide as the actors
    photo[mask] = (0, 255, 0)
    blue = np.where(mask[..., None], (0, 0, 255), photo).astype(np.uint8)
    out = recast(clip, tracks, [Cut.of_photo(picture, mask, 4) for picture in (photo, blue)])
    for n, colour in enumerate(((0, 255, 0), (0, 0, 255))):
        assert np.array_equal(out.masks[n], tracks[n])
        assert (out.frames[out.masks[n]].argmax(-1) == np.argmax(colour)).all()
    assert (out.frames[~out.masks.any(0)] == 100).all(), "an actor left a trace"


def test_a_recast_clip_keeps_no_ghost_of_what_its_masks_missed():
    clip, (track,) = tracks_of((2, 2, 6))
    clip[:, 20:23, 2:5] = (200, 0, 0)                               # of the actor, far from its mask
    photo = Cut.of_photo(np.full((24, 24, 3), 9, np.uint8), track[0], 4)
    missed = (clip[..., 0] != clip[..., 1]) | track
    assert (recast(clip, [track], [photo]).frames == (200, 0, 0)).all(-1).any()
    out = recast(clip, [track], [photo], missed)
    assert (out.frames[~out.masks.any(0)] == 100).all() and np.array_equal(out.masks[0], track)


def test_a_recast_subject_leaves_the_frame_with_its_actor():
    clip, (track,) = tracks_of((0, 16, 8))                          # frames 1 and 2 show a part of it
    track[3], clip[3] = False, 100                                  # and 3 nothing
    wide = np.zeros((24, 24), bool)
    wide[4:8, 2:18] = True                                          # 4 x 16: reaches beyond the frame's edge
    out = recast(clip, [track], [Cut.of_photo(np.full((24, 24, 3), 50, np.uint8), wide, 4)])
    assert not out.masks[0, 3].any() and (out.frames[3] == clip[0, 20, 0]).all()
    assert out.masks[0, :3].any((1, 2)).all() and (out.frames[out.masks[0]] == 50).all()
    assert out.masks[0, 2, :, -1].any()
    with pytest.raises(ValueError):
        recast(clip, [track, track], [Cut(clip, track)])


@pytest.mark.parametrize("top, rows", [(1, 15), (0, 11)])              # of 6 x 6; at 0 it may be leaving the frame
def test_a_recast_subject_stays_whole_where_its_actor_is_whole(top, rows):
    clip, (track,) = tracks_of((top, 3, 6))
    tall = np.zeros((24, 24), bool)
    tall[2:22, 10:13] = True                                        # 20 x 3, which becomes sqrt(36 / 60) of that
    out = recast(clip, [track], [Cut.of_photo(np.full((24, 24, 3), 50, np.uint8), tall, 4)])
    assert (out.masks[0].any(2).sum(1) == rows).all()


def test_three_subjects_hide_each_other_in_the_order_of_their_depth():
    cuts = [cut((255, 0, 0), (2, 2, 6)), cut((0, 255, 0), (4, 4, 6)), cut((0, 0, 255), (6, 3, 6))]
    out = compose(cuts, [2, 0, 1], np.full((3, 16, 16, 3), 100, np.uint8))               # the second is in front
    assert (out.masks.sum(0) <= 1).all() and np.array_equal(out.masks.any(0), np.any([c.masks for c in cuts], 0))
    assert np.array_equal(out.masks[1], cuts[1].masks)
    assert np.array_equal(out.masks[0], cuts[0].masks & ~cuts[1].masks)
    for n, colour in enumerate(((255, 0, 0), (0, 255, 0), (0, 0, 255))):
        assert (out.frames[out.masks[n]] == colour).all()
    mixed = cutmix(cuts, np.random.default_rng(0), overlap=1.0)
    assert mixed.masks.shape == (3, 3, 16, 16) and mixed.masks.any((1, 2, 3)).all()


def test_cutmix_respects_the_overlap_and_repeats_with_its_seed():
    pair = cut((255, 0, 0), (2, 2, 4)), cut((0, 0, 255), (5, 4, 4))
    for seed in range(8):
        out = cutmix(pair, np.random.default_rng(seed), overlap=0.0)
        assert out.masks.any((1, 2, 3)).all()
        again = cutmix(pair, np.random.default_rng(seed), overlap=0.0)
        assert np.array_equal(out.frames, again.frames) and np.array_equal(out.masks, again.masks)
    assert overlap_share(pair[0].masks, pair[0].masks) == 1.0
