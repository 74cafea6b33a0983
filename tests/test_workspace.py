"""The project directory: freshness by content, nothing half-written, locks, names; with toy stages of real plans."""
from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stages import STAGES
from stages.core import lock, store
from stages.core import report as reports
from stages.core.errors import BadInput, Interrupted, Locked, MissingPrerequisite, OutOfResources, Refused
from stages.core.lock import locked
from stages.core.settings import Settings, parse
from stages.core.workspace import Workspace, fused_name
from stages.options import FuseOptions, resolve

BASE = {"name": "sprites", "revision": "1" * 64}
ORDER = {"prompt": "<toy> is chasing <pet>", "subjects": ["pet", "toy"], "motion": "chase"}


@pytest.fixture
def root(tmp_path) -> Path:
    subjects = {name: {"class": "circle", "images": f"photos/{name}"} for name in ("toy", "pet")}
    Workspace.create(tmp_path, subjects=subjects,
                     motion={"name": "chase", "clip": "clip.mp4", "prompt": "a [circle] is chasing a [square]"},
                     prompts=[ORDER["prompt"]])
    for name in ("toy", "pet"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for k in (1, 2, 10):
            (tmp_path / "photos" / name / f"{k}.png").write_text(f"{name} {k}")
    (tmp_path / "clip.mp4").write_text("a clip")
    return tmp_path


def plan_of(root, stage, name, typed=None, **how):
    project = Workspace(root)
    options = resolve(stage, project.settings, typed) if typed else None
    return project.plan(STAGES[stage], name, options, **{"base": BASE, **how})


def make(root, stage, name, typed=None, *, force=False, files=(), **how):
    """Run a stage that writes its file names and its identity into its files."""
    plan = plan_of(root, stage, name, typed, **how)
    if plan.state() and not force:
        return plan.artifact()
    with plan.making(force=force) as out:
        for file in files or STAGES[stage].files:
            file = "masks/circle/0000.png" if file == "masks" else file.format(name=name)
            (out / file).parent.mkdir(parents=True, exist_ok=True)
            (out / file).write_text(f"{file} {plan.identity}")
    return plan.artifact()


def make_all(root):
    make(root, "segment", "motions/chase", files=("clip.mp4", "frames.json", "frames/0000.png", "masks"))
    make(root, "invert", "chase")
    for name in ("toy", "pet"):
        make(root, "learn-subject", name)
    make(root, "learn-motion", "chase")
    make(root, "fuse", "pet+toy")
    project = Workspace(root)
    name = project.sample_name(STAGES["sample"], resolve("sample", project.settings), request=ORDER, seed=0)
    make(root, "sample", name, request=ORDER)
    make(root, "eval", name)
    return name


def states(root):
    project = Workspace(root)
    return {f"{stage.name} {name}": project.intended(stage, name, BASE).state()
            for stage in STAGES.values() for name in stage.names(project)}


def stale(root):
    return {key for key, state in states(root).items() if state.kind != "fresh"}


def snapshot(root):
    return {path: path.stat().st_mtime_ns for path in sorted(root.rglob("*"))}


def test_a_second_run_of_everything_touches_nothing(root):
    make_all(root)
    before = snapshot(root)
    assert make_all(root) == "0001-toy-is-chasing-pet"
    after = snapshot(root)
    ignored = {root / ".partial"}                      # the lock of sample numbers came and went there
    assert {p: t for p, t in before.items() if p not in ignored} == {p: t for p, t in after.items() if p not in ignored}
    assert not stale(root)
    assert not list((root / ".partial").iterdir())


def test_an_option_that_did_not_exist_then_changes_nothing_by_its_default(root):
    name = make_all(root)
    for path, added in ((root / "fused/pet+toy/fuse.json", "start"), (root / f"samples/{name}/sample.json", "solver")):
        manifest = json.loads(path.read_text())
        del manifest["settings"][added], manifest["options"][added]
        path.write_text(json.dumps(manifest))
    assert not stale(root)
    (root / "project.yaml").write_text((root / "project.yaml").read_text() + "\noptions: {fuse: {start: sum}}\n")
    assert "start 'mean' -> 'sum'" in states(root)["fuse pet+toy"].reasons


def test_one_photo_makes_stale_exactly_what_depends_on_it(root):
    name = make_all(root)
    (root / "photos/toy/2.png").write_text("another")
    found = states(root)
    assert {key for key, state in found.items() if not state} == {
        "learn-subject toy", "fuse pet+toy", f"sample {name}", f"eval {name}"}
    assert found["learn-subject toy"].reasons == ("input images/2.png changed",)
    assert found["fuse pet+toy"].reasons == ("input toy/images/2.png changed",            # CutMix cuts it from photos
                                             "follows learn-subject 'toy', which is stale")
    with pytest.raises(MissingPrerequisite, match="learn-subject 'toy', which is stale.*videomage learn-subject toy"):
        make(root, "fuse", "pet+toy", force=False)
    (root / "photos/toy/2.png").write_text("toy 2")       # content, not time, decides
    assert not stale(root)


STEPS = resolve("learn-subject", Settings()).steps                    # of the sprites preset


def edit(root, old, new):
    path = root / "project.yaml"
    path.write_text(path.read_text().replace(old, new, 1) if old else path.read_text() + f"\noptions: {new}\n")


@pytest.mark.parametrize("change, reason", [
    (lambda p: (p / "photos/toy/2.png").unlink(), "input images/2.png is gone"),
    (lambda p: (p / "photos/toy/3.png").write_text("x"), "input images/3.png is new"),
    (lambda p: (p / "subjects/toy/lora.safetensors").write_text("x"), "its file lora.safetensors was changed by hand"),
    (lambda p: (p / "subjects/toy/token.safetensors").unlink(), "its file token.safetensors is gone"),
    (lambda p: edit(p, "class: circle", "class: ball"), "class 'circle' -> 'ball'"),
    (lambda p: edit(p, "", "{learn-subject: {steps: 9}}"), f"steps {STEPS} -> 9")])
def test_reasons(root, change, reason):
    make(root, "learn-subject", "toy")
    change(root)
    assert reason in Workspace(root).intended(STAGES["learn-subject"], "toy", BASE).state().reasons


def test_seed_and_base_count(root):
    make(root, "learn-subject", "toy")
    assert plan_of(root, "learn-subject", "toy", seed=1).state().reasons == ("seed 0 -> 1",)
    other = plan_of(root, "learn-subject", "toy", base={**BASE, "revision": "2" * 64}).state()
    assert other.reasons == ("base sprites@11111111 -> sprites@22222222",)
    assert plan_of(root, "learn-subject", "toy", {"preview_every": 7}).state()           # does not shape the result


def test_what_was_typed_is_not_stale_until_it_is_asked_for_otherwise(root):
    make(root, "learn-subject", "toy", {"steps": 5}, seed=3)
    assert Workspace(root).intended(STAGES["learn-subject"], "toy", BASE).state()
    assert f"steps 5 -> {STEPS}" in plan_of(root, "learn-subject", "toy").state().reasons
    edit(root, "", "{learn-subject: {steps: 7, lambda1: 0.5}}")
    assert Workspace(root).intended(STAGES["learn-subject"], "toy", BASE).state().reasons == ("lambda1 1.0 -> 0.5",)


def test_a_subject_from_the_command_line_alone(root):
    photo = root / "elsewhere.png"
    photo.write_text("x")
    made = make(root, "learn-subject", "cat", request={"class": "cat"}, given={"images": (photo,)},
                files=("lora.safetensors", "token.safetensors", "images/elsewhere.png"))
    assert made.manifest["given"] == ["images"] and list(made.manifest["inputs"]) == ["images/elsewhere.png"]
    project = Workspace(root)
    assert project.subject("cat").class_word == "cat" and "cat" in project.subjects()
    assert project.intended(STAGES["learn-subject"], "cat", BASE).state()


def test_an_error_leaves_the_old_artefact_and_nothing_else(root):
    make(root, "learn-subject", "toy")
    before = snapshot(root / "subjects")
    plan = plan_of(root, "learn-subject", "toy", seed=9)
    with pytest.raises(KeyError), plan.making() as out:
        (out / "lora.safetensors").write_text("half")
        raise KeyError
    assert snapshot(root / "subjects") == before and not list((root / ".partial").rglob("out-*"))
    with pytest.raises(OutOfResources, match="disk"), plan.making():
        raise OSError(28, "No space left on device")
    assert snapshot(root / "subjects") == before


def test_files_that_are_no_longer_made_go(root):
    make(root, "learn-subject", "toy", files=("lora.safetensors", "extra/old.png"))
    made = make(root, "learn-subject", "toy", files=("lora.safetensors", "extra/new.png"), seed=1)
    assert {path.relative_to(made.folder).as_posix() for path in made.folder.rglob("*") if path.is_file()} == {
        "lora.safetensors", "extra/new.png", "learn-subject.json"}


def test_checkpoints_stay_with_their_identity(root):
    plan = plan_of(root, "learn-subject", "toy")
    with pytest.raises(Interrupted), plan.making():
        plan.checkpoints.mkdir(parents=True)
        (plan.checkpoints / "step-1").write_text("x")
        raise Interrupted("stopped")
    assert (plan_of(root, "learn-subject", "toy").checkpoints / "step-1").exists()
    assert plan_of(root, "learn-subject", "toy", seed=1).checkpoints != plan.checkpoints
    make(root, "learn-subject", "toy")
    assert not plan.checkpoints.exists()


def test_what_killed_processes_had_half_written_is_swept(root):
    places = [root, root / "scores", root / ".partial", root / ".partial" / "fuse-pet+toy",
              root / ".partial" / "fuse-pet+toy" / "checkpoints-0123456789abcdef"]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        (place / f".step-7.safetensors.{lock.here()}-{2 ** 22 + 1}-9.partial").touch()
        (place / f".step-8.safetensors.{lock.here()}-{os.getpid()}-9.partial").touch()              # of one at work
        (place / ".mine.partial").touch()                                                           # nobody's of ours
    Workspace(root)
    for place in places:
        assert sorted(path.name[:7] for path in place.glob(".*.partial")) == [".mine.p", ".step-8"], place


def test_no_link_is_moved_into_place(root, tmp_path):
    """One that leads inside from where it lies could lead out of the project from where it is moved to."""
    (root / "harmless").write_text("")
    ready = root / ".partial" / "x" / "ready"
    ready.mkdir(parents=True)
    (ready / "attempts.jsonl").symlink_to("../../../harmless")
    (ready / ".manifest").write_text("{}")
    (ready / ".commit").write_text(json.dumps({"folder": "sweeps/g", "manifest": "sweeps/g/m.json", "gone": []}))
    with pytest.raises(Refused, match="attempts.jsonl is a link"):
        Workspace(root)
    assert not (root / "sweeps").exists()
    (root / "sweeps").mkdir()
    (root / "sweeps" / "attempts.jsonl").symlink_to("../harmless")
    with pytest.raises(Refused, match="is a link"):
        store.append(root / "sweeps" / "attempts.jsonl", ["{}"])
    assert (root / "harmless").read_text() == ""


def test_what_a_run_is_of_stays_what_it_was_at_its_beginning(root):
    """A photo that is exchanged meanwhile: what has been learned of the old one is not gone on with for the new one."""
    plan = plan_of(root, "learn-subject", "toy")
    with plan.making() as out:
        folder, identity = plan.checkpoints, plan.identity
        (root / "photos" / "toy" / "1.png").write_text("another")
        (out / "lora.safetensors").write_text("of the old photo")
        assert (plan.checkpoints, plan.identity) == (folder, identity)
    assert plan.checkpoints != folder and plan.recorded()["identity"] == identity
    assert plan_of(root, "learn-subject", "toy").state().kind == "stale"


def test_a_line_that_a_crash_cut_short_stays_a_line_of_its_own(tmp_path):
    path = tmp_path / "sweeps" / "attempts.jsonl"
    store.append(path, ["one", "two"])
    path.write_bytes(path.read_bytes()[:-2])                             # killed before the end of its second line
    store.append(path, ["three"])
    store.append(path, ["four"])
    assert path.read_text() == "one\ntw\nthree\nfour\n"


def test_missing_inputs_name_the_next_command(root):
    with pytest.raises(MissingPrerequisite, match="subject LoRA 'pet'.*Run: videomage learn-subject pet") as refused:
        make(root, "fuse", "pet+toy")
    assert refused.value.exit_code == 4
    (root / "clip.mp4").unlink()
    with pytest.raises(BadInput, match="clip of the motion 'chase'.*nothing at clip.mp4"):
        make(root, "segment", "motions/chase")


def test_a_project_can_be_moved_without_its_sources(root, tmp_path_factory):
    for name in ("toy", "pet"):
        make(root, "learn-subject", name, files=("lora.safetensors", "token.safetensors"))
        shutil.copytree(root / "photos" / name, root / "subjects" / name / "images")
    other = tmp_path_factory.mktemp("mail") / "project"
    shutil.copytree(root, other)
    shutil.rmtree(other / "photos")
    assert states(other)["learn-subject toy"]
    assert str(root) not in (other / "subjects/toy/learn-subject.json").read_text()


# -- locks ------------------------------------------------------------------------------------------------------------
def test_one_writer_for_one_artefact(root):
    with plan_of(root, "learn-subject", "toy").making() as out:
        (out / "lora.safetensors").write_text("x")
        with pytest.raises(Locked, match=f"process {os.getpid()}") as refused:
            make(root, "learn-subject", "toy", seed=4)
        make(root, "learn-subject", "pet")                # another artefact of the project is free
    assert refused.value.exit_code == 5


def test_the_kernel_frees_the_lock_of_a_dead_process(tmp_path):
    code = ("import os, sys; from pathlib import Path; from stages.core.lock import locked\n"
            f"with locked(Path({str(tmp_path / 'x.lock')!r}), 'x'): os._exit(0)")
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "x.lock").exists()
    with locked(tmp_path / "x.lock", "x"):
        pass


