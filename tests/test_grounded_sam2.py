"""Grounded-SAM2 on tiny networks of the real classes, in the layout of the real repositories, with the network off."""
from __future__ import annotations

import json
import re
import shutil
import socket
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import vision_layouts
from layouts import in_hub_cache
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from vision_layouts import clip, frames_prepared, with_and_without_memory_lost

from stages import segmenters
from stages.core.errors import BadInput, MissingPrerequisite, Refused, UsageError
from stages.core.vision import IMAGENET, Preparation
from stages.segmenters import Hint, Setup, sam2
from stages.segmenters.grounded_sam2 import LOOKS, GroundedSam2, looks
from stages.segmenters.grounding_dino import GroundingDino, _answers
from stages.segmenters.sam2 import Sam2, points_of
from stages.segmenters.tracks import Job

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
PHRASES = ["person", "red car", "blue car"]
LOW = dict(box_threshold=0.05, text_threshold=0.02)             # a random network is sure of little


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    root = tmp_path_factory.mktemp("weights")
    return vision_layouts.grounding_dino(root / "dino"), vision_layouts.sam2(root / "sam2")


@pytest.fixture(scope="module")
def finder(weights):
    return GroundedSam2(setup_of(weights))


@pytest.fixture(scope="module")
def tracker(weights):
    return Sam2(str(weights[1]), "cpu")


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("something asked for the network")

    for way in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, way, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def setup_of(weights, **more):
    return Setup(detector=str(weights[0]), tracker=str(weights[1]), **{**LOW, **more})


# -- the segmenter ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("device", DEVICES)
def test_masks_from_the_cache_of_the_hub(device, weights, tmp_path, monkeypatch, offline):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for source, repo in zip(weights, (vision_layouts.DINO, vision_layouts.SAM2)):
        in_hub_cache(source, tmp_path / "hub", repo)
    finder = segmenters.load("grounded-sam2", Setup(device=device, **LOW))
    for network in (finder.detector.network, finder.tracker.network):
        assert {p.device.type for p in network.parameters()} == {device}
        assert not any(p.requires_grad for p in network.parameters()) and not network.training
    frames = clip()
    got = finder.masks(frames, [*PHRASES, "person"])
    assert list(got) == PHRASES
    together = np.zeros(frames.shape[:3], int)
    for one in got.values():
        assert one.masks.dtype == bool and one.masks.shape == frames.shape[:3] and one.confidence.shape == (6,)
        assert ((one.confidence > 0.5) == one.masks.any((1, 2))).all()
        together += one.masks
    assert together.max() == 1, "a pixel belongs to one phrase at most, and something was found"
    again = finder.masks(frames, PHRASES)
    assert all(np.array_equal(again[name].masks, got[name].masks) for name in got)


def test_one_photo_and_what_is_pointed_at(finder):
    photo = clip(1, 36, 52)
    got = finder.masks(photo, ["person", "horse"], [Hint("horse", 0, (10, 10, 40, 30))])
    assert got["horse"].masks.shape == (1, 36, 52) and got["horse"].instances[0].box == (10, 10, 40, 30)
    assert got["horse"].masks.any() and got["horse"].instances[0].confidence == 1
    alone = finder.masks(photo, ["horse"], [Hint("horse", 0, None, ((20.0, 20.0, True), (1.0, 1.0, False)))])["horse"]
    assert alone.masks.any() and not np.array_equal(alone.masks, got["horse"].masks)


def test_a_detector_that_is_not_asked_for_what_is_pointed_at(finder, monkeypatch):
    monkeypatch.setattr(finder.detector, "find", None)
    assert finder.masks(clip(2), ["toy"], [Hint("toy", 1, (5, 5, 30, 30))])["toy"].masks.any()


def test_nothing_is_sure_enough(weights):
    got = GroundedSam2(setup_of(weights, box_threshold=0.99999)).masks(clip(2), ["person"])["person"]
    assert not got.masks.any() and "the box threshold is 0.99999" in got.notes[0]


def test_the_object_score_empties_masks(weights, tmp_path):
    gone = vision_layouts.sam2(tmp_path / "sam2", in_sight=-50.0)
    got = GroundedSam2(setup_of((weights[0], gone))).masks(clip(2), ["person"])["person"]
    assert not got.masks.any() and got.notes == (f"SAM2 sees no 'person' where it is pointed at, in frame "
                                                 f"{got.notes[0][-1]}",)


