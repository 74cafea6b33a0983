"""The page of `eval --html`: what it shows of a project with every kind of sample, and that it stands alone."""
from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from stages import STAGES
from stages.core import store
from stages.core.errors import MissingPrerequisite, UsageError
from stages.core.sampling import Sampling
from stages.core.takes import write_take
from stages.core.video import write_frames, write_images, write_masks
from stages.core.workspace import Workspace
from stages.page import write_page
from stages.page.curves import LEFT, PLOT, RIGHT, WIDE, curves, tracks
from stages.page.pictures import EXACT, SHORT, sheet
from stages.page.tables import ABSENT
from videomage_cli.app import app
from videomage_cli.words import spread

F = 5
HOSTILE = '<toy> & "<b onclick=x>" </title></style><script>alert(1)</script>'
ACTOR = '"><img src=x onerror=alert(1)>'
VOID = {"meta", "img", "input"}
rng = np.random.default_rng(0)


def judgement(**other) -> dict:
    """Of two subjects, after the schema of scores/<sample>.json. The toy is out of sight in frame 2."""
    each = {name: {"score": 0.61, "null": 0.2, "oracle": 0.7, "normalised": 0.82} for name in ("toy", "dog")}
    path = [[0.2 + 0.1 * n, 0.5] for n in range(F)]
    return {"presence": {"toy": [1, 1, 0, 1, 1], "dog": [1] * F}, "together": 0.8,
            "identity": {"each": each, "min": 0.82, "geomean": 0.82},
            "confusion": {"rows": ["toy", "dog"], "columns": ["toy", "dog"], "matrix": [[0.7, 0.2], [0.1, 0.6]]},
            "margins": {"toy": 0.5, "dog": -0.0001}, "bleed": {"toy": 0.0, "dog": 0.25},
            "motion": {"each": each, "min": 0.82, "geomean": 0.82},
            "binding": {"matrix": [[0.9, 0.1], [0.2, 0.8]], "assigned": {"toy": ACTOR, "dog": "horse"},
                        "right": {"toy": True, "dog": False}, "chance corrected": 0.7},
            "leak": None, "why": "no control", "magnitude": {"toy": 0.2, "dog": 0.3},
            "paths": {"toy": [*path[:2], None, *path[3:]], "dog": path}, "reference paths": {"toy": path, "dog": path},
            "success": True, "reasons": [], **other}


def score(name: str, **other) -> dict:
    return {"sample": name, "prompt": "a toy", "subjects": ["toy", "dog"], "motion": "riding",
            "roles": {"toy": ACTOR, "dog": "horse"},
            "paper protocol": {"CLIP-T": 0.25, "CLIP-I": None, "DINO-I": float("nan"), "T. Cons.": 0.9},
            "cost": {"seconds": 12.5, "forwards": 400, "peak memory": 1.5e9}, "magnitude": {"pixels": 0.125},
            "judged": {"oracle": judgement(success=False, reasons=["<i>dog</i> lost"]), "segmenter": judgement()},
            **other}


def make_sample(project: Workspace, name: str, **request) -> None:
    plan = project.plan(STAGES["sample"], name, request=request, seed=3)
    plan.sources.clear()
    with plan.making() as out:
        write_frames(out / "frames.png", rng.integers(0, 255, (F, 16, 24, 3), dtype=np.uint8))


