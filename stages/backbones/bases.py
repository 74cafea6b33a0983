"""The bases known by name, and where any base lies on this machine. Imports no torch and asks no network.

A base is named by one of KNOWN, by the id of a hub repository ("owner/name", "owner/name@revision"), or by a folder in
the format of diffusers' TextToVideoSDPipeline. What is on the hub is looked for where huggingface_hub keeps what it
downloads (HF_HOME), and for one that was converted (convert.py) in `home()`.
"""
from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ..core.errors import BadInput, MissingPrerequisite, VideomageError
from ..core.foreign import MOST_CONFIG, parse_yaml, read_json, read_text
from ..core.hashes import content, home

SPRITES = Path(__file__).parent.parent / "sprites" / "weights" / "base"
SHAPE = Path(__file__).parent / "shape"                # the configs that the bases of KNOWN share, for estimates
UNKNOWN = "not stated"
_HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
_PARTS = ("scheduler", "text_encoder", "tokenizer", "unet", "vae")
_READ = {".json", ".txt", ".safetensors"}              # what `load` reads of them, and what a revision covers


@dataclass(frozen=True)
class Video:
    """What a base makes: frames at fps per second, of height x width pixels."""

    frames: int = 16
    fps: int = 8
    height: int = 256
    width: int = 256

    def __str__(self) -> str:
        return f"{self.width}x{self.height}, {self.frames} frames at {self.fps} per second"


@dataclass(frozen=True)
class Known:
    """A base known by name. revision: a commit of repo, None: its newest. gigabytes: to download, in half precision.
    pickled: that revision holds pickled weights alone, which convert.py turns into safetensors."""

    repo: str
    revision: str | None
    licence: str
    gigabytes: float
    video: Video
    pickled: bool = False


# The commit of zeroscope is the one that its users' logs name, with the pickled files in unet/ and vae/. Of modelscope
# no commit could be established: its newest is taken, and the manifests say which that was.
KNOWN: dict[str, Known] = {
    "zeroscope": Known("cerspense/zeroscope_v2_576w", "6963642a64dbefa93663d1ecebb4ceda2d9ecb28", "CC-BY-NC-4.0", 3.7,
                       Video(24, 8, 320, 576), pickled=True),
    "modelscope": Known("damo-vilab/text-to-video-ms-1.7b", None, "CC-BY-NC-4.0", 3.7, Video(16, 8, 256, 256)),
}
NAMES = ("sprites", *KNOWN)


def known(base: str) -> Known | None:
    """The entry of a base named by its short name or by its repository."""
    repo = base.partition("@")[0]
    return next((entry for name, entry in KNOWN.items() if base == name or repo == entry.repo), None)


def on_hub(base: str) -> tuple[str, str | None] | None:
    """(repository, revision or None: its newest) of a base of the hub; None for a folder and for sprites."""
    if base in KNOWN:
        return KNOWN[base].repo, KNOWN[base].revision
    match = _HUB_ID.fullmatch(base)
    if base == "sprites" or match is None or (Path(base) / "model_index.json").is_file():
        return None
    entry = known(base)
    return match["repo"], match["revision"] or (entry.revision if entry else None)


def converted(base: str) -> Path:
    """Where convert.py leaves the safetensors of a base of the hub."""
    repo, revision = on_hub(base) or (base, None)
    entry = known(base)
    pinned = revision if revision and not (entry and revision == entry.revision) else ""
    return home() / "bases" / (repo.replace("/", "--") + (f"--{pinned.replace('/', '-')}" if pinned else ""))


def snapshot(base: str) -> Path | None:
    """The folder in the hub's cache that holds a base's model_index.json, or None."""
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    repo, revision = on_hub(base)
    try:
        found = try_to_load_from_cache(repo, "model_index.json", revision=revision, cache_dir=constants.HF_HUB_CACHE)
    except HFValidationError:
        raise BadInput(f"'{base}' is neither a folder nor the name of a repository", "mind the spelling") from None
    return Path(found).parent if isinstance(found, str) else None


def locate(base: str) -> Path:
    """The folder of a base. Raises BadInput for what names none, MissingPrerequisite for one that is on the hub and not
    on this machine."""
    if folder := find(base):
        return folder
    if on_hub(base):
        folder = "" if known(base) else ", neither as a folder nor from the hub"
        raise MissingPrerequisite(f"the base '{base}' is not on this machine{folder}{_in_brackets(terms(base))}",
                                  f"Run: videomage fetch {base}")
    raise BadInput(f"the base '{base}' is no folder with a model_index.json", f"name one of {', '.join(NAMES)}, a "
                   "repository of the hub (owner/name), or a folder in the format of diffusers' TextToVideoSDPipeline")


def find(base: str) -> Path | None:
    """The folder of a base, or None."""
    if base == "sprites":
        return SPRITES
    folder = converted(base) if on_hub(base) else Path(os.path.expanduser(base))  # noqa: PTH111 (it never raises)
    if (folder / "model_index.json").is_file():
        return folder
    return snapshot(base) if on_hub(base) else None


