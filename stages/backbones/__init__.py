"""The text-to-video models the method can stand on. Imports no torch: a family's file is read when one is loaded."""
from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..core.report import Report, silent
from ..core.workspace import Workspace
from .bases import NAMES, Video, identity, licence, locate, on_hub, origin, shape_of, terms, video

if TYPE_CHECKING:
    from .unet3d import UNet3D

__all__ = ["NAMES", "Video", "base_of", "forget", "identity", "identity_of", "kept", "licence", "load", "load_for",
           "locate", "on_hub", "origin", "shape_of", "terms", "video"]
_kept: dict[tuple, UNet3D] | None = None            # inside `kept`: the base that was loaded last, by its order


def load(base: str, *, device: str = "cpu", dtype: str = "fp32", wanted: Mapping[str, int] | None = None,
         low_memory: bool = False, compiled: bool = False) -> UNet3D:
    """A base, frozen; its parts are read when they are first used.

    dtype: of its arithmetic, fp32, amp, bf16 or fp16 (fp64 for tests); where there are files of both kinds, the latter
    two read those of the fp16 variant. wanted: frames, fps, height, width other than its own (project.yaml, video).
    low_memory, compiled: see UNet3D. Raises BadInput where the folder, its kind or one of its files is not what it
    should be, MissingPrerequisite where it is not on this machine, or nothing there compiles.
    """
    from .folder import check
    from .unet3d import UNet3D

    folder = locate(base)
    weights = check(folder, base, half=dtype in ("bf16", "fp16"))
    return UNet3D(folder, weights, name=base, revision=str(identity(base)["revision"]), licence=licence(base),
                  origin=origin(base), video=video(base, wanted), device=device, dtype=dtype, low_memory=low_memory,
                  compiled=compiled)


def base_of(project: Workspace) -> str:
    """The base of a project as `load` takes it: a folder may stand in project.yaml relative to the project."""
    base = project.settings.base
    folder = project.locate(base)
    return str(folder) if base not in NAMES and (folder / "model_index.json").is_file() else base


def load_for(project: Workspace, *, device: str, dtype: str, low_memory: bool, compiled: bool = False,
             report: Report = silent) -> UNet3D:
    """The base of a project, making what the project's `video` asks for, with the project's cache. What it keeps there
    is for bases of this content on this kind of device: which one of several alike makes no difference."""
    from ..core.cache import Cache

    if compiled:
        report(note="blocks of the base are compiled at their first use: some minutes for shapes that are new here")
    name, wanted = base_of(project), project.settings.video
    order = (name, device, dtype, tuple(sorted(wanted.items())), low_memory, compiled)
    backbone = _kept.get(order) if _kept else None
    if backbone is None:
        forget()
        backbone = load(name, device=device, dtype=dtype, wanted=wanted, low_memory=low_memory, compiled=compiled)
        if _kept is not None:
            _kept[order] = backbone
    about = [backbone.revision, backbone.variants, re.sub(r"(?<=^cuda):\d+", "", backbone.run_on)]
    backbone.cache = Cache(project, about, report)
    return backbone


@contextmanager
def kept() -> Iterator[None]:
    """Inside, load_for gives the same base again for the same order, with the cache of the project at hand: for whoever
    runs many stages in one process. One base is kept at a time."""
    global _kept
    before, _kept = _kept, {} if _kept is None else _kept
    try:
        yield
    finally:
        _kept = before


def forget() -> None:
    """Let go of what is kept: after an error that may have left it half-changed."""
    if _kept:
        _kept.clear()


def identity_of(project: Workspace) -> dict[str, object]:
    """What manifests say of the base of a project."""
    return {**identity(base_of(project), project.settings.video), "name": project.settings.base}
