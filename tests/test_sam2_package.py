"""SAM2 through the package `sam2`: from the same files the same masks. Skipped where the package is not installed."""
from __future__ import annotations

import numpy as np
import pytest
import torch
import vision_layouts
from safetensors.torch import load_file, save_file
from vision_layouts import clip, frames_prepared, with_and_without_memory_lost

pytest.importorskip("sam2", reason="the extra sam2 is not installed")

from stages.core.errors import BadInput  # noqa: E402
from stages.segmenters import Hint, Setup, load, sam2_package  # noqa: E402
from stages.segmenters.sam2 import Sam2  # noqa: E402
from stages.segmenters.sam2 import _Session as Port  # noqa: E402
from stages.segmenters.sam2_package import Sam2Package, build, renamed  # noqa: E402
from stages.segmenters.sam2_package import _Session as Package  # noqa: E402
from stages.segmenters.tracks import Job  # noqa: E402

REAL = {     # the numbers in which the sizes differ, as transformers' configs have them
    "tiny": {}, "small": {"blocks_per_stage": [1, 2, 11, 2], "global_attention_blocks": [7, 10, 13]},
    "base-plus": {"hidden_size": 112, "embed_dim_per_stage": [112, 224, 448, 896], "blocks_per_stage": [2, 3, 16, 3],
                  "num_attention_heads_per_stage": [2, 4, 8, 16],
                  "global_attention_blocks": [12, 16, 20], "window_positional_embedding_background_size": [14, 14]}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return vision_layouts.sam2(tmp_path_factory.mktemp("weights") / "sam2")


@pytest.fixture(scope="module")
def both(folder):
    return Sam2(str(folder), "cpu"), Sam2Package(str(folder), "cpu")


JOBS = [Job((Hint("a", 9, (10, 10, 40, 40)),), 0, 23),
        Job((Hint("b", 14, (10, 10, 40, 40)), Hint("b", 1, None, ((5.0, 5.0, True), (60.0, 30.0, False)))), 0, 23),
        Job((Hint("c", 4, (1, 1, 20, 40), ((30.0, 30.0, False),)), Hint("c", 12, (9, 9, 60, 40))), 2, 8)]


def test_both_libraries_draw_the_same_masks(both):
    """A box, a point and both, tracked both ways, with memories of 16 frames."""
    frames = clip(24)
    ours, theirs = (tracker.track(frames, JOBS) for tracker in both)
    for one, other in zip(ours, theirs):
        assert one.first == other.first and one.logits.shape == other.logits.shape
        assert np.abs(one.score - other.score).max() < 1e-3
        assert np.abs(np.float32(one.logits) - np.float32(other.logits)).max() <= 0.13          # half precision, 100
        assert ((one.logits > 0) == (other.logits > 0)).mean() > 0.9999
        assert 0.01 < (one.logits > 0).mean() < 0.99 and (one.score > 0).all()
    assert np.abs(np.float32(ours[0].logits) - np.float32(ours[1].logits)).max() > 1


def test_logits_within_rounding(both, monkeypatch):
    """Before they are kept in half precision."""
    raw = {}
    for kind, name in ((Port, "port"), (Package, "package")):
        def step(self, frame, backward, own=kind.step, name=name):
            logits, score = own(self, frame, backward)
            raw.setdefault(name, []).append(logits.clone())
            return logits, score

        monkeypatch.setattr(kind, "step", step)
    for tracker in both:
        tracker.track(clip(24), JOBS[:1])
    port = [x for n, x in enumerate(raw["port"]) if n != 0]             # the port's prompt is a step of its own
    assert len(port) == len(raw["package"]) == 24
    worst = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(port, raw["package"]))
    assert worst < 1e-4, worst


def test_what_is_not_in_sight(tmp_path):
    folder = vision_layouts.sam2(tmp_path / "sam2", in_sight=-50.0)
    for tracker in (Sam2(str(folder), "cpu"), Sam2Package(str(folder), "cpu")):
        (track,) = tracker.track(clip(3), [Job((Hint("a", 1, (10, 10, 40, 40)),), 0, 2)])
        assert (track.score < 0).all() and (track.logits == -1024).all()