@pytest.fixture
def project(tmp_path) -> Workspace:
    """0001 is judged, 0002 scored without a judgement, 0003 not scored, 0004 damaged, 0005 ordered and never made; of
    the crashed one there is a score alone. Photos of two sizes, one of them without its mask; a clip with its masks."""
    photos = [rng.integers(0, 255, (n, 24, 3), dtype=np.uint8) for n in (20, 28)]
    write_images(tmp_path / "photos", photos)
    project = Workspace.create(
        tmp_path, subjects={name: {"class": name, "images": "photos"} for name in ("toy", "dog")},
        motion={"name": "riding", "clip": "clip.mp4", "prompt": f"a [{ACTOR}] is riding a [horse]"})
    write_masks(tmp_path / "subjects/toy/masks/toy", [np.ones((20, 24), bool)], ["0000"])
    folder = tmp_path / "motions/riding"
    write_take(folder, rng.integers(0, 255, (F, 40, 40, 3), dtype=np.uint8),
               Sampling(tuple(range(F)), tuple(n / 8 for n in range(F)), 0.0, 0.125, 1.0, (0,), F))
    write_masks(folder / "masks/horse", np.ones((F, 40, 40), bool))
    for name in ("0001-one", "0002-two", "0003-three", "0004-four"):
        make_sample(project, name, prompt=HOSTILE, subjects=["dog", "toy"], motion="riding")
    (tmp_path / "samples/0004-four/frames.png").write_bytes(b"no picture")
    for name, found in {"0001-one": score("0001-one"), "0002-two": score("0002-two", judged={}),
                        "crashed": {"sample": "crashed", "success": False, "reasons": ["out of memory"]}}.items():
        (tmp_path / "scores").mkdir(exist_ok=True)
        (tmp_path / f"scores/{name}.json").write_text(json.dumps(found))
    order = tmp_path / ".partial/sample-0005-five"
    order.mkdir(parents=True)
    (order / "order.json").write_text(json.dumps({"request": {"prompt": HOSTILE}, "seed": 4, "options": {"beta": 0.0}}))
    return project


