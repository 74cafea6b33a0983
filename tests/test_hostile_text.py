"""Text of a stranger, where it is shown: nothing of it reaches a terminal, a page or a spreadsheet as a command."""
from __future__ import annotations

import copy
import csv
import json
import re
import shlex
import shutil
import time
from pathlib import Path

import pytest
from hostile import ESCAPES, MARKUP, made, small_project, tampered
from test_page import Tree, make_sample, score
from test_page import project as page_project  # noqa: F401 (a fixture)
from typer.testing import CliRunner

from stages.backbones.clip_text import _bare
from stages.backbones.folder import check
from stages.core import video
from stages.core.cells import cell
from stages.core.errors import BadInput, MissingPrerequisite, Refused
from stages.core.settings import LONGEST as LONGEST_PROMPT
from stages.core.train import write_curve
from stages.core.workspace import Workspace
from stages.page import write_page
from stages.prompts import motion_prompt, target_prompt
from stages.segmenters import models
from stages.sweep.collect import write
from videomage_cli import console
from videomage_cli.app import app
from videomage_cli.visible import LONGEST, as_json, message, visible

OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


# -- the terminal -----------------------------------------------------------------------------------------------------
def test_what_a_terminal_would_obey_is_written_out():
    assert visible("a\x1b[31mb\x07\x9b\u202e\ud800\x7f") == r"a\x1b[31mb\x07\x9b\u202e\ud800\x7f"
    assert visible("one\ntwo\tthree\r") == r"one two three\x0d" and visible("a\nb\tc", lines=True) == "a\nb\tc"
    assert visible("ünïcode 🐎 <toy> [bold]") == "ünïcode 🐎 <toy> [bold]"
    assert len(message("x" * 10**6)) == LONGEST + 3
    said = {"a": ESCAPES, "b": ["\u2028", "🐎", 1.5, None], ESCAPES: "\ud800"}
    assert not OBEYED.search(as_json(said)) and json.loads(as_json(said)) == said


def test_everything_that_is_printed_goes_through_that(capsys, monkeypatch):
    text = f"{ESCAPES}{MARKUP}"
    console.out(text)
    console.say(text)
    console.say(text, "red")
    console.table(text, (text, "b"), [(text, 1.5), ("x", text)])
    console.table(text, (text,), [(text,)], data=False)
    console.show_error(BadInput(text, text))
    with console.Talk(text) as report:
        report(note=text)
        report(step=1, of=1, prompt=text, call=text)
    caught = capsys.readouterr()
    for found in (caught.out, caught.err):
        assert not OBEYED.search(found.replace("\n", "")) and r"\x1b[31m" in found
        assert "[bold]b[/bold]" in found.replace("\n", "") and ":bomb:" in found             # nor is it our own markup
    console.out_json({text: text})
    assert json.loads(capsys.readouterr().out) == {text: text}


