"""Bases by name, from the hub's cache and from folders: what is found, refused, fetched and converted."""
from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import layouts
import numpy as np
import pytest
import torch
import vision_layouts
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from stages.backbones import identity, identity_of, licence, load, load_for, locate, origin, terms, video
from stages.backbones.bases import KNOWN, converted
from stages.backbones.fetch import choose
from stages.backbones.folder import check
from stages.core import hashes
from stages.core.errors import BadInput, MissingPrerequisite, Refused
from stages.core.video import write_images
from stages.core.workspace import Workspace
from videomage_cli.app import app

CLI = [sys.executable, "-m", "videomage_cli.app"]


@pytest.fixture(autouse=True)
def empty_home(tmp_path, monkeypatch):
    """Nobody's caches: neither ours nor the hub's."""
    from huggingface_hub import constants

    monkeypatch.setenv("VIDEOMAGE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


@pytest.fixture(scope="module")
def zeroscope(tmp_path_factory):
    return layouts.zeroscope(tmp_path_factory.mktemp("zeroscope"))


@pytest.fixture(scope="module")
def modelscope(tmp_path_factory):
    return layouts.modelscope(tmp_path_factory.mktemp("modelscope"))


def same_parts(a, b, tolerance=0.0):
    for part in ("denoiser", "vae", "text_encoder"):
        for (name, p), (other, q) in zip(getattr(a, part).named_parameters(), getattr(b, part).named_parameters(),
                                         strict=True):
            assert name == other and torch.allclose(p.float(), q.float(), atol=tolerance, rtol=0), name


# ------------------------------------------------------------------------------------------------ layouts of the hub
def test_the_layout_of_the_real_repositories_is_read(zeroscope, modelscope, tmp_path):
    """Old names of the autoencoder's attentions, position_ids, slow tokenizers, fp16 variants, pickles beside."""
    from conftest import make_base

    plain = load(str(make_base(tmp_path / "plain", steps_offset=1, prediction_type="epsilon")))
    full, half = load(str(modelscope)), load(str(modelscope), dtype="bf16")
    assert {w.variant for w in full._weights.values()} == {None}
    assert {w.variant for w in half._weights.values()} == {"fp16"}
    same_parts(plain, full)
    same_parts(load(str(zeroscope)), full, tolerance=2e-3)
    assert torch.equal(plain.embed(["a toy is riding qux, 27!"]), full.embed(["a toy is riding qux, 27!"]))
    assert half.predict(torch.randn(1, 4, 2, 8, 8), 5, half.embed(["a toy"])).isfinite().all()


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_shards_are_read(modelscope, tmp_path, variant):
    folder = shutil.copytree(modelscope, tmp_path / "shards")
    for part in ("unet", "text_encoder"):
        layouts.shard(folder, part, variant=variant)
    dtype = "fp16" if variant else "fp32"
    base = load(str(folder), dtype=dtype)
    assert len(base._weights["unet"].files) == 3
    same_parts(base, load(str(modelscope), dtype=dtype))


def test_shards_as_the_libraries_write_them_are_read(tmp_path):
    from conftest import make_base
    from diffusers import UNet3DConditionModel
    from transformers import CLIPTextModel

    folder = make_base(tmp_path / "base")
    unet, text = UNet3DConditionModel.from_pretrained(folder / "unet"), CLIPTextModel.from_pretrained(
        folder / "text_encoder")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (folder / "text_encoder" / "model.safetensors").unlink()
    unet.half().save_pretrained(folder / "unet", max_shard_size="200KB", variant="fp16")
    text.save_pretrained(folder / "text_encoder", max_shard_size="20KB")
    weights = check(folder, "x")
    assert len(weights["unet"].files) > 1 and weights["unet"].variant == "fp16"
    assert len(weights["text_encoder"].files) > 1
    same = load(str(folder))
    assert torch.equal(same.denoiser.conv_in.weight, unet.conv_in.weight.float())
    assert weights["unet"].parameters() == sum(p.numel() for p in unet.parameters())


# -------------------------------------------------------------------------------------------------- what a name finds
def test_a_name_finds_the_snapshot_in_the_hubs_cache(modelscope, tmp_path):
    with pytest.raises(MissingPrerequisite, match="3.7 GB") as refused:
        locate("modelscope")
    assert "videomage fetch modelscope" in refused.value.remedy and "CC-BY-NC-4.0" in refused.value.what
    snapshot = layouts.in_hub_cache(modelscope, tmp_path / "hub", KNOWN["modelscope"].repo)
    assert locate("modelscope") == snapshot == locate("damo-vilab/text-to-video-ms-1.7b")
    assert locate(f"damo-vilab/text-to-video-ms-1.7b@{layouts.COMMIT}") == snapshot
    assert identity("modelscope") == {"name": "modelscope", "revision": layouts.COMMIT}
    base = load("modelscope", dtype="bf16")
    assert (base.frames, base.fps, base.height, base.width) == (16, 8, 256, 256)
    assert base.revision == layouts.COMMIT and base.licence == "CC-BY-NC-4.0"
    with pytest.raises(MissingPrerequisite):
        locate("damo-vilab/text-to-video-ms-1.7b@refs/pr/3")


def test_zeroscope_is_pinned(zeroscope, tmp_path):
    """Another commit in the cache is not it, whatever main points at."""
    layouts.in_hub_cache(zeroscope, tmp_path / "hub", KNOWN["zeroscope"].repo)
    with pytest.raises(MissingPrerequisite):
        locate("zeroscope")
    layouts.in_hub_cache(zeroscope, tmp_path / "hub", KNOWN["zeroscope"].repo, commit=KNOWN["zeroscope"].revision,
                         ref=None)
    base = load("zeroscope")
    assert base.revision == KNOWN["zeroscope"].revision and (base.frames, base.height, base.width) == (24, 320, 576)


def test_any_repository_and_any_folder(zeroscope, tmp_path):
    layouts.in_hub_cache(zeroscope, tmp_path / "hub", "somebody/finetuned")
    assert load("somebody/finetuned").licence == "cc-by-nc-4.0" == licence(str(zeroscope))
    assert identity(str(zeroscope))["revision"] != layouts.COMMIT and "cc-by-nc" in terms(str(zeroscope))
    assert video(str(zeroscope)).frames == 16 and video(str(zeroscope)).height == 32
    with pytest.raises(BadInput, match="no-such-folder"):
        locate("no-such-folder")


def test_a_project_may_want_another_size(base_folder):
    wanted = {"frames": 3, "height": 48}
    base = load(str(base_folder), wanted=wanted)
    assert (base.frames, base.fps, base.height, base.width) == (3, 8, 48, 32) and base.latent_size == (12, 8)
    assert identity(str(base_folder), wanted)["video"] == wanted and "video" not in identity(str(base_folder))
    with pytest.raises(BadInput, match="multiple of 4"):
        load(str(base_folder), wanted={"width": 33})


def test_the_identity_covers_what_is_read_and_nothing_else(zeroscope, tmp_path):
    """Linked parts count; what lies beside them does not."""
    folder = shutil.copytree(zeroscope, tmp_path / "folder")
    unet = shutil.move(folder / "unet", tmp_path / "unet")
    (folder / "unet").symlink_to(unet)
    first = identity(str(folder))["revision"]
    assert first == identity(str(zeroscope))["revision"]
    (folder / "samples").mkdir()
    (folder / "samples" / "other.safetensors").write_bytes(b"no part of it")
    assert identity(str(folder))["revision"] == first
    path = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: t * 2 for name, t in load_file(path).items()}, path)
    assert identity(str(folder))["revision"] != first


