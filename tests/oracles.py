"""Slow, obvious versions of what the project computes cleverly. Nothing here calls the code under test: LoRAs are
merged into copies of the model, attention is written out, a branch is a model of its own and a prompt a forward of its
own. Meant for float64.
"""
from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch


def random_lora(model, targets, rank=2, alpha=3.0, seed=0, scale=0.2):
    """A LoRA whose change is not small, in the model's precision."""
    from stages.core.lora import Lora

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in targets:
        weight = model.get_submodule(name).weight
        a = torch.randn(rank, weight.shape[1], generator=generator, dtype=torch.float64)
        b = torch.randn(weight.shape[0], rank, generator=generator, dtype=torch.float64)
        tensors[f"{name}.lora_A.weight"] = (a * scale).to(weight)
        tensors[f"{name}.lora_B.weight"] = (b * scale).to(weight)
    return Lora(tensors, alpha=alpha, rank=rank)


def merged(model, lora):
    """A copy of the model with W + (alpha / r) B A in place of W."""
    model = copy.deepcopy(model)
    if lora is not None:
        for key, b in lora.tensors.items():
            if key.endswith(".lora_B.weight"):
                name = key.removesuffix(".lora_B.weight")
                a = lora.tensors[f"{name}.lora_A.weight"]
                layer = model.get_submodule(name)
                layer.weight = torch.nn.Parameter(layer.weight + lora.alpha / lora.rank * (b @ a), requires_grad=False)
    return model


@dataclass
class WrittenOut:
    """An attention processor that spells the formula out and keeps its probabilities, head by head."""

    kept: list = field(default_factory=list)

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **unused):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        q, k, v = attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)
        width = q.shape[-1] // attn.heads
        maps, outputs = [], []
        for head in range(attn.heads):
            part = slice(head * width, (head + 1) * width)
            scores = torch.einsum("bnd,bmd->bnm", q[..., part], k[..., part]) / width**0.5
            weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
            maps.append(weights)
            outputs.append(torch.einsum("bnm,bmd->bnd", weights, v[..., part]))
        self.kept[:] = [torch.stack(maps, 1)]
        return attn.to_out[0](torch.cat(outputs, -1))


def written_out(model):
    """Give every attention layer of the model a WrittenOut -> {name: processor}."""
    processors = {}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in ("attn1", "attn2"):
            processors[name] = WrittenOut()
            module.set_processor(processors[name])
    return processors


def schedule(backbone, t):
    """a_t as a float; past the end of the schedule the scheduler's final one."""
    return float(backbone.alphas_cumprod[t]) if t >= 0 else backbone.final_alpha


def as_noise(backbone, output, x, t):
    """eps from what the network says: itself, or a^0.5 v + (1 - a)^0.5 x."""
    a = schedule(backbone, t)
    return output if backbone.predicts == "epsilon" else a**0.5 * output + (1 - a) ** 0.5 * x


def step(backbone, x, eps, t, t_prev):
    """Song et al. 2021, eq. 12 with sigma = 0."""
    a, a_prev = schedule(backbone, t), schedule(backbone, t_prev)
    return a_prev**0.5 * (x - (1 - a) ** 0.5 * eps) / a**0.5 + (1 - a_prev) ** 0.5 * eps


def attention_losses(kept_s, kept_m, words_s, words_m, cross, time):
    """Lines 7 and 8, as means over elements and then over (site, word) pairs and over sites. No gradient is stopped."""
    spatial = []
    for word_s, word_m in zip(words_s, words_m):
        for site in cross:
            m_s = sum(kept_s[site].kept[0][:, :, :, at] for at in word_s).mean(1)
            m_m = sum(kept_m[site].kept[0][:, :, :, at] for at in word_m).mean(1)
            spatial.append(((m_s - m_m) ** 2).mean())
    temporal = [((kept_s[site].kept[0] - kept_m[site].kept[0]) ** 2).mean() for site in time]
    return sum(spatial) / len(spatial), sum(temporal) / len(temporal)


