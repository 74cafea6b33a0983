"""Every hyper-parameter of every stage, one line each. A line yields the flag, its help and range check, the key in
project.yaml, the manifest's record and the README's table (option_tables.py). Defaults are the paper's; what a base
needs otherwise stands in presets.py. Imports no torch.

Precedence: typed flag > project.yaml `options` > preset of the base > the default here. The default of an option that
is added later is what was done before: artefacts made without it stay fresh.
"""
from __future__ import annotations

import math
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from pathlib import Path

from .core.errors import BadInput, UsageError, VideomageError
from .core.settings import FILE, Settings, did_you_mean
from .presets import preset_of


def option(default: object, within: str, help: str, paper: str = "", *, identity: bool = True, whole: bool = False
           ) -> typing.Any:
    """A hyper-parameter. within: its range and unit, "0..1", "1.. steps", "(0.. " for above 0, or the words that it may
    be, "own|base"; "" where there is none. paper: the section it comes from, "ours" where the paper leaves it open.
    identity False: the result does not depend on it (how often to preview), or it is a path, whose content is hashed as
    an input instead. whole: of several words, none is split at its commas."""
    low, high, unit, above = None, None, "", False
    words = tuple(within.split("|")) if "|" in within else ()
    if within and not words:
        above = within.startswith("(")
        limits, _, unit = within.lstrip("(").partition(" ")
        low, high = (float(part) if part else math.inf for part in limits.split(".."))
    return field(default=default, metadata={"help": help, "low": low, "high": high, "unit": unit, "paper": paper,
                                            "above": above, "words": words, "identity": identity, "whole": whole})


@dataclass(frozen=True)
class Options:
    """Values are coerced to their type (YAML reads 1e-4 as text) and checked against their range when made."""

    def __post_init__(self) -> None:
        for spec in fields(self):
            object.__setattr__(self, spec.name, checked(type(self), spec, getattr(self, spec.name)))


NETWORKS = "grounded-sam2|clipseg"                      # segmenters that look for themselves
FINDERS = f"{NETWORKS}|given"


@dataclass(frozen=True)
class SegmentOptions(Options):
    """segment: phrases -> mask tracks (METHOD 3.1; the paper uses Grounded-SAM2)."""

    segmenter: str = option("grounded-sam2", FINDERS, "what draws the masks; given: PNGs of your own", "§3.3")
    actors: tuple[str, ...] = option((), "", "what to look for, phrases of any length; default: the bracketed words of "
                                     "the prompt, else what commonly moves", "§3.3")
    box: tuple[str, ...] = option((), "", "where an actor is, in --frame: horse=LEFT,TOP,RIGHT,BOTTOM (frame 7: "
                                  "horse@7=...), in pixels of the overlay sheet's rulers", "ours", whole=True)
    point: tuple[str, ...] = option((), "", "a point in an actor, horse=X,Y, or outside it, horse!=X,Y", "ours",
                                    whole=True)
    frame: int = option(0, "0.. frame", "the frame that --box and --point mean", "ours")
    instances: str = option("one", "one|all", "of several things that answer to a phrase: the surest, or all", "ours")
    start: float = option(0.0, "0.. s", "where in the clip the part begins that is learned from", "ours")
    seconds: float | None = option(None, "(0.. s", "how long it is; default: as long as the base's videos. Longer: "
                                   "several windows are learned from", "ours")
    speed: float | None = option(None, "(0..100", "2: twice as fast as in the clip, twice as much of it; default: 1, "
                                 "slower where a clip is too short", "ours")
    fit: str = option("cover", "cover|contain", "to the base's aspect: cut the sides off, or fill them up", "ours")
    threshold: float = option(0.5, "0..1", "confidence above which a pixel belongs to an actor", "ours")
    box_threshold: float = option(0.3, "0..1", "Grounding DINO: confidence above which a box is a find", "ours")
    text_threshold: float = option(0.25, "0..1", "Grounding DINO: above which a word is meant by a box", "ours")
    detector: str = option("IDEA-Research/grounding-dino-tiny", "", "Grounding DINO: of the hub, or a folder", "§3.3")
    tracker: str = option("facebook/sam2.1-hiera-tiny", "", "SAM2: of the hub, or a folder", "§3.3")
    through: str = option("transformers", "transformers|sam2", "the library that runs SAM2", "ours")
    masks: Path | None = option(None, "", "for 'given': a folder with a sub-folder of PNGs per actor", identity=False)
    allow_partial: bool = option(False, "", "of a damaged clip, take the frames before the damage", "ours")


