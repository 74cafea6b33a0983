"""A project of a stranger runs no code: a folder with every trick we know of goes through every command, started in it
and from elsewhere, by processes of their own; a canary that any of it would make never comes, and nothing outside
changes."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from hostile import ESCAPES, MARKUP, pickled, tree

from stages import STAGES
from stages.core.jobs import safe_path, side_by_side
from stages.core.workspace import Workspace

ROOT = Path(__file__).parent.parent
JUDGES = ROOT / "stages" / "sprites" / "weights"
MODULES = ("sitecustomize", "usercustomize", "conftest", "torch", "numpy", "yaml", "diffusers", "transformers",
           "stages", "videomage_cli", "multiprocessing", "pickle", "struct", "signal", "tempfile", "encodings", "site",
           "random", "typing", "json", "modeling_mine", "pipeline", "setup", "unet", "PIL", "safetensors", "av", "ray")
TINY = {"segment": {"segmenter": "given", "masks": "drawn"},
        "learn-subject": {"steps": 1, "rank": 2, "auxiliary_count": 1, "video_steps": 1, "preview_every": 0},
        "sample": {"steps": 2, "tau": 1, "branches": "none", "beta": 0.0},
        "eval": {"clip": str(JUDGES / "clip"), "dino": str(JUDGES / "dino"), "segmenter": "none"}}
COMMANDS = (["status"], ["status", "--json"], ["doctor"], ["segment"], ["segment", "--dry-run"], ["invert"],
            ["learn-subject", "toy", "--dry-run"], ["learn-motion"], ["fuse", "--subjects", "toy", "dog"],
            ["sample", "--dry-run"], ["sample", "--motion", "none", "--prompt", "a thing"], ["eval", "--html"],
            ["export", "toy"], ["export", "dog+toy", "--format", "kohya"], ["sweep", "grid.yaml", "--status"],
            ["sweep", "grid.yaml", "--dry-run"])


def bomb(canary: Path) -> str:
    """Python that leaves the canary."""
    return f"open({str(canary)!r}, 'w').close()\nraise SystemExit('a canary')\n"


@pytest.fixture
def strange(tmp_path, base_folder) -> tuple[Path, Path]:
    """(the project, the canary). Beside the project lies what is not its own."""
    from stages.core.video import write_images, write_masks, write_video

    root, canary = tmp_path / "strange", tmp_path / "canary"
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine.txt").write_text("mine")
    rng = np.random.default_rng(0)
    base = shutil.copytree(base_folder, root / "base")
    Workspace.create(root, base="base", options=TINY, prompts=[f"a {MARKUP}"], subjects={
        name: {"class": f"{name} {MARKUP}", "images": f"photos/{name}"} for name in ("toy", "dog")},
        motion={"name": "riding", "clip": "ref.mp4", "prompt": "a [person] is riding a [horse]"})
    for name in ("toy", "dog"):
        write_images(root / "photos" / name, rng.integers(0, 255, (1, 32, 32, 3), dtype="uint8"))
    write_video(root / "ref.mp4", rng.integers(0, 255, (4, 32, 32, 3), dtype="uint8"))
    for name in ("person", "horse"):
        write_masks(root / "drawn" / name, rng.integers(0, 2, (4, 32, 32)).astype(bool))
    for module in MODULES:                                  # modules and packages, in the folder and in those of a base
        for place in (root, base, base / "unet", base / "scheduler", root / "subjects", root / "samples"):
            place.mkdir(exist_ok=True)
            (place / f"{module}.py").write_text(bomb(canary))
        (root / "packages" / module).mkdir(parents=True)
        (root / "packages" / module / "__init__.py").write_text(bomb(canary))
    for name in ("code.pth", "setup.cfg", "pyvenv.cfg", "python311.zip", ".env", "pytest.ini"):
        (root / name).write_text(f"import os; {bomb(canary)}")
    for path in ("subjects/toy/lora.safetensors", "subjects/toy/token.safetensors", "fused/dog+toy/lora.safetensors",
                 "motions/riding/noise.safetensors", ".cache/text/a.safetensors", "base/unet/pytorch_model.bin"):
        pickled(root / path, canary)
    (root / "motions/riding/masks").mkdir()
    (root / "grid.yaml").write_text(yaml.safe_dump({"casts": [["toy", "dog"]], "prompts": ["<1>, <2>"], "motions": []}))
    (root / ".partial/sample-0001-x").mkdir(parents=True)
    (root / ".partial/sample-0001-x/order.json").write_text(json.dumps({"request": {"prompt": ESCAPES}, "seed": [1]}))
    (root / "scores").mkdir()
    (root / "scores/0001-x.json").write_text(json.dumps({"judged": {MARKUP: {ESCAPES: [MARKUP]}}, "prompt": ESCAPES}))
    return root, canary


def videomage(*args: str, cwd: Path, **env: str) -> subprocess.CompletedProcess:
    """The command as it is installed: a script beside Python, so that only its own folder stands first."""
    script = Path(sys.executable).parent / "videomage"
    return subprocess.run([str(script), *args], cwd=cwd, capture_output=True, text=True, errors="replace", timeout=600,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **env}, check=False)


def tried(root: Path, canary: Path, commands, survived) -> dict[str, int]:
    """Every command, in the folder and from elsewhere -> {command: its exit code}."""
    codes = {}
    for args in commands:
        done = videomage(*args, *(["--device", "cpu"] if args[0] in STAGES else []), cwd=root)
        said = done.stdout + done.stderr
        assert not canary.exists(), (args, said)
        assert done.returncode in (0, 2, 3, 4, 8), (args, done.returncode, said)
        assert "Traceback" not in said and "a defect" not in said and "\x1b" not in said, (args, said)
        codes[" ".join(args)] = done.returncode
        survived("a stranger's project", " ".join(args))
    return codes


def test_a_canary_does_not_sing(strange, tmp_path, survived):
    """The commands that load no networks but one, in the folder: Python looks into it for nothing."""
    root, canary = strange
    before = tree(tmp_path / "outside")
    codes = tried(root, canary, (["status"], ["sample", "--motion", "none", "--prompt", "a thing"]), survived)
    assert codes["status"] == 0
    assert codes["sample --motion none --prompt a thing"] == 0 and list((root / "samples").glob("*/video.mp4"))
    assert tree(tmp_path / "outside") == before


@pytest.mark.faults
def test_every_command_in_a_project_of_a_stranger(strange, tmp_path, survived):
    root, canary = strange
    before = tree(tmp_path / "outside")
    codes = tried(root, canary, COMMANDS, survived)
    assert codes["export toy"] == 8 and codes["export dog+toy --format kohya"] == 4, codes       # a pickle; no token
    assert codes["sample --motion none --prompt a thing"] == codes["eval --html"] == 0, codes
    page = (root / "scores/index.html").read_text()
    assert page.count("<script") == 1 and str(tmp_path) not in page
    for text in ("base: !!python/object/apply:os.system ['touch {canary}']", "base: ../outside", "base: a\nbase: b",
                 "subjects: {{toy: {{class: x, images: ../outside}}}}", "motion: {{name: ../../x}}"):
        (root / "project.yaml").write_text(text.format(canary=canary))
        codes = tried(root, canary, (["status"], ["learn-subject"]), survived)
        assert codes["learn-subject"] != 0, (text, codes)
    assert tree(tmp_path / "outside") == before


def test_processes_side_by_side_take_nothing_from_the_folder(tmp_path, survived):
    """What `demo` and `--devices` start by multiprocessing, which is `python -c`: for that Python would look here."""
    canary = tmp_path / "canary"
    for module in MODULES:
        (tmp_path / f"{module}.py").write_text(bomb(canary))
    code = ("import sys; sys.path[:] = [place for place in sys.path if place]\n"
            f"sys.path.insert(0, {str(ROOT)!r}); sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            "from functools import partial\n"
            "from test_hostile_project import work\n"
            "from stages.core.jobs import side_by_side\n"
            "if __name__ == '__main__':\n"
            "    print(side_by_side({'a': partial(work, 1)}, workers=1))\n")
    script = tmp_path / "elsewhere" / "run.py"
    script.parent.mkdir()
    script.write_text(code)
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=600,
                          check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert not canary.exists() and done.returncode == 0 and "{'a': 2}" in done.stdout, done.stderr
    assert "PYTHONSAFEPATH" not in os.environ and side_by_side.__wrapped__
    with safe_path():
        assert os.environ["PYTHONSAFEPATH"] == "1"
    assert "PYTHONSAFEPATH" not in os.environ
    survived("a stranger's project", "processes side by side")


def work(number: int, report) -> int:
    return number + 1


@pytest.mark.faults
def test_workers_of_a_sweep_take_nothing_from_the_folder(tmp_path, survived):
    pytest.importorskip("ray")
    from sweeping import make_project

    root, canary = make_project(tmp_path / "p"), tmp_path / "canary"
    for module in ("torch", "diffusers", "transformers", "yaml", "peft", "accelerate", "stages", "numpy"):
        (root / f"{module}.py").write_text(bomb(canary))
    done = videomage("sweep", "grid.yaml", "--workers", "1", "--address", "local", "--device", "cpu", cwd=root)
    assert not canary.exists() and done.returncode == 0, done.stdout + done.stderr
    survived("a stranger's project", "workers of a sweep")


def test_a_base_of_a_stranger_is_read_as_data(base_folder, tmp_path, survived):
    """Files of code beside its weights are not looked at; where its configs ask for them, it is refused
    (test_hostile_files.py). Here diffusers and transformers themselves are the judges: nothing is imported."""
    from stages.backbones import load

    folder, canary = shutil.copytree(base_folder, tmp_path / "base"), tmp_path / "canary"
    for place in (folder, *(path for path in folder.iterdir() if path.is_dir())):
        for name in ("unet", "pipeline", "modeling", "configuration", "tokenization", "__init__", "vae"):
            (place / f"{name}.py").write_text(bomb(canary))
    pickled(folder / "unet/diffusion_pytorch_model.bin", canary)
    pickled(folder / "text_encoder/pytorch_model.bin", canary)
    pickled(folder / "vae/optimizer.pt", canary)
    backbone = load(str(folder))
    assert backbone.embed(["a toy"]).shape[0] == 1 and backbone.denoiser and backbone.vae
    assert not canary.exists() and not [name for name in sys.modules if str(folder) in str(getattr(
        sys.modules[name], "__file__", ""))]
    survived("a stranger's project", "a base with code beside its weights")
