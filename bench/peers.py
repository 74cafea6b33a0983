"""What others would run in this method's place: bare loops, rebuilt from published descriptions, on our bases.

    train_lora       a LoRA as diffusers' training examples learn it: MSE, PEFT, AdamW, no clipping
    train_director   MotionDirector (Zhao et al. 2023): a spatial and a temporal LoRA, two losses, two backwards a step
    sample_plain     a guided video as diffusers' pipelines draw it: "" and the prompt in a batch of two, DDIMScheduler
    sample_naively   Algorithm 1 as one would write it down from the paper: adapters switched by name, a forward for
                     each prompt, every map kept, the gradient through the whole graph

Each loop works on a copy of the denoiser, and reports after every step. Legend: x latents (B, C, F, h, w).
"""
from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from stages.backbones.unet3d import UNet3D
from stages.core.attention import choose
from stages.core.collaborate import Branch, scaled
from stages.core.lora import Lora
from stages.core.report import Report, silent

RATE = 5e-4                                                                  # MotionDirector's


def scheduler_of(backbone: UNet3D) -> DDIMScheduler:
    return DDIMScheduler.from_config(backbone._scheduler.config)


def adapted(network: nn.Module, name: str, targets: Sequence[str], rank: int, alpha: float,
            start: Lora | None = None) -> list[LoraLayer]:
    """Give a network an adapter -> the layers that hold it."""
    pattern = "|".join(target.replace(".", r"\.") for target in targets)
    with warnings.catch_warnings():                                 # of a second adapter, which is what is meant
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=pattern), network,
                                adapter_name=name)
    if start is not None:
        set_peft_model_state_dict(network, dict(start.tensors), adapter_name=name)
    return [network.get_submodule(target) for target in targets]


def _parameters(layers: Sequence[LoraLayer]) -> list[nn.Parameter]:
    return [p for layer in layers for name, p in layer.named_parameters() if "lora_" in name]


@dataclass
class Noised:
    """A clip with fresh noise at a random step, and what the network shall say."""

    x: Tensor
    t: Tensor
    wanted: Tensor


def noised(scheduler: DDIMScheduler, x0: Tensor) -> Noised:
    noise, t = torch.randn_like(x0), torch.randint(scheduler.config.num_train_timesteps, (len(x0),))
    wanted = noise if scheduler.config.prediction_type == "epsilon" else scheduler.get_velocity(x0, noise, t)
    return Noised(scheduler.add_noise(x0, noise, t), t, wanted)


def train_lora(backbone: UNet3D, x0: Tensor, vectors: Tensor, *, steps: int, rank: int, rate: float = 1e-4,
               report: Report = silent) -> nn.Module:
    """The temporal LoRA of `learn-motion`, without any of its own ideas -> the network with its adapter."""
    network, scheduler = copy.deepcopy(backbone.denoiser), scheduler_of(backbone)
    layers = adapted(network, "default", backbone.targets("motion"), rank, rank)
    optimizer = torch.optim.AdamW(_parameters(layers), lr=rate)
    for step in range(steps):
        row = noised(scheduler, x0)
        said = network(row.x, row.t, encoder_hidden_states=vectors.expand(len(x0), -1, -1)).sample
        loss = F.mse_loss(said.float(), row.wanted.float())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        report(step=step + 1, loss=loss.detach().item())
    return network


# -- MotionDirector --------------------------------------------------------------------------------------------------
def debiased(eps: Tensor, anchor: int, beta: float = 1.0) -> Tensor:
    """phi(e_i) = sqrt(beta^2 + 1) e_i - beta e_anchor, of every frame i: what two frames share is taken out."""
    return (beta**2 + 1) ** 0.5 * eps - beta * eps[:, :, anchor:anchor + 1]


def train_director(backbone: UNet3D, x0: Tensor, vectors: Tensor, *, steps: int, rank: int, report: Report = silent
                   ) -> nn.Module:
    """Dual-path LoRAs. Spatial: self-attention and feed-forward of the spatial transformers, on one random frame, the
    temporal ones off. Temporal: all of the temporal transformers, on the whole clip, the spatial ones on but not
    trained; its loss is MSE(e', e) + MSE(phi(e'), phi(e))."""
    network, scheduler = copy.deepcopy(backbone.denoiser), scheduler_of(backbone)
    looks = [name for name in backbone.targets("subject") if ".attn2." not in name]
    paths = {who: adapted(network, who, names, rank, rank)
             for who, names in (("spatial", looks), ("temporal", backbone.targets("motion")))}
    for who, layers in paths.items():
        for layer in layers:
            layer.set_adapter(who)                              # the second injection has made its own the active one
    learned = {who: _parameters(layers) for who, layers in paths.items()}
    optimizers = {who: torch.optim.AdamW(parameters, lr=RATE) for who, parameters in learned.items()}

    def say(row: Noised, who: str) -> Tensor:
        for name, parameters in learned.items():
            for parameter in parameters:
                parameter.requires_grad_(name == who)
        for layer in paths["temporal"]:
            layer._disable_adapters = who == "spatial"
        return network(row.x, row.t, encoder_hidden_states=vectors.expand(len(row.x), -1, -1)).sample

    for step in range(steps):
        for optimizer in optimizers.values():
            optimizer.zero_grad()
        row, frame = noised(scheduler, x0), int(torch.randint(x0.shape[2], ()))
        one = Noised(row.x[:, :, frame:frame + 1], row.t, row.wanted[:, :, frame:frame + 1])
        spatial = F.mse_loss(say(one, "spatial").float(), one.wanted.float())
        spatial.backward()
        said, anchor = say(row, "temporal").float(), int(torch.randint(x0.shape[2], ()))
        temporal = F.mse_loss(said, row.wanted.float())
        temporal = temporal + F.mse_loss(debiased(said, anchor), debiased(row.wanted.float(), anchor))
        temporal.backward()
        for optimizer in optimizers.values():
            optimizer.step()
        report(step=step + 1, spatial=spatial.item(), loss=temporal.item())
    return network


