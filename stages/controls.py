"""The control of a sample: the same prompt and seed without the motion LoRA, among the project's samples. Imports no
torch.

What of the clip's looks shows in a video may come from the inverted noise as well; the control, which starts from the
same noise, tells how much the motion LoRA brings.
"""
from __future__ import annotations

import json
from pathlib import Path

from .core.foreign import read_json
from .core.workspace import Workspace

WITHOUT = ("subject", "none")           # values of --branches that leave the motion LoRA out
_KNOWN: dict[Path, tuple[int, dict[str, dict | None]]] = {}      # {samples/: (its time stamp, {sample: its order})}


def control_of(project: Workspace, name: str) -> tuple[str, tuple[str, ...]] | None:
    """(the control of a sample, the options besides --branches in which it differs), None where there is none. A sample
    without a motion LoRA needs none. Of several that which differs in the fewest options; of equals the first."""
    orders = _orders(project)
    own = orders.get(name)
    if own is None or not own["request"].get("motion") or own["settings"].get("branches") in WITHOUT:
        return None
    found = []
    for other, order in orders.items():
        if order and order["key"] == own["key"] and order["settings"].get("branches") == "subject":
            differs = sorted(key for key in own["settings"].keys() | order["settings"].keys()
                             if key != "branches" and own["settings"].get(key) != order["settings"].get(key))
            found.append((len(differs), other, tuple(differs)))
    return min(found)[1:] if found else None


def _orders(project: Workspace) -> dict[str, dict | None]:
    """{sample: its request, its options, and what a control has in common with it}; None for one that is being made.
    Kept in memory: a project may hold thousands, and each is read once."""
    folder = project.root.resolve() / "samples"
    if not folder.is_dir():
        return {}
    stamp = folder.stat().st_mtime_ns
    old = _KNOWN.get(folder, (0, {}))
    if old[0] != stamp:
        old = (stamp, {name: old[1].get(name) for name in project.samples()})
    for name, order in old[1].items():
        path = folder / name / "sample.json"
        if order is None or order["stamp"] != _stamp(path):
            old[1][name] = _read(path)
    _KNOWN[folder] = old
    return old[1]


def _read(path: Path) -> dict | None:
    try:
        manifest = read_json(path)
        request = manifest["request"]
        settings = {key: value for key, value in manifest["settings"].items() if key not in request}
        key = json.dumps([request["prompt"], request["subjects"], request.get("motion"), manifest["seed"]])
        return {"request": request, "settings": settings, "key": key, "stamp": _stamp(path)}
    except (OSError, ValueError, LookupError, TypeError):
        return None                                                     # a damaged one is refused where it is scored


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return -1
