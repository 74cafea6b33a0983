"""Files of a stranger: safetensors, pickles, YAML, JSON, manifests and formats are looked through before they are
believed."""
from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hostile import HEADERS, entry, made, packed, pickled, small_lora, small_project, tampered
from safetensors.torch import load_file, save_file

from stages import STAGES
from stages.backbones import bases
from stages.backbones.bases import licence
from stages.backbones.folder import check
from stages.core import formats, lora, manifests
from stages.core.cache import Cache
from stages.core.captions import Places, select
from stages.core.checkpoints import Checkpoints
from stages.core.errors import BadInput, Refused
from stages.core.foreign import (
    DEEPEST,
    MOST,
    MOST_CONFIG,
    MOST_JSON,
    UNFOLDED,
    holds,
    loads,
    parse_yaml,
    read_json,
    read_text,
    read_yaml,
)
from stages.core.headers import header
from stages.core.settings import parse
from stages.core.tables import read_table
from stages.core.tensors import read_tensors
from stages.core.workspace import Workspace


# -- safetensors ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("what", HEADERS)
def test_a_header_that_cannot_be_is_refused(what, tmp_path, survived):
    content, said = HEADERS[what]
    path = tmp_path / "lora.safetensors"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=said) as refused:
        header(path)
    assert str(path) in str(refused.value) and refused.value.remedy
    for read in (lora.load, lora.load_tokens):
        with pytest.raises(BadInput, match="cannot be read"):
            read(path)
    survived("hostile files", f"safetensors: {what}")


