"""The sprites world and its base: determinism, what is held out, training that resumes, the format diffusers reads."""
from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import TextToVideoSDPipeline
from diffusers.utils import logging as diffusers_logging
from transformers import CLIPTokenizer

from stages.backbones import load
from stages.core.train import fit
from stages.sprites import looks, world
from stages.sprites.corpus import coverage
from stages.sprites.optim import MuonAdamW, orthogonalized
from stages.sprites.sizes import SIZES
from stages.sprites.train import WEIGHTS, save_base
from stages.sprites.train_base import (
    WORD_NORM,
    NounMaps,
    Paths,
    attention_term,
    new_models,
    noun_positions,
    redraw_words,
    train_base,
)
from stages.sprites.train_vae import centre_latents, new_vae
from stages.sprites.words import make_tokenizer

CARD = Path(world.__file__).parent / "MODEL_CARD.md"
TINY = replace(SIZES["small"], unet_widths=(16, 16), heads_width=8, text_width=24, text_layers=1, vae_widths=(8, 8, 8),
               corpus_clips=500, corpus_photos=500, clips_per_step=1, photos_per_step=2)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(looks.SMALL)


def draw(seed: int, **more) -> world.Clip:
    return world.draw_clip(np.random.default_rng(seed), looks.SMALL, 8, 32, **more)


# -- the world -------------------------------------------------------------------------------------------------------
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    one, two, other = draw(3), draw(3), draw(4)
    assert one.caption == two.caption and one.frames.tobytes() == two.frames.tobytes()
    assert one.masks.tobytes() == two.masks.tobytes()
    assert one.frames.tobytes() != other.frames.tobytes()


def test_held_out_words_and_things_are_in_no_training_vocabulary():
    for vocabulary in (looks.SMALL, looks.FULL):
        assert not set(vocabulary.colours) & set(looks.HELD_OUT_COLOURS)
        assert not set(vocabulary.shapes) & set(looks.HELD_OUT_SHAPES)
        assert not set(vocabulary.textures) & set(looks.HELD_OUT_TEXTURES)
    assert not set(world.MOTIONS + world.ROLE_MOTIONS) & set(world.HELD_OUT_MOTIONS)
    for name, (look, word) in looks.SUBJECTS.items():
        assert look.shape in looks.HELD_OUT_SHAPES and look.texture in looks.HELD_OUT_TEXTURES, name
        assert look.colour in looks.HELD_OUT_COLOURS and look.second in looks.HELD_OUT_COLOURS, name
        assert word in looks.SMALL.shapes, name


def test_no_caption_and_no_frame_of_training_holds_what_is_held_out():
    banned = {*looks.HELD_OUT_COLOURS, *looks.HELD_OUT_SHAPES, *looks.HELD_OUT_TEXTURES}
    banned |= {word for motion in world.HELD_OUT_MOTIONS for form in world.VERBS[motion] for word in form.split()}
    banned -= {"is"}
    for seed in range(300):
        clip = draw(seed)
        assert not banned & set(re.findall(r"[a-z]+", clip.caption)), clip.caption
        for actor in clip.actors:
            assert actor.look.shape in looks.SHAPES and actor.look.colour in looks.COLOURS


def test_masks_are_where_the_objects_are_and_do_not_overlap():
    for seed in range(40):
        clip = draw(seed, objects=2)
        assert not (clip.masks[0] & clip.masks[1]).any()
        for actor, mask in zip(clip.actors, clip.masks):
            for f in range(8):
                if mask[f].sum() > 0.8 * np.pi * (actor.radius * 32) ** 2:           # hardly hidden
                    y, x = np.argwhere(mask[f]).mean(0)
                    assert np.hypot((x + 0.5) / 32 - actor.path[f, 0], (y + 0.5) / 32 - actor.path[f, 1]) < 0.06


def test_roles_are_exchanged_when_the_sentence_is():
    first = {draw(seed, objects=2, motion="push", complete=True).actors[0].look.colour for seed in range(40)}
    assert first == set(looks.SMALL.colours)


def test_nouns_name_the_objects():
    for seed in range(60):
        clip = draw(seed)
        words = clip.caption.replace(".", "").split()
        for actor, noun in zip(clip.actors, clip.nouns):
            assert noun == -1 or words[noun] == actor.look.shape


def test_every_shape_covers_about_the_area_of_the_unit_disc():
    y, x = np.mgrid[-2:2:300j, -2:2:300j]
    for name, inside in looks.ALL_SHAPES.items():
        assert 0.8 < inside(x, y).mean() * 16 / np.pi < 1.2, name


# -- words and maps --------------------------------------------------------------------------------------------------
def test_every_word_of_the_world_is_one_token_and_an_unknown_word_is_several(tokenizer):
    for word in (*looks.SMALL.colours, *looks.SMALL.shapes, "striped", "jumping", "static", "snow"):
        assert len(tokenizer(word, add_special_tokens=False).input_ids) == 1, word
    assert len(tokenizer("orbiting", add_special_tokens=False).input_ids) > 1


