"""The auxiliary set of L_reg: folders as WebVid, Panda-70M and people leave them; latents that are made once."""
from __future__ import annotations

import csv
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stages import STAGES
from stages.auxiliary import auxiliary, drawn
from stages.backbones import load_for
from stages.core.captions import CLIPS, select
from stages.core.denoise import encode
from stages.core.errors import BadInput, Refused
from stages.core.takes import sampled
from stages.core.video import ANIMATIONS, write_images, write_video
from stages.core.workspace import Workspace
from stages.learn_subject import learn_subject
from stages.options import resolve

QUICK = {"steps": 2, "rank": 2, "auxiliary_count": 2, "preview_every": 0, "video_steps": 1, "guidance": 2}
PANDA = ("videoID", "url", "timestamp", "caption", "matching_score")
WEBVID = ("videoid", "contentUrl", "duration", "page_dir", "name")


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """32 frames at 8 a second; frame k is as bright as 20 + 6 k."""
    frames = np.broadcast_to((20 + 6 * np.arange(32, dtype=np.uint8))[:, None, None, None], (32, 32, 32, 3))
    return write_video(tmp_path_factory.mktemp("film") / "film.mp4", frames, 8)


@pytest.fixture
def place(film, tmp_path):
    """place("a/b.mp4", txt="...") puts the film into the folder `aux`, with its notes."""
    def put(name: str, **notes: str) -> Path:
        path = tmp_path / "aux" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(film, path)
        for end, text in notes.items():
            path.with_suffix(f".{end}").write_text(text, encoding="utf-8")
        return path
    return put


@pytest.fixture
def aux(tmp_path) -> Path:
    (tmp_path / "aux").mkdir()
    return tmp_path / "aux"


def table(path: Path, names, *rows) -> Path:
    """A .csv, or a .jsonl with the same keys."""
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            csv.writer(file).writerows([names, *rows])
        else:
            file.writelines(json.dumps(dict(zip(names, row))) + "\n" for row in rows)
    return path


def found(folder: Path, count: int = 99) -> list[tuple]:
    """(place, caption) of what is selected, and the part that is meant, where it is not all."""
    return [(clip.path.relative_to(folder).as_posix(), clip.text(), *([clip.window] if clip.window else []))
            for clip in select(folder, count).clips]


def make_project(root: Path, base_folder: Path, *subjects: str, **options) -> Workspace:
    rng = np.random.default_rng(0)
    for name in subjects:
        write_images(root / "photos" / name, rng.integers(0, 255, (2, 32, 32, 3), dtype=np.uint8))
    return Workspace.create(root, base=str(base_folder), options={"learn-subject": {**QUICK, **options}}, subjects={
        name: {"class": name, "images": f"photos/{name}"} for name in subjects})


def base(project: Workspace, dtype: str = "fp32"):
    """The tiny base, with the cache of the project."""
    return load_for(project, device="cpu", dtype=dtype, low_memory=False)


def notes(into: list):
    return lambda **facts: into.append(facts)


# -- captions beside the clips ----------------------------------------------------------------------------------------
def test_clips_with_captions_beside_them_nested_and_in_natural_order(place, aux):
    place("10.mp4", txt=" the tenth\n clip ")
    place("2.mov", json='{"caption": "the second", "status": "success"}')
    place("00000/0000001_00003.mp4", txt="of video2dataset", json='{"caption": "the same"}')
    place("00000/0000001_00012.mp4", txt="its twelfth")
    place(".hidden/1.mp4"), place("._1.mp4")
    (aux / "00000/0000002.json").write_text('{"status": "failed_to_download"}')       # a clip that never came
    assert found(aux) == [("00000/0000001_00003.mp4", "of video2dataset"), ("00000/0000001_00012.mp4", "its twelfth"),
                          ("2.mov", "the second"), ("10.mp4", "the tenth clip")]
    assert ANIMATIONS < CLIPS


