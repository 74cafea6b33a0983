"""The UNet3D family: ModelScope, ZeroScope, and the sprites base; whatever diffusers' TextToVideoSDPipeline can read.

Only this file knows how the family is built. In a layer of its U-Net follow: resnet, temporal convolution, attention
(spatial transformer), temp_attention (temporal transformer). Of the spatial transformers attn2 reads the text; in the
temporal ones attn1 and attn2 are both self-attention over frames.

Legend: B batch, F frames, H W pixels, h w latent cells, C latent channels, L text tokens, D their width.
"""
from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging

from ..core.attention import Site
from ..core.errors import BadInput, UsageError

DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
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
    temporal convolutions hold dropout. Parts that were not loaded are None."""

    def __init__(self, denoiser: UNet3DConditionModel | None, vae: AutoencoderKL | None,
                 text_encoder: CLIPTextModel | None, tokenizer: CLIPTokenizer | None, scheduler: DDIMScheduler, *,
                 name: str, revision: str, frames: int, fps: int) -> None:
        self.denoiser, self.vae, self.text_encoder, self.tokenizer = denoiser, vae, text_encoder, tokenizer
        self.name, self.revision, self.frames, self.fps = name, revision, frames, fps
        self._scheduler = scheduler
        self.predicts: str = scheduler.config.prediction_type
        self.alphas_cumprod = scheduler.alphas_cumprod.double()
        self.final_alpha = float(scheduler.final_alpha_cumprod)      # a at the end of the schedule, before t = 0
        for module in self._modules():
            module.eval().requires_grad_(False)
        weights = next(self._modules()[0].parameters())
        self.device, self.dtype = weights.device, weights.dtype      # diffusers' own properties walk the whole model
        if denoiser is not None:
            self.latent_channels: int = denoiser.config.in_channels
            self.sites: list[Site] = _sites(denoiser)

    @classmethod
    def from_folder(cls, folder: Path, *, name: str, revision: str, device: str, dtype: str,
                    parts: Sequence[str]) -> UNet3D:
        """Read the folder of a TextToVideoSDPipeline (safetensors only, no pickle). videomage.json beside
        model_index.json says how many frames at what rate the base was trained on; without it 16 at 8 per second."""
        if dtype not in DTYPES:
            raise UsageError(f"'{dtype}' is no dtype", f"known are {', '.join(DTYPES)}")
        native = {"frames": 16, "fps": 8}
        if (folder / "videomage.json").is_file():
            native |= json.loads((folder / "videomage.json").read_text())

        def part(kind: type, subfolder: str) -> nn.Module:
            files = [path.name for path in (folder / subfolder).glob("*.safetensors")]
            variant = "fp16" if files and all(".fp16." in name for name in files) else None
            return kind.from_pretrained(folder / subfolder, use_safetensors=True, variant=variant,
                                        dtype=DTYPES[dtype]).to(device)

        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()                 # a library does not draw
        try:
            return cls(part(UNet3DConditionModel, "unet") if "unet" in parts else None,
                       part(AutoencoderKL, "vae") if "vae" in parts else None,
                       part(CLIPTextModel, "text_encoder") if "text" in parts else None,
                       CLIPTokenizer.from_pretrained(folder / "tokenizer") if "text" in parts else None,
                       DDIMScheduler.from_pretrained(folder / "scheduler"),
                       name=name, revision=revision, frames=native["frames"], fps=native["fps"])
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise BadInput(f"the base in {folder} cannot be loaded ({error})", "copy or make it again") from error
        finally:
            if shown:
                logging.enable_progress_bar()

    def _modules(self) -> list[nn.Module]:
        return [m for m in (self.denoiser, self.vae, self.text_encoder) if m is not None]

    @property
    def _factor(self) -> int:
        """Pixels a latent cell is high and wide."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def latent_size(self) -> tuple[int, int]:
        """(h, w) of a latent of the base's own size."""
        return _pair(self.denoiser.config.sample_size)

    @property
    def height(self) -> int:
        return self.latent_size[0] * self._factor

    @property
    def width(self) -> int:
        return self.latent_size[1] * self._factor

    # ------------------------------------------------------------------------------------------------ pixels, latents
    @torch.no_grad()
    def encode(self, frames_BFHWC: np.ndarray | Tensor) -> Tensor:
        """uint8 (B, F, H, W, 3) -> latents (B, C, F, h, w): the posterior's mean, scaled. A photo has F = 1."""
        frames = torch.as_tensor(np.ascontiguousarray(frames_BFHWC))
        pictures = frames.flatten(0, 1).permute(0, 3, 1, 2)                          # (B F, 3, H, W)
        latents = [self.vae.encode(some.to(self.device, self.dtype) / 127.5 - 1).latent_dist.mean
                   for some in pictures.split(_CHUNK)]
        x = torch.cat(latents) * self.vae.config.scaling_factor
        return x.unflatten(0, frames.shape[:2]).transpose(1, 2).contiguous()

    @torch.no_grad()
    def decode(self, x: Tensor) -> np.ndarray:
        """latents (B, C, F, h, w) -> uint8 (B, F, H, W, 3)."""
        cells = x.transpose(1, 2).flatten(0, 1).to(self.device, self.dtype) / self.vae.config.scaling_factor
        pictures = torch.cat([self.vae.decode(some).sample.float().cpu() for some in cells.split(_CHUNK)])
        frames = ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
        return frames.unflatten(0, (len(x), -1)).contiguous().numpy()

    # --------------------------------------------------------------------------------------------------------- text
    def embed(self, prompts: Sequence[str], tokens: Mapping[str, Tensor] | None = None) -> Tensor:
        """Prompts -> text vectors (B, L, D); "" is the unconditional prompt.

        tokens: {"<toy>": (n, width)}: where a prompt says <toy>, these n rows stand in for looked-up token embeddings.
        Neither tokenizer nor encoder changes, and gradients flow into the given rows.
        """
        tokens = tokens or {}
        counts = {name: len(rows) for name, rows in tokens.items()}
        laid = [self._lay_out(prompt, counts) for prompt in prompts]
        ids_BL = torch.tensor([text.ids for text in laid], device=self.device)
        places = [(row, at, tokens[name]) for row, text in enumerate(laid) for name, at in text.placeholders]
        with _rows_replaced(self.text_encoder.get_input_embeddings(), places):
            return self.text_encoder(ids_BL).last_hidden_state

    def positions(self, prompt: str, tokens: Mapping[str, Tensor] | Iterable[str] = ()) -> list[tuple[str, range]]:
        """Each whitespace word of the prompt, without the punctuation around it -> its positions in L.

        tokens: as for `embed`; names alone stand for tokens of one vector. A word of punctuation only, or one that
        lies beyond the last position, has an empty range.
        """
        counts = {name: len(tokens[name]) if isinstance(tokens, Mapping) else 1 for name in tokens}
        return self._lay_out(prompt, counts).words

    def word_embedding(self, word: str) -> Tensor:
        """The frozen embedding rows of a plain word or phrase, (n, width): where learned tokens start from."""
        ids = self.tokenizer(word, add_special_tokens=False).input_ids
        return self.text_encoder.get_input_embeddings().weight[ids].detach().clone()

    @property
    def _text_length(self) -> int:
        return min(self.tokenizer.model_max_length, self.text_encoder.config.max_position_embeddings)

    def _lay_out(self, prompt: str, counts: Mapping[str, int]) -> _Text:
        """counts: how many vectors each placeholder has.

        The prompt is cut at its placeholders; what lies between is tokenized as the tokenizer would. At a placeholder
        the start token's id stands once per vector; its embedding is what `embed` replaces. Each token's character
        offsets tell which whitespace word it belongs to.
        """
        tokenizer, length = self.tokenizer, self._text_length
        ids, chars, placeholders = [tokenizer.bos_token_id], [(-1, -1)], []          # chars: (from, to) of each token
        for start, stop in _pieces(prompt, counts):
            if (piece := prompt[start:stop]) in counts:
                placeholders.append((piece, range(len(ids), len(ids) + counts[piece])))
                ids += [tokenizer.bos_token_id] * counts[piece]
                chars += [(start, stop)] * counts[piece]
                if len(ids) > length - 1:
                    raise BadInput(f"the prompt '{prompt}' leaves no room for {piece}: the text encoder reads {length} "
                                   "tokens", "write it shorter")
            else:
                found = tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
                ids += found.input_ids
                chars += [(start + a, start + b) for a, b in found.offset_mapping]
        ids, chars = ids[:length - 1], chars[:length - 1]
        words = []
        for match in re.finditer(r"\S+", prompt):
            name, start, stop = _bare(match[0], match.start(), counts)
            inside = [at for at, (a, b) in enumerate(chars) if start <= a and b <= stop]
            words.append((name, range(inside[0], inside[-1] + 1) if inside else range(0)))
        ids += [tokenizer.eos_token_id]
        return _Text(ids + [tokenizer.pad_token_id] * (length - len(ids)), words, placeholders)

    # ------------------------------------------------------------------------------------------------------ denoising
    def predict(self, x: Tensor, t: int | Tensor, vectors: Tensor) -> Tensor:
        """x (B, C, F, h, w), t an int or (B,), vectors (B, L, D) -> what the network says (see `predicts`), shape and
        dtype of x: latents may be kept in float32 while the network computes in half precision."""
        out = self.denoiser(x.to(self.dtype), t, encoder_hidden_states=vectors.to(self.dtype)).sample
        return out.to(x.dtype)

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