def test_a_right_header_is_read_in_order(tmp_path):
    tensors = {"b": torch.ones(2, 3), "a": torch.zeros(0, 4), "c": torch.tensor(7), "d": torch.ones(3).bool()}
    save_file(tensors, tmp_path / "x.safetensors", {"said": "so"})
    said = header(tmp_path / "x.safetensors")
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    assert {name: entry.shape for name, entry in said.entries.items()} == shapes
    found, metadata = read_tensors(tmp_path / "x.safetensors", "a file")
    assert metadata == {"said": "so"} and all(torch.equal(found[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_numbers_that_are_none_are_refused(value, dtype, tmp_path):
    tensors = {"a": torch.ones(5, dtype=dtype), "b": torch.tensor([1.0, value, 2.0], dtype=dtype)}
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(BadInput, match="'b' holds what is no number"):
        read_tensors(tmp_path / "x.safetensors", "a file")
    assert read_tensors(tmp_path / "x.safetensors", "a file", finite=False)[0]["b"].dtype == dtype


@pytest.mark.parametrize("how", ["torch", "bare"])
@pytest.mark.parametrize("name", ["lora.safetensors", "lora.bin", "lora.pt", "lora.ckpt"])
def test_a_pickle_is_refused_by_name_and_by_content(how, name, tmp_path, survived):
    path = pickled(tmp_path / name, tmp_path / "canary", how)
    with pytest.raises(Refused, match="is a pickle") as refused:
        lora.load(path)
    assert refused.value.exit_code == 8 and "convert" in refused.value.remedy
    assert not (tmp_path / "canary").exists()
    survived("hostile files", f"a pickle, {how}, called {name}")


def _without_b(tensors):
    tensors.pop("a.lora_B.weight")


def _other_rank(tensors):
    tensors["a.lora_A.weight"] = torch.ones(3, 4)


def _cube(tensors):
    tensors["a.lora_A.weight"] = torch.ones(2, 4, 1)


def _integers(tensors):
    return {name: value.long() for name, value in tensors.items()}


@pytest.mark.parametrize("change, facts", [
    (_without_b, None), (_other_rank, None), (_cube, None), (_integers, None), (lambda t: {"x": torch.ones(1)}, None),
    (None, {"alpha": 2.0}), (None, {"alpha": 2.0, "rank": 0}), (None, {"alpha": "x", "rank": 2}), (None, "[1]"),
    (None, {"alpha": float("nan"), "rank": 2}), (None, {"alpha": 2.0, "rank": 10**400}), (None, "[" * 5000)])
def test_a_lora_that_is_none(change, facts, tmp_path):
    path = small_lora(tmp_path / "lora.safetensors", change=change, facts=facts, a=(5, 4))
    with pytest.raises(BadInput, match="is no LoRA of this project|cannot be read"):
        lora.load(path)


def test_a_lora_of_another_base_is_refused_by_the_layer(backbone, tmp_path):
    model = backbone.denoiser
    name = backbone.targets("subject")[0]
    layer = model.get_submodule(name)
    right, key = (layer.out_features, layer.in_features), name.replace(".", "__")
    good = lora.load(small_lora(tmp_path / "a", **{key: right}))
    with lora.branches(model, {"x": good}):
        pass
    for other in ((right[0] + 1, right[1]), (right[0], right[1] * 2)):
        wide = lora.load(small_lora(tmp_path / "b", **{key: other}))
        for scope in (lambda one: lora.branches(model, {"x": one}), lambda one: lora.training(model, [], start=one),
                      lambda one: lora.branches(model, {"x": one}, merge=True)):
            with pytest.raises(BadInput, match=f"'{name}' by a matrix of {other[0]} x {other[1]}.* another base"), \
                    scope(wide):
                pass
    for absent in ("no.such.layer", "conv_in"):
        there = lora.load(small_lora(tmp_path / "c", **{absent.replace(".", "__"): (4, 4)}))
        with pytest.raises(BadInput, match=f"'{absent}', a layer that this model does not have"), \
                lora.branches(model, {"x": there}):
            pass


def test_tokens_of_another_base_are_refused_by_name(backbone, tmp_path):
    for tensors in ({"toy": torch.ones(1, 32)}, {"<toy": torch.ones(1, 32)}, {"<a b>": torch.ones(1, 32)}, {},
                    {"<toy>": torch.ones(32)}, {"<toy>": torch.ones(0, 32)}, {"<toy>": torch.ones(1, 32).long()}):
        save_file(tensors, tmp_path / "token.safetensors")
        with pytest.raises(BadInput, match="holds no tokens"):
            lora.load_tokens(tmp_path / "token.safetensors")
    save_file({"<toy>": torch.ones(1, 32)}, tmp_path / "token.safetensors")
    with pytest.raises(BadInput, match="holds the tokens <toy>, and not <dog>"):
        lora.load_token(tmp_path / "token.safetensors", "<dog>")
    for width in (1, 31, 64):                              # one number would be taken for all of a row
        with pytest.raises(BadInput, match=f"<toy> is of shape \\(1, {width}\\).* vectors of 32 numbers"):
            backbone.embed(["a <toy>"], {"<toy>": torch.ones(1, width)})


def test_a_token_called_like_a_word_leaves_the_word_alone(backbone):
    """Tokens are never put into the tokenizer: <red> is cut out of a prompt before it is read."""
    plain, before = backbone.embed(["a red horse"]), backbone.tokenizer.get_vocab()
    rows = torch.full((1, 32), 0.5)
    for name in ("<red>", "<horse>", "<a>"):
        assert torch.equal(backbone.embed(["a red horse"], {name: rows}), plain), name
        assert not torch.equal(backbone.embed([f"a {name} horse"], {name: rows}), backbone.embed(["a red horse"]))
    both = backbone.embed(["a <red> red horse"], {"<red>": rows})
    other = backbone.embed(["a <red> red horse"], {"<red>": -rows})
    assert not torch.equal(both, other) and backbone.tokenizer.get_vocab() == before
    assert [name for name, _ in backbone.positions("a <red> red horse", ["<red>"])] == ["a", "<red>", "red", "horse"]


def test_noise_and_the_cache(tmp_path):
    from stages.sample import _noise

    for tensors in ({"noise": torch.full((1, 4, 4, 8, 8), float("nan"))}, {"other": torch.ones(1)},
                    {"noise": torch.ones(1).long()}):
        save_file(tensors, tmp_path / "noise.safetensors")
        with pytest.raises(BadInput):
            _noise(tmp_path / "noise.safetensors")
    project = small_project(tmp_path / "p")
    said, cache = [], Cache(project, [], lambda **facts: said.append(facts["note"]))
    value = cache.tensor("text", ["key"], lambda: torch.ones(3))
    path, = (tmp_path / "p/.cache/text").glob("*.safetensors")
    for content in (packed({"value": entry([9], 0, 36)}, b"0" * 12), b"PK\x03\x04"):
        path.write_bytes(content)
        assert torch.equal(cache.tensor("text", ["key"], lambda: torch.ones(3)), value)
    assert len(said) == 2 and all("is damaged" in note for note in said)


def checkpoints(folder, said):
    parameter = torch.nn.Parameter(torch.zeros(3))
    return Checkpoints(folder, "mine", {"a": parameter}, {}, torch.optim.AdamW([parameter]), 1e9, 10**9,
                       report=lambda **facts: said.append(facts.get("note", "")))


def test_a_checkpoint_that_is_not_ours_is_left_and_a_newer_one_refused(tmp_path):
    said: list[str] = []
    saved = checkpoints(tmp_path, said)
    saved.save([{"loss": 1.0}])
    path, = tmp_path.glob("step-*")
    whole = path.read_bytes()
    assert checkpoints(tmp_path, said).restore() == [{"loss": 1.0}]
    size = int.from_bytes(whole[:8], "little")
    meta = json.loads(whole[8:8 + size])["__metadata__"]
    assert meta["videomage format"] == "1"
    for change in ({"value/a": torch.zeros(4)}, {"value/a": torch.full((3,), float("nan"))}, {"x": torch.zeros(3)}):
        save_file(change, path, meta)
        assert checkpoints(tmp_path, said).restore() == [] and "is damaged" in said[-1]
    save_file(load_file(path), path, {**meta, "videomage format": "7"})
    with pytest.raises(BadInput, match="is of format 7, and this videomage .* knows formats up to 1"):
        checkpoints(tmp_path, said).restore()
    path.write_bytes(whole)
    assert checkpoints(tmp_path, said).restore() == [{"loss": 1.0}]


# -- a base of a stranger ---------------------------------------------------------------------------------------------
def _edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _config(part, name="config.json", **changes):
    return lambda folder: _edit(folder / part / name, **changes)


def _text(path, text):
    return lambda folder: (folder / path).write_text(text)


BASES = {
    "a part from a module of its own": (_config("", "model_index.json", unet=["mine", "UNet3DConditionModel"]), 8),
    "a pipeline of its own": (_config("", "model_index.json", _class_name=["pipeline", "Mine"]), 8),
    "a part more": (_config("", "model_index.json", extra=["mine", "Thing"]), 8),
    "auto_map in a config": (_config("text_encoder", auto_map={"AutoModel": "mine.Thing"}), 8),
    "auto_map in the tokenizer": (_config("tokenizer", "tokenizer_config.json", auto_map={"A": ["m.T", None]}), 8),
    "auto_map deep in a config": (_config("unet", more=[{"auto_map": {"A": "m.T"}}]), 8),
    "a kernel of the hub": (_config("text_encoder", attn_implementation="owner/kernel"), 8),
    "an adapter": (_text("text_encoder/adapter_config.json", '{"base_model_name_or_path": "a/b"}'), 8),
    "packed weights": (_config("unet", quantization_config={"quant_method": "x"}), 8),
    "a pickle called safetensors": (lambda f: pickled(f / "unet/diffusion_pytorch_model.safetensors", f / "canary"), 8),
    "an index that is a list": (_text("model_index.json", "[]"), 3),
    "a shard that is a number": (_text("vae/diffusion_pytorch_model.safetensors.index.json",
                                       '{"weight_map": {"a": 5}}'), 3),
    "an index without end": (_text("model_index.json", "[" * 100_000), 3),
    "a config without end": (_text("unet/config.json", '{"a":' * 100_000), 3),
    "weights that are no numbers": (lambda f: _change(f, lambda t: t.fill_(float("nan"))), 3),
    "weights in a wrong place": (lambda f: (f / "vae/diffusion_pytorch_model.safetensors").write_bytes(
        HEADERS["two in one place"][0]), 3)}


def _change(folder, how):
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    how(tensors["conv_in.weight"])
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize("what", BASES)
def test_a_base_that_asks_for_code_or_is_not_whole(what, base_folder, tmp_path, survived):
    from stages.backbones import load

    folder = shutil.copytree(base_folder, tmp_path / "base")
    change, code = BASES[what]
    change(folder)
    with pytest.raises(Refused if code == 8 else BadInput) as refused:
        load(str(folder)).denoiser  # noqa: B018 (weights are looked at when the part is read)
    assert refused.value.remedy and refused.value.exit_code == code and not (folder / "canary").exists()
    survived("hostile files", f"a base with {what}")


# -- YAML and JSON ----------------------------------------------------------------------------------------------------
LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 10)}]\n" for n in range(9))
YAML = {
    "Python": ("base: !!python/object/apply:os.system ['touch canary']", 8, "Python object"),
    "a Python name": ("base: !!python/name:os.system", 8, "Python object"),
    "a Python module": ("!!python/module:antigravity", 8, "Python object"),
    "another tag": ("base: !mine x", 3, "tag '!mine'"),
    "a billion laughs": (LAUGHS, 3, f"unfold to more than {UNFOLDED}"),
    "an alias in itself": ("prompts: &a [*a]", 3, "holds itself"),
    "merged without end": ("a: &a {<<: *a}", 3, "holds itself"),
    "deep": ("a: " + "[" * (DEEPEST + 1), 3, f"more than {DEEPEST} levels"),
    "very deep": ("[" * 100_000, 3, f"more than {DEEPEST} levels"),
    "very deep by blocks": ("\n".join(" " * n + "a:" for n in range(200)), 3, f"more than {DEEPEST} levels"),
    "large": ("#" * (MOST + 1), 3, "read at most"),
    "larger": ("#" * (4 * MOST + 1), 3, "read at most"),
    "a key twice": ("base: sprites\nbase: zeroscope", 3, "line 2.*'base' stands there twice"),
    "a key that is a list": ("? [a]\n: b", 3, "a key that is no word"),
    "a number of digits": ("video: {frames: " + "9" * 5000 + "}", 3, "cannot be read|digits"),
    "digits in hexadecimal": ("base: 0x" + "f" * 5000, 3, "line 1 .*a number of more than 100 digits"),
    "digits by sixties": ("base: 1" + ":59" * 2000, 3, "line 1 .*a number of more than 100 digits"),
    "one key as two": ("subjects: {1: {class: toy}, '1': {class: dog}}", 3, "subjects has the key '1' twice"),
    "a date that is none": ("base: 2024-13-45", 3, "cannot be read"),
    "half a character": ('base: "\\ud800"', 3, "half a character"),
    "a zero": ("base: a\0b", 3, "is not YAML"),
    "two documents": ("base: a\n---\nbase: b", 3, "is not YAML"),
    "a newer format": ("format: 2\nwhatever: 1", 3, "project.yaml is of format 2, and this videomage .* up to 1"),
    "no format": ("format: new", 3, "format is 'new', which is none"),
    "a name in capitals": ("subjects: {Toy: {class: toy}}", 3, "'Toy' is not a plain name"),
    "a name without end": ("subjects: {" + "a" * 64 + ": {class: toy}}", 3, "at most 63"),
    "a name that leaves": ("subjects: {../../x: {class: toy}}", 8, "leave the project"),
    "a motion that leaves": ("motion: {name: /etc}", 8, "leave the project"),
    "a name that a terminal obeys": ('subjects: {"\\e[31m": {class: toy}}', 3, "not a plain name")}


