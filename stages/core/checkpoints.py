"""The state of a training run on the disk: safetensors with a JSON header, the newest two, each of one identity."""
from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import formats, store
from .errors import VideomageError
from .foreign import loads
from .report import Report, silent
from .saving import save_tensors
from .tensors import checksum, read_tensors

KEEP = 2            # the newest and the one before it
FORMAT = "videomage format"


@dataclass
class Checkpoints:
    """Those of a run. folder: None keeps none. identity: a hash of what defines the run; those of another are not read.
    buffers: tensors that are not trained but belong to the state. writes: False in all processes of a run but one."""

    folder: Path | None
    identity: str
    parameters: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    optimizer: torch.optim.Optimizer
    every_seconds: float
    every_steps: int
    writes: bool = True
    report: Report = silent

    def __post_init__(self) -> None:
        self._at, self._after = time.monotonic(), 0
        self._damaged: set[Path] = set()

    def due(self, curve: Sequence) -> bool:
        """Whether it is time for one."""
        return time.monotonic() - self._at > self.every_seconds or len(curve) - self._after >= self.every_steps

    def save(self, curve: list[dict[str, float]]) -> None:
        """The state after len(curve) steps, and the curve; all others but the newest whole one before it go."""
        self._at, self._after = time.monotonic(), len(curve)
        if not self.folder or not self.writes:
            return
        state = named_state(self.parameters, self.buffers, self.optimizer)
        tensors = {key: value.contiguous().cpu().clone() for key, value in state.items()}
        newest = self.folder / f"step-{len(curve):07d}.safetensors"
        save_tensors(tensors, newest, {FORMAT: str(formats.CHECKPOINT), "identity": self.identity,
                                       "curve": json.dumps(curve), "crc32": checksum(tensors)})
        others = [path for path in sorted(self.folder.glob("step-*.safetensors")) if path != newest]
        before = [path for path in others if path < newest and path not in self._damaged]
        for old in others:
            if old not in before[1 - KEEP:]:
                store.remove(old)

    def restore(self) -> list[dict[str, float]]:
        """Load the newest whole one of this identity, in place -> its curve, a row per step; [] if there is none. One
        that is damaged is named, and the one before it taken. Raises OutOfResources where there is no room for more."""
        if not self.folder:
            return []
        if self.writes:
            store.probe(self.folder, self._room())
        for path in sorted(self.folder.glob("step-*.safetensors"), reverse=True):
            try:
                tensors, meta = read_tensors(path, "a checkpoint")
            except VideomageError as damage:
                self._pass_over(path, damage.what)
                continue
            try:
                if meta.get("identity") != self.identity:
                    continue
                formats.number(loads(meta.get(FORMAT, "1")), formats.CHECKPOINT, f"the checkpoint {path}")
                curve = loads(meta["curve"])
                if "crc32" in meta and meta["crc32"] != checksum(tensors):                   # the first ones had none
                    raise ValueError("its checksum is another")
                self._load(tensors)
            except (KeyError, ValueError, RuntimeError) as damage:
                self._pass_over(path, str(damage))
                continue
            self.report(note=f"going on from step {len(curve)}")
            self._after = len(curve)
            return curve
        return []

    def _pass_over(self, path: Path, damage: str) -> None:
        self._damaged.add(path)
        self.report(note=f"checkpoint {path.name} is damaged ({damage}); the one before it is used")

    @torch.no_grad()
    def _load(self, tensors: Mapping[str, Tensor]) -> None:
        for name, value in (*((f"value/{n}", p) for n, p in self.parameters.items()),
                            *((f"buffer/{n}", b) for n, b in self.buffers.items())):
            if tensors[name].shape != value.shape:                       # before anything has been changed
                raise ValueError(f"{name} is {tuple(tensors[name].shape)} there, {tuple(value.shape)} here")
        fused = self.optimizer.defaults.get("fused")                    # such an optimizer counts steps on the device
        for name, b in self.buffers.items():
            b.copy_(tensors[f"buffer/{name}"])
        for name, p in self.parameters.items():
            p.copy_(tensors[f"value/{name}"])
            slots = {key.rsplit("/", 1)[1]: value for key, value in tensors.items()
                     if key.startswith(f"state/{name}/")}
            if slots:
                self.optimizer.state[p] = {k: v.to(p.device if fused else "cpu") if k == "step" else v.to(p)
                                           for k, v in slots.items()}

    def _room(self) -> int:
        """Bytes that the checkpoints of a run take at their most: two kept, one being written, each of the parameters
        and two moments."""
        held = sum(p.numel() * p.element_size() for p in (*self.parameters.values(), *self.buffers.values()))
        return (KEEP + 1) * 3 * held


def named_state(parameters: Mapping[str, Tensor], buffers: Mapping[str, Tensor],
                optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Parameters, buffers and optimizer state as one flat dict of tensors: what a checkpoint holds (no pickle)."""
    out = {f"value/{name}": p.detach() for name, p in parameters.items()}
    out.update({f"buffer/{name}": b for name, b in buffers.items()})
    for name, p in parameters.items():
        for key, value in optimizer.state.get(p, {}).items():
            out[f"state/{name}/{key}"] = torch.as_tensor(value)
    return out
