"""python -m bench.prior FOLDER [FOLDER ...]: what is left of the base's sense of other clips under learned LoRAs?

L_reg (METHOD 2) is there to keep it. A FOLDER is a project on sprites, or a variant that a sweep made in one
(sweeps/variants/learn-subject.lambda1=0). Printed, for the base and each LoRA of a subject and of a fusion in it: the
denoising loss on the auxiliary clips that L_reg draws from the base, under their captions and under none, three draws
each, the same for all; and on the photos of the subject under its own prompt, eight draws of all. About 25 CPU seconds
a LoRA.
"""
from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from torch import Tensor

from stages.auxiliary import auxiliary
from stages.backbones import load_for
from stages.backbones.unet3d import UNet3D
from stages.core.denoise import denoising_loss, encode
from stages.core.lora import applied, load, load_tokens
from stages.core.report import silent
from stages.core.workspace import Workspace
from stages.options import resolve
from stages.photos import read_photos
from stages.prompts import subject_prompt

DRAWS, OF_PHOTOS = 3, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+")
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    for number, folder in enumerate(parser.parse_args().folders):
        project = Workspace(folder)
        options = replace(resolve("learn-subject", project.settings), lambda1=1.0)      # which asks for the clips
        backbone = load_for(project, device="cpu", dtype="fp32", low_memory=False)
        clips = [(backbone.embed([caption]), x) for caption, x in auxiliary(project, backbone, options, silent)]
        if number == 0:
            say("the base", *prior(backbone, clips))
        for path in sorted(folder.glob("subjects/*/lora.safetensors")):
            name = path.parent.name
            photos = [photo.fitted((backbone.height, backbone.width), options.fit).picture
                      for photo in read_photos(sorted((path.parent / "images").iterdir()), None, silent)]
            x_0 = encode(backbone, np.stack(photos)[:, None], keep=False)
            with applied(backbone.denoiser, load(path)):
                own = backbone.embed([subject_prompt(name)], load_tokens(path.parent / "token.safetensors"))
                on_photos = mean(float(denoising_loss(backbone, x_0, own, seeded(k))) for k in range(OF_PHOTOS))
                say(f"{folder.name}: {name}", *prior(backbone, clips), on_photos)
        for path in sorted(folder.glob("fused/*/lora.safetensors")):
            with applied(backbone.denoiser, load(path)):
                say(f"{folder.name}: {path.parent.name}", *prior(backbone, clips))


def prior(backbone: UNet3D, clips: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """The mean loss on the clips: (under their captions, under the empty prompt)."""
    nothing = backbone.embed([""])
    said = [(denoising_loss(backbone, x, text, seeded(1000 * draw + k)),
             denoising_loss(backbone, x, nothing, seeded(1000 * draw + k)))
            for draw in range(DRAWS) for k, (text, x) in enumerate(clips)]
    captioned, mute = (mean(map(float, losses)) for losses in zip(*said))
    return captioned, mute


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def say(what: str, captioned: float, mute: float, photos: float | None = None) -> None:
    print(f"{what:48} captioned {captioned:.4f}  without {mute:.4f}"
          + (f"  its photos {photos:.4f}" if photos is not None else ""), flush=True)


if __name__ == "__main__":
    main()
