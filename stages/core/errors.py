"""What can go wrong, in the words of the one who must mend it."""
from __future__ import annotations


class VideomageError(Exception):
    """what: the thing and the reason, one sentence. remedy: what to do or type. exit_code: of the command line."""

    exit_code = 3

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(f"{what}. {remedy}" if remedy else what)
        self.what, self.remedy = what, remedy

    def __reduce__(self):                             # an error of another process arrives whole
        return type(self), (self.what, self.remedy)


class UsageError(VideomageError):
    """The command or an option is wrong."""

    exit_code = 2


class BadInput(VideomageError):
    """A file or a value that a person gave cannot be used."""

    exit_code = 3


class MissingPrerequisite(VideomageError):
    """An earlier stage's product is missing or stale."""

    exit_code = 4


class Locked(VideomageError):
    """Another process works on the same artefact."""

    exit_code = 5


class OutOfResources(VideomageError):
    """Memory or disk ran out."""

    exit_code = 6


class NumericError(VideomageError):
    """A loss, a gradient or a result is not finite."""

    exit_code = 7


class Refused(VideomageError):
    """Not done, for safety: a pickle, a path that leaves the project."""

    exit_code = 8


class Interrupted(VideomageError):
    """Stopped on request; the same command goes on from there."""

    exit_code = 75
