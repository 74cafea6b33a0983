"""Every stage end to end on a tiny base with random weights: what it leaves, how it is skipped, resumed, degraded."""
from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from stages import STAGES, segmenters
from stages.backbones import identity
from stages.core import report as reports
from stages.core.cutmix import Cut, recast
from stages.core.denoise import draw, encode, invert_clip
from stages.core.edges import snapped
from stages.core.errors import BadInput, Interrupted, MissingPrerequisite, UsageError
from stages.core.lora import load as load_lora
from stages.core.lora import load_tokens, mean
from stages.core.takes import read_take
from stages.core.video import read_clip, read_images, read_masks, write_images, write_masks, write_video
from stages.core.workspace import Workspace
from stages.fuse import fuse
from stages.invert import crop, invert
from stages.learn_motion import learn_motion, prompts_of
from stages.learn_subject import learn_subject
from stages.options import LearnMotionOptions, resolve
from stages.orders import sample_plans, target_of
from stages.photos import Photo
from stages.prompts import motion_prompt
from stages.sample import recast_noise, sample
from stages.segment import segment

QUICK = {
    "invert": {"token_steps": 3, "token_batch": 2, "inversion_steps": 2},
    "learn-subject": {"steps": 3, "rank": 2, "alpha": 2, "rate": 1e-2, "token_rate": 1e-2, "auxiliary_count": 2,
                      "preview_every": 0, "video_steps": 1, "guidance": 2},
    "learn-motion": {"steps": 3, "rank": 2, "alpha": 2, "rate": 1e-2},
    "fuse": {"steps": 3, "videos": 2, "video_steps": 1, "guidance": 2, "rate": 1e-2},
    "sample": {"steps": 2, "tau": 1, "guidance": 2},
}
PROMPT = "<toy> is riding <dog> in the snow"


class Middle:
    """A segmenter that finds everything in the middle of each frame."""

    def masks(self, frames, phrases, hints=(), source=None):
        masks = np.zeros(frames.shape[:3], bool)
        masks[:, 8:24, 6:20] = True
        return {phrase: SimpleNamespace(masks=masks, confidence=masks.mean((1, 2))) for phrase in phrases}


