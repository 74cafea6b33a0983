"""The text-to-video models the method can stand on. Imports no torch: a family's file is read when one is loaded."""
from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import BadInput

if TYPE_CHECKING:
    from .unet3d import UNet3D

# name -> the folder it is read from. Whatever is not named here is taken for a folder.
BASES = {"sprites": Path(__file__).parent.parent / "sprites" / "weights" / "base"}
PARTS = ("unet", "vae", "text")
_READ = {".json", ".txt", ".safetensors"}              # what `load` reads of a folder, and what its revision covers


def locate(base: str) -> Path:
    """The folder of a base. Raises BadInput where there is none."""
    folder = Path(BASES.get(base, base)).expanduser()
    if not (folder / "model_index.json").is_file():
        where = f"({folder})" if str(folder) != str(base) else ""
        raise BadInput(f"the base '{base}' {where} is no folder with a model_index.json".replace("  ", " "),
                       f"name one of {', '.join(BASES)}, or a folder in the format of diffusers' TextToVideoSDPipeline")
    return folder


def identity(base: str) -> dict[str, str]:
    """{"name": as given, "revision": sha256 over the names and hashes of the folder's files}."""
    folder = locate(base)
    files = sorted(p for p in folder.rglob("*") if p.suffix in _READ and p.is_file())
    whole = hashlib.sha256()
    for path in files:
        stat, name = path.stat(), path.relative_to(folder).as_posix()
        whole.update(f"{name} {_sha256(path, stat.st_size, stat.st_mtime_ns)}\n".encode())
    return {"name": base, "revision": whole.hexdigest()}


@lru_cache(maxsize=256)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Hash of one file; size and time are there to forget it when the file changes."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def load(base: str, *, device: str = "cpu", dtype: str = "fp32", parts: tuple[str, ...] = PARTS) -> UNet3D:
    """Load a base, frozen, or only some of its parts: "unet", "vae", "text".

    Raises BadInput where the folder, its kind or one of its files is not what it should be.
    """
    folder = locate(base)
    kind = json.loads((folder / "model_index.json").read_text()).get("unet", [None, None])[1]
    if kind != "UNet3DConditionModel":
        raise BadInput(f"the denoiser of the base '{base}' is a {kind}", "use one with a UNet3DConditionModel")
    from .unet3d import UNet3D

    return UNet3D.from_folder(folder, **identity(base), device=device, dtype=dtype, parts=parts)
