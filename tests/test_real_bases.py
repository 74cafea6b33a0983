"""All seven commands on tiny bases in the layouts of the real ones, by the command line, with the network off."""
from __future__ import annotations

import json
import socket
from pathlib import Path

import layouts
import numpy as np
import pytest
from typer.testing import CliRunner

from stages.backbones.bases import KNOWN
from stages.core.lora import load
from stages.core.video import read_clip, write_images, write_masks, write_video
from stages.core.workspace import Workspace
from videomage_cli.app import app

SPRITES = Path(__file__).parent.parent / "stages" / "sprites" / "weights"
QUICK = {"segment": {"segmenter": "given", "masks": "drawn"},
         "invert": {"token_steps": 2, "token_batch": 1, "inversion_steps": 2},
         "learn-subject": {"steps": 2, "rank": 2, "auxiliary_count": 1, "video_steps": 1, "preview_every": 0},
         "learn-motion": {"steps": 2, "rank": 2}, "sample": {"steps": 3, "tau": 1},
         "fuse": {"steps": 2, "videos": 1, "video_steps": 1, "cuts": "photos", "compositions": 2,
                  "segmenter": "clipseg"},
         "eval": {"clip": str(SPRITES / "clip"), "dino": str(SPRITES / "dino"), "segmenter": "none"}}


def zeroscope_folder(root: Path, monkeypatch) -> tuple[str, dict, list[str]]:
    return str(layouts.zeroscope(root / "weights" / "zeroscope_v2_576w")), {}, []


def modelscope_folder(root: Path, monkeypatch) -> tuple[str, dict, list[str]]:
    return str(layouts.modelscope(root / "weights" / "text-to-video-ms-1.7b")), {"frames": 4}, ["--low-memory"]


def zeroscope_cached(root: Path, monkeypatch) -> tuple[str, dict, list[str]]:
    layouts.in_hub_cache(layouts.zeroscope(root / "weights"), root / "hub", KNOWN["zeroscope"].repo,
                         commit=KNOWN["zeroscope"].revision, ref=None)
    return "zeroscope", {"frames": 4, "height": 32, "width": 40}, []


def modelscope_cached(root: Path, monkeypatch) -> tuple[str, dict, list[str]]:
    """In half precision, from the fp16 variant, the denoiser in shards."""
    source = layouts.shard(layouts.modelscope(root / "weights"), "unet", variant=".fp16")
    layouts.in_hub_cache(source, root / "hub", KNOWN["modelscope"].repo)
    return "modelscope", {"frames": 4, "height": 32, "width": 32}, ["--dtype", "bf16"]


@pytest.mark.parametrize("layout", [zeroscope_folder, modelscope_folder, zeroscope_cached, modelscope_cached])
def test_all_seven_commands(layout, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setenv("VIDEOMAGE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    base, video, flags = layout(tmp_path, monkeypatch)
    for way in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, way, no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    project = make_project(tmp_path / "project", base, video)

    def videomage(*typed: str) -> list[Path]:
        done = CliRunner().invoke(app, [*typed, "-p", str(project)])
        assert done.exit_code == 0, (typed, done.stdout, done.stderr, done.exception)
        return [Path(line) for line in done.stdout.split()]

    videomage("segment", "--device", "cpu")
    for stage in ("invert", "learn-subject", "learn-motion", "fuse", "sample"):
        made = videomage(stage, "--device", "cpu", *flags)
    (scores,) = videomage("eval", "--device", "cpu")
    assert made[0].name == "video.mp4" and -1 < json.loads(scores.read_text())["paper protocol"]["CLIP-T"] < 1
    shape = (video.get("frames", 16), video.get("height", 32), video.get("width", 32), 3)
    assert read_clip(made[0].with_name("frames.png")).shape == shape
    says = load(project / "fused" / "dog+toy" / "lora.safetensors").metadata
    assert says["base"] == (KNOWN[base].repo if base in KNOWN else Path(base).name)
    assert "by-nc" in says["licence"].lower()
    manifest = json.loads((project / "fused" / "dog+toy" / "fuse.json").read_text())
    assert manifest["base"].get("video", {}) == video
    assert manifest["facts"]["run on"] == "cpu, " + {"bf16": "bf16", "--low-memory": "fp32, low memory"}.get(
        (flags or [""])[-1], "fp32")
    assert videomage("export", "dog+toy")[0].is_dir()
    states = CliRunner().invoke(app, ["status", "--json", "-p", str(project)]).stdout
    assert {row["state"] for row in json.loads(states)["artefacts"]} == {"fresh"}


def no_network(*_: object) -> None:
    raise AssertionError("something asked for the network")


def make_project(root: Path, base: str, video: dict) -> Path:
    """Photos of noise, a clip of noise, masks drawn by hand."""
    done = CliRunner().invoke(app, ["init", "--base", base, "-p", str(root)])
    assert done.exit_code == 0 and "licence: " in done.stderr and "by-nc" in done.stderr.lower(), done.stderr
    (root / "project.yaml").unlink()
    rng = np.random.default_rng(0)
    Workspace.create(
        root, base=base, options=QUICK,
        subjects={name: {"class": name, "images": f"photos/{name}"} for name in ("toy", "dog")},
        motion={"name": "riding", "clip": "ref.mp4", "prompt": "a [person] is riding a [horse]"},
        prompts=["<toy> is riding <dog>"])
    if video:
        text = (root / "project.yaml").read_text()
        (root / "project.yaml").write_text(f"video: {json.dumps(video)}\n{text}")
    for name in ("toy", "dog"):
        write_images(root / "photos" / name, rng.integers(0, 255, (2, 32, 32, 3), dtype=np.uint8))
    write_video(root / "ref.mp4", rng.integers(0, 255, (16, 32, 32, 3), dtype=np.uint8))
    frames = read_clip(root / "ref.mp4")
    for k, name in enumerate(("person", "horse")):
        masks = np.zeros(frames.shape[:3], bool)
        masks[:, :, k * masks.shape[2] // 2:(k + 1) * masks.shape[2] // 2] = True
        write_masks(root / "drawn" / name, masks)
    return root
