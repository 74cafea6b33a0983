"""What of a sweep is there: the manifests say what is fresh, attempts.jsonl what failed. Imports no torch.

A sweep has thousands of cells and is asked often, so what many of them share (the photos, the LoRAs, the clip's frames)
is hashed once, and of a video its manifest is read. Where that does not look fresh, `Plan.state` decides.
"""
from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from .. import STAGES
from ..backbones import identity_of
from ..controls import WITHOUT
from ..core.foreign import loads, opened
from ..core.stage import plain
from ..core.store import append
from ..core.workspace import Plan, Workspace
from ..options import Options
from ..prompts import slug
from .grid import Cell, Grid, placed
from .variants import SHAPED_BY, Difference, Variants, differences, named, shapes

OF_TWO_BRANCHES = ("tau", "guide_every", "alpha", "alpha_motion", "beta_s", "beta_m", "guidance_motion", "motion_steps",
                   "layers")                 # options of sample that play no part where one branch runs
OF_ONE_VIDEO = ("frames", "control")         # inputs of a score; all others it shares with those of its cast and motion
MOST_LINE = 2**20                            # bytes of a line of attempts.jsonl; what is longer is no line of ours
SEED = 0                                     # of all that is learned; the grid's seeds are those of the videos


@dataclass(frozen=True)
class Made:
    """An artefact of one stage, in the workspace that owns it. request: of a sample; None: what the project asks."""

    root: Path
    stage: str
    name: str
    options: Options
    request: str | None = None               # as JSON, so that equal ones are equal
    seed: int = SEED

    @property
    def asked(self) -> dict | None:
        return json.loads(self.request) if self.request else None

    @property
    def mark(self) -> str:
        """One hash over what is asked for: an attempt at something else says nothing of this."""
        whole = [self.stage, self.name, plain(vars(self.options)), self.request, self.seed]
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]


