"""Nothing that a project's files say, and no link in its folders, leads out of it; what a person types may."""
from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from hostile import made, small_project, tampered, tree
from typer.testing import CliRunner

from stages import STAGES
from stages.core import borders
from stages.core.errors import BadInput, Refused, UsageError, VideomageError
from stages.core.settings import check_name
from stages.core.workspace import Workspace, fused_name
from stages.sweep.variants import Variants
from videomage_cli.app import app


@pytest.fixture
def outside(tmp_path) -> Path:
    """What is not the project's: pictures, a clip, a file, folders."""
    small_project(tmp_path / "outside")
    (tmp_path / "outside/secret.txt").write_text("mine")
    (tmp_path / "outside/precious").mkdir()
    (tmp_path / "outside/precious/lora.safetensors").write_text("mine")
    return tmp_path / "outside"


def run(root: Path, *args: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, [*args, "-p", str(root)])
    assert done.exit_code == code, (done.stdout, done.stderr, done.exception)
    return " ".join(done.stderr.split())


# -- project.yaml -----------------------------------------------------------------------------------------------------
def ways_out(root: Path, target: Path) -> dict[str, str]:
    """How project.yaml may name a target outside: {what: the path}."""
    (root / "link").symlink_to(target)
    (root / "folder").symlink_to(target.parent)
    return {"absolute": str(target), "relative": f"../outside/{target.name}",
            "dots": f"photos/../../outside/{target.name}", "a link": "link",
            "a linked folder": f"folder/{target.name}", "a glob": f"../outside/{target.name[:3]}*",
            "a glob that climbs": f"photo*/../../outside/{target.name}", "an absolute glob": f"{target.parent}/*"}


def test_photos_lie_in_the_project(tmp_path, outside, survived):
    project = small_project(tmp_path / "p")
    assert len(project.photos("toy")) == 2
    made(project, "learn-subject", "toy", {"lora.safetensors": b"x", "images/0.png": b"a copy"})
    for what, path in ways_out(tmp_path / "p", outside / "photos").items():
        again = tmp_path / "again"
        shutil.copytree(tmp_path / "p", again, symlinks=True)
        text = (again / "project.yaml").read_text()
        (again / "project.yaml").write_text(text.replace("images: photos", f"images: ['{path}']"))
        project = Workspace(again)
        assert [photo.name for photo in project.photos("toy")] == ["0.png"], "the kept copy stands for them"
        with pytest.raises(Refused, match="lies outside the project.*copy it into .*, or name it on the command"):
            project.plan(STAGES["learn-subject"], "toy").require()
        assert "lies outside" in run(again, "learn-subject", "toy", "--force", code=8)
        typed = tuple((outside / "photos").iterdir())
        project.plan(STAGES["learn-subject"], "toy", given={"images": typed}).require()        # what is typed may
        shutil.rmtree(again)
        survived("hostile paths", f"photos by {what}")


def test_a_linked_photo_among_others_is_refused_and_not_read(tmp_path, outside):
    project = small_project(tmp_path / "p")
    (tmp_path / "p/photos/9.png").symlink_to(outside / "photos/0000.png")
    assert len(project.photos("toy")) == 2
    with pytest.raises(Refused, match="9.png, which lies outside"):
        project.plan(STAGES["learn-subject"], "toy").require()
    os.mkfifo(tmp_path / "p/photos/8.png")                               # a pipe would never end
    assert len(project.photos("toy")) == 2
    (tmp_path / "p/photos/9.png").unlink()
    (tmp_path / "p/photos/9.png").symlink_to("0000.png")                 # inside, a link is as good as a file
    assert len(Workspace(tmp_path / "p").photos("toy")) == 3