def test_the_threshold_is_of_the_probability(weights):
    shares = [GroundedSam2(setup_of(weights, threshold=t)).masks(
        clip(2), ["toy"], [Hint("toy", 0, (5, 5, 60, 40))])["toy"].masks.mean() for t in (0.1, 0.5, 0.9)]
    assert shares[0] > shares[1] > shares[2] > 0


def test_frames_that_are_searched():
    assert looks(1) == [0] and looks(LOOKS) == list(range(LOOKS))
    many = looks(200)
    assert len(many) == LOOKS and (many[0], many[-1]) == (0, 199) and set(np.diff(many)) == {6, 7}


def test_the_movers_that_everybody_meets(finder):
    assert 15 <= len(set(finder.usual)) == len(finder.usual) <= 25 and "person" in finder.usual


# -- Grounding DINO ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(48, 80), (80, 48), (64, 64), (7, 200), (33, 35), (300, 180), (1, 1)])
def test_pictures_are_prepared_as_transformers_does(weights, shape):
    from transformers import GroundingDinoImageProcessorPil

    frames = np.random.default_rng(0).integers(0, 255, (1, *shape, 3), dtype=np.uint8)
    got = GroundingDino(str(weights[0]), "cpu").prepare(frames)
    theirs = GroundingDinoImageProcessorPil.from_pretrained(weights[0])(Image.fromarray(frames[0]))["pixel_values"]
    assert got.shape[1:] == np.stack(theirs).shape[1:]
    assert np.allclose(got.numpy(), np.stack(theirs), atol=1e-5)


def slow_answers(finder, frame, phrases):
    """Each phrase's boxes and scores through transformers' tokenizer and the places that it reports."""
    text = " ".join(f"{phrase}." for phrase in phrases)
    read = finder.tokenizer(text, return_offsets_mapping=True, return_tensors="pt")
    with torch.no_grad():
        out = finder.network(finder.prepare(frame[None]), read["input_ids"])
    begin = 0
    for phrase in phrases:
        end = begin + len(phrase)
        places = [k for k, (a, b) in enumerate(read["offset_mapping"][0].tolist())
                  if begin <= a < b <= end and text[a:b].isalnum()]
        yield phrase, out.logits[0][:, places].sigmoid().max(1).values.numpy(), out.pred_boxes[0].numpy()
        begin = end + 2