def test_noun_positions_point_at_the_nouns(tokenizer):
    caption = "a red circle is orbiting a blue square in the snow."
    at = noun_positions(tokenizer, caption, [2, 7, -1])
    ids = tokenizer(caption).input_ids
    assert [tokenizer.convert_ids_to_tokens(ids[p]) for p in at[:2]] == ["circle</w>", "square</w>"]
    assert at[2] == -1


def test_noun_maps_are_the_attention_of_the_module(tokenizer):
    torch.manual_seed(0)
    unet, _ = new_models(TINY, tokenizer)
    watcher = NounMaps(unet)
    watcher.nouns = torch.tensor([[2, 4, -1]])
    text = torch.randn(1, 8, 24)
    layer = unet.mid_block.attentions[0].transformer_blocks[0].attn2
    seen = []
    layer.register_forward_hook(lambda m, args, kwargs, out: seen.append((args, kwargs)), with_kwargs=True)
    unet(torch.randn(1, 6, 2, 8, 8), 3, text)
    hidden = seen[0][0][0]
    q, k = (x.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for x in (layer.to_q(hidden), layer.to_k(text)))
    expected = (q.double() @ k.double().mT * q.shape[-1] ** -0.5).softmax(-1).mean(1)[..., [2, 4]]      # (F, h w, 2)
    mid = [m for m in watcher.maps if m.shape[-1] == 16]
    assert any(torch.allclose(m[0, :, :2].transpose(1, 2).double(), expected, atol=1e-6) for m in mid)


def test_attention_on_the_object_costs_less_than_beside_it():
    cover = torch.zeros(1, 3, 1, 4, 4)
    cover[0, 0, 0, :2, :2] = 1
    inside, outside = torch.full((1, 1, 3, 16), 0.01), torch.full((1, 1, 3, 16), 0.01)
    inside[0, 0, 0, [0, 1, 4, 5]] = 0.9
    outside[0, 0, 0, [10, 11, 14, 15]] = 0.9
    nouns, weight = torch.tensor([[3, -1, -1]]), torch.ones(1)
    assert attention_term([inside], nouns, cover, weight) < 0.1 < 2 < attention_term([outside], nouns, cover, weight)


def test_the_path_term_asks_for_place_way_and_time():
    covers = torch.zeros(1, 3, 3, 8, 8)
    for frame, column in enumerate((6, 4, 2)):       # the first object moves left by four cells
        covers[0, 0, frame, 3:5, column:column + 2] = 1
    covers[0, 1, :, :2, :2] = 1                                         # an object that no noun names
    wanted, seen = Paths.targets(torch.tensor([[2, -1, -1]]), covers)
    x, y, way_x, way_y, time = wanted[0].T
    assert torch.allclose(x, torch.tensor([1.875, 0.625, -0.625])) and torch.allclose(y, torch.zeros(3))
    assert torch.allclose(way_x, torch.full((3,), -1.25)) and torch.allclose(way_y, torch.zeros(3))
    assert time.tolist() == [-1.5, 0.0, 1.5] and seen.all()
    assert not Paths.targets(torch.tensor([[-1, -1, -1]]), covers)[1].any()


def test_the_path_term_is_the_error_of_its_heads_and_reaches_the_unet(tokenizer):
    torch.manual_seed(0)
    unet, _ = new_models(TINY, tokenizer)
    paths, covers = Paths(unet), torch.rand(2, 3, 4, 8, 8)
    for head in paths.heads:
        torch.nn.init.normal_(head.weight)
    nouns = torch.tensor([[2, 5, -1], [-1, -1, -1]])           # nothing is named in the second
    unet(torch.randn(2, 6, 4, 8, 8), 900, torch.randn(2, 8, 24))
    features = [x.detach().double() for x in paths.seen]
    loss = paths.term(nouns, covers)
    wanted, _ = Paths.targets(nouns, covers)
    expected = []
    for head, x in zip(paths.heads, features):
        for f in range(4):
            row = x[f].mean((1, 2))                                     # (B F, C, h, w): the first example
            row = (row - row.mean()) / (row.var(unbiased=False) + 1e-5).sqrt()
            expected.append((row @ head.weight.double().T + head.bias.double() - wanted[0, f]).square().mean())
    assert loss.item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-4) and not paths.seen
    loss.backward()
    assert unet.conv_in.weight.grad.abs().max() > 0


def test_redrawn_words_lie_far_apart_and_pieces_are_refused(tokenizer):
    _, text = new_models(TINY, tokenizer)
    before = text.get_input_embeddings().weight.detach().clone()
    redraw_words(text, tokenizer, ["left", "right"])
    left, right, up = (tokenizer(word, add_special_tokens=False).input_ids[0] for word in ("left", "right", "up"))
    after = text.get_input_embeddings().weight
    assert after[left].norm().item() == pytest.approx(WORD_NORM)
    assert (after[left] - after[right]).norm() > 0.5 * WORD_NORM
    assert torch.equal(after[up], before[up])
    with pytest.raises(ValueError, match="tokens"):
        redraw_words(text, tokenizer, ["orbiting"])