def test_a_folder_in_project_yaml_is_relative_to_the_project(zeroscope, tmp_path, monkeypatch):
    shutil.copytree(zeroscope, tmp_path / "project" / "models" / "zs")
    project = Workspace.create(tmp_path / "project", base="models/zs")
    monkeypatch.chdir("/")
    assert load_for(project, device="cpu", dtype="fp32", low_memory=False).frames == 16
    assert identity_of(project) == {"name": "models/zs", "revision": identity(str(zeroscope))["revision"]}


def test_what_is_no_name_is_said_so(tmp_path):
    for name in ("a--b/c", "x/y.", "~nobody/x"):
        with pytest.raises((BadInput, MissingPrerequisite)):
            locate(name)
    done = CliRunner().invoke(app, ["init", "--base", "weigths/zs", "-p", str(tmp_path / "p")])
    assert "neither as a folder nor from the hub" in " ".join(done.stderr.split())


@pytest.mark.parametrize("facts", ['{"frames": null}', '{"fps": "many"}', '{"height": -32}', "[]"])
def test_a_wrong_videomage_json_is_named(zeroscope, tmp_path, facts):
    folder = shutil.copytree(zeroscope, tmp_path / "folder")
    (folder / "videomage.json").write_text(facts)
    with pytest.raises(BadInput, match="videomage.json"):
        load(str(folder))


