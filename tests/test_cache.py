"""The cache: the same bits computed or read, another value for another content, nothing lost where it is deleted."""
from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_stages import QUICK, Middle, make_project
from typer.testing import CliRunner

from stages import STAGES, segmenters
from stages.backbones import folder, load_for
from stages.core import cache as caches
from stages.core.cache import Cache, digest
from stages.core.denoise import draw, drawing, invert_clip
from stages.core.errors import BadInput, Locked
from stages.core.lora import Lora
from stages.core.workspace import Workspace
from stages.fuse import fuse
from stages.invert import invert
from stages.learn_motion import learn_motion
from stages.learn_subject import learn_subject
from stages.options import resolve
from stages.sample import sample
from stages.segment import segment
from stages.segmenters import Setup, models
from videomage_cli.app import app


@pytest.fixture
def project(tmp_path) -> Workspace:
    return Workspace.create(tmp_path / "project")


def notes(into: list):
    return lambda **facts: into.append(facts)


def entries(project: Workspace, kind: str = "*") -> list[Path]:
    """The files of the cache."""
    return sorted((project.root / ".cache").glob(f"{kind}/*"))


class Counted:
    """A computation that counts how often it was asked for."""

    def __init__(self, value: torch.Tensor) -> None:
        self.value, self.times = value, 0

    def __call__(self) -> torch.Tensor:
        self.times += 1
        return self.value


# -- one value --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", [torch.randn(2, 3, 4).transpose(0, 2), torch.randn(3, dtype=torch.float64),
                                   torch.randn(4, 5).to(torch.bfloat16), torch.rand(2, 3) > 0.5, torch.tensor(-0.0),
                                   torch.tensor([float("nan"), float("inf")])])
def test_a_value_is_read_as_it_was_computed(project, value):
    make = Counted(value)
    cold, warm = (Cache(project, ["base"]).tensor("kind", [1], make) for _ in range(2))
    assert make.times == 1 and cold.dtype == warm.dtype == value.dtype
    assert cold.stride() == warm.stride() and cold.is_contiguous()
    assert digest(cold) == digest(warm) == digest(value)
    assert not list(project.partial.iterdir())


def test_several_tensors_may_be_one_value(project):
    value = {"target": torch.randn(2, 3), "t": torch.arange(4)}
    found = [Cache(project).tensors("targets", [7], lambda: value) for _ in range(2)]
    assert all(torch.equal(tensors[name], value[name]) for tensors in found for name in value)
    assert len(entries(project)) == 1


def test_another_content_is_another_value(project):
    make, pixels = Counted(torch.zeros(1)), np.zeros((2, 4), np.uint8)
    base = Cache(project, ["base", "fp32"])
    other = pixels.copy()
    other[1, 3] = 1
    keys = [[pixels], [other], [pixels.reshape(4, 2)], [pixels.astype(np.int8)], [pixels, None], [[pixels]], ["a", "b"],
            ["ab"], ["a,b"], [["a"], "b"], [1], [1.0], [True], ["1"], [{"a": 1}], [{"a": 2}], [{"b": 1}], [], [""]]
    for key in keys:
        base.tensor("kind", key, make)
    assert make.times == len(keys) == len(entries(project))
    Cache(project, ["base", "fp16"]).tensor("kind", [1], make)
    Cache(project, ["another", "fp32"]).tensor("kind", [1], make)
    base.tensor("another", [1], make)
    assert make.times == len(keys) + 3
    base.tensor("kind", [torch.from_numpy(pixels)], make), base.tensor("kind", [{"a": 1}], make)
    assert make.times == len(keys) + 3


def test_other_libraries_are_another_value(project, monkeypatch):
    make = Counted(torch.zeros(1))
    Cache(project).tensor("kind", [1], make)
    monkeypatch.setattr(caches, "versions", lambda: {"torch": "1.0"})
    Cache(project).tensor("kind", [1], make)
    assert make.times == 2


def test_a_key_holds_content_and_no_name(project):
    with pytest.raises(TypeError, match="no PosixPath"):
        Cache(project).tensor("kind", [Path("clip.mp4")], Counted(torch.zeros(1)))


