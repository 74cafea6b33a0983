"""Segmenters behind their seam: competing phrases against a loop over pixels, masks of files, refusals by name."""
from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import make_tokenizer
from PIL import Image

from stages import segmenters
from stages.core.errors import BadInput, UsageError
from stages.core.video import write_images, write_masks
from stages.core.vision import CHUNK, Preparation
from stages.segmenters import Setup
from stages.segmenters.clipseg import ClipSeg

SIDE = 16


def tower(tokenizer=None, **more):
    own = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, projection_dim=16)
    text = dict(vocab_size=len(tokenizer), max_position_embeddings=20, bos_token_id=0, eos_token_id=1,
                pad_token_id=1) if tokenizer else dict(image_size=SIDE, patch_size=4)
    return {**own, **text, **more}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny CLIPSeg whose phrases differ, with its tokenizer and without a preprocessor_config.json."""
    from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

    path, tokenizer = tmp_path_factory.mktemp("clipseg"), make_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPSegForImageSegmentation(CLIPSegConfig(
            text_config=tower(tokenizer), vision_config=tower(), projection_dim=16, extract_layers=[0, 1, 2],
            reduce_dim=8, decoder_num_attention_heads=2, decoder_intermediate_size=16))
        for p in model.parameters():
            if p.ndim > 1:                     # sharper than a fresh network, so that phrases differ
                p.data.normal_(std=0.15)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def finder(folder):
    return segmenters.load("clipseg", Setup(model=folder, threshold=0.5))


def pictures(count=3, height=24, width=32, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (count, height, width, 3), dtype=np.uint8)


# -- clipseg ----------------------------------------------------------------------------------------------------------
def slow_probability(model, tokenizer, frame, phrase):
    """One frame and one phrase through the class's own forward -> (H, W)."""
    from transformers import ViTImageProcessorPil

    prepare = ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}, resample=3, image_mean=[0.48145466, 0.4578275,
                                   0.40821073], image_std=[0.26862954, 0.26130258, 0.27577711])
    pixels = torch.as_tensor(np.stack(prepare(Image.fromarray(frame))["pixel_values"]))
    with torch.no_grad():
        logits = model(input_ids=tokenizer([phrase], return_tensors="pt").input_ids, pixel_values=pixels).logits
    logits = logits.reshape(1, 1, SIDE, SIDE)
    return torch.nn.functional.interpolate(logits, frame.shape[:2], mode="bilinear")[0, 0].sigmoid().numpy()


def test_each_pixel_goes_to_its_likeliest_phrase(folder, finder):
    from transformers import CLIPSegForImageSegmentation, CLIPTokenizer

    model = CLIPSegForImageSegmentation.from_pretrained(folder).eval()
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    frames, phrases = pictures(), ["red dog", "horse", "a person is riding"]
    found = finder.masks(frames, phrases)
    assert list(found) == phrases
    both = np.zeros(frames.shape[:3], int)
    for f, frame in enumerate(frames):
        chances = [slow_probability(model, tokenizer, frame, phrase) for phrase in phrases]
        for n, phrase in enumerate(phrases):
            want = np.zeros(frame.shape[:2], bool)
            for y, x in np.ndindex(want.shape):
                want[y, x] = chances[n][y, x] > 0.5 and max(range(3), key=lambda k: chances[k][y, x]) == n
            near = np.abs(np.sort(chances, 0)[-1] - 0.5) < 1e-4
            near |= np.sort(chances, 0)[-1] - np.sort(chances, 0)[-2] < 1e-4          # ties within rounding
            assert ((found[phrase].masks[f] == want) | near).all()
            assert near.mean() < 0.1
            sure = chances[n][want].mean() if want.any() else 0.0
            assert found[phrase].confidence[f] == pytest.approx(sure, abs=1e-2)
            both[f] += found[phrase].masks[f]
    assert both.max() == 1, "a pixel belongs to one phrase at most"
    assert sum(found[p].masks.any() for p in phrases) >= 2, "the phrases of this test compete"
    assert all(found[p].masks.dtype == bool and found[p].confidence.shape == (3,) for p in phrases)


def test_probabilities_do_not_depend_on_company(finder):
    """Other phrases (padding), other frames (chunks): the same numbers."""
    frames = pictures(CHUNK + 1)
    whole = finder.probabilities(frames, ["dog", "a toy bear in snow"])
    assert whole.shape == (2, CHUNK + 1, 24, 32)
    for n, phrase in enumerate(("dog", "a toy bear in snow")):
        assert np.allclose(finder.probabilities(frames[-1:], [phrase])[0], whole[n, -1:], atol=1e-5)


def test_the_threshold(finder, monkeypatch):
    frames, shares = pictures(2), []
    for threshold in (0.0, 0.5, 1.0):
        monkeypatch.setattr(finder, "threshold", threshold)
        found = finder.masks(frames, ["dog", "horse"])
        shares.append(found["dog"].masks.mean() + found["horse"].masks.mean())
    assert shares[0] == 1.0 and shares[0] > shares[1] > shares[2] == 0.0
    assert (finder.masks(frames, ["dog"])["dog"].confidence == 0).all()


def test_a_phrase_said_twice_is_one(finder):
    assert finder.masks(pictures(1), ["dog", "dog"])["dog"].masks.any() == finder.masks(
        pictures(1), ["dog"])["dog"].masks.any()


