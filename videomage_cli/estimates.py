"""What a stage will need, in words: for --dry-run, `videomage doctor --plan` and the error when memory ran out."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stages.core.settings import Settings
from stages.options import Options

if TYPE_CHECKING:
    from stages.backbones.cost import Estimate

GIB = 2**30


@dataclass(frozen=True)
class Setting:
    """What an estimate depends on: a stage with its options on a base, and how it is run."""

    stage: str
    options: Options
    settings: Settings
    dtype: str
    low_memory: bool
    count: int | None = None              # actors, subjects or prompts, where they are known

    def estimate(self, throughput: float | None = None) -> Estimate:
        """Of one artefact. throughput: floating point operations per second of the device, None: no time."""
        from stages.backbones import shape_of, video
        from stages.backbones.cost import estimate

        native = video(self.settings.base, self.settings.video)
        return estimate(shape_of(self.settings.base), self.stage, self.options, frames=native.frames,
                        height=native.height, width=native.width, dtype=self.dtype, low_memory=self.low_memory,
                        throughput=throughput, count=self.count)

    def knobs(self) -> list[tuple[str, Estimate]]:
        """What a person may turn, and the estimate with that alone: the largest effect first, without those that have
        none."""
        here = self.estimate().peak_bytes
        found = [(text, other.estimate()) for text, other in self._turned()]
        return sorted(((text, e) for text, e in found if e.peak_bytes < 0.98 * here), key=lambda k: k[1].peak_bytes)

    def _turned(self) -> Iterator[tuple[str, Setting]]:
        from stages.backbones import video

        if not self.low_memory:
            yield "--low-memory", replace(self, low_memory=True)
        if self.dtype in ("fp32", "amp"):
            yield "--dtype bf16", replace(self, dtype="bf16")
        native = video(self.settings.base, self.settings.video)
        smaller = {"frames": max(1, native.frames * 2 // 3), "height": _less(native.height),
                   "width": _less(native.width)}
        for keys in (("frames",), ("height", "width")):
            wanted = {**self.settings.video, **{key: smaller[key] for key in keys}}
            shown = ", ".join(f"{key}: {smaller[key]}" for key in keys)
            yield f"video: {{{shown}}} in project.yaml", replace(self, settings=replace(self.settings, video=wanted))
        for name, value in (("batch", 1), ("token_batch", 1), ("layers", "mid"), ("tau", 0), ("rank", 8)):
            if hasattr(self.options, name) and getattr(self.options, name) != value:
                flag = f"--{name.replace('_', '-')} {value}"
                yield flag, replace(self, options=replace(self.options, **{name: value}))


def _less(pixels: int) -> int:
    """Three quarters of a side, on the grid of 64 pixels on which the U-Net halves evenly; at least one of 32."""
    return max(32, pixels * 3 // 4 // 64 * 64 or pixels // 2 // 32 * 32)


def gib(size: float) -> str:
    """Bytes as a person reads them."""
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.0f} MiB"


def span(seconds: float) -> str:
    """A time as a person reads it."""
    for unit, size, until in (("s", 1, 90), ("min", 60, 5400), ("h", 3600, 48 * 3600)):
        if seconds < until:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


def sentence(found: Estimate) -> str:
    """"about 9.1 GiB (within 15 %), 5 min (between half and twice that)"."""
    memory = f"memory at its peak about {gib(found.peak_bytes)} (within {found.error:.0%})"
    if found.seconds is None:
        return memory
    least, most = found.seconds / found.seconds_error, found.seconds * found.seconds_error
    return f"{memory}, about {span(found.seconds)} (between {span(least)} and {span(most)})"


def advice(setting: Setting, limit: int = 4) -> str:
    """The knobs in the order of their effect, as a remedy: "--low-memory (9.1 -> 3.8 GiB), ..."."""
    here = gib(setting.estimate().peak_bytes)
    turned = [f"{text} ({here} -> {gib(found.peak_bytes)})" for text, found in setting.knobs()[:limit]]
    return "turn one of these, the most effective first: " + "; ".join(turned) if turned else \
        "nothing of this stage can be turned down further: use a device with more memory"


def as_json(found: Estimate) -> Mapping[str, object]:
    """An estimate as JSON has it."""
    return {"peak_bytes": found.peak_bytes, "peak_error": found.error, "seconds": found.seconds,
            "seconds_factor": found.seconds_error, "phases": dict(found.phases)}
