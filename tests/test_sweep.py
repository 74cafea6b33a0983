"""videomage sweep, in one process: what a grid says, what is shared, what is made again, what fails."""
from __future__ import annotations

import csv
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from sweeping import (
    GRID,
    command,
    ended,
    half_done,
    make_project,
    stamps,
    store_of,
    swept_again,
    table,
    videos,
    write_grid,
)
from typer.testing import CliRunner

from stages.core.errors import BadInput
from stages.core.workspace import Workspace
from stages.sweep import grid as grids
from stages.sweep.collect import collect, write
from stages.sweep.run import run
from stages.sweep.schedule import Failure, Schedule
from stages.sweep.store import MOST_LINE, Store, counted
from stages.sweep.variants import named
from stages.sweep.work import Hand, How
from videomage_cli.app import app


@pytest.fixture
def project(tmp_path) -> Workspace:
    """Three subjects, clips of two actors and of three, nothing made."""
    return Workspace.create(tmp_path, base="sprites", subjects={
        name: {"class": "circle", "images": f"photos/{name}"} for name in ("toy", "pet", "gem")}, motions={
        "chase": {"clip": "a.mp4", "prompt": "a [red circle] is chasing a [blue square]"},
        "chase-3": {"clip": "b.mp4", "prompt": "a [cat], a [dog] and a [cow] run"}}, prompts=["a <toy>"])


def cells(project, **grid):
    whole = {"casts": [["toy", "pet"]], "motions": ["chase"], "prompts": ["{motion} at night"], **grid}
    return grids.parse(project, whole, "grid").cells


# -- what a grid says -------------------------------------------------------------------------------------------------
def test_a_cell_for_each_row_cast_motion_prompt_and_seed(project):
    found = cells(project, casts=[["toy", "pet"], "gem+toy"], prompts=["{motion} at night", "<2> sees <1>"],
                  seeds=[3, 5], rows={"full": {}, "turned": {"roles": "exchanged", "only": {"casts": [1]}},
                                      "more": {"seeds": [7], "only": {"prompts": [0]}}},
                  sweeps={"sample.beta": {"values": [0, 0.5], "only": {"seeds": [5], "casts": ["toy+pet"]}}})
    assert len(found) == len(set(found)) == 8 + 4 + 2 + 2 * 2
    assert {cell.seed for cell in found if cell.row == "more"} == {7}
    texts = {(cell.row, "+".join(cell.cast), cell.prompt): cell.text for cell in found}
    assert texts["full", "toy+pet", "{motion} at night"] == "a <toy> is chasing a <pet> at night"
    assert texts["turned", "gem+toy", "{motion} at night"] == "a <toy> is chasing a <gem> at night"
    assert texts["full", "gem+toy", "<2> sees <1>"] == "<toy> sees <gem>"
    assert [cell.row for cell in found] == [
        *["full"] * 8, *["turned"] * 4, *["more"] * 2, *["sample.beta=0"] * 2, *["sample.beta=0.5"] * 2]


def test_casts_of_two_and_of_three_have_clips_of_their_own(project):
    found = cells(project, casts=[["toy", "pet"], ["toy", "pet", "gem"]], motions={"chase": {2: "chase", 3: "chase-3"}})
    assert [(cell.motion, cell.clip, cell.text) for cell in found] == [
        ("chase", "chase", "a <toy> is chasing a <pet> at night"),
        ("chase", "chase-3", "a <toy>, a <pet> and a <gem> run at night")]
    assert len(cells(project, casts=[["toy", "pet"], ["toy", "pet", "gem"]], motions={"chase": {2: "chase"}})) == 1


def test_options_of_a_row_lie_over_the_grids_and_those_over_the_projects(project):
    grid = grids.parse(project, {"prompts": ["a <toy>"], "options": {"sample": {"steps": 7, "tau": 3}}, "rows": {
        "full": {}, "a": {"sample": {"tau": "2"}}, "paper": {"preset": "paper"}}}, "grid")
    steps, tau, lambda1 = ({row: getattr(own[stage], name) for row, own in grid.effective.items()}
                           for stage, name in (("sample", "steps"), ("sample", "tau"), ("learn-subject", "lambda1")))
    assert steps == {"full": 7, "a": 7, "paper": 7} and tau == {"full": 3, "a": 2, "paper": 3}
    assert lambda1["paper"] == 0.25 != lambda1["full"]


