"""fuse: several subject LoRAs into one that keeps the subjects apart (METHOD 4).

    L_fusion = 1/N sum_n E || eps_theta_s^(x_n, c_n, t) - eps_theta_s,n(x_n, c_n, t) ||^2
    L_attn   = 1/2 sum_{i=1,2} || M_SCA,i - M_i ||^2          on CutMix compositions of two subjects
    L        = L_fusion + lambda2 L_attn + lambda_mix L_mix   from the exact mean of the subject LoRAs

x_n: videos sampled from subject n's own LoRA ("A <sub_n>"), which is also the teacher. Any N >= 2: the pair of L_attn
changes from step to step.

L_mix (**ours**, 0 in the paper) is the denoising loss of the composition under its prompt, "A <sub_i> and a <sub_j>".
L_fusion shows the student one subject at a time and L_attn only where to look: nothing else tells it that two may be
in one frame, each whole.

Legend: x latents (B, C, F, h, w); V videos of a subject, K compositions of a pair; L text tokens, D their width.
"""
from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from . import STAGES, segmenters
from .backbones import identity, load
from .backbones.unet3d import UNet3D as Backbone
from .core import losses
from .core.attention import run_until, watch, word_maps
from .core.cutmix import Cut, cutmix
from .core.denoise import draw, encode, gaussian, go_on, noised, pick, seed_of, sites_of
from .core.errors import BadInput, UsageError
from .core.lora import Lora, branches, load_tokens, mean, save, training
from .core.lora import load as load_lora
from .core.report import Report, asked_to_stop, silent
from .core.sheets import contact_sheet, overlay
from .core.train import fit, schedule
from .core.video import write_video
from .core.workspace import Artifact, Workspace, fused_name
from .options import FuseOptions
from .prompts import pair_prompt, placeholder, subject_prompt, token_span

SEEN = 0.5      # a training video counts for CutMix if its subject is found in at least this share of its frames


@dataclass(frozen=True)
class Teacher:
    """One subject: its token rows, its own LoRA, c_n (1, L, D), and x_n (V, C, F, h, w) sampled from that LoRA."""

    name: str
    token: Tensor
    lora: Lora
    vectors: Tensor
    latents: Tensor


@dataclass(frozen=True)
class Pair:
    """K CutMix compositions of two subjects in this order: latents (K, C, F, h, w); masks (K, 2, F, H, W), what is
    visible of each; vectors (1, L, D) of "A <i> and a <j>"; words: the token positions of <i> and of <j> in it."""

    latents: Tensor
    masks: Tensor
    vectors: Tensor
    words: tuple[range, range]


def fuse(project: Workspace, subjects: Sequence[str] | None = None, options: FuseOptions | None = None, *,
         device: str = "cpu", dtype: str = "fp32", seed: int = 0, force: bool = False,
         report: Report = silent) -> Artifact:
    """Fuse the LoRAs of two or more learned subjects (None: all of the project) -> lora.safetensors, videos/, preview.

    Raises UsageError for fewer than two, MissingPrerequisite where one has not been learned, BadInput where a subject
    is found in none of its own videos.
    """
    names = sorted(set(subjects if subjects is not None else project.subjects()))
    if len(names) < 2:
        raise UsageError(f"fuse needs two subjects or more, and was given {', '.join(names) or 'none'}",
                         "name them: videomage fuse --subjects toy dog; a single subject is sampled as it is")
    plan = project.plan(STAGES["fuse"], fused_name(names), options, seed=seed, base=identity(project.settings.base))
    if plan.state() and not force:
        return plan.artifact()
    with plan.making(report, force=force) as out:
        backbone, options = load(project.settings.base, device=device, dtype=dtype), plan.options
        teachers = []
        for name in names:
            token = load_tokens(plan.inputs[f"{name}/token"])[placeholder(name)].to(backbone.device)
            teachers.append(teacher(backbone, name, token, load_lora(plan.inputs[f"{name}/lora"]), options, seed=seed,
                                    cache=plan.checkpoints, report=report))
        finder = segmenters.load(options.segmenter, device=device, threshold=options.threshold)
        cuts = {t.name: cuts_of(backbone, t, finder, plan.request["subjects"][t.name], report) for t in teachers}
        pairs = compose_pairs(backbone, teachers, cuts, options, seed=seed)
        lora = fuse_loras(backbone, teachers, pairs, options, seed=seed, checkpoints=plan.checkpoints,
                          identity=plan.identity, report=report)
        save(lora, out / "lora.safetensors")
        (out / "videos").mkdir()
        for name, found in cuts.items():
            for v, cut in enumerate(found):
                write_video(out / "videos" / f"{name}-{v}.mp4", cut.frames, fps=backbone.fps)
        plan.facts["videos with their subject in sight"] = {name: len(found) for name, found in cuts.items()}
        contact_sheet(_preview(backbone, teachers, cuts, pairs, lora, options, seed), out / "fuse-preview.png")
    return plan.artifact()