def make_project(root, base_folder, subjects=("toy", "dog", "horse")):
    """A project with noise for photos and for a clip, and a mask track for each of two actors."""
    rng = np.random.default_rng(0)
    for n, name in enumerate(subjects):
        write_images(root / "photos" / name, rng.integers(0, 255, (2, 32 + n, 32, 3), dtype=np.uint8))
    write_video(root / "ref.mp4", rng.integers(0, 255, (6, 32, 32, 3), dtype=np.uint8))
    height, width = read_clip(root / "ref.mp4").shape[1:3]
    for name, box in (("person", np.s_[:, :height // 2]), ("horse", np.s_[:, height // 2:, : width // 2])):
        masks = np.zeros((6, height, width), bool)
        masks[box] = True
        write_masks(root / "drawn" / name, masks)
    options = {**QUICK, "segment": {"segmenter": "given", "masks": "drawn"}}
    return Workspace.create(root, base=str(base_folder), subjects={
        name: {"class": {"toy": "teddy bear"}.get(name, name), "images": f"photos/{name}"} for name in subjects},
        motion={"name": "riding", "clip": "ref.mp4", "prompt": "a [person] is riding a [horse]"}, prompts=[PROMPT],
        options=options)


@pytest.fixture(scope="module", autouse=True)
def shared(backbone):
    """One base for all stages here instead of a load in each, and a stand-in for the network that finds subjects in
    what the stages draw; masks of files are read for real."""
    real = segmenters.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmenters, "load", lambda name, setup: real(name, setup) if name == "given" else Middle())
        for stage in ("invert", "learn_subject", "learn_motion", "fuse", "sample"):
            patch.setattr(f"stages.{stage}.load_for", lambda project, **how: backbone)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory, base_folder):
    """A project in which every stage has run, and its artefacts by stage."""
    project = make_project(tmp_path_factory.mktemp("project"), base_folder)
    return project, run_all(project)


def run_all(project):
    return {"segment": segment(project), "invert": invert(project),
            **{name: learn_subject(project, name) for name in ("toy", "dog", "horse")},
            "learn-motion": learn_motion(project), "fuse": fuse(project, ["toy", "dog"]),
            "sample": sample(project)[0]}


def snapshot(root):
    return {str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
            for path in sorted(root.rglob("*")) if path.is_file()}


def notes(into):
    return lambda **facts: into.append(facts)


# -- all of them ------------------------------------------------------------------------------------------------------
def test_every_stage_leaves_its_files(made):
    project, artefacts = made
    for artefact in artefacts.values():
        assert artefact.made and artefact.files and all(path.is_file() for path in artefact.files)
    root = project.root
    for name in ("motions/riding/masks/person/0003.png", "motions/riding/frames/0003.png", "motions/riding/overlay.png",
                 "motions/riding/noise.safetensors", "motions/riding/invert-preview.png",
                 "motions/riding/learn-motion-preview.png", "subjects/toy/images/0000.png",
                 "subjects/toy/token.safetensors", "subjects/toy/learn-subject-preview.png",
                 "fused/dog+toy/videos/toy-1.mp4", "fused/dog+toy/fuse-preview.png",
                 "samples/0001-toy-is-riding-dog-in-the-snow/sheet.png"):
        assert (root / name).is_file(), name
    assert not list((root / ".partial").glob("*/checkpoints-*"))
    tokens = load_tokens(root / "motions/riding/tokens.safetensors")
    assert set(tokens) == {"<person>", "<horse>"} and all(rows.shape == (1, 32) for rows in tokens.values())
    assert np.isfinite(artefacts["invert"].manifest["facts"]["round trip error"])


def test_a_second_run_touches_no_file(made):
    project, _ = made
    before = snapshot(project.root)
    again = run_all(Workspace(project.root))
    assert not any(artefact.made for artefact in again.values())
    assert snapshot(project.root) == before


def test_the_subject_lora_is_spatial_and_the_motion_lora_temporal(made):
    subject = load_lora(made[0].root / "subjects/toy/lora.safetensors")
    motion = load_lora(made[0].root / "motions/riding/lora.safetensors")
    assert all(".attentions." in name for name in subject.modules)
    assert all("temp_attentions" in name or "transformer_in" in name for name in motion.modules)
    assert any(bool(subject.delta(name).abs().max() > 0) for name in subject.modules)
    assert motion.metadata["c_m"] == "a <person> is riding a <horse>"
    assert motion.metadata["c_ap"] == "A static video of <person> and <horse>."
    assert motion.metadata["trigger"] == "<person> <horse>" and motion.metadata["targets"] == "motion"


def test_the_log_tells_of_every_step(made):
    log = json.loads(made[1]["sample"].path.with_name("log.json").read_text())
    assert log["plain prompt"] == "teddy bear is riding dog in the snow"
    steps = log["steps"]
    assert [row["step"] for row in steps] == [1, 2]
    assert {"loss_s_to_m", "loss_m_to_s", "shift_s", "shift_m"} <= set(steps[0])
    assert "loss_s_to_m" not in steps[1]


def test_the_frames_are_lossless_and_of_the_bases_size(made):
    frames = read_clip(made[1]["sample"].path.with_name("frames.png"))
    assert frames.shape == (4, 32, 32, 3)


# -- resume -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stage, run, product", [
    ("learn-subject", lambda p, **k: learn_subject(p, "toy", **k), ["lora.safetensors", "token.safetensors"]),
    ("learn-motion", lambda p, **k: learn_motion(p, **k), ["lora.safetensors"]),
    ("fuse", lambda p, **k: fuse(p, ["toy", "dog"], **k), ["lora.safetensors"]),
    ("invert", lambda p, **k: invert(p, **k), ["tokens.safetensors", "noise.safetensors"]),
])
def test_a_stopped_run_goes_on_to_the_same_bytes(made, stage, run, product):
    project, _ = made
    artefact = run(Workspace(project.root))
    calm = {name: (artefact.folder / name).read_bytes() for name in product}

    def stop_at_two(**facts):
        if facts.get("step") == 2 and "loss" in facts:
            reports.ask_to_stop()

    said = []
    try:
        with pytest.raises(Interrupted):
            run(Workspace(project.root), force=True, report=stop_at_two)
    finally:
        reports.clear_stop()
    assert {name: (artefact.folder / name).read_bytes() for name in product} == calm     # the old one still stands
    resumed = run(Workspace(project.root), force=True, report=notes(said))
    assert any("going on from step 2" in str(facts.get("note")) for facts in said)
    assert resumed.made and {name: (artefact.folder / name).read_bytes() for name in product} == calm