def test_features_are_computed_once_a_sweep(both, monkeypatch):
    assert frames_prepared(both[1], sam2_package, monkeypatch) == [*range(4, 12), *range(8, -1, -1)]


def test_what_is_forgotten_is_never_missed(both, monkeypatch):
    _, short, whole = with_and_without_memory_lost(both[1], sam2_package, monkeypatch)
    assert np.array_equal(short, whole)


def test_the_segmenter_through_the_package(folder, tmp_path):
    dino = vision_layouts.grounding_dino(tmp_path / "dino")
    found = [load("grounded-sam2", Setup(detector=str(dino), tracker=str(folder), through=through, box_threshold=0.05,
                                         text_threshold=0.02)).masks(clip(4), ["person", "horse"])
             for through in ("transformers", "sam2")]
    for phrase in ("person", "horse"):
        one, other = (masks[phrase] for masks in found)
        assert (one.masks == other.masks).mean() > 0.9999 and one.instances == other.instances
    assert any(one.masks.any() for one in found[0].values())


@pytest.mark.parametrize("size", REAL)
def test_every_weight_of_the_real_sizes_has_its_place(size):
    """Each name of the package's is given once, each of transformers' is used once, and the shapes are equal."""
    from transformers import Sam2HieraDetConfig, Sam2VideoConfig, Sam2VideoModel, Sam2VisionConfig

    trunk = Sam2HieraDetConfig(**REAL[size])
    config = Sam2VideoConfig(vision_config=Sam2VisionConfig(
        backbone_config=trunk, backbone_channel_list=trunk.embed_dim_per_stage[::-1]))
    with torch.device("meta"):
        theirs = Sam2VideoModel(config).state_dict()
    own, weights = build(config).state_dict(), renamed(theirs)
    assert {name: tensor.shape for name, tensor in weights.items()} == {name: t.shape for name, t in own.items()}
    assert len(weights) == len(theirs) - 1 + 3                  # one twin less; four points, each a layer of its own
    numbers = [sum(t.numel() for t in tensors.values()) for tensors in (weights, theirs)]
    assert numbers[0] == numbers[1] - 256                       # 2 x 128 of the twin


def test_weights_that_the_package_cannot_hold(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sam2_package, "renamed", lambda weights: {**renamed(weights), "other": torch.zeros(1)})
    with pytest.raises(BadInput, match="1 of its weights do not fit, other first.*--through transformers"):
        Sam2Package(str(folder), "cpu")


def test_heads_are_those_of_the_stages(tmp_path):
    """The configs of the larger sizes say so there alone. And what the package cannot have is refused."""
    folder = vision_layouts.sam2(tmp_path / "sam2", heads=(2, 4, 8, 16))
    (one,), (other,) = (kind(str(folder), "cpu").track(clip(4), [Job((Hint("a", 1, (10, 10, 40, 40)),), 0, 3)])
                        for kind in (Sam2, Sam2Package))
    assert np.abs(np.float32(one.logits) - np.float32(other.logits)).max() <= 0.13
    with pytest.raises(BadInput, match=r"heads, \[2, 2, 4, 4\], do not double.*--through transformers"):
        Sam2Package(str(vision_layouts.sam2(tmp_path / "odd", heads=(2, 2, 4, 4))), "cpu")


def test_other_weights_other_masks(folder, both, tmp_path):
    """The comparison above can fail: a change of one weight of the memory is seen in tracked frames, not in the first.
    """
    other = vision_layouts.sam2(tmp_path / "sam2")
    path = other / "model.safetensors"
    tensors = load_file(path)
    tensors["memory_encoder.projection.weight"] *= 1.1
    save_file(tensors, path, metadata={"format": "pt"})
    job = [Job((Hint("a", 0, (10, 10, 40, 40)),), 0, 5)]
    (one,), (two,) = both[0].track(clip(6), job), Sam2Package(str(other), "cpu").track(clip(6), job)
    assert np.abs(np.float32(one.logits[0]) - np.float32(two.logits[0])).max() <= 0.13
    assert np.abs(np.float32(one.logits[3]) - np.float32(two.logits[3])).max() > 0.2