def test_what_cannot_be_kept_is_computed_and_the_run_goes_on(project):
    """Where .cache/ cannot be written (here a file stands in its place), or is deleted while a value is made."""
    said, make = [], Counted(torch.arange(5.0))
    (project.root / ".cache").write_text("")
    cache = Cache(project, report=notes(said))
    assert all(torch.equal(cache.tensor("kind", [1], make), make.value) for _ in range(2))
    assert make.times == 2 and len(said) == 1 and "cannot be written" in said[0]["note"]
    (project.root / ".cache").unlink()

    def deleted_meanwhile() -> torch.Tensor:
        shutil.rmtree(project.root / ".cache", ignore_errors=True)
        return make.value

    for key in (2, 3):
        assert torch.equal(Cache(project).tensor("kind", [key], deleted_meanwhile), make.value)
    assert len(entries(project)) == 1


def test_another_file_of_the_same_revision_is_another_value(project, monkeypatch):
    """fp16 files read as float32, since nothing else was there, and later the full ones: both are of one commit."""
    own = load_for(project, device="cpu", dtype="fp32", low_memory=False)
    make = Counted(torch.zeros(1))
    own.cache.tensor("kind", [1], make)
    weights = {part: replace(of, variant="fp16") for part, of in own._weights.items()}
    monkeypatch.setattr(folder, "check", lambda *args, **options: weights)
    other = load_for(project, device="cpu", dtype="fp32", low_memory=False)
    other.cache.tensor("kind", [1], make)
    assert other.revision == own.revision and other.variants != own.variants and make.times == 2


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: data[:7], lambda data: b"",
                                    lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: b"{" + data])
def test_a_damaged_file_is_made_anew_with_a_note(project, damage):
    make, said = Counted(torch.arange(5.0)), []
    Cache(project).tensor("kind", [1], make)
    path, = entries(project)
    path.write_bytes(damage(path.read_bytes()))
    again = Cache(project, report=notes(said)).tensor("kind", [1], make)
    assert torch.equal(again, make.value) and make.times == 2
    assert [facts["note"] for facts in said] == [f".cache/kind/{path.name} is damaged: what was in it is made anew"]
    assert torch.equal(Cache(project).tensor("kind", [1], make), make.value) and make.times == 2


def test_what_fails_leaves_nothing(project):
    def fails():
        raise BadInput("no clip", "give one")

    for _ in range(2):
        with pytest.raises(BadInput, match="no clip"):
            Cache(project).tensor("kind", [1], fails)
    assert not entries(project) and not list(project.partial.iterdir())


def test_nothing_is_kept_where_nobody_asks_for_it(project):
    make, base = Counted(torch.randn(2, 3).T), Cache(project)
    for cache, keep in ((Cache(), True), (base, False)):
        assert torch.equal(cache.tensor("kind", [1], make, keep=keep), make.value)
        assert not cache.has("kind", [1])
    assert make.times == 2 and not entries(project)
    base.tensor("kind", [1], make)
    assert base.has("kind", [1]) and not base.has("kind", [2])


# -- its size ---------------------------------------------------------------------------------------------------------
def test_what_was_longest_not_used_goes_first(project, monkeypatch):
    values = {k: Counted(torch.full((1000,), float(k))) for k in range(5)}
    for k, make in values.items():
        Cache(project).tensor("kind", [k], make)
    size = entries(project)[0].stat().st_size
    for path in entries(project):                         # in the order in which they were made, days ago
        k = int(safe_open(path, "pt").get_tensor("value")[0])
        os.utime(path, (time.time() - 1e6 + k,) * 2)
    Cache(project).tensor("kind", [0], values[0])         # used: now it is the youngest
    monkeypatch.setattr(caches, "MOST", 3 * size)
    Cache(project).tensor("kind", [1], values[1])         # reading takes nothing away
    assert len(entries(project)) == 5
    Cache(project).tensor("kind", [5], Counted(torch.zeros(1000)))
    assert [Cache(project).has("kind", [k]) for k in range(6)] == [True, True, False, False, True, True]
    monkeypatch.setattr(caches, "MOST", 0)                # of a run's own things none are taken
    os.utime(project.root / ".cache" / "kind" / entries(project)[0].name)
    Cache(project).tensor("kind", [6], Counted(torch.zeros(1000)))
    assert all(Cache(project).has("kind", [k]) for k in (0, 1, 5, 6)) and not Cache(project).has("kind", [4])


