"""The README's tables of options, made from options.py and presets.py: python -m stages.option_tables README.md"""
from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path

from .core.settings import Settings
from .options import OPTIONS, deviations, show, span
from .presets import PRESETS


def markdown(base: str = "sprites") -> str:
    """The table between the README's `<!-- options -->` marks: every option, its default, and the preset of a base."""
    rows = [f"| stage | option | default | {base} | range | what it is | paper |", "|---|---|---|---|---|---|---|"]
    for stage, cls in OPTIONS.items():
        preset = PRESETS.get(base, {}).get(stage, {})
        for spec in fields(cls):
            limits = " ".join(filter(None, (span(spec), spec.metadata["unit"])))
            own = show(preset[spec.name][0]) if spec.name in preset else ""
            rows.append(f"| {stage} | `--{spec.name.replace('_', '-')}` | {show(spec.default)} | {own} | {limits} "
                        f"| {spec.metadata['help']} | {spec.metadata['paper']} |")
    return "\n".join(rows)


def differences(base: str = "sprites") -> str:
    """The table between the README's `<!-- presets -->` marks: where the preset of a base differs, and why."""
    rows = ["| stage | option | here | paper | why |", "|---|---|---|---|---|"]
    rows += [f"| {stage} | `--{name.replace('_', '-')}` | {show(value)} | {show(paper)} | {why} |"
             for stage in OPTIONS for name, value, paper, why in deviations(stage, Settings(base=base))]
    return "\n".join(rows)


TABLES = {"options": markdown, "presets": differences}


def fill(text: str, tables: Mapping[str, Callable[[], str]] = TABLES) -> str:
    """A page with the tables of today between their marks."""
    for mark, table in tables.items():
        before, _, rest = text.partition(f"<!-- {mark} -->")
        _, _, after = rest.partition(f"<!-- /{mark} -->")
        text = f"{before}<!-- {mark} -->\n{table()}\n<!-- /{mark} -->{after}"
    return text


if __name__ == "__main__":
    readme = Path(sys.argv[1])
    readme.write_text(fill(readme.read_text(encoding="utf-8")), encoding="utf-8")
