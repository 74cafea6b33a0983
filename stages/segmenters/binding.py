"""Boxes that a detector drew -> things, and each phrase to its own thing: the logic of Grounded-SAM2 before SAM2.

A thing is what boxes of several frames show. Boxes are linked from frame to frame by the best one-to-one assignment on
how near they are; then each phrase is bound to one thing by the best one-to-one assignment on how much of the looking
speaks for it, so that two phrases that both answer to two people end on different people. Imports no torch.
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..core.framing import Box

SAME = 0.7              # IoU from which on two boxes of a frame are one thing
REACH = 2.0             # a thing moves less than so many of its own sizes from one frame that is looked at to the next


@dataclass(frozen=True)
class Detection:
    """A box in pixels. score: of the surest word of its phrase, 0..1. words: which share of the phrase's words it
    answers to: of a blue car, half of "red car"."""

    frame: int
    box: Box
    score: float
    words: float = 1.0

    @property
    def weight(self) -> float:
        """How well it answers to the phrase as a whole."""
        return self.score * self.words


@dataclass(eq=False)
class Thing:
    """boxes: {frame: box}. answers: {phrase: {frame: its detection}}."""

    boxes: dict[int, Box] = field(default_factory=dict)
    answers: dict[str, dict[int, Detection]] = field(default_factory=dict)

    def join(self, sight: Mapping[str, Detection]) -> None:
        """Seen in one more frame, as {phrase: detection}."""
        best = max(sight.values(), key=lambda one: one.weight)
        self.boxes[best.frame] = best.box
        for phrase, one in sight.items():
            self.answers.setdefault(phrase, {})[one.frame] = one

    def evidence(self, phrase: str) -> float:
        """The sum over frames: what is seen often outweighs what flares up once."""
        return sum(one.weight for one in self.answers.get(phrase, {}).values())

    def best(self, phrase: str) -> Detection:
        return best_of(self.answers[phrase].values())


def best_of(found: Iterable[Detection]) -> Detection | None:
    """The one that answers best, the earliest of equals; None of none."""
    return max(found, key=lambda one: (one.weight, -one.frame), default=None)


def finds(found: Iterable[Detection], threshold: float) -> list[Detection]:
    """Those that are above the box threshold and answer to a word at least."""
    return [one for one in found if one.score > threshold and one.words > 0]


def overlaps(a: Sequence[Box], b: Sequence[Box]) -> np.ndarray:
    """IoU of every box of a with every box of b: (A, B), 0..1."""
    a_A14, b_1B4 = np.reshape(a, (-1, 1, 4)).astype(np.float64), np.reshape(b, (1, -1, 4)).astype(np.float64)
    sides = np.minimum(a_A14[..., 2:], b_1B4[..., 2:]) - np.maximum(a_A14[..., :2], b_1B4[..., :2])
    common = np.maximum(sides, 0).prod(-1)
    areas = [np.maximum(boxes[..., 2:] - boxes[..., :2], 0).prod(-1) for boxes in (a_A14, b_1B4)]
    return common / np.maximum(areas[0] + areas[1] - common, 1e-12)


def suppress(found: Sequence[Detection]) -> list[Detection]:
    """Of boxes of one frame that are one thing (IoU >= SAME) the one that answers best; best first."""
    kept: list[Detection] = []
    for one in sorted(found, key=lambda one: -one.weight):
        if not kept or overlaps([one.box], [other.box for other in kept]).max() < SAME:
            kept.append(one)
    return kept


def assign(value_RC: np.ndarray) -> list[int | None]:
    """For each row the column of its own, None for none, so that the values of the pairs sum to the most. Pairs whose
    value is not above 0 are not made. Kuhn and Munkres, O(n^3)."""
    value_RC = np.asarray(value_RC, np.float64)
    rows, columns = value_RC.shape
    n = max(rows, columns)
    cost = np.zeros((n + 1, n + 1))
    cost[1:rows + 1, 1:columns + 1] = -np.maximum(value_RC, 0)
    u, v, owner, before = np.zeros(n + 1), np.zeros(n + 1), np.zeros(n + 1, int), np.zeros(n + 1, int)
    for row in range(1, n + 1):
        owner[0], column = row, 0
        least, used = np.full(n + 1, np.inf), np.zeros(n + 1, bool)
        while owner[column]:
            used[column] = True
            slack = cost[owner[column]] - u[owner[column]] - v
            better = ~used & (slack < least)
            least[better], before[better] = slack[better], column
            nearest = int(np.where(used, np.inf, least).argmin())
            step = least[nearest]
            u[owner[used]] += step
            v[used] -= step
            least[~used] -= step
            column = nearest
        while column:                                           # turn the pairs along the path that was found
            owner[column], column = owner[before[column]], before[column]
    out: list[int | None] = [None] * rows
    for column in range(1, columns + 1):
        if 0 < owner[column] <= rows and value_RC[owner[column] - 1, column - 1] > 0:
            out[owner[column] - 1] = column - 1
    return out


def things(found: Mapping[str, Sequence[Detection]]) -> list[Thing]:
    """The detections of all phrases, linked over frames. A box and a thing may be linked where they have a phrase in
    common and lie within REACH; the better they overlap and the nearer they lie, the sooner."""
    out: list[Thing] = []
    for frame in sorted({one.frame for some in found.values() for one in some}):
        sights = _sights({phrase: [one for one in some if one.frame == frame] for phrase, some in found.items()})
        value = np.array([[_nearness(thing, sight) for sight in sights] for thing in out])
        value = value.reshape(len(out), len(sights))
        left = set(range(len(sights)))
        for thing, column in zip(list(out), assign(value)):
            if column is not None:
                thing.join(sights[column])
                left.remove(column)
        for column in sorted(left):
            out.append(Thing())
            out[-1].join(sights[column])
    return out


def bind(things: Sequence[Thing], phrases: Sequence[str]) -> dict[str, list[Thing]]:
    """{phrase: the things that are its own, the one it is bound to first, the others as much as they answer}. A thing
    that no phrase is bound to is one of the phrase that it answers to most."""
    evidence_PT = np.array([[thing.evidence(phrase) for thing in things] for phrase in phrases])
    if not evidence_PT.size:
        return {phrase: [] for phrase in phrases}
    first = assign(evidence_PT)
    free = [t for t in range(len(things)) if t not in first]
    out = {}
    for p, phrase in enumerate(phrases):
        others = [t for t in free if evidence_PT[p, t] > 0 and evidence_PT[:, t].argmax() == p]
        others.sort(key=lambda t: -evidence_PT[p, t])
        out[phrase] = [things[t] for t in ([] if first[p] is None else [first[p]]) + others]
    return out


def missed(phrase: str, found: Sequence[Detection], own: Mapping[str, Sequence[Thing]], threshold: float, count: int
           ) -> str:
    """Why a phrase has nothing of its own, in words: whose the best of its finds is, or how near its best box came.
    found: with what falls short of the threshold. own: as bound. count: of frames."""
    sure = finds(found, threshold)
    best = best_of(sure) or max(found, key=lambda one: one.score, default=None)
    if best is None:
        return f"'{phrase}' was not found"
    where = f" in frame {best.frame}" if count > 1 else ""
    if sure:                                                    # a frame's best box of a phrase is always of some thing
        owner = next(name for name, things in own.items() for thing in things
                     if thing.answers.get(phrase, {}).get(best.frame) == best)
        return f"what answers to '{phrase}' ({best.score:.2f}{where}) is '{owner}' already"
    if best.score <= threshold:
        return (f"'{phrase}' was not found: the best box has a confidence of {best.score:.2f}{where}, and the box "
                f"threshold is {threshold:g}")
    return f"'{phrase}' was not found: none of its words is surer than the text threshold (best {best.score:.2f})"


def _sights(found: Mapping[str, Sequence[Detection]]) -> list[dict[str, Detection]]:
    """What is seen in one frame: boxes of several phrases that are one thing, together."""
    sights: list[dict[str, Detection]] = []
    leaders: list[Box] = []
    every = [(phrase, one) for phrase, some in found.items() for one in suppress(some)]
    for phrase, one in sorted(every, key=lambda pair: -pair[1].weight):
        common = overlaps([one.box], leaders)[0] if leaders else np.empty(0)
        same = [k for k in np.argsort(-common) if common[k] >= SAME and phrase not in sights[k]]
        if same:
            sights[same[0]][phrase] = one
        else:
            sights.append({phrase: one})
            leaders.append(one.box)
    return sights


def _nearness(thing: Thing, sight: Mapping[str, Detection]) -> float:
    """Between a thing where it was last seen and what is seen now: > 0 where they may be linked."""
    if not thing.answers.keys() & sight.keys():
        return 0.0
    last = thing.boxes[max(thing.boxes)]
    now = max(sight.values(), key=lambda one: one.weight).box
    centres = [((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in (last, now)]
    size = max(np.sqrt(max(box[2] - box[0], 1e-6) * max(box[3] - box[1], 1e-6)) for box in (last, now))
    return float(overlaps([last], [now])[0, 0] + max(0.0, 1 - np.hypot(*np.subtract(*centres)) / (REACH * size)) / 2)
