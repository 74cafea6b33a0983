"""What judges a project's videos: its networks, loaded once, and what they are measured against, computed once.

    judges = Judges(project, options, device="cpu")
    found = judges.scores(plan)                     # of one plan of eval: the whole score file

References (the looks of all photos, the paths and looks of the clips' actors) are kept in memory by the content they
were computed from, so that a process that scores thousands of videos computes them once, and sees what is changed.
"""
from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np

from . import segmenters
from .controls import WITHOUT, control_of
from .core.edges import snapped
from .core.report import Report, silent
from .core.takes import read_take, read_track
from .core.video import read_frames
from .core.workspace import Plan, Workspace
from .cuts import setup_of
from .metrics import clip as clip_metric
from .metrics import dino as dino_metric
from .metrics.contract import Reference, judge
from .metrics.identity import Actors, leak
from .metrics.looks import Gallery, Looks
from .metrics.motion import track
from .metrics.tracks import Found, Track, follow, together
from .options import EvalOptions, resolve
from .orders import target_of
from .photos import Photo, read_photos
from .prompts import motion_prompt, roles, slug
from .sprites.looks import ALL_COLOURS, SUBJECTS
from .sprites.oracle import background_of, find

THING = "object"        # what the sprites world's CLIPSeg is asked for: class words of its world give it the same masks


