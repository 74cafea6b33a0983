"""The wheel: exactly the two packages, with the weights; and it runs where nothing else of this project is."""
from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WEIGHTS = ROOT / "stages" / "sprites" / "weights"
KEPT = (".json", ".txt", ".safetensors")               # of the weights; pyproject.toml says the same


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from the files that git tracks or would, outside the clone, so that it leaves nothing there."""
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"
    for path in tracked():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes((ROOT / path).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


def tracked() -> list[str]:
    """Files of the project: what git knows or would add; in a copy without git, what is there."""
    done = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    names = done.stdout.splitlines() if done.returncode == 0 else [
        path.relative_to(ROOT).as_posix() for top in ("stages", "videomage_cli") for path in (ROOT / top).rglob("*")
    ] + ["pyproject.toml", "README.md", "LICENSE"]
    return [name for name in names if (ROOT / name).is_file() and "__pycache__" not in name]


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_it_holds_exactly_the_two_packages(wheel):
    found = contents(wheel)
    assert {name.split("/")[0] for name in found} == {"stages", "videomage_cli"}
    sources = {name for name in tracked() if name.startswith(("stages/", "videomage_cli/")) and name.endswith(".py")}
    assert {name for name in found if name.endswith(".py")} == sources
    assert {"stages/page/page.css", "stages/page/page.js"} <= found
    with zipfile.ZipFile(wheel) as archive:
        inside = archive.namelist()
    assert any(name.endswith("licenses/LICENSE") for name in inside)


def test_it_holds_the_weights(wheel):
    """Of all four models, every file, and no more than 40 MB of them."""
    shipped = {path.relative_to(ROOT).as_posix(): path.stat().st_size for path in WEIGHTS.rglob("*")
               if path.suffix in KEPT}
    models = {name.split("/")[3] for name in shipped if name.endswith(".safetensors")}
    assert models >= {"base", "clip", "dino", "clipseg"}
    assert {name for name in contents(wheel) if "/weights/" in name} == set(shipped)
    assert sum(size for name, size in shipped.items() if name.endswith(".safetensors")) <= 40e6


def test_it_runs_from_its_own_folder(wheel, tmp_path):
    """Unpacked beside this environment's dependencies, with no clone on the path: the command starts, a project can be
    made, the weights are found, and both packages are the wheel's own."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = f"""
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder).lower()]
sys.path.insert(0, {str(tmp_path / "site")!r})
import stages, videomage_cli
assert stages.__file__.startswith({str(tmp_path)!r}) and videomage_cli.__file__.startswith({str(tmp_path)!r})
from videomage_cli.app import app
app(["init", "-p", "here"], standalone_mode=False)
app(["status", "-p", "here"], standalone_mode=False)
from stages.backbones import locate, video
locate("sprites")
assert video("zeroscope").frames == 24                     # from the shape that comes along
"""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and (tmp_path / "here" / "project.yaml").exists(), done.stdout + done.stderr
