"""The Backbone contract, one test for every family, and what is particular to UNet3D and its tokenizer."""
from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from conftest import make_base
from diffusers import UNet3DConditionModel
from oracles import assert_same_state, state_of

from stages.backbones import NAMES, clip_text, identity, load
from stages.core.attention import watch
from stages.core.errors import BadInput, UsageError

FAMILIES = ["base_folder", "epsilon_folder"]         # a new family adds its own tiny folder here


@pytest.mark.parametrize("family", FAMILIES)
def test_contract(family, request):
    """Everything the stages rely on, of any backbone."""
    backbone = load(str(request.getfixturevalue(family)))
    assert backbone.predicts in ("epsilon", "v_prediction") and len(backbone.revision) == 64
    modules = [backbone.denoiser, backbone.vae, backbone.text_encoder]
    assert not any(m.training for module in modules for m in module.modules())
    assert not any(p.requires_grad for module in modules for p in module.parameters())

    shape = (2, backbone.frames, backbone.height, backbone.width, 3)
    frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    x = backbone.encode(frames)
    assert x.shape[:3] == (2, backbone.latent_channels, backbone.frames) and x.dtype == backbone.dtype
    pictures = backbone.decode(x)
    assert pictures.shape == frames.shape and pictures.dtype == np.uint8
    assert backbone.encode(frames[:, :1]).shape[2] == 1                        # a photo
    assert torch.allclose(backbone.encode(frames[1:]), x[1:], atol=1e-5)

    rows = torch.randn(2, backbone.word_embedding("dog").shape[1], requires_grad=True)
    vectors = backbone.embed(["a <toy> is riding", ""], {"<toy>": rows})
    assert vectors.ndim == 3 and len(vectors) == 2
    positions = backbone.positions("a <toy> is riding", {"<toy>": rows})
    assert [word for word, _ in positions] == ["a", "<toy>", "is", "riding"] and len(positions[1][1]) == 2
    assert all(at.stop <= vectors.shape[1] for _, at in positions)
    vectors.sum().backward()
    assert rows.grad is not None and bool((rows.grad != 0).any())

    t = torch.tensor([5, 900])
    out = backbone.predict(x, t, vectors)
    assert out.shape == x.shape and out.dtype == x.dtype
    assert backbone.predict(x.double(), 5, vectors).dtype == torch.float64      # latents keep their precision

    steps = backbone.timesteps(7)
    assert len(steps) == 7 and steps.dtype == torch.int64 and bool((steps.diff() < 0).all()) and int(steps[-1]) >= 0
    assert backbone.alphas_cumprod.dtype == torch.float64 and int(steps[0]) < len(backbone.alphas_cumprod)
    assert 0.9 < backbone.final_alpha <= 1

    names = dict(backbone.denoiser.named_modules())
    for who in ("subject", "motion"):
        assert backbone.targets(who) and all(isinstance(names[n], torch.nn.Linear) for n in backbone.targets(who))
    assert not set(backbone.targets("subject")) & set(backbone.targets("motion"))
    assert {(s.kind, s.axis) for s in backbone.sites} >= {("cross", "space"), ("self", "time")}
    with torch.no_grad(), watch(backbone.denoiser, backbone.sites) as maps:
        backbone.predict(x, t, vectors)
    assert list(maps) == [site.name for site in backbone.sites]


# -------------------------------------------------------------------------------------------------------- the denoiser
def test_targets_are_attentions_and_feed_forwards_of_the_transformers(backbone):
    subject, motion = backbone.targets("subject"), backbone.targets("motion")
    per_block = 2 * 4 + 2                                   # q, k, v, out of two attentions; two of the feed-forward
    spatial = sum(type(m).__name__ == "Transformer2DModel" for m in backbone.denoiser.modules())
    temporal = sum(type(m).__name__ == "TransformerTemporalModel" for m in backbone.denoiser.modules())
    assert (len(subject), len(motion)) == (per_block * spatial, per_block * temporal)
    assert not any("temp" in name or "transformer_in" in name for name in subject)
    assert all("temp_attentions" in name or name.startswith("transformer_in") for name in motion)
    assert not any(part in name for name in subject + motion for part in ("conv", "resnet", "proj_in", "proj_out"))


@pytest.mark.parametrize("frames", [1, 3])
def test_other_frame_counts_and_sizes(backbone, frames):
    out = backbone.predict(torch.randn(1, 4, frames, 6, 10), 3, backbone.embed(["a dog"]))
    assert out.shape == (1, 4, frames, 6, 10)


@pytest.mark.parametrize("config", [dict(timestep_spacing="trailing"),
                                    dict(timestep_spacing="leading", steps_offset=1)], ids=["trailing", "leading"])
@pytest.mark.parametrize("steps", [1, 7, 25, 50])
def test_timesteps_are_those_of_diffusers(backbone, config, steps, monkeypatch):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(**config)
    monkeypatch.setattr(backbone, "_scheduler", DDIMScheduler(**config))
    scheduler.set_timesteps(steps)
    assert backbone.timesteps(steps).tolist() == scheduler.timesteps.tolist()


