"""Text of a project as a terminal may have it. Prompts, names of files and values of manifests may come from a stranger
and hold what a terminal would obey: colours, a cleared line, another title, letters that run backwards."""
from __future__ import annotations

import json
import re

LONGEST = 4000                  # characters of one message: an error may quote what it was given
# control characters (tab and newline apart), marks of direction, breaks of lines and paragraphs, half characters
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_BREAKS = re.compile("[\t\n]")


def visible(text: str, *, lines: bool = False) -> str:
    """The text with what a terminal would obey written out: "\\x1b[31m". lines: tab and newline stay as they are; else
    they become spaces, so that no text can look like the line after it."""
    shown = _OBEYED.sub(_written, text)
    return shown if lines else _BREAKS.sub(" ", shown)


def message(text: str) -> str:
    """The same, at a length that can be read."""
    shown = visible(text)
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}..."


def as_json(value: object) -> str:
    """JSON that reads back as it was, with the same characters as JSON's own escapes."""
    text = json.dumps(value, indent=1, ensure_ascii=False, default=str)
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _written(found: re.Match) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
