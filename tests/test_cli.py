"""The command line: flags, exit codes, what goes to stdout; in a process of its own only where it must be."""
from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from stages import STAGES
from stages.core import report as reports
from stages.core.errors import NumericError, OutOfResources
from stages.core.workspace import Workspace
from videomage_cli import console, refuse_foreign_stages
from videomage_cli.app import _on_ctrl_c, _on_sigterm, app
from videomage_cli.doctor import pick_device
from videomage_cli.words import spread, words

ROOT = Path(__file__).parent.parent
COMMANDS = ("init", "status", "doctor", "demo", "fetch", "export", "sweep", *STAGES)
QUICK = {"segment": {"segmenter": "given", "masks": "drawn"},
         "invert": {"token_steps": 1, "token_batch": 1, "inversion_steps": 2},
         "learn-subject": {"steps": 2, "rank": 2, "auxiliary_count": 1, "video_steps": 1, "preview_every": 0},
         "learn-motion": {"steps": 1, "rank": 2}, "sample": {"steps": 2, "tau": 1}}


@pytest.fixture
def project(tmp_path, base_folder) -> Path:
    """On the tiny base: photos of noise, a clip of noise, masks drawn by hand."""
    from stages.core.video import read_clip, write_images, write_masks, write_video

    rng = np.random.default_rng(0)
    Workspace.create(
        tmp_path, base=str(base_folder), options=QUICK,
        subjects={name: {"class": name, "images": f"photos/{name}"} for name in ("toy", "dog")},
        motion={"name": "riding", "clip": "ref.mp4", "prompt": "a [person] is riding a [horse]"},
        prompts=["<toy> is riding <dog>"])
    for name in ("toy", "dog"):
        write_images(tmp_path / "photos" / name, rng.integers(0, 255, (2, 32, 32, 3), dtype=np.uint8))
    write_video(tmp_path / "ref.mp4", rng.integers(0, 255, (4, 32, 32, 3), dtype=np.uint8))
    frames = read_clip(tmp_path / "ref.mp4")
    for k, name in enumerate(("person", "horse")):
        masks = np.zeros(frames.shape[:3], bool)
        masks[:, :, k * masks.shape[2] // 2:(k + 1) * masks.shape[2] // 2] = True
        write_masks(tmp_path / "drawn" / name, masks)
    return tmp_path


def run(project: Path, *args: str, code: int = 0):
    """Run a command in this process -> (stdout, stderr)."""
    done = CliRunner().invoke(app, [*args, "-p", str(project)])
    assert done.exit_code == code, (done.stdout, done.stderr, done.exception)
    return done.stdout, " ".join(done.stderr.split())


def own_process(*args: str, **how) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "videomage_cli.app", *args], capture_output=True, text=True, **how)


def snapshot(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


# -- what loads no torch ----------------------------------------------------------------------------------------------
def test_help_and_status_load_no_torch(tmp_path):
    """Every --help, init, status, a dry run and a refusal; then: is torch there?"""
    code = f"""
import sys
from typer.testing import CliRunner
from videomage_cli.app import app
for name in {COMMANDS!r}:
    assert CliRunner().invoke(app, [name, "--help"]).exit_code == 0, name
at = ["-p", {str(tmp_path)!r}]
for args in (["init"], ["status"], ["status", "--json"], ["fuse", "--dry-run"], ["segment"], ["sample", "--dry-run"]):
    CliRunner().invoke(app, [*args, *at])
print(sorted({{"torch", "numpy", "diffusers", "transformers"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]" and (tmp_path / "project.yaml").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_takes_less_than_a_second(command):
    """Of processor time, which a busy machine does not stretch."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = own_process(command, "--help", check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "Usage" in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_a_foreign_stages_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "__init__.py").write_text("raise RuntimeError('not ours')")
    done = own_process("--help", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and str(tmp_path / "stages") in done.stderr
    refuse_foreign_stages()                               # ours is fine
    with pytest.raises(SystemExit):
        refuse_foreign_stages(tmp_path)


# -- flags ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("typed", [["--subjects", "a", "b"], ["--subjects", "a", "--subjects", "b"],
                                   ["--subjects", "a,b"], ["--subjects=a", "b"], ["--subjects=a,b"]])
@pytest.mark.parametrize("after", [[], ["--steps", "3"], ["-p", "x"], ["--", "c"]])
def test_spread(typed, after):
    done = spread([*typed, *after])
    assert done[len(done) - len(after):] == after
    given = [part.removeprefix("--subjects=") for part in done[:len(done) - len(after)] if part != "--subjects"]
    assert words(given) == ["a", "b"]