def test_linked_folders_are_followed_and_circles_end(place, aux, tmp_path):
    place("a.mp4", txt="first")
    (tmp_path / "aux").rename(tmp_path / "elsewhere")
    aux.mkdir()
    (aux / "linked").symlink_to(tmp_path / "elsewhere")
    (aux / "circle").symlink_to(aux)
    assert found(aux) == [("linked/a.mp4", "first")]


def test_a_clip_without_a_caption_is_named(place, aux):
    with pytest.raises(BadInput, match="aux holds no clips"):
        select(aux, 1)
    for name in ("one.mp4", "two.mp4", "three.mp4"):
        place(name)
    with pytest.raises(BadInput, match=r"one.mp4 has no caption \(and 2 more have none\).*one.txt"):
        select(aux, 1)
    place("two.mp4", txt=" \n"), place("three.mp4", json='{"caption": null}')
    with pytest.raises(BadInput, match="one.mp4 has no caption. "):
        select(aux, 1)
    place("one.mp4", txt="first")
    for name, note in (("two.mp4", "two.txt"), ("three.mp4", "three.json")):
        with pytest.raises(BadInput, match=f"{name} has no caption: {note} holds none"):
            {clip.path.name: clip for clip in select(aux, 9).clips}[name].text()
    place("three.mp4", json="{")
    with pytest.raises(BadInput, match="three.json cannot be read"):
        found(aux)
    with pytest.raises(BadInput, match="absent is no folder"):
        select(aux / "absent", 1)


# -- tables -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("layout", ["{page}/{id}.mp4", "{id}.mp4", "videos/{page}/{id}.mp4", "videos/{id}.webm"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_webvid(place, aux, layout, kind):
    table(aux / f"results_2M_train.{kind}", WEBVID, *(
        (n, f"https://v/{n}.mp4", "PT00H00M15S", f"00{n % 2}_page", f'Clip "{n}", in words') for n in range(90, 99)))
    for n, page in ((93, "001_page"), (96, "000_page")):
        place(layout.format(page=page, id=n))
    assert {(Path(name).stem, caption) for name, caption in found(aux)} == {
        ("93", 'Clip "93", in words'), ("96", 'Clip "96", in words')}
    selected = select(aux, 9)
    assert (selected.rows, selected.absent) == (9, 7)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_panda_whole_videos_are_cut_by_time(place, aux, kind):
    stamps = [["0:00:00.500", "0:00:02.000"], ["0:00:02.250", "0:01:03.5"]]
    captions, scores = ["It's a dog's \"life\".", "a cat, asleep"], [0.5, 0.4]
    cells = [str(stamps), str(captions), str(scores)] if kind == "csv" else [stamps, captions, scores]
    table(aux / f"panda70m_training_2m.{kind}", PANDA, ["--SaHeTEm_0", "https://y", *cells],
          ["QNYpH4m_1.8", "https://y", *cells], ["not-h_4_9oo", "https://y", "[not even a list", "", ""])
    place("--SaHeTEm_0.mp4"), place("deep/er/QNYpH4m_1.8.mp4")
    windows = [(0.5, 2.0), (2.25, 63.5)]
    assert found(aux) == [(name, caption, window) for name in ("--SaHeTEm_0.mp4", "deep/er/QNYpH4m_1.8.mp4")
                          for caption, window in zip(captions, windows)]
    assert select(aux, 9).absent == 1


def test_panda_pieces_are_numbered_as_the_lists_are(place, aux):
    stamps, captions = "[['0:00:00', '0:00:01'], ['0:00:01', '0:00:02'], [2, 3.5]]", "['first', 'second', 'third']"
    rows = [(name, "", stamps, captions, "") for name in ("underscore_", "full.stop", "segment", "partly")]
    table(aux / "panda.csv", PANDA, *rows)
    for name in ("underscore__0", "underscore__2", "full.stop.00001", "segment/segment_segment_1", "partly_1"):
        place(f"{name}.mp4")
    place("partly.mp4"), place("underscore_.mp4")                     # whole ones: for what is not cut out yet
    assert sorted(found(aux)) == [
        ("full.stop.00001.mp4", "second"), ("partly.mp4", "first", (0, 1)), ("partly.mp4", "third", (2, 3.5)),
        ("partly_1.mp4", "second"), ("segment/segment_segment_1.mp4", "second"), ("underscore_.mp4", "second", (1, 2)),
        ("underscore__0.mp4", "first"), ("underscore__2.mp4", "third")]
    place("underscore__1.mp4")                                        # all are: the whole one is no longer needed
    assert "underscore_.mp4" not in [name for name, *_ in found(aux)]
    place("partly_3.mp4")
    with pytest.raises(BadInput, match="line 5: it has 3 captions, so there can be no piece partly_3.mp4"):
        select(aux, 9)


