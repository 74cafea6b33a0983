"""The three judges of the sprites world: CLIP (words and pictures), DINO (identities), CLIPSeg (masks from phrases).

python -m stages.sprites.train_judges --size small trains them into stages/sprites/weights (minutes of one core). Real
transformers classes with small configurations; a killed training goes on. judge_quality.py measures them.
"""
from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
)

from ..core.report import Report, silent
from ..core.train import fit
from ..core.vision import Preparation
from .corpus import corpus
from .judge_data import identities, phrases
from .optim import MuonAdamW
from .sizes import MAX_WORDS, SIZES, Size
from .train_vae import to_tensor
from .words import make_tokenizer

WEIGHTS = Path(__file__).parent / "weights"
WIDTHS = {"small": (96, 4), "full": (160, 5)}            # width and layers of every tower
CELLS = 8                                                # a picture is CELLS x CELLS patches
IDENTITIES, VIEWS, EXAMPLES = 4000, 6, 16000             # rendered for dino and for clipseg
# pictures are reduced by exact means (Pillow's box filter) and brought to -1..1, as to_tensor does
PREPARATION = Preparation((32, 32), None, mean=(0.5,) * 3, std=(0.5,) * 3, resample=int(Image.Resampling.BOX))
STEPS = {"clip": 1200, "dino": 1000, "clipseg": 900}


@dataclass(frozen=True)
class Judge:
    """A trained judge; tokenizer: of the two that read."""

    model: nn.Module
    tokenizer: CLIPTokenizer | None = None

    def save(self, folder: Path) -> None:
        """float16 safetensors that load offline; `self` stays as it is."""
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder)
        type(self.model).from_pretrained(folder).half().save_pretrained(folder)
        side = getattr(self.model.config, "vision_config", self.model.config).image_size
        replace(PREPARATION, size=(side, side)).save(folder)
        if self.tokenizer:
            self.tokenizer.save_pretrained(folder)

    @classmethod
    def load(cls, kind: type, folder: Path) -> Judge:
        words = CLIPTokenizer.from_pretrained(folder) if (folder / "tokenizer_config.json").exists() else None
        return cls(kind.from_pretrained(folder).float().eval(), words)