# -- what each stage can be asked -------------------------------------------------------------------------------------
def test_w_0_is_plain_fine_tuning_and_another_w_is_not(made):
    project, _ = made
    options = resolve("learn-motion", project.settings)
    loras = {}
    for w in (0.0, 0.5):
        artefact = learn_motion(project, options=replace(options, w=w), force=True)
        loras[w] = load_lora(artefact.path)
    name = loras[0.0].modules[0]
    assert not torch.equal(loras[0.0].delta(name), loras[0.5].delta(name))


def test_fusing_three(made):
    project, _ = made
    said = []
    artefact = fuse(project, ["toy", "dog", "horse"], report=notes(said))
    assert artefact.name == "dog+horse+toy"
    assert load_lora(artefact.path).rank == 6
    assert sum("L_attn" in facts for facts in said) == 3


def test_fusing_what_is_cut_from_photos(made):
    """Three in a composition, in each of their six orders; the photos are inputs of the fusion then."""
    project, _ = made
    options = replace(resolve("fuse", project.settings), cuts="photos", together=3, compositions=12)
    plan = project.plan(STAGES["fuse"], "dog+horse+toy", options)
    assert {"dog/images", "horse/images", "toy/images"} <= set(plan.inputs)
    artefact = fuse(project, ["toy", "dog", "horse"], options)
    manifest = json.loads((artefact.folder / "fuse.json").read_text())
    assert manifest["facts"]["photos with their subject in sight"] == {"dog": 2, "horse": 2, "toy": 2}
    assert len(list((artefact.folder / "videos").glob("toy-*.mp4"))) == 2
    fuse(project, ["toy", "dog", "horse"], force=True)


def test_fusion_starts_from_the_exact_mean(made):
    project, _ = made
    quiet = replace(resolve("fuse", project.settings), steps=1, rate=1e-12, lambda2=0)
    fused = load_lora(fuse(project, ["dog", "horse"], quiet).path)
    loras = [load_lora(project.root / f"subjects/{name}/lora.safetensors") for name in ("dog", "horse")]
    for name in fused.modules:
        want = sum(lora.delta(name).double() for lora in loras) / 2
        assert (fused.delta(name).double() - want).abs().max() < 1e-6
        assert torch.allclose(mean(loras).delta(name).double(), want, atol=1e-6)


def test_samples_degrade_to_the_branch_that_is_there(made):
    project, _ = made
    logs = {}
    for label, prompt, keywords in (("subjects", PROMPT, {"motion": "none"}), ("one", "a <toy> in the snow", {}),
                                    ("motion", "a dog is riding a horse", {}),
                                    ("neither", "a dog is riding a horse", {"motion": "none"})):
        artefact = sample(project, [prompt], **keywords)[0]
        logs[label] = json.loads(artefact.path.with_name("log.json").read_text())["steps"]
        assert artefact.path.is_file()
    assert all("shift_s" not in row for label in ("subjects", "motion", "neither") for row in logs[label])
    assert "shift_s" in logs["one"][0]


def test_beta_0_forgets_the_clip_and_branches_choose(made):
    project, _ = made
    options = resolve("sample", project.settings)
    frames = {}
    for label, chosen in (("both", options), ("beta 0", replace(options, beta=0.0)),
                          *((b, replace(options, branches=b)) for b in ("subject", "motion", "joint", "none"))):
        artefact = sample(project, [PROMPT], chosen)[0]
        frames[label] = (artefact.path.with_name("frames.png")).read_bytes()
    assert len(set(frames.values())) == len(frames)
    with pytest.raises(UsageError, match="branches is 'left'"):
        sample(project, [PROMPT], replace(options, branches="left"))
    with pytest.raises(UsageError, match="nowhere"):
        sample(project, [PROMPT], replace(options, layers="nowhere"))