def test_what_pandas_downloader_leaves_with_its_table_beside_it(place, aux):
    table(aux / "panda70m_validation.csv", PANDA, ("abcdefghijk", "", "[['0:00:00', '0:00:01']]", "['whole list']", ""))
    place("00000/0000000_00000.mp4", txt="a caption", json='{"caption": "a caption", "clips": "..."}')
    assert found(aux) == [("00000/0000000_00000.mp4", "a caption")] and select(aux, 9).absent == 1


@pytest.mark.parametrize("file", ["file", "Path", "video", "filename", "file_name"])
@pytest.mark.parametrize("caption", ["caption", "text", "prompt", "name"])
def test_tables_of_ones_own(place, aux, file, caption):
    names = ("timestamp", caption, file)
    for kind in ("csv", "jsonl"):
        table(aux / f"t.{kind}", names, ("2024-05-01", "[one], two", "./a/1.mp4"), ("", "two", "a\\2.mp4"),
              ("", "three", "3.mp4"))
        place("a/1.mp4"), place("a/2.mp4"), place("videos/3.mp4"), place("4.mp4", txt="beside")
        assert found(aux) == [("4.mp4", "beside"), ("a/1.mp4", "[one], two"), ("a/2.mp4", "two"),
                              ("videos/3.mp4", "three")]
        (aux / f"t.{kind}").unlink()


def test_a_txt_comes_before_the_table_and_the_table_before_a_json(place, aux):
    table(aux / "t.csv", ("file", "text"), ("1.mp4", "table 1"), ("2.mp4", "table 2"))
    place("1.mp4", txt="txt 1", json='{"caption": "json 1"}')
    for n in (2, 3):
        place(f"{n}.mp4", json=f'{{"caption": "json {n}"}}')
    assert [caption for _, caption in found(aux)] == ["txt 1", "table 2", "json 3"]
    place("4.mp4")
    with pytest.raises(BadInput, match="4.mp4 has no caption.*4.txt, add a row to t.csv"):
        select(aux, 9)


def test_several_captions_of_one_clip_are_several_items(place, aux):
    table(aux / "t.jsonl", ("video", "caption"), ("1.mp4", ["a dog", "an animal"]))
    place("1.mp4")
    assert found(aux) == [("1.mp4", "a dog"), ("1.mp4", "an animal")]


STAMP = "[['0:00:00', '0:00:01']]"


@pytest.mark.parametrize("rows, error", [
    ([("a", "", "[['0:00:00', '0:00:01'", "['x']", "")], r"line 2: .* is no list"),
    ([("a", "", "__import__('os').getcwd()", "['x']", "")], "line 2: .* is no list"),
    ([("a", "", STAMP, "['x']", ""), ("a", "", STAMP, "['x', 'y']", "")], "line 3: .* 1 time stamps and 2 captions"),
    ([("b", "", STAMP, "['one\nof\nthree lines']", ""), ("a", "", "[['0:01:00', '0:00:59']]", "['x']", "")],
     r"line 5: \['0:01:00', '0:00:59'\] is no time stamp"),
    ([("a", "", "[['soon', '0:00:59']]", "['x']", "")], "line 2: .* is no time stamp"),
    ([("a", "", "[['0:00:01']]", "['x']", "")], "line 2: .* is no time stamp"),
    ([("a", "", STAMP, "['']", "")], "line 2: its clip has no caption"),
    ([("a", "", STAMP, "[None]", "")], "line 2: its clip has no caption"),
    ([("a", "", STAMP, "", "")], "line 2: its clip has no caption"),
    ([("", "", STAMP, "['x']", "")], "line 2: it names no clip"),
    ([("a", "", STAMP)], "line 2: it has 3 cells, but the header names 5"),
    ([("b", "", STAMP, "['x']", "")], "none of the 1 rows of .*t.csv names a clip that is there, such as a.mp4"),
])
def test_a_bad_row_is_named_by_file_and_line(place, aux, rows, error):
    place("a.mp4")
    table(aux / "t.csv", PANDA, *rows)
    with pytest.raises(BadInput, match=error):
        select(aux, 9)


