"""grounded-sam2: Grounding DINO finds what the phrases name, SAM2 follows it forward and backward (METHOD 3.1 and 4).

The paper names Grounded-SAM2 and no more; which thing a phrase is bound to, in which frame tracking begins, what
happens when it is lost, and whose a pixel is, are **ours**: tracks.py and binding.py, each rule in a sentence.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..core.errors import UsageError
from ..core.vision import checked_frames
from . import Hint, Masks, Setup, Source
from .grounding_dino import GroundingDino, plain
from .tracks import draw

LOOKS = 32              # frames of a clip that Grounding DINO looks at; evenly spaced ones of a longer clip
THROUGH = ("transformers", "sam2")


class GroundedSam2:
    """Holds both networks. Of the setup: all but model and masks."""

    usual = ("person", "dog", "cat", "horse", "bird", "cow", "sheep", "elephant", "bear", "rabbit", "fish", "car",
             "bus", "truck", "motorcycle", "bicycle", "boat", "airplane", "ball", "toy", "robot")

    def __init__(self, setup: Setup) -> None:
        if setup.through not in THROUGH:
            raise UsageError(f"SAM2 does not run through '{setup.through}'", f"known are {', '.join(THROUGH)}")
        self.setup = setup
        self.detector = GroundingDino(setup.detector, setup.device)
        if setup.through == "sam2":
            from .sam2_package import Sam2Package as Tracker
        else:
            from .sam2 import Sam2 as Tracker
        self.tracker = Tracker(setup.tracker, setup.device)

    def masks(self, frames: np.ndarray, phrases: Sequence[str], hints: Sequence[Hint] = (),
              source: Source | None = None) -> dict[str, Masks]:
        """What is pointed at is not looked for: its masks begin in the frames of its hints. Every pixel is one phrase's
        at most. Raises UsageError for a phrase that cannot be looked for and a hint that says nothing."""
        frames, phrases = checked_frames(frames), list(dict.fromkeys(phrases))
        if not phrases or not all(phrase.strip() for phrase in phrases):
            raise UsageError("there is nothing to look for", "name it: --actors person horse")
        asked = {plain(phrase): phrase for phrase in reversed(phrases)}
        if twice := next((phrase for phrase in phrases if asked[plain(phrase)] != phrase), None):
            raise UsageError(f"'{asked[plain(twice)]}' and '{twice}' are one phrase to Grounding DINO",
                             "name it once, or by words that tell the two apart")
        hints = [_checked(hint, phrases, len(frames)) for hint in hints]
        pointed = {hint.phrase for hint in hints}
        if len({(hint.phrase, hint.frame) for hint in hints}) < len(hints):
            raise UsageError("two hints are of one phrase in one frame", "put them into one")
        looked = [phrase for phrase in phrases if phrase not in pointed]
        found = self.detector.find(frames, looks(len(frames)), looked, self.setup.box_threshold,
                                   self.setup.text_threshold) if looked else {}
        return draw(found, hints, phrases, frames.shape[:3], lambda jobs: self.tracker.track(frames, jobs), self.setup)


def looks(count: int) -> list[int]:
    """The frames of a clip that are searched for phrases."""
    return sorted({round(k) for k in np.linspace(0, count - 1, min(count, LOOKS))})


def _checked(hint: Hint, phrases: Sequence[str], count: int) -> Hint:
    """A hint that SAM2 can be prompted with."""
    if hint.phrase not in phrases:
        raise UsageError(f"a hint is of '{hint.phrase}', which is not looked for", "name it among --actors as well")
    if not 0 <= hint.frame < count:
        raise UsageError(f"a hint is of frame {hint.frame}, and there are frames 0 to {count - 1}",
                         "choose one of them: --frame")
    if hint.box is None and not any(inside for *_, inside in hint.points):
        raise UsageError(f"the hint of '{hint.phrase}' has neither a box nor a point inside it",
                         "give one: --box or --point")
    if hint.box is not None and not (hint.box[0] < hint.box[2] and hint.box[1] < hint.box[3]):
        raise UsageError(f"the box of '{hint.phrase}' is empty", "its order is left, top, right, bottom")
    return hint
