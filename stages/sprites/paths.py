"""Where things of the sprites world go: the paths of one object alone, and of two or three that play roles.

Places are in frame widths (x right, y down).
"""
from __future__ import annotations

import numpy as np


def path_alone(motion: str, start, frames: int, travel: float) -> np.ndarray:
    """The path (frames, 2) of one object from its starting place; travel: how far it goes, in frame widths."""
    s = np.linspace(0, 1, frames)
    dx, dy = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}.get(motion, (0, 0))
    path = np.stack([start[0] + dx * travel * s, start[1] + dy * travel * s], -1)
    if motion == "bounce":
        path[:, 1] -= travel * abs(np.sin(2 * np.pi * s))
    return path


def paths_of_roles(motion: str, frames: int, radius: float, rng: np.random.Generator, actors: int = 2) -> np.ndarray:
    """Paths (actors, frames, 2) of a motion with roles; the first path is the role that the sentence names first."""
    s, side = np.linspace(0, 1, frames), rng.choice([-1, 1])
    phase, still = rng.uniform(0, 2 * np.pi), np.zeros(frames)
    touch = 2.0 * radius
    y = rng.uniform(-0.1, 0.1)
    if motion == "push":
        go = (s - 0.5) * rng.uniform(0.26, 0.32)
        out = [(side * (go - touch / 2), y + still), (side * (go + touch / 2), y + still)]
    elif motion == "approach":
        out = [(side * (-0.36 + s * (0.60 - touch)), y + still), (side * 0.24 + still, y + still)]
    elif motion == "jump":
        x = rng.uniform(-0.03, 0.03)
        out = [(side * (s - 0.5) * 0.66, 0.14 - 0.38 * np.sin(np.pi * s)), (still + x, still + 0.2)]
    elif motion == "orbit":
        turn = phase + side * 1.5 * np.pi * s
        out = [(0.28 * np.cos(turn), 0.28 * np.sin(turn)), (-0.11 * np.cos(turn), -0.11 * np.sin(turn))]
        if actors == 3:                                            # round two that turn with it, side by side
            ahead, aside = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
            out = [0.3 * ahead, -0.12 * ahead + 0.16 * aside, -0.12 * ahead - 0.16 * aside]
    elif motion == "chase":
        gap = side * 2 * np.pi / max(actors, 3)
        turns = [phase + side * 1.3 * np.pi * s + k * gap for k in range(actors)]
        out = [(0.28 * np.cos(t), 0.28 * np.sin(t)) for t in turns]
    elif motion == "leapfrog":
        first, second = np.clip(2 * s, 0, 1), np.clip(2 * s - 1, 0, 1)
        out = [(side * (-0.34 + 0.52 * first), 0.18 - 0.40 * np.sin(np.pi * first)),
               (side * (-0.06 + 0.38 * second), 0.18 - 0.40 * np.sin(np.pi * second))]
    elif motion == "zigzag":
        wave = 4 * abs((2 * s + 0.25) % 1 - 0.5) - 1
        out = [(0.11 * wave + side * 0.2, -0.3 + 0.6 * s), (still - side * 0.24, 0.28 - 0.56 * s)]
        if actors == 3:                                            # the third goes down and comes back between them
            out = [(0.05 * wave + side * 0.29, -0.3 + 0.6 * s), (still - side * 0.32, 0.28 - 0.56 * s),
                   (still, -0.28 + 0.5 * np.sin(np.pi * s))]
    elif motion == "eight":
        lags = [phase + 1.6 * np.pi * s + k * (np.pi / 2 if actors == 2 else 2 * np.pi / actors) for k in range(actors)]
        out = [(0.3 * np.sin(t), 0.26 * np.sin(2 * t) / 1.1) for t in lags]
    else:
        raise ValueError(f"'{motion}' is not a motion with roles")
    return np.clip(0.5 + np.stack([np.stack([a, b], -1) for a, b in out]), 0.04, 0.96)