class Tree(HTMLParser):
    """Every element with its attributes, in order, and the text within it. Raises where a tag is not closed in turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), attrs
        self.found.append([tag, dict(attrs), ""])
        if tag not in VOID:
            self.open.append(self.found[-1])

    def handle_startendtag(self, tag, attrs):
        self.found.append([tag, dict(attrs), ""])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def all(self, tag: str, **wanted: str) -> list:
        return [one for one in self.found if one[0] == tag and all(
            value in (one[1].get(name) or "").split() for name, value in wanted.items())]


@pytest.fixture
def page(project) -> Tree:
    return Tree(write_page(project).read_text(encoding="utf-8"))


def section(page: Tree, name: str) -> str:
    (text,) = [one[2] for one in page.all("section", **{"class": "sample"}) if name in one[2]]
    return text


def test_it_is_html_and_its_references_lead_somewhere(page):
    ids = [attributes["id"] for _, attributes, _ in page.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes, _ in page.found:
        for name in ("href", "aria-labelledby", "for", "data-sheet", "data-masked"):
            assert name not in attributes or attributes[name].removeprefix("#") in ids, attributes
    assert all(one[1]["alt"] for one in page.all("img")) and all(one[1]["aria-label"] for one in page.all("canvas"))


def test_it_needs_no_other_file(page):
    for _, attributes, _ in page.found:
        assert attributes.get("src", "data:").startswith("data:") and attributes.get("href", "#").startswith("#")
    (style,), (script,) = ([one[2] for one in page.all(tag)] for tag in ("style", "script"))
    assert not re.search(r"url\(|@import|//[a-z]", style)
    assert not re.search(r"https?:|fetch|import|XMLHttp|eval\(", script)
    (policy,) = [one[1]["content"] for one in page.all("meta") if "http-equiv" in one[1]]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_what_people_typed_is_text(page):
    assert len(page.all("script")) == len(page.all("title")) - len(page.all("svg", **{"class": "curves"})) == 1
    assert not any(name.startswith("on") for _, attributes, _ in page.found for name in attributes)
    assert HOSTILE in page.all("h3")[-2][2] and f"toy as {ACTOR}" in section(page, "0001-one")
    assert not page.all("i") and not page.all("b", onclick="x")


def test_every_sample_has_its_section_and_its_row(page):
    names = ["0001-one", "0002-two", "0003-three", "0004-four", "0005-five", "crashed"]
    assert len(page.all("section", **{"class": "sample"})) == len(names)
    said = {name: section(page, name) for name in names}
    assert "success" in said["0001-one"] and "not decided" in said["0002-two"]
    assert "not decided: it has not been scored" in said["0003-three"]
    assert "no video that can be read" in said["0004-four"] and "never finished" in said["0005-five"]
    assert "beta 0.0" in said["0005-five"] and "no success: out of memory" in said["crashed"]
    for table in page.all("table", **{"class": "overview"}):
        assert all(name in table[2] for name in names)


def test_nothing_drops_out_of_the_headline(page):
    """Of six, one succeeds by the segmenter; three have no video and are no success; two were not judged."""
    heads = [one[2] for one in page.all("p", **{"class": "headline"})]
    assert heads == ["1 of 6 succeed by the segmenter's tracks", "0 of 6 succeed by the oracle's tracks"]
    abouts = [one[2] for one in page.all("p", **{"class": "about"})]
    assert abouts[:3] == ["3 do not, 2 not decided", "4 do not, 2 not decided",
                          "3 without a video, 3 without a score"]


def test_the_rate_of_the_summary_stands_beside_it_where_all_is_shown(project):
    found = {"rate": 0.5, "low": 0.25, "high": 0.75, "of": 4, "unknown": 1}
    (project.root / "scores/summary.json").write_text(json.dumps({"judged": {"segmenter": {"success": found}}}))
    whole, part = (write_page(project, names).read_text(encoding="utf-8") for names in (None, ["0001-one"]))
    assert "scores/summary.json: 50% (25% to 75%) of 4" in whole and "summary.json" not in part


def test_what_was_not_measured_says_so(page):
    """Also what is no number; and what rounds to nothing has no sign."""
    said = section(page, "0001-one")
    assert "CLIP-T 0.250, CLIP-I not measured, DINO-I not measured, T. Cons. 0.900, change 0.125" in said
    assert "-0.000" not in said and "leak: no control" in said and "horse ✗ wrong" in said
    feet = [one[2] for one in page.all("tfoot")]
    assert feet == ["mean of those that have it0.250of 2not measuredof 0not measuredof 00.900of 20.125of 2"]


def decoded(attributes: dict) -> np.ndarray:
    """The frames of a sheet (F, H, W, 3), cut out one by one."""
    kind, data = attributes["src"].split(";base64,")
    assert kind == "data:image/png"
    grid = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
    frames, columns, width, height = (int(attributes[f"data-{name}"])
                                      for name in ("frames", "columns", "width", "height"))
    return np.stack([grid[k // columns * height:][:height, k % columns * width:][:, :width] for k in range(frames)])


def test_the_frames_are_the_videos_own(project, page):
    found = {one[1]["alt"]: one[1] for one in page.all("img", **{"class": "sheet"})}
    for name in ("0001-one", "0002-two", "0003-three"):
        (attributes,) = [one for alt, one in found.items() if name in alt]
        strip = np.asarray(Image.open(project.root / f"samples/{name}/frames.png"))
        assert attributes["data-exact"] == "true"
        assert (decoded(attributes) == np.stack(np.split(strip, F, 1))).all()


def test_inputs_and_clips_are_shown_with_their_masks(page):
    photos = [one[1]["alt"] for one in page.all("img") if "photo" in one[1]["alt"]]
    assert photos == ["photo 1 of toy, its mask outlined", "photo 2 of toy", "photo 1 of dog", "photo 2 of dog"]
    (clip, *again) = page.all("canvas", **{"data-masked": "m0"})
    assert clip[1]["data-sheet"] == "c0" and again and "horse" in "".join(one[2] for one in page.all("figcaption"))


def test_a_large_video_is_reduced_and_said_to_be():
    frames = np.zeros((2, 600, 900, 3), np.uint8)
    assert frames[..., 0].size > EXACT
    small = sheet(frames)
    assert not small.exact and (small.height, small.width) == (SHORT, SHORT * 3 // 2) and small.frames == 2
    assert sheet(frames[:1]).exact


def test_curves_stand_at_their_frames_and_break_where_nothing_is_seen():
    drawn = Tree(curves(judgement(), ["toy", "dog"], "title"))
    x = [LEFT + (n + 0.5) * (WIDE - LEFT - RIGHT) / F for n in range(F)]
    lines = [one[1] for one in drawn.all("polyline")]
    own = [[tuple(map(float, at.split(","))) for at in one["points"].split()] for one in lines if "class" not in one]
    assert [len(one) for one in own] == [2, 2, F] * 2 and len(lines) == 6 + 4
    top = float(drawn.all("rect", **{"class": "frame"})[0][1]["y"])
    for line, frames in zip(own, ([0, 1], [3, 4], range(F))):
        assert line == [pytest.approx((x[n], top + PLOT * (0.2 + 0.1 * n)), abs=0.01) for n in frames]
    seen = [one[1]["class"].split()[-1] for one in drawn.all("rect", **{"class": "k0"})]
    assert seen == ["in", "in", "out", "in", "in"]
    (cursor,) = drawn.all("line", **{"class": "now"})
    assert float(cursor[1]["data-from"]) + 4 * float(cursor[1]["data-step"]) == pytest.approx(x[4], abs=0.01)


def test_a_judgement_without_curves_or_with_nonsense_is_shown_all_the_same(project):
    assert "not measured" in curves({}, [], "") and tracks("x", {}, [], 1.0) == ""
    assert "<polyline" not in tracks("x", {"paths": {"toy": [[1, float("nan")], "here", None]}}, ["toy"], 1.0)
    odd = {"presence": 3, "identity": {"each": {"toy": None}}, "confusion": {"rows": ["toy"], "matrix": [[1], [2]]},
           "binding": {"matrix": "x"}, "leak": [], "reasons": "none"}
    (project.root / "scores/0001-one.json").write_text(json.dumps(score("0001-one", judged={"segmenter": odd})))
    (project.root / "scores/0002-two.json").write_text("[]")
    text = write_page(project).read_text(encoding="utf-8")
    assert text.count(ABSENT) > 20 and "0002-two.json is damaged" in Tree(text).found[0][2]


def test_the_same_project_gives_the_same_bytes_and_a_page_is_whole_or_the_old_one(project, tmp_path, monkeypatch):
    path = write_page(project)
    assert path == tmp_path / "scores/index.html"
    before = path.read_bytes()
    assert write_page(Workspace(tmp_path), path=tmp_path / "deep/other.html").read_bytes() == before
    assert str(tmp_path).encode() not in before and not list(path.parent.glob(".*"))
    for number in (1, 2, 3):                                         # writing, flushing, renaming
        monkeypatch.setattr(store, "_count", 0)
        monkeypatch.setenv(store.FAILPOINT, f"EIO@{number}")
        with pytest.raises(OSError, match="index.html"):
            write_page(project, ["0001-one"])
        assert path.read_bytes() == before and not list(path.parent.glob(".*"))


def test_samples_can_be_chosen_and_must_be_known(project, tmp_path):
    some = Tree(write_page(project, ["crashed"]).read_text(encoding="utf-8"))
    assert len(some.all("section", **{"class": "sample"})) == 1
    with pytest.raises(UsageError, match="did you mean 'crashed'"):
        write_page(project, ["crash"])
    with pytest.raises(UsageError, match="is a folder"):
        write_page(project, path=tmp_path)
    with pytest.raises(MissingPrerequisite, match="videomage sample"):
        write_page(Workspace.create(tmp_path / "empty"))


@pytest.mark.parametrize("typed, meant", [
    (["--html"], ["--html", ""]), (["--html", "toy"], ["--html", "", "toy"]),
    (["--html", "--json"], ["--html", "", "--json"]), (["toy", "--html", "--", "a"], ["toy", "--html", "", "--", "a"]),
    (["--html", "a/b.html", "toy"], ["--html", "a/b.html", "toy"]), (["--html=b", "toy"], ["--html=b", "toy"])])
def test_the_flag_takes_a_file_or_none(typed, meant):
    assert spread(typed) == meant


def test_eval_writes_it_after_the_scores_and_it_shapes_none(project):
    """Twice: the second time the score is fresh, and the page is written all the same."""
    make_sample(project, "0006-six", prompt="a red circle in the snow", subjects=[], motion=None)
    scored, shown, other = (project.root / name for name in ("scores/0006-six.json", "scores/index.html", "other.html"))

    def run(*args: str) -> str:
        done = CliRunner().invoke(app, ["eval", "0006-six", "--html", *args, "-p", str(project.root)])
        assert done.exit_code == 0, (done.stdout, done.stderr, done.exception)
        return done.stdout

    assert run().splitlines() == [str(scored), str(shown)]
    said = section(Tree(shown.read_text(encoding="utf-8")), "0006-six")
    assert "it has not been scored" not in said and "0006-six" in said
    before = scored.stat().st_mtime_ns
    assert [one["path"] for one in json.loads(run(str(other), "--json"))] == [str(scored), str(other)]
    assert scored.stat().st_mtime_ns == before and other.is_file()