@dataclass(frozen=True)
class InvertOptions(Options):
    """invert: appearance tokens by textual inversion on one frame, and DDIM-inverted noise (METHOD 3.1, 5)."""

    token_steps: int = option(300, "0.. steps", "steps of textual inversion, all actors together", "ours")
    token_rate: float = option(5e-3, "(0..10", "its learning rate", "ours")
    token_batch: int = option(4, "1..4096", "noise levels drawn at each of its steps", "ours")
    token_frame: int = option(0, "0.. frame", "the one frame whose crops teach the tokens", "§3.3; ours")
    inversion_steps: int = option(50, "1..1000 steps", "steps of DDIM inversion", "§3.5")
    inversion_refine: int = option(0, "0..100", "fixed-point iterations in each inversion step; 0: plain DDIM", "ours")


@dataclass(frozen=True)
class LearnSubjectOptions(Options):
    """learn-subject: token and spatial LoRA on L_sub + lambda1 L_reg (METHOD 2)."""

    steps: int = option(300, "1.. steps", "training steps", "suppl.")
    rate: float = option(1e-4, "(0..10", "learning rate of the LoRA", "suppl.")
    token_rate: float = option(1e-5, "0..10", "learning rate of the subject's token", "suppl.")
    schedule: str = option("constant", "constant|cosine", "course of the learning rate; cosine: to nothing", "ours")
    rank: int = option(32, "1..4096", "rank of the LoRA", "ours")
    alpha: float = option(32.0, "(0..65536", "scale of the LoRA: its change counts alpha / rank times", "ours")
    batch: int = option(1, "1..4096", "photos in a step", "ours")
    fit: str = option("cover", "cover|contain", "photos to the base's aspect: cut the sides off, around the subject "
                      "where it was segmented, or fill them up", "ours")
    lambda1: float = option(0.25, "0..1000", "weight of L_reg, which keeps the base's sense of time", "§3.2")
    uncaptioned: float = option(0.0, "0..1", "share of L_reg's draws without a caption: keeps the LoRA silent where "
                                "its token is not", "ours")
    auxiliary: Path | None = option(None, "", "folder of captioned clips for L_reg; default: drawn from the base",
                                    "§3.2", identity=False)
    auxiliary_count: int = option(16, "1.. clips", "how many: drawn from the base, or taken from the folder", "ours")
    allow_partial: bool = option(False, "", "of its damaged clips, take the frames before the damage", "ours")
    video_steps: int = option(50, "1..1000 steps", "DDIM steps of the clips drawn from the base and of previews", "§4")
    guidance: float = option(9.0, "0..100", "classifier-free guidance scale of the same", "§4")
    unconditional: str = option("own", "own|base", "previews: as in sample", "ours", identity=False)
    preview_every: int = option(100, "0.. steps", "how often to draw a preview; 0: only at the end", identity=False)


@dataclass(frozen=True)
class LearnMotionOptions(Options):
    """learn-motion: temporal LoRA on the appearance-free target (METHOD 3.2)."""

    steps: int = option(300, "1.. steps", "training steps", "suppl.")
    rate: float = option(1e-4, "(0..10", "learning rate of the LoRA", "suppl.")
    rank: int = option(32, "1..4096", "rank of the LoRA", "ours")
    alpha: float = option(32.0, "(0..65536", "scale of the LoRA: its change counts alpha / rank times", "ours")
    batch: int = option(1, "1..4096", "noise levels of the clip in a step", "ours")
    w: float = option(0.5, "0..100", "how far the target turns from the actors' looks; 0: plain fine-tuning", "§3.3")
    bank: int = option(0, "0.. draws", "so many draws, their targets computed once; 0, or w = 0: fresh draws", "ours")
    actors: str = option("tokens", "tokens|words", "how the clip's prompt c_m names its actors", "§3.3")
    template: str = option("A static video of {actors}.", "", "the prompt c_ap; {actors} is filled in", "§3.3")


