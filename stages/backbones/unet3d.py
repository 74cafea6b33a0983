"""The UNet3D family: ModelScope, ZeroScope, and the sprites base; whatever diffusers' TextToVideoSDPipeline can read.

Only this file knows how the family is built. In a layer of its U-Net follow: resnet, temporal convolution, attention
(spatial transformer), temp_attention (temporal transformer). Of the spatial transformers attn2 reads the text; in the
temporal ones attn1 and attn2 are both self-attention over frames.

Legend: B batch, F frames, H W pixels, h w latent cells, C latent channels, L text tokens, D their width.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet3DConditionModel
from torch import Tensor, nn

from ..core.attention import Site
from ..core.cache import Cache
from ..core.errors import UsageError
from . import clip_text, compiling
from .bases import Video, config
from .checkpointing import checkpointed
from .folder import Weights
from .parts import quietly, read_part

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTokenizer

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "amp": torch.float32, "bf16": torch.bfloat16,
          "fp16": torch.float16}                       # of the weights; "amp": the denoiser's products are in bfloat16
_LAYER = r"\.transformer_blocks\.\d+\.(attn[12]\.(to_q|to_k|to_v|to_out\.0)|ff\.net\.(0\.proj|2))"
_TARGETS = {      # METHOD 1: attentions and feed-forwards of the transformers; no convolution
    "subject": re.compile(r".*\.attentions\.\d+" + _LAYER),
    "motion": re.compile(r"(transformer_in|.*\.temp_attentions\.\d+)" + _LAYER),
}
_SITE = re.compile(r"(?P<stage>transformer_in|down_blocks|mid_block|up_blocks)(\.(?P<block>\d+))?"
                   r"(\.(?P<axis>attentions|temp_attentions)\.(?P<layer>\d+))?"
                   r"\.transformer_blocks\.(?P<depth>\d+)\.(?P<attn>attn[12])")
_STAGES = ("transformer_in", "down_blocks", "mid_block", "up_blocks")
_CHUNK = 16       # frames through the VAE at a time


class UNet3D:
    """A frozen text-to-video model, as the method needs it (the seam of DESIGN). All modules are in eval mode: the
    temporal convolutions hold dropout.

    Each part is read when it is first asked for, once. The denoiser then stays on the device; the autoencoder and the
    text encoder wait in the machine's memory and visit the device for as long as they work, so that neither takes room
    while the denoiser trains or samples (but the text encoder stays once a token has been learned). origin: see
    bases.origin. low_memory: less memory for more time, and the same numbers to rounding: what trains is computed twice
    (checkpointing.py), frames pass the autoencoder one by one, the rows of a batch the denoiser one by one.

    dtype: of DTYPES. "amp" is mixed precision: all weights are float32, and the denoiser's products, forwards and
    backwards, are in bfloat16 (torch.autocast). The means of norms and of softmax, maps, losses and the gradients of
    what learns are in float32. So are the autoencoder and the text encoder: they run once for every hundreds of
    forwards of the denoiser, and an error of theirs stands in every step and in every pixel. arithmetic: this name.

    compiled: blocks of the denoiser run as code that torch.compile makes of them, at their first forward of each shape,
    and keeps for later processes (compiling.py). The same numbers to rounding.
    """

    def __init__(self, folder: Path, weights: Mapping[str, Weights], *, name: str, revision: str, licence: str,
                 video: Video, origin: Mapping[str, str] | None = None, device: str = "cpu", dtype: str = "fp32",
                 low_memory: bool = False, compiled: bool = False) -> None:
        if dtype not in DTYPES:
            raise UsageError(f"'{dtype}' is no dtype", f"known are {', '.join(DTYPES)}")
        self.name, self.revision, self.licence, self.origin = name, revision, licence, dict(
            origin or {"base": name, "revision": revision})
        self.frames, self.fps, self.height, self.width = video.frames, video.fps, video.height, video.width
        self.device, self.dtype, self.low_memory = torch.device(device), DTYPES[dtype], low_memory
        self.arithmetic, self.compiled = dtype, compiled
        if dtype == "amp" and not _mixes(self.device):
            raise UsageError(f"mixed precision (amp) needs bfloat16, which torch does not offer on {device} here",
                             "use --dtype fp32 or fp16")
        if compiled:
            compiling.check(self.device)
        self.cache = Cache()                       # where encode and embed look first; load_for gives it the project's
        self._folder, self._weights, self._parts = folder, weights, {}
        with quietly(folder):
            self._scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
        self.predicts: str = self._scheduler.config.prediction_type
        self.alphas_cumprod = self._scheduler.alphas_cumprod.double()
        self.final_alpha = float(self._scheduler.final_alpha_cumprod)      # a at the end of the schedule, before t = 0
        self._factor = 2 ** (len(config(folder, "vae")["block_out_channels"]) - 1)   # pixels of a latent cell's side
        self.latent_channels: int = config(folder, "unet")["in_channels"]

    @property
    def run_on(self) -> str:
        """For the manifests: what of the machine a result may differ by, if only by rounding."""
        chip = f" ({torch.cuda.get_device_name(self.device)})" if self.device.type == "cuda" else ""
        how = (", low memory" if self.low_memory else "") + (", compiled" if self.compiled else "")
        return f"{self.device}{chip}, {self.arithmetic}{how}"

    @property
    def variants(self) -> dict[str, str | None]:
        """Which weight files were found of each part: "fp16" for those in half precision. Others give other numbers."""
        return {part: weights.variant for part, weights in self._weights.items()}

    @property
    def merges(self) -> bool:
        """Whether frozen LoRAs are merged into copies of the weights (lora.branches): sampling then costs what the base
        costs, and the copies take their room. In half precision a small change would be rounded away."""
        return self.arithmetic in ("fp32", "fp64") and not self.low_memory

    # ---------------------------------------------------------------------------------------------------------- parts
    @property
    def denoiser(self) -> UNet3DConditionModel:
        return self._part("unet", self.device)

    @property
    def vae(self) -> AutoencoderKL:
        return self._part("vae", self._waiting)

    @property
    def text_encoder(self) -> CLIPTextModel:
        return self._part("text_encoder", self._waiting)

    @property
    def _waiting(self) -> torch.device:
        return torch.device("cpu")

    def _part(self, name: str, place: torch.device) -> nn.Module:
        if name not in self._parts:
            self._parts[name] = read_part(self._folder, name, self._weights[name], self.dtype).to(place)
        return self._parts[name]

    @contextmanager
    def _at_work(self, name: str, *, stay: bool = False) -> Iterator[nn.Module]:
        """The autoencoder or the text encoder on the device; afterwards it waits again, unless it shall stay."""
        part = self._part(name, self._waiting)
        here = next(part.parameters()).device.type == self.device.type
        try:
            yield part if here else part.to(self.device)
        finally:
            if not here and not stay:
                part.to(self._waiting)

    def _each(self, kind: str, part: str, jobs: Sequence[tuple[Sequence, Callable[[nn.Module], Tensor]]],
              keep: bool = True) -> Tensor:
        """Of each job (key, what the part makes of it (1, ...)) the result, from the cache or made, in one tensor. The
        part comes to the device once, where it is needed. One by one: a result depends on its own key alone, to the
        last bit, and on no company."""
        with ExitStack() as visit:
            at_work = cache(lambda: visit.enter_context(self._at_work(part)))
            return torch.cat([self.cache.tensor(kind, key, lambda: make(at_work()), keep=keep).to(self.device)  # noqa: B023
                              for key, make in jobs])

    @cached_property
    def sites(self) -> list[Site]:
        return _sites(self.denoiser)

    @property
    def latent_size(self) -> tuple[int, int]:
        """(h, w) of a latent of the base's own size."""
        return self.height // self._factor, self.width // self._factor

    # ------------------------------------------------------------------------------------------------ pixels, latents
    @torch.no_grad()
    def encode(self, frames_BFHWC: np.ndarray | Tensor, *, keep: bool = True) -> Tensor:
        """uint8 (B, F, H, W, 3) -> latents (B, C, F, h, w): the posterior's mean, scaled. A photo has F = 1. keep: in
        the cache, where there is one."""
        frames = torch.as_tensor(np.ascontiguousarray(frames_BFHWC))
        return self._each("latents", "vae", [([clip], partial(self._encode, clip)) for clip in frames], keep)

    def _encode(self, frames_FHWC: Tensor, vae: AutoencoderKL) -> Tensor:
        pictures = frames_FHWC.permute(0, 3, 1, 2)                                   # (F, 3, H, W)
        latents = [vae.encode(some.to(self.device, self.dtype) / 127.5 - 1).latent_dist.mean
                   for some in pictures.split(1 if self.low_memory else _CHUNK)]
        return (torch.cat(latents) * vae.config.scaling_factor).transpose(0, 1)[None]

    @torch.no_grad()
    def decode(self, x: Tensor) -> np.ndarray:
        """latents (B, C, F, h, w) -> uint8 (B, F, H, W, 3)."""
        with self._at_work("vae") as vae:
            cells = x.transpose(1, 2).flatten(0, 1).to(self.device, self.dtype) / vae.config.scaling_factor
            pictures = torch.cat([vae.decode(some).sample.float().cpu()
                                  for some in cells.split(1 if self.low_memory else _CHUNK)])
        frames = ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
        return frames.unflatten(0, (len(x), -1)).contiguous().numpy()

    # --------------------------------------------------------------------------------------------------------- text
    def embed(self, prompts: Sequence[str], tokens: Mapping[str, Tensor] | None = None, *, keep: bool = True) -> Tensor:
        """Prompts -> text vectors (B, L, D); "" is the unconditional prompt.

        tokens: {"<toy>": (n, width)}: where a prompt says <toy>, these n rows stand in for looked-up token embeddings.
        Neither tokenizer nor encoder changes, and gradients flow into the given rows. keep: in the cache, where there
        is one and no gradient is asked for.
        """
        tokens = tokens or {}
        if torch.is_grad_enabled() and any(rows.requires_grad for rows in tokens.values()):
            with self._at_work("text_encoder", stay=True) as encoder:        # its weights are needed on the way back
                return clip_text.embed(self.tokenizer, encoder, self._text_length, prompts, tokens)
        own = [(prompt, {name: rows for name, rows in tokens.items() if name in prompt}) for prompt in prompts]
        return self._each("text", "text_encoder", [(one, partial(self._embed, *one)) for one in own], keep)

    def _embed(self, prompt: str, tokens: Mapping[str, Tensor], encoder: CLIPTextModel) -> Tensor:
        return clip_text.embed(self.tokenizer, encoder, self._text_length, [prompt], tokens)

    def positions(self, prompt: str, tokens: Mapping[str, Tensor] | Iterable[str] = ()) -> list[tuple[str, range]]:
        """Each whitespace word of the prompt, without the punctuation around it -> its positions in L.

        tokens: as for `embed`; names alone stand for tokens of one vector. A word of punctuation only, or one that
        lies beyond the last position, has an empty range.
        """
        counts = {name: len(tokens[name]) if isinstance(tokens, Mapping) else 1 for name in tokens}
        return clip_text.lay_out(self.tokenizer, self._text_length, prompt, counts).words

    def word_embedding(self, word: str) -> Tensor:
        """The frozen embedding rows of a plain word or phrase, (n, width): where learned tokens start from."""
        ids = self.tokenizer(word, add_special_tokens=False).input_ids
        return self.text_encoder.get_input_embeddings().weight[ids].detach().clone().to(self.device)

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        from transformers import CLIPTokenizer

        with quietly(self._folder):
            return CLIPTokenizer.from_pretrained(self._folder / "tokenizer")

    @property
    def _text_length(self) -> int:
        return min(self.tokenizer.model_max_length, config(self._folder, "text_encoder")["max_position_embeddings"])

    # ------------------------------------------------------------------------------------------------------ denoising
    def predict(self, x: Tensor, t: int | Tensor, vectors: Tensor) -> Tensor:
        """x (B, C, F, h, w), t an int or (B,), vectors (B, L, D) -> what the network says (see `predicts`), shape and
        dtype of x: latents may be kept in float32 while the network computes in half precision."""
        quick = compiling.compiled(self.denoiser, compiling.KINDS[self.device.type]) if self.compiled else nullcontext()
        with self._mixed(), quick, checkpointed(self.denoiser) if self.low_memory else nullcontext():
            out = self.denoiser(x.to(self.dtype), t, encoder_hidden_states=vectors.to(self.dtype)).sample
        return out.to(x.dtype)

    def _mixed(self) -> AbstractContextManager:
        """A forward with products in bfloat16, where the arithmetic is mixed. A layer runs once in a forward, so torch
        need not keep the cast weights; kept from a forward without gradients, they would have none in the next."""
        mixed = self.arithmetic == "amp"
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False) if mixed else nullcontext()

    def timesteps(self, steps: int) -> Tensor:
        """The DDIM schedule of so many steps, descending, int64; spacing and offset are the scheduler config's."""
        if not 1 <= steps <= len(self.alphas_cumprod):
            raise UsageError(f"{steps} sampling steps are not possible", f"choose 1 to {len(self.alphas_cumprod)}")
        self._scheduler.set_timesteps(steps)
        return self._scheduler.timesteps.clone()

    def targets(self, who: str) -> list[str]:
        """The linear layers a LoRA adapts (METHOD 1). "subject": spatial transformers, "motion": temporal ones."""
        return [name for name, module in self.denoiser.named_modules()
                if isinstance(module, nn.Linear) and _TARGETS[who].fullmatch(name)]


def _mixes(device: torch.device) -> bool:
    """Whether torch.autocast computes in bfloat16 there; CUDA cards that only emulate it would be slower for it."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.amp.is_autocast_available(device.type)


def _sites(denoiser: UNet3DConditionModel) -> list[Site]:
    """Every attention layer in order of execution, which is neither that of the names nor of their registration."""
    found = []
    for name, _ in denoiser.named_modules():
        if match := _SITE.fullmatch(name):
            over_time = match["stage"] == "transformer_in" or match["axis"] == "temp_attentions"
            order = (_STAGES.index(match["stage"]), int(match["block"] or 0), int(match["layer"] or 0), over_time,
                     int(match["depth"]), match["attn"])
            cross = match["attn"] == "attn2" and not over_time
            found.append((order, Site(name, "cross" if cross else "self", "time" if over_time else "space")))
    return [site for _, site in sorted(found, key=lambda pair: pair[0])]
