"""What is not as a manifest has it, in phrases for `status`."""
from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .plan import Plan


def named(base: Mapping[str, str] | None) -> str:
    return f"{base['name']}@{str(base['revision'])[:8]}" if base else "none"


def changes(old: Mapping, new: Mapping, prefix: str) -> list[str]:
    return [f"{prefix}{key} {old.get(key)!r} -> {new[key]!r}" for key in new if key not in old or old[key] != new[key]]


def differences(old: Mapping[str, str], new: Mapping[str, str]) -> list[tuple[str, str]]:
    keys = dict.fromkeys([*old, *new])
    return [(key, "is gone" if key not in new else "is new" if key not in old else "changed")
            for key in keys if old.get(key) != new.get(key)]


def damage(plan: Plan, manifest: Mapping) -> list[str]:
    """Files of the artefact that are gone, or were changed afterwards and are not a person's to change."""
    found = []
    for name in manifest["files"]:
        if not (plan.folder / name).is_file():
            found.append(f"its file {name} is gone")
    edited = [name for name in plan.edited(manifest) if not name.startswith(plan.stage.editable)]
    return [*found, *(f"its file {name} was changed by hand" for name in edited)]
