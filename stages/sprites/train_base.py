"""The sprites text-to-video base: UNet3DConditionModel and CLIPTextModel trained together, from nothing, on captions.

Three things are not in the usual recipe: a term that makes an object's noun attend to its object (masks are known
here), a term that makes the network know the objects' paths, and captions whose verb nobody knows.
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..core.report import Report
from ..core.team import ALONE, Team
from ..core.train import fit
from .corpus import corpus
from .optim import MuonAdamW
from .sizes import MAX_WORDS, Size
from .train_vae import to_tensor

ATTENTION = 0.03          # weight of the attention term
PATHS = 0.5               # weight of the path term
DROP = 0.1                # share of captions replaced by the empty one, for classifier-free guidance
EMA = 0.997
WORD_NORM = 2.0           # length of a new word's embedding (CLIP's own 0.02 a channel lets rare words merge)


def new_models(size: Size, tokenizer: CLIPTokenizer) -> tuple[UNet3DConditionModel, CLIPTextModel]:
    unet = UNet3DConditionModel(
        sample_size=size.pixels // 4, in_channels=size.latent, out_channels=size.latent, layers_per_block=1,
        down_block_types=("CrossAttnDownBlock3D",) * 2, up_block_types=("CrossAttnUpBlock3D",) * 2,
        block_out_channels=size.unet_widths, norm_num_groups=16, cross_attention_dim=size.text_width,
        attention_head_dim=size.heads_width)
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=size.text_width, intermediate_size=4 * size.text_width,
        num_hidden_layers=size.text_layers, num_attention_heads=size.text_width // 24, hidden_act="gelu",
        max_position_embeddings=MAX_WORDS, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, projection_dim=size.text_width))
    for module in unet.modules():                  # a step of nothing at first: the network starts as its skip paths
        if type(module).__name__ in ("TransformerTemporalModel", "Transformer2DModel"):
            nn.init.zeros_(module.proj_out.weight)
            nn.init.zeros_(module.proj_out.bias)
    nn.init.zeros_(unet.conv_out.weight)
    nn.init.normal_(text.get_input_embeddings().weight, std=WORD_NORM * size.text_width**-0.5)
    return unet, text


@torch.no_grad()
def redraw_words(text: CLIPTextModel, tokenizer: CLIPTokenizer, words: list[str]) -> None:
    """Give words new embeddings, far from each other. For words that the text encoder has merged: before the U-Net can
    tell a direction, left and right are a nuisance that it learns to overlook, and afterwards nothing tells them apart.
    Raises ValueError for a word that is not one token."""
    table = text.get_input_embeddings().weight
    for word in words:
        ids = tokenizer(word, add_special_tokens=False).input_ids
        if len(ids) != 1:
            raise ValueError(f"'{word}' is {len(ids)} tokens, not one")
        table[ids[0]] = F.normalize(torch.randn_like(table[ids[0]]), dim=0) * WORD_NORM


def new_scheduler() -> DDIMScheduler:
    """Velocity prediction (Salimans & Ho 2022): at the noisiest steps it asks for the picture, which a small network
    learns sooner than the noise. Trailing spacing starts at the last step, where sampling and inversion must agree."""
    return DDIMScheduler(num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
                         clip_sample=False, set_alpha_to_one=False, steps_offset=1, prediction_type="v_prediction",
                         timestep_spacing="trailing")


@dataclass
class Examples:
    """Encoded corpus. latents fp16 (N, C, F, h, w); ids int64 (N, L); nouns int64 (N, 3), -1 where not named;
    covers uint8 (N, 3, F, h, w): how much of each cell each named object covers."""

    latents: Tensor
    ids: Tensor
    nouns: Tensor
    covers: Tensor


def noun_positions(tokenizer: CLIPTokenizer, caption: str, nouns: list[int]) -> list[int]:
    """Position, in the tokenized caption, of each noun's (last) token; -1 for an object that is not named."""
    ends = np.cumsum([len(tokenizer(word.rstrip("."), add_special_tokens=False).input_ids) for word in caption.split()])
    return [int(ends[n]) if n >= 0 and ends[n] < MAX_WORDS - 1 else -1 for n in nouns]