@dataclass(frozen=True)
class FuseOptions(Options):
    """fuse: several subject LoRAs into one on L_fusion + lambda2 L_attn (METHOD 4)."""

    start: str = option("mean", "mean|sum", "of the subject LoRAs' changes, where training starts", "§3.4; ours")
    steps: int = option(300, "0.. steps", "training steps; 0: what it starts from, as it is", "suppl. (250-450)")
    steps_per: str = option("run", "run|pair", "what has so many steps: the run, or a run of two subjects, and one of "
                            "more as many more as it has subjects", "ours")
    rate: float = option(1e-4, "(0..10", "learning rate of the fused LoRA", "suppl.")
    schedule: str = option("constant", "constant|cosine", "course of the learning rate; cosine: to nothing", "ours")
    batch: int = option(1, "1..4096", "videos of each subject in a step", "ours")
    lambda2: float = option(0.6, "0..1000", "weight of L_attn, which ties each token to its own subject", "§3.4")
    lambda_mix: float = option(0.0, "0..1000", "weight of L_mix: denoise the compositions themselves; 0: none", "ours")
    teachers: str = option("all", "all|turns", "L_fusion's subjects in a step: all, or one in turn", "ours")
    t_max: float = option(1.0, "(0..1", "share of the noise schedule trained on, from its clean end; 1: all", "ours")
    videos: int = option(4, "1.. videos", "training videos sampled from each subject's own LoRA", "ours")
    cuts: str = option("videos", "videos|photos", "what CutMix cuts the subjects from; photos drift", "§3.4; ours")
    together: int = option(2, "2..4 subjects", "subjects in one composition, if so many are fused", "§3.4")
    compositions: int = option(32, "1.. videos", "CutMix compositions, shared out among the groups", "ours")
    video_steps: int = option(50, "1..1000 steps", "DDIM steps of each of them", "§4")
    guidance: float = option(9.0, "0..100", "classifier-free guidance scale of the same", "§4")
    unconditional: str = option("own", "own|base", "what guidance turns from in them: as in sample", "ours")
    segmenter: str = option("grounded-sam2", NETWORKS, "what finds the subject for CutMix", "§3.4")
    threshold: float = option(0.5, "0..1", "confidence above which a pixel belongs to the subject", "ours")
    edges: str = option("drawn", "drawn|snapped", "masks found here (not those of segment): as drawn, or brought "
                        "to the edges of the picture", "ours")
    overlap: float = option(0.25, "0..1", "CutMix: the most of a subject that the front one may hide", "§3.4; ours")
    layers: str = option("all", "", "whose cross-attention maps L_attn reads: mid, all, or such as up_blocks.1", "ours")

    def steps_for(self, subjects: int) -> int:
        """Training steps of a run that fuses so many."""
        return round(self.steps * subjects / 2) if self.steps_per == "pair" else self.steps