def test_hashes_of_large_files_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(hashes, "_KEPT", 4)
    path = tmp_path / "large"
    path.write_bytes(b"12345")
    first = hashes.sha256(path)
    assert first == hashlib.sha256(b"12345").hexdigest()
    kept = json.loads((tmp_path / "home" / "hashes.json").read_text())
    assert [v[2] for v in kept.values()] == [first]
    monkeypatch.setattr(hashes, "_hashes", {})
    monkeypatch.setattr(hashes.hashlib, "sha256", None)              # a new process reads no byte of it
    assert hashes.sha256(path) == first
    monkeypatch.undo()
    path.write_bytes(b"123456")
    assert hashes.sha256(path) == hashlib.sha256(b"123456").hexdigest()


# ------------------------------------------------------------------------------------------------- what is refused
def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def damage(folder: Path, what: str) -> str:
    """Damage a modelscope folder -> what the refusal must name."""
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if what == "pickled only":
        shutil.rmtree(folder)
        layouts.pickle_only(layouts.zeroscope(folder))
        return r"pickle alone \(unet/diffusion_pytorch_model.bin\)"
    if what == "a missing shard":
        layouts.shard(folder, "unet")
        (folder / "unet" / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
        return "lacks unet/diffusion_pytorch_model-00002-of-00003.safetensors"
    if what == "a shard with other tensors":
        layouts.shard(folder, "unet")
        shards = [folder / "unet" / f"diffusion_pytorch_model-0000{k}-of-00003.safetensors" for k in (1, 2)]
        shutil.copyfile(*shards)
        return "which its index promises"
    if what == "a wrong class":
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps({**index, "vae": ["diffusers", "AutoencoderTiny"]}))
        return "the autoencoder of the base .* is a AutoencoderTiny"
    if what == "a truncated file":
        cut(unet)
        return "diffusion_pytorch_model.safetensors is cut off"
    if what == "a damaged header":
        data = bytearray(unet.read_bytes())
        data[8:12] = b"\xff\xff\xff\xff"
        unet.write_bytes(data)
        return "header of .* is damaged"
    if what == "a lost config":
        (folder / "vae" / "config.json").unlink()
        return "lacks vae/config.json"
    if what == "a damaged index":
        (folder / "model_index.json").write_text("[1, 2]")
        return "model_index.json of the base .* is damaged"
    if what == "no vocabulary":
        (folder / "tokenizer" / "vocab.json").unlink()
        return "lacks tokenizer/vocab.json"
    if what == "a link that leads nowhere":
        unet.unlink()
        unet.symlink_to("../../blobs/purged")
        return "leads nowhere"
    if what == "another shape":
        config = json.loads((folder / "unet" / "config.json").read_text())
        (folder / "unet" / "config.json").write_text(json.dumps({**config, "in_channels": 5}))
        return "the weight 'conv_in.weight' is .16, 4, 3, 3. in the file and .16, 5, 3, 3. by the config"
    if what == "no weights":
        for path in (folder / "vae").glob("*.[sb]*"):
            path.unlink()
        return "has no weights"
    raise AssertionError(what)


