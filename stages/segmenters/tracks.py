"""Detections, hints and a tracker -> masks: the decisions of Grounded-SAM2, without its networks.

1  each phrase is bound to its own thing (binding.py), or to what a person points at
2  the tracker is prompted in the frame that shows the thing best, and follows it from there to both ends
3  where a track is empty but the thing is seen, the tracker is prompted there again, in at most ROUNDS rounds
4  of two tracks that are one thing, in the frames that show both, at least half of the shorter track, the phrase that
   answers worse is left empty
5  a pixel goes to the phrase with the highest logit there, if its probability is above the threshold; of equals to the
   phrase that answers better; a phrase that gets none is said to lie within others
The order of the phrases decides nothing: where all else is equal, their letters do.

F frames, H W their pixels, h w what the tracker gives. Imports no torch.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from ..core.framing import Box, box_of
from . import Hint, Instance, Masks, Setup, confidence
from .binding import Detection, Thing, best_of, bind, finds, missed, overlaps, things

ROUNDS = 3              # of looking for what was lost
MOST = 10               # things that are tracked for one phrase
EXPLAINS = 0.5          # IoU from which on a box shows what a track shows
ONE_THING = 0.8         # IoU from which on two tracks are one thing
MEETING = 0.5           # share of the shorter track below which frames that two tracks have in common show a meeting


@dataclass(frozen=True)
class Job:
    """For the tracker: a thing, pointed at by prompts, no two in one frame, is wanted in the frames first..last. One
    prompt at least lies among them; others may lie outside and tell what it looks like."""

    prompts: tuple[Hint, ...]
    first: int
    last: int


@dataclass(eq=False)
class Track:
    """A thing through frames, the first of which is `first`. logits: float16 (n, h, w) over the whole frame, the
    probability's before the sigmoid. score: float32 (n,), above 0 where the tracker says that the thing is in sight."""

    first: int
    logits: np.ndarray
    score: np.ndarray

    def at(self, frame: int, size: tuple[int, int]) -> np.ndarray | None:
        """float32 (H, W), the logits brought to `size`; None where the thing is not in sight."""
        n = frame - self.first
        if not 0 <= n < len(self.score) or self.score[n] <= 0:
            return None
        logits = Image.fromarray(self.logits[n].astype(np.float32))
        return np.asarray(logits.resize(size[::-1], Image.Resampling.BILINEAR))

    def inside(self, threshold: float) -> np.ndarray:
        """bool (n, h, w): where the probability is above the threshold, and the thing in sight."""
        return (self.logits > edge(threshold)) & (self.score > 0)[:, None, None]

    def mend(self, other: Track) -> None:
        """Take over the frames of another track."""
        where = slice(other.first - self.first, other.first - self.first + len(other.score))
        self.logits[where], self.score[where] = other.logits, other.score


def edge(threshold: float) -> np.float32:
    """The logit above which a probability is above the threshold: all are above 0, none is above 1."""
    if not 0 < threshold < 1:
        return np.float32(-np.inf if threshold <= 0 else np.inf)
    return np.float32(np.log(threshold) - np.log1p(-threshold))


Follow = Callable[[Sequence[Job]], list[Track]]


@dataclass(eq=False)
class Lead:
    """A thing that is tracked. score, words: of the detection it begins with. thing: None where a person points at it.
    boxes: of its track, {frame: box} where it is in sight. tried: frames in which the tracker was prompted. pixels:
    {phrase: how many of those it claims went to it}."""

    phrase: str
    prompts: list[Hint]
    score: float
    words: float = 1.0
    thing: Thing | None = None
    track: Track | None = None
    boxes: dict[int, Box] = field(default_factory=dict)
    tried: set[int] = field(default_factory=set)
    pixels: Counter[str] = field(default_factory=Counter)

    @property
    def weight(self) -> float:
        """How well it answers to its phrase as a whole: what it is measured by against other phrases."""
        return self.score * self.words

    def __str__(self) -> str:
        share = "" if self.words == 1 else f" for {self.words:.0%} of its words"
        return f"'{self.phrase}' ({self.score:.2f}{share})"

    def look(self, threshold: float, size: tuple[int, int]) -> None:
        """Read the boxes off the track."""
        inside = self.track.inside(threshold)
        scale = np.array(size[::-1] * 2) / np.array(inside.shape[:0:-1] * 2)
        self.boxes = {self.track.first + n: tuple(float(x) for x in np.array(box_of(mask)) * scale)
                      for n, mask in enumerate(inside) if mask.any()}

    def explains(self, one: Detection) -> bool:
        return one.frame in self.boxes and overlaps([self.boxes[one.frame]], [one.box])[0, 0] >= EXPLAINS

    def is_other(self, thing: Thing) -> bool:
        """Whether a thing is seen beside this one: in a frame that shows both."""
        return any(frame in self.boxes and overlaps([self.boxes[frame]], [box])[0, 0] < EXPLAINS
                   for frame, box in thing.boxes.items())

    def is_it(self, thing: Thing) -> bool:
        """Whether a thing is what this track shows, in most frames where it is in sight."""
        shared = [overlaps([self.boxes[frame]], [box])[0, 0] >= EXPLAINS
                  for frame, box in thing.boxes.items() if frame in self.boxes]
        return bool(shared) and sum(shared) * 2 > len(shared)


