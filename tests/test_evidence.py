"""The experiment's files, its grids, and what its report makes of a table, without running it."""
from __future__ import annotations

import re
from itertools import product

import numpy as np
import pytest

from stages.evidence import CONFIRMATION, DEVELOPMENT, MOTIONS, alone, prepare, report
from stages.options import resolve
from stages.sprites.example import CAST
from stages.sprites.looks import SUBJECTS
from stages.sprites.verdict import judge
from stages.sprites.world import reference_clip
from stages.sweep import grid as grids

SEEDS, PROMPTS = range(3), ("{motion} in the snow", "{motion} on the grass")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("evidence"))


def test_what_is_there_stays(project):
    before = {path: path.stat().st_mtime_ns for path in project.root.rglob("*") if path.is_file()}
    prepare(project.root)
    assert before == {path: path.stat().st_mtime_ns for path in project.root.rglob("*") if path.is_file()}


def test_the_splits_share_no_subject_and_together_are_all():
    first, second = ({name for cast in casts for name in cast} for casts in (DEVELOPMENT, CONFIRMATION))
    assert not first & second and first | second == set(SUBJECTS)
    assert [len(cast) for cast in (*DEVELOPMENT, *CONFIRMATION)].count(3) == 2


def test_the_grid_is_the_experiment(project):
    grid = grids.read(project, project.root / "evidence.yaml")
    assert grid.casts == (*DEVELOPMENT, *CONFIRMATION) and tuple(grid.motions) == MOTIONS
    counts = {row.name: sum(cell.row == row.name for cell in grid.cells) for row in grid.rows}
    whole = {name: n for name, n in counts.items() if name.startswith(("full", "("))}
    assert set(whole.values()) == {8 * 4 * 2 * 3}
    assert {re.match(r"\((.)\)", name)[1] for name in whole if name != "full"} == set("abcdefghiklmnp")
    third = [row for row in grid.rows if row.name not in whole and not row.seeds]
    (more,) = (row for row in grid.rows if row.seeds)
    assert counts[more.name] == 4 * 4 * 2 * 5 and not set(more.seeds) & set(grid.seeds) and not more.options
    assert {cell.cast for cell in grid.cells if cell.row == more.name} == set(CONFIRMATION)
    assert {counts[row.name] for row in third} == {2 * 4 * 2 * 3}
    assert {row.name.split("=")[0] for row in third if "." in row.name} == {
        "learn-subject.lambda1", "fuse.lambda2", "learn-motion.w", "sample.alpha", "sample.tau"}
    assert {row.name: row.against for row in third if "." not in row.name} == {
        "the clip's own noise": None, "the clip's own noise, w = 0": "the clip's own noise",
        "the clip's own noise, no motion LoRA": "the clip's own noise",
        "no L_mix": None, "no L_mix, lambda2 = 0": "no L_mix"}
    asked = next(cell for cell in grid.cells if (cell.row, len(cell.cast)) == ("(n) roles exchanged", 3))
    assert asked.text == "a <pet> is chasing a <gem> and a <toy> in the snow" and asked.clip == "chase-3"
    grids.read(project, project.root / "evidence-quick.yaml")


@pytest.mark.parametrize("actors", [2, 3])
@pytest.mark.parametrize("motion", MOTIONS)
def test_the_very_subjects_on_the_very_paths_succeed(motion, actors):
    """The ceiling of the experiment: rendered, not sampled. The clip's own seed, both places."""
    for cast, place in product((c for c in (*DEVELOPMENT, *CONFIRMATION) if len(c) == actors), ("snow", "grass")):
        clip = reference_clip(motion, [SUBJECTS[name][0] for name in cast], 7, 8, 32, place)
        seen = judge(clip.frames, cast, [actor.path for actor in clip.actors])
        assert seen.together >= 0.75 and min(seen.paths) > 0.95 and seen.exchanged < 0.1, (cast, place)


# -- the report -------------------------------------------------------------------------------------------------------
def lines_of(rows):
    """A line per cell; rows: {name: cell -> whether it succeeds (None: it failed to be made)}."""
    out = []
    for row, good in rows.items():
        for cast, motion, prompt, seed in product((*DEVELOPMENT, *CONFIRMATION), MOTIONS, PROMPTS, SEEDS):
            line = {"row": row, "against": None if row == "full" else "full", "cast": "+".join(cast), "motion": motion,
                    "prompt": prompt, "seed": seed, "sample": None, "why": ""}
            verdict = good(cast, motion, prompt, seed)
            if verdict is None:
                out.append(line | {"state": "failed", "success": False, "why": "sample x: broken"})
                continue
            j = {"success": verdict, "reasons": "" if verdict else "toy does not follow its path (0.31)",
                 "together": 1.0, "identity.min": 0.5, "motion.min": 0.9 if verdict else 0.3, "leak.max": 0.0,
                 "place": "snow" if seed else "grass"}
            for k in range(1, len(cast) + 1):
                j |= {f"margins.{k}": 0.2, f"binding.right.{k}": True}
            out.append(line | {"state": "fresh", "success": verdict}
                       | {f"judged.oracle.{key}": value for key, value in j.items()}
                       | {"judged.segmenter.success": True, "judged.segmenter.together": 1.0})
    return out


