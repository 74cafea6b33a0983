"""Is a run getting worse? Losses of diffusion models leap from step to step with t: means over many steps say it."""
from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

WINDOW = 50         # steps to a mean
WARN = 3.0          # times the best mean so far: something is wrong
STOP = 10.0         # the same: it has diverged, if it is also worse than
WORSE = 2.0         # times the mean that the run began with


def judge(losses: Sequence[float]) -> tuple[str, str]:
    """The losses of all steps so far -> ("", "") or ("warn" | "stop", what is seen). Whole windows are looked at, from
    the third on."""
    done = len(losses) // WINDOW * WINDOW
    if done < 3 * WINDOW:
        return "", ""
    sums = [0.0, *accumulate(losses)]
    means = [(sums[end] - sums[end - WINDOW]) / WINDOW for end in range(WINDOW, done + 1, WINDOW)]
    first, best, last = means[0], min(means[:-1]), means[-1]
    if last <= WARN * best:
        return "", ""
    seen = (f"the loss of the last {WINDOW} steps is {last:.3g} on average, {last / best:.1f} times the best before "
            f"({best:.3g}; it began with {first:.3g})")
    return ("stop" if last > STOP * best and last > WORSE * first else "warn"), seen