def fuse_loras(backbone: Backbone, teachers: Sequence[Teacher], pairs: Sequence[Pair], options: FuseOptions, *,
               seed: int = 0, checkpoints: Path | None = None, identity: str = "", report: Report = silent) -> Lora:
    """Minimise L_fusion + lambda2 L_attn over one spatial LoRA, from the mean of the teachers' (rank N r) -> that LoRA.

    Student and teachers share one network: the fused LoRA is trained through PEFT, each teacher's is added by hooks to
    its own rows of the batch while the student's is off. No adapter is switched by name.
    """
    sites = sites_of(backbone, options.layers, "cross", "space")
    unet = backbone.denoiser
    names = [t.name for t in teachers for _ in range(options.batch)]
    c_n = torch.cat([t.vectors.expand(options.batch, -1, -1) for t in teachers])
    with training(unet, backbone.targets("subject"), seed=seed, start=mean([t.lora for t in teachers])) as own, \
            branches(unet, {t.name: t.lora for t in teachers}) as rows:

        def losses_at(step: int, generator: torch.Generator) -> dict[str, Tensor]:
            row = noised(backbone, torch.cat([t.latents[pick(len(t.latents), options.batch, generator)]
                                              for t in teachers]), generator)
            with torch.no_grad(), own.disabled():
                rows(names)
                wanted = backbone.predict(row.x, row.t, c_n)                             # eps_theta_s,n
            rows([None] * len(names))
            loss_fusion = losses.fusion(backbone.predict(row.x, row.t, c_n), wanted)     # L_fusion
            if options.lambda2 == 0 and options.lambda_mix == 0:
                return {"loss": loss_fusion}
            rows([None])
            on_pair = composition_losses(backbone, pairs[step % len(pairs)], sites, generator,
                                         whole=options.lambda_mix > 0)               # L_attn, L_mix
            loss = losses.total_fusion(loss_fusion, on_pair["L_attn"], options.lambda2)
            if options.lambda_mix:
                loss = loss + options.lambda_mix * on_pair["L_mix"]
            return {"loss": loss, "L_fusion": loss_fusion, **on_pair}

        optimizer = torch.optim.AdamW(own.values(), lr=options.rate, weight_decay=0.0)
        fit(own, losses_at, optimizer=optimizer, steps=options.steps, seed=seed, checkpoints=checkpoints,
            identity=identity, rate=schedule(options.schedule, options.steps), stop=asked_to_stop, report=report)
        return own.lora(subjects="+".join(t.name for t in teachers))


def composition_losses(backbone: Backbone, pair: Pair, sites: Sequence, generator: torch.Generator, *,
                       whole: bool) -> dict[str, Tensor]:
    """L_attn on one composition of a pair, noised at a random t; whole: L_mix as well. Without it the forward ends
    with the last watched layer."""
    k = pick(len(pair.latents), 1, generator)
    row = noised(backbone, pair.latents[k], generator)
    frames, *size = row.x.shape[2:]
    out: dict[str, Tensor] = {}

    def forward() -> None:
        out["L_mix"] = losses.denoising(backbone.predict(row.x, row.t, pair.vectors), row.target)

    with watch(backbone.denoiser, sites) as maps:
        forward() if whole else run_until(backbone.denoiser, sites[-1], forward)
    sca = [word_maps(maps, sites, words, frames, tuple(size)) for words in pair.words]   # M_SCA,i
    masks = [pair.masks[k, n].to(row.x) for n in (0, 1)]
    return {"L_attn": losses.attention(sca, masks), **(out if whole else {})}