def test_waiting_for_a_lock_ends_with_the_holder_or_on_request(tmp_path):
    path, order = tmp_path / "x.lock", []

    def other():
        with locked(path, "x", wait=True):
            order.append("other")

    with locked(path, "x"):
        thread = threading.Thread(target=other)
        thread.start()
        time.sleep(0.1)
        order.append("first")
        reports.ask_to_stop()
        try:
            with pytest.raises(Interrupted), locked(path, "x", wait=True):
                pass
        finally:
            reports.clear_stop()
    thread.join(5)
    assert order[0] == "first"


def test_a_lock_file_that_was_removed_is_not_trusted(tmp_path):
    path = tmp_path / "x.lock"
    stale_handle = os.open(path, os.O_RDWR | os.O_CREAT)
    path.unlink()
    fcntl.flock(stale_handle, fcntl.LOCK_EX)
    with locked(path, "x"):
        assert path.exists()
    os.close(stale_handle)


# -- names ------------------------------------------------------------------------------------------------------------
def test_sample_names_follow_the_order_and_what_was_typed(root):
    stage = STAGES["sample"]

    def name(typed=None, *, seed=0, reserve=True, **order):
        project = Workspace(root)
        return project.sample_name(stage, resolve("sample", project.settings, typed), request={**ORDER, **order},
                                   seed=seed, reserve=reserve)

    assert name(reserve=False) == name() == name() == "0001-toy-is-chasing-pet"
    assert name({"beta": 0})[:4] == "0002" and name(seed=1)[:4] == "0003" and name(motion=None)[:4] == "0004"
    assert name({"beta": 0})[:4] == "0002"
    make_all(root)
    assert name() == "0001-toy-is-chasing-pet"
    edit(root, "", "{sample: {steps: 3}}")
    assert name() == "0001-toy-is-chasing-pet"           # the project's own order: made again in its place


