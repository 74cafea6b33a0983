"""Bases of random weights in four sizes, and one step of every kind that the stages take: what is measured here.

"full" is ZeroScope at 576x320x24: 1,411 M parameters. Random weights cost the same memory and time as learned ones.
"""
from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet3DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from stages.backbones.bases import SPRITES, Video, config
from stages.backbones.cost import Base, estimate
from stages.backbones.unet3d import UNet3D
from stages.backbones.walks import until
from stages.core.collaborate import Branch, collaborative_step
from stages.core.denoise import sites_of
from stages.core.lora import Lora, branches
from stages.fuse import Group, Teacher, fuse_loras
from stages.learn_motion import learn_motion_tensors
from stages.learn_subject import learn_subject_tensors
from stages.options import OPTIONS, FuseOptions, LearnMotionOptions, LearnSubjectOptions

RANK = 32                                 # of the LoRAs that fuse and sample read


@dataclass(frozen=True)
class Size:
    """unet, vae, text: the parts' configs, where they differ from the libraries' defaults. rank: of what learns."""

    video: Video
    unet: dict
    vae: dict
    text: dict
    rank: int = 32
    length: int = 40                      # text tokens of a prompt


SIZES = {
    "tiny": Size(Video(4, 8, 32, 32),
                 dict(sample_size=8, layers_per_block=1, block_out_channels=(16, 32), norm_num_groups=8,
                      down_block_types=("CrossAttnDownBlock3D",) * 2, up_block_types=("CrossAttnUpBlock3D",) * 2,
                      cross_attention_dim=32, attention_head_dim=4),
                 dict(block_out_channels=(8, 8, 16), norm_num_groups=4, layers_per_block=1, latent_channels=4,
                      down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3),
                 dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4), rank=4),
    "mid": Size(Video(8, 8, 128, 192),
                dict(sample_size=(16, 24), layers_per_block=1, block_out_channels=(64, 128, 256, 256),
                     cross_attention_dim=256, attention_head_dim=32),
                dict(block_out_channels=(32, 64, 64, 64), layers_per_block=1, latent_channels=4,
                     down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4),
                dict(hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8), rank=16),
    "bench": Size(Video(8, 8, 128, 128),                                            # 58 M parameters
                  dict(sample_size=16, layers_per_block=2, block_out_channels=(64, 128, 256, 256),
                       cross_attention_dim=256, attention_head_dim=32),
                  dict(block_out_channels=(32, 64, 64, 64), layers_per_block=1, latent_channels=4,
                       down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4),
                  dict(hidden_size=256, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8), rank=16),
    "full": Size(Video(24, 8, 320, 576),
                 dict(sample_size=(40, 72)),
                 dict(block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
                      down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4),
                 dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16,
                      vocab_size=49408), length=77),
}


def write(size: Size, folder: Path) -> Path:
    """The folder of a base without its weights: configs, and the tokenizer and schedule of the built-in base."""
    for part in ("tokenizer", "scheduler"):
        shutil.copytree(SPRITES / part, folder / part)
    (folder / "model_index.json").write_text("{}")
    with torch.device("meta"):
        UNet3DConditionModel(**size.unet).save_config(folder / "unet")
        AutoencoderKL(**size.vae).save_config(folder / "vae")
    tokenizer = folder / "tokenizer" / "tokenizer_config.json"
    tokenizer.write_text(json.dumps(json.loads(tokenizer.read_text()) | {"model_max_length": size.length}))
    CLIPTextConfig(**{"vocab_size": 300, **size.text}, max_position_embeddings=size.length, bos_token_id=0,
                   eos_token_id=1, pad_token_id=1).save_pretrained(folder / "text_encoder")
    return folder


class RandomBase(UNet3D):
    """A base whose parts are filled with random numbers where another would read them."""

    def __init__(self, size: Size, folder: Path, *, device: str = "cpu", dtype: str = "fp32", low_memory: bool = False):
        super().__init__(folder, {}, name="random", revision="", licence="", origin={}, video=size.video,
                         device=device, dtype=dtype, low_memory=low_memory)
        self.folder, self.rank, self.length = folder, size.rank, size.length

    def _part(self, name: str, place: torch.device) -> nn.Module:
        if name not in self._parts:
            settings = config(self._folder, name)
            before = torch.get_default_dtype()
            try:
                torch.set_default_dtype(self.dtype)
                with torch.device("meta" if self.device.type == "meta" else place):
                    self._parts[name] = _new(name, settings).eval().requires_grad_(False)
            finally:
                torch.set_default_dtype(before)
        return self._parts[name]


def _new(name: str, settings: dict) -> nn.Module:
    if name == "text_encoder":
        return CLIPTextModel(CLIPTextConfig(**settings))
    return {"unet": UNet3DConditionModel, "vae": AutoencoderKL}[name].from_config(settings)


# -- what a stage does over and over ---------------------------------------------------------------------------------
def learn_subject(backbone: RandomBase, turns: int) -> None:
    """L_sub on a photo and L_reg on a clip, with the gradient to the token through the text encoder."""
    clips = [("a red circle", latents(backbone)), ("a blue square", latents(backbone))]
    options = LearnSubjectOptions(steps=turns, rank=backbone.rank)
    learn_subject_tensors(backbone, latents(backbone, 1), "toy", "square", clips, options)


def learn_motion(backbone: RandomBase, turns: int) -> None:
    """The appearance-free target, and the step towards it."""
    options = LearnMotionOptions(steps=turns, rank=backbone.rank)
    learn_motion_tensors(backbone, latents(backbone), vectors(backbone), vectors(backbone), options)