@pytest.mark.parametrize("grid, said", [
    ({"cast": []}, "did you mean 'casts'"),
    ({"casts": [["toi", "pet"]]}, "did you mean 'toy'"),
    ({"casts": [["toy", "toy"]]}, "twice"),
    ({"motions": ["chse"]}, "did you mean 'chase'"),
    ({"casts": [["toy", "pet", "gem"]]}, "has 2 actors"),
    ({"prompts": ["<3> runs"]}, "no such role"),
    ({"seeds": [-1]}, "whole numbers"),
    ({"rows": {"a": {"sampel": {}}}}, "did you mean 'sample'"),
    ({"rows": {"a": {"seeds": []}}}, "rows.a.seeds should be a list of whole numbers"),
    ({"rows": {"a": {"seeds": [1], "only": {"seeds": [0]}}}}, "say one of them"),
    ({"rows": {"a": {"sample": {"bta": 1}}}}, "did you mean 'beta'"),
    ({"rows": {"a": {"sample": {"beta": 2}}}}, "0 to 1"),
    ({"rows": {"a": {"sample": {"count": 2}}}}, "seeds"),
    ({"rows": {"a": {"preset": "papr"}}}, "did you mean 'paper'"),
    ({"rows": {"a": {"only": {"casts": ["toy+gem"]}}}}, "there is no 'toy+gem'"),
    ({"rows": {"full": {}, "a": {"against": "ful"}}}, "did you mean 'full'"),
    ({"rows": {"full": {}, "a": {"against": "a"}}}, "no other row 'a'"),
    ({"sweeps": {"beta": [1]}}, "learn-subject.lambda1"),
    ({"sweeps": {"sample.beta": [0, 7]}}, "0 to 1"),
    ({"name": "variants"}, "another name"),
    ({"control": "yes"}, "true or false"),
])
def test_a_grid_with_a_mistake_is_refused_whole(project, grid, said):
    with pytest.raises(BadInput) as error:
        cells(project, **grid)
    assert said in str(error.value)


def test_names_are_of_the_settings_and_tell_all_apart():
    values = [{"sample": {"beta": 0.1}}, {"sample": {"beta": 0.1000001}}, {"sample": {"layers": "a/b"}},
              {"sample": {"layers": "a b"}}, {"learn-motion": {"template": "A {actors}." + "x" * 90}},
              {"learn-motion": {"template": "A {actors}." + "x" * 91}}]
    names = [named(value) for value in values]
    assert names[0] == "sample.beta=0.1" and len(set(names)) == 6 and not any(set("/ {}") & set(name) for name in names)


def test_a_list_of_attempts_that_is_damaged_still_tells_what_it_can(project):
    store = Store(project, grids.parse(project, {"prompts": ["a <toy>"]}, "grid"))
    store.record([{"mark": "a", "error": "broken", "given up": True}, {"mark": "b", "error": "", "given up": False}])
    with (store.folder / "attempts.jsonl").open("ab") as file:
        file.write(b"\xff\xfe\n" + b"[" * (MOST_LINE + 9) + b'\n{"mark": "c", "given up": true}\n{"mark": "d"')
    store.record([{"mark": "e", "error": "broken, too", "given up": True}])
    assert store.failures() == {"a": "broken", "e": "broken, too"}


# -- what is made -----------------------------------------------------------------------------------------------------
def test_a_sweep_makes_each_artefact_once(swept):
    store = store_of(swept)
    assert counted(store.states(), [row.name for row in store.grid.rows]) == {
        row: {"fresh": 1 + (row in ("full", "the same")), "failed": 0, "missing": 0} for row in GRID["rows"]}
    made = [path for path in swept.rglob("*.json") if not any(p.is_symlink() for p in (path, *path.parents))]
    names = [path.name for path in made]
    assert {name: names.count(f"{name}.json") for name in ("learn-subject", "segment", "invert", "learn-motion", "fuse")
            } == {"learn-subject": 2, "segment": 1, "invert": 1, "learn-motion": 2, "fuse": 2}
    samples = {cell.row: store.sample(cell) for cell in store.grid.cells if cell.seed == 0}
    assert samples["full"] == samples["the same"] and len(set(samples.values())) == 4
    assert names.count("sample.json") == 5
    other = swept / "sweeps" / "variants" / "learn-motion.w=0"
    assert (other / "subjects").resolve() == swept / "subjects" and (other / "fused").resolve() == swept / "fused"
    assert (other / "motions" / "chase" / "masks").resolve() == swept / "motions" / "chase" / "masks"
    variant = Workspace(other)                       # a workspace like any other: what its stages need is found fresh
    name = next(iter((other / "samples").glob("as-it-is*"))).name
    plan = store.plan(samples["w = 0"])
    plan.require()
    assert plan.name == name and plan.state() and variant.settings.subjects.keys() == {"toy", "pet"}


