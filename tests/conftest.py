"""A tiny base with random weights, in the folder format of diffusers' TextToVideoSDPipeline, for every test."""
from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

FRAMES, SIZE = 4, 8         # latents are (B, 4, FRAMES, SIZE, SIZE), pixels SIZE * 4
WORDS = ("a an and the is riding chasing in on snow toy dog person horse red teddy bear video static of A "
         "circle square")
START, END = "<|startoftext|>", "<|endoftext|>"


def make_tokenizer():
    """A byte-pair tokenizer that knows WORDS whole and spells the rest."""
    from transformers import CLIPTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?<>'-"
    vocab, merges = {START: 0, END: 1}, []
    for piece in [*letters, *(letter + "</w>" for letter in letters)]:
        vocab[piece] = len(vocab)
    for word in sorted({word.lower() for word in WORDS.split()}):
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            if (pair := (pieces[0], pieces[1])) not in merges:
                merges.append(pair)
                vocab.setdefault("".join(pair), len(vocab))
            pieces[:2] = ["".join(pair)]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=20)


def make_base(folder: Path, **scheduler) -> Path:
    """Write the whole folder. scheduler: what its DDIM config shall say otherwise."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tokenizer = make_tokenizer()
        unet = UNet3DConditionModel(
            sample_size=SIZE, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 32),
            down_block_types=("CrossAttnDownBlock3D",) * 2, up_block_types=("CrossAttnUpBlock3D",) * 2,
            norm_num_groups=8, cross_attention_dim=32, attention_head_dim=4)
        for name, p in unet.named_parameters():        # sharper attention than a fresh network's: maps that differ
            if name.endswith(("to_q.weight", "to_k.weight")):
                p.data *= 2
            if ".conv4." in name:                      # temporal convolutions start at zero: let them act
                torch.nn.init.normal_(p, std=0.05)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8, 8, 16), layers_per_block=1, norm_num_groups=4, latent_channels=4,
            sample_size=SIZE * 4, scaling_factor=0.5)
        text = CLIPTextModel(CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=20, bos_token_id=0, eos_token_id=1, pad_token_id=1, projection_dim=32))
        text.get_input_embeddings().weight.data.normal_()
    settings = dict(num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
                    clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction")
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    text.save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(folder / "tokenizer")
    DDIMScheduler(**{**settings, **scheduler}).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({
        "_class_name": "TextToVideoSDPipeline", "unet": ["diffusers", "UNet3DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "scheduler": ["diffusers", "DDIMScheduler"]}))
    (folder / "videomage.json").write_text(json.dumps({"frames": FRAMES, "fps": 8}))
    return folder


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory) -> Path:
    """The tiny base on disk: v-prediction, leading spacing."""
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def epsilon_folder(tmp_path_factory) -> Path:
    """The same weights under another schedule: noise prediction, trailing spacing."""
    return make_base(tmp_path_factory.mktemp("epsilon"), prediction_type="epsilon", timestep_spacing="trailing",
                     set_alpha_to_one=True, steps_offset=0)


@pytest.fixture(scope="session")
def backbone(base_folder):
    """The tiny base, float32."""
    from stages.backbones import load

    return load(str(base_folder))


@pytest.fixture(scope="session")
def backbone64(base_folder):
    """The tiny base, float64: where tests claim mathematics."""
    from stages.backbones import load

    return load(str(base_folder), dtype="fp64")


@pytest.fixture(scope="session")
def epsilon64(epsilon_folder):
    from stages.backbones import load

    return load(str(epsilon_folder), dtype="fp64")


@pytest.fixture(scope="session")
def swept(tmp_path_factory) -> Path:
    """A tiny project in which a whole sweep has run, in one process. Not to be changed."""
    from sweeping import make_project, store_of

    from stages.sweep.run import run
    from stages.sweep.work import How

    root, threads = make_project(tmp_path_factory.mktemp("swept")), torch.get_num_threads()
    assert run(store_of(root), How()) == {}
    torch.set_num_threads(threads)
    return root


@pytest.fixture
def survived(record_property):
    """survived(area, case): a fault that was tried and did no harm; `make test-faults` counts them at its end."""
    return lambda area, case: record_property("survived", [area, case])


def pytest_terminal_summary(terminalreporter):
    passed = terminalreporter.stats.get("passed", [])
    counts = Counter(value[0] for report in passed for key, value in report.user_properties if key == "survived")
    if counts:
        terminalreporter.section("faults tried and survived")
        for area, count in sorted(counts.items()):
            terminalreporter.write_line(f"{area:52} {count:6}")
        terminalreporter.write_line(f"{'all':52} {counts.total():6}")
