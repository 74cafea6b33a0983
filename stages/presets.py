"""What a base needs otherwise than the paper's ZeroScope, each value with its reason. Nothing else knows these numbers.

PRESETS[base][stage][option] = (value, reason). The values of options.py hold where nothing stands here: they are the
paper's, for zeroscope, and what modelscope and every other base starts from. `preset: paper` in project.yaml takes of
these values only what the size of the base asks for, and nothing that departs from the method as published.
"""
from __future__ import annotations

from collections.abc import Mapping

CLIPSEG = "its own, which knows its world; it comes along, and Grounded-SAM2 would have to be fetched"

PRESETS: dict[str, dict[str, dict[str, tuple[object, str]]]] = {
    "sprites": {
        "segment": {
            "segmenter": ("clipseg", CLIPSEG),
        },
        "invert": {
            "inversion_steps": (25, "the steps of sampling: inversion must walk the same schedule back"),
        },
        "learn-subject": {
            "steps": (180, "a subject shows in as many frames after 150 steps as after 300"),
            "rate": (3e-3, "a base of a few million parameters moves little at 1e-4"),
            "token_rate": (5e-3, "at 2e-4 its text vector ends within 2 % of the class word's"),
            "lambda1": (1.0, "LoRAs that answer to their own tokens alone stay apart when fused"),
            "uncaptioned": (0.25, "without it the fused LoRA drew one subject for both tokens"),
            "batch": (8, "a photo is an eighth of a clip: eight cost one clip and steady the gradient"),
            "rank": (16, "its layers are 48 to 128 wide: rank 32 would be nearly full rank"),
            "alpha": (16.0, "equal to the rank, so that a change counts once"),
            "video_steps": (25, "the small base gains nothing from more"),
            "guidance": (2.5, "above 3 so small a model exaggerates: triangles grow spikes, squares horns"),
            "unconditional": ("base", "away from its own answer guidance wipes the subject's texture out"),
        },
        "learn-motion": {
            "rate": (1.5e-3, "a base of a few million parameters moves little at 1e-4; at 3e-3 the clip's place leaks"),
            "batch": (2, "two noise levels a step steady the gradient"),
            "rank": (16, "its layers are 48 to 128 wide: rank 32 would be nearly full rank"),
            "alpha": (16.0, "equal to the rank, so that a change counts once"),
        },
        "fuse": {
            "steps": (520, "as many as ten minutes allow with a margin"),
            "steps_per": ("pair", "they take turns: each has its 260 steps, however many there are"),
            "rate": (2e-3, "a base of a few million parameters moves little at 1e-4; 3e-3 did no better"),
            "schedule": ("cosine", "so that so high a rate settles; a constant one was not compared"),
            "lambda_mix": (12.0, "without it two subjects merge; at 20 three stood on the clip's ground, one run"),
            "teachers": ("turns", "fewer forwards a step, so more steps in the time; not compared alone"),
            "t_max": (0.65, "above, the motion branch has the say (motion_steps); 1 did worse, one run each"),
            "segmenter": ("clipseg", CLIPSEG),
            "edges": ("snapped", "IoU with the true masks of the subjects' photos is 0.99 with it, 0.85 without"),
            "cuts": ("photos", "cut from what its LoRAs draw, subjects come out blurred and doubled"),
            "together": (3, "in pairs only, under other values, no frame showed three; not compared alone"),
            "compositions": (96, "cheap, and each is seen about five times"),
            "video_steps": (25, "the small base gains nothing from more"),
            "guidance": (2.5, "above 3 so small a model exaggerates: triangles grow spikes, squares horns"),
            "unconditional": ("base", "away from its own answer guidance wipes the subject's texture out"),
        },
        "sample": {
            "steps": (25, "the small base gains nothing from more"),
            "tau": (8, "the paper's share of guided steps, 15 of 50"),
            "motion_steps": (10, "by then the paths stand; without recast noise more than 14 washed the subjects out"),
            "guidance": (2.0, "at 3 shapes lost their edges: both in sight in 73 % of the frames of 6 videos, at 2 90"),
            "guidance_steps": (10, "after the paths stand guidance only drives the colours out of the subjects' own"),
            "segmenter": ("clipseg", CLIPSEG),
            "edges": ("snapped", "IoU with the true masks of the subjects' photos is 0.99 with it, 0.85 without"),
            "inverted": ("cast", "the clip's own colours shine through the subjects and decide who takes which path"),
            "beta": (0.8, "at 0.4, 0.6 and 0.8 both were in sight in 80, 80 to 86, 93 % of the frames of 12 videos"),
            "guidance_motion": (1.0, "more of it brings the colours of the clip's actors along"),
            "unconditional": ("base", "away from its own answer guidance wipes the subject's texture out"),
        },
        "eval": {
            "segmenter": ("clipseg", CLIPSEG),
        },
    },
}

# what in PRESETS is another method than the paper's, and not the same at another size
DEPARTURES: dict[str, frozenset[str]] = {
    "learn-subject": frozenset({"lambda1", "uncaptioned", "unconditional"}),
    "fuse": frozenset({"steps", "steps_per", "schedule", "lambda_mix", "teachers", "t_max", "cuts", "together",
                       "compositions", "unconditional"}),
    "sample": frozenset({"motion_steps", "guidance_steps", "inverted", "beta", "guidance_motion", "unconditional"}),
}


def preset_of(base: str, preset: str, stage: str) -> Mapping[str, tuple[object, str]]:
    """{option: (value, reason)} of a stage. preset: "tuned", or "paper": without the DEPARTURES."""
    whole = PRESETS.get(base, {}).get(stage, {})
    return {name: entry for name, entry in whole.items()
            if preset == "tuned" or name not in DEPARTURES.get(stage, frozenset())}


# What learn-subject asks a base to draw for L_reg where the user names no auxiliary set: things in motion that have
# nothing to do with any subject, in words that the base was trained on.
AUXILIARY_PROMPTS: dict[str, tuple[str, ...]] = {
    "sprites": (
        "a red circle moves left in the snow", "a green square bounces on the grass",
        "a blue triangle moves up at night", "a yellow striped circle moves right on the sand",
        "a red dotted square moves down at night",
        "a green circle pushes a blue square on the sand", "a yellow triangle approaches a red circle in the snow",
        "a blue striped square jumps over a green triangle", "a red triangle bounces in the snow",
        "a blue circle moves down on the grass", "a yellow square moves left at night",
        "a green dotted triangle moves right on the sand", "a red square and a blue circle move up on the grass",
        "a yellow circle and a green square bounce at night", "a blue triangle stays still on the sand",
        "a green circle moves right in the snow",
    ),
    "": (
        "a person walking along a city street", "waves rolling onto a beach", "a car driving on a mountain road",
        "a man cooking in a kitchen", "birds flying over a lake", "a woman talking to the camera",
        "children playing football in a park", "a train arriving at a station", "rain falling on a window",
        "a cyclist riding through a forest", "clouds moving over a field", "a chef cutting vegetables",
        "people dancing at a party", "a boat sailing on the sea", "a horse running in a meadow",
        "traffic at a crossroads at night",
    ),
}


def auxiliary_prompts(base: str, count: int) -> list[str]:
    """`count` prompts for the auxiliary clips of a base, from the start again where there are fewer."""
    prompts = AUXILIARY_PROMPTS.get(base, AUXILIARY_PROMPTS[""])
    return [prompts[k % len(prompts)] for k in range(count)]
