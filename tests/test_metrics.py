"""Metrics (METHOD 6) against slow loops over pairs; pictures prepared as transformers' own processors prepare them."""
from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch
from conftest import make_tokenizer

from stages.core.errors import BadInput, NumericError, UsageError
from stages.core.vision import CHUNK, Preparation
from stages.metrics import clip, dino, features, motion

SIDE = 16
TOWER = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
rng = np.random.default_rng(0)


def pictures(count=3, height=24, width=32):
    return rng.integers(0, 255, (count, height, width, 3), dtype=np.uint8)


def save(model, path, tokenizer=None):
    model.save_pretrained(path)
    if tokenizer:
        tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    from transformers import CLIPConfig, CLIPModel

    tokenizer = make_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(
            text_config=dict(TOWER, vocab_size=len(tokenizer), max_position_embeddings=20, bos_token_id=0,
                             eos_token_id=1, pad_token_id=1),
            vision_config=dict(TOWER, image_size=SIDE, patch_size=4), projection_dim=12))
        return save(model, tmp_path_factory.mktemp("clip"), tokenizer)


@pytest.fixture(scope="module")
def judge(clip_folder):
    return clip.load(clip_folder)


def new_dino(kind):
    from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=4)
        return Dinov2Model(Dinov2Config(**sizes, mlp_ratio=2)) if kind == "dinov2" else ViTModel(
            ViTConfig(**sizes, intermediate_size=32), add_pooling_layer=False)


# -- slow versions ----------------------------------------------------------------------------------------------------
def cos(a, b):
    a, b = [float(x) for x in a], [float(x) for x in b]
    return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def some(count, width=7, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


# -- the four scores --------------------------------------------------------------------------------------------------
def test_clip_t():
    frames, prompt = some(5), some(1, seed=1)
    want = mean(cos(frame, prompt[0]) for frame in frames)
    assert clip.clip_t(frames, prompt) == pytest.approx(want, abs=1e-10)
    assert clip.clip_t(frames, prompt[0]) == clip.clip_t(frames, prompt)


@pytest.mark.parametrize("score", [clip.clip_i, dino.dino_i])
def test_likeness_is_a_mean_over_subjects_of_means(score):
    frames, references = some(4), {"toy": some(3, seed=1), "dog": some(1, seed=2)}
    want = mean(mean(cos(f, r) for f in frames for r in rows) for rows in references.values())
    assert score(frames, references) == pytest.approx(want, abs=1e-10)
    flat = mean(cos(f, r) for f in frames for rows in references.values() for r in rows)
    assert abs(score(frames, references) - flat) > 1e-3, "subjects count alike, not photos"


def test_temporal_consistency():
    frames = some(6)
    want = mean(cos(frames[f], frames[f + 1]) for f in range(5))
    assert clip.t_cons(frames) == pytest.approx(want, abs=1e-10)
    assert clip.t_cons(frames[:1].expand(4, -1)) == pytest.approx(1)


def test_the_length_of_a_feature_does_not_count():
    frames, other = some(3).double(), some(2, seed=3)
    scaled = frames * torch.tensor([[1.0], [50.0], [1e-4]])
    assert clip.clip_i(scaled, {"toy": other}) == pytest.approx(clip.clip_i(frames, {"toy": other}), abs=1e-10)


def test_nothing_is_skipped():
    with pytest.raises(BadInput, match="T. Cons. compares consecutive frames, and the video has 1"):
        clip.t_cons(some(1))
    with pytest.raises(BadInput, match="no subject to compare"):
        clip.clip_i(some(3), {})
    with pytest.raises(BadInput, match="'dog' has no reference"):
        dino.dino_i(some(3), {"toy": some(2), "dog": some(0)})
    with pytest.raises(BadInput, match="one row at least"):
        clip.clip_t(some(0), some(1))
    for bad in (float("nan"), 0.0, float("inf")):
        broken = some(3)
        broken[1] = bad
        for score in (lambda f: clip.clip_t(f, some(1)), lambda f: clip.clip_i(f, {"toy": some(1)}), clip.t_cons):
            with pytest.raises(NumericError, match="picture or text 1 is zero or not finite"):
                score(broken)


# -- features ---------------------------------------------------------------------------------------------------------
def test_clip_features_are_the_models_own(clip_folder, judge):
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    model = CLIPModel.from_pretrained(clip_folder).eval()
    prepare = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    frames, prompts = pictures(), ["a toy is riding a dog in the snow", "red horse"]
    pixels = torch.as_tensor(np.stack(prepare(list(frames))["pixel_values"]))
    texts = [CLIPTokenizer.from_pretrained(clip_folder)([p], return_tensors="pt").input_ids for p in prompts]
    with torch.no_grad():
        out = [model(pixel_values=pixels, input_ids=ids) for ids in texts]     # the forward normalises the embeddings
    assert torch.allclose(judge.image_features(frames).float(), out[0].image_embeds, atol=1e-5)
    assert torch.allclose(judge.text_features(prompts).float(), torch.cat([o.text_embeds for o in out]), atol=1e-5)
    assert judge.image_features(frames).dtype == torch.float64


@pytest.mark.parametrize("kind", ["dinov2", "vit"])
def test_dino_features_are_the_class_token(kind, tmp_path):
    model = new_dino(kind).eval()
    Preparation((SIDE, SIDE), None, (0.5,) * 3, (0.5,) * 3).save(save(model, tmp_path))
    frames = pictures(2, SIDE, SIDE)
    with torch.no_grad():
        out = model(pixel_values=torch.as_tensor(frames).permute(0, 3, 1, 2) / 127.5 - 1)
    want = out.pooler_output if kind == "dinov2" else out.last_hidden_state[:, 0]
    got = dino.load(tmp_path).image_features(frames).float()
    assert torch.allclose(got, want / want.norm(dim=-1, keepdim=True), atol=1e-5)


def test_many_frames_go_through_in_chunks(judge):
    frames = pictures(2 * CHUNK + 1)
    together = judge.image_features(frames)
    assert together.shape == (2 * CHUNK + 1, 12)
    assert torch.allclose(together[[0, -1]], judge.image_features(frames[[0, -1]]), atol=1e-6)


@pytest.mark.parametrize("height, width", [(24, 32), (40, 20), (16, 16), (16, 30), (7, 9)])
@pytest.mark.parametrize("said", [
    {}, {"size": {"shortest_edge": 20}, "crop_size": {"height": SIDE, "width": SIDE}},
    {"size": 20, "crop_size": SIDE, "do_center_crop": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
     "resample": 2},
    {"size": {"height": 12, "width": 18}, "do_center_crop": False, "do_normalize": False}])
def test_pictures_are_prepared_as_transformers_prepares_them(tmp_path, said, height, width):
    from transformers import CLIPImageProcessorPil

    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    whole = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}, **said}
    if isinstance(whole["size"], int):
        whole["size"] = {"height": whole["size"], "width": whole["size"]}
    frames = pictures(2, height, width)
    want = np.stack(CLIPImageProcessorPil(**whole)(list(frames))["pixel_values"])
    got = Preparation.of(tmp_path, SIDE)(frames).numpy()
    assert got.shape == want.shape and np.abs(got - want).max() < 1e-5