@pytest.mark.parametrize("what", YAML)
def test_project_yaml_is_plain(what, tmp_path, survived):
    text, code, said = YAML[what]
    (tmp_path / "project.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(Refused if code == 8 else BadInput, match=said) as refused:
        Workspace(tmp_path)
    assert refused.value.exit_code == code and refused.value.remedy
    survived("hostile files", f"YAML: {what}")


def test_plain_yaml_is_read_as_ever(tmp_path):
    text = "a: &x {b: 1e-4, c: [1, two, ünïcode 🐎]}\nd: *x\ne: {<<: *x, b: 2}\n1: a\n'1': b\n"
    assert parse_yaml(text, "f")["e"] == {"b": 2, "c": [1, "two", "ünïcode 🐎"]}
    (tmp_path / "f").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="not UTF-8"):
        read_yaml(tmp_path / "f")
    assert parse({"format": 1, "base": "sprites"}).base == "sprites"
    for name in ("a", "0", "a-b_c", "x" * 63):
        assert name in parse({"subjects": {name: {"class": "x"}}}).subjects


ENDLESS = {"a device": lambda path: path.symlink_to("/dev/zero"), "a pipe": os.mkfifo,
           "a hole of a terabyte": lambda path: (path.touch(), os.truncate(path, 2**40)),
           "a million lists": lambda path: path.write_text("[" + "[]," * 2**23 + "[]]")}