class Store:
    """The artefacts of a grid in a project, and their states. Nothing is made here but the variants' folders."""

    def __init__(self, project: Workspace, grid: Grid) -> None:
        self.project, self.grid, self.variants = project, grid, Variants(project)
        self.folder = project.root / "sweeps" / grid.name
        self.base = identity_of(project)
        self._own = {stage: placed(project, STAGES[stage].intent(project.settings)) for stage in STAGES}
        self._places: dict[Path, Workspace] = {}
        self._differences = {row: differences(self._own, options, tuple(SHAPED_BY))
                             for row, options in grid.effective.items()}
        self._shared: dict[tuple, dict] = {}
        self._fresh: dict[Made, bool] = {}
        self._manifests: dict[Path, dict | None] = {}
        for difference in self._differences.values():
            for stage in SHAPED_BY:
                self._settle(self.variants.owner(stage, difference))
            self._settle(self.variants.of(difference))
        self.samples = {self.sample(cell) for cell in grid.cells}

    def _settle(self, workspace: Workspace) -> Path:
        if workspace.root not in self._places:
            self._places[workspace.root] = workspace
            self.variants.lend(workspace.root)
        return workspace.root

    # -- cells and what they are made from ----------------------------------------------------------------------------
    def sample(self, cell: Cell) -> Made:
        """The video of a cell. Its name is of what it is, not of its row: two rows of equal settings share it."""
        root = self._settle(self.variants.of(self._differences[cell.row]))
        return self._sample(cell, root, self.grid.effective[cell.row]["sample"])

    def _sample(self, cell: Cell, root: Path, options: Options) -> Made:
        request = {"prompt": " ".join(cell.text.split()), "subjects": sorted(cell.subjects), "motion": cell.clip}
        changed = named(differences(self._own, {"sample": options}, ("sample",)), stages=False)
        name = "--".join([changed or "as-it-is", "+".join(cell.subjects) or "nobody", cell.clip or "no-motion",
                          prompt_slug(cell.prompt), f"s{cell.seed}"])
        return Made(root, "sample", name, options, json.dumps(request), cell.seed)

    def control(self, cell: Cell) -> Made | None:
        """The same video without the motion LoRA, in the variant that learns subjects as the cell's does. What acts in
        two branches alone is as in all rows, so that rows share it. None for a video that needs none, and where the
        grid asks for none and has none."""
        options = self.grid.effective[cell.row]["sample"]
        if cell.clip is None or options.branches in WITHOUT:
            return None
        common = {name: getattr(self.grid.common["sample"], name) for name in OF_TWO_BRANCHES}
        difference = {stage: given for stage, given in self._differences[cell.row].items() if stage != "learn-motion"}
        made = self._sample(cell, self._settle(self.variants.of(difference)),
                            replace(options, branches="subject", **common))
        return made if self.grid.controls[cell.row] or made in self.samples else None

    def score(self, cell: Cell) -> Made:
        sample = self.sample(cell)
        return Made(sample.root, "eval", sample.name, self.grid.effective[cell.row]["eval"], sample.request)

    def needs(self, made: Made) -> list[Made]:
        """What other stages have to learn first, each where it belongs."""
        sources = self.plan(made).sources.values()
        stages = dict.fromkeys((source.stage.name, source.name) for source in sources if source.stage)
        difference = self.variants.difference(made.root)
        return [Made(self._settle(self.variants.owner(stage, difference)), stage, name,
                     self._learning(stage, difference)) for stage, name in stages]

    def _learning(self, stage: str, difference: Difference) -> Options:
        """The options of a learning stage in a variant. What does not shape the result is as in all rows."""
        own, common = self._own[stage], self.grid.common[stage]
        loose = {name: getattr(common, name) for name, spec in common.__dataclass_fields__.items()
                 if not shapes(type(common), name)}
        return replace(own, **loose, **difference.get(stage, {}))

    def plan(self, made: Made) -> Plan:
        """The plan of an artefact, as its stage will make it."""
        return self._places[made.root].plan(STAGES[made.stage], made.name, made.options, seed=made.seed,
                                            base=self.base, request=made.asked)

    # -- freshness ----------------------------------------------------------------------------------------------------
    def fresh(self, made: Made, control: Made | None = None) -> bool:
        """Whether it is what it should be, as long as all that it is made from is. control: of a score."""
        if made not in self._fresh:
            self._fresh[made] = self.manifest(made) is not None and (
                self._looks_fresh(made, control) or bool(self.plan(made).state(deep=False)))
        return self._fresh[made]

    def fresh_by_now(self, made: Made, control: Made | None = None) -> bool:
        """The same, of what somebody may have made since it was looked at."""
        self._fresh.pop(made, None)
        self._manifests.clear()
        return self.fresh(made, control)

    def whole(self, cell: Cell) -> bool:
        """Whether the video and its score are there and fresh."""
        return self.fresh(self.sample(cell)) and self.fresh(self.score(cell), self.control(cell))

    def _looks_fresh(self, made: Made, control: Made | None) -> bool:
        """Of a video or a score: whether its manifest names what it would be made from now, and its files are there."""
        if not made.request:
            return False
        manifest, request, folder = self.manifest(made), made.asked, self._folder(made)
        group = (made.root, made.stage, made.options, tuple(request["subjects"]), request["motion"])
        if group not in self._shared:
            plan = self.plan(made)
            self._shared[group] = {"settings": plan.settings(), "inputs": {
                label: sha for label, sha in plan.hashes().items() if label not in OF_ONE_VIDEO}}
        shared, inputs = self._shared[group], dict(manifest["inputs"])
        own = {label: inputs.pop(label, None) for label in OF_ONE_VIDEO}
        if made.stage == "eval":
            there = self.manifest(replace(made, stage="sample", options=self._own["sample"]))
            beside = self.manifest(control) if control else None
            wanted = [one and one["files"]["frames.png"] for one in (there, beside)]
            if [own["frames"], own["control"]] != wanted:
                return False
        return (manifest["settings"] == {**shared["settings"], **request} and inputs == shared["inputs"]
                and manifest["seed"] == made.seed and all((folder / name).is_file() for name in manifest["files"])
                and manifest["base"] == (plain(self.base) if STAGES[made.stage].uses_base else None))

    def _folder(self, made: Made) -> Path:
        return made.root / STAGES[made.stage].folder(self._places[made.root], made.name)

    def manifest(self, made: Made) -> dict | None:
        path = self._folder(made) / STAGES[made.stage].manifest.format(stage=made.stage, name=made.name)
        if path not in self._manifests:
            self._manifests[path] = self.project.manifest(path)
        return self._manifests[path]

    def score_file(self, cell: Cell) -> Path:
        made = self.score(cell)
        return self._folder(made) / f"{made.name}.json"

    # -- what was tried -----------------------------------------------------------------------------------------------
    def record(self, entries: Iterable[Mapping[str, object]]) -> None:
        """Append to attempts.jsonl, a line each."""
        lines = [json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **entry}, ensure_ascii=False)
                 for entry in entries]
        if lines:
            append(self.folder / "attempts.jsonl", lines)

    def failures(self) -> dict[str, str]:
        """{mark: the error} of what was given up; whether it is there since, the manifests say."""
        path, found = self.folder / "attempts.jsonl", {}
        if not path.is_file():
            return found
        with opened(path) as file:
            for line in iter(lambda: file.readline(MOST_LINE), b""):
                with suppress(ValueError, LookupError, TypeError):   # of the line at which a driver was killed
                    entry = loads(line)
                    if entry["given up"]:
                        found[str(entry["mark"])] = str(entry["error"])
        return found

    def states(self) -> dict[Cell, tuple[str, str]]:
        """{cell: (fresh | failed | missing, why it failed)}."""
        failures = self.failures()
        found, broken = {}, {}
        for cell in self.grid.cells:
            sample, score = self.sample(cell), self.score(cell)
            if self.whole(cell):
                found[cell] = ("fresh", "")
                continue
            why = next((f"{self.title(made)}: {failures[made.mark]}" for made in (sample, score)
                        if made.mark in failures and not (made is sample and self.fresh(sample))), "") or (
                self._broken(sample, failures, broken) if failures else "")
            found[cell] = ("failed", why) if why else ("missing", "")
        return found

    def _broken(self, made: Made, failures: Mapping[str, str], known: dict[Made, str]) -> str:
        """The first thing that failed of all that this is made from."""
        key = (made.root, made.stage, made.options, *(made.asked or {}).get("subjects", ()),
               (made.asked or {}).get("motion"), "" if made.asked else made.name)
        if key not in known:
            known[key] = next((why for need in self.needs(made) if not self.fresh(need) for why in (
                f"{self.title(need)}: {failures[need.mark]}" if need.mark in failures
                else self._broken(need, failures, known),) if why), "")
        return known[key]

    def title(self, made: Made) -> str:
        """"fuse pet+toy", and of which variant."""
        where = "" if made.root == self.project.root else f" ({made.root.name})"
        return f"{made.stage} {made.name}{where}"


def prompt_slug(template: str) -> str:
    """A template as a part of a name: "{motion} in the snow" -> "in-the-snow". What would be called as another one
    could be carries a hash."""
    rest = template.removeprefix("{motion}").strip()
    short = slug(rest) if rest else "plain"
    clear = template.startswith("{motion}") and rest == short.replace("-", " ") or not rest
    return short if clear else f"{short}-{hashlib.sha256(template.encode()).hexdigest()[:4]}"


def counted(states: Mapping[Cell, tuple[str, str]], rows: Sequence[str]) -> dict[str, dict[str, int]]:
    """{row: {fresh: n, failed: n, missing: n}}."""
    table = {row: {"fresh": 0, "failed": 0, "missing": 0} for row in rows}
    for cell, (state, _) in states.items():
        table[cell.row][state] += 1
    return table