# -- several processes ------------------------------------------------------------------------------------------------
SLOWLY = """
import os, sys, time, torch
from pathlib import Path
from stages.core.cache import Cache
from stages.core.workspace import Workspace

root, log, jobs = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])

def make(k):
    with log.open("a") as file:
        file.write(f"{k}\\n")
    time.sleep(0.5)
    return torch.full((3,), float(k))

while not (root / "go").exists():
    time.sleep(0.01)
    (root / str(os.getpid())).touch()
found = Cache(Workspace(root)).several("kind", [([k], lambda k=k: make(k)) for k in range(jobs)])
assert torch.stack(found)[:, 0].tolist() == list(range(jobs))
"""


@pytest.mark.parametrize("jobs", [1, 4])
def test_two_processes_share_the_work(project, tmp_path, jobs):
    log = tmp_path / "log"
    command = [sys.executable, "-c", SLOWLY, str(project.root), str(log), str(jobs)]
    processes = [subprocess.Popen(command, cwd=Path(__file__).parent.parent) for _ in range(2)]
    while any(process.poll() is None and not (project.root / str(process.pid)).exists() for process in processes):
        time.sleep(0.01)
    (project.root / "go").touch()                                      # both are ready
    assert [process.wait() for process in processes] == [0, 0]
    assert sorted(map(int, log.read_text().split())) == list(range(jobs))          # each once
    assert len(entries(project)) == jobs and not list(project.partial.iterdir())


def test_who_does_not_want_to_wait_is_told(project):
    with project.lock(f"kind-{Cache(project)._path('kind', [1]).stem[:16]}"), pytest.raises(Locked):
        Cache(project).tensor("kind", [1], Counted(torch.zeros(1)), wait=False)


def test_of_several_the_others_are_made_where_one_fails(project):
    def fails():
        raise BadInput("no clip", "give one")

    told, made, good = [], [], Counted(torch.ones(1))
    jobs = [([0], good), ([1], fails), ([2], good)]
    with pytest.raises(BadInput):
        Cache(project).several("kind", jobs[1:])
    found = Cache(project).several("kind", jobs, made=made.append, failed=lambda k, error: told.append((k, error.what)))
    assert len(found) == 2 and told == [(1, "no clip")] and made == [0, 2]
    assert len(Cache(project).several("kind", [jobs[0], jobs[2]], made=made.append)) == 2 and made == [0, 2]


# -- a base with the cache of its project -----------------------------------------------------------------------------
def base(project: Workspace, **how):
    return load_for(project, **{"device": "cpu", "dtype": "fp32", "low_memory": False, **how})


@pytest.fixture
def home(tmp_path, base_folder) -> Workspace:
    """A project on the tiny base."""
    return Workspace.create(tmp_path / "home", base=str(base_folder))


def pictures(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8)


def test_latents_are_read_as_they_were_encoded_and_no_vae_is_loaded(home, backbone):
    clips = pictures(2, 20, 32, 32)                                    # more frames than the VAE sees at once
    cold, warm = base(home), base(home)
    x = cold.encode(clips)
    assert torch.equal(warm.encode(clips), x) and torch.equal(backbone.encode(clips), x)
    assert torch.equal(warm.encode(clips[1:]), x[1:]) and x.is_contiguous()         # in no company another
    assert not warm._parts and len(entries(home, "latents")) == 2


@pytest.mark.parametrize("other", [
    lambda clip: np.concatenate([clip[:, :, :-1], clip[:, :, -1:] ^ 1], 2), lambda clip: clip[:, :3],
    lambda clip: clip[:, :, :16], lambda clip: clip[:, ::-1]], ids=["pixels", "frames", "size", "order"])
