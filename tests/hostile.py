"""What a stranger may send: files that are not what they say, for the tests of hostile input."""
from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from stages.core.workspace import Workspace

ESCAPES = "\x1b[31mred\x1b]0;title\x07\x9b2J\u202egnp.exe\r"           # colour, title, clear, backwards, start of line
MARKUP = "<script>alert(1)</script>\"' onload=\"x()\"</title><!-- [bold]b[/bold] :bomb:"


def packed(header: object, tensors: bytes = b"", length: int | None = None) -> bytes:
    """A safetensors file of this header, whatever it says. length: what its first eight bytes say."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + tensors


def entry(shape, start, stop, dtype="F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


HEADERS = {                                   # name: (file, what is said of it)
    "empty": (b"", "no safetensors"),
    "cut off in its length": (b"\x10\x00", "no safetensors"),
    "a length beyond its end": (packed({}, length=2**20), "no safetensors"),
    "a length beyond all": (packed({}, length=2**63), "no safetensors"),
    "a header of gigabytes": (packed(b"{" + b" " * (2**25 + 1) + b"}"), "read at most"),
    "no JSON": (packed(b"{nothing"), "damaged"),
    "a list": (packed([1]), "damaged"),
    "JSON without end": (packed(b'{"a":' + b"[" * 100_000), "damaged"),
    "a key twice": (packed(b'{"a":1,"a":2}'), "twice"),
    "half a character": (packed(b'{"\\ud800":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}', b"0000"), "half"),
    "no text": (packed(b"\xff\xfe{}"), "damaged"),
    "metadata that is no text": (packed({"__metadata__": {"a": 1}}), "metadata"),
    "metadata that is a list": (packed({"__metadata__": ["a"]}), "damaged"),
    "a tensor that is a number": (packed({"a": 1}), "damaged"),
    "a kind that is none": (packed({"a": entry([1], 0, 4, "PICKLE")}, b"0000"), "kind"),
    "a kind that is a list": (packed({"a": entry([1], 0, 4, ["F32"])}, b"0000"), "damaged"),
    "a negative shape": (packed({"a": entry([-1, -1], 0, 4)}, b"0000"), "no shape"),
    "a shape of truths": (packed({"a": entry([True], 0, 4)}, b"0000"), "no shape"),
    "a shape that overflows": (packed({"a": entry([2**62, 4], 0, 0)}), "does not fit"),
    "a hundred axes": (packed({"a": entry([1] * 100, 0, 4)}, b"0000"), "no shape"),
    "a place before the start": (packed({"a": entry([1], -4, 0)}, b"0000"), "no place"),
    "a place that ends before it begins": (packed({"a": entry([0], 4, 0)}, b"0000"), "does not fit"),
    "a place of three": (packed({"a": {**entry([1], 0, 4), "data_offsets": [0, 4, 8]}}, b"0000"), "no place"),
    "less than its shape": (packed({"a": entry([2], 0, 4)}, b"0000"), "does not fit"),
    "a place beyond the end": (packed({"a": entry([2], 0, 8)}, b"0000"), "cut off"),
    "more than it says": (packed({"a": entry([1], 0, 4)}, b"00000000"), "too long"),
    "two in one place": (packed({"a": entry([2], 0, 8), "b": entry([1], 4, 8)}, b"0" * 8), "does not begin"),
    "a hole": (packed({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, b"0" * 12), "does not begin"),
    "a place that is a fraction": (packed({"a": entry([1], 0.0, 4.0)}, b"0000"), "no place"),
}


def pickled(path: Path, canary: Path, how: str = "torch") -> Path:
    """A pickle that would make `canary` where anybody read it: by torch.save, or bare."""
    import pickle  # noqa: PLC0415

    class Bomb:
        def __reduce__(self):
            return Path.touch, (canary,)

    path.parent.mkdir(parents=True, exist_ok=True)
    if how == "torch":
        torch.save({"a": Bomb()}, path)
    else:
        path.write_bytes(pickle.dumps({"a": Bomb()}))
    return path


def small_lora(path: Path, rank: int = 2, *, change=None, facts: object = None, **layers: tuple[int, int]) -> Path:
    """A LoRA of these layers {path with __ for its dots: (out, in)}. change(tensors): what is done to it first."""
    tensors = {}
    for name, (out, inner) in layers.items():
        module = name.replace("__", ".")
        tensors[f"{module}.lora_A.weight"], tensors[f"{module}.lora_B.weight"] = (
            torch.ones(rank, inner), torch.ones(out, rank))
    tensors = (change(tensors) or tensors) if change else tensors
    said = {"alpha": 2.0, "rank": rank} if facts is None else facts
    save_file(tensors, path, {"lora": said if isinstance(said, str) else json.dumps(said)})
    return path


def small_project(root: Path, **more: object) -> Workspace:
    """A subject with two photos, and a clip of noise."""
    from stages.core.video import write_images, write_video

    rng = np.random.default_rng(0)
    project = Workspace.create(root, **{"subjects": {"toy": {"class": "toy", "images": "photos"}}, "motion": {
        "name": "riding", "clip": "ref.mp4", "prompt": "a [person] is riding a [horse]"}, **more})
    write_images(root / "photos", rng.integers(0, 255, (2, 32, 32, 3), dtype=np.uint8))
    write_video(root / "ref.mp4", rng.integers(0, 255, (4, 32, 32, 3), dtype=np.uint8))
    return project


def made(project: Workspace, stage: str, name: str, files: dict[str, bytes] | None = None, **how: object) -> Path:
    """An artefact with these files, as a stage leaves it -> its manifest."""
    from stages import STAGES

    plan = project.plan(STAGES[stage], name, **how)
    with plan.making() as out:
        for file, content in (files or {"lora.safetensors": b"x", "token.safetensors": b"y"}).items():
            (out / file).parent.mkdir(parents=True, exist_ok=True)
            (out / file).write_bytes(content)
    return plan.manifest_path


def tampered(manifest: Path, gone: tuple[str, ...] = (), **changes: object) -> None:
    """Write these keys over a manifest's, and take some out."""
    said = {**json.loads(manifest.read_text()), **changes}
    manifest.write_text(json.dumps({key: value for key, value in said.items() if key not in gone}))


def tree(folder: Path) -> dict[str, bytes | str]:
    """{path in a folder: its content, where a link leads}."""
    return {path.relative_to(folder).as_posix(): str(path.readlink()) if path.is_symlink() else path.read_bytes()
            for path in sorted(folder.rglob("*")) if path.is_symlink() or path.is_file()}