def draw(found: Mapping[str, Sequence[Detection]], hints: Sequence[Hint], phrases: Sequence[str],
         shape: tuple[int, int, int], follow: Follow, setup: Setup) -> dict[str, Masks]:
    """found: {phrase: detections}, those that fall short of the box threshold too. shape: (F, H, W). follow: the
    tracker. -> a phrase's masks, its instances (what is tracked first), and what a person should know."""
    asked, phrases = phrases, sorted(phrases)
    sure = {phrase: finds(found.get(phrase, ()), setup.box_threshold) for phrase in phrases}
    pointed = {phrase: [hint for hint in hints if hint.phrase == phrase] for phrase in phrases}
    looked = [phrase for phrase in phrases if not pointed[phrase]]
    own = bind(things({phrase: sure[phrase] for phrase in looked}), looked)
    notes: dict[str, list[str]] = {phrase: [] for phrase in phrases}
    leads = []
    for phrase in phrases:
        if pointed[phrase]:
            leads.append(Lead(phrase, pointed[phrase], 1.0))
        for thing in own.get(phrase, [])[:MOST if setup.instances == "all" else 1]:
            best = thing.best(phrase)
            leads.append(Lead(phrase, [Hint(phrase, best.frame, best.box)], best.score, best.words, thing,
                              tried={best.frame}))
        if phrase in own and not own[phrase]:
            notes[phrase].append(missed(phrase, found.get(phrase, ()), own, setup.box_threshold, shape[0]))
    _track(leads, [Job(tuple(lead.prompts), 0, shape[0] - 1) for lead in leads], shape, follow, setup)
    for _ in range(ROUNDS):
        if not _find_again(leads, sure, own, notes, shape, follow, setup):
            break
    for lead in leads:
        if not lead.boxes:
            frames = ", ".join(str(hint.frame) for hint in lead.prompts)
            notes[lead.phrase].append(f"SAM2 sees no '{lead.phrase}' where it is pointed at, in frame {frames}")
    tracked = [lead.thing for lead in leads]
    leads = _apart(leads, notes, setup.threshold)
    masks, sure_F = _pixels(leads, phrases, shape, setup.threshold)
    out = {}
    for phrase in asked:
        if not masks[phrase].any() and (hidden := [lead for lead in leads if lead.phrase == phrase and lead.boxes]):
            notes[phrase].append(_within(phrase, sum((lead.pixels for lead in hidden), Counter())))
        others = [thing for thing in own.get(phrase, []) if thing not in tracked]
        instances = _instances(phrase, leads, others)
        taken = sum(one.taken for one in instances)
        if 0 < taken < len(instances):
            notes[phrase].append(f"{taken} of {len(instances)} things that answer to '{phrase}' "
                                 f"{'is' if taken == 1 else 'are'} taken")
        out[phrase] = Masks(masks[phrase], sure_F[phrase], instances, tuple(notes[phrase]))
    return out


def _within(phrase: str, pixels: Counter[str]) -> str:
    """Why a phrase that is tracked has no pixel. pixels: as those of its leads."""
    if not pixels:
        return f"what SAM2 sees of '{phrase}' is smaller than a pixel"
    names = " and ".join(f"'{name}'" for name, _ in pixels.most_common())
    return f"'{phrase}' lies within {names}, which {'is' if len(pixels) == 1 else 'are'} surer there"


def _track(leads: Sequence[Lead], jobs: Sequence[Job], shape: tuple[int, int, int], follow: Follow, setup: Setup
           ) -> None:
    """Follow each lead as its job says."""
    for lead, track in zip(leads, follow(jobs) if jobs else []):
        if lead.track is None:
            lead.track = track
        else:
            lead.track.mend(track)
        lead.look(setup.threshold, shape[1:])