def test_a_saved_preparation_is_read_again(tmp_path):
    from transformers import ViTImageProcessorPil

    for one in (Preparation((8, 12), None, (0.5, 0.4, 0.3), (0.2,) * 3, 4), Preparation(20, (SIDE, SIDE))):
        one.save(tmp_path)
        assert Preparation.of(tmp_path, 99) == one
    Preparation((8, 12), None, (0.5,) * 3, (0.2,) * 3, 2).save(tmp_path)
    frames = pictures(1)
    want = np.stack(ViTImageProcessorPil.from_pretrained(tmp_path)(list(frames))["pixel_values"])
    assert np.abs(Preparation.of(tmp_path, 99)(frames).numpy() - want).max() < 1e-5
    (tmp_path / "preprocessor_config.json").rename(tmp_path / "one.json")
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"size": 5}}))
    assert Preparation.of(tmp_path, 99).size == (5, 5)


# -- what judges refuse -----------------------------------------------------------------------------------------------
def test_a_model_that_is_not_whole_is_refused(clip_folder, judge, tmp_path):
    from safetensors.torch import load_file, save_file

    with pytest.raises(BadInput, match="the CLIP model is not in .*--clip FOLDER"):
        clip.load(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="is of the kind 'clip', and has to be dinov2 or vit.*--dino FOLDER"):
        dino.load(clip_folder)
    hurt = tmp_path / "hurt"
    shutil.copytree(clip_folder, hurt)
    tensors = load_file(hurt / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if k != "visual_projection.weight"}, hurt / "model.safetensors",
              {"format": "pt"})
    with pytest.raises(BadInput, match="lacks 1 of its weights, visual_projection.weight"):
        clip.load(hurt)
    (hurt / "model.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(BadInput, match="is no safetensors file, or is cut off .*--clip FOLDER"):
        clip.load(hurt)
    (hurt / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="cannot be loaded"):
        clip.load(hurt)


def test_a_tokenizer_of_another_model_is_refused(clip_folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(clip_folder, other)
    words = make_tokenizer()
    words.add_tokens(["stranger"])
    words.save_pretrained(other)
    with pytest.raises(BadInput, match="do not belong together"):
        clip.load(other)


@pytest.mark.parametrize(("name", "content", "what"), [
    ("config.json", "[]", "the CLIP model in .* cannot be loaded: .*config.json holds no JSON object"),
    ("config.json", "{", "config.json is damaged"),
    ("tokenizer.json", "{", "the tokenizer of the CLIP model in .* cannot be loaded"),
    ("tokenizer.json", '{"version": "x", "added_tokens": [], "model": {}}', "the tokenizer of the CLIP model in "),
    ("tokenizer_config.json", "[]", "the tokenizer of the CLIP model in .* cannot be loaded"),
    ("preprocessor_config.json", '{"image_std": [0, 0, 0]}', "no picture can be prepared as .*deviation above 0"),
    ("processor_config.json", '{"image_processor": []}', "image_processor in .* holds no JSON object")])
def test_damaged_files_beside_a_judge(clip_folder, tmp_path, name, content, what):
    hurt = tmp_path / "hurt"
    shutil.copytree(clip_folder, hurt)
    (hurt / name).write_text(content)
    with pytest.raises(BadInput, match=what):
        clip.load(hurt)


def test_a_prompt_is_not_cut_off_in_silence(judge):
    with pytest.raises(BadInput, match="tokens long, and the CLIP model reads 20. Shorten it"):
        judge.text_features(["a toy", "a toy " * 30])


def test_another_base_needs_its_own_judges():
    assert features.folder_of("clip", None, "sprites").parts[-3:] == ("sprites", "weights", "clip")
    with pytest.raises(UsageError, match="base 'bases/big' was not named.*--dino FOLDER"):
        dino.load(base="bases/big")


# -- motion -----------------------------------------------------------------------------------------------------------
def slow_track(masks):
    out = []
    for mask in masks:
        at = [(x + 0.5, y + 0.5) for y in range(mask.shape[0]) for x in range(mask.shape[1]) if mask[y, x]]
        out.append((mean(x for x, _ in at) / mask.shape[1], mean(y for _, y in at) / mask.shape[0]) if at
                   else (math.nan, math.nan))
    return np.array(out)


def test_tracks():
    masks = rng.random((5, 9, 14)) > 0.7
    masks[3] = False
    got = motion.track(masks)
    assert np.allclose(got, slow_track(masks), atol=1e-12, equal_nan=True) and np.isnan(got[3]).all()
    assert motion.track(np.ones((1, 4, 6), bool)).tolist() == [[0.5, 0.5]]
    assert np.allclose(motion.track(masks.repeat(3, 1).repeat(3, 2)), got, equal_nan=True)


def walk(seed=0, count=8):
    return np.cumsum(np.random.default_rng(seed).normal(size=(count, 2)), 0) * 0.1 + 0.5


def slow_shared(a, b):
    """2 sum a.b / (sum |a|^2 + sum |b|^2), frame by frame; middles over the frames that both have."""
    both = [n for n in range(len(a)) if math.isfinite(a[n][0]) and math.isfinite(b[n][0])]
    if not both:
        return 0.0
    middles = [[mean(path[n][k] for n in both) for k in (0, 1)] for path in (a, b)]
    inner = sum((a[n][k] - middles[0][k]) * (b[n][k] - middles[1][k]) for n in both for k in (0, 1))
    sizes = [sum((path[n][k] - middle[k]) ** 2 for n in range(len(path)) if math.isfinite(path[n][0]) for k in (0, 1))
             for path, middle in zip((a, b), middles)]
    return 2 * inner / sum(sizes)


def slow_fidelity(a, b):
    """Over every shift by up to an eighth of the length."""
    most, best = len(a) // 8, 0.0
    for shift in range(-most, most + 1):
        pairs = [(a[n], b[n - shift]) for n in range(len(a)) if 0 <= n - shift < len(b)]
        best = max(best, slow_shared([p for p, _ in pairs], [q for _, q in pairs]))
    return best


@pytest.mark.parametrize("gone", [(), (2,), (0, 5), (1, 2, 3)])
def test_fidelity_against_loops(gone):
    for seed in range(6):
        a, b = walk(seed, 17), walk(seed, 17) + 0.5 * walk(seed + 50, 17)
        a[list(gone)] = np.nan
        assert motion.fidelity(a, b) == pytest.approx(slow_fidelity(a.tolist(), b.tolist()), abs=1e-12)
        assert motion.fidelity(a, b) == pytest.approx(motion.fidelity(b, a), abs=1e-12)


def test_fidelity_counts_how_far_and_not_where():
    a = walk(0)
    assert motion.fidelity(a, a + 0.2) == pytest.approx(1)
    assert motion.fidelity(a, 0.5 * a) == pytest.approx(0.8)
    assert motion.fidelity(a, 1 - a) == 0, "the other way round is no better than standing still"
    late = np.stack([np.sin(np.arange(-1, 16) / 2), np.cos(np.arange(-1, 16) / 2)], 1)
    assert motion.fidelity(late[:-1], late[1:]) == pytest.approx(1), "a frame too late"


def test_standing_still():
    still = np.full((6, 2), 0.4) + np.random.default_rng(0).uniform(-0.004, 0.004, (6, 2))     # a segmenter's tremble
    assert motion.fidelity(still, np.full((6, 2), 0.7)) == 1
    assert motion.fidelity(still, walk(0, 6)) == motion.fidelity(walk(0, 6), still) == 0


def test_missing_frames_lower_the_score():
    path = np.stack([np.linspace(0.1, 0.9, 8), np.full(8, 0.5)], 1)
    scores = []
    for gone in range(0, 9):
        seen = path.copy()
        seen[8 - gone:] = np.nan
        scores.append(motion.fidelity(seen, path))
    assert scores[0] == pytest.approx(1) and scores[8] == 0
    assert all(later < earlier for earlier, later in zip(scores[1:], scores[2:7]))
    half = np.full((6, 2), 0.5)
    half[:3] = np.nan
    assert motion.fidelity(half, np.full((6, 2), 0.2)) == 0.5
    with pytest.raises(BadInput, match="cannot be compared"):
        motion.fidelity(path, path[:5])
    with pytest.raises(BadInput, match=r"\(F, H, W\)"):
        motion.track(np.ones((4, 4)))


def test_a_path_at_other_moments():
    path = walk(0, 8)
    assert np.allclose(motion.resampled(path, 4), path[::2]) and np.allclose(motion.resampled(path, 8), path)
    twice = motion.resampled(path, 16)
    assert np.allclose(twice[::2], path) and np.allclose(twice[1], (path[0] + path[1]) / 2)
    assert np.allclose(twice[15], path[7])
    path[4] = np.nan
    assert np.isnan(motion.resampled(path, 16)[[7, 8, 9], 0]).all() and np.isfinite(motion.resampled(path, 16)[6, 0])


# -- roles ------------------------------------------------------------------------------------------------------------
def test_binding_finds_who_plays_whom():
    roles = {"rider": walk(0), "horse": walk(1), "dog": walk(2)}
    own = {"toy": "rider", "pet": "horse", "gem": "dog"}
    paths = {"toy": walk(0), "pet": walk(1), "gem": walk(2)}
    found = motion.binding(paths, roles, own)
    assert found.assigned == own and all(found.right.values()) and found.corrected == 1
    swapped = motion.binding({**paths, "toy": walk(1), "pet": walk(0)}, roles, own)
    assert swapped.assigned == {"toy": "horse", "pet": "rider", "gem": "dog"}
    assert swapped.right == {"toy": False, "pet": False, "gem": True} and swapped.corrected == pytest.approx(0)
    gone = motion.binding({**paths, "gem": np.full((8, 2), np.nan)}, roles, own)
    assert gone.right == {"toy": True, "pet": True, "gem": False}, "who is missing plays no role"


def test_who_pushes_is_known_by_where_it_is():
    """Both go the same way: their paths from their own middles are the same."""
    way = np.stack([np.linspace(0.3, 0.5, 8), np.full(8, 0.5)], 1)
    roles = {"behind": way, "ahead": way + (0.3, 0)}
    own = {"toy": "behind", "pet": "ahead"}
    shifted = {name: roles[role] + (0.05, 0.1) for name, role in own.items()}
    assert all(motion.binding(shifted, roles, own).right.values())
    assert not any(motion.binding({"toy": shifted["pet"], "pet": shifted["toy"]}, roles, own).right.values())
    alike = motion.binding({"toy": way, "pet": way}, {"behind": way, "ahead": way}, own)
    assert not any(alike.right.values()), "a tie tells nothing"


def test_a_subject_alone_may_take_the_wrong_role():
    roles = {"rider": walk(0), "horse": walk(1)}
    assert motion.binding({"toy": walk(1)}, roles, {"toy": "horse"}).right["toy"]
    wrong = motion.binding({"toy": walk(0)}, roles, {"toy": "horse"})
    assert not wrong.right["toy"] and wrong.corrected == -1
