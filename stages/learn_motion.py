"""learn-motion: a temporal LoRA that holds the clip's motion and not its actors' looks (METHOD 3).

    eps_apfree = (1 + w) eps - w eps_theta(x_t, c_ap, t)              theta: the frozen base, no gradient
    L_mot      = E || eps_theta_m(x_t, c_m, t) - eps_apfree ||^2

c_ap = "A static video of <person> and <horse>." says how the actors look and that nothing moves: what the base makes of
it is taken out of the target. The same holds for a base that predicts v (core/noise.py, appearance_free).

**Ours**, an option that is off: a bank of draws (x_t, t, eps), for which the base is asked once and not at every step.

Legend: x latents (B, C, F, h, w); N windows of the clip, K draws of the bank; L text tokens, D their width.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import STAGES
from .backbones import identity_of, load_for
from .backbones.unet3d import UNet3D as Backbone
from .core import losses
from .core.cache import digest
from .core.denoise import Noised, Previews, draw, encode, gaussian, go_on, noised, noised_by, pick, seed_of
from .core.errors import BadInput
from .core.lora import Lora, load_tokens, provenance, save, training
from .core.noise import appearance_free
from .core.report import Report, asked_to_stop, silent
from .core.sheets import contact_sheet
from .core.takes import read_take
from .core.team import ALONE, Team, mean_over, on_devices
from .core.train import adamw, fit, generator_at
from .core.workspace import Artifact, Workspace
from .options import LearnMotionOptions, resolve
from .prompts import MotionPrompt, motion_prompt, placeholder, placeholders

_TOGETHER, _KEPT = 4, 16           # draws of a bank in one forward, and in one file of the cache


@on_devices
def learn_motion(project: Workspace, motion: str | None = None, options: LearnMotionOptions | None = None, *,
                 prompt: str | None = None, device: str = "cpu", dtype: str = "fp32", low_memory: bool = False,
                 compiled: bool = False, seed: int = 0, force: bool = False, report: Report = silent,
                 team: Team = ALONE) -> Artifact:
    """Learn the motion of a segmented and inverted clip -> lora.safetensors, a preview sheet.

    prompt: what happens in the clip, actors in brackets, "a [person] is riding a [horse]", in place of project.yaml's.
    device: one, or "cuda:0,cuda:1", each with its part of the batch.
    Raises BadInput where the prompt is missing, or names an actor that `invert` learned no token of.
    """
    motion = motion or project.motion().name
    plan = project.plan(STAGES["learn-motion"], motion, options, seed=seed, base=identity_of(project),
                        request={"prompt": prompt} if prompt else {})
    if team.first_says(bool(plan.state())) and not force:
        return plan.artifact()
    if not plan.request.get("prompt"):
        raise BadInput(f"nothing says what happens in the clip of '{motion}'",
                       'say it: --prompt "a [person] is riding a [horse]", or motion.prompt in project.yaml')
    team.require(plan.options.batch, "learn-motion")
    with plan.making(report, force=force, team=team) as out:
        backbone, options = load_for(project, device=device, dtype=dtype, low_memory=low_memory,
                                     compiled=compiled, report=report), plan.options
        plan.facts["run on"] = backbone.run_on
        tokens = load_tokens(plan.inputs["tokens"])
        c_m, c_ap = prompts_of(motion_prompt(plan.request["prompt"]), options, tokens)
        take = read_take(project.motion_folder(motion), (backbone.height, backbone.width))
        clips_NFHWC = np.stack([take.window(k) for k in range(len(take.windows))])
        with torch.no_grad():
            vectors_m, vectors_ap = backbone.embed([c_m, c_ap], tokens).split(1)         # constant: embedded once
        previews, look = Previews(plan.checkpoints), resolve("sample", project.settings)

        def preview(step: int, lora: Lora) -> None:
            x_0 = draw(backbone, c_m, gaussian(backbone, backbone.frames, seed), tokens=tokens, lora=lora,
                       steps=look.steps, guidance=look.guidance, solver=look.solver)
            previews.add(step, backbone.decode(x_0)[0])

        lora = learn_motion_tensors(backbone, encode(backbone, clips_NFHWC), vectors_m, vectors_ap, options,
                                    seed=seed, checkpoints=plan.checkpoints, identity=plan.identity,
                                    curve_to=out / "lora-loss.csv",
                                    preview=preview if team.main else None, report=report, team=team)
        origin = provenance(backbone, "motion", map(placeholder, placeholders(c_m)))
        if team.main:
            save(Lora(lora.tensors, lora.alpha, lora.rank, {"motion": motion, "c_m": c_m, "c_ap": c_ap, **origin}),
                 out / "lora.safetensors")
            rows = [("the clip" if len(clips_NFHWC) == 1 else f"the clip, window {k}", clip)
                    for k, clip in enumerate(clips_NFHWC)]
            contact_sheet([*rows, *previews.rows()], out / "learn-motion-preview.png")
    return plan.artifact()


def prompts_of(sentence: MotionPrompt, options: LearnMotionOptions, tokens: Mapping[str, Tensor]) -> tuple[str, str]:
    """(c_m, c_ap). options.actors: c_m names the actors by their tokens, as METHOD 3 has it, or by plain words."""
    unknown = [actor for actor in sentence.actors if placeholder(actor) not in tokens]
    if unknown:
        raise BadInput(f"the prompt names the actor '{unknown[0]}', but appearance tokens were learned of "
                       f"{', '.join(tokens)} only", "give segment and invert the same actors, or mend the prompt")
    c_m = sentence.tokens if options.actors == "tokens" else sentence.words
    return c_m, sentence.appearance(options.template)


def learn_motion_tensors(backbone: Backbone, latents_NCFhw: Tensor, vectors_m: Tensor, vectors_ap: Tensor,
                         options: LearnMotionOptions, *, seed: int = 0, checkpoints: Path | None = None,
                         identity: str = "", curve_to: Path | None = None,
                         preview: Callable[[int, Lora], None] | None = None, report: Report = silent,
                         team: Team = ALONE) -> Lora:
    """Minimise L_mot over the temporal LoRA. latents_NCFhw: the windows of the clip; **ours**: of several, each row of
    the batch is one drawn at random. vectors_m, vectors_ap: c_m and c_ap, (1, L, D). w = 0: plain fine-tuning.

    preview(step, lora) is called at a third, at two thirds and at the end, with the base as it was.
    """
    mine = team.deal({"L_mot": [1] * options.batch})["L_mot"]
    shown = {options.steps // 3, 2 * options.steps // 3, options.steps} - {0}

    def after_step(step: int) -> None:
        if preview and step + 1 in shown:
            with own.disabled():
                preview(step + 1, own.lora())

    bank = Bank(backbone, latents_NCFhw, vectors_ap, options.bank, seed, report) if options.bank and options.w else None
    with training(backbone.denoiser, backbone.targets("motion"), options.rank, options.alpha, seed) as own:

        def losses_at(step: int, generator: torch.Generator) -> dict[str, Tensor]:
            if bank:
                row = bank.targets(pick(options.bank, options.batch, generator), options.w)
                return {"loss": mean_over(mine, row, loss_of)}
            windows = [0] * options.batch if len(latents_NCFhw) == 1 else pick(len(latents_NCFhw), options.batch,
                                                                               generator)
            return {"loss": mean_over(mine, noised(backbone, latents_NCFhw[windows], generator), loss_mot)}

        def loss_mot(x: Tensor, t: Tensor, target: Tensor) -> Tensor:
            if options.w:                                       # eps_apfree; w = 0 needs no second forward
                with torch.no_grad(), own.disabled():
                    out_ap = backbone.predict(x, t, vectors_ap.expand(len(x), -1, -1))
                target = appearance_free(target, out_ap, options.w)
            return loss_of(x, t, target)

        def loss_of(x: Tensor, t: Tensor, apfree: Tensor) -> Tensor:
            return losses.motion(backbone.predict(x, t, vectors_m.expand(len(x), -1, -1)), apfree)       # L_mot

        optimizer = adamw(own.values(), options.rate)
        fit(own, losses_at, optimizer=optimizer, steps=options.steps, seed=seed, checkpoints=checkpoints,
            identity=identity, after_step=after_step, stop=asked_to_stop, curve_to=curve_to, report=report, team=team,
            batch=lambda step, generator: f"{options.batch} noise levels of the clip's {len(latents_NCFhw)} windows")
        return own.lora()


class Bank:
    """K draws (window, t, eps) and what the frozen base says of each under c_ap, eps_theta(x_t, c_ap, t): all that a
    run learns from (**ours**; the paper draws afresh at each step). The base is asked once for each, before training,
    and not at all where the answers lie in the cache: a run at another rate, rank, w or number of steps finds them.

    The draws are spread evenly: one t in each of K equal parts of the schedule, every window as often as any other. eps
    is a function of (seed, k) and is drawn again whenever it is needed; only the answers are held, on the CPU.
    """

    def __init__(self, backbone: Backbone, latents_NCFhw: Tensor, vectors_ap: Tensor, size: int, seed: int = 0,
                 report: Report = silent) -> None:
        self._backbone, self._latents, self._seed = backbone, latents_NCFhw, seed_of(seed, "bank")
        generator, levels = generator_at(self._seed, 0), len(backbone.alphas_cumprod)
        within = torch.rand(size, generator=generator, dtype=torch.float64)
        self._t = ((torch.arange(size) + within) * levels / size).long()
        self._windows = torch.randperm(size, generator=generator) % len(latents_NCFhw)
        parts = torch.arange(size).split(_KEPT)
        answered = backbone.cache.several("bank", [self._asking(which, vectors_ap) for which in parts], made=lambda k:
                                          report(step=int(parts[k][-1]) + 1, of=size, answered="c_ap"))
        self._answers = torch.cat(answered)

    def rows(self, which: Tensor) -> Noised:
        """The draws of these numbers, (B,), as `noised` would give them."""
        noise = [torch.randn(self._latents.shape[1:], generator=generator_at(self._seed, 1 + int(k))) for k in which]
        return noised_by(self._backbone, self._latents[self._windows[which]], self._t[which], torch.stack(noise))

    def targets(self, which: Tensor, w: float) -> Noised:
        """The same with eps_apfree for target."""
        row = self.rows(which)
        return row._replace(target=appearance_free(row.target, self._answers[which].to(row.x), w))

    def _asking(self, which: Tensor, vectors_ap: Tensor) -> tuple[Sequence, Callable[[], Tensor]]:
        """A job of the cache: the answers to these draws, (B, C, F, h, w). Its key is what the base is asked."""
        @torch.no_grad()
        def make() -> Tensor:
            row, rows, out = self.rows(which), 1 if self._backbone.low_memory else _TOGETHER, []
            for x, t in zip(row.x.split(rows), row.t.split(rows)):
                go_on()
                out.append(self._backbone.predict(x, t, vectors_ap.expand(len(x), -1, -1)).cpu())
            return torch.cat(out)

        row = self.rows(which)
        return [digest(row.x, row.t, vectors_ap)], make