def test_other_pictures_are_encoded(home, other):
    clip = pictures(1, 4, 32, 32)
    backbone = base(home)
    backbone.encode(clip), backbone.encode(other(clip)), backbone.encode(pictures(1, 6, 32, 32), keep=False)
    assert len(entries(home, "latents")) == 2


def test_another_base_or_arithmetic_is_another_value(home, base_folder, tmp_path):
    clip = pictures(1, 1, 32, 32)
    shutil.copytree(base_folder, tmp_path / "other")
    weights = load_file(tmp_path / "other/vae/diffusion_pytorch_model.safetensors")
    weights["encoder.conv_in.bias"] += 1
    save_file(weights, tmp_path / "other/vae/diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    other = Workspace.create(tmp_path / "there", base=str(tmp_path / "other"))
    found = [base(home).encode(clip), base(home, dtype="fp64").encode(clip), base(home, dtype="bf16").encode(clip)]
    base(home, low_memory=True).encode(clip)
    assert len(entries(home, "latents")) == 4 and len({x.dtype for x in found}) == 3
    shutil.copytree(home.root / ".cache", other.root / ".cache", dirs_exist_ok=True)
    assert not torch.equal(base(other).encode(clip), found[0])


def test_text_is_read_as_it_was_embedded_and_no_encoder_is_loaded(home, backbone):
    prompts = ["a <toy> is riding a <dog>", "", "a toy"]
    tokens = {"<toy>": torch.randn(2, 32), "<dog>": torch.randn(1, 32)}
    cold, warm = base(home), base(home)
    vectors = cold.embed(prompts, tokens)
    assert torch.equal(warm.embed(prompts, tokens), vectors) and torch.equal(backbone.embed(prompts, tokens), vectors)
    assert torch.equal(warm.embed(["a toy"]), vectors[2:])             # tokens that are not in a prompt do not count
    assert not warm._parts and len(entries(home, "text")) == 3
    moved = {"<toy>": tokens["<toy>"] + torch.tensor([[0.0] * 31 + [1e-3]]), "<dog>": tokens["<dog>"]}
    for other in (moved, {**tokens, "<toy>": tokens["<toy>"][:1]}, {**tokens, "<dog>": tokens["<dog>"].double()}):
        warm.embed(prompts[:1], other)
    warm.embed(["a <toy> is riding a <dog>."], tokens)
    assert len(entries(home, "text")) == 7 and list(warm._parts) == ["text_encoder"]


def test_a_token_that_learns_is_embedded_anew(home):
    backbone, token = base(home), torch.randn(1, 32, requires_grad=True)
    vectors = backbone.embed(["a <toy>"], {"<toy>": token})
    assert torch.autograd.grad(vectors.sum(), token)[0].abs().sum() > 0 and not entries(home, "text")
    with torch.no_grad():
        assert torch.allclose(backbone.embed(["a <toy>"], {"<toy>": token}), vectors, atol=1e-6)
    assert len(entries(home, "text")) == 1


def test_a_clip_is_inverted_once(home):
    x_0, said = torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0)), []
    noise = [invert_clip(base(home), x_0, steps=2, what="it", report=notes(said)) for _ in range(2)]
    assert torch.equal(*noise) and [(facts["step"], facts["inverting"]) for facts in said] == [(1, "it"), (2, "it")]
    invert_clip(base(home), x_0 + 1e-6, steps=2), invert_clip(base(home), x_0, steps=3)
    invert_clip(base(home), x_0, steps=2, refine=1)
    assert len(entries(home, "noise")) == 4