# -- training videos -------------------------------------------------------------------------------------------------
def teacher(backbone: Backbone, name: str, token: Tensor, lora: Lora, options: FuseOptions, *, seed: int = 0,
            cache: Path | None = None, report: Report = silent) -> Teacher:
    """Sample the training videos of one subject from its own LoRA. cache: where they wait for a resumed run."""
    path = cache / f"videos-{name}.safetensors" if cache else None
    with torch.no_grad():
        vectors = backbone.embed([subject_prompt(name)], {placeholder(name): token})
    if path and path.is_file():
        return Teacher(name, token, lora, vectors, load_file(path)["latents"].to(backbone.device))
    videos = []
    for v in range(options.videos):
        go_on()
        x_T = gaussian(backbone, backbone.frames, seed_of(seed, name, v))
        videos.append(draw(backbone, subject_prompt(name), x_T, tokens={placeholder(name): token}, lora=lora,
                           steps=options.video_steps, guidance=options.guidance, unconditional=options.unconditional))
        report(step=v + 1, of=options.videos, drawing=name)
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({"latents": torch.cat(videos).cpu()}, partial := path.with_suffix(".partial"))
        partial.replace(path)
    return Teacher(name, token, lora, vectors, torch.cat(videos))


def cuts_of(backbone: Backbone, subject: Teacher, finder: segmenters.Segmenter, class_word: str,
            report: Report) -> list[Cut]:
    """The videos of one subject in which it was found, with its masks. Raises BadInput where there is none."""
    cuts = []
    for x in subject.latents:
        frames = backbone.decode(x[None])[0]
        masks = np.asarray(finder.masks(frames, [class_word])[class_word].masks)
        if masks.any((1, 2)).mean() >= SEEN:
            cuts.append(Cut(frames, masks))
    if not cuts:
        raise BadInput(f"no '{class_word}' was found in any of the {len(subject.latents)} videos that the LoRA of "
                       f"'{subject.name}' makes", "look at the subject's preview; then train it longer, lower "
                       "--threshold, or give it a class word that the segmenter knows")
    if len(cuts) < len(subject.latents):
        report(note=f"'{subject.name}': the subject is in sight in {len(cuts)} of {len(subject.latents)} videos")
    return cuts


def compose_pairs(backbone: Backbone, teachers: Sequence[Teacher], cuts: dict[str, list[Cut]], options: FuseOptions, *,
                  seed: int = 0) -> list[Pair]:
    """For every two subjects, in either order (**ours**: prompts name them in either), options.compositions of CutMix;
    latents and text vectors are computed once."""
    pairs = []
    for first, second in itertools.permutations(teachers, 2):
        made = []
        for k in range(options.compositions):
            rng = np.random.default_rng(seed_of(seed, first.name, second.name, k))
            parts = [cuts[t.name][rng.integers(len(cuts[t.name]))] for t in (first, second)]
            made.append(cutmix(*parts, rng, options.overlap))
        prompt = pair_prompt(first.name, second.name)
        tokens = {placeholder(t.name): t.token for t in (first, second)}
        words = backbone.positions(prompt, tokens)
        spans = [token_span(words, range(at, at + 1)) for at in (1, 4)]          # "A <i> and a <j>": words 1 and 4
        with torch.no_grad():
            vectors = backbone.embed([prompt], tokens)
        latents = torch.cat([encode(backbone, part.frames[None]) for part in made])
        masks = torch.as_tensor(np.stack([part.masks for part in made]))
        pairs.append(Pair(latents, masks.to(backbone.device), vectors, tuple(spans)))
    return pairs


def _preview(backbone: Backbone, teachers: Sequence[Teacher], cuts: dict[str, list[Cut]], pairs: Sequence[Pair],
             lora: Lora, options: FuseOptions, seed: int) -> list[tuple[str, np.ndarray]]:
    """Rows of the sheet: a video of each subject with its mask, then for each pair a composition and what the mean of
    the LoRAs and the fused LoRA make of its prompt from the same noise."""
    rows = [(f"{subject_prompt(name)}, own LoRA", overlay(found[0].frames, {name: found[0].masks}))
            for name, found in cuts.items()]
    x_T = gaussian(backbone, backbone.frames, seed)
    average = mean([t.lora for t in teachers])
    for (first, second), pair in zip(itertools.permutations(teachers, 2), pairs):
        if first.name > second.name:
            continue                                             # each pair is shown in one of its orders
        prompt, names = pair_prompt(first.name, second.name), (first.name, second.name)
        masks = dict(zip(names, pair.masks[0].cpu().numpy()))
        rows.append((f"CutMix, {prompt}", overlay(backbone.decode(pair.latents[:1])[0], masks)))
        for label, which in (("mean of the LoRAs", average), ("fused LoRA", lora)):
            x_0 = draw(backbone, prompt, x_T, tokens={placeholder(t.name): t.token for t in (first, second)},
                       lora=which, steps=options.video_steps, guidance=options.guidance,
                       unconditional=options.unconditional)
            rows.append((f"{label}, {prompt}", backbone.decode(x_0)[0]))
    return rows