DAMAGES = ["pickled only", "a missing shard", "a shard with other tensors", "a wrong class", "a truncated file",
           "a damaged header", "a lost config", "a damaged index", "no weights", "no vocabulary",
           "a link that leads nowhere", "another shape"]


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_base_is_refused_before_anything_is_loaded(what, modelscope, tmp_path):
    folder = shutil.copytree(modelscope, tmp_path / "folder")
    for path in folder.rglob("*.fp16.safetensors"):
        path.unlink()
    said = damage(folder, what)
    error = Refused if what == "pickled only" else BadInput
    with pytest.raises(error, match=said) as refused:
        load(str(folder)).denoiser  # noqa: B018 (a shape is seen when the part is read)
    assert refused.value.remedy
    root = tmp_path / "project"
    Workspace.create(root, base=str(folder), subjects={"toy": {"class": "toy", "images": "photos"}},
                     options={"learn-subject": {"lambda1": 0, "steps": 1}})
    write_images(root / "photos", np.zeros((1, 32, 32, 3), np.uint8))
    done = CliRunner().invoke(app, ["learn-subject", "--device", "cpu", "-p", str(root)])
    assert done.exit_code == error.exit_code and re.search(said, " ".join(done.stderr.split())), done.stderr
    assert done.stderr.startswith("error: ") and not (root / "subjects").exists()
    if what != "another shape":
        assert CliRunner().invoke(app, ["doctor", "-p", str(root)]).exit_code in (3, error.exit_code)


def test_weights_and_config_must_fit(zeroscope, tmp_path):
    """A weight that is missing would be random, in silence; one too many tells of another model."""
    for change, said in ((lambda t: t.pop("text_model.final_layer_norm.weight"), "lacks the weight"),
                         (lambda t: t.update({"text_model.other": torch.ones(1)}), "text_model.other")):
        folder = shutil.copytree(zeroscope, tmp_path / said.split()[0])
        path = folder / "text_encoder" / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)
        with pytest.raises(BadInput, match=said):
            load(str(folder)).text_encoder  # noqa: B018


def test_a_weights_file_beside_the_right_ones_is_not_taken(modelscope, tmp_path):
    folder = shutil.copytree(modelscope, tmp_path / "more")
    (folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"something else")
    assert [path.name for path in check(folder, "x")["unet"].files] == ["diffusion_pytorch_model.safetensors"]


# --------------------------------------------------------------------------------------------- fetching, converting
def test_what_a_download_takes_of_a_repository():
    there = {"model_index.json": 1, "README.md": 1, ".gitattributes": 1, "sample.mp4": 9, "unet/config.json": 1,
             "unet/diffusion_pytorch_model.bin": 8, "unet/diffusion_pytorch_model.fp16.bin": 4,
             "unet/diffusion_pytorch_model.fp16.safetensors": 4, "unet/diffusion_pytorch_model.safetensors": 8,
             "unet/diffusion_pytorch_model.non_ema.safetensors": 8,
             "vae/config.json": 1, "vae/diffusion_pytorch_model.bin": 2, "vae/diffusion_pytorch_model.fp16.bin": 1,
             "text_encoder/config.json": 1, "text_encoder/model.safetensors.index.json": 1,
             "text_encoder/model-00001-of-00002.safetensors": 3, "text_encoder/model-00002-of-00002.safetensors": 3,
             "tokenizer/vocab.json": 1, "tokenizer/merges.txt": 1, "deep/er/config.json": 1}
    files, pickled = choose(there)
    assert pickled == ("vae",)
    assert set(there) - set(files) == {
        ".gitattributes", "sample.mp4", "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.bin",
        "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors",
        "vae/diffusion_pytorch_model.bin", "deep/er/config.json"}


