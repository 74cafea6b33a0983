"""The stage segment by its public calls: which frames, whose masks, what is kept, told and refused."""
from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import layouts
import numpy as np
import pytest
import vision_layouts
from PIL import Image
from typer.testing import CliRunner

from stages import STAGES
from stages.backbones.bases import KNOWN
from stages.core.errors import BadInput, UsageError
from stages.core.mask_sheet import Row
from stages.core.takes import read_take
from stages.core.video import read_images, read_masks, write_images, write_masks, write_video
from stages.core.workspace import Workspace
from stages.findings import Seen, sheet_of
from stages.options import SegmentOptions, resolve
from stages.photos import read_photos
from stages.segment import segment
from videomage_cli.app import app

SIZE = (256, 320)
PROMPT = "a [tall person] is riding a [horse]"


def numbered(count: int, size=SIZE) -> np.ndarray:
    """Frames that hold their number in their brightness."""
    return np.stack([np.full((*size, 3), 20 + 3 * k, np.uint8) for k in range(count)])


def halves(count: int, size=SIZE) -> dict[str, np.ndarray]:
    """Two actors: one in the upper half, one in a quarter of the lower one that is not there in frame 2."""
    person, horse = np.zeros((2, count, *size), bool)
    person[:, :size[0] // 2] = True
    horse[:, size[0] // 2:, :size[1] // 4] = True
    horse[2] = False
    return {"tall person": person, "horse": horse}


def make(root: Path, base: Path, *, frames=30, fps=24.0, drawn: dict | None = None, **segment_options) -> Workspace:
    root.mkdir(exist_ok=True)
    write_video(root / "ref.mp4", numbered(frames), fps=fps)
    for name, masks in (halves(frames) if drawn is None else drawn).items():
        write_masks(root / "drawn" / name, masks)
    options = {"segmenter": "given", "masks": "drawn", **segment_options}
    return Workspace.create(root, base=str(base), options={"segment": options},
                            motion={"name": "riding", "clip": "ref.mp4", "prompt": PROMPT})


def shown(frames: np.ndarray) -> list[int]:
    return [round((float(frame.mean()) - 20) / 3) for frame in frames]


def collect(told: list):
    return lambda **facts: told.append(facts.get("note", ""))


# -- which frames -----------------------------------------------------------------------------------------------------
def test_frames_are_sampled_at_the_rate_and_aspect_of_the_base(tmp_path, base_folder):
    """The tiny base: 4 frames at 8 a second, square. The clip: 24 a second, 5:4."""
    told: list[str] = []
    made = segment(make(tmp_path, base_folder), report=collect(told))
    take = read_take(made.folder)
    assert shown(take.frames) == [0, 3, 6, 9] and take.windows == (0,) and take.length == 4
    assert take.frames.shape == (4, 256, 256, 3)                                     # the middle square, not enlarged
    assert (made.folder / "clip.mp4").read_bytes() == (tmp_path / "ref.mp4").read_bytes()
    assert any("cover: 32 + 32 columns are cut off" in line for line in told)
    assert any("The rest of the clip is left out" in line for line in told)
    facts = made.manifest["facts"]["sampling"]
    assert facts["uneven"] < 1e-3 and facts["chosen"] == [0, 3, 6, 9]
    for actor, full in halves(30).items():          # drawn for every frame of the clip, and cut as the frames were
        masks = read_masks(made.path / actor.replace(" ", "-"))
        assert np.array_equal(masks, full[[0, 3, 6, 9]][:, :, 32:-32])
    assert read_take(made.folder, (32, 32)).window().shape == (4, 32, 32, 3)


def test_a_part_windows_speed_and_fit(tmp_path, base_folder):
    project = make(tmp_path, base_folder, frames=48)
    options = resolve("segment", project.settings)
    take = read_take(segment(project, options=replace(options, start=0.5, seconds=1.0, fit="contain")).folder)
    assert shown(take.frames) == [12, 15, 18, 21, 24, 27, 30, 33] and take.windows == (0, 4)
    assert shown(take.window(1)) == [24, 27, 30, 33] and take.frames.shape == (8, 320, 320, 3)
    assert shown(read_take(segment(project, options=replace(options, speed=2.0)).folder).frames) == [0, 6, 12, 18]
    with pytest.raises(BadInput, match="ref.mp4 shows its last frame at 1.96 s"):
        segment(project, options=replace(options, start=9.0))
    assert shown(read_take(project.motion_folder("riding")).frames) == [0, 6, 12, 18], "what was there stands"


def test_large_frames_are_kept_at_a_size_that_is_enough(tmp_path, base_folder):
    write_video(tmp_path / "ref.mp4", numbered(4, (900, 1000)), fps=8)
    write_masks(tmp_path / "drawn/thing", np.ones((4, 90, 100), bool))
    project = Workspace.create(tmp_path, base=str(base_folder), motion={"name": "a", "clip": "ref.mp4"}, options={
        "segment": {"segmenter": "given", "masks": "drawn"}})
    made = segment(project)
    assert read_take(made.folder).frames.shape == (4, 720, 720, 3)
    assert read_masks(made.path / "thing").all()           # nobody said what to look for: the folders there are


def test_what_would_be_too_much_or_one_folder_is_refused(tmp_path, base_folder, monkeypatch):
    project = make(tmp_path, base_folder, frames=48)
    monkeypatch.setattr("stages.segment.MOST", 7)
    options = resolve("segment", project.settings)
    with pytest.raises(BadInput, match="1 s of the clip are 8 frames .* at most 7 are taken. lower --seconds to 0.875"):
        segment(project, options=replace(options, seconds=1.0))
    with pytest.raises(UsageError, match="'tall person' and 'tall-person' would be one folder of masks, tall-person"):
        segment(project, options=replace(options, actors=("tall person", "tall-person")))


def test_the_base_decides_the_sampling_and_a_change_of_it_is_seen(tmp_path, base_folder):
    project = make(tmp_path, base_folder)
    segment(project)
    (tmp_path / "project.yaml").write_text("video: {fps: 4}\n" + (tmp_path / "project.yaml").read_text())
    project = Workspace(tmp_path)
    state = project.intended(STAGES["segment"], "motions/riding").state()
    assert state.kind == "stale" and any(reason.startswith("video") for reason in state.reasons)
    assert shown(read_take(segment(project).folder).frames) == [0, 6, 12, 18]


def test_a_folder_of_pictures_is_a_clip(tmp_path, base_folder):
    write_images(tmp_path / "shots", numbered(5))
    write_masks(tmp_path / "drawn/horse", np.ones((5, *SIZE), bool))
    project = Workspace.create(tmp_path, base=str(base_folder), motion={
        "name": "a", "clip": "shots", "prompt": "a [horse]"}, options={"segment": {"segmenter": "given",
                                                                                  "masks": "drawn"}})
    made = segment(project)
    assert shown(read_take(made.folder).frames) == [0, 1, 2, 3] and len(list((made.folder / "clip").iterdir())) == 5


def test_a_project_that_was_mailed_without_its_sources_is_whole(tmp_path, base_folder):
    project = make(tmp_path, base_folder)
    segment(project)
    (tmp_path / "ref.mp4").unlink()
    assert Workspace(tmp_path).intended(STAGES["segment"], "motions/riding").state().kind == "fresh"
    again = segment(Workspace(tmp_path), options=replace(resolve("segment", project.settings), start=0.25))
    assert shown(read_take(again.folder).frames) == [6, 9, 12, 15]


# -- whose masks ------------------------------------------------------------------------------------------------------
def test_masks_edited_by_hand_are_respected_hashed_and_kept(tmp_path, base_folder):
    project = make(tmp_path, base_folder)
    made = segment(project)
    path = made.path / "horse" / "0001.png"
    edited = np.zeros((256, 256), np.uint8)
    edited[200:240, 100:140] = 255
    Image.fromarray(edited).convert("RGBA").save(path)                       # as another editor might save it
    fresh = Workspace(tmp_path)
    assert fresh.intended(STAGES["segment"], "motions/riding").state().kind == "fresh"
    assert not segment(fresh).made
    told: list[str] = []
    again = segment(fresh, force=True, report=collect(told))
    assert again.made and (read_masks(again.path / "horse")[1] == (edited > 0)).all()
    assert any("1 masks were edited by hand and are kept (masks/horse/0001.png)" in line for line in told)
    assert again.manifest["facts"]["shares of the frames"]["horse"][1] == pytest.approx(1600 / 256**2, abs=1e-4)
    third = segment(Workspace(tmp_path), force=True, report=collect(told))            # and not only the first time
    assert (read_masks(third.path / "horse")[1] == (edited > 0)).all() and len(told[-1]) and "kept" in " ".join(told)
    assert Workspace(tmp_path).intended(STAGES["segment"], "motions/riding").state().kind == "fresh"
    path.unlink()
    assert Workspace(tmp_path).intended(STAGES["segment"], "motions/riding").state().kind == "stale"
    assert not (read_masks(segment(Workspace(tmp_path)).path / "horse")[1] == (edited > 0)).all(), "drawn anew"


def test_an_edit_makes_what_was_learned_from_it_stale(tmp_path, base_folder):
    project = make(tmp_path, base_folder)
    made = segment(project)
    plan = project.plan(STAGES["invert"], "riding")
    with plan.making() as out:
        for file in ("tokens.safetensors", "noise.safetensors", "invert-preview.png"):
            (out / file).write_text("x")
    assert project.intended(STAGES["invert"], "riding").state().kind == "fresh"
    write_masks(made.path / "horse", ~read_masks(made.path / "horse"))
    state = Workspace(tmp_path).intended(STAGES["invert"], "riding").state()
    assert state.kind == "stale" and "input masks/horse/0001.png changed" in state.reasons


def test_what_nobody_can_tell_the_maker_of_is_set_aside_and_only_when_all_went_well(tmp_path, base_folder):
    project = make(tmp_path, base_folder)
    made = segment(project)
    Image.fromarray(np.zeros((256, 256), np.uint8)).save(made.path / "horse" / "0001.png")
    gone = replace(resolve("segment", project.settings), masks=tmp_path / "empty", start=0.25)
    for name in ("tall person", "horse"):
        write_masks(tmp_path / "empty" / name, np.zeros((4, 256, 256), bool))
    for _ in range(2):
        with pytest.raises(BadInput, match="found in none"):
            segment(project, options=gone)
        assert not (made.folder / "masks-by-hand").exists()
    (made.folder / "segment.json").unlink()
    segment(Workspace(tmp_path))
    assert len(list((made.folder / "masks-by-hand").glob("*/*.png"))) == 8


def test_damaged_facts_of_frames_are_named(tmp_path, base_folder):
    made = segment(make(tmp_path, base_folder))
    path, whole = made.folder / "frames.json", json.loads((made.folder / "frames.json").read_text())
    for bad in ("{", "[]", *(json.dumps({**whole, **part}) for part in (
            {"chosen": 3}, {"length": "x"}, {"windows": []}, {"windows": [2]}, {"length": 0}))):
        path.write_text(bad)
        with pytest.raises(BadInput, match="frames.json is gone or damaged. Run: videomage segment motions/riding"):
            read_take(made.folder)
    path.unlink()
    with pytest.raises(BadInput, match="gone or damaged"):
        read_take(made.folder)


def test_edits_for_other_frames_are_not_kept(tmp_path, base_folder):
    project = make(tmp_path, base_folder)
    made = segment(project)
    Image.fromarray(np.zeros((256, 256), np.uint8)).save(made.path / "horse" / "0001.png")
    told: list[str] = []
    again = segment(project, options=replace(resolve("segment", project.settings), start=0.25), report=collect(told))
    assert read_masks(again.path / "horse")[1].any()
    assert any("for other pictures or actors: they are in motions/riding/masks-by-hand now" in line for line in told)
    assert not read_masks(made.folder / "masks-by-hand" / "horse").any(), "set aside, not lost"
    Image.fromarray(np.full((256, 256), 255, np.uint8)).save(again.path / "horse" / "0001.png")
    other = segment(project, options=replace(resolve("segment", project.settings), start=0.25, actors=("tall person",)))
    assert not (other.path / "horse").exists()
    assert read_masks(made.folder / "masks-by-hand" / "horse").mean((1, 2)).tolist() in ([0, 1], [1, 0])


def test_given_masks_of_either_number_and_aspect(tmp_path, base_folder):
    """As many as frames were taken, in their size; of another aspect they are refused by name."""
    own = {name: masks[:4, :, 32:-32] for name, masks in halves(30).items()}
    made = segment(make(tmp_path / "a", base_folder, drawn=own))
    assert np.array_equal(read_masks(made.path / "horse"), own["horse"])
    with pytest.raises(BadInput, match=r"holds 7 masks for 4 pictures \(nor one for each of the 30 of the clip\)"):
        segment(make(tmp_path / "b", base_folder, drawn={n: m[:7] for n, m in halves(30).items()}))
    with pytest.raises(BadInput, match="is 100 x 256, and the pictures 256 x 256"):
        segment(make(tmp_path / "c", base_folder, drawn={n: m[:4, :, :100] for n, m in halves(30).items()}))


def test_typed_masks_are_not_stale_when_they_are_not_typed_again(tmp_path, base_folder):
    """--masks FOLDER once is no wish of the project; typed again, its content is compared."""
    project = make(tmp_path, base_folder, masks=None)
    typed_once = replace(resolve("segment", project.settings), masks=tmp_path / "drawn")
    segment(project, options=typed_once)
    fresh = Workspace(tmp_path)
    assert fresh.intended(STAGES["segment"], "motions/riding").state().kind == "fresh"
    fresh.plan(STAGES["invert"], "riding").require()
    write_masks(tmp_path / "drawn/horse", ~halves(30)["horse"])
    assert Workspace(tmp_path).plan(STAGES["segment"], "motions/riding", typed_once).state().kind == "stale"


# -- what is told -----------------------------------------------------------------------------------------------------
def test_the_sheet_and_the_facts_say_where_an_actor_is_missing(tmp_path, base_folder):
    drawn = {name: masks[:4, :, 32:-32] for name, masks in halves(30).items()}
    told: list[str] = []
    made = segment(make(tmp_path, base_folder, drawn=drawn), report=collect(told))
    assert made.manifest["facts"]["not found in"] == {"tall person": [], "horse": [2]}
    assert any(line.startswith("'horse': in 3 of 4, confidence 1.00") and line.endswith("not in 2") for line in told)
    with Image.open(made.folder / "overlay.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).reshape(-1, 3)
    for ink in ((255, 64, 160), (0, 224, 255), (196, 30, 30)):             # both actors' inks, and the warning's
        assert (np.abs(pixels.astype(int) - ink).sum(1) < 8).sum() > 50


def test_an_actor_that_is_nowhere_is_refused_and_the_sheet_is_left(tmp_path, base_folder):
    drawn = {**halves(30), "horse": np.zeros((30, *SIZE), bool)}
    with pytest.raises(BadInput, match="'horse' was found in none of 4 pictures; see .partial/.*overlay.png.*--actors"):
        segment(make(tmp_path, base_folder, drawn=drawn))
    assert not (tmp_path / "motions/riding/segment.json").exists()
    with Image.open(tmp_path / ".partial/segment-motions-riding/overlay.png") as sheet:
        assert sheet.width > 1000


# -- the first thing one types ----------------------------------------------------------------------------------------
def typed(*args: str, code: int = 0):
    done = CliRunner().invoke(app, list(args))
    assert done.exit_code == code, (done.stdout, done.stderr, done.exception)
    return done.stdout, " ".join(done.stderr.split())


def test_segment_in_a_fresh_folder_makes_the_project(tmp_path, monkeypatch):
    """A clip of the sprites world, on the sprites base: what moves is found without being named."""
    from stages.sprites.example import write_example

    write_example(tmp_path)
    (tmp_path / "clip.mp4").rename(tmp_path / "my clip.mp4")
    monkeypatch.chdir(tmp_path)
    out, err = typed("segment", "my clip.mp4")
    assert out.strip() == "motions/my-clip/masks"
    assert "a new project on sprites (licence: Apache-2.0)" in err and "look at motions/my-clip/overlay.png" in err
    assert sorted(path.name for path in Path("motions/my-clip/masks").iterdir()) == ["blue-object", "red-object"]
    assert 'motion.prompt: "a [red object] ... a [blue object]"' in err
    assert Workspace(".").settings.motion.clip == "my clip.mp4"
    command = 'videomage segment motions/my-clip --actors "red object" "blue object" --force'.replace('"', "'")
    assert command in sheet_text("my-clip")
    assert {row["state"] for row in states() if row["stage"] == "segment"} == {"fresh"}
    _, err = typed("segment", "my-clip", "--actors", "red circle", "blue square")
    assert sorted(path.name for path in Path("motions/my-clip/masks").iterdir()) == ["blue-square", "red-circle"]
    assert "'red circle': in 8 of 8" in err
    _, err = typed("segment", "photos/toy/0.png", "photos/toy/1.png", "--name", "toy", "--actors", "object")
    assert sorted(path.name for path in Path("subjects/toy/masks/object").iterdir()) == ["0.png", "1.png"]
    _, err = typed("segment", "my-clip", "--base", "zeroscope", code=2)
    assert "--base is for a new project" in err
    _, err = typed("segment", "my-clip", "--actors", "circle", "--box", "circle=1,2,30,40", "--force", code=2)
    assert "takes no boxes or points" in err


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """The cache of the hub with a tiny ZeroScope, the network off."""
    import socket

    from huggingface_hub import constants

    def no_network(*_: object) -> None:
        raise AssertionError("something asked for the network")

    for way in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, way, no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setenv("VIDEOMAGE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    layouts.in_hub_cache(layouts.zeroscope(tmp_path / "weights"), tmp_path / "hub", KNOWN["zeroscope"].repo,
                         commit=KNOWN["zeroscope"].revision, ref=None)
    return tmp_path / "hub"


@pytest.mark.parametrize("library", ["transformers", "sam2"])
def test_the_command_on_a_filmed_clip_through_tiny_grounding_dino_and_sam2(library, hub, tmp_path, monkeypatch):
    """A fresh folder, the base that is here, weights in the hub's cache; before that, what is missing is named."""
    pytest.importorskip(library, reason=f"{library} is not installed")
    (tmp_path / "fresh").mkdir()
    monkeypatch.chdir(tmp_path / "fresh")
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 255, (78, 20, 32, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    write_video("ref.mp4", blocks, fps=24)
    _, err = typed("segment", "ref.mp4", "--actors", "person", "horse", code=4)
    assert "a new project on zeroscope (licence: CC-BY-NC-4.0)" in err
    assert "Grounding DINO, IDEA-Research/grounding-dino-tiny (Apache-2.0, 690 MB to download), is not on this" in err
    assert "Run: videomage fetch grounded-sam2" in err
    out, _ = typed("doctor", "--json", code=4)
    bad = {f["what"]: f for f in json.loads(out[:out.rindex("]") + 1]) if f["mark"] == "bad"}
    assert set(bad) == {"Grounding DINO", "SAM2"} and "156 MB" in bad["SAM2"]["found"]
    assert {f["remedy"] for f in bad.values()} == {"videomage fetch grounded-sam2"}
    for source, repo, more in ((vision_layouts.grounding_dino, vision_layouts.DINO, {}),
                               (vision_layouts.sam2, vision_layouts.SAM2, {"seed": 4})):
        layouts.in_hub_cache(source(tmp_path / repo.split("/")[1], **more), hub, repo)
    loose = ("--box-threshold", "0.05", "--text-threshold", "0.02", "--through", library)
    out, err = typed("segment", "ref.mp4", "--actors", "person", "horse", *loose)
    assert out.strip() == "motions/ref/masks" and "'person': in " in err
    for actor in ("person", "horse"):
        assert read_masks(f"motions/ref/masks/{actor}").shape == (24, 284, 512)      # 1.8:1, the aspect of the base
    facts = json.loads(Path("motions/ref/segment.json").read_text())["facts"]
    assert facts["weights"] == [f"{repo}@{layouts.COMMIT}" for repo in (vision_layouts.DINO, vision_layouts.SAM2)]
    assert facts["sampling"]["chosen"] == list(range(0, 72, 3))
    assert Path("motions/ref/overlay.png").stat().st_size > 10_000
    typed("segment", "ref", "--actors", "person", "horse", "--box", "horse@5=20,20,120,100", "person=10,10,60,60",
          "--point", "horse@5=60,60", "horse@5!=118,98", "--through", library)
    told = json.loads(Path("motions/ref/segment.json").read_text())["options"]
    assert told["box"] == ["horse@5=20,20,120,100", "person=10,10,60,60"] and len(told["point"]) == 2


def states() -> list[dict]:
    return json.loads(typed("status", "--json")[0])["artefacts"]


def sheet_text(name: str) -> str:
    """What stands below the sheet: the commands that mend."""
    project = Workspace(".")
    plan = project.intended(STAGES["segment"], f"motions/{name}")
    rows = [Row(actor, [np.zeros((4, 4), bool)], [0.0]) for actor in
            project.manifest(plan.manifest_path)["facts"]["shares of the frames"]]
    seen = Seen([np.zeros((1, 4, 4, 3), np.uint8)], [], ["0000"], ["x"], [])
    return "\n".join(remedy for _, remedy in sheet_of(plan, seen, rows).mend)


def test_what_the_sheet_says_can_be_typed(tmp_path, base_folder, monkeypatch):
    """With what was typed before, quoted, so that the same frames are taken and an edit is kept."""
    make(tmp_path, base_folder, frames=48)
    monkeypatch.chdir(tmp_path)
    typed("segment", "--start", "0.5", "--device", "cpu")
    command = "videomage segment motions/riding --start 0.5 --force"
    assert command in sheet_text("riding") and "--box 'tall person@0=LEFT" in sheet_text("riding")
    _, err = typed("segment", "riding")                       # bare, it does not undo what it does not mention
    assert "as before: --start 0.5" in err and "is fresh" in err
    path = Path("motions/riding/masks/horse/0003.png")
    Image.fromarray(np.full((256, 256), 255, np.uint8)).save(path)
    _, err = typed(*shlex.split(command)[1:])
    assert "are kept (masks/horse/0003.png)" in err and read_masks(path.parent)[3].all()


def test_a_second_clip_is_a_motion_of_its_own_and_a_changed_one_is_seen(tmp_path, monkeypatch):
    from stages.sprites.example import write_example

    write_example(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("clip.mp4").rename("a.mp4")
    typed("segment", "a.mp4", "--actors", "red circle")
    write_video("b.mp4", numbered(8, (256, 256)), fps=8)
    write_masks("drawn/thing", np.ones((8, 256, 256), bool))
    typed("segment", "b.mp4", "--segmenter", "given", "--masks", "drawn")
    assert Path("motions/a/clip.mp4").read_bytes() == Path("a.mp4").read_bytes() and Path("motions/b/clip.mp4").exists()
    assert {(row["name"], row["state"]) for row in states() if row["stage"] == "segment"} == {
        ("motions/a", "fresh"), ("motions/b", "fresh")}
    _, err = typed("segment", "b", "--force")
    assert "as before: --segmenter given --masks drawn" in err and read_masks("motions/b/masks/thing").all()
    Path("other").mkdir()
    write_video("other/a.mp4", numbered(8, (256, 256)), fps=8)
    _, err = typed("segment", "other/a.mp4", code=2)
    assert "the motion 'a' is of another clip" in err
    text = Path("project.yaml").read_text().replace("clip: a.mp4", 'clip: a.mp4\n  prompt: "a [red circle]"')
    Path("project.yaml").write_text(text)                     # the prompt that was proposed: nothing else is looked for
    assert {row["state"] for row in states() if row["name"] == "motions/a"} == {"fresh"}
    write_video("a.mp4", numbered(8, (256, 256)), fps=8)
    (reasons,) = (row["reasons"] for row in states() if row["name"] == "motions/a" and row["stage"] == "segment")
    assert reasons == ["input clip changed"]


def test_photos_and_who_is_in_them(tmp_path, monkeypatch):
    """A replaced photo, a class word that was typed, a folder's odd name, and who owns which copies."""
    from stages.sprites.example import write_example

    write_example(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("photos/toy").rename("photos toy")
    typed("segment", "photos toy", "--actors", "object")
    assert Workspace(".").settings.subjects["photos-toy"].class_word == "object"
    assert {row["state"] for row in states() if row["stage"] == "segment"} == {"fresh"}
    shutil.copyfile("photos/pet/0.png", "photos toy/1.png")
    (row,) = (row for row in states() if row["stage"] == "segment")
    assert row["state"] == "stale" and row["reasons"] == ["input images/1.png changed"]
    found = read_photos(Workspace(".").photos("photos-toy"), Path("subjects/photos-toy/masks"))
    assert [photo.mask is None for photo in found] == [False, True, False, False, False, False]
    Path("photos toy/5.png").unlink()
    _, err = typed("segment", "photos-toy", code=3)
    assert "the photo photos toy/5.png of the subject 'photos-toy' is not there" in err
    _, err = typed("segment", "photos/pet", "--start", "1", code=2)
    assert "--start is for clips" in err
    _, err = typed("segment", "photos/pet/0.png", "clip.mp4", code=2)
    assert "clip.mp4 is a clip" in err
    _, err = typed("segment", "--actors", "object", "clip.mp4", code=2)
    assert "'clip.mp4' is a file, and stands among --actors" in err


def test_equal_names_and_another_order_do_not_change_whose_mask_is_whose(tmp_path, base_folder):
    for folder, shade in (("a", 60), ("b", 90)):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.full((20, 30 + shade, 3), shade, np.uint8)).save(tmp_path / folder / "x.png")
        write_masks(tmp_path / "drawn/toy", [np.full((20, 30 + shade), shade == 60)], [f"{folder}"])
    project = Workspace.create(tmp_path, base=str(base_folder), subjects={"toy": {"class": "toy"}}, options={
        "segment": {"segmenter": "given", "masks": "drawn"}})
    paths = [tmp_path / "a/x.png", tmp_path / "b/x.png"]
    made = segment(project, "toy", images=paths)
    for order in (paths, paths[::-1]):
        found = {photo.picture[0, 0, 0]: photo.mask for photo in read_photos(order, made.path)}
        assert found[60].all() and found[90] is None


def test_nothing_is_made_for_what_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, err = typed("segment", "absent.mp4", code=2)
    assert "there is no file absent.mp4" in err and not Path("project.yaml").exists()
    _, err = typed("segment", "a" * 300 + ".mp4", code=2)
    assert "cannot be reached" in err
    typed("segment", code=4)
    Path("a.mp4").write_bytes(b"")
    _, err = typed("segment", "a.mp4", code=3)
    assert "a.mp4" in err and not Path("project.yaml").exists()
    typed("segment", "a.mp4", "--dry-run", code=4)
    assert not Path("project.yaml").exists()


# -- photos -----------------------------------------------------------------------------------------------------------
def photo_project(root: Path, base: Path) -> Workspace:
    """Two photos of other sizes, one of them turned by EXIF, the subject at their edge."""
    (root / "photos").mkdir(parents=True)
    wide = np.full((60, 180, 3), 60, np.uint8)
    wide[10:50, 130:170] = (200, 40, 40)
    tall = np.full((90, 40, 3), 90, np.uint8)
    tall[60:85, 5:30] = (200, 40, 40)
    Image.fromarray(wide).save(root / "photos/a.png")
    exif = Image.Exif()
    exif[0x0112] = 6                                                        # stored on its side
    Image.fromarray(np.rot90(tall, 1)).save(root / "photos/b.png", exif=exif)
    for name, picture in (("b", tall), ("a", wide)):
        (root / "drawn/toy").mkdir(parents=True, exist_ok=True)
        Image.fromarray(((picture[..., 0] == 200) * 255).astype(np.uint8)).save(root / f"drawn/toy/{name}.png")
    return Workspace.create(root, base=str(base), subjects={"toy": {"class": "toy", "images": "photos"}},
                            options={"segment": {"segmenter": "given", "masks": "drawn"}})


def test_photos_keep_their_sizes_and_their_masks_their_names(tmp_path, base_folder):
    project = photo_project(tmp_path, base_folder)
    made = segment(project, "subjects/toy")
    photos = read_photos(project.photos("toy"), made.path)
    assert [photo.picture.shape[:2] for photo in photos] == [(60, 180), (90, 40)]
    for photo in photos:
        assert np.array_equal(photo.mask, photo.picture[..., 0] == 200)
    covering, tall = (photo.fitted((32, 32)) for photo in photos)
    assert covering.mask.any() and covering.picture[covering.mask][:, 0].mean() > 190          # around the subject
    assert tall.mask.sum() > 0.9 * 25 * 25 * (32 / 40) ** 2
    held = photos[0].holding((10, 50))                  # a part of that aspect would cut the subject: all is kept
    assert held.mask.sum() == pytest.approx(40 * 40 * (10 / 60) ** 2, rel=0.25)
    cut = photos[1].cut_out()
    assert cut.shape == (29, 29, 3) and (cut[2:27, 2:27] == (200, 40, 40)).all() and (cut[0] == 127).all()


def test_a_photo_without_a_mask_is_said(tmp_path, base_folder):
    project = photo_project(tmp_path, base_folder)
    made = segment(project, "subjects/toy")
    (made.path / "toy/a.png").unlink()
    told: list[str] = []
    photos = read_photos(project.photos("toy"), made.path, collect(told))
    assert photos[0].mask is None and photos[1].mask is not None
    assert told == ["the photo a.png has no mask: its middle is looked at"]


def test_masks_of_photos_are_inputs_of_what_learns_from_them(tmp_path, base_folder):
    project = photo_project(tmp_path, base_folder)
    assert "masks" not in project.plan(STAGES["learn-subject"], "toy").inputs
    made = segment(project, "subjects/toy")
    plan = project.plan(STAGES["learn-subject"], "toy")
    assert plan.inputs["masks"] == made.path and plan.upstream()[0][2].kind == "fresh"
    before = plan.identity
    write_masks(made.path / "toy", np.ones((1, 60, 180), bool), ["a"])
    assert project.plan(STAGES["learn-subject"], "toy").identity != before


def test_a_photo_that_cannot_be_read_is_named_not_left_out(tmp_path, base_folder):
    project = photo_project(tmp_path, base_folder)
    (tmp_path / "photos/c.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(BadInput, match=r"c\.heic"):
        segment(project, "subjects/toy")


def test_options_are_json_in_the_manifest(tmp_path, base_folder):
    made = segment(make(tmp_path, base_folder))
    assert json.loads((made.folder / "segment.json").read_text())["options"]["box"] == []
    assert SegmentOptions(box="horse=1,2,3,4").box == ("horse=1,2,3,4",)
    assert read_images(made.folder / "frames").shape[0] == 4