@pytest.mark.parametrize("steps", [0, 1001])
def test_impossible_schedules_are_refused(backbone, steps):
    with pytest.raises(UsageError, match=str(steps)):
        backbone.timesteps(steps)


# ------------------------------------------------------------------------------------------------------------ the text
def lay_out(backbone, prompt, counts):
    return clip_text.lay_out(backbone.tokenizer, 20, prompt, counts)


PROMPTS = ["", "a dog is riding a horse", "A  dog,is   riding\ta horse.", "the teddy bear's qux-27!", "horse " * 40]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_without_placeholders_is_tokenized_as_ever(backbone, prompt):
    plain = backbone.tokenizer(prompt, padding="max_length", truncation=True).input_ids
    assert lay_out(backbone, prompt, {}).ids == plain
    assert lay_out(backbone, prompt, {"<toy>": 3}).ids == plain
    with torch.no_grad():
        theirs = backbone.text_encoder(torch.tensor([plain])).last_hidden_state
    assert torch.equal(backbone.embed([prompt]), theirs)


@pytest.mark.parametrize("prompt", ["<toy> is riding <dog> in snow", "a <toy>, and a <dog>.", "<dog>'s<toy>",
                                    "<toy><toy>"])
def test_the_pieces_between_placeholders_are_tokenized_as_ever(backbone, prompt):
    """A word in the placeholder's stead, known to be one token, gives the same ids everywhere else."""
    text = lay_out(backbone, prompt, {"<toy>": 1, "<dog>": 1})
    in_words = prompt.replace("<toy>", " toy ").replace("<dog>", " dog ")
    words = backbone.tokenizer(in_words, padding="max_length").input_ids
    ids = list(text.ids)
    for name, at in text.placeholders:
        (ids[at.start],) = backbone.tokenizer(name[1:-1], add_special_tokens=False).input_ids
    assert ids == words


def test_a_word_as_its_own_placeholder_changes_no_bit(backbone):
    """The learned rows stand exactly where the looked-up ones stood."""
    tokens = {"<toy>": backbone.word_embedding("toy"), "<tb>": backbone.word_embedding("teddy bear")}
    assert len(tokens["<tb>"]) == 2
    mine = backbone.embed(["a <toy> is riding <tb>.", "<tb>"], tokens)
    assert torch.equal(mine, backbone.embed(["a toy is riding teddy bear.", "teddy bear"]))


def test_embedding_leaves_tokenizer_and_encoder_alone(backbone):
    before, vocabulary = state_of(backbone.text_encoder), dict(backbone.tokenizer.get_vocab())
    plain = backbone.embed(["a toy"])
    backbone.embed(["a <toy>"], {"<toy>": torch.randn(3, 32)})
    with pytest.raises(BadInput, match=r"<toy> is of shape \(3, 31\)"):
        backbone.embed(["a <toy>"], {"<toy>": torch.randn(3, 31)})
    assert_same_state(before, state_of(backbone.text_encoder))
    assert backbone.tokenizer.get_vocab() == vocabulary
    assert torch.equal(backbone.embed(["a toy"]), plain)