def test_a_bar_shows_text_as_text(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with console.Talk("x") as report:
        report(step=1, of=2, prompt=f"[red]{ESCAPES}[/red]", call="[bold]c[/bold]")
        task, columns = report.bar.tasks[0], report.bar.columns
        assert "[bold]c[/bold]" in columns[0].render(task).plain and "[red]\\x1b[31m" in columns[-1].render(task).plain
        report(note=f"[red]{ESCAPES}[/red] :bomb:")
    assert "[red]\\x1b[31mred" in capsys.readouterr().err


def test_status_and_errors_of_a_stranger_s_project(tmp_path, survived):
    """Prompts, class words, manifests and names of files, shown by status, a refusal and a dry run."""
    text = f"{ESCAPES}{MARKUP}"
    project = small_project(tmp_path, prompts=[f"a {text}"], subjects={"toy": {"class": text, "images": "photos"}})
    path = made(project, "learn-subject", "toy")
    (tmp_path / "photos/0000.png").rename(tmp_path / f"photos/{ESCAPES.replace('/', '')}.png")
    said = json.loads(path.read_text())
    tampered(path, settings={**said["settings"], "schedule": text}, base={"name": text, "revision": text},
             files={**said["files"], f"{ESCAPES}": "0" * 64})
    for args in (["status"], ["status", "--json"], ["sample", "--dry-run"], ["learn-subject", "--dry-run"],
                 ["sample", "--prompt", f"<{ESCAPES.strip()}> x"], ["eval", ESCAPES], ["learn-motion", "--dry-run"]):
        done = CliRunner().invoke(app, [*args, "-p", str(tmp_path)])
        shown = done.stdout + done.stderr
        assert done.exit_code in (0, 2, 3, 4) and "defect" not in shown, shown
        assert not OBEYED.search(shown.replace("\n", "")), args
        survived("hostile text", f"the terminal: {' '.join(args)[:40]!r}")
    (tmp_path / "project.yaml").write_text(f"base: sprites\n{json.dumps(ESCAPES)}: x\n")
    done = CliRunner().invoke(app, ["status", "-p", str(tmp_path)])
    assert done.exit_code == 3 and not OBEYED.search(done.stderr.replace("\n", "")), done.stderr


# -- the page ---------------------------------------------------------------------------------------------------------
def shown(project: Workspace, *samples: str) -> Tree:
    """The page, parsed: no element, attribute or script that we did not write."""
    text = write_page(project, samples).read_text(encoding="utf-8")
    tree = Tree(text)
    assert sum(tag == "script" for tag, *_ in tree.found) == 1 and text.count("</script") == text.count("<script") == 1
    for tag, attrs, _ in tree.found:
        assert tag not in ("iframe", "object", "embed", "link", "base", "form")
        assert not [name for name in attrs if name.startswith("on")], (tag, attrs)
        assert all(value.startswith("#") for name, value in attrs.items() if name == "href")
        assert all(value.startswith("data:image/") for name, value in attrs.items() if name == "src")
    return tree


def leaves(value: object, at: tuple = ()) -> list[tuple]:
    """The place of every value in a score file, mappings and lists among them."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, item in inner for place in leaves(item, (*at, key)))]


def changed(value: object, at: tuple, other: object) -> object:
    if not at:
        return other
    out = copy.copy(value)
    out[at[0]] = changed(value[at[0]], at[1:], other)
    return out


def test_names_prompts_and_scores_are_text_on_the_page(page_project, survived):  # noqa: F811
    project, text = page_project, MARKUP + ESCAPES
    make_sample(project, "0006-six", prompt=text, subjects=["toy"], motion="riding")
    words = json.dumps(score("0006-six"))
    found = json.loads(words.replace('"dog"', json.dumps(text)).replace('"horse"', json.dumps(text)))
    found["judged"] = {**found["judged"], text: found["judged"]["oracle"]}
    found["paper protocol"][text] = text
    (project.root / "scores/0006-six.json").write_text(json.dumps(found))
    (project.root / "scores/summary.json").write_text(json.dumps({"judged": {text: {"success": {
        "rate": 0.5, "low": 0.1, "high": 0.9, "of": 7}}}}))
    tree = shown(project)
    assert any("<script>alert(1)</script>" in text for *_, text in tree.found)          # it is there, as text
    survived("hostile text", "the page: names, prompts, judges, scores")


HOSTILE = (MARKUP, {MARKUP: MARKUP}, [MARKUP], None, True, -1, 10**400, float("nan"), [], {})


@pytest.mark.faults
@pytest.mark.parametrize("other", HOSTILE, ids=lambda value: repr(value)[:20])
def test_a_page_outlives_any_score_file(other, page_project, survived):  # noqa: F811
    """Each value of it in turn is something else: those at the top everything, those inside one thing each."""
    whole, turn = score("0001-one"), [repr(one) for one in HOSTILE].index(repr(other))
    places = leaves(whole)
    for at in [at for n, at in enumerate(places) if len(at) < 2 or n % len(HOSTILE) == turn]:
        (page_project.root / "scores/0001-one.json").write_text(json.dumps(changed(whole, at, other)))
        shown(page_project, "0001-one")
        survived("hostile text", f"the page: {'.'.join(map(str, at))} is {repr(other)[:20]}")


# -- tables -----------------------------------------------------------------------------------------------------------
FORMULAS = ("=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "=cmd|' /C calc'!A0", "＝1", "-", "+a")


@pytest.mark.parametrize("text", FORMULAS)
def test_text_that_a_spreadsheet_would_run_is_marked(text, tmp_path, survived):
    marked = f"'{text[0]}'{text[1:]}" if text[0] in "\t\r\n" else f"'{text}"
    assert cell(text) == marked
    rows = [{"prompt": text, text: 1.5, "score": -0.25, "seed": 3, "why": None, "number": "-1.5", "fine": "a = b"}]
    write(rows, tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        head, line = list(csv.reader(file))
    assert head == ["prompt", marked, "score", "seed", "why", "number", "fine"]
    assert line == [marked, "1.5", "-0.25", "3", "", "-1.5", "a = b"]
    write_curve([{"loss": 0.5, text: 1.0}], tmp_path / "curve.csv")
    with (tmp_path / "curve.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["step", "loss", f"'{' '.join(text.split())}"], ["0", "0.5", "1"]]
    survived("hostile text", f"csv: {text!r}")


def test_a_formula_in_the_middle_is_marked_where_some_part_cells():
    assert cell("a cat;=1+1;") == "a cat;'=1+1;" and cell("a\t @x;\n-1") == "a\t' @x;\n'-1"
    assert cell("=1;+2") == "'=1;'+2" and cell("a; b = c - d, =e") == "a; b = c - d, =e"


# -- commands that a remedy shows -------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["a b.heic", "$(touch x).heic", "a;rm -r ~.heic", "-format.heic", "`x`.heic", "'.heic",
                                  "msl:x.heic", "a.heic"])
def test_a_command_names_a_file_as_a_shell_reads_it(name, tmp_path):
    (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(BadInput) as refused:
        video.list_images(tmp_path)
    program, source, target = shlex.split(refused.value.remedy.partition(": ")[2])
    assert program == "magick" and Path(source).name == name and Path(target).name == f"{Path(name).stem}.png"
    assert source[0] not in "-" and (source == name or source.startswith("./")), "it is no option"


def test_a_command_names_bases_subjects_and_models_so(tmp_path, base_folder):
    bad = "$(touch${IFS}x)"
    with pytest.raises(BadInput) as unknown:
        target_prompt(f"<{bad}> rides", {})
    with pytest.raises(MissingPrerequisite) as absent:
        models.locate(f"owner/name@{bad}", "the detector")
    folder = shutil.copytree(base_folder, tmp_path / "a b")
    (folder / "unet/diffusion_pytorch_model.safetensors").rename(folder / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(Refused) as pickled:
        check(folder, str(folder))
    for error, word in ((unknown, bad), (absent, f"owner/name@{bad}"), (pickled, str(folder))):
        assert word in shlex.split(error.value.remedy.partition("videomage ")[2]), error.value.remedy


# -- prompts ----------------------------------------------------------------------------------------------------------
def test_a_prompt_without_end_is_named_and_one_of_signs_takes_no_time(backbone):
    long = "a " * LONGEST_PROMPT
    for read in (motion_prompt, lambda text: target_prompt(text, {}), backbone.positions):
        with pytest.raises(BadInput, match=f"the prompt 'a a .* has {len(long)} characters, and {LONGEST_PROMPT} are"):
            read(long)
    started = time.process_time()
    _bare("!" * 300_000 + "a" + "!" * 300_000, 0, ())
    assert time.process_time() - started < 2


@pytest.mark.parametrize("word", ["", "!", "a", "!a!", "a-b", "...a_", "_", "é!", "!²", "，猫。", "'tis", "a!b!"])
def test_a_word_without_the_signs_around_it_is_as_ever(word):
    bare = re.sub(r"^\W+|\W+$", "", word)
    start = 7 + (word.index(bare) if bare else 0)
    assert _bare(word, 7, ()) == (bare or word, start, start + len(bare))


@pytest.mark.parametrize("value", [0, -1, 2.5, True, None, "", "a", "-1", "+2.5e-3", "<toy> rides", "0001-x", "-inf"])
def test_numbers_and_plain_text_stay_as_they_are(value):
    assert cell(value) is value


def test_a_card_of_an_export_is_one_line_each(tmp_path):
    """README.md of an export: the header of a LoRA is text in it, no heading, link or key of the front matter."""
    import torch

    from stages.core.lora import Lora
    from stages.export import _card

    text = "x`\n---\nlicense: mit\n# title\n[a](javascript:x)"
    lora = Lora({"a.lora_A.weight": torch.ones(1, 2), "a.lora_B.weight": torch.ones(2, 1)}, 1.0, 1,
                {"base": text, "trigger": text, "prompt": text, "licence": text, "subject": text})
    lines = _card(lora, text, "peft").decode().splitlines()
    assert lines.count("---") == 2 and sum(line.startswith("license:") for line in lines) == 1
    assert sum(line.startswith("# ") for line in lines) == 1
    assert json.loads(lines[1].removeprefix("base_model: ")) == text
    assert all(line.count("`") in (0, 2) for line in lines[lines.index("---", 1):])
