"""Tiny bases with random weights in exactly the layout of the real repositories: names of folders and files, fp16
variants, shards, pickles, the names that weights had when those repositories were made, and the hub's cache."""
from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from conftest import make_base
from safetensors.torch import load_file, save_file

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CARD = "---\nlicense: cc-by-nc-4.0\npipeline_tag: text-to-video\n---\n\n# A model card\n"
OLD_ATTENTION = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}   # of early VAEs
FILES = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


def zeroscope(folder: Path) -> Path:
    """As converted from cerspense/zeroscope_v2_576w: half precision in files without a variant."""
    return _as_on_the_hub(make_base(folder, steps_offset=1, prediction_type="epsilon"), half=True)


def modelscope(folder: Path) -> Path:
    """As damo-vilab/text-to-video-ms-1.7b: full weights, their fp16 variant, and pickles beside both."""
    _as_on_the_hub(make_base(folder, steps_offset=1, prediction_type="epsilon"), half=False)
    for part, stem in FILES.items():
        full = load_file(folder / part / f"{stem}.safetensors")
        half = {name: _half(tensor) for name, tensor in full.items()}
        save_file(half, folder / part / f"{stem}.fp16.safetensors")
        (folder / part / f"{stem.replace('model', 'pytorch_model') if part == 'text_encoder' else stem}.bin"
         ).write_bytes(b"a pickle that nobody reads")
    return folder


def _as_on_the_hub(folder: Path, *, half: bool) -> Path:
    (folder / "videomage.json").unlink()
    (folder / "README.md").write_text(CARD)
    (folder / ".gitattributes").write_text("*.bin filter=lfs\n")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_diffusers_version": "0.17.0.dev0"}, indent=2))
    for part, stem in FILES.items():
        path = folder / part / f"{stem}.safetensors"
        tensors = {_old(name, part): tensor for name, tensor in load_file(path).items()}
        if part == "text_encoder":
            tensors["text_model.embeddings.position_ids"] = torch.arange(20)[None]
        save_file({name: _half(t) if half else t for name, t in tensors.items()}, path, metadata={"format": "pt"})
    _slow_tokenizer(folder / "tokenizer")
    return folder


def _half(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.half() if tensor.is_floating_point() else tensor


def _old(name: str, part: str) -> str:
    if part == "text_encoder":
        return f"text_model.{name.removeprefix('text_model.')}"
    for new, old in OLD_ATTENTION.items():
        if part == "vae" and ".attentions." in name:
            name = name.replace(new, old)
    return name


def _slow_tokenizer(folder: Path) -> None:
    """vocab.json, merges.txt, special_tokens_map.json and tokenizer_config.json, as tools wrote them then."""
    whole = json.loads((folder / "tokenizer.json").read_text())["model"]
    own = json.loads((folder / "tokenizer_config.json").read_text())
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps(whole["vocab"]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in whole["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
               "pad_token": "<|endoftext|>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "add_prefix_space": False, "do_lower_case": True, "errors": "replace", "tokenizer_class": "CLIPTokenizer",
        "model_max_length": own["model_max_length"], **special}))


def shard(folder: Path, part: str, *, pieces: int = 3, variant: str = "") -> Path:
    """Cut the weights of a part into pieces with an index, as save_pretrained does above its limit."""
    stem = FILES[part]
    path = folder / part / f"{stem}{variant}.safetensors"
    tensors, size = load_file(path), 0
    names, owner = sorted(tensors), {}
    for k in range(pieces):
        own = names[k::pieces]
        name = f"{stem}{variant}-{k + 1:05d}-of-{pieces:05d}.safetensors"
        save_file({key: tensors[key] for key in own}, folder / part / name, metadata={"format": "pt"})
        owner |= dict.fromkeys(own, name)
        size += sum(tensors[key].nbytes for key in own)
    path.unlink()
    index = f"{stem}.safetensors.index{variant}.json"
    (folder / part / index).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": owner}))
    return folder


def pickle_only(folder: Path, *parts: str) -> Path:
    """Replace safetensors by the pickles that torch.save writes, as the repository of zeroscope has them."""
    for part in parts or FILES:
        path = folder / part / f"{FILES[part]}.safetensors"
        torch.save(load_file(path), folder / part / ("pytorch_model.bin" if part == "text_encoder" else
                                                     f"{FILES[part]}.bin"))
        path.unlink()
    return folder


def in_hub_cache(source: Path, cache: Path, repo: str, *, commit: str = COMMIT, ref: str | None = "main") -> Path:
    """A repository as huggingface_hub keeps it: blobs, snapshots of links to them, and refs -> the snapshot."""
    root = cache / f"models--{repo.replace('/', '--')}"
    snapshot = root / "snapshots" / commit
    for k, path in enumerate(sorted(p for p in source.rglob("*") if p.is_file())):
        blob = root / "blobs" / f"{k:064x}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, blob)
        link = snapshot / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    if ref:
        (root / "refs").mkdir(parents=True)
        (root / "refs" / ref).write_text(commit)
    return snapshot
