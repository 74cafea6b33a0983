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

from ..core.borders import inside
from ..core.errors import BadInput, Refused, VideomageError
from ..core.store import publish_folder
from .bases import files_of, known, licence, own_facts
from .fetch import pickled_parts
from .folder import STEMS, is_pickle


def convert(source: Path, out: Path, facts: Mapping[str, str]) -> None:
    """Write the folder `out`, whole or not at all. facts: "source" and "revision" of the hub, where it is from there.
    Copied is what a base is loaded from, its card and its licence. Raises BadInput where `out` is there already, or a
    pickle holds anything but tensors by name; Refused for a file that is a link to what is not part of the base."""
    if out.exists():
        raise BadInput(f"{out} is there already", "delete it first, or name another folder")
    loose = pickled_parts(source)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        for path in (*files_of(source), *filter(Path.is_file, (source / "README.md", source / "LICENSE"))):
            if ".bin.index" not in path.name:
                to = partial / path.relative_to(source)
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(_own(path, source), to)
        for part in loose:
            save_file(tensors_of(source / part, part), partial / part / f"{STEMS[part]}.safetensors",
                      metadata={"format": "pt"})
        base = f"{facts['source']}@{facts['revision']}" if facts else str(source)
        entry = known(base)
        said = {**(asdict(entry.video) if entry else {}), "licence": licence(base), **facts}
        path = partial / "videomage.json"
        path.write_text(json.dumps({**said, **own_facts(partial)}, indent=1) + "\n", encoding="utf-8")
        publish_folder(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _own(path: Path, source: Path) -> Path:
    """A file of a base, in its folder or, which snapshots of the hub link to, in the hub's cache."""
    from huggingface_hub import constants

    if not any(inside(path, place.resolve()) for place in (source, Path(constants.HF_HUB_CACHE))):
        raise Refused(f"{path} is a link to {path.resolve()}, which would be copied and is no part of the base",
                      "delete the link, or put the file in its place")
    return path


def tensors_of(folder: Path, part: str) -> dict[str, Tensor]:
    """All tensors of a part's pickles, by name; the fp16 variant's where there is one. Each has memory of its own."""
    found = sorted(path for path in folder.iterdir() if is_pickle(path.name, part))
    files = [path for path in found if ".fp16" in path.name] or found
    out: dict[str, Tensor] = {}
    for path in files:
        _own(path, folder.parent)
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
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    print(typed.out)


if __name__ == "__main__":
    main()
