"""What a stage will take, as the command line tells it: --dry-run, doctor --plan, and when memory ran out."""
from __future__ import annotations

import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from stages.backbones import Video, shape_of, video
from stages.backbones.bases import SHAPE
from stages.core.settings import Settings
from stages.core.video import write_images
from stages.core.workspace import Workspace
from stages.options import resolve
from videomage_cli.app import app
from videomage_cli.doctor import pick_dtype
from videomage_cli.estimates import Setting, advice, gib, span


@pytest.fixture(autouse=True)
def nobodys_caches(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setenv("VIDEOMAGE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def run(*typed, code=0):
    done = CliRunner().invoke(app, [str(word) for word in typed])
    assert done.exit_code == code, (done.stdout, done.stderr, done.exception)
    return done.stdout, " ".join(done.stderr.split())


def test_a_known_base_is_planned_before_it_is_fetched(tmp_path):
    """Its shape comes with the package."""
    assert shape_of("zeroscope") == SHAPE and video("zeroscope") == Video(24, 8, 320, 576)
    run("init", "--base", "zeroscope", "-p", tmp_path)
    out, _ = run("doctor", "--plan", "sample", "--dtype", "bf16", "--device", "cpu", "--json", "-p", tmp_path)
    planned = json.loads(out)
    assert set(planned["phases"]) == {"sampling", "guiding", "decoding"} and planned["device"] == "cpu"
    assert planned["peak_bytes"] == max(planned["phases"].values()) > 2 * 1.41e9          # the weights alone
    peaks = list(planned["knobs"].values())
    assert peaks == sorted(peaks) and max(peaks) < planned["peak_bytes"] and "--low-memory" in planned["knobs"]
    low, _ = run("doctor", "--plan", "sample", "--dtype", "bf16", "--device", "cpu", "--json", "-p", tmp_path,
                 "--low-memory")
    assert json.loads(low)["peak_bytes"] == planned["knobs"]["--low-memory"]


def test_the_plan_in_words(tmp_path):
    out, _ = run("doctor", "--plan", "learn-motion", "--base", "zeroscope", "--dtype", "fp16", "-p", tmp_path)
    for words in ("CC-BY-NC-4.0", "576x320, 24 frames", "learning", "within 15%", "--low-memory", "fit", "frames: 16"):
        assert words in out, words
    _, said = run("doctor", "--plan", "sampel", "-p", tmp_path, code=2)
    assert "Did you mean 'sample'" in said
    _, said = run("doctor", "--low-memory", "-p", tmp_path, code=2)
    assert "--plan" in said


@pytest.mark.parametrize("stage", ["invert", "learn-subject", "learn-motion", "fuse", "sample"])
def test_each_knob_does_what_it_promises(stage):
    """Turned together, they need no more than the best of them alone; none makes it worse."""
    settings = Settings(base="zeroscope")
    setting = Setting(stage, resolve(stage, settings), settings, "fp32", False)
    whole, knobs = setting.estimate(), setting.knobs()
    assert knobs and all(found.peak_bytes < whole.peak_bytes for _, found in knobs)
    assert knobs[0][0] in advice(setting).split(": ", 1)[1].split("; ")[0] and gib(whole.peak_bytes) in advice(setting)
    assert Setting(stage, setting.options, settings, "bf16", True).estimate().peak_bytes <= knobs[0][1].peak_bytes


def test_a_dry_run_says_what_it_would_take(tmp_path, base_folder):
    Workspace.create(tmp_path, base=str(base_folder), subjects={"toy": {"class": "toy", "images": "photos"}})
    write_images(tmp_path / "photos", np.zeros((2, 32, 32, 3), np.uint8))
    _, said = run("learn-subject", "toy", "--dry-run", "-p", tmp_path)
    assert "learn-subject 'toy': make" in said and "memory at its peak about" in said and "between" in said
    (row,) = json.loads(run("learn-subject", "toy", "--dry-run", "--json", "-p", tmp_path)[0])
    (less,) = json.loads(run("learn-subject", "toy", "--dry-run", "--json", "--low-memory", "--steps", "30", "-p",
                             tmp_path)[0])
    assert less["needs"]["peak_bytes"] < row["needs"]["peak_bytes"] and not (tmp_path / "subjects").exists()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_when_memory_runs_out_the_knobs_are_named_by_their_effect(tmp_path, base_folder, monkeypatch, error):
    def fails(*args, **kwargs):
        raise error

    Workspace.create(tmp_path, base=str(base_folder), subjects={"toy": {"class": "toy", "images": "photos"}})
    write_images(tmp_path / "photos", np.zeros((2, 32, 32, 3), np.uint8))
    monkeypatch.setattr("stages.learn_subject.learn_subject", fails)
    _, said = run("learn-subject", "toy", "--batch", "64", "--device", "cpu", "-p", tmp_path, code=6)
    knobs = said.split("most effective first: ")[1]
    assert "memory ran out" in said and {"--low-memory", "--dtype bf16", "--batch 1"} <= {
        part.split(" (")[0] for part in knobs.split("; ")}


@pytest.mark.parametrize("computes", [True, False])
def test_the_dtype_that_auto_stands_for(monkeypatch, computes):
    """Seen without a GPU: which device is asked, and what follows."""
    asked = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext(asked.append(device)))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: computes or including_emulation)
    assert pick_dtype("auto", "cuda:1,cuda:2", "zeroscope") == ("bf16" if computes else "fp16") and asked == ["cuda:1"]
    assert pick_dtype("auto", "cuda", "sprites") == pick_dtype("auto", "cpu", "zeroscope") == "fp32"
    assert pick_dtype("fp16", "cpu", "sprites") == "fp16" and pick_dtype("amp", "cuda", "zeroscope") == "amp"


def test_units():
    assert (gib(3 * 2**30), gib(5 * 2**20)) == ("3.0 GiB", "5 MiB")
    assert [span(s) for s in (30, 600, 7200, 10**6)] == ["30 s", "10 min", "2 h", "12 days"]