# -- sampling --------------------------------------------------------------------------------------------------------
@torch.no_grad()
def sample_plain(backbone: UNet3D, x_T: Tensor, branch: Branch, *, steps: int, guidance: float,
                 report: Report = silent) -> Tensor:
    """x_T -> x_0 of the base under the branch's prompt."""
    scheduler, network = scheduler_of(backbone), backbone.denoiser
    scheduler.set_timesteps(steps)
    vectors, x = torch.cat([branch.vectors_uncond, branch.vectors_cond]), x_T * scheduler.init_noise_sigma
    for step, t in enumerate(scheduler.timesteps):
        both = scheduler.scale_model_input(torch.cat([x, x]), t)
        uncond, cond = network(both, t, encoder_hidden_states=vectors).sample.chunk(2)
        x = scheduler.step(uncond + guidance * (cond - uncond), t, x).prev_sample
        report(step=step + 1)
    return x


@dataclass
class _Keeping:
    """An attention processor that writes the probabilities out and keeps them."""

    kept: list[Tensor] = field(default_factory=list)

    def __call__(self, attn: nn.Module, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
                 attention_mask: Tensor | None = None, **unused: object) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = (attn.head_to_batch_dim(part) for part in
                   (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)))
        probabilities = attn.get_attention_scores(q, k, attention_mask)               # (R A, n, m)
        self.kept[:] = [probabilities.unflatten(0, (-1, attn.heads))]
        return attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(probabilities @ v)))


def sample_naively(backbone: UNet3D, x_T: Tensor, loras: Mapping[str, Lora], subject: Branch, motion: Branch, *,
                   steps: int, tau: int, guidance: float, alpha: float, layers: str = "all", report: Report = silent
                   ) -> Tensor:
    """Algorithm 1, x_T -> x_0. loras: by the names of the branches' rows. alpha: alpha_t as `sample` takes it."""
    network, scheduler = copy.deepcopy(backbone.denoiser), scheduler_of(backbone)
    for name, lora in loras.items():
        adapted(network, name, lora.modules, lora.rank, lora.alpha, lora)
    network.requires_grad_(False)
    adapters = [module for module in network.modules() if isinstance(module, LoraLayer)]
    keeping = {}
    for site in [*choose(backbone.sites, layers, "cross", "space"), *choose(backbone.sites, layers, "self", "time")]:
        keeping[site] = _Keeping()
        network.get_submodule(site.name).set_processor(keeping[site])

    def noise(branch: Branch, x: Tensor, t: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """(eps, M_SCA of each word, M_TSA): lines 3 and 4."""
        for layer in adapters:
            layer.set_adapter(branch.row)
        network.requires_grad_(False)                                    # set_adapter has turned it on
        uncond = network(x, t, encoder_hidden_states=branch.vectors_uncond).sample
        cond = network(x, t, encoder_hidden_states=branch.vectors_cond).sample
        words = [keep.kept[0].mean(1)[..., list(word)].sum(-1) for word in branch.words
                 for site, keep in keeping.items() if site.kind == "cross"]
        times = [keep.kept[0] for site, keep in keeping.items() if site.axis == "time"]
        return uncond + guidance * (cond - uncond), words, times

    scheduler.set_timesteps(steps)
    x, strength = x_T, scaled(alpha, x_T)
    for step, t in enumerate(scheduler.timesteps):
        x_sub, x_mot = (x.detach().clone().requires_grad_(step < tau) for _ in range(2))
        with torch.set_grad_enabled(step < tau):
            (eps_sub, words_s, times_s), (eps_mot, words_m, times_m) = noise(subject, x_sub, t), noise(motion, x_mot, t)
            if step < tau:                                                                           # lines 5 to 11
                to_motion = torch.stack([F.mse_loss(m, s.detach()) for s, m in zip(words_s, words_m)]).mean()
                to_subject = torch.stack([F.mse_loss(s, m.detach()) for s, m in zip(times_s, times_m)]).mean()
                (to_motion + to_subject).backward()
                x_sub, x_mot = x_sub.detach() - strength * x_sub.grad, x_mot.detach() - strength * x_mot.grad
        if step < tau:
            with torch.no_grad():
                (eps_sub, *_), (eps_mot, *_) = noise(subject, x_sub, t), noise(motion, x_mot, t)
        eps = 0.5 * eps_sub + 0.5 * eps_mot                                                          # line 12
        if scheduler.config.prediction_type == "v_prediction":       # what is said of x_sub and x_mot, as said of x
            a = scheduler.alphas_cumprod[t]
            eps = eps + ((1 - a) / a) ** 0.5 * (0.5 * x_sub + 0.5 * x_mot - x)
        x = scheduler.step(eps.detach(), t, x).prev_sample                                           # line 13
        report(step=step + 1)
    return x