def test_the_recast_clip_is_what_a_cast_sample_starts_from(made, backbone):
    """Photos, clip and masks are inputs of that sample and of no other; its noise depends on who plays whom."""
    project, _ = made
    options = replace(resolve("sample", project.settings), inverted="cast")
    by_words, told = {}, []
    for prompt in (PROMPT, "<dog> is riding <toy> in the snow"):
        plan = sample_plans(project, [prompt], options, base=identity(project.settings.base), reserve=False)[0]
        by_words[prompt] = recast_noise(project, backbone, plan, target_of(project, prompt), report=notes(told))
        assert {"motion/frames", "motion/masks", "toy/images", "dog/images"} <= set(plan.inputs)
    clip, noise = by_words[PROMPT]
    motion = project.root / "motions/riding"
    tracks = [read_masks(motion / "masks" / name, (32, 32)) for name in ("person", "horse")]
    cuts = []
    for name in ("toy", "dog"):
        picture = read_images(project.photos(name)[:1])[0]
        held = Photo(picture).fitted((32, 32)).picture
        cuts.append(Cut.of_photo(held, Middle().masks(held[None], ["x"])["x"].masks[0], 4))
    assert np.array_equal(clip, recast(read_take(motion, (32, 32)).window(), tracks, cuts).frames)
    plan = sample_plans(project, [PROMPT], replace(options, edges="snapped"), reserve=False)[0]
    edged, _ = recast_noise(project, backbone, plan, target_of(project, PROMPT))
    window, hidden = read_take(motion, (32, 32)).window(), np.any(tracks, 0)
    finer = []
    for name in ("toy", "dog"):
        each = [Photo(picture).fitted((32, 32)).picture for picture in read_images(project.photos(name))]
        masks = [snapped(held[None], Middle().masks(held[None], ["x"])["x"].masks)[0] for held in each]
        finer.append(max((Cut.of_photo(held, mask, 4) for held, mask in zip(each, masks)), key=lambda c: c.masks.sum()))
    assert np.array_equal(edged, recast(window, tracks, finer, hidden | snapped(window, hidden)).frames)
    assert noise.shape == (1, 4, 4, *backbone.latent_size)
    assert told[0]["note"] == "the clip is recast: <toy> for the person and <dog> for the horse"
    x_0 = encode(backbone, clip[None])
    assert torch.equal(noise, invert_clip(backbone, x_0, steps=2)) and not torch.equal(noise, load_file(
        project.root / "motions/riding/noise.safetensors")["noise"])
    assert not torch.equal(noise, by_words["<dog> is riding <toy> in the snow"][1])
    said = []
    nobody = sample_plans(project, ["a dog rides"], options, subjects=["toy"], reserve=False)[0]
    recast_noise(project, backbone, nobody, target_of(project, "a dog rides"), report=notes(said))
    assert "the prompt names no subject" in said[0]["note"]
    frames = {kind: sample(project, [PROMPT], replace(options, inverted=kind))[0].path.with_name("frames.png")
              for kind in ("clip", "cast")}
    assert frames["clip"].read_bytes() != frames["cast"].read_bytes()
    for plain in (replace(options, inverted="clip"), replace(options, beta=0.0)):
        plan = sample_plans(project, [PROMPT], plain, reserve=False)[0]
        assert not {"motion/frames", "toy/images"} & set(plan.inputs)


def test_count_and_prompts_make_a_sample_each(made):
    project, _ = made
    options = replace(resolve("sample", project.settings), count=2)
    artefacts = sample(project, ["a <dog> in the snow", "a <dog>"], options, seed=7, motion="none")
    assert [a.manifest["seed"] for a in artefacts] == [7, 8, 7, 8]
    assert len({a.folder for a in artefacts}) == 4
    assert not any(a.made for a in sample(project, ["a <dog>"], replace(options, count=1), seed=8, motion="none"))


