"""Cells of tables that people open in spreadsheets, which take some text for a formula and run it. Imports no torch."""
from __future__ import annotations

import re
from contextlib import suppress

_FORMULA = "=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20"      # what one begins with, in wide letters, too
_BEGINS = re.compile(rf"^(?= *[{_FORMULA}])|(?<=[;\t\r\n])(?= *[=+\-@\uff1d\uff0b\uff0d\uff20])")


def cell(value: object) -> object:
    """A value for a csv file. Text that a spreadsheet would run gets an apostrophe before it, which shows that it is
    text, also behind what some of them part cells at; numbers, and text that is a number, stay as they are."""
    if not isinstance(value, str):
        return value
    with suppress(ValueError):
        float(value)
        return value
    return _BEGINS.sub("'", value) if _BEGINS.search(value) else value
