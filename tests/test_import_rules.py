"""Who may import whom (CONTRIBUTING.md), read from the source: nothing is run."""
from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*(ROOT / "stages").rglob("*.py"), *(ROOT / "videomage_cli").rglob("*.py")])
STAGES = {"segment", "invert", "learn_subject", "learn_motion", "fuse", "sample", "evaluate", "export"}
SEAMS = {"backbones", "segmenters", "metrics"}
# what any stage may use
HOUSE = {"options", "presets", "prompts", "orders", "hints", "findings", "photos", "cuts", "auxiliary", "controls",
         "judging", "materials", "core"}
TORCH_FREE = {"stages", "stages.backbones", "stages.core", "stages.segmenters", "stages.sweep", *(
    f"stages.backbones.{name}" for name in ("bases", "blocks", "cost", "fetch", "folder", "walks")), *(
    f"stages.{name}" for name in ("options", "presets", "prompts", "orders", "controls", "hints", "materials")), *(
    f"stages.sweep.{name}" for name in (
        "grid", "parts", "variants", "store", "schedule", "work", "run", "on_ray", "collect", "forecast")), *(
    f"stages.segmenters.{name}" for name in ("models", "fetch")), *(f"stages.core.{name}" for name in (
        "errors", "report", "lock", "settings", "stage", "plan", "workspace", "captions", "tables", "kinds", "hub",
        "hashes", "borders", "foreign", "headers", "formats", "manifests", "configs", "cells", "store", "changes"))}
HEAVY = {"torch", "diffusers", "transformers", "peft", "safetensors", "accelerate", "numpy", "PIL", "imageio", "av"}
FORBIDDEN = {"pickle", "click", "torchvision", "marshal", "shelve"}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path, *, at_import_time: bool = False) -> set[str]:
    """Absolute names of what a file imports, but for type checking; at_import_time: not what functions import."""
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]

    def walk(node: ast.AST):
        for child in ast.iter_child_nodes(node):
            lazy = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            if (at_import_time and lazy) or (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
                continue
            if isinstance(child, (ast.Import, ast.ImportFrom)):
                yield child
            yield from walk(child)

    found = set()
    for node in walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        base = node.module or ""
        if node.level:
            above = package.split(".")[:len(package.split(".")) - node.level + 1]
            base = ".".join([*above, *filter(None, [node.module])])
        found.add(base)
        found |= {name for alias in node.names if is_module(name := f"{base}.{alias.name}")}
    return found


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def ours(names: set[str]) -> set[str]:
    """The first name below `stages` of what is imported from there."""
    return {name.split(".")[1] for name in names if name.startswith("stages.")}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports(path):
    module, names = module_of(path), imported(path)
    tops = {name.split(".")[0] for name in names}
    assert not tops & FORBIDDEN
    if module.startswith("videomage_cli"):
        early = imported(path, at_import_time=True)
        assert not {name.split(".")[0] for name in early} & HEAVY
        assert {name for name in early if name.startswith("stages")} <= TORCH_FREE
        return
    assert not tops & {"typer", "rich", "videomage_cli"}
    own = module.split(".")[1] if "." in module else ""
    if module in TORCH_FREE:
        early = imported(path, at_import_time=True)
        assert not {name.split(".")[0] for name in early} & HEAVY, "status and --help would load it"
    if own == "core":
        assert ours(names) <= {"core"} and "diffusers" not in tops
    elif own in SEAMS:
        assert ours(names) <= {"core", own, "sprites"}
    elif own in STAGES:
        assert ours(names) <= HOUSE | SEAMS, "stages meet on disk"
    elif own == "page":
        assert ours(names) <= HOUSE | {"backbones", own} and "torch" not in tops, "it shows what is there"
    if own not in {"backbones", "sprites"}:
        assert "diffusers" not in tops


def script_lines(tree: ast.Module) -> set[int]:
    """Lines of `main` and of `if __name__ == "__main__"`: what runs only as `python -m stages...`."""
    return {line for node in tree.body for line in range(node.lineno, node.end_lineno + 1)
            if isinstance(node, ast.FunctionDef) and node.name == "main"
            or isinstance(node, ast.If) and "__main__" in ast.unparse(node.test)}


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_house_rules(path):
    """Length of files and functions, no print or exit under stages/, no broad except, no torch.load; files are moved
    and lengthened by core/store.py alone."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert len(text.splitlines()) <= (340 if path.name == "options.py" else 300)        # one line per hyper-parameter
    script = script_lines(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None and ast.unparse(node.type) != "Exception"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called != "torch.load" or module_of(path) == "stages.backbones.convert"
            moves = called.endswith((".rename", ".replace", ".renames")) and len(node.args) == 1 and not node.keywords
            appends = any(isinstance(arg, ast.Constant) and arg.value in ("a", "ab") for arg in node.args)
            assert not (moves or appends and called.endswith("open")) or module_of(path) == "stages.core.store", \
                f"line {node.lineno}: see core/store.py"
            if module_of(path).startswith("stages") and node.lineno not in script:
                assert called not in ("print", "sys.exit", "exit", "quit"), f"line {node.lineno}"
        if isinstance(node, ast.ImportFrom) and module_of(path).startswith("stages"):
            assert node.level or not (node.module or "").startswith("stages"), f"line {node.lineno}"
