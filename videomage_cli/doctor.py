"""What this machine has and what the project's base asks of it."""
from __future__ import annotations

import os
import platform
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from stages.core.errors import BadInput, MissingPrerequisite, VideomageError
from stages.core.settings import Settings
from stages.options import resolve
from stages.segmenters.models import PACKAGE_LINE

GIB = 2**30
BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors", "accelerate", "numpy", "pillow", "av",
            "imageio-ffmpeg")
EXTRAS = (("decord", "fast reading of plain videos (else PyAV)", "pip install decord"),
          ("sam2", "another library that can run SAM2 (segment --through sam2)", PACKAGE_LINE))
OWN = ("base", "clip", "dino", "clipseg")          # models that the package carries, under stages/sprites/weights


@dataclass(frozen=True)
class Finding:
    """mark: ok | note | bad. remedy: what to do where it is bad. exit_code: of the command, then."""

    mark: str
    what: str
    found: str
    remedy: str = ""
    exit_code: int = MissingPrerequisite.exit_code


def pick_device(name: str) -> str:
    """"auto" -> the GPU if there is one, else "cpu"; anything else is checked. Raises BadInput. Imports torch."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadInput(f"there is no kind of device '{name}'", "use cpu, cuda, cuda:1, mps or auto") from None
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise BadInput(f"the device '{name}' is not there", f"torch sees {torch.cuda.device_count()} CUDA devices; "
                       "use --device cpu, or see `videomage doctor`")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise BadInput("the device 'mps' is not there", "use --device cpu")
    return name


def pick_dtype(name: str, device: str, base: str) -> str:
    """"auto" -> bf16 on a CUDA GPU that computes in it, fp16 on one that does not, else fp32; fp32 for the sprites
    base, which is small and was trained in it. Imports torch."""
    import torch

    if name != "auto":
        return name
    if base == "sprites" or not device.startswith("cuda"):
        return "fp32"
    with torch.cuda.device(device.split(",")[0]):          # of several, which are of one kind
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def memory_of(device: str) -> int:
    """Bytes of memory of a device; of the machine for the CPU. Imports torch."""
    import torch

    return torch.cuda.mem_get_info(device)[1] if device.startswith("cuda") else int(_memory())


def examine(settings: Settings) -> list[Finding]:
    """Every finding about this machine, this installation, the project's base and what segments on it."""
    return [*_machine(), *_packages(), *_devices(), *_own_weights(), *_base(settings.base, settings.video),
            *_segmenter(settings)]


def _machine() -> list[Finding]:
    disk = shutil.disk_usage(Path.cwd()).free / GIB
    return [Finding("ok", "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
            Finding("ok", "cores", str(os.cpu_count())),
            Finding("ok" if _memory() > 4 * GIB else "note", "memory", f"{_memory() / GIB:.1f} GiB",
                    "4 GiB is little: close other programs"),
            Finding("ok" if disk > 2 else "note", "disk here", f"{disk:.1f} GiB free", "make room: 2 GiB is little")]


def _memory() -> float:
    """Bytes of memory of the machine."""
    return float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")


def _packages() -> list[Finding]:
    out = []
    for name in PACKAGES:
        try:
            out.append(Finding("ok", name, version(name)))
        except PackageNotFoundError:
            out.append(Finding("bad", name, "not installed", "make install"))
    for name, use, line in EXTRAS:
        try:
            out.append(Finding("ok", name, f"{version(name)}: {use}"))
        except PackageNotFoundError:
            out.append(Finding("note", name, f"not installed: {use}", line))
    return out


def _devices() -> list[Finding]:
    import torch

    if not torch.cuda.is_available():
        return [Finding("note", "device", "cpu alone", "fine for the sprites base; ZeroScope wants a CUDA GPU")]
    out = []
    for k in range(torch.cuda.device_count()):
        free, whole = torch.cuda.mem_get_info(k)
        name = torch.cuda.get_device_name(k)
        out.append(Finding("ok", f"cuda:{k}", f"{name}, {free / GIB:.1f} of {whole / GIB:.1f} GiB free"))
    return out


def _own_weights() -> list[Finding]:
    import stages.sprites

    root = Path(stages.sprites.__file__).parent / "weights"
    out = []
    for name in OWN:
        files = sorted((root / name).rglob("*.safetensors"))
        size = sum(path.stat().st_size for path in files) / 2**20
        out.append(Finding("ok", f"sprites {name}", f"{size:.1f} MiB") if files else
                   Finding("bad", f"sprites {name}", "its weights are missing", "install again, or: make sprites"))
    return out


def _segmenter(settings: Settings) -> list[Finding]:
    """The weights of Grounded-SAM2: bad where this project needs them and they are not here."""
    from stages.segmenters import models

    options = resolve("segment", settings)
    needed = options.segmenter == models.NAME
    out = []
    for weights, name in zip(models.KNOWN, (options.detector, options.tracker)):
        try:
            folder = models.find(name)
        except BadInput as error:
            out.append(Finding("bad", weights.what, error.what, error.remedy, error.exit_code))
            continue
        known = f" ({models.terms(name)})" if models.terms(name) else ""
        if folder:
            out.append(Finding("ok", weights.what, models.revision(name)))
        else:
            use = "it segments here" if needed else "it segments filmed material"
            found = f"{name}{known} is not on this machine; {use}"
            out.append(Finding("bad" if needed else "note", weights.what, found,
                               f"videomage fetch {models.NAME if models.terms(name) else shlex.quote(name)}"))
    return out


def _base(base: str, wanted: Mapping[str, int]) -> list[Finding]:
    """The base of the project: is it there and whole, on what terms, and how much memory do its weights take."""
    from stages.backbones import locate, terms, video
    from stages.backbones.folder import check

    try:
        weights, native = check(locate(base), base), video(base, wanted)
    except VideomageError as error:
        return [Finding("bad", f"base {base}", error.what, error.remedy, error.exit_code)]
    numbers = {part: found.parameters() for part, found in weights.items()}
    whole = sum(numbers.values())
    split = ", ".join(f"{part} {count / 1e6:.1f} M" for part, count in numbers.items())
    return [Finding("ok", f"base {base}", f"{whole / 1e6:.1f} M parameters ({split}); {native}"),
            Finding("ok", "its terms", terms(base)),
            Finding("ok" if 2 * whole * BYTES["fp32"] < _memory() else "note", "its weights in memory",
                    ", ".join(f"{dtype} {whole * size / GIB:.2f} GiB" for dtype, size in BYTES.items())
                    + "; activations come on top: videomage doctor --plan sample", "use --dtype bf16 on a GPU")]
