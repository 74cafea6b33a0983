"""Getting the weights of Grounded-SAM2 from the hub. Only `videomage fetch` comes here; no stage asks the network."""
from __future__ import annotations

from pathlib import Path

from ..core.errors import BadInput, Refused
from ..core.hub import licence_of, missing_room, the_hub
from ..core.report import Report, silent
from .models import KNOWN, NAME

_SMALL = (".json", ".txt", "README.md", "LICENSE")


def choose(there: dict[str, int], repo: str = "it") -> dict[str, int]:
    """Of a repository's files {path: bytes} those that are read: configs, tokenizer and safetensors. Raises BadInput
    where there is no config.json, Refused where the weights are pickles alone."""
    top = {name: size for name, size in there.items() if "/" not in name}
    if "config.json" not in top:
        raise BadInput(f"{repo} holds no config.json, so it is no model of transformers", "name another repository")
    weights = {name: size for name, size in top.items() if name.endswith(".safetensors")}
    if not weights:
        raise Refused(f"{repo} holds no safetensors; pickles could run code when they are read", "name another one")
    return {**weights, **{name: size for name, size in top.items() if name.endswith(_SMALL)}}


def fetch(name: str, report: Report = silent) -> list[Path]:
    """Download a model, or the two of Grounded-SAM2 by their common NAME -> their folders in the hub's cache.

    name: "owner/name" or "owner/name@revision". Raises BadInput for a repository that is not there or holds no such
    model, MissingPrerequisite where the hub cannot be reached, OutOfResources where the disk has no room.
    """
    folders = []
    for repo, _, revision in (one.partition("@") for one in ([w.repo for w in KNOWN] if name == NAME else [name])):
        with the_hub(repo) as hub:
            info = hub.HfApi().model_info(repo, revision=revision or None, files_metadata=True)
            files = choose({entry.rfilename: entry.size or 0 for entry in info.siblings}, repo)
            report(note=f"{repo} at {info.sha[:8]}: {len(files)} files, {sum(files.values()) / 1e6:.0f} MB, licence: "
                        f"{licence_of(info) or 'not stated'}")
            cache = missing_room(hub, repo, info.sha, files)
            for k, file in enumerate(sorted(files, key=files.get)):
                report(step=k + 1, of=len(files), file=file, megabytes=files[file] / 1e6)
                path = Path(hub.hf_hub_download(repo, file, revision=revision or None, cache_dir=cache))
        folders.append(path.parent)
    return folders
