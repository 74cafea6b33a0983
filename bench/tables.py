"""The tables of docs/performance.md, from the seconds that ratios.py measured: ratios inside one run."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stages.backbones.bases import SPRITES
from stages.backbones.bases import video as shipped
from stages.backbones.cost import Base, units
from stages.options import SampleOptions

from .bases import SIZES, write
from .rows import BASES
from .timing import ratio, spread

Seconds = Mapping[str, Mapping[str, Sequence[float]]]           # {part: {cell: seconds in each round}}

# Options of `sample` that cost less than the paper's, and are off by default.
SAVINGS: dict[str, dict[str, object]] = {
    "`--unconditional shared`": {"unconditional": "shared"},
    "`--guidance-steps 25`": {"guidance_steps": 25},
    "`--guide-every 3`": {"guide_every": 3},
    "`--solver dpm++ --steps 25 --tau 8`": {"solver": "dpm++", "steps": 25, "tau": 8},
}
ALL_SAVINGS: dict[str, object] = {"unconditional": "shared", "guidance_steps": 16, "guide_every": 2, "solver": "dpm++",
                                  "steps": 25, "tau": 8}


@dataclass(frozen=True)
class Row:
    """over, under: cells whose ratio it is. goal: what it shall not exceed. sampled: options of `sample` whose price,
    over that of a plain sample, is the floor; None: the floor is 1."""

    text: str
    over: str
    under: str
    goal: float | None = None
    sampled: Mapping[str, object] | None = None


def goals(depths: Sequence[str]) -> list[Row]:
    """depths: as far as which maps are watched."""
    wanted = {"mid": 3.15, "up_blocks.1": 3.45}
    step = {"steps": 1, "tau": 0}
    return [
        Row("unguided step, two branches", "unguided", "plain", 2.06, step),
        *(Row(f"guided step, {'all maps' if depth == 'all' else f'maps as far as `{depth}`'}", f"guided, {depth}",
              "plain", wanted.get(depth), {**step, "tau": 1, "layers": depth}) for depth in depths),
        Row("a whole video, 50 steps, tau 15", "video", "video, plain", 2.35, {}),
        Row("a step of `learn-motion --w 0`, over bare forward and backward", "motion, w = 0", "bare, motion", 1.05),
        Row("a step of `learn-subject`, over its own", "subject", "bare, subject", 1.05),
        Row("a step of `fuse`, over its own", "fuse", "bare, fuse", 1.05),
        Row("a step of `learn-motion --bank`, over one with `--w 0`", "motion, bank", "motion, w = 0", 1.10),
        Row("a step of `learn-motion`, over one with `--w 0`", "motion", "motion, w = 0"),
    ]


PEERS = [
    Row("guided sampling as diffusers' pipelines do it, a step", "peer, sampling", "plain"),
    Row("Algorithm 1 written down naively, an unguided step", "peer, SCS unguided", "plain"),
    Row("the same, a guided step, all maps", "peer, SCS guided", "plain"),
    Row("a LoRA as diffusers' examples learn it, a step", "peer, LoRA", "bare, motion"),
    Row("MotionDirector, a step of its two paths", "peer, MotionDirector", "bare, motion"),
]
OURS = {"peer, sampling": "plain", "peer, SCS unguided": "unguided", "peer, SCS guided": "guided, all",
        "peer, LoRA": "motion, w = 0", "peer, MotionDirector": "motion"}
UNITS = {"plain": "a plain step", "bare, motion": "forward and backward of the batch"}
SHOWN = ("u", "plain", "unguided", "guided, mid", "video, plain", "video", "bare, motion", "motion, w = 0", "motion")


def of(seconds: Seconds, base: str, row: Row) -> str:
    """The ratio of a row on a base; "" where it was not measured."""
    cells = {name: times for part, own in seconds.items() if part.startswith(f"{base}/") for name, times in own.items()}
    return str(ratio(cells, row.over, row.under)) if {row.over, row.under} <= set(cells) else ""


def shape(name: str, folder: Path) -> Base:
    """A base by its configs, which are written to the folder where there are none yet."""
    video = shipped(name) if name == "sprites" else SIZES[name].video
    where = SPRITES if name == "sprites" else folder / name
    if not where.is_dir():
        write(SIZES[name], where)
    return Base(where, frames=video.frames, height=video.height, width=video.width, dtype="fp32", low_memory=False)


def price(base: Base, sampled: Mapping[str, object]) -> float:
    """By the cost model, of a step in plain steps, of a video in plain videos of 50."""
    steps = 1 if sampled.get("steps") == 1 else 50
    return units(base, SampleOptions(**sampled)) / units(base, SampleOptions(steps=steps, branches="none"))


def tables(seconds: Seconds, folder: Path) -> dict[str, str]:
    """{mark: markdown}. folder: an empty one, for configs."""
    shapes = {name: shape(name, folder) for name in BASES}
    return {"goals": goals_table(seconds, shapes), "start": start_table(seconds.get("start", {})),
            "peers": peers_table(seconds), "savings": savings_table(seconds, shapes)}


def goals_table(seconds: Seconds, shapes: Mapping[str, Base]) -> str:
    lines = ["| | goal | 58 M: floor | measured | sprites: floor | measured |", "|---|---:|---:|---:|---:|---:|"]
    for row in goals(("mid", "up_blocks.0", "up_blocks.1", "all")):
        found = {name: of(seconds, name, row) for name in shapes}
        if any(found.values()):
            floors = {name: f"{1 if row.sampled is None else price(base, row.sampled):.2f}" if found[name] else ""
                      for name, base in shapes.items()}
            goal = f"<= {row.goal:.2f}" if row.goal else ""
            lines.append(f"| {row.text} | {goal} | " + " | ".join(f"{floors[name]} | {found[name]}" for name in shapes)
                         + " |")
    for name, label in (("bench", "58 M"), ("sprites", "sprites")):
        cells = {cell: spread(times) for part in (f"{name}/steps", f"{name}/videos")
                 for cell, times in seconds.get(part, {}).items()}
        if cells:
            lines.append("")
            lines.append(f"{label}, seconds: " + ", ".join(f"{cell} {cells[cell].median:.3g}" for cell in SHOWN
                                                          if cell in cells) + ".")
    return "\n".join(lines)


def start_table(cells: Mapping[str, Sequence[float]]) -> str:
    """Of the cells of start.py."""
    lines = ["| | goal | measured |", "|---|---:|---:|"]
    if cells:
        lines += [f"| `learn-motion` as far as its first step, over reading the weights | <= 1.30 | "
                  f"{ratio(cells, 'first step', 'load')} |",
                  *(f"| `videomage {name}`, seconds | < 1 | {spread(cells[name])} |" for name in ("--help", "status"))]
    return "\n".join(lines)


def peers_table(seconds: Seconds) -> str:
    lines = ["| | over | 58 M: theirs | ours | sprites: theirs | ours |", "|---|---|---:|---:|---:|---:|"]
    for row in PEERS:
        cells = [of(seconds, base, one) for base in BASES for one in (row, Row("", OURS[row.over], row.under))]
        lines.append(f"| {row.text} | {UNITS[row.under]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def savings_table(seconds: Seconds, shapes: Mapping[str, Base]) -> str:
    lines = ["| | 58 M: by the model | measured | sprites: by the model | measured |", "|---|---:|---:|---:|---:|"]
    for text, options in {"as the paper has it": {}, **SAVINGS, "all of them *": ALL_SAVINGS}.items():
        row = Row(text, f"video, {text}" if options else "video", "video, plain")
        lines.append(f"| {text} | " + " | ".join(f"{price(base, options):.2f} | {of(seconds, name, row)}"
                                                 for name, base in shapes.items()) + " |")
    typed = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in ALL_SAVINGS.items())
    return "\n".join([*lines, "", f"\\* `{typed}`"])