def test_what_is_drawn_depends_on_all_that_it_is_drawn_from(home):
    backbone, x_T = base(home), torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    name = backbone.targets("subject")[0]
    factors = {f"{name}.lora_A.weight": torch.ones(1, 16), f"{name}.lora_B.weight": torch.ones(16, 1)}
    how = {"prompt": "a <toy>", "x_T": x_T, "tokens": {"<toy>": torch.ones(1, 32)}, "lora": Lora(factors, 1.0, 1),
           "steps": 1, "guidance": 2.0, "unconditional": "own"}
    weaker = {key: value / 2 for key, value in factors.items()}
    others = [{}, {"prompt": "the <toy>"}, {"x_T": x_T + 1}, {"tokens": {"<toy>": torch.zeros(1, 32)}}, {"lora": None},
              {"lora": Lora(factors, 2.0, 1)}, {"lora": Lora(weaker, 1.0, 1)}, {"steps": 2}, {"guidance": 3.0},
              {"unconditional": "base"}]
    drawn = [backbone.cache.tensor("videos", *drawing(backbone, **{**how, **other})) for other in others]
    assert len(entries(home, "videos")) == len(others)
    for other, x_0 in zip(others, drawn):
        assert torch.equal(draw(backbone, **{**how, **other}), x_0)
        assert torch.equal(backbone.cache.tensor("videos", *drawing(base(home), **{**how, **other})), x_0)


def test_what_a_segmenters_masks_depend_on(tmp_path):
    def known(name="clipseg", **how) -> str:
        return digest(models.identity(name, Setup(**how)))

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"1")
    before = known(model=tmp_path)
    assert len({known(), before, known(threshold=0.6), known(device="cuda")}) == 4
    assert known() == known(text_threshold=0.9, device="cpu") == known(tracker="another")     # clipseg asks for none
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert known(model=tmp_path) != before
    grounded = [{}, {"threshold": 0.6}, {"box_threshold": 0.6}, {"text_threshold": 0.6}, {"instances": "all"},
                {"through": "sam2"}, {"tracker": str(tmp_path)}, {"detector": str(tmp_path)}, {"device": "cuda:1"}]
    assert len({known("grounded-sam2", **how) for how in grounded}) == len(grounded)
    assert known("grounded-sam2", device="cuda:0") == known("grounded-sam2", device="cuda:1")


# -- the stages -------------------------------------------------------------------------------------------------------
CAST = {"sample": {**QUICK["sample"], "inverted": "cast", "count": 2},
        "learn-motion": {**QUICK["learn-motion"], "steps": 6}}                # its first preview comes after a step


