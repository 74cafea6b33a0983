"""What a base needs otherwise than the paper's ZeroScope, each value with its reason. Nothing else knows these numbers.

PRESETS[base][stage][option] = (value, reason). The values of options.py hold where nothing stands here.
"""
from __future__ import annotations

PRESETS: dict[str, dict[str, dict[str, tuple[object, str]]]] = {
    "sprites": {
        "invert": {
            "inversion_steps": (25, "the steps of sampling: inversion must walk the same schedule back"),
        },
        "learn-subject": {
            "rate": (1e-3, "a base of a few million parameters moves little at 1e-4"),
            "token_rate": (1e-3, "the same; a token of a narrow text encoder has to travel further"),
            "rank": (8, "its layers are 32 to 128 wide: rank 32 would be nearly full rank"),
            "alpha": (8.0, "equal to the rank, so that a change counts once"),
            "video_steps": (25, "the small base gains nothing from more"),
            "guidance": (4.0, "a guidance of 9 over-saturates so small a model"),
        },
        "learn-motion": {
            "rate": (1e-3, "a base of a few million parameters moves little at 1e-4"),
            "rank": (8, "its layers are 32 to 128 wide: rank 32 would be nearly full rank"),
            "alpha": (8.0, "equal to the rank, so that a change counts once"),
        },
        "fuse": {
            "rate": (1e-3, "a base of a few million parameters moves little at 1e-4"),
            "video_steps": (25, "the small base gains nothing from more"),
            "guidance": (4.0, "a guidance of 9 over-saturates so small a model"),
        },
        "sample": {
            "steps": (25, "the small base gains nothing from more"),
            "tau": (8, "the paper's share of guided steps, 15 of 50"),
            "guidance": (4.0, "a guidance of 9 over-saturates so small a model"),
        },
    },
}
