"""The sprites AutoencoderKL: trained on the world's frames and on foreign patterns, then its latents centred."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor

from ..core.report import Report
from ..core.train import fit
from .corpus import corpus
from .optim import MuonAdamW
from .sizes import Size


def new_vae(size: Size) -> AutoencoderKL:
    return AutoencoderKL(down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
                         block_out_channels=size.vae_widths, layers_per_block=1, norm_num_groups=8,
                         latent_channels=size.latent, sample_size=size.pixels, mid_block_add_attention=False)


def to_tensor(pictures_NHWC: np.ndarray) -> Tensor:
    """uint8 (N, H, W, 3) -> float32 (N, 3, H, W) in -1..1."""
    return torch.from_numpy(np.array(pictures_NHWC)).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_vae(size: Size, folder: Path, *, seed: int, steps: int, workers: int, device: str, report: Report,
              start: AutoencoderKL | None = None, pictures: int = 16000, batch: int = 32) -> AutoencoderKL:
    """Mean square error + a little L1 and KL; the learning rate falls to nothing at the end."""
    torch.manual_seed(seed)
    vae = (start or new_vae(size)).to(device).float().train()
    frames, _, _ = corpus(folder, "pictures", size.name, 1, pictures, seed=3, workers=workers, foreign=True)

    def losses_at(step: int, generator: torch.Generator) -> dict[str, Tensor]:
        pick = torch.randint(len(frames), (batch,), generator=generator).numpy()
        x = to_tensor(frames[np.sort(pick), 0]).to(device)
        posterior = vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
        y = vae.decode(posterior.mean + posterior.std * noise).sample
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        mse = F.mse_loss(y, x)
        return dict(loss=mse + 0.1 * F.l1_loss(y, x) + 2e-5 * kl, mse=mse, kl=kl)

    fit(dict(vae.named_parameters()), losses_at, optimizer=MuonAdamW(vae.parameters(), lr=0.01, adam_lr=2e-3,
        adam=[vae.decoder.conv_out.weight, vae.decoder.conv_out.bias]), steps=steps, seed=seed,
        checkpoints=folder / "vae", identity=f"vae-{size.name}-{steps}-{seed}", report=report,
        rate=lambda step: min(1.0, step / 50) * min(1.0, 2.0 * (1 - step / steps)))
    vae.eval()
    centre_latents(vae, to_tensor(frames[:2000, 0]).to(device))
    return vae


@torch.no_grad()
def centre_latents(vae: AutoencoderKL, pictures: Tensor) -> None:
    """Give the latents mean 0 per channel and deviation 1 overall. A shift per channel is not in the config of
    AutoencoderKL, so it is folded into the layers on both sides of the latent (quant_conv, post_quant_conv)."""
    mean = torch.cat([vae.encode(p).latent_dist.mean for p in pictures.split(100)])
    shift = mean.mean((0, 2, 3))
    vae.quant_conv.bias[: len(shift)] -= shift
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ shift
    vae.register_to_config(scaling_factor=float(1 / (mean - shift[:, None, None]).std()))


@torch.no_grad()
def psnr(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of the reconstruction of each picture, dB, over the 8-bit range -> (N,)."""
    y = torch.cat([vae.decode(vae.encode(p).latent_dist.mean).sample.clamp(-1, 1) for p in pictures.split(100)])
    return 10 * torch.log10(4 / (y - pictures).square().mean((1, 2, 3)))