class Judges:
    """Loads the networks. Raises UsageError where a base has no judges of its own and none were named, and what a
    segmenter raises whose weights are not here, once a video with subjects is scored."""

    def __init__(self, project: Workspace, options: EvalOptions | None = None, *, device: str = "cpu",
                 report: Report = silent) -> None:
        options = options or resolve("eval", project.settings)
        base, folders = project.settings.base, {
            name: project.locate(getattr(options, name)) if getattr(options, name) else None
            for name in ("clip", "dino")}
        self.clip = clip_metric.load(folders["clip"], base=base, device=device)
        self.dino = dino_metric.load(folders["dino"], base=base, device=device)
        self.looks = Looks(self.dino)
        self._options, self._device, self._report = options, device, report
        self._kept: dict[Hashable, object] = {}

    # -- one video --------------------------------------------------------------------------------------------------
    def judged(self, plan: Plan, frames_FHWC: np.ndarray) -> dict[str, dict]:
        """{"segmenter": judgement, "oracle": judgement where the pixel oracle knows the subjects} of a plan of eval;
        {} for a video of no subject, and without a segmenter."""
        if not plan.request["subjects"] or self._options.segmenter == "none":
            return {}
        one = self.by_segmenter(plan, frames_FHWC)
        names = one["confusion"]["rows"]
        if not all(self._is_sprite(plan, name) for name in names):
            return {"segmenter": one}
        return {"segmenter": one, "oracle": self.by_oracle(plan, frames_FHWC, one["leak"], one.get("why", ""))}

    def by_segmenter(self, plan: Plan, frames_FHWC: np.ndarray) -> dict:
        gallery, reference = self._gallery(plan), self._reference(plan)
        found = self._follow(plan.project, frames_FHWC, subjects_of(plan.project, plan.request), gallery)
        return judge(found.tracks, gallery, reference, *self._leak(plan, found, gallery, reference))

    def by_oracle(self, plan: Plan, frames_FHWC: np.ndarray, leaks: Mapping | None = None, why: str = "") -> dict:
        """leaks, why: as the segmenter has them; the oracle knows nothing of the clip's actors. With "place", the
        background that it sees ("snow"; "none" if it is like none of its world's)."""
        names, gallery = subjects_of(plan.project, plan.request), self._gallery(plan)
        seen = find(frames_FHWC, [SUBJECTS[name][0] for name in names])
        tracks = {name: Track.of(frames_FHWC, one.masks, self.looks, gallery, one.path)
                  for name, one in zip(names, seen)}
        inks = [ALL_COLOURS[ink] for name in names for ink in (SUBJECTS[name][0].colour, SUBJECTS[name][0].second)]
        return {**judge(tracks, gallery, self._reference(plan), leaks, why),
                "place": background_of(frames_FHWC.astype(np.float32), inks)[0]}

    def _follow(self, project: Workspace, frames_FHWC: np.ndarray, names: Sequence[str], gallery: Gallery) -> Found:
        """Subjects of one class word are told apart by their looks; the shipped CLIPSeg knows one word for all."""
        words = {name: self._word(project, name) for name in names}
        shared = len(set(words.values())) < len(words)
        masks = self._segmenter(project, "all" if shared else "one").masks(frames_FHWC, list(dict.fromkeys(
            words.values())))
        groups = {word: [name for name in names if words[name] == word] for word in words.values()}
        return together([follow(frames_FHWC, self._edges(frames_FHWC, masks[word].masks), own, self.looks, gallery)
                         for word, own in groups.items()])

    def _leak(self, plan: Plan, found: Found, gallery: Gallery, reference: Reference | None
              ) -> tuple[dict | None, str]:
        """(the leak of each role's actor, "") or (None, why it is not known); (None, "") without a motion."""
        if reference is None or not reference.roles:
            return None, ""
        names, actors = list(found.tracks), self._actors(plan)
        photos = {name: gallery.vectors[name] for name in names}

        def shown(one: Found) -> dict[str, float]:
            return {name: actors.shown(one.vectors, actor, photos) for name, actor in reference.roles.items()}

        control = control_of(plan.project, plan.name)
        if control is None and not _without_motion(plan):
            return None, "no sample of the same prompt and seed was made with --branches subject"
        ours = theirs = shown(found)
        if control is not None:
            path = plan.inputs["control"]
            theirs = self._once(("control", _stamps([path]), id(actors), id(gallery), *names), lambda: shown(
                self._follow(plan.project, read_frames(path), names, gallery)))
        each = {name: {"with": ours[name], "without": theirs[name], "leak": leak(ours[name], theirs[name])}
                for name in ours}
        return {"each": each, "max": max(one["leak"] for one in each.values()),
                "control": control[0] if control else None, "differs": list(control[1]) if control else []}, ""

    # -- what videos are measured against --------------------------------------------------------------------------
    def _gallery(self, plan: Plan) -> Gallery:
        """Of every subject of the project that has photos."""
        names = [label.removeprefix("photos-") for label in plan.inputs if label.startswith("photos-")]
        own = {name: self.photos(plan, name) for name in sorted(names)}

        def make() -> Gallery:
            return Gallery.of({name: self.looks([photo.picture for photo in shown], [photo.mask for photo in shown])
                               for name, shown in own.items()}, self.looks.nothing)

        return self._once(("gallery", *((name, id(shown)) for name, shown in own.items())), make)

    def photos(self, plan: Plan, name: str) -> list[Photo]:
        """The photos of a subject, each with a mask: of `segment`, else of this segmenter; where that finds nothing the
        whole photo."""
        paths, masks = plan.inputs[f"photos-{name}"], plan.inputs.get(f"masks-{name}")
        key = ("photos", plan.project.root, name, _stamps([*paths, *sorted(masks.rglob("*.png") if masks else ())]))

        def make() -> list[Photo]:
            word, out = self._word(plan.project, name), []
            for photo in read_photos(paths, masks, self._report):
                mask = photo.mask
                if mask is None:
                    drawn = self._segmenter(plan.project).masks(photo.picture[None], [word])[word].masks
                    mask = self._edges(photo.picture[None], drawn)[0]
                out.append(Photo(photo.picture, mask if mask.any() else np.ones(photo.picture.shape[:2], bool)))
            return out

        return self._once(key, make)

    def _reference(self, plan: Plan) -> Reference | None:
        motion = plan.request.get("motion")
        if not motion:
            return None
        others = [label.removeprefix("masks:") for label in plan.inputs if label.startswith("masks:")]
        paths = {name: {actor: track(masks) for actor, masks in self._clip(plan, name)[1].items()}
                 for name in others if name == motion or _is_told(plan, name)}
        return Reference({subject: actor for actor, subject in cast_of(plan.project, plan.request).items()},
                         paths.pop(motion), [list(own.values()) for own in paths.values()])

    def _clip(self, plan: Plan, motion: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(frames (F, H, W, 3) of the clip's first window, {actor: masks (F, H, W)} as a person may have mended them),
        in the order of the motion prompt."""
        frames, masks = plan.inputs[f"frames:{motion}"], plan.inputs[f"masks:{motion}"]
        actors = motion_prompt(plan.project.motion(motion).prompt).actors
        key = ("clip", plan.project.root, motion, actors,
               _stamps([*sorted(frames[0].glob("*.png")), frames[1], *sorted(masks.rglob("*.png"))]))

        def make() -> tuple[np.ndarray, dict[str, np.ndarray]]:
            take = read_take(frames[1].parent)
            window, first = take.window(), take.windows[0]
            return window, {actor: read_track(masks / slug(actor), range(first, first + len(window)),
                                              window.shape[1:3]) for actor in actors}

        return self._once(key, make)

    def _actors(self, plan: Plan) -> Actors:
        motion = plan.request["motion"]
        window, masks = self._clip(plan, motion)

        def make() -> Actors:
            there = {actor: np.flatnonzero(own.any((1, 2))) for actor, own in masks.items()}
            return Actors({actor: self.looks(window[at], masks[actor][at]) for actor, at in there.items()})

        return self._once(("actors", id(window)), make)

    # -- tools ------------------------------------------------------------------------------------------------------
    def _own_clipseg(self, project: Workspace) -> bool:
        return project.settings.base == "sprites" and self._options.segmenter == "clipseg"

    def _word(self, project: Workspace, name: str) -> str:
        return THING if self._own_clipseg(project) else project.subject(name).class_word

    def _edges(self, frames_FHWC: np.ndarray, masks_FHW: np.ndarray) -> np.ndarray:
        return snapped(frames_FHWC, masks_FHW) if self._options.segmenter == "clipseg" else masks_FHW

    def _segmenter(self, project: Workspace, instances: str = "one") -> segmenters.Segmenter:
        setup = setup_of(project, self._options.threshold, self._device, instances)
        return self._once(("segmenter", setup), lambda: segmenters.load(self._options.segmenter, setup))

    def _is_sprite(self, plan: Plan, name: str) -> bool:
        """Whether a subject is the one of this name of the sprites world: the oracle finds it in most of its photos."""
        if plan.project.settings.base != "sprites" or name not in SUBJECTS:
            return False
        photos = self.photos(plan, name)

        def make() -> bool:
            square = [photo.fitted((32, 32)).picture for photo in photos]
            return bool(np.mean([find(one[None], [SUBJECTS[name][0]])[0].presence[0] for one in square]) > 0.5)

        return self._once(("sprite", id(photos)), make)

    def _once(self, key: Hashable, make: Callable[[], object]):
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]


def subjects_of(project: Workspace, request: Mapping) -> list[str]:
    """The subjects of a video in the order of their roles; those without one after them."""
    cast = cast_of(project, request)
    return list(dict.fromkeys([*cast.values(), *request["subjects"]]))


def cast_of(project: Workspace, request: Mapping) -> dict[str, str]:
    """{actor: subject} of a video; {} without a motion."""
    if not request.get("motion"):
        return {}
    return roles(target_of(project, request["prompt"]), motion_prompt(project.motion(request["motion"]).prompt))


def _is_told(plan: Plan, motion: str) -> bool:
    """Whether it is known who acts in a clip, and where."""
    prompt = plan.project.motion(motion).prompt
    return bool(prompt) and f"frames:{motion}" in plan.inputs and all(
        (plan.inputs[f"masks:{motion}"] / slug(actor)).is_dir() for actor in motion_prompt(prompt).actors)


def _without_motion(plan: Plan) -> bool:
    manifest = plan.project.manifest(plan.project.sample_folder(plan.name) / "sample.json") or {"settings": {}}
    return manifest["settings"].get("branches") in WITHOUT


def _stamps(paths: Sequence[Path]) -> tuple:
    """What tells whether files are still what they were."""
    return tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths)
