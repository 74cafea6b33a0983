"""Estimated memory, time and size against the real networks: counted bytes, counted parameters."""
from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stages.backbones import cost
from stages.backbones.blocks import unet, unet_parameters
from stages.backbones.cost import STAGES, Base, estimate
from stages.backbones.walks import passing
from stages.options import OPTIONS, FuseOptions, LearnMotionOptions, LearnSubjectOptions, SampleOptions

sys.path.insert(0, str(Path(__file__).parent.parent))                     # bench/ is no installed package
from bench import gpu, memory  # noqa: E402
from bench.bases import SIZES, RandomBase, expected, operations, write  # noqa: E402
from bench.live import LiveBytes  # noqa: E402

FULL = dict(frames=24, height=320, width=576, dtype="bf16")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Configs of the three sizes."""
    return {name: write(size, tmp_path_factory.mktemp(name) / "base") for name, size in SIZES.items()}


@pytest.fixture(scope="module")
def zeroscope(folders) -> RandomBase:
    """The real size, on the meta device."""
    return RandomBase(SIZES["full"], folders["full"], device="meta", dtype="bf16")


def test_the_real_network_is_the_one_that_is_estimated(folders, zeroscope):
    denoiser = zeroscope.denoiser
    assert next(denoiser.parameters()).is_meta
    counted = sum(p.numel() for p in denoiser.parameters())
    assert counted == unet_parameters(denoiser.config) == 1_411_233_860
    base = Base(folders["full"], **FULL, low_memory=False)
    for part, guess in (("unet", base.unet_bytes), ("vae", base.vae_bytes), ("text_encoder", base.text_bytes)):
        own = sum(p.nbytes for p in zeroscope._part(part, zeroscope.device).parameters())
        assert guess == pytest.approx(own, rel=1e-3), part
    assert base.forward() == pytest.approx(21.4e12, rel=0.01)


def test_the_loras_of_the_real_network(folders, zeroscope):
    subject, motion = (zeroscope.targets(who) for who in ("subject", "motion"))
    assert (len(subject), len(motion)) == (160, 170) and not set(subject) & set(motion)
    base = Base(folders["full"], **FULL, low_memory=False)
    for who, targets, millions in (("subject", subject, 12.2), ("motion", motion, 12.5)):
        layers = [zeroscope.denoiser.get_submodule(path) for path in targets]
        counted = 32 * sum(layer.in_features + layer.out_features for layer in layers)
        assert counted == 32 * base.adapted(who) and counted == pytest.approx(millions * 1e6, rel=0.01)
    kinds = [(site.kind, site.axis) for site in zeroscope.sites]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        ("self", "time"): 34, ("self", "space"): 16, ("cross", "space"): 16}
    assert zeroscope.sites[0].name.startswith("transformer_in")


@pytest.mark.parametrize("low", [False, True])
def test_a_forward_of_the_real_network(folders, zeroscope, low):
    rows = 1 if low else 4
    x, t = torch.empty(rows, 4, 24, 40, 72, device="meta"), torch.empty(rows, dtype=torch.int64, device="meta")
    vectors = torch.empty(rows, 77, 1024, device="meta", dtype=torch.bfloat16)
    with torch.no_grad(), LiveBytes("meta") as live:
        live.hold(zeroscope.denoiser)
        weights = live.live
        zeroscope.predict(x, t, vectors)
    base = Base(folders["full"], **FULL, low_memory=low)
    assert passing(base.blocks(rows), 2) == pytest.approx(live.peak - weights, rel=cost.MEMORY_ERROR)


@pytest.mark.parametrize(("name", "low"), [("learn-subject", True), ("learn-motion", False), ("sample, unguided", True),
                                           ("encode", False), ("encode", True), ("decode", True)])
def test_steps_of_a_tiny_base_take_what_was_estimated(folders, name, low):
    peak, weights = memory.counted(name, "tiny", folders["tiny"], low_memory=low)
    assert expected(name, SIZES["tiny"], folders["tiny"], "fp32", low) == pytest.approx(peak, rel=cost.MEMORY_ERROR)
    assert weights < peak


@pytest.mark.parametrize(("name", "low"), [("learn-subject", False), ("learn-motion", True), ("sample, guided", True),
                                           ("sample, unguided", False), ("decode", False)])
def test_mixed_precision_takes_what_was_estimated(folders, name, low):
    """Weights of float32, what flows in half of it, and copies of weights for the backward."""
    peak, weights = memory.counted(name, "tiny", folders["tiny"], dtype="amp", low_memory=low)
    assert expected(name, SIZES["tiny"], folders["tiny"], "amp", low) == pytest.approx(peak, rel=cost.MEMORY_ERROR)
    assert weights == memory.counted(name, "tiny", folders["tiny"], low_memory=low)[1]


@pytest.mark.parametrize(("name", "low"), [("fuse", False), ("sample, guided", False), ("sample, guided", True)])
def test_steps_that_watch_maps_take_what_was_estimated(folders, name, low):
    peak, _ = memory.counted(name, "tiny", folders["tiny"], low_memory=low)
    assert expected(name, SIZES["tiny"], folders["tiny"], "fp32", low) == pytest.approx(peak, rel=cost.MEMORY_ERROR)


@pytest.mark.parametrize("name", ["sample, unguided", "decode"])
def test_steps_of_a_larger_base(folders, name):
    peak, _ = memory.counted(name, "mid", folders["mid"])
    assert expected(name, SIZES["mid"], folders["mid"], "fp32", False) == pytest.approx(peak, rel=cost.MEMORY_ERROR)


def test_every_stage_with_a_network_has_an_estimate(folders):
    found = {}
    for stage in STAGES:
        found[stage] = estimate(folders["full"], stage, OPTIONS[stage](), **FULL, low_memory=False, throughput=1e14)
        low = estimate(folders["full"], stage, OPTIONS[stage](), **FULL, low_memory=True)
        wider = estimate(folders["full"], stage, OPTIONS[stage](), **{**FULL, "dtype": "fp32"}, low_memory=True)
        assert found[stage].peak_bytes == max(found[stage].phases.values())
        assert low.peak_bytes < found[stage].peak_bytes and low.peak_bytes < wider.peak_bytes
        assert low.seconds is None and low.flops >= found[stage].flops > 1e15
        assert found[stage].seconds == pytest.approx(found[stage].flops / (1e14 * cost.EFFICIENCY))
    assert set(found) == set(OPTIONS) - {"segment", "eval", "export"}
    with pytest.raises(ValueError, match="'eval' has no estimate"):
        estimate(folders["full"], "eval", OPTIONS["eval"](), **FULL, low_memory=False)


def test_what_a_person_turns_counts(folders):
    def peak(stage: str, options, **how) -> tuple[int, float]:
        found = estimate(folders["full"], stage, options, **{**FULL, "low_memory": True, **how})
        return found.peak_bytes, found.flops

    def less(a: tuple[int, float], b: tuple[int, float]) -> bool:
        return a[0] < b[0] and a[1] < b[1]

    motion, subject, sample, fuse = LearnMotionOptions(), LearnSubjectOptions(), SampleOptions(), FuseOptions()
    assert less(peak("learn-motion", motion, frames=16), peak("learn-motion", motion))
    assert less(peak("learn-motion", motion, height=256), peak("learn-motion", motion))
    assert less(peak("learn-motion", motion), peak("learn-motion", replace(motion, batch=2)))
    assert peak("learn-motion", replace(motion, rank=8))[0] < peak("learn-motion", motion)[0]
    plain = peak("learn-motion", replace(motion, w=0))[1]
    forward = Base(folders["full"], **FULL, low_memory=True).forward()
    assert peak("learn-motion", motion)[1] == pytest.approx(plain + 300 * forward)
    assert peak("learn-motion", replace(motion, bank=64))[1] == pytest.approx(plain + 64 * forward)
    assert peak("learn-motion", replace(motion, bank=64, w=0))[1] == plain
    assert less(peak("learn-subject", replace(subject, lambda1=0)), peak("learn-subject", subject))
    assert less(peak("fuse", fuse, count=2), peak("fuse", fuse, count=3))
    assert peak("fuse", replace(fuse, layers="mid"))[0] < peak("fuse", fuse)[0]
    assert less(peak("sample", replace(sample, tau=0)), peak("sample", sample))
    assert less(peak("sample", sample), peak("sample", replace(sample, layers="all")))
    assert less(peak("sample", replace(sample, branches="subject")), peak("sample", sample))
    assert less(peak("sample", replace(sample, frames=8)), peak("sample", sample))
    assert peak("sample", replace(sample, count=3))[1] == pytest.approx(3 * peak("sample", sample)[1])
    assert peak("sample", replace(sample, motion_steps=10))[1] < peak("sample", sample)[1]


def test_a_guided_step_has_the_price_that_was_measured(folders):
    """In forwards of one row: 4, and 4 + 2 (f + b) = 5.58 with the maps as far as the middle block."""
    size, folder = SIZES["full"], folders["full"]
    forward = Base(folder, **FULL, low_memory=False).forward()
    assert operations("sample, unguided", size, folder, False) == pytest.approx(4 * forward)
    assert operations("sample, guided", size, folder, False) == pytest.approx(5.58 * forward, rel=0.05)


def test_the_shapes_of_an_odd_latent_are_those_of_the_network(folders):
    """A convolution of stride 2 rounds up."""
    blocks = unet(RandomBase(SIZES["mid"], folders["mid"], device="meta").denoiser.config, 40, rows=1, frames=2, h=15,
                  w=9)
    assert [(b.h, b.w) for b in blocks if b.name == "mid_block"][0] == (2, 2)
    assert [b.out_cells for b in blocks if b.kind == "down"] == [2 * 8 * 5, 2 * 4 * 3, 2 * 2 * 2]


def test_it_imports_no_torch():
    done = subprocess.run([sys.executable, "-c", "import sys, stages.backbones.cost; sys.exit('torch' in sys.modules)"],
                          capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_throughput_is_that_of_this_machine():
    assert 1e8 < cost.throughput("cpu", "fp32") < 1e14


def test_the_script_for_a_gpu_runs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", "--size", "tiny", "--device", "cpu", "--step", "sample, unguided",
                                      "decode"])
    assert gpu.main() == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("| sample", "| decode"))]
    assert len(rows) == 4
    for row in rows:
        _, _, _, seconds, _, peak, guess, _ = row.split("|")
        assert float(seconds) > 0 and float(guess) == pytest.approx(float(peak), rel=cost.MEMORY_ERROR)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_script_says_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert gpu.main() == 3
    assert "needs a CUDA device" in capsys.readouterr().err
