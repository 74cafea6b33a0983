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
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet3DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from ..core.report import Report, silent
from ..core.team import ALONE, Team
from .sizes import SIZES, Size
from .train_base import corpora, new_scheduler, redraw_words, train_base
from .train_vae import train_vae
from .words import make_tokenizer

WEIGHTS = Path(__file__).parent / "weights"
log = logging.getLogger("sprites")


def reporter(name: str, curves: Path, every: int = 25) -> Report:
    """Log a line and keep a row of the curve every so many steps: the means over these steps."""
    started, rows, since = time.monotonic(), [], []

    def report(**facts: object) -> None:
        if "note" in facts:
            log.info("%s: %s", name, facts["note"])
            return
        since.append({key: value for key, value in facts.items() if isinstance(value, float)})
        if facts["step"] % every and facts["step"] != facts["of"]:
            return
        means = {key: sum(row.get(key, 0.0) for row in since) / len(since) for key in since[-1]}
        since.clear()
        rows.append({"step": facts["step"], **means, "seconds": round(time.monotonic() - started, 1)})
        log.info("%s %s/%s  %.0f s  %s", name, facts["step"], facts["of"], rows[-1]["seconds"],
                 "  ".join(f"{key} {value:.4f}" for key, value in means.items()))
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
        config = json.loads((folder / name / "config.json").read_text())
        config.pop("_name_or_path", None)                            # the folder it was saved in says nothing
        (folder / name / "config.json").write_text(json.dumps(config, indent=2) + "\n")
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
    parser.add_argument("--photos-first", type=int, help="steps that see photos only (default: the size's; 0 with "
                        "--from-shipped)")
    parser.add_argument("--singles", type=int, default=0, help="steps after these that see clips of one object only")
    parser.add_argument("--redraw", nargs="+", default=(), metavar="WORD", help="words whose embeddings are drawn anew")
    parser.add_argument("--clips", type=int, help="clips a step and process (default: the size's)")
    parser.add_argument("--photos", type=int, help="photos a step and process (default: the size's)")
    parser.add_argument("--rate", type=float, default=4e-3, help="learning rate of the base")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--from-shipped", action="store_true", help="start from the package's weights")
    parser.add_argument("--out", type=Path, help="work folder (default runs/sprites-SIZE)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes that render")
    parser.add_argument("--processes", type=int, help="processes of one thread each that train the base: on a CPU "
                        "faster than threads (default: 2 on a CPU, else 1). The result depends on it")
    args = parser.parse_args(argv)
    if args.redraw and not args.from_shipped:
        parser.error("--redraw goes with --from-shipped: new models have new words anyway")
    args.out = args.out or Path("runs") / f"sprites-{args.size}"
    if "vae" in args.only and not args.from_shipped:
        _vae(args)
    if "base" not in args.only:
        return
    _encode(args)
    processes = args.processes or (2 if args.device == "cpu" else 1)
    if processes > 1:
        torch.multiprocessing.spawn(_base, (args, processes), nprocs=processes)
    else:
        _base(0, args, 1)


def _vae(args: argparse.Namespace) -> None:
    _say()
    size = SIZES[args.size]
    vae = train_vae(size, args.out, seed=args.seed, steps=size.vae_steps, workers=args.workers, device=args.device,
                    report=reporter("vae", args.out / "curves.json"))
    vae.save_pretrained(args.out / "vae-model")


def _base(rank: int, args: argparse.Namespace, processes: int) -> None:
    """One process's part of the training of the base; the first one reports and saves."""
    _say()
    size, shipped = SIZES[args.size], load_base(WEIGHTS / "base") if args.from_shipped else None
    size = replace(size, clips_per_step=args.clips or size.clips_per_step,
                   photos_per_step=args.photos or size.photos_per_step)
    photos_first = args.photos_first if args.photos_first is not None else 0 if shipped else size.photos_first
    team = ALONE
    if processes > 1:
        torch.set_num_threads(1)
        args.out.mkdir(parents=True, exist_ok=True)
        team = Team(rank, processes, args.out / f"meeting-{os.getppid()}")
    vae, tokenizer = shipped[::3] if shipped else _fresh(args)
    torch.manual_seed(args.seed)
    if args.redraw:
        redraw_words(shipped[2], tokenizer, args.redraw)
    unet, text, _ = train_base(
        size, args.out, vae.to(args.device).eval(), tokenizer, seed=args.seed, steps=args.steps or size.base_steps,
        rate=args.rate, photos_first=photos_first, singles=args.singles, start=shipped and shipped[1:3],
        workers=args.workers, device=args.device, team=team,
        report=silent if rank else reporter("base", args.out / "curves.json"))
    if rank == 0:
        save_base(args.out / "base-model", size, vae, unet, text, tokenizer)
        log.info("saved %s", args.out / "base-model")


def _fresh(args: argparse.Namespace) -> tuple[AutoencoderKL, CLIPTokenizer]:
    return (AutoencoderKL.from_pretrained(args.out / "vae-model").float(),
            make_tokenizer(SIZES[args.size].vocabulary))


def _encode(args: argparse.Namespace) -> None:
    """Render and encode the corpora once, before the processes share them."""
    _say()
    vae, tokenizer = load_base(WEIGHTS / "base")[::3] if args.from_shipped else _fresh(args)
    log.info("rendering and encoding the corpora, where they are not there yet")
    corpora(SIZES[args.size], vae.to(args.device).eval(), tokenizer, args.out, args.workers, args.device)


def _say() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")


if __name__ == "__main__":
    main()
