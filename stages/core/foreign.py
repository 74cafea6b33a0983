"""Text, YAML and JSON that may have been written by anybody, read as data: nothing runs, and nothing is guessed.

Text comes from files alone and in bounds: a pipe would keep its reader waiting, a device never ends. YAML is plain: the
scalars, lists and mappings of its safe core, in bounds (size, depth, what aliases unfold to), each key once. JSON
likewise. Imports no torch.
"""
from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import BinaryIO

import yaml

from .errors import BadInput, Refused

MOST = 2**20               # of YAML, characters (a project of a thousand prompts has a tenth); of a caption, bytes
MOST_CONFIG = 2**22        # bytes of what stands beside a model's weights: a thousand names of classes are 50,000
MOST_JSON = 2**24          # bytes of other JSON: a manifest of 100,000 files; lists alone unfold to twenty times that
DEEPEST = 20               # levels of mappings and lists in YAML
UNFOLDED = 100_000         # values in it, aliases counted as often as they stand
DIGITS = 100               # of a number in it


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
    """Text and numbers that can be written, and each key once: of two, which one counts would be a guess."""
    if isinstance(node, yaml.ScalarNode) and _lone(node.value):
        raise _Refusal(problem="half a character", problem_mark=node.start_mark)
    if node.tag.endswith((":int", ":float")) and len(node.value) > DIGITS:      # thousands could not be said again
        raise _Refusal(problem=f"a number of more than {DIGITS} digits", problem_mark=node.start_mark)
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


def opened(path: Path) -> BinaryIO:
    """A file, open for reading. Raises OSError where it cannot be read, ValueError for what is none, as a pipe or a
    device, for which it does not wait."""
    file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")      # noqa: SIM115, PTH123
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError("it is no file, but a pipe, a device or a folder")
    return file


def read_text(path: Path, most: int) -> str:
    """What a file says in UTF-8, its lines ending in \\n. Raises what `opened` does, and ValueError for other text and
    for more than so many bytes."""
    with opened(path) as file:
        content = file.read(most + 1)                      # whatever its size is said to be
    if len(content) > most:
        raise ValueError(f"it has more bytes than the {most} that are read at most")
    return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def holds(path: Path, text: str) -> bool:
    """Whether a file is there and says just this."""
    try:
        return read_text(path, len(text.encode())) == text
    except (OSError, ValueError):
        return False


def read_yaml(path: Path, what: str | None = None) -> object:
    """The data in a file; raises what parse_yaml does."""
    what = what or str(path)
    try:
        text = read_text(path, 4 * MOST)
    except UnicodeDecodeError as error:
        raise BadInput(f"{what} is not UTF-8 text ({error})", "save it again as UTF-8") from None
    except (OSError, ValueError) as error:
        raise BadInput(f"{what} cannot be read ({getattr(error, 'strerror', error)})", "see what it is, and who may "
                       "read it") from None
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


def read_json(path: Path, most: int = MOST_JSON) -> object:
    """The data in a JSON file. Raises OSError where it cannot be read, ValueError where it is no file, holds no JSON or
    has more than so many bytes."""
    return loads(read_text(path, most))
