"""YAML and JSON that may have been written by anybody, read as data: nothing in them runs, and nothing is guessed.

YAML is plain: the scalars, lists and mappings of its safe core, in bounds (size, depth, what aliases unfold to), each
key once. JSON likewise. Imports no torch.
"""
from __future__ import annotations

import json
from pathlib import Path

import yaml

from .errors import BadInput, Refused

MOST = 2**20               # bytes of a YAML file: a project of a thousand prompts has a tenth
MOST_JSON = 2**28          # bytes of a JSON file
DEEPEST = 20               # levels of mappings and lists in YAML
UNFOLDED = 100_000         # values in it, aliases counted as often as they stand


class _Refusal(yaml.MarkedYAMLError):
    """What YAML allows and we do not."""


class _Plain(yaml.SafeLoader):
    """The safe loader, which builds no objects, in bounds."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth, self._values, self._sizes = 0, 0, {}

    def compose_node(self, parent: yaml.Node, index: object) -> yaml.Node:
        mark = self.peek_event().start_mark
        alias, before = self.check_event(yaml.AliasEvent), self._values
        self._depth += 1
        if self._depth > DEEPEST:
            raise _Refusal(problem=f"more than {DEEPEST} levels deep", problem_mark=mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if alias and id(node) not in self._sizes:          # it stands inside what it names
            raise _Refusal(problem="an alias that holds itself", problem_mark=mark)
        self._values += self._sizes[id(node)] if alias else 1
        if self._values > UNFOLDED:
            raise _Refusal(problem=f"aliases that unfold to more than {UNFOLDED} values", problem_mark=mark)
        if not alias:
            self._sizes[id(node)] = self._values - before
            _check(node)
        return node


def _check(node: yaml.Node) -> None:
    """Text that can be written, and each key once: of two, which one counts would be a guess."""
    if isinstance(node, yaml.ScalarNode) and _lone(node.value):
        raise _Refusal(problem="half a character", problem_mark=node.start_mark)
    seen = set()
    for key in (key for key, _ in node.value) if isinstance(node, yaml.MappingNode) else ():
        if not isinstance(key, yaml.ScalarNode):
            raise _Refusal(problem="a key that is no word", problem_mark=key.start_mark)
        if (key.tag, key.value) in seen:
            raise _Refusal(problem=f"the key '{key.value}' stands there twice", problem_mark=key.start_mark)
        seen.add((key.tag, key.value))


def parse_yaml(text: str, what: str) -> object:
    """The data in a text. what: how errors call it. Raises BadInput with the line, Refused for a tag that asks YAML to
    run something."""
    try:
        if len(text) > MOST:
            raise BadInput(f"{what} has {len(text)} characters, and {MOST} are read at most", "see what is in it")
        return yaml.load(text, _Plain)                     # noqa: S506 (a safe loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = str(getattr(error, "problem", None) or error)
        if "tag:yaml.org,2002:python" in problem:
            raise Refused(f"{what}{line} asks for a Python object, which could run code", "do not trust this file, or "
                          "write it as plain text, lists and mappings") from None
        raise BadInput(f"{what}{line} is not YAML: {problem}" if not isinstance(error, _Refusal) else
                       f"{what}{line} is no plain YAML: {problem}", "mend that line") from None
    except (ValueError, OverflowError, RecursionError) as error:     # a number, a date that nothing can hold
        raise BadInput(f"{what} holds a value that cannot be read ({error})", "put what was meant as text into quotes"
                       ) from None


def read_yaml(path: Path, what: str | None = None) -> object:
    """The data in a file; raises what parse_yaml does."""
    what = what or str(path)
    try:
        if (size := path.stat().st_size) > 4 * MOST:
            raise BadInput(f"{what} has {size} bytes, and {4 * MOST} are read at most", "see what is in it")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(f"{what} is not UTF-8 text ({error})", "save it again as UTF-8") from None
    except OSError as error:
        raise BadInput(f"{what} cannot be read ({error.strerror})", "see who may read it") from None
    return parse_yaml(text, what)


def _lone(text: str) -> bool:
    """Whether there is half a character in it (a lone surrogate), which no file and no terminal takes."""
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def loads(text: str | bytes) -> object:
    """The data in a JSON text. Raises ValueError for any that is none, also where it is nested too deeply, has one key
    twice, or holds half a character."""
    try:
        found = json.loads(text, object_pairs_hook=_once)
        escaped = b"\\ud" if isinstance(text, bytes) else "\\ud"
        if escaped in text.lower() and _lone(json.dumps(found, ensure_ascii=False)):
            raise ValueError("it holds half a character")
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return found


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands there twice")
    return found


def read_json(path: Path) -> object:
    """The data in a JSON file. Raises OSError where it cannot be read, ValueError where it holds no JSON."""
    if (size := path.stat().st_size) > MOST_JSON:
        raise ValueError(f"it has {size} bytes, and {MOST_JSON} are read at most")
    return loads(path.read_text(encoding="utf-8"))
