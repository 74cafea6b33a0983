"""python -m stages.backbones.convert SOURCE OUT [BASE]: a base whose weights are pickled -> the same in safetensors.

The only place of the project that reads a pickle, and it runs in a process of its own: `videomage fetch BASE --convert`
starts it. torch.load(weights_only=True) admits tensors and plain containers, and refuses a file that asks for more.
Names, shapes, values and dtypes stay as they are.
"""
from __future__ import annotations

import argparse
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..core.errors import BadInput, VideomageError
from .bases import known, licence
from .fetch import PARTS
from .folder import PICKLED, STEMS


def convert(source: Path, out: Path, base: str) -> None:
    """Write the folder `out`, whole or not at all. Raises BadInput where it is there already, or a pickle holds
    anything but tensors by name."""
    if out.exists():
        raise BadInput(f"{out} is there already", "delete it first, or name another folder")
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial, ignore=lambda _, names: [
        name for name in names if name.endswith(PICKLED) or ".bin.index" in name])
    for part in PARTS:
        if not any((partial / part).glob("*.safetensors")):
            save_file(tensors_of(source / part), partial / part / f"{STEMS[part]}.safetensors")
    facts = {"licence": licence(base)}
    if entry := known(base):
        facts |= {**asdict(entry.video), "source": entry.repo, "revision": entry.revision}
    path = partial / "videomage.json"
    own = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**facts, **own}, indent=1) + "\n", encoding="utf-8")
    partial.replace(out)


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """All tensors of a part's pickles, by name; the fp16 variant's where there is one. Each has memory of its own."""
    found = sorted(path for path in folder.iterdir() if path.suffix in PICKLED)
    files = [path for path in found if ".fp16" in path.name] or found
    out: dict[str, Tensor] = {}
    for path in files:
        try:
            held = torch.load(path, map_location="cpu", weights_only=True)
        except (torch.serialization.pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise BadInput(f"{path.name} asks for more than tensors, or is damaged ({reason[0]})",
                           "do not trust it, or copy it again") from None
        if not isinstance(held, dict) or not all(isinstance(value, Tensor) for value in held.values()):
            raise BadInput(f"{path.name} holds something else than tensors by name", "it is no checkpoint of a part")
        out |= {name: value.detach().clone().contiguous() for name, value in held.items()}
    if not out:
        raise BadInput(f"{folder} holds no weights", "copy or fetch the base again")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="the folder with the pickled weights")
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument("base", nargs="?", help="the base's name, where it is a known one")
    typed = parser.parse_args()
    try:
        convert(typed.source, typed.out, typed.base or str(typed.source))
    except VideomageError as error:
        sys.exit(str(error))
    print(typed.out)


if __name__ == "__main__":
    main()
