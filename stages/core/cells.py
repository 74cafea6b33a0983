"""Cells of tables that people open in spreadsheets, which take some text for a formula and run it. Imports no torch."""
from __future__ import annotations

from contextlib import suppress

_FORMULA = "=+-@\t\r\n\uff1d\uff0b\uff0d\uff20"        # what one begins with, in wide letters, too


def cell(value: object) -> object:
    """A value for a csv file. Text that a spreadsheet would run gets an apostrophe before it, which shows that it is
    text; numbers, and text that is a number, stay as they are."""
    if not isinstance(value, str) or not value.lstrip(" ")[:1] or value.lstrip(" ")[0] not in _FORMULA:
        return value
    with suppress(ValueError):
        float(value)
        return value
    return f"'{value}"
