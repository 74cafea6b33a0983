"""One line for each hyper-parameter: coercion, ranges, precedence, and that a stage reads every one of them."""
from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path

import pytest

from stages import STAGES
from stages.core.errors import BadInput, UsageError
from stages.core.settings import Settings, parse
from stages.option_tables import TABLES, fill, markdown
from stages.options import (
    OPTIONS,
    FuseOptions,
    LearnSubjectOptions,
    SampleOptions,
    SegmentOptions,
    deviations,
    kind,
    resolve,
    sources,
)
from stages.presets import PRESETS

ROOT = Path(__file__).parent.parent
EVERY = [(stage, spec) for stage, cls in OPTIONS.items() for spec in fields(cls)]


@pytest.mark.parametrize("stage, spec", EVERY, ids=[f"{stage}.{spec.name}" for stage, spec in EVERY])
def test_every_option_is_described_and_read(stage, spec):
    """Help, a range for every number, a default within it; and the stage's file reads it (or its inputs do)."""
    plain, _ = kind(OPTIONS[stage], spec.name)
    assert len(spec.metadata["help"]) > 5
    assert (spec.metadata["low"] is not None) == (plain in (int, float))
    OPTIONS[stage](**{spec.name: spec.default})
    file = ROOT / (STAGES[stage].function.split(":")[0].replace(".", "/") + ".py")
    readers = (file, ROOT / "stages" / "__init__.py", ROOT / "stages" / "orders.py", ROOT / "stages" / "cuts.py",
               ROOT / "stages" / "findings.py", ROOT / "stages" / "materials.py")
    read = {node.attr for path in readers for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute)}
    by_label = {"clip", "dino"}                       # stages/__init__.py reads these two through getattr
    by_method = {"steps_per"} if "steps_for" in read else set()               # FuseOptions.steps_for reads it
    assert spec.name in read | (by_label if stage == "eval" else set()) | by_method, "no stage reads it"


def test_values_take_their_type():
    options = LearnSubjectOptions(steps="1e2", rate="1e-4", alpha=8, auxiliary="clips")
    assert (options.steps, options.rate, options.alpha, options.auxiliary) == (100, 1e-4, 8.0, Path("clips"))
    assert isinstance(options.steps, int) and isinstance(options.alpha, float)
    assert SegmentOptions(actors="horse").actors == ("horse",)
    assert SegmentOptions(actors=["a horse", "b"]).actors == ("a horse", "b")
    assert SampleOptions(frames=None, alpha_motion=None).frames is None


@pytest.mark.parametrize("name, value", [
    ("steps", -1), ("steps", 2.5), ("steps", "many"), ("steps", True), ("steps", None), ("steps", [3]),
    ("schedule", "linear"), ("unconditional", "none"), ("rate", 0), ("rate", float("nan")),
    ("rate", float("inf")), ("lambda2", -1), ("overlap", 1.01), ("layers", 3)])
def test_wrong_values_are_refused_by_name(name, value):
    with pytest.raises(UsageError, match=f"{name} is .* but should be") as refused:
        FuseOptions(**{name: value})
    assert refused.value.exit_code == 2


def test_precedence():
    settings = parse({"options": {"sample": {"steps": 7, "alpha-motion": "1e3"}}})
    options = resolve("sample", settings, {"tau": 3, "steps": None})
    assert (options.tau, options.steps, options.alpha_motion, options.alpha) == (3, 7, 1e3, 1e4)
    assert options.guidance == PRESETS["sprites"]["sample"]["guidance"][0]
    assert resolve("sample", Settings(base="/a/folder")) == SampleOptions()          # no preset: the paper's
    where = {name: origin.split(":")[0] for name, (_, origin) in sources("sample", settings, {"tau": 3}).items()}
    wanted = {"tau": "typed", "steps": "project.yaml", "guidance": "preset", "alpha": "paper"}
    assert {name: where[name] for name in wanted} == wanted


def test_deviations_name_their_reason():
    found = {name: (value, paper, why) for name, value, paper, why in deviations(
        "fuse", parse({"base": "/a/folder", "options": {"fuse": {"steps": 9, "batch": 1}}}))}
    assert found == {"steps": (9, 300, "project.yaml")}


@pytest.mark.parametrize("options, hint", [
    ({"fusee": {}}, "did you mean 'fuse'"), ({"fuse": {"stepps": 3}}, "did you mean 'steps'"),
    ({"fuse": {"steps": "lots"}}, "options.fuse: steps is 'lots'"), ({"fuse": {"lambda2": -3}}, "0 to 1000")])
def test_mistakes_in_project_yaml_are_named(options, hint):
    with pytest.raises(BadInput, match="project.yaml.*") as refused:
        resolve("fuse", parse({"options": options}))
    assert hint in str(refused.value)


@pytest.mark.parametrize("base", PRESETS)
def test_presets_are_options_and_give_reasons(base):
    for stage, values in PRESETS[base].items():
        for name, (value, reason) in values.items():
            default = OPTIONS[stage].__dataclass_fields__[name].default
            assert getattr(OPTIONS[stage](**{name: value}), name) != default, f"{stage}.{name} is the paper's already"
            assert len(reason) > 10
        resolve(stage, Settings(base=base))


def test_the_readme_has_the_tables():
    """What stands between the README's marks is what `python -m stages.option_tables README.md` would put there."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert markdown().count("\n") == len(EVERY) + 1
    assert all(f"<!-- {mark} -->" in text for mark in TABLES)
    assert fill(text) == text


def test_steps_of_a_run_or_of_a_pair():
    assert FuseOptions(steps=520).steps_for(3) == 520 == FuseOptions(steps=520, steps_per="pair").steps_for(2)
    assert [FuseOptions(steps=521, steps_per="pair").steps_for(n) for n in (2, 3, 4)] == [521, 782, 1042]
