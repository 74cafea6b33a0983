"""What is told of masks: what was taken of a clip, where each actor was found, and what mends it. For `segment`."""
from __future__ import annotations

import shlex
from dataclasses import dataclass

import numpy as np

from .core.framing import Box, fit_size
from .core.mask_sheet import Row, Sheet, spans
from .core.sampling import Sampling
from .core.workspace import Plan
from .options import resolve, show
from .prompts import slug
from .segmenters import Masks, Source, models

TALL, WIDE = 36, 64          # pixels: the size at which pictures are compared
GRID, CUT = 4, 0.55          # chosen on 41 stretches of three filmed clips: all of their 37 cuts, and nothing else


@dataclass(frozen=True)
class Seen:
    """The pictures that are looked at: a clip's frames in one shot (F, H, W, 3), or each photo as a shot of its own.
    names: of the mask files. whole, part: see Sheet. about: what was taken, in sentences; sampling: of a clip."""

    shots: list[np.ndarray]
    sources: list[Source]
    names: list[str]
    labels: list[str]
    about: list[str]
    whole: np.ndarray | None = None
    part: Box | None = None
    sampling: Sampling | None = None


def about_clip(sampling: Sampling, count: int, last: float, fps: float, shape: tuple[int, int], size: tuple[int, int],
               part: Box, fit: str) -> list[str]:
    """What was taken of a clip, in sentences. count: its frames; last: when its last one is shown, in seconds; shape,
    size: of its frames, and of those that are kept (H, W); part: of the former."""
    rate = f" at {(count - 1) / last:.4g} a second" if last > 0 else ""
    lines = [f"The clip: {count} frames{rate}, {shape[1]} x {shape[0]}, {last:.2f} s to its last frame. Taken: "
             f"{sampling.start:.2f} to {sampling.end:.2f} s, {len(sampling.chosen)} frames, {1 / sampling.step:.4g} a "
             f"second of the clip, each within {1000 * sampling.uneven:.0f} ms of even."]
    if last > sampling.end or sampling.start > 0:
        lines.append("The rest of the clip is left out: --start and --seconds choose another part, or more of it.")
    if len(sampling.windows) > 1:
        lines.append(f"{len(sampling.windows)} windows of {sampling.length} frames are learned from, which begin at "
                     f"frames {', '.join(map(str, sampling.windows))}.")
    if abs(sampling.speed - 1) > 0.005:
        lines.append(f"The base shows {fps:g} frames a second: it sees the motion {sampling.speed:.2f} times as fast.")
    if sampling.repeated:
        lines.append(f"The clip shows fewer frames a second than that: {sampling.repeated} of them stand still.")
    height, width = shape
    left, top, right, bottom = (round(value) for value in part)
    sides = {"columns": (left, width - right), "rows": (top, height - bottom)}
    beyond = " and ".join(f"{abs(a)} + {abs(b)} {name}" for name, (a, b) in sides.items() if a or b)
    if beyond:
        lines.append(f"{fit}: {beyond} are {'cut off (--fit contain keeps them)' if fit == 'cover' else 'filled up'}.")
    if size[0] + 1 < bottom - top:
        lines.append(f"The frames are kept at {size[1]} x {size[0]}.")
    return lines