class Watched:
    """The stages on the real base, watched: what they report, which bases and segmenters they load."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root, self.said, self.bases, self.segmenters, self.parts = root, [], [], 0, None
        for stage in ("invert", "learn_subject", "learn_motion", "fuse", "sample"):
            patch.setattr(f"stages.{stage}.load_for", self._load_for)
        real = segmenters.load
        patch.setattr(segmenters, "load", lambda name, setup: real(name, setup) if name == "given" else self._middle())

    def _load_for(self, project, **how):
        self.bases.append(load_for(project, **how))
        return self.bases[-1]

    def _middle(self) -> Middle:
        self.segmenters += 1
        return Middle()

    def _hear(self, **facts) -> None:
        self.said.append(facts)
        if self.parts is None and "step" in facts and self.bases:
            self.parts = set(self.bases[-1]._parts)

    def __call__(self, stage: str, *args, **how):
        """Run a stage anew. Afterwards said, bases and segmenters are of this run, parts what its first step found
        loaded."""
        self.said, self.bases, self.segmenters, self.parts = [], [], 0, None
        return RUN[stage](Workspace(self.root), *args, force=True, report=self._hear, **how)

    def times(self, what: str) -> int:
        """How often what was reported, such as "drawing"."""
        return sum(what in facts for facts in self.said)


RUN = {"invert": invert, "toy": partial(learn_subject, subject="toy"), "dog": partial(learn_subject, subject="dog"),
       "learn-motion": learn_motion, "fuse": fuse, "sample": sample}


def products(root: Path) -> dict[str, str]:
    """Hashes of what the stages made; but for their manifests, which tell the time."""
    made = [path for part in ("subjects", "motions", "fused", "samples") for path in (root / part).rglob("*")]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in made
            if path.is_file() and (path.suffix != ".json" or path.name == "log.json")}


@pytest.fixture(scope="module")
def watched(tmp_path_factory, base_folder):
    """A project in which every stage has run once, watched."""
    root = tmp_path_factory.mktemp("watched")
    project = make_project(root, base_folder, ("toy", "dog"))
    text = project.root / "project.yaml"
    said = yaml.safe_load(text.read_text())
    text.write_text(yaml.safe_dump({**said, "options": {**said["options"], **CAST}}))
    segment(Workspace(root))
    with pytest.MonkeyPatch.context() as patch:
        run = Watched(root, patch)
        for stage in RUN:
            run(stage)
            if stage == "fuse":
                assert (run.times("drawing"), run.segmenters) == (4, 1)
        assert [facts["step"] for facts in run.said if "inverting" in facts] == [1, 2] and run.segmenters == 1
        yield run


@pytest.mark.parametrize("stage, loaded", [("learn-motion", {"unet"}), ("toy", {"unet", "text_encoder"}),
                                           ("invert", {"unet", "text_encoder"}), ("fuse", {"unet", "vae"}),
                                           ("sample", {"unet"})])
def test_a_warm_run_computes_nothing_twice_and_ends_with_the_same_bytes(watched, stage, loaded):
    """invert and learn-subject teach the text encoder a token; fuse makes its compositions anew."""
    before, cached = products(watched.root), entries(Workspace(watched.root))
    watched(stage)
    assert watched.parts == loaded
    assert products(watched.root) == before and entries(Workspace(watched.root)) == cached
    assert watched.times("drawing") == watched.times("inverting") == watched.segmenters == 0
    if stage in ("learn-motion", "fuse", "sample"):
        assert "text_encoder" not in watched.bases[-1]._parts


def test_without_its_cache_a_project_is_as_fresh_and_makes_the_same_bytes(watched):
    project, before = Workspace(watched.root), products(watched.root)
    cached = entries(project)
    shutil.rmtree(watched.root / ".cache")
    assert all(project.intended(STAGES[stage], name).state() for stage, name in (
        ("invert", "riding"), ("learn-subject", "toy"), ("learn-motion", "riding"), ("fuse", "dog+toy")))
    for stage in RUN:
        watched(stage)
    assert products(watched.root) == before and entries(project) == cached


def test_only_what_changed_is_made_anew(watched):
    options = resolve("fuse", Workspace(watched.root).settings)
    watched("fuse", None, replace(options, videos=3))
    assert watched.times("drawing") == 2 and watched.segmenters == 1                # a third one of each
    watched("fuse", None, replace(options, videos=3, steps=2, lambda2=0.5, compositions=4))
    assert watched.times("drawing") == watched.segmenters == 0
    watched("fuse", None, replace(options, threshold=0.4))
    assert watched.times("drawing") == 0 and watched.segmenters == 1
    watched("fuse", None, replace(options, guidance=3.0))
    assert watched.times("drawing") == 4
    watched("fuse", None, replace(options, cuts="photos"))
    assert watched.times("drawing") == 0
    watched("sample", ["<dog> is riding <toy>"], replace(resolve("sample", Workspace(watched.root).settings), steps=3))
    assert watched.times("inverting") == 2 and watched.segmenters == 0              # another cast; the same photos


def test_a_stage_tells_of_a_damaged_file_and_makes_it_anew(watched):
    before, project = products(watched.root), Workspace(watched.root)
    for kind in ("noise", "text", "masks"):
        for path in entries(project, kind):
            path.write_bytes(path.read_bytes()[:-5])
    watched("invert")
    assert watched.times("note") > 1 and all("is damaged" in facts["note"] or "there and back" in facts["note"]
                                             for facts in watched.said if "note" in facts)
    assert watched.times("inverting") == 2 and products(watched.root) == before


def test_status_says_what_the_cache_holds(watched):
    size = sum(path.stat().st_size for path in entries(Workspace(watched.root)))
    found = CliRunner().invoke(app, ["status", "-p", str(watched.root), "--json"])
    assert json.loads(found.stdout)["cache_bytes"] == size > 0
    assert f".cache holds {size / 1e6:.1f} MB" in CliRunner().invoke(app, ["status", "-p", str(watched.root)]).stderr