def test_detections_against_the_slow_way(weights):
    finder = GroundingDino(str(weights[0]), "cpu")
    frames, phrases = clip(2), ["person", "red car", "blue car", "walking hats", "tall-person"]
    got = finder.find(frames, [1], phrases, 0.05, 0.0)
    for phrase, scores, boxes in slow_answers(finder, frames[1], phrases):
        surest = got[phrase][0]
        assert surest.frame == 1 and surest.score == pytest.approx(scores.max(), abs=1e-5)
        cx, cy, w, h = boxes[scores.argmax()]
        want = np.clip([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 0, 1) * [80, 48, 80, 48]
        assert np.allclose(surest.box, want, atol=1e-3)
        assert all(one.score > 0.05 for one in got[phrase]) and len(got[phrase]) <= (scores > 0.05).sum()
    assert len({some[0].score for some in got.values()}) == len(phrases), "the phrases differ"


def test_words_count_once_each(weights):
    finder = GroundingDino(str(weights[0]), "cpu")
    (text,) = finder.texts(["walking hats", "Dog?", "a.tall  person"])
    places = text.words["walking hats"]
    words = [[finder.tokenizer.convert_ids_to_tokens(text.token_ids[k]) for k in word] for word in places]
    assert words == [["walk", "##ing"], ["hat", "##s"]]
    assert finder.tokenizer.decode(text.token_ids) == "[CLS] walking hats. dog. a tall person. [SEP]"
    assert [len(places) for places in text.words.values()] == [2, 1, 3]


def test_punctuation_and_unknown_words_do_not_count(weights):
    """Of the network's text they are part all the same."""
    finder = GroundingDino(str(weights[0]), "cpu")
    (text,) = finder.texts(["tall, red-hat person!", "\u2603 Dog"])
    assert len(text.token_ids) == 1 + 8 + 2 + 2 and text.token_ids.count(finder.tokenizer.unk_token_id) == 2
    words = [[finder.tokenizer.convert_ids_to_tokens(text.token_ids[k]) for k in word]
             for some in text.words.values() for word in some]
    assert words == [["tall"], ["red"], ["hat"], ["person"], ["dog"]]
    (comma,) = [k for k, token in enumerate(text.token_ids) if finder.tokenizer.convert_ids_to_tokens(token) == ","]
    chances = np.full((1, len(text.token_ids)), 0.01)
    chances[0, comma] = 0.9
    found, surest = _answers(0, chances, np.zeros((1, 4)), text.words["tall, red-hat person!"], 0.3, 0.25)
    assert not found and surest.score == 0.01, "a box is not found by a comma"


def test_phrases_that_are_one_to_the_network(finder):
    for one, other in (("Dog", "dog"), ("tall dog", "tall  Dog?")):
        with pytest.raises(UsageError, match=re.escape(f"'{one}' and '{other}' are one phrase")):
            finder.masks(clip(1), ["cat", one, other])


def test_the_text_threshold_is_of_words(weights):
    finder, frames = GroundingDino(str(weights[0]), "cpu"), clip(1)
    low = finder.find(frames, [0], ["red car"], 0.05, 0.0)["red car"]
    middle = sorted(one.score for one in low)[len(low) // 2]
    high = finder.find(frames, [0], ["red car"], 0.05, middle)["red car"]
    assert {one.words for one in low} == {1.0} and {one.words for one in high} <= {0.5, 1.0}
    assert len(high) < len(low) and min(one.score for one in high) > middle
    (nothing,) = finder.find(frames, [0], ["red car"], 0.05, 1.0)["red car"]
    assert nothing.score == max(one.score for one in low) and nothing.words == 0


def test_long_texts_are_asked_for_in_runs(tmp_path):
    finder = GroundingDino(str(vision_layouts.grounding_dino(tmp_path / "dino", max_text_len=10)), "cpu")
    phrases = ["person", "red car", "tall man on horse", "dog", "cat", "a blue robot with a hat"]
    texts = finder.texts(phrases)
    assert [list(text.words) for text in texts] == [["person", "red car"], ["tall man on horse", "dog"],
                                                    ["cat"], ["a blue robot with a hat"]]
    assert all(len(text.token_ids) <= 10 for text in texts)
    got = finder.find(clip(1), [0], phrases, 0.05, 0.0)
    assert list(got) == phrases
    for text in texts:
        for phrase, scores, _ in slow_answers(finder, clip(1)[0], list(text.words)):
            assert got[phrase][0].score == pytest.approx(scores.max(), abs=1e-5)
    with pytest.raises(UsageError, match="is 8 tokens long, and Grounding DINO reads 7"):
        finder.texts(["a tall man on a blue red horse"])
    with pytest.raises(UsageError, match="knows no word of '\u2603'.*English"):
        finder.texts(["dog", "\u2603"])
    with pytest.raises(UsageError, match="knows no word of '...'"):
        finder.texts(["..."])


# -- SAM2 -------------------------------------------------------------------------------------------------------------
def test_the_file_of_the_hub_lacks_one_of_two_equal_tensors(weights, tmp_path, tracker):
    """transformers 5 would draw the missing one at random."""
    with safe_open(weights[1] / "model.safetensors", "pt") as file:
        assert "prompt_encoder.shared_embedding.positional_embedding" not in set(file.keys())
        assert torch.equal(tracker.network.prompt_encoder.shared_embedding.positional_embedding,
                           file.get_tensor("shared_image_embedding.positional_embedding"))
    both = Sam2(str(vision_layouts.sam2(tmp_path / "both", twins=True)), "cpu")
    want = both.network.state_dict()
    assert all(torch.equal(tensor, want[name]) for name, tensor in tracker.network.state_dict().items())


def test_weights_are_read_under_the_names_of_the_hub(weights):
    """Spelt as in the repositories' safetensors."""
    with safe_open(weights[0] / "model.safetensors", "pt") as file:
        swin = "model.backbone.conv_encoder.model.encoder.layers.0.blocks.0."
        assert {f"{swin}attention.self.query.weight", f"{swin}attention.self.relative_position_index",
                f"{swin}intermediate.dense.weight", "model.text_backbone.encoder.layer.0.attention.self.query.weight",
                "model.text_backbone.embeddings.LayerNorm.weight", "model.level_embed", "bbox_embed.0.layers.0.weight",
                "model.encoder.layers.0.fusion_layer.vision_param"} <= set(file.keys())
        query = file.get_tensor(f"{swin}attention.self.query.weight")
        bert = file.get_tensor("model.text_backbone.encoder.layer.0.intermediate.dense.weight")
    network = GroundingDino(str(weights[0]), "cpu").network
    values = [tensor for tensor in network.state_dict().values() if tensor.shape == query.shape]
    assert any(torch.equal(tensor, query) for tensor in values)
    assert torch.equal(network.model.text_backbone.encoder.layer[0].intermediate.dense.weight, bert)


def slow_track(tracker, frames, hints):
    """Logits (F, h, w) by transformers' own loop over the whole prepared clip: forward, then backward."""
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

    session = Sam2VideoInferenceSession(tracker.prepare(frames), *frames.shape[1:3], dtype=torch.float32)
    session.obj_id_to_idx(7)
    for hint in hints:
        points, labels = points_of(hint, frames.shape[1:3], vision_layouts.SIDE)
        session.add_point_inputs(0, hint.frame, {"point_coords": points[None, None],
                                                 "point_labels": labels[None, None]})
        session.obj_with_new_inputs = [7]
        tracker.network(session, frame_idx=hint.frame)
    out = {}
    for reverse in (False, True):
        for step in tracker.network.propagate_in_video_iterator(session, reverse=reverse):
            out[step.frame_idx] = step.pred_masks[0, 0].numpy()
    return np.stack([out[f] for f in range(len(frames))])


BOX, POINTS = Hint("a", 9, (10, 10, 40, 40)), Hint("b", 3, None, ((20.0, 20.0, True), (60.0, 5.0, False)))
LATER = Hint("b", 19, (30, 5, 70, 40))


def test_tracks_against_the_loop_of_transformers(tracker):
    frames = clip(24)
    got = tracker.track(frames, [Job((BOX,), 0, 23), Job((POINTS, LATER), 0, 23)])
    for track, hints in zip(got, ([BOX], [POINTS, LATER])):
        want = slow_track(tracker, frames, hints)
        assert np.abs(track.logits - want).max() <= np.abs(want).max() * 2e-3, "half precision is all that is lost"
        assert (track.score > 0).all() and track.logits.dtype == np.float16 and track.logits.shape == want.shape
    assert np.abs(np.float32(got[0].logits) - np.float32(got[1].logits)).max() > 1


def test_memory_is_looked_at(tracker):
    """A clip that stands still is not tracked alike in every frame, and not like its single picture."""
    still = clip(1).repeat(4, 0)
    (track,) = tracker.track(still, [Job((Hint("a", 0, BOX.box),), 0, 3)])
    assert np.abs(np.float32(track.logits[1]) - np.float32(track.logits[0])).max() > 0.1
    assert np.abs(np.float32(track.logits[3]) - np.float32(track.logits[1])).max() > 0.01


def test_a_part_of_the_clip(tracker):
    """Only the frames that are asked for, with a prompt outside that tells what it looks like."""
    frames, inside = clip(12), Hint("a", 7, (12, 8, 44, 40))
    (part,) = tracker.track(frames, [Job((BOX, inside), 5, 8)])
    assert part.first == 5 and part.logits.shape[0] == len(part.score) == 4
    (without,) = tracker.track(frames, [Job((inside,), 5, 8)])
    assert np.array_equal(part.logits[2], without.logits[2]) and not np.array_equal(part.logits[3], without.logits[3])


def test_features_are_computed_once_a_sweep(tracker, monkeypatch):
    assert frames_prepared(tracker, sam2, monkeypatch) == [*range(4, 12), *range(8, -1, -1)]


def test_what_is_forgotten_is_never_missed(tracker, monkeypatch):
    """And what is kept does not grow with the clip."""
    kept, short, whole = with_and_without_memory_lost(tracker, sam2, monkeypatch)
    assert kept <= 1 + 3 * 16 and np.array_equal(short, whole)


def test_hints_in_the_pixels_of_the_network():
    points, labels = points_of(Hint("a", 0, (10, 6, 40, 24), ((20.0, 12.0, True), (0.0, 48.0, False))), (48, 80), 128)
    assert labels.tolist() == [2, 3, 1, 0]
    assert torch.allclose(points, torch.tensor([[16.0, 16], [64, 64], [32, 32], [0, 128]]))


# -- refusals ---------------------------------------------------------------------------------------------------------
def test_weights_that_are_not_here_are_named_with_what_fetches_them(weights, tmp_path, monkeypatch, offline):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(MissingPrerequisite, match="Grounding DINO, IDEA-.*Apache.*MB.*videomage fetch grounded-sam2"):
        segmenters.load("grounded-sam2", Setup())
    with pytest.raises(MissingPrerequisite, match="SAM2, facebook/sam2.1.*videomage fetch grounded-sam2"):
        segmenters.load("grounded-sam2", Setup(detector=str(weights[0])))


def copied(source, target):
    shutil.copytree(source, target)
    return target


def test_folders_that_are_not_what_they_should_be(weights, tmp_path):
    dino, sam2 = weights
    with pytest.raises(BadInput, match="Grounding DINO in .* is of the kind 'sam2_video', and has to be ground"):
        GroundingDino(str(sam2), "cpu")
    with pytest.raises(BadInput, match="SAM2 in .* is of the kind 'grounding-dino'.*--tracker"):
        Sam2(str(dino), "cpu")
    bare = copied(dino, tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    GroundingDino(str(bare), "cpu").texts(["dog"])                                # vocab.txt is enough
    (bare / "vocab.txt").unlink()
    with pytest.raises(BadInput, match="Grounding DINO has no tokenizer in .*bare"):
        GroundingDino(str(bare), "cpu")
    foreign = copied(dino, tmp_path / "foreign")
    said = json.loads((foreign / "tokenizer.json").read_text().replace('"."', '"other"').replace('"walk"', '"."'))
    (foreign / "tokenizer.json").write_text(json.dumps(said))
    with pytest.raises(BadInput, match="do not belong together"):
        GroundingDino(str(foreign), "cpu")
    cropped = copied(dino, tmp_path / "cropped")
    (cropped / "preprocessor_config.json").unlink()
    with pytest.raises(BadInput, match="not said to look at whole pictures"):
        GroundingDino(str(cropped), "cpu")


@pytest.mark.parametrize("which", [0, 1], ids=["detector", "tracker"])
def test_damaged_weights(weights, tmp_path, which):
    kind = (GroundingDino, Sam2)[which]
    folder = copied(weights[which], tmp_path / "folder")
    path = folder / "model.safetensors"
    whole = load_file(path)
    name = sorted(whole)[3]
    save_file({key: tensor for key, tensor in whole.items() if key != name}, path, metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"lacks \d of its weights"):
        kind(str(folder), "cpu")
    path.write_bytes((weights[which] / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(BadInput, match="is no safetensors file, or is cut off .*videomage fetch"):
        kind(str(folder), "cpu")
    path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle that nobody reads")
    with pytest.raises(Refused, match="pytorch_model.bin is a pickle"):
        kind(str(folder), "cpu")


def said(name, **more):
    """An edit: keys of a JSON file."""
    def edit(folder):
        whole = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**whole, **more}))
    return edit


def written(name, content):
    """An edit: a file's whole content."""
    return lambda folder: (folder / name).write_bytes(content)


def sharded(weight_map):
    """An edit: an index in place of the weights."""
    def edit(folder):
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return edit


CONFIG, PICTURES, TOKENS = "config.json", "preprocessor_config.json", "tokenizer.json"
UNREAD = "the tokenizer of Grounding DINO in .* cannot be loaded"
BOTH = {                                                    # edit -> what the error says
    "cut": (written(CONFIG, b'{"model_type": '), "config.json is damaged"),
    "list": (written(CONFIG, b"[]"), "config.json holds no JSON object"),
    "null": (written(CONFIG, b"null"), "config.json holds no JSON object"),
    "latin-1": (written(CONFIG, b'{"model_type": "\xff"}'), "config.json is damaged"),
    "deep": (written(CONFIG, b"[" * 100_000), "config.json is damaged"),
    "kind": (said(CONFIG, model_type=["x"]), r"of the kind '\['x'\]'"),
    "dtype": (said(CONFIG, torch_dtype="os.system"), "cannot be loaded"),
    "quantized": (said(CONFIG, quantization_config={"quant_method": "gptq", "bits": 4}), r"\(quantization_config\)"),
    "quantized otherwise": (said(CONFIG, quantization_config={"quant_method": "x"}), r"\(quantization_config\)"),
    "adapter": (written("adapter_config.json", b"{}"), r"\(adapter_config.json\)"),
    "no shard": (sharded({}), "pytorch_model.bin is a pickle"),
    "lost shard": (sharded({"a": "a.safetensors"}), "pytorch_model.bin is a pickle"),
    "shard outside": (sharded({"a": "../a.safetensors"}), r"\(model.safetensors.index.json\)"),
    "pickled shard": (sharded({"a": "pytorch_model.bin"}), r"\(model.safetensors.index.json\)"),
    "odd index": (sharded(["a"]), r"\(model.safetensors.index.json\)"),
    "pictures cut": (written(PICTURES, b"{"), "cannot be loaded: .*preprocessor_config.json is damaged"),
    "pictures list": (written(PICTURES, b"[]"), "preprocessor_config.json holds no JSON object"),
    "size word": (said(PICTURES, size="x"), "a side of 'x' pixels"),
    "size odd": (said(PICTURES, size={"foo": 1}), "a side of None pixels"),
    "size 0": (said(PICTURES, size={"shortest_edge": 0}), "a side of 0 pixels is none of 1 to"),
    "size huge": (said(PICTURES, size={"height": 64, "width": 10 ** 9}), "a side of 1000000000 pixels"),
    "size true": (said(PICTURES, size=True), "a side of True pixels"),
    "longest": (said(PICTURES, size={"shortest_edge": 64, "longest_edge": -1}), "a side of -1 pixels"),
    "crop": (said(PICTURES, do_center_crop=True, crop_size=[1]), r"a side of \[1\] pixels"),
    "mean of two": (said(PICTURES, image_mean=[0.5, 0.5]), "is not a mean of three colours"),
    "mean huge": (said(PICTURES, image_mean=[10 ** 400, 0, 0]), "no picture can be prepared"),
    "mean of words": (said(PICTURES, image_mean=["a", "b", "c"]), "is not a mean of three colours"),
    "deviation 0": (said(PICTURES, image_std=[0.2, 0, 0.2]), "is not a deviation above 0 of three colours"),
    "deviation nan": (said(PICTURES, image_std=[0.2, float("nan"), 0.2]), "is not a deviation above 0"),
    "filter": (said(PICTURES, resample=99), "99 is not a valid Resampling"),
    "filter word": (said(PICTURES, resample="x"), "'x' is not a valid Resampling"),
}
EITHER = {
    "text": (0, said(CONFIG, text_config="x"), "cannot be loaded"),
    "text limit": (0, said(CONFIG, max_text_len=1), "reads no phrase: its max_text_len is 1"),
    "backbone of timm": (0, said(CONFIG, backbone="resnet50", use_timm_backbone=True, backbone_config=None),
                         r"is elsewhere.*\(backbone, use_timm_backbone\)"),
    "backbone of the hub": (0, said(CONFIG, backbone="microsoft/swin-tiny-patch4-window7-224", backbone_config=None),
                            r"is elsewhere.*\(backbone\)"),
    "pretrained": (0, said(CONFIG, use_pretrained_backbone=True), r"is elsewhere.*\(use_pretrained_backbone\)"),
    "timm within": (0, said(CONFIG, backbone_config={"model_type": "timm_backbone", "backbone": "resnet50"}),
                    r"\(backbone, timm_backbone\)"),
    "tokens cut": (0, written(TOKENS, b"{"), UNREAD), "tokens list": (0, written(TOKENS, b"[]"), UNREAD),
    "tokens bare": (0, written(TOKENS, b"{}"), UNREAD), "tokens odd": (0, said(TOKENS, version="x"), UNREAD),
    "tokens config": (0, written("tokenizer_config.json", b"{"), "cannot be loaded: .*tokenizer_config.json is damag"),
    "vision": (1, said(CONFIG, vision_config="x"), "cannot be loaded"),
    "side -1": (1, said(CONFIG, image_size=-1), "pictures of -1 pixels and prompts on 128"),
    "side 0": (1, said(CONFIG, image_size=0, prompt_encoder_config={"image_size": 0}), "SAM2 in .*0 pixels|cannot be"),
}
EDITS = {f"{name}, {('detector', 'tracker')[which]}": (which, *case) for name, case in BOTH.items() for which in (0, 1)
         } | EITHER


@pytest.mark.parametrize(("which", "edit", "what"), EDITS.values(), ids=EDITS)
def test_damaged_and_odd_files_beside_the_weights(weights, tmp_path, offline, which, edit, what):
    """Named, with what mends them; and nothing in them makes loading ask for the network."""
    folder = copied(weights[which], tmp_path / "folder")
    edit(folder)
    with pytest.raises((BadInput, Refused), match=f"(?s){what}.*(--detector|--tracker)"):
        (GroundingDino, Sam2)[which](str(folder), "cpu")


@pytest.mark.parametrize("which", [0, 1], ids=["detector", "tracker"])
def test_a_config_chooses_no_code_of_the_hub(weights, tmp_path, offline, which):
    """Neither at its top nor in the configs within."""
    kernel = "kernels-community/flash-attn"
    whole = json.loads((weights[which] / CONFIG).read_text())
    places = [(), *((key,) for key, value in whole.items() if isinstance(value, dict) and "model_type" in value)]
    assert len(places) > 1
    for number, place in enumerate(places):
        folder, edited = copied(weights[which], tmp_path / str(number)), json.loads(json.dumps(whole))
        for key in ("_attn_implementation", "attn_implementation"):
            (edited[place[0]] if place else edited)[key] = kernel
        (folder / CONFIG).write_text(json.dumps(edited))
        with pytest.raises(Refused, match="asks for code or weights that do not come with it .*attn_implementation"):
            (GroundingDino, Sam2)[which](str(folder), "cpu")


@pytest.mark.parametrize(("hint", "said"), [
    (Hint("cat", 0, (0, 0, 5, 5)), "'cat', which is not looked for"), (Hint("dog", 2, (0, 0, 5, 5)), "frames 0 to 1"),
    (Hint("dog", 0), "neither a box nor a point"), (Hint("dog", 0, None, ((1.0, 1.0, False),)), "neither a box"),
    (Hint("dog", 0, (5, 0, 5, 9)), "is empty")])
def test_hints_that_say_nothing(finder, hint, said):
    with pytest.raises(UsageError, match=said):
        finder.masks(clip(2), ["dog"], [hint])


def test_what_cannot_be_looked_for(finder, weights):
    with pytest.raises(UsageError, match="nothing to look for.*--actors"):
        finder.masks(clip(1), [" "])
    with pytest.raises(UsageError, match="two hints are of one phrase"):
        finder.masks(clip(1), ["dog"], [Hint("dog", 0, (0, 0, 5, 5)), Hint("dog", 0, (1, 1, 5, 5))])
    with pytest.raises(BadInput, match="uint8"):
        finder.masks(clip(1) / 255, ["dog"])
    with pytest.raises(UsageError, match="does not run through 'sam3'.*transformers, sam2"):
        GroundedSam2(setup_of(weights, through="sam3"))


@pytest.mark.skipif(find_spec("sam2") is not None, reason="the package sam2 is installed")
def test_the_package_is_named_with_what_installs_it(weights):
    with pytest.raises(MissingPrerequisite, match="sam2 is not installed.*SAM2_BUILD_CUDA=0 pip install.*--through"):
        GroundedSam2(setup_of(weights, through="sam2"))


def test_a_preparation_is_written_as_it_is_read(tmp_path):
    for one in (Preparation(64, None, *IMAGENET, 2, 96), Preparation((32, 48), None, *IMAGENET, 2)):
        one.save(tmp_path)
        assert Preparation.of(tmp_path, 7) == one
