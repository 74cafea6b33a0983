"""eval: the four scores of METHOD 6 on a project's samples, with tiny judges, against slow loops."""
from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from conftest import make_tokenizer

from stages import STAGES
from stages.core.errors import MissingPrerequisite, UsageError
from stages.core.video import write_frames, write_images
from stages.core.workspace import Workspace
from stages.evaluate import evaluate, score, summary
from stages.metrics.clip import Clip
from stages.metrics.dino import Dino
from stages.photos import Photo

TOWER = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
rng = np.random.default_rng(0)


@pytest.fixture(scope="module")
def judges(tmp_path_factory):
    """Folders of a CLIP and of a DINO with random weights."""
    from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

    root, tokenizer = tmp_path_factory.mktemp("judges"), make_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = dict(TOWER, vocab_size=len(tokenizer), max_position_embeddings=20, bos_token_id=0, eos_token_id=1,
                    pad_token_id=1)
        CLIPModel(CLIPConfig(text_config=text, vision_config=dict(TOWER, image_size=16, patch_size=8),
                             projection_dim=12)).save_pretrained(root / "clip")
        sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8)
        Dinov2Model(Dinov2Config(**sizes, mlp_ratio=2)).save_pretrained(root / "dino")
    tokenizer.save_pretrained(root / "clip")
    return root


@pytest.fixture
def project(tmp_path, judges):
    """Two samples: one of a subject, one of none."""
    write_images(tmp_path / "photos", rng.integers(0, 255, (2, 20, 24, 3), dtype=np.uint8))
    project = Workspace.create(tmp_path, subjects={"toy": {"class": "teddy bear", "images": "photos"}},
                               options={"eval": {"clip": str(judges / "clip"), "dino": str(judges / "dino")}})
    for name, prompt, subjects in (("0001-toy", "a <toy> in snow", ["toy"]), ("0002-dog", "a dog", [])):
        plan = project.plan(STAGES["sample"], name, request={"prompt": prompt, "subjects": subjects, "motion": None})
        plan.sources.clear()
        with plan.making() as out:
            write_frames(out / "frames.png", rng.integers(0, 255, (3, 20, 24, 3), dtype=np.uint8))
    return project


def cos(a, b):
    return sum(x * y for x, y in zip(a, b)) / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def of(paper):
    """A score file in which nothing was judged but the paper's protocol."""
    return {"paper protocol": paper, "judged": {}, "subjects": [], "motion": None}


def test_the_four_scores_against_loops(judges):
    clip, dino = Clip(judges / "clip"), Dino(judges / "dino")
    frames = rng.integers(0, 255, (3, 16, 16, 3), dtype=np.uint8)
    photos = {"toy": list(rng.integers(0, 255, (2, 16, 16, 3), dtype=np.uint8)),
              "dog": list(rng.integers(0, 255, (1, 20, 16, 3), dtype=np.uint8))}
    got = score(clip, dino, frames, "a toy and a dog", {name: list(map(Photo, own)) for name, own in photos.items()})

    def rows(judge, pictures):
        return [judge.image_features(picture[None])[0].tolist() for picture in pictures]

    def likeness(judge):
        per = [[cos(f, r) for f in rows(judge, frames) for r in rows(judge, own)] for own in photos.values()]
        return sum(sum(values) / len(values) for values in per) / len(per)

    seen, text = rows(clip, frames), clip.text_features(["a toy and a dog"])[0].tolist()
    want = {"CLIP-T": sum(cos(f, text) for f in seen) / 3, "CLIP-I": likeness(clip), "DINO-I": likeness(dino),
            "T. Cons.": (cos(seen[0], seen[1]) + cos(seen[1], seen[2])) / 2}
    assert got == pytest.approx(want, abs=1e-6)


