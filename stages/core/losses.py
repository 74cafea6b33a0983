"""Every loss of the method, each a small pure function of tensors.

Shapes: B batch, C channels, F frames, h w latent cells. All squared norms are means over elements, so that a weight
means the same on every latent size (the paper leaves the reduction open: ours).
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as nnf
from torch import Tensor


def denoising(output_BCFhw: Tensor, target_BCFhw: Tensor, weight_B1Fhw: Tensor | None = None) -> Tensor:
    """E || eps_theta(x_t, c, t) - eps ||^2: the form of L_sub and L_reg (METHOD 2) and of textual inversion (Eq. 4).

    weight: share of each latent cell that counts (0..1); the mean is then over what counts.
    """
    wide = torch.promote_types(output_BCFhw.dtype, torch.float32)          # half precision is squared in float32
    square = (output_BCFhw.to(wide) - target_BCFhw.to(wide)) ** 2
    if weight_B1Fhw is None:
        return square.mean()
    weight = weight_B1Fhw.to(square).expand_as(square)
    return (square * weight).sum() / weight.sum().clamp_min(1e-8)


def subject(loss_sub: Tensor, loss_reg: Tensor, lambda1: float) -> Tensor:
    """L = L_sub + lambda1 L_reg (METHOD 2); lambda1 = 0.25 in the paper (Table 3a)."""
    return loss_sub + lambda1 * loss_reg


def motion(output_BCFhw: Tensor, apfree_BCFhw: Tensor) -> Tensor:
    """L_mot = E || eps_theta_m(x_t, c_m, t) - eps_apfree ||^2 (METHOD 3); the target: core.noise.appearance_free."""
    return denoising(output_BCFhw, apfree_BCFhw)


def fusion(student_BCFhw: Tensor, teacher_BCFhw: Tensor) -> Tensor:
    """L_fusion = 1/N sum_n E || eps_theta_s^(x_n, c_n, t) - eps_theta_s,n(x_n, c_n, t) ||^2 (METHOD 4).

    The batch holds every subject n equally often: the mean over rows is the 1/N sum. No gradient to the teacher.
    """
    return denoising(student_BCFhw, teacher_BCFhw.detach())


def attention(maps: Sequence[Sequence[Tensor]], masks_BFHW: Sequence[Tensor]) -> Tensor:
    """L_attn = 1/2 sum_{i=1,2} || M_SCA,i - M_i ||^2 (METHOD 4); of more than two subjects the mean as well (ours).

    maps[i]: for each watched site the spatial cross-attention map of token <sub_i>, (B, F, h, w), of any h and w.
    masks_BFHW[i]: what is visible of subject i, 0..1; each site compares with the share of its cells that M_i covers.
    Mean over cells and sites, so that no site outvotes another (ours).
    """
    per_subject = [torch.stack([((site - cover(mask, site.shape[-2:]).to(site)) ** 2).mean() for site in sites]).mean()
                   for sites, mask in zip(maps, masks_BFHW)]
    return torch.stack(per_subject).mean()


def total_fusion(loss_fusion: Tensor, loss_attn: Tensor, lambda2: float) -> Tensor:
    """L = L_fusion + lambda2 L_attn (METHOD 4); lambda2 = 0.6 in the paper (Table 3b)."""
    return loss_fusion + lambda2 * loss_attn


def cover(mask_BFHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Share of each of size = (h, w) cells that the mask covers: (B, F, H, W), bool or 0..1 -> (B, F, h, w) float."""
    share = mask_BFHW if mask_BFHW.is_floating_point() else mask_BFHW.float()
    return nnf.adaptive_avg_pool2d(share, tuple(size))