def cells_of(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_a_row_is_compared_on_its_own_cells_and_what_failed_counts():
    lines = lines_of({"full": lambda cast, motion, place, seed: seed < 2,
                      "less": lambda cast, motion, place, seed: None if seed else True})
    table = report.headline(lines, "confirmation")
    full, less = cells_of(table)
    assert full[:3] == ["full", "96", "67% (67% to 67%)"] and full[-1] == ""
    assert less[:4] == ["less", "96", "33% (33% to 33%)", "33%"]              # two of three were not made: 0 everywhere
    assert full[8] == "50%" and less[8] == "17%", "the place is read off each video, and a missing one has none"
    assert less[9] == "0.67" and full[9] == "0.00", "a video that is not there is no better for leaking nothing"
    assert less[-1] == "-33% (-33% to -33%)"


def test_a_row_that_names_another_is_compared_with_that_one():
    lines = [line | {"against": "less"} if line["row"] == "least" else line for line in lines_of({
        "full": lambda cast, motion, place, seed: True, "less": lambda cast, motion, place, seed: seed < 2,
        "least": lambda cast, motion, place, seed: seed < 1})]
    table = report.headline(lines, None)
    assert table.splitlines()[0].endswith("| success, against full |")
    assert [row[-1] for row in cells_of(table)] == [
        "", "-33% (-33% to -33%)", "-33% (-33% to -33%), against less"]


def test_rows_of_fewer_videos_stand_beside_the_first_of_the_same(project):
    grid = grids.read(project, project.root / "evidence.yaml")
    third = [row.name for row in grid.rows if row.only and not row.seeds]
    lines = [line for line in lines_of({name: lambda cast, motion, place, seed: cast == ("leaf", "cup")
                                        for name in ("full", "(h) beta = 1", third[0])})
             if line["row"] != third[0] or line["cast"] in ("gem+drum", "leaf+cup")]
    whole, fewer = report.parted(lines, grid)
    assert [row[:3] for row in cells_of(report.headline(whole, None))] == [
        ["full", "192", "12% (0% to 38%)"], ["(h) beta = 1", "192", "12% (0% to 38%)"]]
    assert [row[:2] + row[-1:] for row in cells_of(report.headline(fewer, None))] == [
        ["full", "48", ""], [third[0], "48", "+0% (+0% to +0%)"]]
    more = [line | {"row": "more", "against": "full", "seed": 9} for line in fewer if line["row"] == "full"]
    assert [row[-1] for row in cells_of(report.headline(whole + more, None))] == ["", "+0% (+0% to +0%)", ""], (
        "they have no cell in common")


def test_why_and_where_it_fails():
    rows = cells_of(report.where(lines_of({"full": lambda cast, motion, place, seed: motion != "eight"})))
    by_name = {row[0]: row[1:] for row in rows}
    assert by_name["eight"] == ["48", "0%", "path 48"] and by_name["chase"] == ["48", "100%", ""]
    assert by_name["leaf+cup"] == ["24", "75%", "path 6"]


def test_the_verdicts_are_compared():
    (row,) = cells_of(report.agreement(lines_of({"full": lambda cast, motion, place, seed: seed == 0})))
    assert row == ["full", "33%", "100%", "33%", "100%", "100%"]


def test_each_part_alone(project):
    wanted = list(alone.orders(project))
    counts = {part: sum(order.part == part for order in wanted) for part in dict.fromkeys(o.part for o in wanted)}
    assert counts == {"subject": 24, "fusion": 16, **dict.fromkeys(alone.PARTS, 16)}
    asked = [order for order in wanted if order.part == next(iter(alone.PARTS)) and order.what == "orbit-3"]
    assert [order.prompt for order in asked] == [
        f"a {one} circle is orbiting a {other} square and a red triangle on the grass"
        for one, other in (("green", "yellow"), ("yellow", "green"))]
    assert not {look for order in asked for look in order.looks} & set(CAST)
    motion, usual = asked[0], resolve("sample", project.settings)
    assert motion.options.branches == "motion" and len(motion.paths) == 3 and not motion.subjects
    assert motion.options.beta == usual.beta and motion.options.guidance_motion is None
    lines = [{"part": "motion", "what": what, "together": t, "paths": p, "moved": 0.95, "prompt": "", "seed": 0}
             for what, t, p in (("a", 1.0, 0.9), ("a", 0.7, 0.7), ("b", 0.7, 0.99))]
    rows = cells_of(alone.table(lines))
    assert rows[0] == ["motion", "all", "3", "80%", "33%", f"{np.mean([0.9, 0.7, 0.99]):.2f}", "0.95"]


def test_who_follows_which_path():
    down, right = np.zeros((8, 2)), np.zeros((8, 2))
    down[:, 1] = right[:, 0] = np.arange(8)
    round_ = np.stack([np.sin(np.arange(8)), np.cos(np.arange(8))], 1)
    assert alone.followed([down, right], [down, right]) == pytest.approx((1, 1))
    assert alone.followed([right, down], [down, right]) == pytest.approx((0, 1))
    assert alone.followed([right, down, round_], [down, round_, right])[1] == pytest.approx(1)
    assert alone.followed([down, np.full((8, 2), np.nan)], [down, right]) == (0, 0)