class Hub(BaseHTTPRequestHandler):
    """Of the hub's interface what a download asks for, on the loopback. `root`: {repository: folder}."""

    root: dict[str, Path] = {}

    def answer(self, body: bool) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"] and (folder := self.root.get("/".join(parts[2:4]))):
            files = [{"rfilename": p.relative_to(folder).as_posix(), "size": p.stat().st_size}
                     for p in sorted(folder.rglob("*")) if p.is_file()]
            return self.send(json.dumps({"id": "/".join(parts[2:4]), "sha": layouts.COMMIT, "siblings": files,
                                         "modelId": "x", "tags": ["license:cc-by-nc-4.0"]}).encode(), body, {})
        if len(parts) > 4 and parts[2] == "resolve" and (folder := self.root.get("/".join(parts[:2]))):
            data = (folder / "/".join(parts[4:])).read_bytes()
            tag = hashlib.sha256(data).hexdigest()
            return self.send(data, body, {"ETag": f'"{tag}"', "X-Repo-Commit": layouts.COMMIT})
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        return self.end_headers()

    def send(self, data: bytes, body: bool, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def do_HEAD(self) -> None:
        self.answer(False)

    def do_GET(self) -> None:
        self.answer(True)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def videomage(*arguments: object, home: Path, endpoint: str = "") -> subprocess.CompletedProcess:
    env = {**os.environ, "HF_HOME": str(home / "hf"), "VIDEOMAGE_HOME": str(home / "home"), "HF_HUB_OFFLINE": "0",
           "HF_ENDPOINT": endpoint or "http://127.0.0.1:9", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.run([*CLI, *map(str, arguments)], capture_output=True, text=True, env=env, check=False)


def test_fetch_downloads_what_a_base_needs_and_no_more(hub, modelscope, tmp_path, monkeypatch):
    monkeypatch.setattr(Hub, "root", {"damo-vilab/text-to-video-ms-1.7b": modelscope})
    done = videomage("fetch", "modelscope", home=tmp_path, endpoint=hub)
    assert done.returncode == 0, done.stderr
    assert "CC-BY-NC-4.0, about 3.7 GB" in done.stderr.splitlines()[0]
    assert "licence: cc-by-nc-4.0" in done.stderr.splitlines()[1] and "files, 0.00 GB" in done.stderr
    folder = Path(done.stdout.strip())
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in names and "tokenizer/merges.txt" in names
    assert not any(name.endswith((".bin", "model.safetensors")) for name in names)
    same_parts(load(str(folder), dtype="fp16"), load(str(modelscope), dtype="fp16"))
    again = videomage("init", "-p", tmp_path / "p", "--base", "modelscope", home=tmp_path)       # now without the hub
    assert again.returncode == 0 and "not on this machine" not in again.stderr
    assert videomage("status", "-p", tmp_path / "p", home=tmp_path).returncode == 0


def test_fetch_downloads_what_segments_and_no_pickle(hub, tmp_path, monkeypatch):
    detector = vision_layouts.grounding_dino(tmp_path / "weights" / "dino")
    tracker = vision_layouts.sam2(tmp_path / "weights" / "sam2")
    for folder in (detector, tracker):
        (folder / "pytorch_model.bin").write_bytes(b"a pickle that nobody reads")
    (tracker / "sam2.1_hiera_tiny.pt").write_bytes(b"another")
    (tmp_path / "pickled").mkdir()
    shutil.copyfile(tracker / "config.json", tmp_path / "pickled" / "config.json")
    shutil.copyfile(tracker / "sam2.1_hiera_tiny.pt", tmp_path / "pickled" / "a.pt")
    monkeypatch.setattr(Hub, "root", {vision_layouts.DINO: detector, vision_layouts.SAM2: tracker,
                                      "facebook/sam2-pickled": tmp_path / "pickled"})
    done = videomage("fetch", "grounded-sam2", home=tmp_path, endpoint=hub)
    assert done.returncode == 0, done.stderr
    assert "Grounding DINO, IDEA-Research/grounding-dino-tiny: Apache-2.0, 690 MB" in done.stderr.splitlines()[0]
    folders = [Path(line) for line in done.stdout.split()]
    for folder, source in zip(folders, (detector, tracker), strict=True):
        assert {p.name for p in folder.iterdir()} == {
            p.name for p in source.iterdir() if p.suffix not in (".bin", ".pt", ".yaml") and p.name != ".gitattributes"}
    told = json.loads(videomage("doctor", "--json", home=tmp_path).stdout)                       # without the hub
    found = {finding["what"]: finding for finding in told}
    assert found["SAM2"]["mark"] == "ok" and found["SAM2"]["found"] == f"{vision_layouts.SAM2}@{layouts.COMMIT}"
    refused = videomage("fetch", "facebook/sam2-pickled", home=tmp_path, endpoint=hub)
    assert refused.returncode == 8 and "holds no safetensors; pickles could" in " ".join(refused.stderr.split())
    absent = videomage("fetch", "facebook/sam2.1-hiera-large", home=tmp_path, endpoint=hub)
    assert absent.returncode == 3 and "the hub has no facebook/sam2.1-hiera-large" in " ".join(absent.stderr.split())
    assert videomage("fetch", "grounded-sam2", home=tmp_path / "elsewhere").returncode == 4               # no network


def test_pickles_are_refused_and_converted_in_a_process_of_their_own(hub, zeroscope, tmp_path, monkeypatch):
    pickled = layouts.pickle_only(shutil.copytree(zeroscope, tmp_path / "pickled"))
    monkeypatch.setattr(Hub, "root", {"cerspense/zeroscope_v2_576w": pickled})
    refused = videomage("fetch", "zeroscope", home=tmp_path, endpoint=hub)
    assert refused.returncode == 8 and "pickles alone" in refused.stderr
    assert "videomage fetch zeroscope --convert" in " ".join(refused.stderr.split())
    done = videomage("fetch", "zeroscope", "--convert", home=tmp_path, endpoint=hub)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == converted("zeroscope") == locate("zeroscope")
    same_parts(load("zeroscope"), load(str(zeroscope)))
    facts = json.loads((converted("zeroscope") / "videomage.json").read_text())
    assert facts["licence"] == "CC-BY-NC-4.0" and facts["source"] == "cerspense/zeroscope_v2_576w"
    assert origin("zeroscope") == {"base": "cerspense/zeroscope_v2_576w", "revision": layouts.COMMIT}
    assert load("zeroscope").frames == 24 and not list(converted("zeroscope").rglob("*.bin"))


def test_what_is_in_the_cache_is_converted_and_found_without_the_hub(zeroscope, modelscope, tmp_path):
    pickled = layouts.pickle_only(shutil.copytree(zeroscope, tmp_path / "pickled"))
    (pickled / "unet" / "diffusion_pytorch_model.non_ema.bin").write_bytes(b"others, which nobody reads")
    layouts.in_hub_cache(pickled, tmp_path / "hf" / "hub", KNOWN["zeroscope"].repo, ref=None,
                         commit=KNOWN["zeroscope"].revision)
    layouts.in_hub_cache(modelscope, tmp_path / "hf" / "hub", KNOWN["modelscope"].repo)
    assert videomage("fetch", "modelscope", home=tmp_path).returncode == 0
    done = videomage("fetch", "zeroscope", "--convert", home=tmp_path)
    assert done.returncode == 0, done.stderr
    same_parts(load(done.stdout.strip()), load(str(zeroscope)))
    assert origin("zeroscope")["revision"] == KNOWN["zeroscope"].revision
    nothing = videomage("fetch", "modelscope", "--convert", "--out", tmp_path / "x", home=tmp_path)
    assert nothing.returncode == 2 and "no pickles" in nothing.stderr


def test_a_pickle_that_asks_for_more_than_tensors_is_not_run(zeroscope, tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    folder = layouts.pickle_only(shutil.copytree(zeroscope, tmp_path / "bomb"))
    torch.save({"conv_in.weight": Bomb()}, folder / "unet" / "diffusion_pytorch_model.bin")
    done = videomage("fetch", folder, "--convert", "--out", tmp_path / "out", home=tmp_path)
    assert done.returncode == 3 and "more than tensors" in done.stderr
    assert not (tmp_path / "exploded").exists() and not (tmp_path / "out").exists()


def test_a_conversion_copies_nothing_that_is_not_the_base(zeroscope, tmp_path):
    """Of what links lead to: a folder of keys is no part of a base, a device and a file elsewhere are not copied."""
    folder = layouts.pickle_only(shutil.copytree(zeroscope, tmp_path / "base"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/key.txt").write_text("mine")
    (folder / "keys").symlink_to(tmp_path / "mine")
    (folder / "zero.json").symlink_to("/dev/zero")
    (folder / "unet/zero.json").symlink_to("/dev/zero")
    done = videomage("fetch", folder, "--convert", "--out", tmp_path / "out", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not {"keys", "zero.json"} & {path.name for path in (tmp_path / "out").rglob("*")}
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_symlink()]
    for link in ("unet/key.txt", "README.md", "unet/diffusion_pytorch_model.bin"):
        (folder / link).unlink(missing_ok=True)
        (folder / link).symlink_to(tmp_path / "mine/key.txt")
        done = videomage("fetch", folder, "--convert", "--out", tmp_path / "again", home=tmp_path)
        (folder / link).unlink()
        assert done.returncode == 8 and "is no part of the base" in done.stderr and not (tmp_path / "again").exists()


def test_without_the_hub_fetch_says_so(hub, tmp_path):
    gone = videomage("fetch", "zeroscope", home=tmp_path)
    assert gone.returncode == 4 and "cannot be reached" in gone.stderr
    unknown = videomage("fetch", "nobody/nothing", home=tmp_path, endpoint=hub)
    assert unknown.returncode == 3 and "nobody/nothing" in unknown.stderr


def test_only_the_conversion_reads_pickles():
    """And no module imports it: it runs as a process."""
    root = Path(__file__).parent.parent
    sources = {path: path.read_text(encoding="utf-8") for package in ("stages", "videomage_cli", "examples")
               for path in (root / package).rglob("*.py")}
    readers = [path.name for path, text in sources.items() if "torch.load(" in text]
    assert readers == ["convert.py"]
    assert "weights_only=True" in sources[root / "stages" / "backbones" / "convert.py"]
    never = re.compile(r"from \S*\bconvert import|import convert\b|trust_remote_code\s*=")
    assert not any(never.search(text) for text in sources.values())


# ---------------------------------------------------------------------------------------------------------- memory
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads Linux' own account of memory")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_no_weight_is_held_twice(zeroscope, tmp_path, dtype):
    """Memory of the process's own while 39 M weights are read, of float16 files: that of the weights as they shall be
    and a little. (The files' pages, which the system may drop at any time, are not of its own.)"""
    import gc

    from diffusers import UNet3DConditionModel
    folder = shutil.copytree(zeroscope, tmp_path / "larger")
    with torch.device("meta"):
        unet = UNet3DConditionModel(block_out_channels=(64, 128, 192, 192), cross_attention_dim=32, norm_num_groups=16)
    unet.save_config(folder / "unet")
    save_file({name: torch.full(p.shape, 0.01, dtype=torch.float16) for name, p in unet.state_dict().items()},
              folder / "unet" / "diffusion_pytorch_model.safetensors")

    def own() -> int:
        return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines()
                    if line.startswith("RssAnon"))

    base = load(str(folder), dtype=dtype)
    gc.collect()
    before, peak, over = own(), [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.002):
            peak[0] = max(peak[0], own())

    watcher = threading.Thread(target=watch)
    watcher.start()
    weights = sum(p.nbytes for p in base.denoiser.parameters())
    over.set()
    watcher.join()
    assert weights > 5e7 and peak[0] - before < 1.25 * weights, (weights, peak[0] - before)