def shape_of(base: str) -> Path:
    """A folder whose configs tell a base's shape: its own, or SHAPE for one of KNOWN that is not on this machine yet.
    Raises what `locate` does."""
    return SHAPE if known(base) and find(base) is None else locate(base)


def terms(base: str) -> str:
    """Licence, and the download's size, where they are known: "licence: CC-BY-NC-4.0, about 3.7 GB to download"."""
    entry, said = known(base), licence(base)
    facts = [f"licence: {said}"] if said != UNKNOWN or find(base) else []
    facts += [f"about {entry.gigabytes:g} GB to download"] if entry and on_hub(base) and not find(base) else []
    return ", ".join(facts)


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""


def licence(base: str) -> str:
    """The licence of a base's weights: of KNOWN; else what its videomage.json or its model card says; else UNKNOWN."""
    if base == "sprites":
        return "Apache-2.0"
    if entry := known(base):
        return entry.licence
    if (folder := find(base)) is None:
        return UNKNOWN
    if said := own_facts(folder).get("licence"):
        return str(said)
    card = folder / "README.md"
    try:
        front = re.match(r"---\n(.*?)\n---\n", read_text(card, MOST_CONFIG), re.DOTALL)
        facts = parse_yaml(front[1], str(card)) if front else None
    except (OSError, ValueError, VideomageError):      # what its authors wrote there is not ours to judge
        facts = None
    return str(facts.get("license") or UNKNOWN) if isinstance(facts, Mapping) else UNKNOWN


def video(base: str, wanted: Mapping[str, int] | None = None) -> Video:
    """What a base makes: the project's wish, over videomage.json beside its model_index.json, over KNOWN, over 16
    frames at 8 per second of the size that its U-Net's config names. Raises BadInput for a size that is no multiple of
    a latent cell."""
    folder, entry = shape_of(base), known(base)
    cell = 2 ** (len(config(folder, "vae").get("block_out_channels") or [0]) - 1)
    size = config(folder, "unet").get("sample_size") or 32
    height, width = (size, size) if isinstance(size, int) else size
    native = asdict(entry.video) if entry else {"height": height * cell, "width": width * cell}
    keys = {spec.name for spec in fields(Video)}
    stated = {key: value for key, value in own_facts(folder).items() if key in keys}
    for key, value in stated.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise BadInput(f"{folder / 'videomage.json'}: {key} is {value!r}", "make it a whole number above 0")
    out = Video(**{**native, **stated, **(wanted or {})})
    for name in ("height", "width"):
        if getattr(out, name) % cell:
            raise BadInput(f"videos of '{base}' cannot be {getattr(out, name)} pixels in {name}",
                           f"choose a multiple of {cell}")
    return out


def identity(base: str, wanted: Mapping[str, int] | None = None) -> dict[str, object]:
    """What a manifest says of a base: {"name": as given, "revision": the commit of a snapshot of the hub, else the
    sha256 over names and hashes of the folder's files}, and "video" where the project wants another than the base's."""
    folder = locate(base)
    at_commit = on_hub(base) and folder.parent.name == "snapshots"
    revision = folder.name if at_commit else content(folder, files_of(folder))
    return {"name": base, "revision": revision, **({"video": dict(wanted)} if wanted else {})}


def origin(base: str) -> dict[str, str]:
    """Where others find a base: {"base": repository, "revision": commit} of one of the hub, converted or not; of a
    folder its name alone (where it lay is nobody's business) and the hash of its content."""
    folder, own = locate(base), own_facts(locate(base))
    if "source" in own and "revision" in own:
        return {"base": str(own["source"]), "revision": str(own["revision"])}
    name = base if base == "sprites" else on_hub(base)[0] if on_hub(base) else folder.resolve().name
    return {"base": name, "revision": str(identity(base)["revision"])}


def config(folder: Path, part: str) -> dict[str, object]:
    """config.json of one part; {} where there is none. Raises BadInput where it cannot be read."""
    path = folder / part / "config.json"
    try:
        found = read_json(path, MOST_CONFIG)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise BadInput(f"{path} is damaged", "copy or fetch the base again")
    return found


def own_facts(folder: Path) -> dict[str, object]:
    """videomage.json: frames, fps, height, width, licence; {} where there is none."""
    path = folder / "videomage.json"
    try:
        found = read_json(path, MOST_CONFIG)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise BadInput(f"{path} is damaged", "mend or delete it")
    return found


def files_of(folder: Path) -> list[Path]:
    """What `load` reads: the files of the five parts, which may be linked folders, and the two beside them."""
    parts = [path for part in _PARTS if (folder / part).is_dir() for path in sorted((folder / part).iterdir())]
    there = (folder / "model_index.json", folder / "videomage.json", *parts)
    return [path for path in there if path.suffix in _READ and path.is_file()]
