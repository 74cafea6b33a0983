"""export: what was learned, in files that other programs open.

    peft       adapter_config.json, adapter_model.safetensors      peft.PeftModel.from_pretrained(unet, folder)
    diffusers  pytorch_lora_weights.safetensors                    pipe.load_lora_weights(folder)
    kohya      NAME-lora.safetensors                               lora_unet_*.lora_down, .lora_up, .alpha
    each       TOKEN.safetensors for every token                   pipe.load_textual_inversion(file)

A lora.safetensors of ours is PEFT's state dict already; what the formats differ in is the names of the keys and where
alpha stands. So nothing is computed here: every factor is written bit for bit, alpha and rank as they are (a fused LoRA
has the rank N r, and is no special case). All that our header says of a LoRA's origin goes along, under "videomage" in
the header of each file, and in words in README.md beside the formats that are folders.
"""
from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from . import STAGES
from .backbones.bases import known
from .core import store
from .core.errors import BadInput, MissingPrerequisite, UsageError
from .core.lora import Lora, load, load_tokens
from .core.settings import did_you_mean
from .core.workspace import Workspace
from .prompts import slug

Files = dict[str, bytes]                               # name in the folder -> content
LAYERS = {"subject": "spatial layers", "motion": "temporal layers"}
CALLS = {"peft": ("peft", "PeftModel.from_pretrained(unet, folder)"),
         "diffusers": ("diffusers", "pipe.load_lora_weights(folder)")}


def export(sources: Path | Sequence[Path], out: Path, form: str = "diffusers", *, force: bool = False) -> list[Path]:
    """Write what the stages' files hold into the folder `out` -> the files written.

    sources: one LoRA at most (lora.safetensors), and any number of files of tokens, which are written alike in every
    form; `files_of` finds them in a project. form: one of FORMATS. Files are written whole or not at all; what `out`
    holds beside them stays. Raises UsageError where one is there already (force replaces it), BadInput for a source
    that no stage wrote.
    """
    if form not in FORMATS:
        raise UsageError(f"'{form}' is no format", did_you_mean(form, FORMATS))
    files: Files = {}
    for source in [sources] if isinstance(sources, Path) else sources:
        for name, content in _converted(source, form).items():
            if name in files:
                raise BadInput(f"two of the sources would both be {name}", "export them to a folder each")
            files[name] = content
    return _write(files, out, force)


@contextmanager
def files_of(project: Workspace, name: str) -> Iterator[list[Path]]:
    """What the project learned under a name: a subject's LoRA and token ("toy"), the fused LoRA of several and their
    tokens ("dog+toy", in any order), a motion's LoRA and its actors' tokens. Inside the block nobody makes them anew.
    Raises UsageError for a name that is none of these, MissingPrerequisite where a file has not been made, Locked where
    one is being made."""
    parts = sorted(set(name.split("+")))
    if set(parts) <= set(project.subjects()):
        alone, whole = len(parts) == 1, "+".join(parts)
        folder = project.subject_folder(name) if alone else project.fused_folder(parts)
        wanted = {folder / "lora.safetensors": ("learn-subject" if alone else "fuse", whole)}
        wanted |= {project.subject_folder(part) / "token.safetensors": ("learn-subject", part) for part in parts}
    elif name in project.motions():
        folder = project.motion_folder(name)
        wanted = {folder / "lora.safetensors": ("learn-motion", name), folder / "tokens.safetensors": ("invert", name)}
    else:
        there = dict.fromkeys([*project.subjects(), *project.fusions(), *project.motions()])
        raise UsageError(f"'{name}' is no subject, fusion or motion of the project", did_you_mean(name, there))
    with ExitStack() as held:
        for stage, what in dict.fromkeys(wanted.values()):
            held.enter_context(project.reading(stage, what, f"export {name}"))
        for path, (stage, what) in wanted.items():
            if not path.is_file():
                raise MissingPrerequisite(f"{project.show(path)} has not been made",
                                          f"Run: {STAGES[stage].command(what)}")
        yield list(wanted)