def test_a_score_knows_its_control_in_a_variant_too(swept):
    lines = {line["row"]: line for line in collect(store_of(swept)) if line["seed"] == 0}
    assert lines["full"]["judged.segmenter.leak.control"] == lines["w = 0"]["judged.segmenter.leak.control"] is not None
    assert lines["mean of LoRAs"].get("judged.segmenter.leak.control") is None


def test_nothing_is_made_twice(swept):
    before = stamps(swept)
    started = time.process_time()
    assert run(store_of(swept), How()) == {} and stamps(swept) == before
    assert not Schedule(store_of(swept)).waiting and time.process_time() - started < 5


def test_a_grid_may_grow(swept, tmp_path):
    root = tmp_path / "project"
    shutil.copytree(swept, root, symlinks=True)
    before = stamps(root)
    larger = {**GRID, "seeds": [0, 1, 2], "rows": {**dict(reversed(GRID["rows"].items()))}}
    assert [job.key.split()[0] for job in Schedule(store_of(root, larger)).waiting.values()] == ["sample", "eval"]
    assert run(store_of(root, larger), How()) == {}
    after = stamps(root)
    assert {path: after[path] for path in before} == before
    assert sorted(Path(path).name for path in after.keys() - before.keys() if "samples/" in path) == [
        "log.json", "sample.json"]


def test_what_changed_is_made_again(swept, tmp_path):
    """A photo more: of its subject on all is to be made again, of the other one and of the clip nothing."""
    root = tmp_path / "project"
    shutil.copytree(swept, root, symlinks=True)
    shutil.copyfile(root / "photos" / "toy" / "0.png", root / "photos" / "toy" / "9.png")
    jobs = Schedule(store_of(root)).waiting
    assert [key for key in jobs if not key.startswith(("sample", "eval"))] == [
        "learn-subject toy", "fuse pet+toy", "fuse pet+toy (fuse.steps=0)"]
    assert sum(len(job.makes) for key, job in jobs.items() if key.startswith("sample")) == 5


# -- what goes wrong --------------------------------------------------------------------------------------------------
def test_a_cell_that_fails_is_counted_and_named_and_the_others_go_on(swept, tmp_path):
    root = tmp_path / "project"
    shutil.copytree(swept, root, symlinks=True)
    text = (root / "project.yaml").read_text().replace("motion:", "  gem:\n    class: circle\n    images: gone\n"
                                                       "motion:", 1)
    (root / "project.yaml").write_text(text)
    grid = {**GRID, "casts": [["gem", "pet"], ["toy", "pet"]], "rows": {"full": GRID["rows"]["full"]}, "seeds": [0]}
    write_grid(root, grid)
    done = CliRunner().invoke(app, ["sweep", "grid.yaml", "-p", str(root), "--workers", "1", "--json"])
    assert done.exit_code == 3, done.output
    told = json.loads(done.stdout)
    assert told["rows"] == {"full": {"fresh": 1, "failed": 1, "missing": 0}}
    assert told["failed"][0]["cast"] == "gem+pet" and "learn-subject gem" in told["failed"][0]["why"]
    lines = {line["cast"]: line for line in collect(store_of(root, grid))}
    assert len(lines) == 2 and lines["gem+pet"]["success"] is False and lines["gem+pet"]["state"] == "failed"
    assert lines["gem+pet"]["judged.segmenter.together"] == lines["gem+pet"]["paper protocol.CLIP-T"] == 0
    tries = [json.loads(line) for line in (root / "sweeps/grid/attempts.jsonl").read_text().splitlines()]
    assert [(entry["what"], entry["try"], entry["given up"]) for entry in tries] == [("learn-subject gem", 1, True)]


def test_retries_are_bounded_and_only_what_failed_is_tried_again(project):
    grid = {"casts": [["toy", "pet"]], "motions": ["chase"], "prompts": ["{motion}"], "seeds": [0, 1], "control": False}
    schedule = Schedule(store_of(project.root, grid), retries=2)
    order = []
    while job := schedule.next():
        order.append((job.key, len(job.makes)))
        flaky = {job.makes[-1]: Failure("RuntimeError: chance")} if job.key.startswith("sample") else {}
        schedule.done(job, flaky)
    kinds = [key.split()[0] for key, _ in order]
    assert kinds == ["segment", "learn-subject", "learn-subject", "fuse", "invert", "learn-motion", *["sample"] * 3,
                     "eval"]
    assert [count for key, count in order if key.startswith("sample")] == [2, 1, 1]
    assert order[-1][1] == 1 and len(schedule.failed) == 1         # the score of the video that is there
    assert schedule.ended == schedule.total


