"""The hub as we use it: its client with its errors in our words, room on the disk, what it says of a licence.

huggingface_hub keeps what it downloads where other tools look for it too. Imports no torch; asks the network only
inside `the_hub`, which `videomage fetch` alone enters.
"""
from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from .errors import BadInput, MissingPrerequisite, OutOfResources, VideomageError


def licence_of(info: object) -> str:
    """The licence that the hub states of a repository, "" where it states none."""
    stated = [tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")]
    return stated[0] if stated else ""


def missing_room(hub: object, repo: str, commit: str, files: Mapping[str, int]) -> Path:
    """The hub's cache, on whose disk there is room for those of a repository's files {path: bytes} that it has not yet.
    Raises OutOfResources where there is not."""
    cache = Path(hub.constants.HF_HUB_CACHE)
    here = {name for name in files
            if isinstance(hub.try_to_load_from_cache(repo, name, revision=commit, cache_dir=cache), str)}
    room(cache, sum(size for name, size in files.items() if name not in here), "HF_HOME")
    return cache


def room(folder: Path, size: int, variable: str) -> None:
    """Raise OutOfResources where a disk has not so many bytes left."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OutOfResources(f"{size / 1e9:.1f} GB are needed in {folder}, and its disk has {free / 1e9:.1f} GB left",
                             f"make room, or set {variable} to a folder elsewhere")


@contextmanager
def the_hub(repo: str) -> Iterator[object]:
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
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        raise MissingPrerequisite(f"the hub cannot be reached ({_line(error)})", "go on where there is a network, or "
                                  "copy its folder here and name that in its place") from error
    finally:
        if shown:
            enable_progress_bars()


def _line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