def test_the_embeddings_gradient_against_differences(backbone64):
    weight = torch.randn(1, 20, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = torch.randn(2, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction, h = torch.randn(2, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64), 1e-5

    def value(rows):
        return (backbone64.embed(["a <toy> and <toy>"], {"<toy>": rows}) * weight).sum()

    leaf = rows.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(leaf), leaf)
    with torch.no_grad():
        numeric = (value(rows + h * direction) - value(rows - h * direction)) / (2 * h)
    assert abs(float((gradient * direction).sum() - numeric)) < 1e-7


def test_positions_name_words_and_point_at_their_tokens(backbone):
    tokens = {"<toy>": torch.zeros(3, 32), "<dog>": torch.zeros(1, 32)}
    prompt = "A  <toy>, riding 'qux' <dog>'s .  (horse)."
    found = backbone.positions(prompt, tokens)
    assert [word for word, _ in found] == ["A", "<toy>", "riding", "qux", "<dog>", ".", "horse"]
    text = lay_out(backbone, prompt, {"<toy>": 3, "<dog>": 1})
    spelled = {word: backbone.tokenizer.convert_ids_to_tokens([text.ids[i] for i in at]) for word, at in found}
    assert spelled["riding"] == ["riding</w>"] and spelled["horse"] == ["horse</w>"]
    assert spelled["qux"] == ["q", "u", "x</w>"] and spelled["."] == []
    assert len(spelled["<toy>"]) == 3 and [at for word, at in found if word == "<dog>"] == [text.placeholders[1][1]]


def test_positions_by_names_alone_and_beyond_the_end(backbone):
    assert backbone.positions("<toy> and toy", ["<toy>"])[0] == ("<toy>", range(1, 2))
    long = backbone.positions("horse " * 40)
    assert long[17][1] == range(18, 19) and long[18][1] == range(0)
    with pytest.raises(BadInput, match="no room for <toy>"):
        backbone.embed(["horse " * 18 + "<toy>"], {"<toy>": torch.zeros(1, 32)})


def test_one_placeholder_may_begin_like_another(backbone):
    tokens = {"<toy": torch.zeros(1, 32), "<toy>": torch.zeros(2, 32)}
    assert [len(at) for _, at in backbone.positions("<toy> <toy", tokens)] == [2, 1]


# ----------------------------------------------------------------------------------------------------------- the folder
def test_native_size_comes_from_the_folder(backbone, base_folder, tmp_path):
    assert (backbone.frames, backbone.fps, backbone.height, backbone.width) == (4, 8, 32, 32)
    other = shutil.copytree(base_folder, tmp_path / "other")
    (other / "videomage.json").unlink()
    assert load(str(other)).frames == 16


def test_parts_are_read_when_they_are_first_used(base_folder):
    base = load(str(base_folder))
    assert base.latent_size == (8, 8) and base.positions("a dog")[1] == ("dog", range(2, 3)) and not base._parts
    assert base.embed(["a dog"]).shape == (1, 20, 32) and list(base._parts) == ["text_encoder"]
    base.decode(torch.zeros(1, 4, 1, 8, 8))
    assert list(base._parts) == ["text_encoder", "vae"] and base.denoiser is base.denoiser


def test_the_autoencoder_and_the_text_encoder_visit_the_device(base_folder, monkeypatch):
    """Where they are told to go, seen without an accelerator; while a token learns, the encoder stays."""
    base, went = load(str(base_folder)), []

    def to(module, place):
        went.append((type(module).__name__, str(place)))
        return module

    monkeypatch.setattr(torch.nn.Module, "to", to)
    base.device = torch.device("cuda", 1)
    with base._at_work("vae"):
        assert went[-1] == ("AutoencoderKL", "cuda:1")
    assert went[-1] == ("AutoencoderKL", "cpu")
    with base._at_work("text_encoder", stay=True):
        pass
    assert went[-1] == ("CLIPTextModel", "cuda:1") and base.denoiser is not None
    assert went[-1] == ("Denoiser", "cuda:1")


def test_half_precision_files_are_read(base_folder, tmp_path, backbone):
    from diffusers import UNet3DConditionModel

    folder = shutil.copytree(base_folder, tmp_path / "half")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    UNet3DConditionModel.from_pretrained(base_folder / "unet").half().save_pretrained(folder / "unet", variant="fp16")
    half = load(str(folder))
    assert half.dtype == torch.float32
    assert torch.equal(half.denoiser.conv_in.weight, backbone.denoiser.conv_in.weight.half().float())


def test_identity_follows_the_bytes_not_the_place(base_folder, tmp_path):
    copy = shutil.copytree(base_folder, tmp_path / "copy")
    assert identity(str(copy))["revision"] == identity(str(base_folder))["revision"] == load(str(base_folder)).revision
    (copy / "README.md").write_text("no part of the model")
    assert identity(str(copy))["revision"] == identity(str(base_folder))["revision"]
    (copy / "videomage.json").write_text(json.dumps({"frames": 5}))
    assert identity(str(copy))["revision"] != identity(str(base_folder))["revision"]


def test_what_is_no_base_is_refused_in_a_sentence(tmp_path, base_folder):
    with pytest.raises(BadInput, match="sprites"):
        load("no-such-base")
    assert "sprites" in NAMES
    with pytest.raises(UsageError, match="fp12"):
        load(str(base_folder), dtype="fp12")
    broken = make_base(tmp_path / "broken")
    (broken / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(BadInput, match="cut off"):
        load(str(broken))
    index = json.loads((broken / "model_index.json").read_text())
    (broken / "model_index.json").write_text(json.dumps({**index, "unet": ["diffusers", "UNet2DConditionModel"]}))
    with pytest.raises(BadInput, match="UNet2DConditionModel"):
        load(str(broken))


def test_importing_the_list_of_bases_loads_no_torch():
    import subprocess
    import sys
    code = "import sys, stages.backbones; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_network_is_that_of_diffusers_but_for_how_it_finds_its_dtype(backbone, backbone64, base_folder):
    plain = UNet3DConditionModel.from_pretrained(base_folder / "unet").eval()
    x, vectors = torch.randn(1, 4, 4, 8, 8), backbone.embed(["a dog"])
    with torch.no_grad():
        assert torch.equal(backbone.denoiser(x, 10, vectors).sample, plain(x, 10, vectors).sample)
    assert (backbone.denoiser.dtype, backbone64.denoiser.dtype) == (torch.float32, torch.float64)
    assert isinstance(backbone.denoiser, UNet3DConditionModel)