# -- the formats -----------------------------------------------------------------------------------------------------
def peft_files(lora: Lora, name: str) -> Files:
    """PEFT's folder. The config names every layer in full: PEFT takes names in a list for suffixes, and no full name is
    the end of another."""
    config = {"peft_type": "LORA", "task_type": None, "base_model_name_or_path": _base(lora), "inference_mode": True,
              **_peft_config(lora)}
    tensors = {f"base_model.model.{key}": value for key, value in lora.tensors.items()}
    return {"adapter_config.json": (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
            "adapter_model.safetensors": _packed(tensors, _facts(lora)), "README.md": _card(lora, name, "peft")}


def diffusers_files(lora: Lora, name: str) -> Files:
    """diffusers' file: PEFT's keys and config, both under "unet."; the config stands in the header, and without it
    diffusers would take alpha for the rank."""
    config = {f"unet.{key}": value for key, value in _peft_config(lora).items()}
    tensors = {f"unet.{key}": value for key, value in lora.tensors.items()}
    header = {"lora_adapter_metadata": json.dumps(config, sort_keys=True), **_facts(lora)}
    return {"pytorch_lora_weights.safetensors": _packed(tensors, header), "README.md": _card(lora, name, "diffusers")}


def kohya_files(lora: Lora, name: str) -> Files:
    """The format of kohya's sd-scripts: a layer's path with _ for its dots, alpha as a tensor of its own in each layer.
    Raises BadInput where two layers would get one name."""
    names = {module: "lora_unet_" + module.replace(".", "_") for module in lora.modules}
    if len(set(names.values())) < len(names):
        raise BadInput("two of the LoRA's layers have one name in kohya's format", "export it to peft or diffusers")
    alpha = torch.tensor(lora.alpha, dtype=torch.float64)
    alpha = alpha.float() if float(alpha.float()) == lora.alpha else alpha        # float32 as is usual, if it is exact
    tensors = {}
    for module, key in names.items():
        tensors[f"{key}.lora_down.weight"], tensors[f"{key}.lora_up.weight"] = lora.factors(module)
        tensors[f"{key}.alpha"] = alpha.clone()                                  # safetensors writes no shared memory
    header = {"ss_network_module": "networks.lora", "ss_network_dim": str(lora.rank),
              "ss_network_alpha": str(lora.alpha), "ss_output_name": name, "ss_base_model_version": _base(lora) or "",
              "ss_training_comment": "; ".join(f"{label}: {text}" for label, text in _told(lora).items()),
              **_facts(lora)}
    return {f"{slug(name)}-lora.safetensors": _packed(tensors, header)}


def token_files(tokens: Mapping[str, Tensor]) -> Files:
    """A file of diffusers' textual inversion for each token. One of n vectors is loaded as <toy>, <toy>_1, ..., and a
    prompt goes on saying <toy>."""
    files: Files = {}
    for token, rows in tokens.items():
        name = f"{slug(token)}.safetensors"
        if name in files:
            raise BadInput(f"two tokens would both be {name}", "rename one of them and learn it again")
        files[name] = _packed({token: rows}, {})
    return files


FORMATS: dict[str, Callable[[Lora, str], Files]] = {"peft": peft_files, "diffusers": diffusers_files,
                                                    "kohya": kohya_files}


# -- their parts -----------------------------------------------------------------------------------------------------
def _converted(source: Path, form: str) -> Files:
    """A file of a stage as files of a format. The header tells a LoRA from tokens."""
    remedy = "give the lora.safetensors or token.safetensors that a stage wrote"
    if not source.is_file():
        raise BadInput(f"there is no file {source}", remedy)
    reasons = []
    for read in (load, load_tokens):
        try:
            found = read(source)
        except BadInput as error:
            reasons.append(error.what)
            continue
        return FORMATS[form](found, _title(found, source)) if isinstance(found, Lora) else token_files(found)
    raise BadInput(f"{source} holds neither a LoRA nor tokens that a stage wrote ({reasons[0]})", remedy)


def _title(lora: Lora, source: Path) -> str:
    """What it was learned of: "toy", "dog+toy", "riding"; of a LoRA that does not say, the name of its file."""
    names = [lora.metadata[key] for key in ("subjects", "subject", "motion") if key in lora.metadata]
    return names[0] if names else source.stem


def _peft_config(lora: Lora) -> dict[str, object]:
    """What peft.LoraConfig has to be told; the rest are its defaults."""
    return {"r": lora.rank, "lora_alpha": int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,
            "lora_dropout": 0.0, "bias": "none", "target_modules": sorted(lora.modules)}


def _facts(lora: Lora) -> dict[str, str]:
    """The whole of our own header, for the header of another format."""
    return {"videomage": json.dumps({**lora.metadata, "alpha": lora.alpha, "rank": lora.rank}, sort_keys=True)}


def _base(lora: Lora) -> str | None:
    """The base as others can find it: its repository, where it is a known one."""
    name = lora.metadata.get("base")
    entry = known(name) if name else None
    return entry.repo if entry else name


def _told(lora: Lora) -> dict[str, str]:
    """What a person should know, of what the header says."""
    facts = {"trigger": lora.metadata.get("trigger"),
             "trained on the prompt": lora.metadata.get("prompt") or lora.metadata.get("c_m"),
             "class": lora.metadata.get("class"), "base": _base(lora), "revision": lora.metadata.get("revision"),
             "licence": lora.metadata.get("licence")}
    return {label: _one_line(text) for label, text in facts.items() if text}


def _one_line(text: str) -> str:
    """A value of a file's header, which anybody may have written, as part of a line of Markdown."""
    return re.sub(r"[^\S ]+|[\x00-\x1f\x7f-\x9f`]", " ", text)


def _card(lora: Lora, name: str, form: str) -> bytes:
    """README.md, with the front matter that the hub reads."""
    library, call = CALLS[form]
    front = [f"base_model: {json.dumps(_base(lora))}"] if _base(lora) else []      # JSON's quotes are YAML's, too
    front += [f"library_name: {library}", "license: other", "tags: [lora, text-to-video, videomage]"]
    layers = LAYERS.get(lora.metadata.get("targets", ""), f"{len(lora.modules)} layers")
    lines = ["---", *front, "---", f"# {_one_line(name)}", "",
             f"A LoRA in the {layers} of a text-to-video U-Net: rank {lora.rank}, alpha {lora.alpha:g}.", "",
             *(f"* {label}: `{text}`" if label != "licence" else f"* licence: {text}"
               for label, text in _told(lora).items()), "", f"Load it with `{call}`."]
    return ("\n".join(lines) + "\n").encode()


def _packed(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> bytes:
    """A safetensors file: 8 bytes (length of the header), the header (JSON), the tensors. The library writes several
    keys of metadata in a random order; here they are sorted, so that the same LoRA gives the same bytes."""
    whole = save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
    size = int.from_bytes(whole[:8], "little")
    header = {"__metadata__": {"format": "pt", **dict(sorted(facts.items()))}, **json.loads(whole[8:8 + size])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)                    # tensors start at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text + whole[8 + size:]


def _write(files: Files, out: Path, force: bool) -> list[Path]:
    """A new folder appears whole; in one that exists each file does, and a crash between two leaves some old."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file", "name a folder")
    there = [name for name in files if (out / name).exists()]
    if there and not force:
        raise UsageError(f"{out / there[0]} is there already", "name another folder, or replace it with --force")
    whole = out.resolve()
    partial = whole.with_name(f".{whole.name}.partial-{os.getpid()}")
    store.remove_folder(partial)                       # of a killed process that had our number
    try:
        store.make_folder(partial)
        for name, content in files.items():
            store.write(partial / name, content)
        if whole.exists():
            for name in files:
                store.rename(partial / name, whole / name)
            store.sync(whole)
        else:
            store.publish_folder(partial, whole)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return [out / name for name in files]
