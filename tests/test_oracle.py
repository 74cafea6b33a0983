"""sprites/oracle.py against what was rendered: the table that its verdicts on generated clips rest on.

Every clip goes through a blur of 0.6 pixels and noise of 6 / 255 first, which imitate a decoder; where the package
holds the real one, through that. The same table on 200 clips: blur and noise 99.7 % shape, 99.7 %
texture, 100 % of the rest; a small decoder of 700 steps 98.8 % shape, 100 % of the rest.
"""
from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stages.sprites import oracle
from stages.sprites.looks import FULL, SMALL, SUBJECTS, Look
from stages.sprites.match import blur, components, opened
from stages.sprites.paths import path_alone
from stages.sprites.world import PLACES, ROLE_MOTIONS, Actor, Clip, draw_clip, reference_clip, render

DECODER = Path(oracle.__file__).parent / "weights" / "base" / "vae"


def rough(frames: np.ndarray, seed: int, sigma: float = 0.6, noise: float = 6.0) -> np.ndarray:
    kernel = np.exp(-np.arange(-2, 3) ** 2 / (2 * sigma**2))
    soft = np.moveaxis(blur(np.moveaxis(frames.astype(np.float32), -1, 1), kernel / kernel.sum()), 1, -1)
    soft += np.random.default_rng(seed).normal(0, noise, soft.shape)
    return np.clip(soft + 0.5, 0, 255).astype(np.uint8)