@dataclass(frozen=True)
class SampleOptions(Options):
    """sample: spatial-temporal collaborative sampling, Algorithm 1 (METHOD 5)."""

    steps: int = option(50, "1..1000 steps", "sampling steps", "§4")
    solver: str = option("ddim", "ddim|dpm++", "ddim, or DPM-Solver++(2M), which needs fewer steps", "§4; ours")
    guidance: float = option(9.0, "0..100", "classifier-free guidance scale; 1: none", "§4")
    unconditional: str = option("own", "own|base|shared", "what the subject branch's guidance turns from: the answer "
                                "to the empty prompt with its LoRA (own), or of the frozen base (base); shared: one of "
                                "the base for both branches, if both run", "ours")
    guidance_steps: int | None = option(None, "0..1000 steps", "first steps with classifier-free guidance; default: "
                                        "all. Those without cost a row less for each branch that has it", "ours")
    guidance_motion: float | None = option(None, "0..100", "the scale in the motion branch; default: guidance", "ours")
    tau: int = option(15, "0..1000 steps", "how many of the first steps are guided; 0: none", "§3.5")
    guide_every: int = option(1, "1..1000 steps", "of the tau steps guide every n-th, as hard as n together", "ours")
    alpha: float = option(1e4, "0..1e12", "guidance strength at 576x320x24, rescaled to the latent at hand", "§3.5")
    alpha_motion: float | None = option(None, "0..1e12", "the same for the motion branch; default: alpha", "ours")
    beta_s: float = option(0.5, "0..1", "weight of the subject branch's noise", "§3.5")
    beta_m: float = option(0.5, "0..1", "weight of the motion branch's noise", "§3.5")
    motion_steps: int | None = option(None, "0..1000 steps", "first steps with the motion branch; default: all", "ours")
    beta: float = option(0.3, "0..1", "share of the clip's inverted noise in x_T", "§3.5")
    inverted: str = option("clip", "clip|cast", "what that noise is inverted from: the clip, or the clip with a "
                           "photo of each subject in its actor's place", "§3.5; ours")
    segmenter: str = option("grounded-sam2", NETWORKS, "what finds the subjects in photos that were not segmented",
                            "ours")
    threshold: float = option(0.5, "0..1", "confidence above which a pixel belongs to the subject", "ours")
    edges: str = option("drawn", "drawn|snapped", "masks found here (not those of segment): as drawn, or brought "
                        "to the edges of the picture", "ours")
    layers: str = option("mid", "", "whose maps guide: mid, all, or up to a layer such as up_blocks.1", "ours")
    branches: str = option("auto", "auto|subject|motion|joint|none", "which run: auto, those there are; joint: both "
                           "LoRAs in one model, in place of two branches; for ablations", "§4")
    frames: int | None = option(None, "1..1024 frames", "frames of the video; default: the base's own", "§4 (24)")
    count: int = option(1, "1.. videos", "videos of each prompt, their seeds counting up", identity=False)


@dataclass(frozen=True)
class EvalOptions(Options):
    """eval: the evaluation contract, and the paper's CLIP-T, CLIP-I, DINO-I, T. Cons. (METHOD 6)."""

    clip: Path | None = option(None, "", "folder of the CLIP model; default: the base's own", "§4", identity=False)
    dino: Path | None = option(None, "", "folder of the DINO model; default: the base's own", "§4", identity=False)
    segmenter: str = option("grounded-sam2", f"{NETWORKS}|none", "what follows the subjects; none: paper's scores only",
                            "ours")
    threshold: float = option(0.5, "0..1", "confidence above which a pixel belongs to a subject", "ours")


OPTIONS: dict[str, type[Options]] = {
    "segment": SegmentOptions, "invert": InvertOptions, "learn-subject": LearnSubjectOptions,
    "learn-motion": LearnMotionOptions, "fuse": FuseOptions, "sample": SampleOptions, "eval": EvalOptions}


# -- from values to options ------------------------------------------------------------------------------------------
@cache
def kind(cls: type[Options], name: str) -> tuple[type, bool]:
    """(the plain type, whether None is allowed) of an option: (float, True) for `float | None`; tuples give tuple."""
    hint = typing.get_type_hints(cls)[name]
    optional = isinstance(hint, types.UnionType)
    if optional:
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    return typing.get_origin(hint) or hint, optional


def span(spec: Field) -> str:
    """The range of an option in words: "0 to 1", "above 0, up to 10", "own or base", "" where there is none."""
    if words := spec.metadata["words"]:
        return f"{', '.join(words[:-1])} or {words[-1]}"
    low, high = spec.metadata["low"], spec.metadata["high"]
    if low is None:
        return ""
    first = f"above {low:g}" if spec.metadata["above"] else f"{low:g} or more" if high == math.inf else f"{low:g}"
    return first + ("" if high == math.inf else f", up to {high:g}" if spec.metadata["above"] else f" to {high:g}")


