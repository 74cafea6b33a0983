"""Exports: each format is read by its own library's own loader, with no key missing and none left over, and gives the
same denoiser and the same latents as our own `lora.applied`."""
from __future__ import annotations

import json
import logging
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from oracles import as_noise, random_lora, step
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from stages.core import lora as L
from stages.core.denoise import draw, gaussian
from stages.core.errors import BadInput, Locked, MissingPrerequisite, UsageError
from stages.core.lock import locked
from stages.core.video import read_clip
from stages.core.workspace import Workspace
from stages.export import FORMATS, export, files_of, kohya_files
from stages.fuse import Teacher, fuse_loras
from stages.learn_subject import learn_subject_tensors
from stages.options import FuseOptions, LearnSubjectOptions

PROMPT = "a <toy>, riding on the <toy>"
KINDS = ("subject", "motion", "fused")
TOKEN = {"<toy>": torch.randn(2, 32, generator=torch.Generator().manual_seed(3))}        # of two vectors
CONFUSED = ("missing keys", "unexpected keys")           # words of diffusers' complaints


@pytest.fixture(scope="module")
def loras(backbone):
    """One of each kind, and none with a scaling of 1. alpha 0.7 is no float32; the fused one has rank 2 + 3."""
    def made(who, **how):
        found = random_lora(backbone.denoiser, backbone.targets(who), **how)
        return replace(found, metadata={who: "toy", **L.provenance(backbone, who, ["<toy>"])})

    subject, other = made("subject", rank=2, alpha=3.0, seed=1), made("subject", rank=3, alpha=0.5, seed=2)
    fused = replace(L.mean([subject, other]), metadata={**subject.metadata, "subjects": "dog+toy"})
    return {"subject": subject, "motion": made("motion", rank=3, alpha=0.7, seed=4), "fused": fused}


@pytest.fixture
def exported(loras, tmp_path):
    """(kind, format) -> the folder that holds that LoRA and the token."""
    def make(kind, form):
        L.save(loras[kind], tmp_path / f"{kind}.safetensors")
        L.save_tokens(TOKEN, tmp_path / "token.safetensors")
        export([tmp_path / f"{kind}.safetensors", tmp_path / "token.safetensors"], tmp_path / kind / form, form)
        return tmp_path / kind / form

    return make


def fresh_unet(base_folder):
    from diffusers import UNet3DConditionModel

    return UNet3DConditionModel.from_pretrained(base_folder, subfolder="unet").eval()