@torch.no_grad()
def encode_corpus(size: Size, vae: AutoencoderKL, tokenizer: CLIPTokenizer, folder: Path, name: str, frames: int,
                  count: int, seed: int, workers: int, device: str) -> Examples:
    """Render (or read) a corpus and encode it once; latents are kept beside it."""
    pictures, covers, facts = corpus(folder, name, size.name, frames, count, seed, workers, mixed=True)
    kept = folder / f"{name}-latents.npy"
    if not kept.exists():
        out = np.empty((count, size.latent, frames, size.pixels // 4, size.pixels // 4), np.float16)
        for lo in range(0, count, 64):
            batch = pictures[lo:lo + 64]
            x = vae.encode(to_tensor(batch.reshape(-1, *batch.shape[2:])).to(device)).latent_dist.mean
            x = (x * vae.config.scaling_factor).unflatten(0, (-1, frames)).transpose(1, 2)
            out[lo:lo + 64] = x.half().cpu().numpy()
        np.save(kept, out)
    captions = [fact["caption"] for fact in facts]
    ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    nouns = torch.tensor([noun_positions(tokenizer, f["caption"], f["nouns"]) for f in facts])
    return Examples(torch.from_numpy(np.load(kept)), ids, nouns, torch.from_numpy(np.array(covers)))


def corpora(size: Size, vae: AutoencoderKL, tokenizer: CLIPTokenizer, folder: Path, workers: int, device: str
            ) -> tuple[Examples, Examples]:
    """(clips, photos) of the training world, rendered from seeds 1 and 2 and encoded where they are not there yet."""
    return (encode_corpus(size, vae, tokenizer, folder, "clips", size.frames, size.corpus_clips, 1, workers, device),
            encode_corpus(size, vae, tokenizer, folder, "photos", 1, size.corpus_photos, 2, workers, device))


class NounMaps:
    """Reads q and k of the spatial cross-attentions during training and keeps only the nouns' maps."""

    def __init__(self, unet: UNet3DConditionModel) -> None:
        self.q: dict[str, Tensor] = {}
        self.maps: list[Tensor] = []
        self.nouns: Tensor | None = None
        for name, module in unet.named_modules():
            if name.endswith("attn2") and "temp" not in name and "transformer_in" not in name:
                module.to_q.register_forward_hook(lambda m, a, out, name=name: self.q.__setitem__(name, out))
                module.to_k.register_forward_hook(lambda m, a, out, name=name, heads=module.heads:
                                                  self._keep(self.q.pop(name), out, heads))

    def _keep(self, q: Tensor, k: Tensor, heads: int) -> None:
        if self.nouns is None:
            return
        q, k = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k))        # (B F, heads, tokens, width)
        maps = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1).mean(1)                   # (B F, h w, L)
        frames = len(maps) // len(self.nouns)
        at = self.nouns.clamp(min=0).repeat_interleave(frames, 0)[:, None].expand(-1, maps.shape[1], -1)
        self.maps.append(maps.gather(2, at).transpose(1, 2).unflatten(0, (-1, frames)))   # (B, F, 3, h w)


def attention_term(maps: list[Tensor], nouns: Tensor, covers: Tensor, weight: Tensor) -> Tensor:
    """-log of the share of a noun's attention that falls on its object; mean over the layers, the named objects and the
    frames where they are seen. covers: (B, 3, F, h, w) in 0..1; weight (B,): how much of the picture is left at t."""
    total = 0.0
    for A in maps:                                                                    # (B, F, 3, cells)
        side = int(A.shape[-1] ** 0.5)
        M = F.adaptive_avg_pool2d(covers.flatten(0, 1), side).unflatten(0, covers.shape[:2]).flatten(3).transpose(1, 2)
        seen = (M.sum(-1) > 0.02 * A.shape[-1]) & (nouns >= 0)[:, None]
        share = (A * M).sum(-1) / (A.sum(-1) * M.amax(-1).clamp(min=1e-3) + 1e-8)
        w = seen * weight[:, None, None]
        total = total - (w * share.clamp(min=1e-4).log()).sum() / w.sum().clamp(min=1e-3)
    return total / len(maps)