def test_what_a_worker_made_before_it_died_counts(swept, tmp_path):
    schedule, hand = Schedule(store_of(half_done(swept, tmp_path / "project")), retries=0), Hand(How())
    while (job := schedule.next()) and not (job.key.startswith("sample") and len(job.makes) > 1):
        assert hand.work(job) == {} and schedule.done(job, {}) == []
    first, *rest = job.makes
    assert hand.work(replace(job, makes=(first,))) == {}
    lines = schedule.done(job, {made: Failure("its worker died") for made in job.makes})
    assert [line["mark"] for line in lines] == [made.mark for made in rest] and rest
    schedule.store.record([*lines, {**lines[0], "mark": first.mark}])        # as it stood there before it was made
    states = {schedule.store.sample(cell): state for cell, (state, _) in schedule.store.states().items()}
    assert states[first] == "missing" and {states[made] for made in rest} == {"failed"}          # the score is to come
    assert any(first.name in score.name for job in schedule.waiting.values() for score in job.makes)


def test_what_builds_on_a_failure_is_not_tried(project):
    grid = {"casts": [["toy", "pet"]], "motions": ["chase"], "prompts": ["{motion}"],
            "rows": {"full": {}, "w": {"learn-motion": {"w": 0}}}}
    schedule = Schedule(store_of(project.root, grid), retries=0)
    done = []
    while job := schedule.next():
        done.append(job.key)
        schedule.done(job, {job.makes[0]: Failure("broken")} if job.key == "learn-motion chase" else {})
    assert [key.split("--")[0] for key in done if key.startswith(("sample", "eval"))] == [
        "sample as-it-is", "eval as-it-is"] and all("w=0" in key for key in done[-2:])


def test_a_driver_that_is_killed_goes_on(swept, tmp_path):
    root = half_done(swept, tmp_path / "project")
    with command(root, "--workers", "1") as process:
        time.sleep(random.Random(0).uniform(4, 12))
        process.send_signal(signal.SIGKILL)
        process.wait()
    swept_again(root, "--workers", "1")
    assert videos(root) == videos(swept) and table(root) == table(swept)


def test_sigterm_stops_it_and_the_same_command_goes_on(swept, tmp_path):
    root = half_done(swept, tmp_path / "project")
    with command(root, "--workers", "1") as process:
        while not list(root.glob("fused/*/fuse.json")) and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert "run the same command again" in " ".join(ended(root, process, 75).split()).lower()
    assert not list(root.glob("samples/*/sample.json"))


# -- the table --------------------------------------------------------------------------------------------------------
def test_csv_and_parquet_say_the_same(swept, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    lines = collect(store_of(swept))
    rows = parquet.read_table(write(lines, tmp_path / "a.parquet")).to_pylist()
    assert rows == lines and len(lines) == 7
    with write(lines, tmp_path / "a.csv").open(newline="") as file:
        texts = list(csv.DictReader(file))
    assert texts == [{key: "" if value is None else str(value) for key, value in line.items()} for line in rows]
    assert all(line["success"] in (True, False, None) and line["judged.oracle.together"] is not None for line in lines)


def test_status_and_forecast_load_no_torch_and_make_nothing(tmp_path):
    root = make_project(tmp_path)
    before = {path for path in root.rglob("*") if "sweeps" not in path.parts}
    for args, said in ((["--status"], "missing"), (["--dry-run"], "learn-subject"), (["--collect", "t.csv"], "t.csv")):
        code = ("import sys; from typer.testing import CliRunner; from videomage_cli.app import app; "
                f"done = CliRunner().invoke(app, ['sweep', 'grid.yaml', '-p', '.', *{args!r}]); print(done.output); "
                "assert done.exit_code == 0, done.output; assert 'torch' not in sys.modules")
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
        assert done.returncode == 0 and said in done.stdout, done.stderr
    assert {path for path in root.rglob("*") if "sweeps" not in path.parts} - before <= {
        root / name for name in ("t.csv", ".cache", "subjects", "motions", "fused")}