@dataclass(frozen=True)
class _Text:
    """A prompt as the text encoder reads it. ids: L token ids. words: its whitespace words and their positions in L.
    placeholders: the learned tokens in it and theirs."""

    ids: list[int]
    words: list[tuple[str, range]]
    placeholders: list[tuple[str, range]]


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


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _pieces(prompt: str, names: Iterable[str]) -> list[tuple[int, int]]:
    """Cut a prompt at the placeholders it names: (start, stop) of each placeholder and of what lies between."""
    longest_first = sorted(names, key=len, reverse=True)
    if not longest_first:
        return [(0, len(prompt))]
    cuts, at = [], 0
    for match in re.finditer("|".join(map(re.escape, longest_first)), prompt):
        cuts += [(at, match.start()), match.span()]
        at = match.end()
    return [(start, stop) for start, stop in [*cuts, (at, len(prompt))] if start < stop]


def _bare(word: str, offset: int, names: Iterable[str]) -> tuple[str, int, int]:
    """A whitespace word -> (name, start, stop): the placeholder in it, or the word without punctuation around it."""
    for name in sorted(names, key=len, reverse=True):
        if (at := word.find(name)) >= 0:
            return name, offset + at, offset + at + len(name)
    bare = re.sub(r"^\W+|\W+$", "", word)
    start = offset + (word.index(bare) if bare else 0)
    return bare or word, start, start + len(bare)


@contextmanager
def _rows_replaced(embedding: nn.Module, places: Sequence[tuple[int, range, Tensor]]) -> Iterator[None]:
    """Inside, the embedding's output (B, L, width) holds the given (n, width) rows at (row of B, n positions of L)."""
    def on_output(module: nn.Module, args: tuple, looked_up: Tensor) -> Tensor:
        out = looked_up.clone()
        for row, at, vectors in places:
            out[row, at.start:at.stop] = vectors.to(out)
        return out

    handle = embedding.register_forward_hook(on_output)
    try:
        yield
    finally:
        handle.remove()