@pytest.mark.parametrize("typed", [["--subjects", "dog", "toy"], ["--subjects", "toy", "--subjects", "dog"],
                                   ["--subjects", "toy,dog"], []])
def test_fuse_takes_its_subjects_in_every_form(project, typed):
    for name in ("toy", "dog"):
        folder = project / "subjects" / name
        folder.mkdir(parents=True)
        for file in ("lora", "token"):
            (folder / f"{file}.safetensors").write_text("x")
    (row,) = json.loads(run(project, "fuse", *typed, "--dry-run", "--json")[0])
    assert (row["name"], row["would"], row["path"]) == ("dog+toy", "make", str(project / "fused/dog+toy"))


@pytest.mark.parametrize("args, code, sentence", [
    (["fuse", "--subjects", "toy"], 2, "two subjects or more"),
    (["fuse", "--subjects", "toy", "dgo"], 3, "Did you mean 'dog'"),
    (["fuse"], 4, "Run: videomage learn-subject"), (["fuse", "--rate", "0"], 2, "above 0"),
    (["sample", "--dtype", "fp8"], 2, "fp32, amp, bf16"), (["segment", "nowhere.mp4"], 2, "no file nowhere.mp4"),
    (["segment", "ridding"], 2, "Did you mean 'riding'"), (["invert"], 4, "Run: videomage segment riding"),
    (["invert", "walking"], 3, "There is: riding"), (["learn-subject", "cat"], 2, "--class WORD"),
    (["learn-subject", "--class", "cat"], 2, "type the name"), (["eval"], 4, "videomage sample"),
    (["sample", "--prompt", "<cat> is riding"], 3, "no subject 'cat'"),
    (["fuse", "--subjects", "../x", "toy"], 8, "leave")])
def test_refusals(project, args, code, sentence):
    out, err = run(project, *args, code=code)
    assert sentence.lower() in err.lower() and "Traceback" not in err and not out
    assert not (project / "fused").exists()


def test_how_the_base_runs_is_told_to_the_stage(project, monkeypatch):
    """And to those stages alone that have a base."""
    seen = {}
    monkeypatch.setattr("stages.learn_subject.learn_subject", lambda *args, **how: seen.update(how) or [])
    run(project, "learn-subject", "toy", "--compile", "--dtype", "amp")
    assert (seen["compiled"], seen["low_memory"], seen["dtype"]) == (True, False, "amp")
    run(project, "learn-subject", "toy", "--low-memory")
    assert (seen["compiled"], seen["low_memory"]) == (False, True)
    assert "--compile" in run(project, "sample", "--help")[0]
    assert "--compile" not in run(project, "segment", "--help")[0]


@pytest.mark.parametrize("args, sentence", [(["--subjects", "toy", "pat"], "Did you mean 'pet'"),
                                            (["--motion", "chaes"], "Did you mean 'chase'")])
def test_the_demo_refuses_what_its_world_does_not_have(tmp_path, args, sentence):
    done = CliRunner().invoke(app, ["demo", str(tmp_path / "demo"), *args])
    assert done.exit_code == 2 and sentence in done.stderr and not (tmp_path / "demo").exists()


def test_init_writes_a_project_that_can_be_read(tmp_path, base_folder):
    out, _ = run(tmp_path / "new", "init", "--base", str(base_folder))
    assert out.strip() == str(tmp_path / "new" / "project.yaml")
    assert Workspace(tmp_path / "new").settings.base == str(base_folder)
    assert "already" in run(tmp_path / "new", "init", code=3)[1]
    run(tmp_path / "other", "init", "--base", "nothing-here", code=3)


