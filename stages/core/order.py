"""Which frames damage takes with it. Plain arithmetic on numbers, no files."""
from __future__ import annotations

from collections.abc import Sequence


class Order:
    """Frames in the order in which they are decoded, which tells what damage takes with it: all that is decoded after
    it, as far as the next key, and of what follows that, what is shown before it. libav hands such frames over as if
    nothing were the matter. A frame is settled once all that was decoded before it has been shown, or never will be."""

    def __init__(self, keys: Sequence[int]) -> None:
        self._shown = -1                                   # the last number shown; they ascend
        self._keys, self._key = set(keys), [0]             # of each run that begins with a key, its number
        self._runs: list[list[int | None]] = [[]]          # the numbers that it was fed
        self._place: dict[int, tuple[int, int, int]] = {}  # number: its run, its place there, the last one fed by then
        self._seen: set[int] = set()
        self._lost: dict[int, int] = {}                    # run: the first place that is lost
        self._led: set[int] = set()                        # runs that lost frames shown before their key: no more lean
        self._reach = 0                                    # on those than others of them

    def feed(self, number: int | None) -> None:
        """A packet goes in; None: of no frame that is shown."""
        if number in self._keys:
            self._runs.append([])
            self._key.append(number)
        if number is not None:
            self._reach = max(self._reach, number)
            self._place[number] = len(self._runs) - 1, len(self._runs[-1]), self._reach
        self._runs[-1].append(number)

    def see(self, number: int, *, sound: bool) -> None:
        """A frame comes out."""
        self._shown = max(self._shown, number)
        self._seen.add(number)
        if not sound:
            self.lose(number)

    def lose(self, number: int | None) -> None:
        """This one, or what was fed last."""
        run, place, _ = self._place.get(number, (len(self._runs) - 1, len(self._runs[-1]) - 1, 0))
        if number is not None and number < self._key[run]:
            self._led.add(run)
        else:
            self._lost[run] = min(place, self._lost.get(run, place))

    def is_settled(self, number: int) -> bool:
        return self._place.get(number, (0, 0, -1))[2] <= self._shown

    def is_spoilt(self, number: int) -> bool:
        """Of a settled one: whether it, or what it may lean on, is lost."""
        run, place, _ = self._place.get(number, (0, 0, 0))
        for other in self._runs[run][:place]:
            if other is not None and other not in self._seen:          # swallowed without a word
                self.lose(other)
        if number < self._key[run] and (run in self._led or run - 1 in self._lost):
            return True
        return self._lost.get(run, place + 1) <= place