@pytest.mark.parametrize("name, text, error", [
    ("t.csv", b"", "t.csv, line 1: no column holds the clip; there is: nothing"),
    ("t.csv", b"file,score\na.mp4,1\n", "t.csv, line 1: no column holds a caption; there is: file, score"),
    ("t.csv", b"file,text\na.mp4,caf\xe9\n", "t.csv is not UTF-8"),
    ("t.jsonl", b'{"file": "a.mp4", "text": "x"}\n\n{"file"', "t.jsonl, line 3: it is not JSON"),
    ("t.jsonl", b'["a.mp4", "x"]', "t.jsonl, line 1: it is no {...}"),
    ("t.jsonl", b'{"file": "a.mp4", "text": "x"}\n{"file": "a.mp4"}', "line 2: no column holds a caption"),
    ("t.jsonl", b'{"file": null, "text": "x"}', "line 1: it names no clip, but None"),
    ("t.jsonl", b'{"file": "a.mp4", "text": 3}', "line 1: its clip has no caption"),
])
def test_a_bad_table_is_named(place, aux, name, text, error):
    place("a.mp4")
    (aux / name).write_bytes(text)
    with pytest.raises(BadInput, match=error):
        select(aux, 9)


def test_two_tables_are_named(place, aux):
    place("a.mp4", txt="x")
    for name in ("train.csv", "val.jsonl"):
        (aux / name).touch()
    with pytest.raises(BadInput, match="2 tables: train.csv, val.jsonl"):
        select(aux, 9)


@pytest.mark.parametrize("names, row", [
    (("file", "text"), ("/etc/a.mp4", "x")), (("file", "text"), ("../a.mp4", "x")),
    (("path", "text"), ("b/../../a.mp4", "x")), (("path", "text"), ("b\\..\\..\\a.mp4", "x")),
    (("video", "text"), ("C:\\a.mp4", "x")), (("video", "text"), ("\\\\host\\a.mp4", "x")),
    (("videoid", "page_dir", "name"), ("a", "..", "x")), (("videoid", "page_dir", "name"), ("../a", "", "x")),
])
def test_a_row_that_leads_out_of_the_folder_is_refused(place, aux, names, row):
    place("a.mp4"), place("../a.mp4")
    for kind in ("csv", "jsonl"):
        path = table(aux / f"t.{kind}", names, row)
        with pytest.raises(Refused, match=rf"t.{kind}, line {2 if kind == 'csv' else 1}: .* leads out of the folder"):
            select(aux, 9)
        path.unlink()


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_fifty_thousand_rows_are_read_in_less_than_two_seconds(place, aux, kind):
    stamps = str([[f"0:00:{k:02}.000", f"0:00:{k + 1:02}.500"] for k in range(8)])
    captions = str([f"somebody's clip number {k}, told in a sentence of middling length" for k in range(8)])
    table(aux / f"panda.{kind}", PANDA, *((f"id{n:09}", "https://y", stamps, captions, "[]") for n in range(50_000)))
    for n in (7, 30_000, 49_999):
        place(f"id{n:09}.mp4")
    started = time.process_time()
    selected = select(aux, 5)
    assert time.process_time() - started < 2
    assert (len(selected.clips), selected.of, selected.rows, selected.absent) == (5, 24, 50_000, 49_997)


