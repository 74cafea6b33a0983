"""The most that is alive at once when a list of blocks (blocks.py) is run, forwards or there and back. No torch."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .blocks import Block

if TYPE_CHECKING:
    from ..options import Options

LEARNS = {"subject": "space", "motion": "time", "inputs": "none"}


def until(blocks: Sequence[Block], where: str, kinds: Sequence[str] = ("space", "time")) -> list[Block]:
    """As far as the last watched block. where: attention.choose's; kinds: of the blocks whose maps are watched."""
    last = max((index for index, block in enumerate(blocks) if block.kind in kinds and _within(block, where)),
               default=len(blocks) - 1)
    return list(blocks[:last + 1])


def watched(blocks: Sequence[Block], where: str, kinds: Sequence[str] = ("space", "time")) -> list[Block]:
    """The blocks whose maps are watched: those named, where several are, else all as far as the last."""
    return [block for block in blocks if block.kind in kinds and ("," not in where or _within(block, where))]


def _within(block: Block, where: str) -> bool:
    names = [name for name in where.replace(" ", "").split(",") if name]
    return "all" in names or any(block.name.startswith(name) or name.startswith(block.name + ".") for name in names)


def passes(blocks: Sequence[Block], o: Options, *, low: bool) -> list[tuple[int, int]]:
    """Rows that go through each block in a video of `sample`: (forwards, back). In a step each branch has a row for its
    prompt, and one for "" where its guidance turns from that. In a guided one the prompts' rows go first, as far as the
    deepest watched layer, and back; with low memory once more before that."""
    whole = early = 0
    for step in range(o.steps):
        both = o.branches == "auto" and (o.motion_steps is None or step < o.motion_steps)
        scales = [o.guidance, o.guidance if o.guidance_motion is None else o.guidance_motion]
        scales = scales if both else scales[1:] if o.branches == "motion" else scales[:1]
        turning = sum(scale != 1 for scale in scales) if o.guidance_steps is None or step < o.guidance_steps else 0
        whole += len(scales) + (min(turning, 1) if o.unconditional == "shared" else turning)
        early += 2 * (both and step < o.tau and step % o.guide_every == 0)
    first = len(until(blocks, o.layers))
    return [(whole + (1 + low) * early, early) if index < first else (whole, 0) for index in range(len(blocks))]


def passing(blocks: Sequence[Block], s: int, *, hooked: bool = False) -> float:
    """The most that is alive in a forward without gradients."""
    skips: list[float] = []
    waiting, group, peak, before, entered = 0.0, "", 0.0, 0.0, 0.0
    for block in blocks:
        first = block.name != group
        if first:                      # what entered a part of the network, and the skips it reads, are held to its end
            group, waiting, entered = block.name, 0.0, 0.0 if skips and before == skips[-1] else before
        own = block.c_in * block.cells * s
        if block.extra:
            own -= block.extra * block.cells * s
            waiting += skips.pop()
        if skips and own == skips[-1]:
            own = 0                                                      # the skip itself
        held = sum(skips) + waiting + (0 if first else entered)
        peak = max(peak, held + own + block.working(s, hooked=hooked))
        before = block.output(s)
        if block.skip:
            skips.append(before)
    return peak


def learning(blocks: Sequence[Block], s: int, who: str, rank: int, *, low: bool, cast: int = 0) -> tuple[float, float]:
    """(peak, kept): the most that is alive in a forward and its backward, and what waits between them. who: whose LoRA
    learns, "subject" or "motion"; "inputs": the gradient goes to the input through frozen LoRAs. cast: see kept."""
    modes = ["learned" if block.kind == LEARNS[who] else "frozen" for block in blocks]
    start = modes.index("learned") if who != "inputs" else 0             # before it nothing needs a gradient
    live, kept_of = sum(b.output(s) for b in blocks[:start] if b.skip), []
    for block, mode in list(zip(blocks, modes))[start:]:
        whole = block.kept(s, mode, rank, cast)
        kept_of.append(block.c_in * block.cells * s if low and block.kind != "edge" else whole)
    kept, peak, pending = live + sum(kept_of), 0.0, []
    alive = kept
    for block, mode, own in reversed(list(zip(blocks[start:], modes[start:], kept_of))):
        if block.skip and pending:
            pending.pop()
        again = block.kept(s, mode, rank, cast) if low and block.kind != "edge" else 0
        peak = max(peak, alive + again + block.turning(s, mode) + sum(pending))
        alive -= own
        if block.extra:
            pending.append(block.extra * block.cells * s)
    return peak, kept