def test_photos_are_segmented_and_kept(tmp_path, base_folder):
    project = make_project(tmp_path, base_folder, ("toy",))
    masks = np.zeros((2, 32, 32), bool)
    masks[:, 4:20, 4:20] = True
    write_masks(tmp_path / "own" / "teddy bear", masks)
    options = replace(resolve("segment", project.settings), masks=tmp_path / "own")
    artefact = segment(project, "subjects/toy", options)
    kept = artefact.folder
    assert len(list((kept / "photos").iterdir())) == 2 and (read_masks(kept / "masks/teddy-bear") == masks).all()
    assert artefact.manifest["facts"]["shares of the frames"] == {"teddy bear": [0.25, 0.25]}


def test_an_actor_that_is_nowhere_is_refused(tmp_path, base_folder):
    project = make_project(tmp_path, base_folder, ("toy",))
    write_masks(tmp_path / "drawn" / "horse", np.zeros((6, 32, 32), bool))
    with pytest.raises(BadInput, match="'horse' was found in none of 4 pictures"):
        segment(project)
    assert not (tmp_path / "motions/riding/segment.json").exists()


def test_c_m_names_the_actors_by_tokens_or_by_words():
    sentence, tokens = motion_prompt("a [cat] chases a [dog]"), {"<cat>": None, "<dog>": None}
    assert prompts_of(sentence, LearnMotionOptions(), tokens) == (
        "a <cat> chases a <dog>", "A static video of <cat> and <dog>.")
    assert prompts_of(sentence, LearnMotionOptions(actors="words"), tokens)[0] == "a cat chases a dog"
    with pytest.raises(UsageError, match="tokens or words"):
        prompts_of(sentence, LearnMotionOptions(actors="names"), tokens)


# -- what cannot be done ----------------------------------------------------------------------------------------------
def test_missing_prerequisites_name_the_next_command(tmp_path, base_folder):
    project = make_project(tmp_path, base_folder, ("toy", "dog"))
    with pytest.raises(MissingPrerequisite, match="videomage segment"):
        invert(project)
    with pytest.raises(MissingPrerequisite, match="videomage learn-subject"):
        fuse(project)
    with pytest.raises(MissingPrerequisite, match="Run: videomage"):
        sample(project)
    with pytest.raises(UsageError, match="two subjects or more"):
        fuse(project, ["toy"])
    with pytest.raises(BadInput, match="no subject 'cat'"):
        sample(project, ["a <cat>"])


def test_a_prompt_with_other_actors_is_refused(made):
    with pytest.raises(BadInput, match="names the actor 'dog'"):
        learn_motion(made[0], prompt="a [dog] is riding a [horse]")


def test_a_frame_without_the_actor_is_refused(made):
    options = replace(resolve("invert", made[0].settings), token_frame=99)
    with pytest.raises(BadInput, match="4 frames"):
        invert(made[0], options=options)


# -- invert's parts ---------------------------------------------------------------------------------------------------
def test_a_crop_holds_its_actor_whole_and_centred():
    frame = np.zeros((40, 60, 3), np.uint8)
    mask = np.zeros((40, 60), bool)
    mask[0:10, 50:60] = True
    frame[mask] = 255
    part = crop(frame, mask, (32, 32))
    assert part.picture.shape == (32, 32, 3) and part.mask.shape == (32, 32)
    assert 0.4 < part.mask.mean() < 0.8                       # about 1 / 1.3^2
    rows, columns = np.flatnonzero(part.mask.any(1)), np.flatnonzero(part.mask.any(0))
    assert abs(rows.mean() - 15.5) < 2 and abs(columns.mean() - 15.5) < 2
    assert (part.picture[part.mask] > 100).mean() > 0.9


def test_refined_inversion_comes_back_closer(backbone64):
    x = torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noises = [invert_clip(backbone64, x, steps=4, refine=n) for n in (0, 2, 8)]
    errors = [float((draw(backbone64, "", noise, steps=4, guidance=1.0) - x).norm()) for noise in noises]
    assert errors[0] > errors[1] > errors[2]


def test_pictures_are_read_by_people_too(made):
    for path in made[0].root.rglob("*preview.png"):
        with Image.open(path) as picture:
            assert picture.size[0] > 100