def test_a_row_may_be_longer_than_the_csv_module_allows(place, aux):
    captions = ["word " * 99] * 400
    table(aux / "t.csv", PANDA, ("a", "", str([[k, k + 1] for k in range(400)]), str(captions), ""))
    place("a.mp4")
    limit = csv.field_size_limit()
    assert select(aux, 1).of == 400 and csv.field_size_limit() == limit


# -- how many, and which ----------------------------------------------------------------------------------------------
def test_of_more_clips_than_asked_for_always_the_same_are_taken(place, aux):
    for n in range(12):
        place(f"{n}.mp4", txt=f"clip {n}")
    taken = found(aux, 5)
    assert len(taken) == 5 and taken == [item for item in found(aux) if item in taken]      # in natural order
    assert set(taken) not in (set(found(aux)[:5]), set(sorted(found(aux))[:5]))             # but not the first ones
    assert set(found(aux, 4)) < set(taken) < set(found(aux, 6))
    (aux.parent / "other").mkdir()
    for path in sorted(aux.iterdir(), reverse=True):         # the same in another folder, filled in another order
        shutil.copyfile(path, aux.parent / "other" / path.name)
    assert found(aux.parent / "other", 5) == taken
    for n in range(12, 18):
        before = set(found(aux, 5))
        place(f"{n}.mp4", txt=f"clip {n}")
        assert len(set(found(aux, 5)) - before) <= 1
    assert select(aux, 5).of == 18


# -- time windows of a clip -------------------------------------------------------------------------------------------
def test_a_part_of_a_video_is_sampled_by_its_time_stamps(film):
    """At the rate of the base, from where the part begins; a short part is shown slower, down to half."""
    def numbers(window=None, **how):
        how = {"fps": 8, "frames": 4, "size": (32, 32), **how}
        return [round((int(frame[5, 5, 0]) - 20) / 6) for frame in sampled(film, window=window, **how)]

    assert numbers() == [0, 1, 2, 3] and numbers((1, 2)) == [8, 9, 10, 11]
    assert numbers((1, 4), fps=4) == [8, 10, 12, 14]
    assert numbers((1, 1.4), frames=6) == [8, 9, 9, 10, 10, 11]
    assert numbers((3.5, 60)) == [28, 29, 30, 31]
    with pytest.raises(BadInput, match="film.mp4 has 0.25 s of it from 3.75 s on, and would have to be"):
        numbers((3.75, 60))
    with pytest.raises(BadInput, match="film.mp4 shows its last frame at 3.88 s, and the part asked for begins at 4 s"):
        numbers((4, 5))


def test_pictures_without_time_stamps_have_no_part(tmp_path):
    write_images(tmp_path / "shots", np.zeros((4, 8, 8, 3), np.uint8))
    with pytest.raises(BadInput, match="shots has no time stamps"):
        sampled(tmp_path / "shots", fps=8, frames=4, size=(8, 8), window=(0, 1))
    assert sampled(tmp_path / "shots", fps=8, frames=4, size=(8, 8)).shape == (4, 8, 8, 3)


# -- latents ----------------------------------------------------------------------------------------------------------
def encoded(said: list) -> list[str]:
    return [facts["encoding"] for facts in said if "encoding" in facts]