def towers(size: Size, tokenizer: CLIPTokenizer) -> dict:
    """Configuration of the text and the vision tower, shared by CLIP and CLIPSeg (which starts from CLIP's weights)."""
    width, layers = WIDTHS[size.name]
    tower = dict(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
                 num_attention_heads=width // 16)
    text = dict(tower, num_hidden_layers=2, vocab_size=len(tokenizer), max_position_embeddings=MAX_WORDS,
                eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
                pad_token_id=tokenizer.pad_token_id, projection_dim=width)
    vision = dict(tower, image_size=size.pixels, patch_size=size.pixels // CELLS, projection_dim=width)
    return dict(text_config=text, vision_config=vision, projection_dim=width)


def new_clipseg(size: Size, tokenizer: CLIPTokenizer) -> CLIPSegForImageSegmentation:
    layers = WIDTHS[size.name][1]
    model = CLIPSegForImageSegmentation(CLIPSegConfig(
        **towers(size, tokenizer), extract_layers=[layers - 3, layers - 2, layers - 1], reduce_dim=96,
        decoder_num_attention_heads=6, decoder_intermediate_size=256))
    decoder = model.decoder      # the class draws these weights from N(0, 1): the phrase drowns in activations of 1000
    with torch.no_grad():
        scales = dict.fromkeys(decoder.reduces, 0.07) | {decoder.film_mul: 0.3, decoder.film_add: 0.3}
        for layer, scale in scales.items():
            layer.weight.normal_(std=scale / layer.in_features**0.5)
        decoder.film_mul.bias.fill_(1.0)
        decoder.transposed_convolution.weight.normal_(std=0.02)
    return model


def new_dino(size: Size) -> Dinov2Model:
    width, layers = WIDTHS[size.name]
    return Dinov2Model(Dinov2Config(hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 16,
                                    mlp_ratio=3, image_size=size.pixels, patch_size=size.pixels // CELLS))


def tokens_of(tokenizer: CLIPTokenizer, words: list[str]) -> Tensor:
    """-> int64 (B, L), padded to the longest."""
    return tokenizer(words, padding=True, truncation=True, max_length=MAX_WORDS, return_tensors="pt").input_ids


def roughen(pictures_NCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Soften and speckle half of the pictures, about as a decoder does: judges see decoded frames."""
    n = len(pictures_NCHW)
    soft = F.avg_pool2d(F.pad(pictures_NCHW, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    much, noise = (torch.rand(n, 1, 1, 1, generator=generator) * top for top in (0.6, 0.08))
    rough = pictures_NCHW.lerp(soft, much) + noise * torch.randn(pictures_NCHW.shape, generator=generator)
    return torch.where(torch.rand(n, 1, 1, 1, generator=generator) < 0.5, rough, pictures_NCHW)


def _optimize(model: nn.Module, losses_at, *, name: str, size: Size, folder: Path, seed: int, steps: int, rate: float,
              report: Report) -> None:
    """Muon on the matrices inside, AdamW on everything at the edge (embeddings, patches, heads of one output)."""
    edge = [p for key, p in model.named_parameters()
            if any(part in key for part in ("embedding", "logit_scale", "transposed", "token", "film"))]
    model.train()
    fit(dict(model.named_parameters()), losses_at, steps=steps, seed=seed, report=report, checkpoints=folder / name,
        optimizer=MuonAdamW(model.parameters(), lr=rate, adam_lr=1.5e-3, adam=edge),
        identity=f"{name}-{size.name}-{steps}-{seed}",
        rate=lambda step: min(1.0, (step + 1) / 50) * min(1.0, 1.6 * (1 - step / steps)))
    model.eval()


def train_clip(size: Size, folder: Path, *, seed: int, steps: int, workers: int, device: str, report: Report = silent,
               batch: int = 64) -> Judge:
    """Symmetric contrastive loss between frames of clips, photos and their captions (Radford et al., 2021)."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(size.vocabulary)
    model = CLIPModel(CLIPConfig(**towers(size, tokenizer))).to(device)
    clips = corpus(folder, "clips", size.name, size.frames, size.corpus_clips, seed=1, workers=workers)
    shots = corpus(folder, "photos", size.name, 1, size.corpus_photos, seed=2, workers=workers)

    def losses_at(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        rows, captions = [], []
        for (frames, _, facts), count in ((clips, batch * 3 // 4), (shots, batch // 4)):
            for n in torch.randint(len(frames), (count,), generator=generator).tolist():
                rows.append(frames[n, int(torch.randint(frames.shape[1], (), generator=generator))])
                captions.append(facts[n]["caption"])
        x = roughen(to_tensor(np.stack(rows)), generator).to(device)
        out = model(input_ids=tokens_of(tokenizer, captions).to(device), pixel_values=x)
        same = torch.tensor([[a == b for b in captions] for a in captions], dtype=torch.float, device=device)
        wanted = same / same.sum(1, keepdim=True)
        logits = out.logits_per_image
        return dict(loss=(F.cross_entropy(logits, wanted) + F.cross_entropy(logits.mT, wanted)) / 2)

    _optimize(model, losses_at, name="clip", size=size, folder=folder, seed=seed, steps=steps, rate=0.01, report=report)
    return Judge(model, tokenizer)


def train_dino(size: Size, folder: Path, *, seed: int, steps: int, workers: int, device: str, report: Report = silent,
               batch: int = 32, views: int = 3, temperature: float = 0.07) -> Judge:
    """Supervised contrastive loss (Khosla et al., 2020) over foreign identities: views of one are alike, of two not."""
    torch.manual_seed(seed)
    model = new_dino(size).to(device)
    pictures = identities(folder, size.pixels, IDENTITIES, VIEWS, seed=4, workers=workers)
    owner = torch.arange(batch, device=device).repeat_interleave(views)
    itself = torch.eye(batch * views, dtype=torch.bool, device=device)
    alike = (owner[:, None] == owner) & ~itself

    def losses_at(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        who = torch.randint(len(pictures), (batch,), generator=generator).tolist()
        rows = [pictures[n, k] for n in who for k in torch.randperm(VIEWS, generator=generator)[:views].tolist()]
        x = roughen(to_tensor(np.stack(rows)), generator).to(device)
        z = F.normalize(model(pixel_values=x).pooler_output, dim=-1)
        logits = (z @ z.mT / temperature).masked_fill(itself, -torch.inf)
        return dict(loss=-(F.log_softmax(logits, -1)[alike]).mean())

    _optimize(model, losses_at, name="dino", size=size, folder=folder, seed=seed, steps=steps, rate=0.01, report=report)
    return Judge(model)


def train_clipseg(size: Size, folder: Path, *, seed: int, steps: int, workers: int, device: str,
                  report: Report = silent, start: CLIPModel | None = None, batch: int = 32) -> Judge:
    """Binary cross-entropy and soft overlap (dice) of phrase masks; start: a trained CLIP whose towers it takes, and
    trains on: a small CLIP's patches do not tell colours apart well enough for a decoder alone to obey the phrase."""
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(size.vocabulary)
    model = new_clipseg(size, tokenizer).to(device)
    if start:
        model.clip.load_state_dict(start.state_dict())
    pictures, words, masks = phrases(folder, size.name, EXAMPLES, seed=5, workers=workers)

    def losses_at(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        pick = torch.randint(len(pictures), (batch,), generator=generator).tolist()
        x = roughen(to_tensor(pictures[pick]), generator).to(device)
        M = torch.from_numpy(masks[pick]).float().to(device)
        A = trained_logits(model, x, tokens_of(tokenizer, [words[n] for n in pick]).to(device))
        overlap = 2 * (A.sigmoid() * M).sum((1, 2)) + 1
        dice = 1 - (overlap / (A.sigmoid().sum((1, 2)) + M.sum((1, 2)) + 1)).mean()
        bce = F.binary_cross_entropy_with_logits(A, M)
        return dict(loss=bce + 0.5 * dice, bce=bce, dice=dice)

    _optimize(model, losses_at, name="clipseg", size=size, folder=folder, seed=seed, steps=steps, rate=0.006,
              report=report)
    return Judge(model, tokenizer)


def segment_logits(model: CLIPSegForImageSegmentation, pixels_BCHW: Tensor, ids_BL: Tensor) -> Tensor:
    """-> (B, H, W), one phrase a picture (the class drops the batch axis of one)."""
    return model(input_ids=ids_BL, pixel_values=pixels_BCHW).logits.reshape(-1, *pixels_BCHW.shape[-2:])


def trained_logits(model: CLIPSegForImageSegmentation, pixels_BCHW: Tensor, ids_BL: Tensor) -> Tensor:
    """segment_logits with gradients to the towers too, which the class's own forward shuts off."""
    hidden = model.clip.vision_model(pixel_values=pixels_BCHW, output_hidden_states=True).hidden_states
    phrase = model.clip.get_text_features(ids_BL).pooler_output
    logits = model.decoder([hidden[k + 1] for k in model.extract_layers], phrase).logits
    return logits.reshape(-1, *pixels_BCHW.shape[-2:])


def main(argv: list[str] | None = None) -> None:
    from .train import reporter  # here: it imports diffusers, which the judges do not need
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--only", nargs="+", choices=tuple(STEPS), default=tuple(STEPS))
    parser.add_argument("--steps", type=int, help="of each (default: STEPS)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/judges"), help="work folder")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="where the trained judges go")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes that render")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    makers: Mapping = dict(clip=train_clip, dino=train_dino, clipseg=train_clipseg)
    for name in args.only:
        more = dict(start=Judge.load(CLIPModel, args.weights / "clip").model) if name == "clipseg" else {}
        judge = makers[name](SIZES[args.size], args.out, seed=args.seed, steps=args.steps or STEPS[name],
                             workers=args.workers, device=args.device, report=reporter(name, args.out / "curves.json"),
                             **more)
        judge.model.cpu()
        judge.save(args.weights / name)


if __name__ == "__main__":
    main()
