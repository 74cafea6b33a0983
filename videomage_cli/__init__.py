"""The command line of VideoMage: the only package that knows a terminal exists."""
from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path


def refuse_foreign_stages(where: Path = Path(__file__).parent.parent) -> None:
    """Exit in one sentence if `import stages` would find a package that is not ours (`where` holds ours)."""
    spec = find_spec("stages")
    found = Path(spec.origin).parent if spec and spec.origin else None
    if found is None or found.resolve() != (where / "stages").resolve():
        at = f"another package of that name, in {found}, stands before it" if found else "it is not installed"
        sys.stderr.write(f"videomage needs its own package 'stages', but {at}. Run it from another folder, or in an "
                         "environment of its own.\n")
        raise SystemExit(2)