class Paths:
    """The path term: how badly a linear reading of the U-Net's inner blocks, pooled over space, tells of each frame
    where the named objects are, how far they go in the clip, and which frame it is.

    A direction is a product of three things that say nothing by themselves (the word, the frame's place in time, the
    side), and the denoising loss alone leaves a network on the plateau where each of them is zero: left and right even
    became one word. This term rewards each factor, and the path itself. Its heads are thrown away after training."""

    BLOCKS = ("down_blocks.1", "mid_block", "up_blocks.0")
    READ = 5                                          # x, y of the centre; x, y of the way; time

    def __init__(self, unet: UNet3DConditionModel) -> None:
        self.width = unet.config.block_out_channels[-1]
        self.heads = nn.ModuleList(nn.Linear(self.width, self.READ) for _ in self.BLOCKS).to(unet.device)
        for head in self.heads:
            nn.init.zeros_(head.weight)
        self.seen: list[Tensor] = []
        for name in self.BLOCKS:
            unet.get_submodule(name).register_forward_hook(
                lambda module, args, out: self.seen.append(out[0] if isinstance(out, tuple) else out))

    @staticmethod
    def targets(nouns: Tensor, covers: Tensor) -> tuple[Tensor, Tensor]:
        """-> what is to be read (B, F, 5), about of unit variance, and where an object is seen (B, F). Places are in
        fifths of the frame's width from its middle; the way is from the first frame to the last, in 0.4 of it; time
        runs from -1.5 to 1.5. nouns (B, 3), covers (B, 3, F, h, w) as in Examples; several objects: their centre."""
        mass = (covers * (nouns >= 0)[..., None, None, None]).sum(1)                               # (B, F, h, w)
        total, side, frames = mass.sum((2, 3)), mass.shape[-1], mass.shape[1]
        axis = ((torch.arange(side, device=mass.device) + 0.5) / side - 0.5) * 5
        centre = torch.stack([(mass.sum(2) * axis).sum(-1), (mass.sum(3) * axis).sum(-1)], -1)
        centre = centre / total[..., None].clamp(min=1e-3)
        way = (centre[:, -1:] - centre[:, :1]).expand_as(centre) * 0.5
        time = torch.linspace(-1.5, 1.5, frames, device=mass.device)[None, :, None].expand(len(mass), -1, 1)
        return torch.cat([centre, way, time], -1), total > 0.02 * side**2

    def term(self, nouns: Tensor, covers: Tensor) -> Tensor:
        """Mean squared error over the frames where an object is seen. Empties what the hooks kept."""
        wanted, seen = self.targets(nouns, covers)
        features, self.seen = self.seen, []
        pooled = [F.layer_norm(x.mean((-2, -1)).unflatten(0, seen.shape), (self.width,)) for x in features]
        errors = [((head(x) - wanted).square().mean(-1) * seen).sum() for head, x in zip(self.heads, pooled)]
        return sum(errors) / len(errors) / seen.sum().clamp(min=1)