def pipeline(base_folder):
    """diffusers' own pipeline; its U-Net learns to load LoRAs in the way that diffusers documents."""
    from diffusers import TextToVideoSDPipeline, UNet3DConditionModel
    from diffusers.loaders import PeftAdapterMixin

    unet = type("UNet", (UNet3DConditionModel, PeftAdapterMixin), {})
    pipe = TextToVideoSDPipeline.from_pretrained(base_folder, unet=unet.from_pretrained(base_folder, subfolder="unet"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def ours(backbone, loras):
    """{kind: (what the denoiser says under our own LoRA, the latents that our own sampler draws with it)}; neither is
    what the base alone makes."""
    plain, found = (denoised(backbone, backbone.denoiser), loop(backbone, backbone.denoiser)), {}
    for kind, lora in loras.items():
        found[kind] = (denoised(backbone, backbone.denoiser, lora),
                       draw(backbone, PROMPT, gaussian(backbone, 4, 5), tokens=TOKEN, lora=lora, steps=2, guidance=1.0))
        assert not any(torch.allclose(a, b, atol=1e-2) for a, b in zip(found[kind], plain))
    return found


def denoised(backbone, net, lora=None):
    """What a network says of one x_t, under one of our LoRAs or as it is."""
    x, vectors = gaussian(backbone, 4, 5), backbone.embed([PROMPT], TOKEN)
    with torch.no_grad(), L.applied(net, lora):
        return net(x, 500, encoder_hidden_states=vectors).sample


def loop(backbone, net, steps=2):
    """Plain DDIM with eta = 0, written out, by a network with everything loaded."""
    x, vectors = gaussian(backbone, 4, 5), backbone.embed([PROMPT], TOKEN)
    times = backbone.timesteps(steps).tolist()
    for t, t_prev in zip(times, [*times[1:], -1]):
        with torch.no_grad():
            eps = as_noise(backbone, net(x, t, encoder_hidden_states=vectors).sample, x, t)
        x = step(backbone, x, eps, t, t_prev)
    return x


def assert_same_state(state, lora):
    """Not one key more or less, not one bit else."""
    assert state.keys() == lora.tensors.keys()
    assert all(torch.equal(state[key], value) for key, value in lora.tensors.items())


@pytest.fixture
def complaints():
    """What diffusers logs about keys while a test runs."""
    said = []

    class Listener(logging.Handler):
        def emit(self, record):
            said.extend(word for word in CONFUSED if word in record.getMessage())

    listener = Listener()
    logging.getLogger("diffusers").addHandler(listener)
    yield said
    logging.getLogger("diffusers").removeHandler(listener)


# -- peft ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_its_folder(backbone, base_folder, loras, ours, exported, kind):
    from peft import PeftModel, get_peft_model_state_dict

    folder, lora = exported(kind, "peft"), loras[kind]
    net = fresh_unet(base_folder)
    model = PeftModel.from_pretrained(net, folder)               # warns of keys that are missing; warnings are errors
    assert_same_state({key.removeprefix("base_model.model."): value
                       for key, value in get_peft_model_state_dict(model, save_embedding_layers=False).items()}, lora)
    assert model.peft_config["default"].lora_alpha == lora.alpha and model.peft_config["default"].r == lora.rank
    assert torch.equal(denoised(backbone, net), ours[kind][0])
    assert torch.allclose(loop(backbone, net), ours[kind][1], atol=2e-5, rtol=0)
    again = model.load_adapter(folder, "again")
    assert not again.missing_keys and not again.unexpected_keys


# -- diffusers -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_pipeline_of_diffusers_makes_the_same_latents(backbone, base_folder, loras, ours, exported, complaints,
                                                              kind):
    """Prompt, token, LoRA, guidance and sampler are all diffusers'."""
    from peft import get_peft_model_state_dict

    folder, lora, pipe = exported(kind, "diffusers"), loras[kind], pipeline(base_folder)
    pipe.load_textual_inversion(folder / "toy.safetensors")
    pipe.load_lora_weights(folder)
    assert not complaints
    assert_same_state(get_peft_model_state_dict(pipe.unet, adapter_name="default_0"), lora)
    assert pipe.unet.peft_config["default_0"].lora_alpha == lora.alpha
    assert torch.equal(denoised(backbone, pipe.unet), ours[kind][0])
    x_T = gaussian(backbone, 4, 7)
    how = {"num_frames": 4, "num_inference_steps": 3, "guidance_scale": 2.5, "output_type": "latent"}
    theirs = pipe(PROMPT, latents=x_T.clone(), **how).frames
    guided = draw(backbone, PROMPT, x_T, tokens=TOKEN, lora=lora, steps=3, guidance=2.5)
    assert torch.allclose(theirs, guided, atol=2e-5, rtol=0)
    assert torch.equal(theirs, pipe(PROMPT, latents=x_T.clone(), **how).frames)


@pytest.mark.filterwarnings("ignore:Already found a .peft_config.")        # PEFT says so of any second adapter
def test_a_subject_and_a_motion_together_in_diffusers(backbone, base_folder, loras, ours, exported, complaints):
    pipe = pipeline(base_folder)
    for kind in ("fused", "motion"):
        pipe.load_lora_weights(exported(kind, "diffusers"), adapter_name=kind)
    pipe.set_adapters(["fused", "motion"])
    both = denoised(backbone, backbone.denoiser, [loras["fused"], loras["motion"]])
    assert torch.equal(denoised(backbone, pipe.unet), both) and not complaints
    pipe.set_adapters(["motion"])
    assert torch.equal(denoised(backbone, pipe.unet), ours["motion"][0])


def test_the_example_is_what_it_says(backbone, base_folder, loras, exported, monkeypatch, tmp_path):
    """examples/in_diffusers.py, word for word: its frames are those that we decode from the same noise."""
    folder, script = exported("subject", "diffusers"), Path(__file__).parent.parent / "examples/in_diffusers.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 40
    monkeypatch.setattr(sys, "argv", [str(script), str(base_folder), str(folder / "toy.safetensors"), str(folder),
                                      PROMPT, str(tmp_path / "toy.mp4"), "--frames=4", "--steps=2", "--guidance=2"])
    with torch.random.fork_rng(devices=[]):
        video = runpy.run_path(str(script), run_name="__main__")["video"]
    x_T = torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ours = backbone.decode(draw(backbone, PROMPT, x_T, tokens=TOKEN, lora=loras["subject"], steps=2, guidance=2.0))[0]
    assert np.abs(video * 255 - ours).max() <= 1 and ours.std() > 1
    assert read_clip(tmp_path / "toy.mp4").shape == ours.shape


def test_the_readme_shows_the_example():
    root = Path(__file__).parent.parent
    core = (root / "examples/in_diffusers.py").read_text(encoding="utf-8").split("# -- the ten lines")[1]
    lines = core.replace("  # noqa: E402", "").strip().splitlines()[1:]
    assert "\n".join(lines).strip() in (root / "README.md").read_text(encoding="utf-8")


# -- kohya -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_lycoris_loads_the_kohya_file(backbone, base_folder, loras, ours, exported, monkeypatch, kind):
    """LyCORIS adds B A to the weights where we add it to the outputs, hence the rounding."""
    from lycoris import LycorisNetwork, create_lycoris_from_weights

    file, lora = next(exported(kind, "kohya").glob("*-lora.safetensors")), loras[kind]
    monkeypatch.setattr(LycorisNetwork, "LORA_PREFIX", LycorisNetwork.LORA_PREFIX)       # put back after the test
    LycorisNetwork.apply_preset({"lora_prefix": "lora_unet"})
    net = fresh_unet(base_folder)
    network, weights = create_lycoris_from_weights(1.0, str(file), net)
    assert len(network.loras) == len(lora.modules)
    network.apply_to()
    keys = network.load_state_dict(weights, strict=False)
    assert not keys.missing_keys and not keys.unexpected_keys and len(weights) == 3 * len(lora.modules)
    assert {module.scale for module in network.loras} == {lora.scaling}
    network.eval()
    assert torch.allclose(denoised(backbone, net), ours[kind][0], atol=1e-5, rtol=0)
    assert torch.allclose(loop(backbone, net), ours[kind][1], atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", ["subject", "fused"])
def test_diffusers_reads_the_kohya_file_of_subjects(backbone, base_folder, loras, ours, exported, complaints, kind):
    """Its converter spells dots from a list of words that has no temp_attentions: motions it cannot read."""
    from peft import get_peft_model_state_dict

    pipe = pipeline(base_folder)
    pipe.load_lora_weights(next(exported(kind, "kohya").glob("*-lora.safetensors")))
    assert not complaints
    assert_same_state(get_peft_model_state_dict(pipe.unet, adapter_name="default_0"), loras[kind])
    assert torch.equal(denoised(backbone, pipe.unet), ours[kind][0])


def test_what_kohya_cannot_tell_apart_is_refused():
    pair = {"a.b_c": 0, "a_b.c": 0}
    lora = L.Lora({f"{m}.lora_{f}.weight": torch.zeros(1, 1) for m in pair for f in "AB"}, 1.0, 1)
    with pytest.raises(BadInput, match="two of the LoRA's layers have one name"):
        kohya_files(lora, "x")


# -- tokens ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", FORMATS)
def test_tokens_are_textual_inversions_in_every_form(backbone, base_folder, tmp_path, form):
    """Actors of a motion come in one file and leave in one each; a token of n vectors is spelled out by diffusers."""
    tokens = {**TOKEN, "<tall-person>": torch.ones(1, 32)}
    L.save_tokens(tokens, tmp_path / "tokens.safetensors")
    files = export(tmp_path / "tokens.safetensors", tmp_path / "out", form)
    assert [file.name for file in files] == ["tall-person.safetensors", "toy.safetensors"]
    pipe = pipeline(base_folder)
    for file in files:
        pipe.load_textual_inversion(file)
    for prompt in (PROMPT, "<toy>", "the <tall-person>'s <toy>! is riding"):
        theirs, _ = pipe.encode_prompt(prompt, "cpu", 1, False)
        assert torch.allclose(theirs, backbone.embed([prompt], tokens), atol=1e-6, rtol=0)


def test_our_own_token_file_is_one_already(backbone, base_folder, tmp_path):
    L.save_tokens(TOKEN, tmp_path / "token.safetensors")
    pipe = pipeline(base_folder)
    pipe.load_textual_inversion(tmp_path / "token.safetensors")
    assert torch.allclose(pipe.encode_prompt(PROMPT, "cpu", 1, False)[0], backbone.embed([PROMPT], TOKEN), atol=1e-6)


# -- what goes along -------------------------------------------------------------------------------------------------
def header(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("form", FORMATS)
def test_the_origin_goes_along_and_the_bytes_are_the_same(loras, exported, tmp_path, form):
    folder = exported("motion", form)
    weights = next(path for path in folder.glob("*.safetensors") if path.name != "toy.safetensors")
    facts, origin = header(weights), json.loads(header(weights)["videomage"])
    assert origin == {**loras["motion"].metadata, "alpha": 0.7, "rank": 3}
    assert origin["targets"] == "motion" and len(origin["revision"]) == 64 and "/" not in origin["base"]
    assert "licence is not stated" in origin["licence"]
    if form == "kohya":
        assert facts["ss_network_module"] == "networks.lora" and facts["ss_output_name"] == "toy"
        assert (facts["ss_network_dim"], facts["ss_network_alpha"]) == ("3", "0.7")
        assert "trigger: <toy>" in facts["ss_training_comment"] and "licence is not" in facts["ss_training_comment"]
    else:
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert "`<toy>`" in card and "licence is not stated" in card and f"library_name: {form}" in card
    export(tmp_path / "motion.safetensors", tmp_path / "again", form)
    for path in (tmp_path / "again").iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes()


def test_a_known_base_is_named_by_its_repository_and_an_unknown_one_not_at_all(loras, tmp_path):
    for base, said in (("zeroscope", "cerspense/zeroscope_v2_576w"), (None, None)):
        lora = replace(loras["subject"], metadata={"base": base} if base else {})
        L.save(lora, tmp_path / "lora.safetensors")
        export(tmp_path / "lora.safetensors", tmp_path / "out", "peft", force=True)
        assert json.loads((tmp_path / "out/adapter_config.json").read_text())["base_model_name_or_path"] == said
        assert ("base_model: " in (tmp_path / "out/README.md").read_text()) == bool(base)


def test_what_the_stages_learn_says_where_it_comes_from(backbone):
    """The motion's header is written with its prompts in the stage itself: tests/test_stages.py."""
    x = gaussian(backbone, 1, 0)
    token, lora = learn_subject_tensors(backbone, x, "toy", "red dog", [], LearnSubjectOptions(steps=1, rank=2))
    facts = lora.metadata
    assert (facts["subject"], facts["class"], facts["prompt"]) == ("toy", "red dog", "A <toy>")
    assert (facts["trigger"], facts["targets"]) == ("<toy>", "subject") and backbone.licence in facts["licence"]
    assert facts["base"] == Path(backbone.name).name and facts["revision"] == backbone.revision
    teachers = [Teacher(name, token, lora, backbone.embed([""]), x) for name in ("dog", "toy")]
    fused = fuse_loras(backbone, teachers, [], FuseOptions(steps=1, lambda2=0)).metadata
    assert (fused["subjects"], fused["prompt"]) == ("dog+toy", "A <dog> and a <toy>")
    assert (fused["trigger"], fused["targets"], fused["base"]) == ("<dog> <toy>", "subject", facts["base"])


# -- files -----------------------------------------------------------------------------------------------------------
def test_nothing_is_overwritten_unasked_and_nothing_half_written(loras, tmp_path, monkeypatch):
    L.save(loras["subject"], source := tmp_path / "lora.safetensors")
    out = tmp_path / "deep" / "out"
    real = Path.write_bytes

    def failing(path, data):
        if ".safetensors" in path.name:
            raise OSError(28, "No space left on device")
        return real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", failing)
        with pytest.raises(OSError, match="No space"):
            export(source, out, "peft")
    assert not list((tmp_path / "deep").iterdir())
    files = export(source, out, "peft")
    assert sorted(out.iterdir()) == sorted(files)
    (out / "adapter_model.safetensors").write_bytes(b"other")
    (out / "mine.txt").write_text("stays")
    with pytest.raises(UsageError, match="adapter_config.json is there already.*--force"):
        export(source, out, "peft")
    assert (out / "adapter_model.safetensors").read_bytes() == b"other"
    assert export(source, out, "peft", force=True) == files
    assert load_file(out / "adapter_model.safetensors") and (out / "mine.txt").read_text() == "stays"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    with pytest.raises(UsageError, match="is a file"):
        export(source, source)


def test_what_cannot_be_exported_is_said(loras, tmp_path):
    L.save(loras["subject"], lora := tmp_path / "lora.safetensors")
    with pytest.raises(UsageError, match="'pefd' is no format. did you mean 'peft'"):
        export(lora, tmp_path / "out", "pefd")
    with pytest.raises(BadInput, match="there is no file"):
        export(tmp_path / "nowhere.safetensors", tmp_path / "out")
    save_file({"x": torch.zeros(2, 2)}, foreign := tmp_path / "foreign.safetensors")
    with pytest.raises(BadInput, match="neither a LoRA nor tokens"):
        export(foreign, tmp_path / "out")
    for form in FORMATS:                                         # what was exported is not taken for ours
        for path in export(lora, tmp_path / form, form):
            if path.suffix == ".safetensors":
                with pytest.raises(BadInput, match="neither a LoRA nor tokens"):
                    export(path, tmp_path / "out", form)
    with pytest.raises(BadInput, match="two of the sources would both be adapter_config.json"):
        export([lora, lora], tmp_path / "out", "peft")
    L.save_tokens({"<Toy>": torch.ones(1, 2), "<toy>": torch.ones(1, 2)}, tmp_path / "t.safetensors")
    with pytest.raises(BadInput, match="two tokens would both be toy.safetensors"):
        export(tmp_path / "t.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_name_of_the_project_stands_for_its_files(tmp_path):
    project = Workspace.create(tmp_path, subjects={name: {"class": name, "images": "."} for name in ("toy", "dog")},
                               motion={"name": "riding", "clip": "a.mp4", "prompt": "a [person] rides"})
    wanted = {"toy": ["subjects/toy/lora", "subjects/toy/token"],
              "toy+dog": ["fused/dog+toy/lora", "subjects/dog/token", "subjects/toy/token"],
              "riding": ["motions/riding/lora", "motions/riding/tokens"]}
    for name, command in (("toy", "learn-subject toy"), ("toy+dog", "fuse --subjects dog toy"),
                          ("riding", "learn-motion riding")):
        with pytest.raises(MissingPrerequisite, match=f"lora.safetensors has not been made. Run: videomage {command}"
                           ), files_of(project, name):
            pass
    for path in {each for paths in wanted.values() for each in paths}:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{path}.safetensors").touch()
    for name, paths in wanted.items():
        with files_of(project, name) as found:
            assert found == [tmp_path / f"{path}.safetensors" for path in paths]
    with pytest.raises(UsageError, match="'tow' is no subject.*did you mean 'toy'"), files_of(project, "tow"):
        pass
    with files_of(project, "toy+dog"), pytest.raises(Locked, match="'toy' is being read by .*export toy"), \
            locked(project.partial / "learn-subject-toy.lock", "learn-subject 'toy'"):
        pass
