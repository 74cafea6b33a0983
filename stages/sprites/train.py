"""Train the sprites models: python -m stages.sprites.train --size small (hours of two cores) | full (minutes of a GPU).

One script for CPU and GPU. A killed run goes on from its newest checkpoint when started again; --from-shipped starts a
new run from the weights in the package. Renders, encodes, trains; the curves go to <out>/curves.json.
"""
from __future__ import annotations

import argparse
import json
import logging
import os
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet3DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from ..core.report import Report, silent
from ..core.train import Team
from .sizes import SIZES, Size
from .train_base import new_scheduler, train_base
from .train_vae import train_vae
from .words import make_tokenizer

WEIGHTS = Path(__file__).parent / "weights"
log = logging.getLogger("sprites")


def reporter(name: str, curves: Path, every: int = 25) -> Report:
    """Log a line and keep a row of the curve every so many steps."""
    started, rows = time.monotonic(), []

    def report(**facts: object) -> None:
        if "note" in facts:
            log.info("%s: %s", name, facts["note"])
            return
        if facts["step"] % every == 0 or facts["step"] == facts["of"]:
            rows.append({**facts, "seconds": round(time.monotonic() - started, 1)})
            shown = "  ".join(f"{k} {v:.4f}" for k, v in facts.items() if isinstance(v, float))
            log.info("%s %s/%s  %.0f s  %s", name, facts["step"], facts["of"], rows[-1]["seconds"], shown)
            curves.parent.mkdir(parents=True, exist_ok=True)
            kept = json.loads(curves.read_text()) if curves.exists() else {}
            before = [row for row in kept.get(name, []) if row["step"] < rows[0]["step"]]
            curves.write_text(json.dumps({**kept, name: before + rows}))
    return report


def save_base(folder: Path, size: Size, vae, unet, text, tokenizer) -> None:
    """The TextToVideoSDPipeline folder format, fp16 safetensors, with videomage.json for what the format lacks."""
    half = {"vae": vae, "unet": unet, "text_encoder": text}
    for name, model in half.items():
        type(model).from_pretrained(_saved(model, folder / name)).half().save_pretrained(folder / name)
    tokenizer.save_pretrained(folder / "tokenizer")
    new_scheduler().save_pretrained(folder / "scheduler")
    classes = {"vae": ["diffusers", "AutoencoderKL"], "unet": ["diffusers", "UNet3DConditionModel"],
               "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
               "scheduler": ["diffusers", "DDIMScheduler"]}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "TextToVideoSDPipeline", **classes}, indent=2))
    (folder / "videomage.json").write_text(json.dumps({"frames": size.frames, "fps": 8, "size": size.name}, indent=2))


def _saved(model, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def load_base(folder: Path):
    """-> (vae, unet, text encoder, tokenizer), float32."""
    kinds = ((AutoencoderKL, "vae"), (UNet3DConditionModel, "unet"), (CLIPTextModel, "text_encoder"))
    return (*(kind.from_pretrained(folder / name).float() for kind, name in kinds),
            CLIPTokenizer.from_pretrained(folder / "tokenizer"))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--only", nargs="+", choices=("vae", "base"), default=("vae", "base"))
    parser.add_argument("--steps", type=int, help="steps of the base (default: the size's)")
    parser.add_argument("--photos-first", type=int, default=0, help="first steps that see photos only")
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--from-shipped", action="store_true", help="start from the package's weights")
    parser.add_argument("--out", type=Path, help="work folder (default runs/sprites-SIZE)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=2, help="processes that render")
    parser.add_argument("--processes", type=int, default=1,
                        help="train the base in so many processes of one thread each (on a CPU faster than threads)")
    args = parser.parse_args(argv)
    if args.processes > 1:
        torch.multiprocessing.spawn(run, (args,), nprocs=args.processes)
    else:
        run(None, args)


def run(rank: int | None, args: argparse.Namespace) -> None:
    """One process's part of the training; rank None: the only one."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    size, out = SIZES[args.size], args.out or Path("runs") / f"sprites-{args.size}"
    shipped = load_base(WEIGHTS / "base") if args.from_shipped else None
    common = dict(workers=args.workers, device=args.device, seed=args.seed)
    team = None
    if rank is not None:
        torch.set_num_threads(1)
        meeting = out / f"meeting-{os.getppid()}"
        out.mkdir(parents=True, exist_ok=True)
        team = Team(rank, args.processes, meeting)
    if "vae" in args.only and not (out / "vae-model").exists():
        vae = train_vae(size, out, steps=size.vae_steps, start=shipped and shipped[0],
                        report=reporter("vae", out / "curves.json"), **common)
        vae.save_pretrained(out / "vae-model")
    if "base" not in args.only:
        return
    vae = AutoencoderKL.from_pretrained(WEIGHTS / "base/vae" if shipped else out / "vae-model").float().to(args.device)
    tokenizer = shipped[3] if shipped else make_tokenizer(size.vocabulary)
    unet, text, _ = train_base(size, out, vae.eval(), tokenizer, steps=args.steps or size.base_steps, rate=args.rate,
                               photos_first=args.photos_first, start=shipped and shipped[1:3], team=team,
                               report=silent if rank else reporter("base", out / "curves.json"), **common)
    if rank:
        return
    save_base(out / "base-model", size, vae, unet, text, tokenizer)
    log.info("saved %s", out / "base-model")


if __name__ == "__main__":
    main()