def test_photos_that_were_segmented_are_compared_cut_out_as_well(judges):
    """The mask decides: what is outside it does not count in these two columns, and does in the others."""
    clip, dino = Clip(judges / "clip"), Dino(judges / "dino")
    frames = rng.integers(0, 255, (2, 16, 16, 3), dtype=np.uint8)
    mask = np.zeros((24, 24), bool)
    mask[4:20, 6:18] = True
    photo = rng.integers(0, 255, (24, 24, 3), dtype=np.uint8)
    other = np.where(mask[..., None], photo, 255 - photo)
    one, two = (score(clip, dino, frames, "a toy", {"toy": [Photo(picture, mask)]}) for picture in (photo, other))
    for column in ("CLIP-I", "DINO-I"):
        assert one[f"{column}, cut out"] == two[f"{column}, cut out"] and one[column] != two[column]
    alone = score(clip, dino, frames, "a toy", {"toy": [Photo(Photo(photo, mask).cut_out())]})
    assert one["CLIP-I, cut out"] == pytest.approx(alone["CLIP-I"])
    both = {"a": of(one), "b": of(score(clip, dino, frames, "a", {}))}
    assert summary(both)["paper protocol"]["of"]["CLIP-I, cut out"] == 1
    assert "CLIP-I, cut out" not in score(clip, dino, frames, "a toy", {"toy": [Photo(photo, mask), Photo(photo)]})


def test_what_a_sample_cannot_have_is_null(judges):
    got = score(Clip(judges / "clip"), Dino(judges / "dino"), np.zeros((1, 16, 16, 3), np.uint8), "a dog", {})
    assert got["CLIP-I"] is got["DINO-I"] is got["T. Cons."] is None and math.isfinite(got["CLIP-T"])


def test_means_go_over_the_videos_that_have_a_score():
    one = {"CLIP-T": 0.2, "CLIP-I": 0.4, "DINO-I": 0.6, "T. Cons.": 1.0}
    whole = summary({"a": of(one), "b": of({**one, "CLIP-T": 0.4, "CLIP-I": None})})["paper protocol"]
    assert whole["mean"] == pytest.approx({"CLIP-T": 0.3, "CLIP-I": 0.4, "DINO-I": 0.6, "T. Cons.": 1.0})
    assert whole["of"] == {"CLIP-T": 2, "CLIP-I": 1, "DINO-I": 2, "T. Cons.": 2}
    assert summary({})["paper protocol"]["mean"]["CLIP-T"] is None


def test_eval_scores_every_sample_and_the_second_run_touches_no_file(project):
    artefacts = evaluate(project)
    found = [json.loads(artefact.path.read_text()) for artefact in artefacts]
    assert [one["prompt"] for one in found] == ["a teddy bear in snow", "a dog"]
    toy, dog = (one["paper protocol"] for one in found)
    assert toy["DINO-I"] is not None and dog["DINO-I"] is None
    assert found[0]["judged"].keys() == {"segmenter"} and found[1]["judged"] == {}
    whole = json.loads((project.root / "scores/summary.json").read_text())
    assert whole["paper protocol"]["mean"]["CLIP-T"] == pytest.approx((toy["CLIP-T"] + dog["CLIP-T"]) / 2)
    assert whole["judged"]["segmenter"]["success"]["of"] == 1 and whole["videos"] == 2
    before = {path: path.stat().st_mtime_ns for path in project.root.rglob("*") if path.is_file()}
    assert not any(artefact.made for artefact in evaluate(Workspace(project.root)))
    assert {path: path.stat().st_mtime_ns for path in project.root.rglob("*") if path.is_file()} == before


def test_eval_without_samples_or_judges_says_what_to_do(tmp_path, project):
    with pytest.raises(MissingPrerequisite, match="videomage sample"):
        evaluate(Workspace.create(tmp_path / "empty"))
    other = Workspace.create(tmp_path / "other", base="somewhere")
    (other.root / "samples").symlink_to(project.root / "samples")
    with pytest.raises(UsageError, match="--clip FOLDER"):
        evaluate(other, ["0002-dog"], force=True)
