"""How several words follow one flag, as in `--subjects toy dog`, and how a flag may go without its word."""
from __future__ import annotations

import re

import typer
from typer.core import TyperCommand

# `--subjects a b`, `--subjects a --subjects b`, `--subjects a,b`; --devices goes on as long as devices follow
_PLACE = r".*=[-\d.,\s]+|[\d.,\s]+"
SPREAD = {"--subjects": ".*", "--actors": ".*", "--box": _PLACE, "--point": _PLACE,
          "--devices": r"((cpu|cuda|mps)(:\d+)?,?)+"}
OPTIONAL = {"--html": r".+\.html?"}              # what follows is its word only if it looks like this; else it has none


def words(values: list[str] | None) -> list[str]:
    """["a,b", "c"] -> ["a", "b", "c"]."""
    return [word for value in values or () for word in map(str.strip, value.split(",")) if word]


def spread(args: list[str]) -> list[str]:
    """`--subjects a b` -> `--subjects a --subjects b`, up to the next flag or `--`; `--html b` -> `--html "" b`."""
    done: list[str] = []
    current, filled = None, False
    for k, arg in enumerate(args):
        if arg == "--":
            return done + args[k:]
        if arg.startswith("-"):
            name = arg.split("=", 1)[0]
            current, filled = (name, "=" in arg) if name in SPREAD else (None, False)
        elif current and filled:
            current = current if re.fullmatch(SPREAD[current], arg) else None
            done += [current] if current else []
        else:
            filled = True
        done.append(arg)
        if arg in OPTIONAL and not re.fullmatch(OPTIONAL[arg], "".join(args[k + 1:k + 2])):
            done.append("")
    return done


class SpreadCommand(TyperCommand):
    """A command whose SPREAD options take several words after one flag, and whose OPTIONAL ones may take none."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, spread(args))
