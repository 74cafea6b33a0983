"""Getting a base from the hub: what would be downloaded, the download, and the conversion of pickled weights.

Only `videomage fetch` asks the network; no stage does. huggingface_hub keeps what it downloads where other tools look
for it too. Pickled weights are never read by this process: convert.py does so once, in one of its own.
"""
from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import BadInput, OutOfResources, Refused, UsageError
from ..core.hashes import home
from ..core.hub import licence_of, missing_room, room, the_hub
from ..core.report import Report, silent
from .bases import converted, find, licence, locate, on_hub
from .folder import check, check_index, is_pickle, is_weights

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
    """Ask the hub what a base consists of. Raises BadInput for a repository that is not there or is no base,
    MissingPrerequisite where the hub cannot be reached."""
    repo, revision = on_hub(base)
    with the_hub(repo) as hub:
        info = hub.HfApi().model_info(repo, revision=revision, files_metadata=True)
    files, pickled = choose({entry.rfilename: entry.size or 0 for entry in info.siblings}, repo)
    return Download(repo, info.sha, licence_of(info) or licence(base), files, pickled)


def choose(there: dict[str, int], repo: str = "it") -> tuple[dict[str, int], tuple[str, ...]]:
    """Of a repository's files {path: bytes} those that a base needs, and the parts that are pickled only. Of the
    weights the fp16 variant is taken where there is one, and safetensors wherever there are any. Raises BadInput where
    there is no model_index.json, or no weights of a part."""
    if "model_index.json" not in there:
        raise BadInput(f"{repo} holds no model_index.json, so it is no pipeline", "name another repository")
    wanted = {name: size for name, size in there.items() if name.endswith(_SMALL) and name.count("/") <= 1
              and ".index." not in name}
    pickled = []
    for part in PARTS:
        own = {name.split("/")[1]: name for name in there if name.startswith(f"{part}/") and name.count("/") == 1}
        found = [[path for name, path in own.items() if is_weights(name, part, variant)] for variant in ("fp16", None)]
        if not any(found):
            loose = [path for name, path in own.items() if is_pickle(name, part)]
            if not loose:
                raise BadInput(f"{repo} holds no weights in {part}/", "name another repository or revision")
            pickled.append(part)
            found = [[path for path in loose if ".fp16" in path], loose]
        wanted |= {name: there[name] for name in next(filter(None, found))}
    return wanted, tuple(pickled)


def fetch(base: str, *, convert: bool = False, out: Path | None = None, report: Report = silent) -> Path:
    """Download a base of the hub, unless it is here, and check it -> its folder. convert: turn pickled weights into
    safetensors, in `out` or where the base's name finds them; that goes for a folder, too, whose copy is then
    FOLDER-safetensors.

    Raises Refused where weights are pickled and convert is not asked for, UsageError where there is nothing to
    convert, and what `look_up` and `check` raise.
    """
    here = find(base)
    if not on_hub(base):
        folder = locate(base).resolve()
        return _converted(folder, out or folder.with_name(folder.name + "-safetensors"), {})
    if here and not pickled_parts(here):
        if out:
            raise UsageError(f"the base '{base}' has no pickles to convert", "leave --out away")
        check(here, base)
        return here
    if here is None:
        plan = look_up(base)
        report(note=f"{plan.repo} at {plan.commit[:8]}: {len(plan.files)} files, {plan.bytes / 1e9:.2f} GB, licence: "
                    f"{plan.licence}")
        if plan.pickled and not convert:
            raise _pickles(base, plan.repo, plan.pickled)
        if out and not plan.pickled:
            raise UsageError(f"the base '{base}' has no pickles to convert", "leave --out away")
        here = _download(base, plan, report)
    if not (loose := pickled_parts(here)):
        check(here, base)
        return here
    if not convert:
        raise _pickles(base, on_hub(base)[0], loose)
    report(note=f"converting {', '.join(loose)} in a process of its own")
    return _converted(here, out or converted(base), {"source": on_hub(base)[0], "revision": here.name})


def pickled_parts(folder: Path) -> list[str]:
    """The parts of a base's folder of which there is a pickle alone."""
    names = {part: [path.name for path in (folder / part).iterdir()] if (folder / part).is_dir() else []
             for part in PARTS}
    return [part for part, own in names.items() if any(is_pickle(name, part) for name in own)
            and not any(is_weights(name, part, variant) for name in own for variant in (None, "fp16"))]


def _pickles(base: str, repo: str, parts: Sequence[str]) -> Refused:
    return Refused(f"{repo} holds {', '.join(parts)} as pickles alone, which could run code when they are read",
                    f"convert them once, in a process of its own: videomage fetch {base} --convert")


def _download(base: str, plan: Download, report: Report) -> Path:
    """The files of a plan -> the snapshot's folder in the hub's cache. What is there already is not asked for again."""
    _, revision = on_hub(base)
    with the_hub(plan.repo) as hub:
        cache = missing_room(hub, plan.repo, plan.commit, plan.files)
        if plan.pickled:
            room(home(), plan.bytes, "VIDEOMAGE_HOME")
        first = ["model_index.json"]                  # a base of another kind is refused before its gigabytes
        for k, name in enumerate([*first, *sorted(plan.files.keys() - first, key=plan.files.get)]):
            report(step=k + 1, of=len(plan.files), file=name, gigabytes=plan.files[name] / 1e9)
            path = Path(hub.hf_hub_download(plan.repo, name, revision=revision, cache_dir=cache))
            if name == first[0]:
                check_index(path, base)
                folder = path.parent
    return folder


def _converted(source: Path, out: Path, facts: Mapping[str, str]) -> Path:
    """Run convert.py on a folder, in a process of its own, and check what it made."""
    if not pickled_parts(source):
        raise UsageError(f"{source} has no pickles to convert", "use it as it is")
    typed = [str(source.resolve()), str(out.absolute()), *facts.values()]
    done = subprocess.run([sys.executable, "-m", "stages.backbones.convert", *typed], capture_output=True, text=True,
                          check=False, cwd=Path(__file__).parents[2])       # where `stages` is ours
    if done.returncode < 0 or "MemoryError" in done.stderr:
        raise OutOfResources("the conversion ran out of memory or was killed", "close other programs: it takes the "
                             "weights of one part, twice")
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it ended without a word"]
        kind = Refused if done.returncode == Refused.exit_code else BadInput
        raise kind(f"the weights in {source} could not be converted: {said[-1]}", "see that the files are whole")
    try:
        check(out, str(source))
    except BadInput:
        shutil.rmtree(out, ignore_errors=True)
        raise
    return out