def decoded(frames: np.ndarray, seed: int) -> np.ndarray:
    import torch
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(DECODER).float().eval()
    with torch.no_grad():
        x = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
        y = vae.decode(vae.encode(x).latent_dist.mean).sample
    return ((y.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def tally(clip: Clip, scene: oracle.Scene) -> list[tuple[str, bool]]:
    """(what, right?) for everything the oracle said that can be checked; of objects seen less than half nothing is."""
    side = clip.frames.shape[1]
    shown = [mask.sum((1, 2)) / (np.pi * (actor.radius * side) ** 2) for actor, mask in zip(clip.actors, clip.masks)]
    clear = all(share.min() > 0.4 for share in shown)
    seen = {one.colour: one for one in scene.objects}
    out = [("background", scene.background == clip.background),
           ("count", len(seen) == len(clip.actors) and scene.strays.mean() < 0.5)]
    for actor, share in zip(clip.actors, shown):
        if share.max() < 0.5:
            continue
        one = seen.get(actor.look.colour)
        out.append(("colour", one is not None))
        if one is None:
            continue
        if share.max() > 0.8:
            out += [("shape", one.shape == actor.look.shape), ("texture", one.texture == actor.look.texture)]
        sure = np.abs(share - oracle.VISIBLE) > 0.12
        out.append(("presence", bool((one.presence == (share > oracle.VISIBLE))[sure].all())))
        away = np.abs(one.path - actor.path).max(1)[one.presence & (share > 0.5)]
        out.append(("place", bool((away < 0.05).all())))
        if clear and clip.motion not in ROLE_MOTIONS:
            out.append(("word", oracle.motion_alone(one.path) == oracle.motion_alone(actor.path)))
    if clear and clip.motion != "mixed":
        out.append(("motion", scene.motion == clip.motion))
        if clip.motion in ROLE_MOTIONS and scene.doer is not None:
            out.append(("doer", scene.objects[scene.doer].colour == clip.actors[0].look.colour))
    return out


@pytest.mark.parametrize("how", [rough, decoded])
def test_the_table_is_98_percent_right(how):
    if how is decoded and not DECODER.exists():
        pytest.skip("the package holds no decoder yet")
    table = defaultdict(list)
    for k in range(24):
        clip = draw_clip(np.random.default_rng([5, k]), SMALL, 8, 32)
        for what, right in tally(clip, oracle.observe(how(clip.frames, k), SMALL)):
            table[what].append(right)
    shares = {what: float(np.mean(rights)) for what, rights in table.items()}
    assert {"background", "count", "colour", "shape", "texture", "motion", "doer"} <= set(shares)
    assert np.mean([right for rights in table.values() for right in rights]) >= 0.98, shares
    assert min(shares.values()) >= 0.95, shares


def test_larger_clips_and_the_whole_vocabulary():
    rights = [right for k in range(3) for clip in [draw_clip(np.random.default_rng([6, k]), FULL, 8, 64)]
              for _, right in tally(clip, oracle.observe(rough(clip.frames, k), FULL))]
    assert np.mean(rights) >= 0.98


def test_an_empty_scene_has_no_objects_and_a_grey_one_no_background():
    empty, _ = render([Actor(Look("circle", "red"), 0.1, np.full((4, 2), 9.0))], "grass", np.random.default_rng(0), 32)
    scene = oracle.observe(rough(empty, 0), SMALL)
    assert (scene.objects, scene.background, scene.motion, scene.doer) == ([], "grass", "none", None)
    assert oracle.observe(np.full((2, 32, 32, 3), (255, 0, 255), np.uint8), SMALL).background == "none"
    with pytest.raises(ValueError, match="uint8"):
        oracle.observe(empty.astype(np.float32), SMALL)


def test_a_twin_is_a_stray_and_an_object_that_goes_is_absent():
    look, still = Look("circle", "red"), np.full((6, 2), 0.25)
    frames, _ = render([Actor(look, 0.15, still), Actor(look, 0.15, still + 0.5)], "sand", np.random.default_rng(0), 32)
    scene = oracle.observe(frames, SMALL)
    assert [one.look for one in scene.objects] == [look] and (scene.strays == 1).all()
    frames[3:] = render([Actor(look, 0.1, np.full((3, 2), 9.0))], "sand", np.random.default_rng(0), 32)[0]
    one = oracle.observe(frames, SMALL).objects[0]
    assert one.presence.tolist() == [True] * 3 + [False] * 3 and np.isnan(one.path[3:]).all()


@pytest.mark.parametrize("motion", ["still", "left", "right", "up", "down", "bounce"])
def test_motion_of_one_path(motion):
    path = path_alone(motion, (0.5, 0.6), 8, 0.3)
    assert oracle.motion_alone(path) == motion
    path[2] = np.nan                                                    # a frame in which it was hidden
    assert oracle.motion_alone(path) == motion


# -- named looks ----------------------------------------------------------------------------------------------------
def one_picture(look: Look, k: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([3, k])
    radius = rng.uniform(0.14, 0.2) if k % 2 else rng.uniform(0.2, 0.33)
    place = rng.uniform(radius + 0.05, 0.95 - radius, (1, 2))
    frames, _ = render([Actor(look, radius, place)], list(PLACES)[k % 4], rng, 32)
    return rough(frames, k), place


def test_held_out_subjects_are_found_where_they_are():
    for k, (name, (look, _)) in enumerate(SUBJECTS.items()):
        for n in (2 * k, 2 * k + 1):
            frames, place = one_picture(look, n)
            one = oracle.find(frames, [look])[0]
            assert one.presence.all() and np.abs(one.path - place).max() < 0.03, (name, n, one.score)


def test_wrong_texture_wrong_colours_and_other_things_do_not_count():
    wrong = []
    for k, (look, _) in enumerate(SUBJECTS.values()):
        other = list(SUBJECTS.values())[k - 1][0]
        for n, foil in enumerate([replace(look, texture="plain"), Look(look.shape, look.second, "plain"),
                                  replace(look, colour=look.second, second=look.colour), other, Look("circle", "red")]):
            wrong.append(bool(oracle.find(one_picture(foil, k + n)[0], [look])[0].presence.any()))
    assert np.mean(wrong) <= 0.04


@pytest.mark.parametrize("motion", ["orbit", "zigzag"])
def test_two_subjects_are_followed_along_their_paths(motion):
    looks = [SUBJECTS["toy"][0], SUBJECTS["pet"][0]]
    clip = reference_clip(motion, looks, 0, 8, 32)
    for one, actor, mask in zip(oracle.find(rough(clip.frames, 0), looks), clip.actors, clip.masks):
        assert one.presence.mean() >= 0.85
        assert np.nanmax(np.abs(one.path - actor.path)) < 0.04
        assert (one.masks & mask).sum() / (one.masks | mask).sum() > 0.6


# -- the tools ------------------------------------------------------------------------------------------------------
def test_components_and_opening():
    rows = [[1, 1, 0, 0, 1], [0, 1, 0, 0, 1], [0, 0, 0, 1, 1], [1, 0, 0, 0, 0], [0, 1, 0, 0, 0]]
    picture = np.array(rows, bool)[None]
    labels = components(picture)[0]
    assert len(np.unique(labels[labels > 0])) == 3 and ((labels > 0) == picture[0]).all()
    block = np.zeros((1, 6, 6), bool)
    block[0, 1:4, 1:4] = True
    block[0, 5] = True                                                  # a line one pixel wide goes
    assert np.array_equal(opened(block)[0, :4], block[0, :4]) and not opened(block)[0, 5].any()
