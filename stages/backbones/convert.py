"""python -m stages.backbones.convert SOURCE OUT [REPOSITORY COMMIT]: a base with pickled weights -> in safetensors.

The only place of the project that reads a pickle, and it runs in a process of its own: `videomage fetch BASE --convert`
starts it. torch.load(weights_only=True) admits tensors and plain containers, and refuses a file that asks for more.
Names, shapes, values and dtypes stay as they are.
"""
from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..core.errors import BadInput, VideomageError
from ..core.store import publish_folder
from .bases import known, licence
from .fetch import pickled_parts
from .folder import PICKLED, STEMS, is_pickle


def convert(source: Path, out: Path, facts: Mapping[str, str]) -> None:
    """Write the folder `out`, whole or not at all. facts: "source" and "revision" of the hub, where it is from there.
    Raises BadInput where `out` is there already, or a pickle holds anything but tensors by name."""
    if out.exists():
        raise BadInput(f"{out} is there already", "delete it first, or name another folder")
    loose = pickled_parts(source)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        shutil.copytree(source, partial, ignore=lambda _, names: [
            name for name in names if name.endswith(PICKLED) or ".bin.index" in name])
        for part in loose:
            save_file(tensors_of(source / part, part), partial / part / f"{STEMS[part]}.safetensors",
                      metadata={"format": "pt"})
        base = f"{facts['source']}@{facts['revision']}" if facts else str(source)
        entry = known(base)
        said = {**(asdict(entry.video) if entry else {}), "licence": licence(base), **facts}
        path = partial / "videomage.json"
        own = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        path.write_text(json.dumps({**said, **own}, indent=1) + "\n", encoding="utf-8")
        publish_folder(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def tensors_of(folder: Path, part: str) -> dict[str, Tensor]:
    """All tensors of a part's pickles, by name; the fp16 variant's where there is one. Each has memory of its own."""
    found = sorted(path for path in folder.iterdir() if is_pickle(path.name, part))
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
        for name in list(held):
            out[name] = held.pop(name).detach().clone().contiguous()
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path, help="the folder with the pickled weights")
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument("repository", nargs="?", help="of the hub that it is from, with its commit")
    parser.add_argument("commit", nargs="?")
    typed = parser.parse_args()
    facts = {"source": typed.repository, "revision": typed.commit} if typed.repository and typed.commit else {}
    try:
        convert(typed.source, typed.out, facts)
    except VideomageError as error:
        sys.exit(str(error))
    print(typed.out)


if __name__ == "__main__":
    main()
