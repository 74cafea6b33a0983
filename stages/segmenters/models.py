"""The weights of Grounded-SAM2, and where they lie on this machine. Imports no torch and asks no network.

A model is named by the id of a hub repository, "owner/name" or "owner/name@revision", which is looked for where
huggingface_hub keeps what it downloads (HF_HOME), or by a folder in transformers' format.
"""
from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import BadInput, MissingPrerequisite
from ..core.hashes import content

if TYPE_CHECKING:
    from ..core.workspace import Workspace
    from . import Setup

READ = (".json", ".txt", ".safetensors")
NAME = "grounded-sam2"              # what `videomage fetch` calls the two together


@dataclass(frozen=True)
class Weights:
    """what: how people call it. megabytes: to download. Facts of the repositories' cards."""

    what: str
    repo: str
    licence: str
    megabytes: int


# sam2 says that it needs torchvision, which its video predictor does not import: hence --no-deps
PACKAGE_LINE = ("pip install 'setuptools>=70.1' 'hydra-core>=1.3.2' 'iopath>=0.1.10' && "
                "SAM2_BUILD_CUDA=0 pip install --no-build-isolation --no-deps sam2==1.1.0")
FAMILIES = ("IDEA-Research/grounding-dino", "facebook/sam2")      # how the repositories of such models begin
CLIPSEG = Path(__file__).parent.parent / "sprites" / "weights" / "clipseg"       # comes with the package
SHAPING = {"clipseg": ("threshold",),                               # what of a Setup each one's masks depend on
           "grounded-sam2": ("threshold", "box_threshold", "text_threshold", "instances", "through")}
KNOWN = (Weights("Grounding DINO", "IDEA-Research/grounding-dino-tiny", "Apache-2.0", 690),
         Weights("SAM2", "facebook/sam2.1-hiera-tiny", "Apache-2.0", 156))


def is_one(name: str) -> bool:
    """Whether a name that is to be fetched means a model of a segmenter, and not a base."""
    return name == NAME or name.startswith(FAMILIES)


def terms(name: str) -> str:
    """"Apache-2.0, 156 MB to download" of one of KNOWN, else ""."""
    found = next((one for one in KNOWN if one.repo == name.partition("@")[0]), None)
    return f"{found.licence}, {found.megabytes} MB to download" if found else ""


def find(name: str) -> Path | None:
    """The folder of a model, or None. Raises BadInput for what can be the name of none."""
    if (Path(name).expanduser() / "config.json").is_file():
        return Path(name).expanduser()
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    repo, _, revision = name.partition("@")
    try:
        found = try_to_load_from_cache(repo, "config.json", revision=revision or None, cache_dir=constants.HF_HUB_CACHE)
    except HFValidationError:
        raise BadInput(f"'{name}' is neither a folder with a config.json nor the name of a repository",
                       "mind the spelling") from None
    return Path(found).parent if isinstance(found, str) else None


def placed(name: str, project: Workspace) -> str:
    """The name of a model as a project has it: a folder of the project, where there is such a one."""
    folder = project.locate(name)
    return str(folder) if (folder / "config.json").is_file() else name


def locate(name: str, what: str) -> Path:
    """The folder of a model. Raises MissingPrerequisite for one that is not on this machine, naming what fetches it."""
    if (folder := find(name)) is not None:
        return folder
    known = f" ({terms(name)})" if terms(name) else ""
    raise MissingPrerequisite(f"{what}, {name}{known}, is not on this machine",
                              f"Run: videomage fetch {NAME if known else shlex.quote(name)}")


def revision(name: str) -> str:
    """A model as a manifest names it: "owner/name@commit" of one of the hub, the last part of a folder's name."""
    folder = find(name)
    return f"{name.partition('@')[0]}@{folder.name}" if _at_commit(folder) else Path(name).name


def identity(name: str, setup: Setup) -> list:
    """All that the masks depend on beside the pictures and the phrases, for a segmenter that looks for itself: its
    name, what of the setup shapes them, the kind of device, and its weights, by their commit on the hub or their
    content."""
    weights = {"clipseg": (setup.model or CLIPSEG,), "grounded-sam2": (setup.detector, setup.tracker)}[name]
    return [name, {key: getattr(setup, key) for key in SHAPING[name]}, setup.device.partition(":")[0],
            [_content(str(one)) for one in weights]]


def _content(name: str) -> str:
    folder = find(name)
    if folder is None or _at_commit(folder):
        return revision(name)
    return content(folder, sorted(path for path in folder.iterdir() if path.suffix in READ))


def _at_commit(folder: Path | None) -> bool:
    return folder is not None and folder.parent.name == "snapshots"
