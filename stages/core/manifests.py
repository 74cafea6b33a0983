"""A manifest as it was read: of a known format, whole, and naming nothing outside its own folder. Imports no torch."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from . import formats
from .errors import BadInput, Refused
from .foreign import read_json
from .settings import NAME

KEYS = {"settings", "request", "inputs", "files", "seed", "base", "overrides"}         # what none may lack


def read(path: Path) -> dict | None:
    """A manifest, or None where there is none. Raises BadInput for one that cannot be read or is of a newer format,
    Refused for one whose files would lie outside of the folder of what it describes."""
    why = "it is no mapping"
    try:
        found = read_json(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror})", "see who may read it") from None
    except ValueError as error:
        found, why = None, str(error)
    if isinstance(found, dict):
        found = formats.manifest(found, str(path))
        why = _wrong(found)
    if why:
        raise BadInput(f"{path} is damaged ({why})", "delete it: its stage will run again")
    if strays := [name for name in found["files"] if not stays(name)]:
        raise Refused(f"{path} names the file {strays[0]!r}, which would lie outside of its folder",
                      "delete it: its stage will run again")
    return found


def stays(name: str) -> bool:
    """Whether a name means a file in the folder, or in folders of it: `masks/person/0000.png`."""
    place = PurePosixPath(name)
    return bool(name) and not place.is_absolute() and ".." not in place.parts and "\0" not in name and name != "."


def _wrong(found: Mapping) -> str:
    """What of a manifest is not as one is; "" for nothing. It goes into paths, hashes, tables and options."""
    if missing := sorted(KEYS - found.keys()):
        return f"it lacks '{missing[0]}'"
    for key in ("settings", "request", "inputs", "files", "facts", "options"):
        if not isinstance(found.get(key, {}), Mapping):
            return f"'{key}' is no mapping"
    for key in ("inputs", "files"):
        if not all(isinstance(value, str) for value in found[key].values()):
            return f"'{key}' holds what is no hash"
    for key in ("overrides", "given"):
        if not isinstance(found.get(key, []), list) or not all(isinstance(word, str) for word in found.get(key, [])):
            return f"'{key}' is no list of names"
    if set(found["overrides"]) - found["settings"].keys():
        return "'overrides' names what is no setting"
    if type(found["seed"]) is not int:
        return "'seed' is no whole number"
    base = found["base"]
    if base is not None and not (isinstance(base, Mapping) and {"name", "revision"} <= base.keys()):
        return "'base' names none"
    return _wrong_request(found["request"])


def _wrong_request(request: Mapping) -> str:
    """Of the subjects and the motion that were asked for, which name folders; and of the words."""
    subjects, motion = request.get("subjects", []), request.get("motion")
    if not isinstance(subjects, (list, Mapping)) or not all(
            isinstance(name, str) and NAME.fullmatch(name) for name in (*subjects, *([motion] if motion else []))):
        return "it asks for a subject or a motion that can have no such name"
    words = [*(subjects.values() if isinstance(subjects, Mapping) else ()), request.get("prompt", ""),
             request.get("class", "")]
    return "" if all(isinstance(word, str) for word in words) else "what was asked is no text"