@pytest.mark.parametrize("item", ["a" * 300, "~nobody-of-that-name/x", "a\0b", "loop", "***", "**/../x", "", "x/***"])
def test_a_path_that_can_be_none_is_refused_in_a_sentence(item, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    project = small_project(tmp_path, subjects={"toy": {"class": "toy", "images": [item]}}, motion={
        "name": "riding", "clip": item or "no.mp4"})
    for stage, name in (("learn-subject", "toy"), ("segment", "motions/riding")):
        with pytest.raises((BadInput, Refused)):
            project.plan(STAGES[stage], name).require()


def test_a_link_among_auxiliary_clips_is_not_followed_out(tmp_path):
    """To the root of the disk, for example, which would take hours to look through."""
    small_project(tmp_path, options={"learn-subject": {"auxiliary": "clips"}})
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/all").symlink_to("/")
    with pytest.raises(Refused, match="clips/all, which lies outside"):
        Workspace(tmp_path).plan(STAGES["learn-subject"], "toy").require()


def test_two_links_in_a_row_do_not_lead_out(tmp_path, outside, monkeypatch, survived):
    """`clips/a` leads to a folder of the project, and a link in that one out of it: whoever reads follows both."""
    small_project(tmp_path / "p", options={"learn-subject": {"auxiliary": "clips"},
                                           "segment": {"segmenter": "given", "masks": "drawn"}})
    for name in ("clips", "drawn", "other"):
        (tmp_path / "p" / name).mkdir()
    (tmp_path / "p/other/b").symlink_to("/")
    for link in ("clips/a", "drawn/person"):
        (tmp_path / "p" / link).symlink_to("../other")
    scan, entered = os.scandir, []
    monkeypatch.setattr(os, "scandir", lambda path: entered.append(str(path)) or scan(path))
    for stage, name, place in (("learn-subject", "toy", "clips/a/b"), ("segment", "motions/riding", "drawn/person/b")):
        with pytest.raises(Refused, match=f"{place}, which lies outside"):
            Workspace(tmp_path / "p").plan(STAGES[stage], name).require()
    assert entered and not [path for path in entered if path.endswith("/b") or "/b/" in path]
    (tmp_path / "p/other/b").unlink()
    (tmp_path / "p/other/0000.png").symlink_to(outside / "photos/0000.png")
    with pytest.raises(Refused, match="drawn/person/0000.png, which lies outside"):
        Workspace(tmp_path / "p").plan(STAGES["segment"], "motions/riding").require()
    (tmp_path / "p/motions/riding").mkdir(parents=True)
    (tmp_path / "p/motions/riding/masks").symlink_to("../../other")            # of a folder that stages write to
    with pytest.raises(Refused, match="motions/riding/masks/0000.png is a link that leads out"):
        Workspace(tmp_path / "p")
    survived("hostile paths", "two links in a row")


def test_what_lies_behind_a_link_is_an_input(tmp_path):
    """A stage reads it, so that it is hashed; a link in a circle is followed once, and without links all is as ever."""
    project = small_project(tmp_path, options={"segment": {"segmenter": "given", "masks": "drawn"}})
    for name in ("drawn/horse", "other"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "0000.png").write_text(name)
        (tmp_path / name / ".hidden").write_text(name)
    plan = project.plan(STAGES["segment"], "motions/riding")
    assert set(plan.hashes()) == {"clip", "masks/horse/0000.png"}
    (tmp_path / "drawn/person").symlink_to("../other")
    (tmp_path / "other/round").symlink_to("../drawn")
    before = project.plan(STAGES["segment"], "motions/riding")
    assert set(before.hashes()) == {"clip", "masks/horse/0000.png", "masks/person/0000.png"}
    identity = before.identity
    (tmp_path / "other/0000.png").write_text("something else")
    assert Workspace(tmp_path).plan(STAGES["segment"], "motions/riding").identity != identity


def test_a_pattern_goes_through_no_links_and_has_an_end(tmp_path, monkeypatch):
    """Four links to the folder itself: each `*` would find everything four times over."""
    project = small_project(tmp_path)
    for name in "abcd":
        (tmp_path / "photos" / name).symlink_to(".")
    (tmp_path / "photos/in/deep").mkdir(parents=True)
    for name in ("in/1.png", "in/deep/2.png", "1²2.png"):
        shutil.copy(tmp_path / "photos/0000.png", tmp_path / "photos" / name)

    def found(item):
        return [path.relative_to(tmp_path / "photos").as_posix() for path in sorted(borders.named(
            item, project.root, project.border)[0])]

    scan, scanned = os.scandir, []
    monkeypatch.setattr(os, "scandir", lambda path: scanned.append(path) or scan(path))
    assert found("photos/" + "*/" * 30 + "*.png") == []
    assert found("photos/*.png") == found("photos") == ["0000.png", "0001.png", "1²2.png"]
    assert found("photos/*/*.png") == ["in/1.png"] and found("photos/*/deep/?.png") == ["in/deep/2.png"]
    assert found("photos/**/*.png") == found("photos/" + "**/" * 1000 + "*.png") == [
        "0000.png", "0001.png", "1²2.png", "in/1.png", "in/deep/2.png"]
    assert found("photos/a/0*.png") == ["a/0000.png", "a/0001.png"], "a link that is named"
    assert found("photos/[01]*/../*.png") == [] and len(scanned) < 100
    with pytest.raises(BadInput, match="is no pattern of files"):
        found("photos/*" + "*a" * 3000)
    monkeypatch.setattr(borders, "MOST", 4)
    with pytest.raises(BadInput, match="'photos/.' matches more than 4 files and folders"):
        found("photos/*")


def test_a_name_with_a_raised_number_is_a_name(tmp_path):
    project = small_project(tmp_path)
    (tmp_path / "photos/0000.png").rename(tmp_path / "photos/1²2.png")
    assert [path.name for path in project.photos("toy")] == ["0001.png", "1²2.png"]


def test_a_sweep_over_a_base_outside_does_not_shut_its_project(tmp_path, base_folder):
    """The variant would hold a link to it, and a link that leads out is refused."""
    shutil.copytree(base_folder, tmp_path / "shared/b")
    shutil.copytree(base_folder, tmp_path / "p/b")
    (tmp_path / "p/linked").symlink_to(tmp_path / "shared/b")
    for base, there in (("../shared/b", False), ("linked", False), ("b", True)):
        (tmp_path / "p/project.yaml").unlink(missing_ok=True)
        project = Workspace.create(tmp_path / "p", base=base, subjects={"toy": {"class": "toy", "images": "photos"}})
        if there:
            assert Variants(project).of({"fuse": {"steps": 1}}).root.is_dir()
        else:
            with pytest.raises(BadInput, match=f"cannot find the base {base}.*write its path absolute"):
                Variants(project).of({"fuse": {"steps": 1}})
        Workspace(tmp_path / "p")                                      # and every command goes on


@pytest.mark.parametrize("kind", ["clip", "masks", "auxiliary"])
def test_clip_masks_and_auxiliary_clips_lie_in_the_project(kind, tmp_path, outside, survived):
    target = outside / ("ref.mp4" if kind == "clip" else "photos")
    small_project(tmp_path / "p")
    stage, name = ("learn-subject", "toy") if kind == "auxiliary" else ("segment", "motions/riding")
    for what, path in ways_out(tmp_path / "p", target).items():
        if "glob" in what:
            continue
        text = (tmp_path / "p/project.yaml").read_text()
        own = {"clip": text.replace("clip: ref.mp4", f"clip: '{path}'"),
               "masks": f"{text}\noptions: {{segment: {{segmenter: given, masks: '{path}'}}}}\n",
               "auxiliary": f"{text}\noptions: {{learn-subject: {{auxiliary: '{path}'}}}}\n"}[kind]
        again = shutil.copytree(tmp_path / "p", tmp_path / "again", symlinks=True)
        (again / "project.yaml").write_text(own)
        project = Workspace(again)
        plan = project.plan(STAGES[stage], name)
        assert not any("outside" in str(file) for source in plan.sources.values() for file in source.files())
        with pytest.raises(Refused, match="lies outside the project"):
            plan.require()
        run(again, *(["segment"] if stage == "segment" else ["learn-subject", "toy"]), code=8)
        shutil.rmtree(again)
        survived("hostile paths", f"{kind} by {what}")


def test_a_project_made_for_a_file_elsewhere_does_not_name_it(tmp_path, outside, monkeypatch):
    """`videomage segment ../clip.mp4` in a new folder: the copy that it keeps stands for the clip from then on."""
    from videomage_cli.flags import Run
    from videomage_cli.sources import ensure_project

    for sources, here in (([str(outside / "ref.mp4")], False), (["clip.mp4"], True)):
        root = tmp_path / f"new{here}"
        root.mkdir()
        shutil.copy(outside / "ref.mp4", root / "clip.mp4")
        monkeypatch.chdir(root)
        ensure_project(Run("segment", Path(), "cpu", "fp32", 0, False, False), sources, None, "sprites")
        assert Workspace(root).settings.motion.clip == ("clip.mp4" if here else None)
        assert Workspace(root).settings.motion.name == ("clip" if here else "ref")


def test_a_variant_of_a_sweep_belongs_to_its_project(tmp_path):
    project = small_project(tmp_path / "p")
    variant = tmp_path / "p/sweeps/variants/fuse.steps=1"
    Workspace.create(variant, subjects={"toy": {"class": "toy", "images": "../../../photos"}})
    assert Workspace(variant).border == project.border == (tmp_path / "p").resolve()
    assert len(Workspace(variant).photos("toy")) == 2
    (variant / ".cache").symlink_to("../../../.cache")
    (tmp_path / "p/.cache").mkdir()
    Workspace(variant)
    (tmp_path / "p/project.yaml").unlink()                     # a folder that is only called so is none
    with pytest.raises(Refused, match=".cache is a link that leads out"):
        Workspace(variant)


# -- links and strange files in the folders ---------------------------------------------------------------------------
LINKS = ("subjects", "subjects/toy", "subjects/toy/images", "subjects/toy/lora.safetensors", "motions/riding/masks",
         "samples/0001-x", "scores", ".cache", ".cache/latents", ".partial", ".partial/learn-subject-toy", "sweeps",
         "fused", "exports", "subjects/toy/learn-subject.json")


@pytest.mark.parametrize("link", LINKS)
def test_a_link_that_leads_out_is_refused_before_anything_is_touched(link, tmp_path, outside, survived):
    small_project(tmp_path / "p")
    before = tree(outside)
    path = tmp_path / "p" / link
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(outside / ("secret.txt" if path.suffix else "precious"))
    with pytest.raises(Refused, match=f"^{link} is a link that leads out of the project") as refused:
        Workspace(tmp_path / "p")
    assert refused.value.exit_code == 8 and "delete the link" in refused.value.remedy
    for args in (["status"], ["learn-subject", "toy", "--force"], ["sample", "--prompt", "a <toy>"], ["eval", "--html"],
                 ["segment"], ["export", "toy"]):
        run(tmp_path / "p", *args, code=8)
    assert tree(outside) == before
    path.unlink()
    (tmp_path / "p/photos/inner").mkdir()
    path.symlink_to(os.path.relpath(tmp_path / "p/photos/inner", path.parent))       # inside it may be
    Workspace(tmp_path / "p")
    survived("hostile paths", f"{link} is a link")


def test_what_is_neither_file_nor_folder_is_refused(tmp_path):
    small_project(tmp_path)
    (tmp_path / "subjects/toy").mkdir(parents=True)
    os.mkfifo(tmp_path / "subjects/toy/learn-subject.json")
    with pytest.raises(Refused, match="subjects/toy/learn-subject.json is neither a file nor a folder"):
        Workspace(tmp_path)
    run(tmp_path, "status", code=8)
    (tmp_path / "subjects/toy/learn-subject.json").unlink()
    (tmp_path / "subjects/loop").symlink_to("loop")
    with pytest.raises(Refused, match="subjects/loop is a link that leads out"):
        Workspace(tmp_path)


def test_project_yaml_is_no_link_out(tmp_path, outside):
    (tmp_path / "p").mkdir()
    (tmp_path / "p/project.yaml").symlink_to(outside / "project.yaml")
    with pytest.raises(Refused, match="project.yaml is a link that leads out"):
        Workspace(tmp_path / "p")
    (tmp_path / "here").symlink_to(outside)                    # the folder itself may be found through one
    assert Workspace(tmp_path / "here").subjects() == ["toy"]


# -- manifests --------------------------------------------------------------------------------------------------------
PLACES = ("../../../outside/secret.txt", "{outside}/secret.txt", "images/../../../../outside/secret.txt", "..", ".", "",
          "a\0b")


@pytest.mark.parametrize("place", PLACES)
def test_files_of_a_manifest_stay_in_its_folder(place, tmp_path, outside, survived):
    """Nothing there is read, moved or deleted: neither by status nor where the artefact is made again."""
    project = small_project(tmp_path / "p")
    path, before = made(project, "learn-subject", "toy"), tree(outside)
    said = json.loads(path.read_text())["files"]
    tampered(path, files={**said, place.format(outside=outside): "0" * 64})
    project = Workspace(tmp_path / "p")
    plan = project.plan(STAGES["learn-subject"], "toy", seed=1)
    with pytest.raises(Refused, match="would lie outside of its folder"), plan.making(force=True) as out:
        (out / "lora.safetensors").write_bytes(b"new")
    assert tree(outside) == before
    for args in (["status"], ["learn-subject", "toy", "--force"], ["fuse", "--subjects", "toy", "dog"]):
        done = CliRunner().invoke(app, [*args, "-p", str(tmp_path / "p")])
        assert done.exit_code in (3, 8) and "Traceback" not in done.stderr, done.stderr
    assert tree(outside) == before and (tmp_path / "p/subjects/toy/token.safetensors").exists()
    survived("hostile paths", f"a manifest names {place!r}")


def test_a_journal_of_a_stranger_moves_nothing_out(tmp_path, outside, survived):
    """`.partial/*/ready`, which is carried out when a project is opened."""
    small_project(tmp_path / "p")
    before = tree(outside)
    tasks = ({"folder": "../outside/precious", "manifest": "m.json", "gone": []},
             {"folder": "subjects", "manifest": "../outside/secret.txt", "gone": []},
             {"folder": "subjects", "manifest": "m.json", "gone": ["../../outside/secret.txt"]},
             {"folder": str(outside), "manifest": "m.json", "gone": ["secret.txt"]},
             {"folder": "subjects"}, {"folder": "subjects", "manifest": 1, "gone": []}, [], None)
    for task in tasks:
        ready = tmp_path / "p/.partial/x/ready"
        ready.mkdir(parents=True)
        (ready / ".commit").write_text(json.dumps(task))
        (ready / ".manifest").write_text("{}")
        (ready / "lora.safetensors").write_text("theirs")
        with pytest.raises((Refused, BadInput)):
            Workspace(tmp_path / "p")
        shutil.rmtree(tmp_path / "p/.partial")
        assert tree(outside) == before
        survived("hostile paths", f"a journal: {task}")


def test_masks_that_a_manifest_names_are_not_taken_up_from_elsewhere(tmp_path, outside):
    small_project(tmp_path / "p")
    project = Workspace(tmp_path / "p")
    path = made(project, "segment", "motions/riding", {"masks/person/0000.png": b"x", "overlay.png": b"y"})
    said = json.loads(path.read_text())
    tampered(path, overrides=["segmenter"], settings={**said["settings"], "segmenter": "given"}, given=["masks"],
             options={**said["options"], "masks": str(outside / "photos")})
    said = run(tmp_path / "p", "segment", "riding", "--force", code=8)
    assert "lies outside the project, whose files name it" in said


# -- names ------------------------------------------------------------------------------------------------------------
NAMES = ("", ".", "..", "../x", "/x", "~", "~root", "a/b", "a\\b", "A", "Toy", "-a", "_a", "a b", "a.b", "ä", "a\n",
         "a\0", "a" * 64, "<toy>", "a+b", "\x1b[31m", "a'b", "$(x)", "%00", "con:", "ａ")


@pytest.mark.parametrize("name", NAMES)
def test_names_are_plain_wherever_they_come_in(name, tmp_path, survived):
    for where, error in ((None, (UsageError, Refused)), ("project.yaml", (BadInput, Refused))):
        with pytest.raises(error):
            check_name(name, "the subject", where)
    with pytest.raises(VideomageError):
        fused_name([name, "toy"])
    project = small_project(tmp_path)
    with pytest.raises(VideomageError):
        project.subject_folder(name)
    if not {"\0", "/"} & set(name) and name not in ("", ".", ".."):
        for family in ("subjects", "motions", "fused"):
            (tmp_path / family / name).mkdir(parents=True)
        again = Workspace(tmp_path)
        assert again.subjects() == ["toy"] and again.motions() == ["riding"]
        assert again.fusions() == (["a+b"] if name == "a+b" else [])
    survived("hostile paths", f"the name {name!r}")


def test_names_of_clips_and_folders_become_plain_ones():
    from videomage_cli.sources import _plain

    assert [_plain(name) for name in ("IMG_1234", "Mein Hund", "Été à la plage", "x" * 80, "...", "犬")] == [
        "img_1234", "mein-hund", "ete-a-la-plage", "x" * 63, "clip", "clip"]


def test_samples_are_listed_by_names_that_we_give(tmp_path):
    project = small_project(tmp_path)
    for name in ("0001-a", "as-it-is--toy+pet--chase--x--s0", "tau=0,beta=0.3--a", "..x", "a b", "\x1b[2J", "x" * 201):
        (tmp_path / "samples" / name).mkdir(parents=True)
    assert project.samples() == ["0001-a", "as-it-is--toy+pet--chase--x--s0", "tau=0,beta=0.3--a"]
    for name in ("..", "a b"):
        (tmp_path / f".partial/sample-{name}").mkdir(parents=True)
        (tmp_path / f".partial/sample-{name}/order.json").write_text("{}")
    (tmp_path / ".partial/sample-0007-x").mkdir()
    (tmp_path / ".partial/sample-0007-x/order.json").write_text("[" * 100_000)
    stage = STAGES["sample"]
    request = {"prompt": "a thing", "subjects": [], "motion": None}
    assert project.sample_name(stage, stage.intent(project.settings), request=request, seed=0)[:4] == "0002"


def test_looking_through_a_large_project_is_quick(tmp_path):
    small_project(tmp_path)
    for number in range(300):
        folder = tmp_path / f"samples/{number:04d}-x"
        folder.mkdir(parents=True)
        for name in ("video.mp4", "frames.png", "sheet.png", "log.json", "sample.json"):
            (folder / name).touch()
    before = os.times()
    borders.check_folder(tmp_path.resolve())
    after = os.times()
    assert after.user + after.system - before.user - before.system < 0.2               # of 1,500 files