# -- a stage at a time ------------------------------------------------------------------------------------------------
def test_stages_by_hand(project):
    """Segment, invert and two more by command; again, which touches no file; a changed option; --force; status."""
    out, _ = run(project, "segment")
    assert out.strip() == str(project / "motions/riding/masks") and (project / "motions/riding/overlay.png").exists()
    for args in (["invert"], ["learn-subject"], ["learn-motion"]):
        run(project, *args)
    assert {path.name for path in (project / "subjects").iterdir()} == {"toy", "dog"}
    (made,) = json.loads(run(project, "sample", "--prompt", "<toy> is riding a horse", "--json")[0])
    assert made["name"] == "0001-toy-is-riding-a-horse" and made["made"] and Path(made["path"]).name == "video.mp4"
    before = snapshot(project)
    again = ["sample", "--prompt", "<toy> is riding a horse"]
    for args in (["segment"], ["invert"], ["learn-subject"], ["learn-motion"], again):
        assert "fresh: nothing to do" in run(project, *args)[1]
    assert snapshot(project) == before
    found = json.loads(run(project, "status", "--json")[0])
    kinds = {(row["stage"], row["name"]): row["state"] for row in found["artefacts"]}
    assert kinds[("invert", "riding")] == kinds[("sample", made["name"])] == "fresh"
    assert kinds[("fuse", "dog+toy")] == kinds[("sample", "<toy> is riding <dog>")] == "missing"
    assert {"stage": "invert", "option": "inversion_steps", "value": 2, "paper": 50, "why": "project.yaml"} in found[
        "differs_from_paper"]
    path = project / "project.yaml"
    path.write_text(path.read_text().replace("token_steps: 1", "token_steps: 2"))
    rows = {(row["stage"], row["name"]): row for row in json.loads(run(project, "status", "--json")[0])["artefacts"]}
    assert {key for key, row in rows.items() if row["state"] == "stale"} == {
        ("invert", "riding"), ("learn-motion", "riding"), ("sample", made["name"])}
    assert rows[("invert", "riding")]["reasons"] == ["token_steps 1 -> 2"]
    assert "stale" in run(project, "learn-motion", "--w", "0", code=4)[1]
    assert snapshot(project).keys() == before.keys()
    run(project, "segment", "--force")
    assert snapshot(project)[project / "motions/riding/segment.json"] > before[project / "motions/riding/segment.json"]


def test_sigterm_finishes_the_step_saves_it_and_exits_75(project):
    command = [sys.executable, "-m", "videomage_cli.app", "learn-subject", "toy", "-p", str(project)]
    how = {"stderr": subprocess.PIPE, "text": True, "env": {**os.environ, "OMP_NUM_THREADS": "1"}}
    with subprocess.Popen([*command, "--steps", "99999"], **how) as process:
        for line in process.stderr:
            if re.search(r"learn-subject: \d+ of 99999", line):
                break
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
    assert process.returncode == 75 and "Traceback" not in rest and "same command" in rest, rest
    assert not (project / "subjects").exists() and not list((project / ".partial").rglob("*.lock"))
    assert list((project / ".partial").rglob("step-*.safetensors"))


def test_sigterm_ends_what_has_no_steps_at_once(monkeypatch, capsys):
    monkeypatch.setattr(console, "terminated", False)
    before = signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        with pytest.raises(typer.Exit) as left, console.guarded():
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("it went on")
        assert left.value.exit_code == 75 and "same command" in capsys.readouterr().err
    finally:
        signal.signal(signal.SIGTERM, before)
        reports.clear_stop()


def test_a_second_ctrl_c_stops_at_once(monkeypatch, capfd):
    monkeypatch.setattr(console, "ctrl_c", False)
    try:
        with reports.stoppable():
            _on_ctrl_c()
            assert reports.asked_to_stop() and "Ctrl-C again stops at once" in capfd.readouterr().err
            with pytest.raises(KeyboardInterrupt):
                _on_ctrl_c()
    finally:
        reports.clear_stop()


# -- errors -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("error, code", [
    (NumericError("step 3: loss nan", "lower the rate"), 7), (OutOfResources("memory ran out"), 6), (MemoryError(), 6),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 6), (OSError(28, "No space left"), 6),
    (KeyboardInterrupt(), 130), (ZeroDivisionError("division by zero"), 1)])
def test_errors_become_sentences_and_codes(error, code, capsys, monkeypatch):
    monkeypatch.delenv("VIDEOMAGE_DEBUG", raising=False)
    with pytest.raises(typer.Exit) as left, console.guarded():
        raise error
    caught = capsys.readouterr()
    assert left.value.exit_code == code and not caught.out and "Traceback" not in caught.err and caught.err
    if not isinstance(error, KeyboardInterrupt):
        monkeypatch.setenv("VIDEOMAGE_DEBUG", "1")
        with pytest.raises(type(error)), console.guarded():
            raise error


def test_out_of_device_memory_is_six():
    import torch

    with pytest.raises(typer.Exit) as left, console.guarded():
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert left.value.exit_code == 6