def test_coverage_is_the_share_of_a_cell():
    clip = draw(5, objects=1)
    assert np.allclose(coverage(clip)[0] / 255, clip.masks[0].reshape(8, 8, 4, 8, 4).mean((2, 4)), atol=0.003)


# -- training --------------------------------------------------------------------------------------------------------
def test_newton_schulz_makes_matrices_nearly_orthogonal():
    torch.manual_seed(0)
    for shape in ((3, 16, 40), (2, 40, 16)):
        values = torch.linalg.svdvals(orthogonalized(torch.randn(shape)))
        assert values.min() > 0.5 and values.max() < 1.35


def test_muon_lowers_a_loss_and_leaves_vectors_to_adam():
    torch.manual_seed(0)
    goal, w, b = torch.randn(8, 6), torch.zeros(8, 6, requires_grad=True), torch.zeros(8, requires_grad=True)
    curve = fit({"w": w, "b": b}, lambda step, g: {"loss": (w + b[:, None] - goal).square().mean()}, steps=200, seed=0,
                optimizer=MuonAdamW([w, b], lr=0.1, adam_lr=0.1), rate=lambda step: 1 - step / 200)
    assert curve[-1]["loss"] < 0.05 * curve[0]["loss"]


def _train(folder: Path, tokenizer, steps: int = 4, die_at: int | None = None):
    torch.manual_seed(1)
    vae = new_vae(TINY).eval()

    def report(**facts):
        if die_at is not None and facts.get("step") == die_at:
            raise KeyboardInterrupt

    return train_base(TINY, folder, vae, tokenizer, seed=3, steps=steps, workers=1, device="cpu", report=report,
                      photos_first=1, singles=1, save_every_seconds=0.0)


def test_a_killed_training_ends_in_the_very_weights_of_the_calm_one(tmp_path, tokenizer):
    calm, text, curve = _train(tmp_path, tokenizer)
    (tmp_path / "base").rename(tmp_path / "calm")                       # its checkpoints; the corpora stay
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path, tokenizer, die_at=3)
    again, text_again, curve_again = _train(tmp_path, tokenizer)
    assert curve == curve_again and len(curve) == 4
    for one, two in ((calm, again), (text, text_again)):
        assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))


def test_centred_latents_have_mean_zero_and_decode_to_the_same_picture():
    torch.manual_seed(0)
    vae, x = new_vae(TINY).eval(), torch.rand(16, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        before = vae.decode(vae.encode(x).latent_dist.mean).sample
        centre_latents(vae, x)
        latents = vae.encode(x).latent_dist.mean * vae.config.scaling_factor
        after = vae.decode(latents / vae.config.scaling_factor).sample
    assert latents.mean((0, 2, 3)).abs().max() < 1e-4 and abs(float(latents.std()) - 1) < 1e-3
    assert torch.allclose(before, after, atol=1e-5)


# -- the shipped base ------------------------------------------------------------------------------------------------
def test_diffusers_own_pipeline_loads_the_base_and_saving_it_changes_no_bit(tmp_path):
    diffusers_logging.disable_progress_bar()
    pipe = TextToVideoSDPipeline.from_pretrained(WEIGHTS / "base", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    side = load("sprites").width
    frames = pipe("a red circle moves left on the sand", num_frames=4, height=side, width=side, num_inference_steps=2,
                  guidance_scale=3.0, generator=torch.Generator().manual_seed(0)).frames[0]
    assert frames.shape == (4, side, side, 3) and np.isfinite(frames).all() and frames.std() > 0.02
    size = SIZES[json.loads((WEIGHTS / "base/videomage.json").read_text())["size"]]
    fresh = CLIPTokenizer.from_pretrained(WEIGHTS / "base/tokenizer")  # the pipeline's own remembers its last padding
    save_base(tmp_path, size, pipe.vae, pipe.unet, pipe.text_encoder, fresh)
    for file in ("unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors",
                 "text_encoder/model.safetensors", "tokenizer/tokenizer.json"):
        assert (tmp_path / file).read_bytes() == (WEIGHTS / "base" / file).read_bytes(), file


def test_the_shipped_weights_stay_below_40_megabytes_and_hold_no_pickle():
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 40e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt"}


def test_the_ten_lines_of_the_model_card_run(monkeypatch, capsys):
    code = re.search(r"```python\n(.*?)```", CARD.read_text(), re.S)[1]
    assert len(code.strip().splitlines()) <= 10
    monkeypatch.chdir(Path(world.__file__).parents[2])
    diffusers_logging.disable_progress_bar()
    exec(compile(code, "model card", "exec"), {})
    shape = tuple(map(int, re.findall(r"\d+", capsys.readouterr().out.strip().splitlines()[-1])))
    assert shape == (load("sprites").frames, load("sprites").height, load("sprites").width, 3)