def algorithm_1(backbone, lora_s, lora_m, x_T, subject, motion, *, steps, tau, guidance, alpha_s, alpha_m, beta_s,
                beta_m, cross, time, motion_steps=None, guidance_motion=None, guidance_steps=None, guide_every=1):
    """Algorithm 1 word for word: two merged models, full forwards, one prompt at a time, the gradient through the
    whole graph. cross, time: names of the watched layers. alpha_s, alpha_m: as applied, not rescaled. Ours: a branch
    may be guided away from the base, from where it stands or ("shared") from x as it was; after motion_steps the
    subject branch goes on alone; the motion branch may have a guidance of its own; after guidance_steps there is none;
    every guide_every-th step is guided, as hard as the steps together for which it stands."""
    scale = {"s": guidance, "m": guidance if guidance_motion is None else guidance_motion}
    nets = {"s": merged(backbone.denoiser, lora_s), "m": merged(backbone.denoiser, lora_m)}
    kept = {key: written_out(net) for key, net in nets.items()}
    texts = {"s": subject, "m": motion}

    def noise(key, x, t):
        net = nets[key] if texts[key].unconditional == "own" else backbone.denoiser
        at = x_now if texts[key].unconditional == "shared" else x
        uncond = as_noise(backbone, net(at, t, texts[key].vectors_uncond).sample, at, t)
        cond = nets[key](x, t, texts[key].vectors_cond).sample      # last: the kept maps are the conditional ones
        much = scale[key] if guidance_steps is None or index < guidance_steps else 1
        return uncond + much * (as_noise(backbone, cond, x, t) - uncond)

    losses = []
    timesteps = backbone.timesteps(steps).tolist()
    x = x_T
    for index, t in enumerate(timesteps):                                            # line 1
        x_now, x_sub, x_mot = x, x.clone().requires_grad_(), x.clone().requires_grad_()                 # line 2
        eps_sub, eps_mot = noise("s", x_sub, t), noise("m", x_mot, t)                # lines 3, 4
        if index < tau and index % guide_every == 0:                                 # line 5
            words = (subject.words, motion.words)
            l_s_to_m, l_m_to_s = attention_losses(kept["s"], kept["m"], *words, cross, time)         # lines 7, 8
            (g_sub,) = torch.autograd.grad(l_m_to_s, x_sub, retain_graph=True)
            (g_mot,) = torch.autograd.grad(l_s_to_m, x_mot)
            losses.append((float(l_s_to_m.detach()), float(l_m_to_s.detach())))
            hard = sum(1 for other in range(index, tau) if other // guide_every == index // guide_every)
            x_sub, x_mot = x_sub.detach() - hard * alpha_s * g_sub, x_mot.detach() - hard * alpha_m * g_mot   # 9, 10
            with torch.no_grad():
                eps_sub, eps_mot = noise("s", x_sub, t), noise("m", x_mot, t)        # line 11
        t_prev = timesteps[index + 1] if index + 1 < len(timesteps) else -1
        eps_t = beta_s * eps_sub + beta_m * eps_mot                                  # line 12
        if motion_steps is not None and index >= motion_steps:
            eps_t = noise("s", x, t)
        x = step(backbone, x, eps_t.detach(), t, t_prev)
    return x, losses


def plain_sampling(backbone, x_T, vectors_cond, vectors_uncond, *, steps, guidance):
    """Classifier-free-guided DDIM of one model, as every pipeline does it: "" and the prompt in a batch of two."""
    from stages.core.noise import ddim_step, to_eps

    timesteps = backbone.timesteps(steps).tolist()
    x = x_T
    for t, t_prev in zip(timesteps, [*timesteps[1:], -1]):
        with torch.no_grad():
            both = backbone.denoiser(torch.cat([x, x]), t, torch.cat([vectors_uncond, vectors_cond])).sample
        uncond, cond = both[:1], both[1:]
        eps = to_eps(uncond + guidance * (cond - uncond), x, t, backbone.alphas_cumprod, backbone.predicts)
        x = ddim_step(x, eps, t, t_prev, backbone.alphas_cumprod, final_alpha=backbone.final_alpha)
    return x


def state_of(model):
    """Everything of a model that a scope could leave changed: weights, names, requires_grad, hooks, adapters."""
    return ({name: value.clone() for name, value in model.state_dict().items()},
            [(name, type(module).__name__, len(module._forward_hooks), len(module._forward_pre_hooks))
             for name, module in model.named_modules()],
            {name: p.requires_grad for name, p in model.named_parameters()}, hasattr(model, "peft_config"))


def assert_same_state(before, after):
    assert before[1:] == after[1:]
    assert before[0].keys() == after[0].keys()
    assert all(torch.equal(value, after[0][name]) for name, value in before[0].items())