class Objective:
    """What a step minimises: || v_theta(x_t, c, t) - v ||^2, and the two terms, on rows drawn from a corpus.

    t is drawn with a density proportional to t for photos, to t^2 for clips: shapes and places are decided at noisy
    steps, paths at the noisiest, where a network trained with uniform t had ten times the error of the middle ones."""

    def __init__(self, unet: UNet3DConditionModel, text: CLIPTextModel, tokenizer: CLIPTokenizer, device: str) -> None:
        self.unet, self.text, self.device = unet, text, device
        self.acp = new_scheduler().alphas_cumprod.to(device)
        self.empty = tokenizer([""], padding="max_length", return_tensors="pt").input_ids
        self.watcher = NounMaps(unet)
        self.paths = Paths(unet)

    def __call__(self, data: Examples, count: int, generator: torch.Generator, rows: Tensor | None = None,
                 noisiest: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """-> (denoising loss, attention term, path term) of `count` examples, drawn from `rows` of the corpus where
        given. noisiest: the share of the noise levels, from the top, that is drawn from."""
        among = len(data.latents) if rows is None else len(rows)
        pick = torch.randint(among, (count,), generator=generator)
        pick = pick if rows is None else rows[pick]
        x0 = data.latents[pick].float().to(self.device)
        power = 3 if x0.shape[2] > 1 else 2
        level = 1 - noisiest * (1 - torch.rand(count, generator=generator) ** (1 / power))
        t = (len(self.acp) * level).long()
        noise = torch.randn(x0.shape, generator=generator).to(self.device)
        drop = torch.rand(count, generator=generator) < DROP
        ids = torch.where(drop[:, None], self.empty, data.ids[pick]).to(self.device)
        nouns = torch.where(drop[:, None], -1, data.nouns[pick]).to(self.device)
        a = self.acp[t.to(self.device)].view(-1, 1, 1, 1, 1)
        x, v = a.sqrt() * x0 + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * x0
        self.watcher.maps, self.watcher.nouns, self.paths.seen = [], nouns, []
        out = self.unet(x, t.to(self.device), self.text(ids).last_hidden_state).sample
        covers = data.covers[pick].to(self.device).float() / 255
        attention = attention_term(self.watcher.maps, nouns, covers, a.flatten().sqrt())
        self.watcher.maps = []
        return F.mse_loss(out, v), attention, self.paths.term(nouns, covers)


def train_base(size: Size, folder: Path, vae: AutoencoderKL, tokenizer: CLIPTokenizer, *, seed: int, steps: int,
               workers: int, device: str, report: Report,
               start: tuple[UNet3DConditionModel, CLIPTextModel] | None = None,
               rate: float = 4e-3, photos_first: int = 0, singles: int = 0, team: Team = ALONE,
               save_every_seconds: float = 120.0):
    """-> (unet, text encoder) holding the moving average of the weights, and the curve. The first `photos_first` steps
    see photos only, three times as many (an eighth of the cost of a clip: words, shapes and places are learned there);
    later ones both. Of these, the first `singles` see clips of one object at the noisiest third of the levels: there a
    verb is all that tells a path."""
    torch.manual_seed(seed)
    unet, text = start or new_models(size, tokenizer)
    unet, text = unet.to(device).float().eval(), text.to(device).float().train()
    clips, photos = corpora(size, vae, tokenizer, folder, workers, device)
    objective = Objective(unet, text, tokenizer, device)
    single = ((clips.nouns >= 0).sum(1) == 1).nonzero()[:, 0]

    def losses_at(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        with_clips, one = step >= photos_first, step < photos_first + singles
        still, still_attention, _ = objective(photos, size.photos_per_step * (1 if with_clips else 3), generator)
        if not with_clips:
            return part(loss=still + ATTENTION * still_attention, photos=still, attention=still_attention)
        moving, attention, paths = objective(clips, size.clips_per_step, generator, rows=single if one else None,
                                             noisiest=1 / 3 if one else 1.0)
        loss = (0.4 * still + 0.6 * moving + ATTENTION * (0.4 * still_attention + 0.6 * attention) + PATHS * paths)
        return part(loss=loss, photos=still, clips=moving, attention=attention, paths=paths)

    def part(**losses: Tensor) -> dict[str, Tensor]:
        """Each process draws a batch of its own: what counts is their mean, and what fit takes is a sum."""
        return {name: value / team.size for name, value in losses.items()}

    named = {f"unet.{n}": p for n, p in unet.named_parameters()} | {f"text.{n}": p for n, p in text.named_parameters()}
    named |= {f"paths.{n}": p for n, p in objective.paths.heads.named_parameters()}
    average = {n: p.detach().clone() for n, p in named.items()}
    first = [unet.conv_in.weight, unet.conv_out.weight,
             *(p for n, p in named.items() if n.startswith("paths") or (n.startswith("text") and "embedding" in n))]

    def average_step(step: int) -> None:
        decay = min(EMA, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average.values()), [p.detach() for p in named.values()], 1 - decay)

    curve = fit(named, losses_at, optimizer=MuonAdamW(named.values(), lr=rate, adam_lr=rate / 2, adam=first),
                steps=steps, seed=seed + 1_000_003 * team.rank, checkpoints=folder / "base",
                identity=f"base-{size.name}-{steps}-{seed}-{team.size}", every_seconds=save_every_seconds,
                buffers=average, after_step=average_step, team=team, report=report,
                rate=lambda step: min(1.0, (step + 1) / 100) * min(1.0, (1 - step / steps) / 0.3))
    with torch.no_grad():
        for name, p in named.items():
            p.copy_(average[name])
    return unet.eval(), text.eval(), curve