def test_subject_keys_are_sorted_and_safe(root):
    assert fused_name(["toy", "dog", "toy"]) == "dog+toy"
    for bad in ("../x", "/x", "~x", "a/../b"):
        with pytest.raises(Refused) as refused:
            fused_name([bad, "toy"])
        assert refused.value.exit_code == 8
    with pytest.raises(BadInput, match="did you mean 'toy'"):
        Workspace(root).subject("toyy")


def test_photos_come_in_natural_order_from_files_folders_and_globs(root):
    project = Workspace(root)
    assert [path.name for path in project.photos("toy")] == ["1.png", "2.png", "10.png"]
    edit(root, "images: photos/toy", "images: [photos/toy/1*.png, photos/pet/2.png]")
    assert [str(path.relative_to(root)) for path in Workspace(root).photos("toy")] == [
        "photos/toy/1.png", "photos/toy/10.png", "photos/pet/2.png"]


# -- project.yaml -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("data, hint", [
    ({"subject": {}}, "did you mean 'subjects'"), ({"subjects": {"toy": {"clas": "x"}}}, "did you mean 'class'"),
    ({"subjects": {"toy": {}}}, "no class"), ({"subjects": ["toy"]}, "should be a mapping"),
    ({"subjects": {"a b": {"class": "x"}}}, "not a plain name"), ({"prompts": 3}, "text or a list"),
    ({"motion": {"clips": "x"}}, "did you mean 'clip'"), ({"base": 3}, "base should be")])
