"""The number of a format, which project.yaml and every manifest may carry: a newer one is refused, an older one brought
up to date by a function of its own; none is guessed. Imports no torch."""
from __future__ import annotations

from collections.abc import Callable, Mapping

from .errors import BadInput
from .stage import versions

MANIFEST = 2               # of what plan.py writes; 1: the same without a number, and `given` may be lacking
PROJECT = 1                # of project.yaml, where it says so: `format: 1`
CHECKPOINT = 1

KEY = "format"


def _manifest_2(found: Mapping[str, object]) -> dict[str, object]:
    """From 1: what a manifest of that time did not say is what was so then."""
    return {**found, "given": found.get("given", [])}


MIGRATIONS: dict[int, Callable[[Mapping[str, object]], dict[str, object]]] = {1: _manifest_2}


def number(said: object, newest: int, what: str) -> int:
    """The format that `what` says it has; None: 1, which carries no number. Raises BadInput for a newer one, and for
    what is no number."""
    if said is None:
        return 1
    if type(said) is not int or said < 1:
        raise BadInput(f"{what} says that its format is {said!r}, which is none", "restore it, or make it anew")
    if said > newest:
        mine = versions()["videomage"] or "not installed"
        raise BadInput(f"{what} is of format {said}, and this videomage ({mine}) knows formats up to {newest}",
                       "it was written by a newer one: pip install --upgrade videomage")
    return said


def manifest(found: Mapping[str, object], what: str) -> dict[str, object]:
    """A manifest as this version has it. Raises BadInput for one of a newer format."""
    current = dict(found)
    for old in range(number(found.get(KEY), MANIFEST, what), MANIFEST):
        current = {**MIGRATIONS[old](current), KEY: old + 1}
    return current