def fuse(backbone: RandomBase, turns: int) -> None:
    """L_fusion over two subjects, and L_attn of a composition at every layer."""
    both = vectors(backbone)
    teachers = [Teacher(name, torch.empty(0), lora(backbone, "subject"), both, latents(backbone))
                for name in ("dog", "toy")]
    masks = torch.zeros(1, 2, backbone.frames, backbone.height, backbone.width)
    group = Group(("dog", "toy"), latents(backbone), masks, both, (range(2, 3), range(5, 6)))
    fuse_loras(backbone, teachers, [group], FuseOptions(steps=turns), report=lambda **facts: gc.collect())


def sample(backbone: RandomBase, turns: int, guided: bool = False, layers: str = "mid") -> None:
    """Steps of Algorithm 1, both branches."""
    both, empty, words = vectors(backbone), vectors(backbone), [range(2, 3), range(5, 6)]
    cross, time = (sites_of(backbone, layers, kind, axis) for kind, axis in (("cross", "space"), ("self", "time")))
    x = latents(backbone)
    loras = {who: lora(backbone, who) for who in ("subject", "motion")}
    with branches(backbone.denoiser, loras, merge=backbone.merges) as rows:
        for _ in range(turns):
            gc.collect()
            x, _facts = collaborative_step(
                backbone, rows, x, 500, 480, Branch(both, empty, words), Branch(both, empty, words, "motion"),
                guidance_s=9.0, guidance_m=9.0, alpha_s=1.0, alpha_m=1.0, beta_s=0.5, beta_m=0.5, guided=guided,
                sites_cross=cross, sites_time=time)


def encode(backbone: RandomBase, turns: int) -> None:
    """A whole clip, before the denoiser is read."""
    for _ in range(turns):
        backbone.encode(np.zeros((1, backbone.frames, backbone.height, backbone.width, 3), np.uint8))


def decode(backbone: RandomBase, turns: int) -> None:
    """After sampling, with the denoiser in its place."""
    for _ in range(turns):
        backbone.decode(latents(backbone))


@dataclass(frozen=True)
class Step:
    """run: so many turns of a step. stage, phase: where cost.py estimates it. turns: after which its memory has reached
    its peak; of learning two, for the optimizer's is there from the second on. parts: of the base that are there."""

    run: Callable[[RandomBase, int], None]
    stage: str
    phase: str
    turns: int
    parts: tuple[str, ...] = ("unet",)


STEPS = {
    "learn-subject": Step(learn_subject, "learn-subject", "learning", 2, ("unet", "text_encoder")),
    "learn-motion": Step(learn_motion, "learn-motion", "learning", 2),
    "fuse": Step(fuse, "fuse", "learning", 2),
    "sample, unguided": Step(sample, "sample", "sampling", 1),
    "sample, guided": Step(partial(sample, guided=True), "sample", "guiding", 1),
    "encode": Step(encode, "learn-motion", "encoding", 1, ("vae",)),
    "decode": Step(decode, "sample", "decoding", 1, ("unet", "vae")),
}


def expected(name: str, size: Size, folder: Path, dtype: str, low_memory: bool) -> int:
    """Bytes that cost.py estimates for a step."""
    step, video = STEPS[name], size.video
    options = OPTIONS[step.stage]()
    if "learn" in step.stage:
        options = replace(options, rank=size.rank)
    if name == "sample, unguided":
        options = replace(options, tau=0)
    found = estimate(folder, step.stage, options, frames=video.frames, height=video.height, width=video.width,
                     dtype=dtype, low_memory=low_memory)
    phases = [step.phase, "sampling"] if name == "sample, guided" else [step.phase]
    return max(found.phases[phase] for phase in phases)


def latents(backbone: UNet3D, frames: int | None = None) -> Tensor:
    return torch.randn(1, backbone.latent_channels, frames or backbone.frames, *backbone.latent_size,
                       device=backbone.device, dtype=torch.promote_types(backbone.dtype, torch.float32))


def vectors(backbone: RandomBase) -> Tensor:
    """A prompt, (1, L, D). The text encoder is not there when it was read before."""
    return torch.randn(1, backbone.length, config(backbone.folder, "unet")["cross_attention_dim"],
                       device=backbone.device, dtype=backbone.dtype)


def lora(backbone: UNet3D, who: str, rank: int = RANK) -> Lora:
    """One that changes something, as a stage would have left it in a file."""
    tensors, place = {}, "meta" if backbone.device.type == "meta" else "cpu"
    for path in backbone.targets(who):
        layer = backbone.denoiser.get_submodule(path)
        tensors[f"{path}.lora_A.weight"] = 0.1 * torch.randn(rank, layer.in_features, device=place)
        tensors[f"{path}.lora_B.weight"] = 0.1 * torch.randn(layer.out_features, rank, device=place)
    return Lora(tensors, rank, rank)


def operations(name: str, size: Size, folder: Path, low_memory: bool) -> float:
    """Multiplications and additions of one turn of a step, from the shapes."""
    video = size.video
    base = Base(folder, frames=video.frames, height=video.height, width=video.width, dtype="fp32",
                low_memory=low_memory)
    whole, back = base.forward(), base.there_and_back

    def part(*kinds: str, where: str) -> float:
        return sum(block.flops for block in until(base.blocks(), where, kinds))

    return {"learn-subject": lambda: back(base.forward(1) + whole), "learn-motion": lambda: whole + back(whole),
            "fuse": lambda: 2 * whole + back(2 * whole + part("space", where="all")),
            "sample, unguided": lambda: 4 * whole,
            "sample, guided": lambda: 4 * whole + back(2 * part("space", "time", where="mid")),
            "encode": lambda: base.translated(down=True), "decode": lambda: base.translated(down=False)}[name]()
