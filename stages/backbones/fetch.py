"""Getting a base from the hub: what would be downloaded, the download, and the conversion of pickled weights.

Only `videomage fetch` asks the network; no stage does. huggingface_hub keeps what it downloads where other tools look
for it too. Pickled weights are never read by this process: convert.py does so once, in one of its own.
"""
from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import BadInput, MissingPrerequisite, OutOfResources, UsageError, VideomageError
from ..core.report import Report, silent
from .bases import converted, licence, locate, on_hub
from .folder import PICKLED, check, is_weights

PARTS = ("unet", "vae", "text_encoder")
_SMALL = (".json", ".txt", "README.md", "LICENSE")


@dataclass(frozen=True)
class Download:
    """files: {path in the repository: bytes}. pickled: parts of which there is a pickle alone, in `files` as well."""

    repo: str
    commit: str
    licence: str
    files: dict[str, int]
    pickled: tuple[str, ...]

    @property
    def bytes(self) -> int:
        return sum(self.files.values())


def look_up(base: str) -> Download:
    """Ask the hub what a base consists of. Raises UsageError for a base that is not of the hub, BadInput for a
    repository that is not there or is no base, MissingPrerequisite where the hub cannot be reached."""
    where = on_hub(base)
    if where is None:
        raise UsageError(f"the base '{base}' is not one of the hub", "there is nothing to fetch")
    repo, revision = where
    with _hub(repo) as hub:
        info = hub.HfApi().model_info(repo, revision=revision, files_metadata=True)
    files, pickled = choose({entry.rfilename: entry.size or 0 for entry in info.siblings})
    if "model_index.json" not in files:
        raise BadInput(f"{repo} holds no model_index.json, so it is no pipeline", "name another repository")
    stated = [tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")]
    return Download(repo, info.sha, stated[0] if stated else licence(base), files, pickled)


def choose(there: dict[str, int]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Of a repository's files {path: bytes} those that a base needs, and the parts that are pickled only. Of the
    weights the fp16 variant is taken where there is one, and safetensors wherever there are any."""
    wanted = {name: size for name, size in there.items() if name.endswith(_SMALL) and name.count("/") <= 1
              and ".index." not in name}
    pickled = []
    for part in PARTS:
        own = [name for name in there if name.startswith(f"{part}/") and name.count("/") == 1]
        loose = [name for name in own if name.endswith(PICKLED) or ".bin.index" in name]
        safe = {variant: [name for name in own if is_weights(name.split("/")[1], part, variant)]
                for variant in ("fp16", None)}
        if not any(safe.values()) and loose:
            pickled.append(part)
            safe["fp16"] = [name for name in loose if ".fp16" in name] or loose
        wanted |= {name: there[name] for name in safe["fp16"] or safe[None]}
    return wanted, tuple(pickled)


def fetch(base: str, *, convert: bool = False, out: Path | None = None, report: Report = silent) -> Path:
    """Download a base of the hub, unless it is here, and check it -> its folder. convert: turn pickled weights into
    safetensors, `out` or `converted(base)`; that goes for a folder, too, whose copy is then FOLDER-safetensors.

    Raises BadInput where weights are pickled and convert is not asked for, and what `look_up` and `check` raise.
    """
    if not on_hub(base):
        folder = locate(base)
        return _converted(folder, out or folder.with_name(folder.name + "-safetensors"), base) if convert else folder
    if (converted(base) / "model_index.json").is_file():
        return locate(base)
    plan = look_up(base)
    if plan.pickled and not convert:
        raise BadInput(f"{plan.repo} holds {', '.join(plan.pickled)} as pickles alone, which could run code when they "
                       "are read", f"convert them once, in a process of its own: videomage fetch {base} --convert")
    report(note=f"{plan.repo} at {plan.commit[:8]}: {len(plan.files)} files, {plan.bytes / 1e9:.2f} GB, licence: "
                f"{plan.licence}")
    folder = _download(base, plan, report)
    if not plan.pickled:
        check(folder, base)
        return folder
    report(note=f"converting {', '.join(plan.pickled)} in a process of its own")
    return _converted(folder, out or converted(base), base)


def _download(base: str, plan: Download, report: Report) -> Path:
    """The files of a plan -> the snapshot's folder in the hub's cache."""
    _, revision = on_hub(base)
    with _hub(plan.repo) as hub:
        cache = Path(hub.constants.HF_HUB_CACHE)
        cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache).free
        if free < plan.bytes:
            raise OutOfResources(f"{plan.repo} takes {plan.bytes / 1e9:.1f} GB, and the disk of {cache} has "
                                 f"{free / 1e9:.1f} GB left", "make room, or set HF_HOME to a folder elsewhere")
        folder = None
        for k, (name, size) in enumerate(sorted(plan.files.items(), key=lambda item: item[1])):
            report(step=k + 1, of=len(plan.files), file=name, gigabytes=size / 1e9)
            path = Path(hub.hf_hub_download(plan.repo, name, revision=revision))
            folder = path.parents[name.count("/")]
    return folder


def _converted(source: Path, out: Path, base: str) -> Path:
    """Run convert.py on a folder, in a process of its own, and check what it made."""
    done = subprocess.run([sys.executable, "-I", "-m", "stages.backbones.convert", str(source), str(out), base],
                          capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it ended without a word"]
        raise BadInput(f"the weights of '{base}' could not be converted: {said[-1]}", "see that the files are whole")
    check(out, base)
    return out


@contextmanager
def _hub(repo: str) -> Iterator[object]:
    """huggingface_hub, with its errors in our words and without its progress bars."""
    import huggingface_hub
    from huggingface_hub.errors import HTTPError, RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield huggingface_hub
    except VideomageError:
        raise
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise BadInput(f"the hub has no {repo}, or not that revision, or not for you ({_line(error)})",
                       "mind the spelling; for a gated one: hf auth login") from error
    except (HTTPError, OSError) as error:
        raise MissingPrerequisite(f"the hub cannot be reached ({_line(error)})", "go on where there is a network, or "
                                  "copy the folder here and name it: videomage init --base FOLDER") from error
    finally:
        if shown:
            enable_progress_bars()


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
