"""Which frames damage takes with it. Plain arithmetic on numbers, no files."""
from __future__ import annotations

from collections.abc import Sequence


class Order:
    """Frames in the order in which they are decoded, which tells what damage takes with it: all that is decoded after
    it, as far as the next key, and of what follows that, what is shown before it. libav hands such frames over as if
    nothing were the matter. A frame is settled once all that was decoded before it has been shown, or never will be."""

    def __init__(self, keys: Sequence[int]) -> None:
        self.shown = 0                                     # the last number shown; they ascend
        self._keys, self._key = set(keys), [0]             # of each run that begins with a key, its number
        self._run, self._length, self._reach = 0, 0, 0
        self._place: dict[int, tuple[int, int, int]] = {}  # number: its run, its place there, the last one fed by then
        self._lost: dict[int, int] = {}                    # run: the first place that is lost

    def feed(self, number: int | None) -> None:
        if number in self._keys:
            self._run, self._length = self._run + 1, 0
            self._key.append(number)
        if number is not None:
            self._reach = max(self._reach, number)
            self._place[number] = self._run, self._length, self._reach
        self._length += 1

    def lose(self, number: int | None) -> None:
        """This one, or what was fed last."""
        run, place, _ = self._place.get(number, (self._run, self._length - 1, 0))
        self._lost[run] = min(place, self._lost.get(run, place))

    def is_settled(self, number: int) -> bool:
        return self._place.get(number, (0, 0, 0))[2] <= self.shown

    def is_spoilt(self, number: int) -> bool:
        run, place, _ = self._place.get(number, (0, 0, 0))
        return self._lost.get(run, place + 1) <= place or (number < self._key[run] and run - 1 in self._lost)