@pytest.mark.parametrize("what", ENDLESS)
def test_text_without_end_is_neither_read_nor_waited_for(what, tmp_path, survived):
    """As project.yaml, a caption, a table, a manifest, or beside the weights of a base or a judge."""
    path = tmp_path / "a.json"
    ENDLESS[what](path)
    for most in (MOST, MOST_CONFIG, MOST_JSON):
        with pytest.raises(ValueError, match="no file|more bytes than"):
            read_json(path, most)
    with pytest.raises(ValueError, match="no file|more bytes than"):
        read_text(path, 100)
    for read, said in ((read_yaml, "no file|more bytes than"), (manifests.read, "no file|more bytes than"),
                       (lambda path: read_table(path.rename(path.with_suffix(".csv")), Places([])), "no file|characters"
                        ), (lambda path: read_table(path.with_suffix(".csv").rename(path.with_suffix(".jsonl")),
                                                    Places([])), "no file|characters")):
        with pytest.raises(BadInput, match=said) as refused:
            read(path)
        assert str(path.with_suffix("")) in str(refused.value) and refused.value.remedy
    assert not holds(path.with_suffix(".jsonl"), "x")
    survived("hostile files", f"text: {what}")


@pytest.mark.parametrize("what", ENDLESS)
@pytest.mark.parametrize("name", ["vae/config.json", "unet/x_config.json", "videomage.json", "model_index.json",
                                  "tokenizer/vocab.json", "README.md"])