def _find_again(leads: Sequence[Lead], sure: Mapping[str, Sequence[Detection]], own: Mapping[str, Sequence[Thing]],
                notes: Mapping[str, list[str]], shape: tuple[int, int, int], follow: Follow, setup: Setup) -> bool:
    """Prompt the tracker once more for each lead that is lost where its phrase is seen. -> whether there was any."""
    lost, jobs, seen = [], [], []
    for lead in leads:
        best = best_of(_returns(lead, leads, sure[lead.phrase], own.get(lead.phrase, [])))
        if best is None:
            continue
        first = last = best.frame
        while first > 0 and first - 1 not in lead.boxes:
            first -= 1
        while last < shape[0] - 1 and last + 1 not in lead.boxes:
            last += 1
        lead.prompts.append(Hint(lead.phrase, best.frame, best.box))
        lead.tried.add(best.frame)
        lost.append(lead)
        seen.append(best)
        jobs.append(Job(tuple(lead.prompts), first, last))
    _track(lost, jobs, shape, follow, setup)
    for lead, job, one in zip(lost, jobs, seen):
        if one.frame in lead.boxes:
            notes[lead.phrase].append(f"'{lead.phrase}' was lost in frames {job.first} to {job.last} and found again "
                                      f"in frame {one.frame}")
        else:
            lead.prompts.pop()
    return bool(lost)


def _returns(lead: Lead, leads: Sequence[Lead], sure: Sequence[Detection], own: Sequence[Thing]) -> list[Detection]:
    """Detections of a lead's phrase where the lead is lost, that no other track explains and that are of nothing seen
    beside it."""
    if lead.thing is None or not lead.boxes:
        return []
    may_be = [thing for thing in own if thing is lead.thing or not (
        lead.is_other(thing) or any(other.thing is thing for other in leads))]
    return [one for one in sure if one.frame not in lead.boxes and one.frame not in lead.tried
            and any(thing.answers[lead.phrase].get(one.frame) == one for thing in may_be)
            and not any(other.explains(one) for other in leads if other is not lead)]


def _apart(leads: Sequence[Lead], notes: Mapping[str, list[str]], threshold: float) -> list[Lead]:
    """Without those leads that are the same thing as one that answers better; the first of equals stays."""
    kept: list[Lead] = []
    for lead in sorted(leads, key=lambda lead: -lead.weight):
        twin = next((other for other in kept if _iou(lead, other, threshold) > ONE_THING), None)
        if twin is None:
            kept.append(lead)
        elif twin.phrase != lead.phrase:
            notes[lead.phrase].append(f"{lead} is the same thing as {twin}, which keeps it")
    return [lead for lead in leads if lead in kept]


def _iou(a: Lead, b: Lead, threshold: float) -> float:
    """Of two tracks, over the frames that show both; 0 where these are a small part of either."""
    both = sorted(a.boxes.keys() & b.boxes.keys())
    if not both or len(both) < MEETING * min(len(a.boxes), len(b.boxes)):
        return 0.0
    one, two = (lead.track.inside(threshold)[np.array(both) - lead.track.first] for lead in (a, b))
    return float((one & two).sum() / (one | two).sum())


def _pixels(leads: Sequence[Lead], phrases: Sequence[str], shape: tuple[int, int, int], threshold: float
            ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """{phrase: bool (F, H, W)}, {phrase: confidence (F,)}: each pixel of each frame to its likeliest phrase. Logits are
    compared: probabilities near 1 are all the same in float32."""
    masks, least = {phrase: np.zeros(shape, bool) for phrase in phrases}, edge(threshold)
    sure = {phrase: np.zeros(shape[0]) for phrase in phrases}
    for frame in range(shape[0]):
        best, owner, claims = np.full(shape[1:], -np.inf, np.float32), np.full(shape[1:], -1, np.int16), []
        for lead in sorted(leads, key=lambda lead: -lead.weight):                   # the first of equals keeps a pixel
            logits = lead.track.at(frame, shape[1:])
            if logits is not None:
                over = logits > best
                best[over], owner[over] = logits[over], phrases.index(lead.phrase)
                claims.append((lead, logits > least))
        for lead, claim in claims:
            lead.pixels += Counter(dict(zip(phrases, np.bincount(owner[claim], minlength=len(phrases)).tolist())))
        chance = 1 / (1 + np.exp(-np.clip(best, -60, 60)))
        for n, phrase in enumerate(phrases):
            masks[phrase][frame] = (owner == n) & (best > least)
            sure[phrase][frame] = confidence(masks[phrase][frame, None], chance[None])[0]
    return masks, sure


def _instances(phrase: str, leads: Sequence[Lead], others: Sequence[Thing]) -> tuple[Instance, ...]:
    """What is tracked first, then what else answers to the phrase and is shown by no track, each in the frame that
    shows it best, and not what a track shows."""
    out = []
    for lead in (lead for lead in leads if lead.phrase == phrase and lead.boxes):
        frame = lead.prompts[0].frame
        box = lead.prompts[0].box or lead.boxes.get(frame) or lead.boxes[min(lead.boxes, key=lambda k: abs(k - frame))]
        out.append(Instance(frame, box, lead.score, lead.pixels[phrase] > 0))
    for thing in others:
        best = best_of(one for one in thing.answers[phrase].values() if not any(lead.explains(one) for lead in leads))
        if best and not any(lead.is_it(thing) for lead in leads):
            out.append(Instance(best.frame, best.box, best.score, False))
    return tuple(out)