def show(value: object) -> str:
    """A value as a person types it."""
    if value is None or value == () or value is MISSING or value is False:
        return "-"
    return f"{value:g}" if isinstance(value, float) else " ".join(value) if isinstance(value, tuple) else str(value)


def checked(cls: type[Options], spec: Field, value: object) -> object:
    """The value as the option's type, within its range. Raises UsageError with the option's name."""
    wanted, optional = kind(cls, spec.name)
    if value is None and optional:
        return None
    try:
        numeric = wanted in (int, float)
        if wanted is bool and isinstance(value, bool):
            return value
        if value is None or bool in (wanted, type(value)) or (numeric and not isinstance(value, (int, float, str))):
            raise ValueError
        if wanted is tuple:
            words = [value] if isinstance(value, str) else value
            if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
                raise ValueError
            return tuple(words)
        if wanted in (str, Path) and not isinstance(value, (str, Path)):
            raise ValueError
        if wanted is int and not float(value).is_integer():
            raise ValueError
        value = int(float(value)) if wanted is int else wanted(value)
    except (ValueError, OverflowError):
        names = {int: "a whole number", float: "a number", str: "text", Path: "a path", tuple: "a list of texts",
                 bool: "true or false"}
        raise UsageError(f"{spec.name} is {value!r}, but should be {names[wanted]}") from None
    if wanted in (int, float):
        low, high = spec.metadata["low"], spec.metadata["high"]
        inside = low <= value <= high and not (spec.metadata["above"] and value == low) and math.isfinite(value)
        if not inside:
            raise UsageError(f"{spec.name} is {value:g}, but should be {span(spec)}")
    if spec.metadata["words"] and value not in spec.metadata["words"]:
        raise UsageError(f"{spec.name} is '{value}', but should be {span(spec)}")
    return value


def sources(stage: str, settings: Settings, typed: Mapping[str, object] | None = None) -> dict[str, tuple[object, str]]:
    """{option: (value, where from)}; where: "typed", "project.yaml", "preset: REASON" or "paper"."""
    cls = OPTIONS[stage]
    known = {spec.name: spec for spec in fields(cls)}
    if unknown := [name for name in settings.options if name not in OPTIONS]:
        raise BadInput(f"{FILE}: options.{unknown[0]} is no stage", did_you_mean(unknown[0], OPTIONS))
    written = {str(key).replace("-", "_"): value for key, value in settings.options.get(stage, {}).items()}
    for key in written:
        if key not in known:
            raise BadInput(f"{FILE}: options.{stage} has no '{key}'", did_you_mean(key, known))
    preset = preset_of(settings.base, settings.preset, stage)
    out = {}
    for name, spec in known.items():
        if typed and typed.get(name) is not None:
            out[name] = (typed[name], "typed")
        elif name in written:
            try:
                out[name] = (checked(cls, spec, written[name]), FILE)
            except VideomageError as error:
                raise BadInput(f"{FILE}: options.{stage}: {error.what}", error.remedy) from None
        elif name in preset:
            out[name] = (preset[name][0], f"preset: {preset[name][1]}")
        else:
            out[name] = (spec.default, "paper")
    return out


def resolve(stage: str, settings: Settings, typed: Mapping[str, object] | None = None) -> typing.Any:
    """The options of a stage for a project: typed > project.yaml > preset of its base > the paper's. typed: {option:
    value}, None meaning not typed. Raises BadInput naming the key of project.yaml, UsageError for a typed value."""
    return OPTIONS[stage](**{name: value for name, (value, _) in sources(stage, settings, typed).items()})


def deviations(stage: str, settings: Settings) -> Iterator[tuple[str, object, object, str]]:
    """Where this project's stage differs from the paper: (option, value, the paper's, why)."""
    defaults = {spec.name: spec.default for spec in fields(OPTIONS[stage])}
    for name, (value, where) in sources(stage, settings).items():
        if where != "paper" and value != defaults[name]:
            yield name, value, defaults[name], where.removeprefix("preset: ")