def test_latents_are_of_the_part_meant_and_made_once(place, aux, tmp_path, base_folder, backbone):
    project, said = make_project(tmp_path, base_folder, auxiliary="aux", auxiliary_count=9), []
    options = resolve("learn-subject", project.settings)
    table(aux / "panda.csv", PANDA, ("film", "", "[[1, 2], [2, 4]]", "['one', 'two']", ""), ("gone", "", "", "", ""))
    place("film.mp4")
    clips = auxiliary(project, base(project), options, notes(said))
    assert [caption for caption, _ in clips] == ["one", "two"] and encoded(said) == ["film.mp4"] * 2
    assert said[0]["note"] == "1 of 2 rows of panda.csv name clips that are not in the folder"
    for (_, latents), window in zip(clips, ((1, 2), (2, 4))):
        frames = sampled(aux / "film.mp4", fps=8, frames=backbone.frames, size=(32, 32), window=window)
        assert torch.equal(latents, encode(backbone, frames[None]))
    said.clear()
    place("z/renamed.mp4", txt="another caption for the whole")
    again = auxiliary(project, base(project), options, notes(said))
    assert encoded(said) == ["renamed.mp4"] and all(torch.equal(a[1], b[1]) for a, b in zip(clips, again))
    said.clear()
    (aux / "z/renamed.mp4").rename(aux / "moved.mp4")
    (aux / "moved.txt").write_text("a third caption")
    moved = auxiliary(project, base(project), options, notes(said))
    assert encoded(said) == [] and moved[2][0] == "a third caption" and torch.equal(moved[2][1], again[2][1])
    assert len(auxiliary(project, base(project), replace(options, auxiliary_count=1), notes(said))) == 1
    assert said[-1]["note"] == "1 of 3 auxiliary clips are taken, as auxiliary_count says" and encoded(said) == []


def test_another_dtype_or_content_is_encoded_anew(place, aux, tmp_path, base_folder):
    project, said = make_project(tmp_path, base_folder, auxiliary="aux"), []
    options, path = resolve("learn-subject", project.settings), place("a.mp4", txt="x")
    first = auxiliary(project, base(project), options, notes(said))[0][1]
    assert auxiliary(project, base(project, "fp64"), options, notes(said))[0][1].dtype == torch.float64
    write_video(path, np.full((4, 32, 32, 3), 200, np.uint8))
    assert not torch.equal(auxiliary(project, base(project), options, notes(said))[0][1], first)
    assert len(encoded(said)) == 3


def test_clips_that_cannot_be_used_are_named_and_the_others_kept(place, aux, tmp_path, base_folder):
    project, said = make_project(tmp_path, base_folder, auxiliary="aux", auxiliary_count=9), []
    options = resolve("learn-subject", project.settings)
    place("good.mp4", txt="x")
    write_video(place("short.mp4", txt="x"), np.zeros((1, 32, 32, 3), np.uint8))
    place("text.mp4", txt="x").write_text("this is no video " * 100)
    with pytest.raises(BadInput, match="2 of 3 auxiliary clips cannot be used: .*short.mp4 holds one picture, "
                                       "so there is no motion; .*text.mp4"):
        auxiliary(project, base(project), options, notes(said))
    assert encoded(said) == ["good.mp4"]
    (aux / "short.mp4").unlink(), (aux / "text.mp4").unlink()
    assert len(auxiliary(project, base(project), options, notes(said))) == 1 and len(encoded(said)) == 1


def test_the_base_draws_clips_once_where_no_folder_is_named(tmp_path, base_folder):
    project, said = make_project(tmp_path, base_folder, "toy", "dog"), []
    for name in ("toy", "dog"):
        learn_subject(project, name, report=notes(said))
    told = [facts for facts in said if "drawn from the base" in str(facts.get("note"))]
    assert len(told) == 1 and sum("drawing" in facts for facts in said) == 2
    assert len(list((tmp_path / ".cache/videos").iterdir())) == 2
    assert any("L_reg" in facts for facts in said)


@pytest.mark.parametrize("folder", [False, True])
def test_subjects_learned_at_once_share_the_work(place, tmp_path, base_folder, film, folder):
    """While another process makes the latents of the first clip, this one makes the second's, and then waits."""
    place("a.mp4", txt="a"), write_video(place("b.mp4", txt="b"), np.zeros((4, 32, 32, 3), np.uint8))
    project = make_project(tmp_path, base_folder, **({"auxiliary": "aux"} if folder else {}))
    options, said, held = resolve("learn-subject", project.settings), [], []
    lock, elsewhere = project.lock, []

    def first_is_held(name, *, wait=True):                  # the name of the first clip's lock is nobody's business
        if not held and not name.startswith("text"):
            held.append(name)
            elsewhere.append(lock(name))
            elsewhere[0].__enter__()
        return lock(name, wait=wait)

    def the_other_is_done(**facts):
        said.append(facts)
        if facts.get("step") == 2:
            elsewhere[0].__exit__(None, None, None)

    project.lock = first_is_held
    clips = auxiliary(project, base(project), options, the_other_is_done)
    assert [facts["step"] for facts in said if "step" in facts] == [2, 1] and len(clips) == 2
    alone = make_project(tmp_path / "alone", base_folder, **({"auxiliary": "../aux"} if folder else {}))
    again = auxiliary(alone, base(alone), resolve("learn-subject", alone.settings), notes([]))
    assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(clips, again))
    if not folder:
        assert [text for text, _ in drawn(alone, base(alone), options, notes([]))] == [text for text, _ in clips]