def test_mistakes_are_named(data, hint):
    with pytest.raises(BadInput) as refused:
        parse(data)
    assert hint in str(refused.value)


def test_broken_yaml_names_its_line(tmp_path):
    (tmp_path / "project.yaml").write_text("base: sprites\nsubjects: {toy: [\n")
    with pytest.raises(BadInput, match="project.yaml, line 3 is not YAML"):
        Workspace(tmp_path)
    with pytest.raises(MissingPrerequisite, match="videomage init"):
        Workspace(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="there already"):
        Workspace.create(tmp_path)


def test_a_damaged_manifest_is_named(root):
    made = make(root, "learn-subject", "toy")
    (made.folder / "learn-subject.json").write_text(json.dumps({"stage": "learn-subject"}))
    with pytest.raises(BadInput, match="learn-subject.json is damaged"):
        plan_of(root, "learn-subject", "toy").state()


def test_several_motions_and_a_preset(tmp_path):
    root = tmp_path / "p"
    two = {"run": {"clip": "run.mp4", "prompt": "a [dog] runs"}, "hop": {"clip": "hop.mp4", "prompt": "a [cat] hops"}}
    project = Workspace.create(root, motions=two)
    assert project.motions() == ["run", "hop"] and project.motion("hop").prompt == "a [cat] hops"
    assert project.plan(STAGES["segment"], "motions/hop").inputs["clip"] == root / "hop.mp4"
    with pytest.raises(BadInput, match="names no motion"):
        project.motion()
    assert parse({"motions": {"run": two["run"]}}).motion.name == "run"
    for data, what in (({"motion": {"name": "run"}, "motions": two}, "'run' stands under motion and under motions"),
                       ({"motions": {"run": {"name": "x"}}}, "unknown key 'name' in motions.run"),
                       ({"preset": "papers"}, "no preset 'papers'")):
        with pytest.raises(BadInput, match=what):
            parse(data)
    paper, tuned = (resolve("fuse", parse({"preset": name})) for name in ("paper", "tuned"))
    assert (paper.lambda_mix, paper.cuts, paper.steps) == (0, "videos", 300) and tuned.lambda_mix > 0
    assert paper.rate == tuned.rate != FuseOptions().rate                 # what the size of the base asks for stays


def test_while_nothing_changes_a_state_is_found_out_once(root, monkeypatch):
    make_all(root)
    (root / "photos/toy/2.png").write_text("another")
    project, wanted, asked = Workspace(root), states(root), []
    intended = Workspace.intended
    monkeypatch.setattr(Workspace, "intended", lambda self, stage, name, base=None: asked.append((stage.name, name))
                        or intended(self, stage, name, base))
    with project.looking():
        found = {f"{stage.name} {name}": project.state_of(stage, name, BASE)
                 for stage in STAGES.values() for name in stage.names(project)}
    assert found == wanted and max(map(asked.count, asked)) <= 2          # with the base, and for eval without it
    (root / "photos/toy/2.png").write_text("toy 2")
    assert project.state_of(STAGES["learn-subject"], "toy", BASE), "outside, the project is looked at again"


def test_what_steps_are_counted_for_shapes_only_what_it_changes(root):
    def shaped(name, **typed):
        return "steps_per" in plan_of(root, "fuse", name, {"steps_per": "pair", **typed}).settings()

    assert shaped("cat+pet+toy") and not shaped("pet+toy") and not shaped("cat+pet+toy", steps=0)
