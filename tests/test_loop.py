"""The optimisation loop: what it saves, what it goes on from, what it says of numbers that go wrong."""
from __future__ import annotations

import csv
import math
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stages.core import divergence
from stages.core import report as reports
from stages.core.errors import Interrupted, NumericError, OutOfResources
from stages.core.train import adamw, fit

GOAL = torch.linspace(-1, 1, 12).reshape(3, 4)


def train(folder: Path | None, steps: int = 12, *, rate: float = 0.1, losses=None, **how) -> tuple[torch.Tensor, list]:
    """(the weights, the curve) of a run towards GOAL that draws noise at every step."""
    w = torch.zeros(3, 4, requires_grad=True)

    def usual(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        loss = (w - GOAL - torch.randn(3, 4, generator=generator)).square().mean()
        return {"loss": loss, "part": loss / 2}

    curve = fit({"w": w}, (lambda step, g: losses(w, step)) if losses else usual, optimizer=adamw([w], rate),
                steps=steps, seed=3, checkpoints=folder, identity="x", **how)
    return w.detach(), curve


def stopping_after(step: int):
    seen = []
    return lambda: seen.append(1) or len(seen) >= step


def test_checkpoints_by_steps_the_newest_two_are_kept(tmp_path):
    train(tmp_path, every_seconds=math.inf, every_steps=5, steps=12)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000005.safetensors", "step-0000010.safetensors"]
    train(tmp_path / "none", every_seconds=math.inf, every_steps=100, steps=12)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "one bit", "empty", "other shapes", "no curve"])
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_used(tmp_path, damage):
    calm, curve = train(None)
    with pytest.raises(Interrupted):
        train(tmp_path, every_steps=3, stop=stopping_after(7))
    before, newest = sorted(tmp_path.iterdir())
    content = bytearray(newest.read_bytes())
    if damage == "flipped":
        content[9] ^= 0xFF                                                     # in the header
    elif damage == "one bit":
        content[-2] ^= 1                                                       # of a number, which stays one
    elif damage in ("other shapes", "no curve"):
        from safetensors.torch import save_file

        save_file({"value/w": torch.zeros(2)}, newest, {"identity": "x"} | (
            {"curve": "[]"} if damage == "other shapes" else {}))
        content = newest.read_bytes()
    newest.write_bytes({"cut": content[:len(content) // 2], "empty": b""}.get(damage, bytes(content)))
    said = []
    again, rows = train(tmp_path, report=lambda **facts: said.append(facts.get("note")))
    assert torch.equal(again, calm) and rows == curve
    assert newest.name in said[0] and "damaged" in said[0] and said[1] == f"going on from step {int(before.stem[5:])}"


def test_where_all_are_damaged_new_ones_are_kept(tmp_path):
    with pytest.raises(Interrupted):
        train(tmp_path, every_steps=3, stop=stopping_after(9))
    for path in tmp_path.iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(Interrupted):
        train(tmp_path, every_steps=2, stop=stopping_after(5))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000004.safetensors", "step-0000005.safetensors"]
    calm, curve = train(None)
    again, rows = train(tmp_path)
    assert torch.equal(again, calm) and rows == curve


def test_a_loss_that_is_not_finite_stops_before_the_step(tmp_path):
    def losses(w, step):
        return {"loss": (w - GOAL).square().mean() * (math.nan if step == 8 else 1)}

    with pytest.raises(NumericError, match=r"step 8 of 12, learning rate 0\.1, photos 3: loss nan, gradient norm nan"
                       ) as stopped:
        train(tmp_path, losses=losses, batch=lambda step, generator: "photos 3")
    assert stopped.value.exit_code == 7 and [path.name for path in tmp_path.iterdir()] == ["step-0000008.safetensors"]
    good, _ = train(None, 8, losses=losses)
    again, _ = train(tmp_path, 8, losses=losses)                              # what was kept is the last good state
    assert torch.equal(again, good)


def test_a_gradient_that_is_not_finite_stops_too(tmp_path):
    with pytest.raises(NumericError, match="gradient norm nan"):
        train(tmp_path, losses=lambda w, step: {"loss": w.square().sum().sqrt()})          # 0/0 at its start


def test_what_the_stages_name_as_their_batch_is_what_they_draw(backbone, monkeypatch):
    """learn-subject: the photos in the message are those whose latents went into the step."""
    from stages import learn_subject
    from stages.options import LearnSubjectOptions

    latents = torch.stack([torch.full((4, 1, 8, 8), float(k)) for k in range(5)])
    drawn = []

    def broken(backbone, x, *rest, **how):
        drawn.append(sorted(int(row.flatten()[0]) for row in x))
        return x.new_tensor(math.nan, requires_grad=True)

    monkeypatch.setattr(learn_subject, "denoising_loss", broken)
    options = LearnSubjectOptions(steps=2, batch=3, lambda1=0.0, rank=2, alpha=2.0)
    with pytest.raises(NumericError) as stopped:
        learn_subject.learn_subject_tensors(backbone, latents, "toy", "toy", [], options)
    named = re.search(r"photos ([\d, ]+):", stopped.value.what)[1]
    assert sorted(map(int, named.split(", "))) == drawn[0]


# -- divergence -------------------------------------------------------------------------------------------------------
def test_divergence_warns_and_then_stops(tmp_path):
    said = []

    def losses(w, step):
        return {"loss": (w - GOAL).square().mean() * 0 + (1.0 if step < 150 else 1.02 ** (step - 150))}

    with pytest.raises(NumericError, match=r"the run has diverged, the loss of the last 50 steps is .* learning rate"):
        train(tmp_path, 900, losses=losses, report=lambda **facts: said.append(facts.get("note")))
    notes = [note for note in said if note]
    assert len(notes) >= 1 and all("times the best before" in note for note in notes)


@pytest.mark.parametrize("curve", [
    [1.0] * 400,                                                               # learns nothing
    [5.0 / (1 + step / 20) for step in range(400)],                            # learns
    [abs(math.sin(step * 1.7)) * 4 + 0.5 for step in range(400)],              # leaps with t
    [0.1] * 200 + [0.25] * 200])                                               # a little worse
def test_usual_curves_are_no_divergence(curve):
    assert all(divergence.judge(curve[:done]) == ("", "") for done in range(len(curve) + 1))


def test_the_limits_of_divergence():
    assert divergence.judge([1.0] * 100 + [3.1] * 50)[0] == "warn"
    assert divergence.judge([1.0] * 100 + [11.0] * 50)[0] == "stop"
    assert divergence.judge([8.0] * 50 + [1.0] * 50 + [11.0] * 50)[0] == "warn"       # not worse than at its start
    assert divergence.judge([1.0] * 50 + [50.0] * 50) == ("", "")                      # too soon to tell


# -- what stays, and what there must be room for ----------------------------------------------------------------------
def test_the_curve_is_kept_as_csv(tmp_path):
    _, curve = train(None, 5, curve_to=tmp_path / "loss.csv")
    rows = list(csv.DictReader((tmp_path / "loss.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == list("01234") and list(rows[0]) == ["step", "loss", "part"]
    assert [float(row["loss"]) for row in rows] == pytest.approx([row["loss"] for row in curve], rel=1e-5)


def test_no_room_for_checkpoints_is_said_before_the_first_step(tmp_path, monkeypatch):
    """More than any disk has left, of parameters that take no memory."""
    huge = torch.zeros(1, requires_grad=True).expand(2 ** 50)
    with pytest.raises(OutOfResources, match=r"MiB left, and this needs about \d+") as refused:
        fit({"w": huge}, lambda step, g: pytest.fail("a step was taken"), steps=1, seed=0, checkpoints=tmp_path,
            optimizer=torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1))
    assert refused.value.exit_code == 6


# -- Ctrl-C -----------------------------------------------------------------------------------------------------------
def test_loops_say_that_they_can_stop():
    assert not reports.can_stop()
    inside = []
    train(None, 2, stop=lambda: inside.append(reports.can_stop()) or False)
    assert inside == [True, True] and not reports.can_stop()


@pytest.mark.faults
@pytest.mark.parametrize("times, code", [(1, 130), (2, 130)])
def test_ctrl_c_saves_and_a_second_one_stops_at_once(tmp_path, base_folder, times, code):
    import numpy as np
    from test_cli import QUICK

    from stages.core.video import write_images
    from stages.core.workspace import Workspace

    Workspace.create(tmp_path, base=str(base_folder), options=QUICK,
                     subjects={"toy": {"class": "toy", "images": "photos"}})
    write_images(tmp_path / "photos", np.random.default_rng(0).integers(0, 255, (2, 32, 32, 3), dtype=np.uint8))
    command = [sys.executable, "-c", "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
               "from videomage_cli.app import main; main()", "learn-subject", "toy", "-p", str(tmp_path),
               "--steps", "99999"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if re.search(r"learn-subject: \d+ of 99999", line):
                break
        process.send_signal(signal.SIGINT)
        rest = ""
        while "Ctrl-C again stops at once" not in rest:
            rest += process.stderr.readline()
        if times == 2:
            process.send_signal(signal.SIGINT)
        rest += process.stderr.read()
    assert process.returncode == code and "Traceback" not in rest, rest
    saved = list((tmp_path / ".partial").rglob("step-*.safetensors"))
    assert "same command" in rest and (len(saved) == 1 or times == 2)
    assert not (tmp_path / "subjects").exists() and not list((tmp_path / ".partial").rglob("*.lock*"))