def test_devices_are_checked():
    import torch

    assert pick_device("cpu") == "cpu" and pick_device("auto") in ("cpu", "cuda")
    for name, hint in (("cuda:99", "not there"), ("gpu", "no kind of device")):
        with pytest.raises(Exception, match=hint):
            pick_device(name)
    assert torch.device(pick_device("auto"))


def test_talk_without_a_terminal(capsys):
    with console.Talk("fuse") as report:
        for step in range(1, 101):
            report(step=step, of=100, loss=1 / step)
        report(note="a [bracketed] note")
        for call in ("<toy>", "<pet>"):                         # one that was spoken of does not silence the other
            report(call=call, step=1, of=9)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["fuse: 1 of 100 loss=1", "fuse: 100 of 100 loss=0.01", "fuse: a [bracketed] note",
                     "fuse: <toy>: 1 of 9", "fuse: <pet>: 1 of 9"]


def test_the_stop_flag():
    assert not reports.asked_to_stop()
    reports.ask_to_stop()
    assert reports.asked_to_stop()
    reports.clear_stop()


# -- the example ------------------------------------------------------------------------------------------------------
STUB = '''
import sys, time
from pathlib import Path
from stages import STAGES
from stages.core.workspace import Workspace

command, *rest = sys.argv[1:]
force, names = "--force" in rest, [word for word in rest if not word.startswith("--")]
project, stage = Workspace("."), STAGES[command]
base, request = {"name": "sprites", "revision": "0"}, None
name = {"segment": "motions/chase", "fuse": "pet+toy"}.get(command, names[0] if names else "chase")
if command == "sample":
    request = {"prompt": project.settings.prompts[0], "subjects": ["pet", "toy"], "motion": "chase"}
    name = project.sample_name(stage, stage.intent(project.settings), request=request, seed=0)
plan = project.plan(stage, name, base=base, request=request)
if not plan.state() or force:
    with Path("log").open("a") as log:
        log.write(f"{command} {name}\\n")
    with plan.making(force=force) as out:
        for file in (*stage.files, *(["clip.mp4", "frames.json", "frames/0.png"] if command == "segment" else [])):
            path = out / ("masks/circle/0.png" if file == "masks" else file.format(name=name))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(plan.identity)
        if command == "learn-subject" and Path("together").exists():
            (out.parent.parent / f"{name}.here").touch()
            other = out.parent.parent / f"{'pet' if name == 'toy' else 'toy'}.here"
            until = time.monotonic() + 20
            while not other.exists():
                assert time.monotonic() < until, "the other subject is not being learned at the same time"
                time.sleep(0.02)
'''


@pytest.fixture
def example(tmp_path) -> Path:
    for file in ("Makefile", "project.yaml"):
        shutil.copy(ROOT / "examples/sprites" / file, tmp_path)
    (tmp_path / "stub.py").write_text(STUB)
    for name in ("toy", "pet"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for k in range(4):
            (tmp_path / f"photos/{name}/{k}.png").write_text(f"{name} {k}")
    (tmp_path / "clip.mp4").write_text("a clip")
    return tmp_path


def make(folder: Path, *flags: str) -> list[str]:
    """Run make with stages that write a line instead of learning -> what ran, in order."""
    (folder / "log").unlink(missing_ok=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    done = subprocess.run(["make", *flags, f"VIDEOMAGE={sys.executable} stub.py"], cwd=folder, capture_output=True,
                          text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return (folder / "log").read_text().splitlines() if (folder / "log").exists() else []


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_the_example_chains_the_stages(example):
    """-j2 learns both subjects at once; then nothing; a photo or an option rebuilds what depends on it and no more."""
    name = "0001-a-toy-is-chasing-a-pet-in-the-snow"
    after_fuse = ["fuse pet+toy", f"sample {name}", f"eval {name}"]
    (example / "together").touch()
    assert set(make(example, "-j2")) == {"segment motions/chase", "invert chase", "learn-motion chase",
                                         "learn-subject toy", "learn-subject pet", *after_fuse}
    (example / "together").unlink()
    assert make(example) == []
    (example / "photos/toy/2.png").touch()
    assert make(example) == ["learn-subject toy", *after_fuse]
    (example / "photos/pet/0.png").write_text("another")
    assert make(example) == ["learn-subject pet", *after_fuse]
    with (example / "project.yaml").open("a") as file:
        file.write("options: {fuse: {steps: 7}}\n")
    assert make(example) == after_fuse
    assert make(example) == [] and subprocess.run(["make", "-q"], cwd=example).returncode == 0