def test_a_base_without_end(name, what, base_folder, tmp_path, survived):
    """`status` asks it for its size, and every stage looks it through."""
    folder = shutil.copytree(base_folder, tmp_path / "base")
    (folder / name).unlink(missing_ok=True)
    ENDLESS[what](folder / name)
    assert licence(str(folder)) == "not stated" if name == "README.md" else True
    try:
        bases.video(str(folder))
        check(folder, "b")
    except BadInput as refused:
        assert Path(name).name in refused.what and refused.remedy
    else:
        assert name == "README.md" or name == "tokenizer/vocab.json" and "hole" not in what     # none is read
    survived("hostile files", f"a base with {what}: {name}")


def test_auxiliary_clips_without_end(tmp_path):
    """A table or a caption that is a pipe is not waited for, and what is nested without end is named."""
    (tmp_path / "a.mp4").write_bytes(b"x")
    for name in ("t.csv", "a.txt", "a.json"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(BadInput, match=f"{name} cannot be read .it is no file"):
            select(tmp_path, 1).clips[0].text()
        (tmp_path / name).unlink()
    for text in ('{"caption":' * 50_000, "[" * 100_000):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(BadInput, match="a.json cannot be read .it is nested too deeply"):
            select(tmp_path, 1).clips[0].text()
        (tmp_path / "t.jsonl").write_text(text)
        with pytest.raises(BadInput, match="t.jsonl, line 1: it is not JSON .it is nested too deeply"):
            select(tmp_path, 1)
        (tmp_path / "t.jsonl").unlink()


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a":' * 200_000, '{"a":1,"a":2}', '"\\ud800"', "1" * 5000, "", "\0"])
def test_json_is_plain(text):
    with pytest.raises(ValueError):
        loads(text)
    assert loads('{"a": "\\ud83d\\ude00", "b": [1, null]}') == {"a": "😀", "b": [1, None]}


# -- manifests and formats --------------------------------------------------------------------------------------------
def test_a_manifest_carries_its_format_and_one_without_is_the_one_before(tmp_path):
    project = small_project(tmp_path)
    path = made(project, "learn-subject", "toy")
    assert json.loads(path.read_text())["format"] == formats.MANIFEST == 2
    tampered(path, gone=("format", "given"))
    stage, again = STAGES["learn-subject"], Workspace(tmp_path)
    assert again.intended(stage, "toy").state(), "what was made before there were numbers stays fresh"
    assert again.manifest(path)["format"] == 2 and again.manifest(path)["given"] == []
    for number in (3, 99):
        tampered(path, format=number)
        said = f"is of format {number}, and this videomage .* knows formats up to 2"
        with pytest.raises(BadInput, match=said) as refused:
            Workspace(tmp_path).intended(stage, "toy")
        assert refused.value.exit_code == 3 and "upgrade" in refused.value.remedy
    for number in (0, -1, "2", True, 1.5, [2]):
        tampered(path, format=number)
        with pytest.raises(BadInput, match="which is none"):
            Workspace(tmp_path).intended(stage, "toy")


WRONG = [{"files": []}, {"files": {"a": 1}}, {"inputs": {"a": None}}, {"settings": []}, {"request": "x"},
         {"overrides": {"steps": 1}}, {"overrides": ["no-setting"]}, {"overrides": [[1]]}, {"seed": "0"},
         {"seed": None}, {"base": "sprites"}, {"base": {"name": "x"}}, {"given": "images"}, {"facts": 3},
         {"options": []},
         {"request": {"subjects": ["../../x"]}}, {"request": {"subjects": "toy"}}, {"request": {"motion": "../x"}},
         {"request": {"subjects": {"toy": 1}}}, {"request": {"prompt": ["x"]}}, {"request": {"motion": 3}}]


@pytest.mark.parametrize("change", WRONG, ids=str)
def test_a_manifest_that_is_none_is_named(change, tmp_path, survived):
    path = made(small_project(tmp_path), "learn-subject", "toy")
    tampered(path, **change)
    with pytest.raises(BadInput, match="learn-subject.json is damaged") as refused:
        Workspace(tmp_path).intended(STAGES["learn-subject"], "toy")
    assert "its stage will run again" in refused.value.remedy
    survived("hostile files", f"a manifest with {change}")


def test_options_and_paths_of_a_manifest_are_not_believed(tmp_path):
    """A value out of its range is no option, and a path is none that a manifest could name."""
    project = small_project(tmp_path / "p")
    path, stage = made(project, "learn-subject", "toy"), STAGES["learn-subject"]
    settings = json.loads(path.read_text())["settings"]
    for value in ("many", -1, 10**400, [1], {"a": 1}):
        tampered(path, settings={**settings, "steps": value}, overrides=["steps"])
        with pytest.raises(BadInput, match="manifest of learn-subject 'toy' is damaged"):
            Workspace(tmp_path / "p").intended(stage, "toy")
    (tmp_path / "outside").mkdir()
    tampered(path, settings={**settings, "auxiliary": str(tmp_path / "outside")}, overrides=["auxiliary"])
    plan = Workspace(tmp_path / "p").intended(stage, "toy")
    assert plan.options.auxiliary is None and "auxiliary" not in plan.inputs
    assert replace(plan.options, steps=3).steps == 3