def test_the_folder_says_how_pictures_are_prepared(folder, tmp_path):
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    Preparation((SIDE, SIDE), None, (0.5,) * 3, (0.5,) * 3, int(Image.Resampling.BOX)).save(own)
    finder = ClipSeg(Setup(model=own))
    assert finder.prepare == Preparation((SIDE, SIDE), None, (0.5,) * 3, (0.5,) * 3, int(Image.Resampling.BOX))
    frames = pictures(1, SIDE, SIDE)
    assert np.allclose(finder.probabilities(frames.repeat(4, 1).repeat(4, 2), ["dog"]).mean(),
                       finder.probabilities(frames, ["dog"]).mean(), atol=1e-2)
    (own / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": SIDE}, "crop_size": SIDE,
                                                              "do_center_crop": True}))
    with pytest.raises(BadInput, match="looks at the middle"):
        ClipSeg(Setup(model=own))


@pytest.mark.parametrize(("name", "content", "what"), [
    ("config.json", "null", "the CLIPSeg model in .* cannot be loaded: .*config.json holds no JSON object"),
    ("tokenizer.json", "{}", "the tokenizer of the CLIPSeg model in .* cannot be loaded"),
    ("preprocessor_config.json", '{"size": {"height": 16}}', "no picture can be prepared as .*a side of None pixels")])
def test_damaged_files_beside_clipseg(folder, tmp_path, name, content, what):
    hurt = tmp_path / "hurt"
    shutil.copytree(folder, hurt)
    (hurt / name).write_text(content)
    with pytest.raises(BadInput, match=what):
        ClipSeg(Setup(model=hurt))


def test_what_clipseg_refuses(folder, finder, tmp_path):
    with pytest.raises(BadInput, match="the CLIPSeg model is not in .*nowhere.*--segmenter given"):
        segmenters.load("clipseg", Setup(model=tmp_path / "nowhere"))
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    (bare / "tokenizer.json").unlink()
    with pytest.raises(BadInput, match="no tokenizer"):
        segmenters.load("clipseg", Setup(model=bare))
    with pytest.raises(UsageError, match="nothing to look for.*--actors"):
        finder.masks(pictures(1), [])
    with pytest.raises(BadInput, match="tokens long, and the CLIPSeg model reads 20"):
        finder.masks(pictures(1), ["dog " * 30])
    with pytest.raises(BadInput, match="uint8"):
        finder.masks(pictures(1) / 255, ["dog"])
    with pytest.raises(BadInput, match="one at least"):
        finder.masks(pictures(0), ["dog"])


# -- given ------------------------------------------------------------------------------------------------------------
def drawn(root, height=24, width=32):
    tracks = {name: np.random.default_rng(n).random((3, height, width)) > 0.5 for n, name in enumerate("ab")}
    tracks["b"][1] = False
    write_masks(root / "person", tracks["a"])
    write_masks(root / "tall-horse", tracks["b"])
    return tracks


def test_given_masks_come_back_as_drawn(tmp_path):
    tracks = drawn(tmp_path)
    found = segmenters.load("given", Setup(masks=tmp_path)).masks(pictures(), ["Tall horse", "person"])
    assert list(found) == ["Tall horse", "person"]
    assert np.array_equal(found["person"].masks, tracks["a"]) and np.array_equal(found["Tall horse"].masks, tracks["b"])
    assert found["Tall horse"].confidence.tolist() == [1, 0, 1]


def test_given_masks_are_brought_to_the_frames(tmp_path):
    tracks = drawn(tmp_path, 12, 16)
    found = segmenters.load("given", Setup(masks=tmp_path)).masks(pictures(), ["person"])["person"].masks
    assert np.array_equal(found, tracks["a"].repeat(2, 1).repeat(2, 2))


def test_natural_order_of_given_masks(tmp_path):
    for n in (10, 9, 2):
        write_images(tmp_path / "made", np.full((1, 24, 32, 3), 255 * (n == 10), np.uint8))
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "made" / "0000.png").rename(tmp_path / "a" / f"frame{n}.png")
    assert segmenters.load("given", Setup(masks=tmp_path)).masks(pictures(), ["a"])["a"].masks.any((1, 2)).tolist() == [
        False, False, True]


def test_what_given_refuses(tmp_path):
    drawn(tmp_path)
    finder = segmenters.load("given", Setup(masks=tmp_path))
    with pytest.raises(BadInput, match=r"no sub-folder for 'dog' \(it has: person, tall-horse\)"):
        finder.masks(pictures(), ["dog"])
    with pytest.raises(BadInput, match="holds 3 masks for 4 pictures"):
        finder.masks(pictures(4), ["person"])
    with pytest.raises(BadInput, match="32 x 24, and the pictures 32 x 32"):
        finder.masks(pictures(3, 32, 32), ["person"])
    with pytest.raises(BadInput, match="is not a folder"):
        segmenters.load("given", Setup(masks=tmp_path / "nowhere"))
    with pytest.raises(UsageError, match="--masks FOLDER"):
        segmenters.load("given")


# -- the seam ---------------------------------------------------------------------------------------------------------
def test_an_unknown_segmenter_names_the_known(tmp_path):
    with pytest.raises(UsageError, match="'sam' is no segmenter.*grounded-sam2, clipseg, given"):
        segmenters.load("sam")


def test_another_segmenter_is_one_line(monkeypatch):
    """A class in a file of its own, made from a Setup."""
    import sys
    import types

    module = types.ModuleType("stages.segmenters.everything")

    class Everything:
        def __init__(self, setup):
            self.told = (setup.device, setup.model, setup.threshold)

        def masks(self, frames, phrases, hints=()):
            full = np.ones(frames.shape[:3], bool)
            return {phrase: segmenters.Masks(full, segmenters.confidence(full, full * 0.5)) for phrase in phrases}

    module.Everything = Everything
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(segmenters.SEGMENTERS, "everything", ("everything", "Everything"))
    finder = segmenters.load("everything", Setup(device="cpu", model="m", threshold=0.3))
    assert finder.told == ("cpu", "m", 0.3)
    assert finder.masks(pictures(), ["x"])["x"].confidence.tolist() == [0.5] * 3