# -- the stage, and what makes it stale -------------------------------------------------------------------------------
def test_learn_subject_with_a_folder(place, aux, tmp_path, base_folder):
    project, said = make_project(tmp_path, base_folder, "toy", "dog", auxiliary="aux"), []
    options = resolve("learn-subject", project.settings)
    place("one.mp4")
    with pytest.raises(BadInput, match="one.mp4 has no caption.*one.txt"):
        learn_subject(project, "toy", options)
    place("one.mp4", txt="a red dog"), place("deep/two.mp4", txt="a dog"), place("deep/three.mp4", txt="a horse")
    made = [learn_subject(project, name, options, report=notes(said)) for name in ("toy", "dog")]
    assert len(encoded(said)) == 1 and any("L_reg" in facts for facts in said)               # the three are one film
    used = {name for name in made[0].manifest["inputs"] if name.startswith("auxiliary/")}
    assert used == {f"auxiliary/{clip.path.stem}.{end}" for clip in select(aux, 2).clips for end in ("mp4", "txt")}
    assert not learn_subject(project, "toy", options).made

    spare = next(name for name in ("one", "deep/two", "deep/three") if f"auxiliary/{Path(name).stem}.txt" not in used)
    inside = next(clip.path for clip in select(aux, 2).clips if clip.path.parent != aux)
    state = lambda: project.intended(STAGES["learn-subject"], "toy").state()                  # noqa: E731
    (aux / f"{spare}.txt").write_text("what nobody reads")
    assert state()
    inside.with_suffix(".txt").write_text("another caption")
    assert state().reasons == (f"input auxiliary/{inside.stem}.txt changed",)
    inside.with_suffix(".txt").unlink()
    assert state().kind == "stale" and learn_subject(project, "toy", replace(options, lambda1=0)).made
    with pytest.raises(BadInput, match=f"{inside.name} has no caption"):
        learn_subject(project, "toy", options)
    with pytest.raises(BadInput, match="absent is no folder"):
        learn_subject(project, "toy", replace(options, auxiliary="absent"))


def test_a_table_is_an_input_and_what_is_wrong_with_it_waits_for_the_stage(place, aux, tmp_path, base_folder):
    project = make_project(tmp_path, base_folder, "toy", auxiliary="aux")
    place("a.mp4"), place("b.mp4", txt="b")
    table(aux / "t.csv", ("file", "text"), ("a.mp4", "a dog"))
    plan = project.plan(STAGES["learn-subject"], "toy")
    assert [key for key in plan.hashes() if key.startswith("auxiliary")] == [
        "auxiliary/a.mp4", "auxiliary/t.csv", "auxiliary/b.mp4", "auxiliary/b.txt"]
    table(aux / "t.csv", ("file", "text"), ("../a.mp4", "a dog"))
    state = project.intended(STAGES["learn-subject"], "toy").state()
    assert state.kind == "missing" and "leads out of the folder" in state.reasons[0]
    with pytest.raises(Refused, match="t.csv, line 2"):
        learn_subject(project, "toy")


def test_without_l_reg_the_folder_is_left_alone(tmp_path, base_folder):
    project = make_project(tmp_path, base_folder, "toy", auxiliary="absent", lambda1=0)
    assert "auxiliary" not in project.plan(STAGES["learn-subject"], "toy").inputs
    assert auxiliary(project, base(project), resolve("learn-subject", project.settings), notes([])) == []