def cuts_of(frames_FHWC: np.ndarray) -> list[int]:
    """The frames before which the picture changes all at once (**ours**, a hint and no verdict): in the mean over GRID
    x GRID parts of the picture, the colour histograms of two neighbours differ by more than CUT of 1."""
    small = fit_size(frames_FHWC, (TALL, WIDE)) // 32
    codes = small.astype(int) @ (64, 8, 1)                                                        # (F, TALL, WIDE)
    cells = codes.reshape(len(codes), GRID, TALL // GRID, GRID, WIDE // GRID).swapaxes(2, 3)
    bins = np.array([[np.bincount(cell, minlength=512) for cell in frame.reshape(GRID**2, -1)] for frame in cells])
    apart = np.abs(np.diff(bins, axis=0)).sum(2).mean(1) / (2 * cells[0, 0, 0].size)
    return [int(k) + 1 for k in np.flatnonzero(apart > CUT)]


def row_of(phrase: str, masks: list[np.ndarray], judged: Masks) -> Row:
    """One actor on the sheet. A mask that a person drew is certain."""
    boxes = [(thing.frame, thing.box, n + 1, thing.taken) for n, thing in enumerate(judged.instances)]
    sure = [float(c) if mask.any() else 0.0 for c, mask in zip(judged.confidence, masks)]
    sure = [1.0 if mask.any() and not c else c for c, mask in zip(sure, masks)]                 # drawn by a person
    return Row(phrase, masks, sure, boxes, judged.notes)


def sheet_of(plan: Plan, seen: Seen, rows: list[Row]) -> Sheet:
    """The overlay sheet."""
    pictures = [picture for shot in seen.shots for picture in shot]
    return Sheet(f"{plan.name}   masks by {plan.options.segmenter}", pictures, seen.labels, rows, seen.about,
                 _mend(plan, seen, rows), seen.whole, seen.part, everything=seen.sampling is None)


def _mend(plan: Plan, seen: Seen, rows: list[Row]) -> list[tuple[str, str]]:
    """(what may be wrong, what mends it)."""
    unit, out = "frame" if seen.sampling else "photo", []
    looked = " ".join(shlex.quote(row.name) for row in rows)
    for row in rows:
        if row.missing:
            box = shlex.quote(f"{row.name}@{row.missing[0]}=LEFT,TOP,RIGHT,BOTTOM")
            out.append((f"'{row.name}' is not in {unit}s {spans(row.missing)}. If it is to be seen there:",
                        f"{_command(plan, looked, finder='grounded-sam2')} --box {box}      or --box-threshold "
                        f"{plan.options.box_threshold / 2:g}, or another word: --actors"))
        if len({box[2] for box in row.boxes}) > max(1, len({box[2] for box in row.boxes if box[3]})):
            box = shlex.quote(f"{row.name}@{row.boxes[0][0]}=LEFT,TOP,RIGHT,BOTTOM")
            out.append((f"Several things answer to '{row.name}'. For another one, or all of them:",
                        f"{_command(plan, looked)} --box {box}      or --instances all"))
    if rows:
        file = plan.folder / "masks" / slug(rows[0].name) / f"{seen.names[0]}.png"
        out.append(("An outline is wrong here and there:",
                    f"paint over {plan.project.show(file)} in any editor (white: inside). It is kept; this sheet is "
                    f"drawn anew by: {_command(plan, looked)} --force"))
    return out


def _command(plan: Plan, looked: str, finder: str | None = None) -> str:
    """What was typed for these masks, as far as the project itself does not say it; looked: for what."""
    words = ["videomage", "segment", plan.folder.relative_to(plan.project.root).as_posix()]
    if str(plan.project.root) != ".":
        words += ["-p", str(plan.project.root)]
    typed = {key: value for key, value in plan.overrides().items() if hasattr(plan.options, key) and key != "actors"}
    own = resolve("segment", plan.project.settings)
    if plan.options.masks and plan.options.masks != own.masks and not finder:
        here = str(plan.project.root) == "."
        typed["masks"] = plan.project.show(plan.options.masks) if here else str(plan.options.masks)
    if finder and plan.options.segmenter != finder:
        typed["segmenter"] = finder
    for key, value in typed.items():
        words += [f"--{key.replace('_', '-')}", *(value if isinstance(value, list) else [show(value)])]
    asked = plan.request["phrases"] and not plan.options.actors
    return shlex.join(words) + ("" if asked or plan.options.actors == own.actors != () else f" --actors {looked}")


def facts_of(rows: list[Row], plan: Plan, seen: Seen) -> dict[str, object]:
    """What the manifest keeps: how much of each picture each actor fills, how sure, where it is missing; the frames'
    times, and which weights drew the masks."""
    facts: dict[str, object] = {
        "shares of the frames": {row.name: [round(float(m.mean()), 4) for m in row.masks] for row in rows},
        "confidence": {row.name: [round(c, 3) for c in row.confidence] for row in rows},
        "not found in": {row.name: row.missing for row in rows}, "notes": [note for row in rows for note in row.notes]}
    if plan.options.segmenter == "grounded-sam2":
        facts["weights"] = [models.revision(name) for name in (plan.options.detector, plan.options.tracker)]
    return facts | ({"sampling": seen.sampling.facts()} if seen.sampling else {})
