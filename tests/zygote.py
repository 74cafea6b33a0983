"""A process that has everything imported and does what it is told in forks of itself: a stage that is killed costs what
the stage costs, and no start of Python.

    zygote = Zygote()
    zygote.run(root, "learn-subject", "toy", options={"steps": 9}, failpoint="kill@17")  -> -9, 0, or an exit code
    zygote.look(root)           -> what a fresh process sees: {"states": {...}, "files": {...}, "left": [...]}
"""
from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from videomage_cli.console import refusal

OTHER = 99              # exit code: an error that is none of ours
CAPABILITIES_3 = 0x20080522


class Zygote:
    """One waits for orders; see the module."""

    def __init__(self) -> None:
        self._process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})

    def _ask(self, **order) -> dict:
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def run(self, root: Path, stage: str, name: str, *, options: dict | None = None, force: bool = False, seed: int = 0,
            failpoint: str = "", kill_at_step: int | None = None, every_steps: int = 0, file_limit: int | None = None,
            nobody: bool = False) -> tuple[int, str]:
        """(exit code, negative for a signal; what was said). kill_at_step: SIGKILL when that step, or the first
        that is trained if it comes later, is reported; every_steps: to the next checkpoint; file_limit: RLIMIT_FSIZE;
        nobody: where permissions count, as for anyone but the superuser."""
        answer = self._ask(root=str(root), stage=stage, name=name, options=options or {}, force=force, seed=seed,
                           failpoint=failpoint, kill_at_step=kill_at_step, every_steps=every_steps,
                           file_limit=file_limit, nobody=nobody)
        return answer["code"], answer["said"]

    def look(self, root: Path) -> dict:
        return json.loads(self._ask(root=str(root), look=True)["said"])

    def close(self) -> None:
        self._process.communicate()


# -- in the process ---------------------------------------------------------------------------------------------------
def _serve() -> None:
    import torch

    import stages.evaluate
    import stages.fuse
    import stages.invert
    import stages.learn_motion
    import stages.learn_subject
    import stages.sample
    import stages.segment  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        order = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            _obey(order, writing)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            said = pipe.read()
        _, status = os.waitpid(child, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status), "said": said}), flush=True)


def _obey(order: dict, writing: int) -> None:
    """The fork: never returns."""
    code, said = OTHER, ""
    try:
        said = _look(Path(order["root"])) if order.get("look") else _run(order, writing)
        code = 0
    except BaseException as error:
        known = refusal(error)                                          # as the command line would tell it
        code = known.exit_code if known else OTHER
        said = f"{type(error).__name__}: {known or error} ({error.__cause__!r})"
    with suppress(OSError):
        os.write(writing, said.encode())
    os._exit(code)


def _run(order: dict, writing: int) -> str:
    from stages import STAGES
    from stages.core import checkpoints
    from stages.core.store import FAILPOINT
    from stages.core.workspace import Workspace
    from stages.options import resolve

    said = []

    def report(**facts: object) -> None:
        if "note" in facts:
            said.append(str(facts["note"]))
        if order["kill_at_step"] and "loss" in facts and facts["step"] >= order["kill_at_step"]:
            os.write(writing, f"killed after step {facts['step']}".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    if order["every_steps"]:
        checkpoints.Checkpoints.due = lambda self, curve: len(curve) - self._after >= order["every_steps"]

    if order["nobody"]:
        _give_up_rights()
    if order["failpoint"]:
        os.environ[FAILPOINT] = order["failpoint"]
    project = Workspace(order["root"])
    if order["file_limit"] is not None:                 # what is written first is what the project's opening settled
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_limit"],) * 2)
    stage = STAGES[order["stage"]]
    module, function = stage.function.split(":")
    first = [order["name"]] if order["stage"] in ("sample", "eval") else \
        order["name"].split("+") if order["stage"] == "fuse" else order["name"]
    getattr(sys.modules[module], function)(
        project, first, resolve(order["stage"], project.settings, order["options"]), force=order["force"],
        **({"seed": order["seed"]} if order["stage"] != "eval" else {}), report=report)
    return "\n".join(said)


def _give_up_rights() -> None:
    """Whoever runs the tests as the superuser may write everywhere: not so without capabilities."""
    header, none = (ctypes.c_uint32 * 2)(CAPABILITIES_3, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, none) == 0


def _look(root: Path) -> str:
    from stages import STAGES
    from stages.backbones import identity_of
    from stages.core.workspace import Workspace

    project = Workspace(root)
    base, states, files, manifests = identity_of(project), {}, {}, {}
    for stage in STAGES.values():
        for name in stage.names(project):
            key, plan = f"{stage.name} {name}", project.intended(stage, name, base)
            states[key] = plan.state().kind
            manifest = plan.recorded()
            manifests[key] = manifest and {part: manifest[part] for part in ("settings", "seed", "inputs")}
            files[key] = manifest and {file: project.sha256(plan.folder / file) for file in manifest["files"]
                                       if (plan.folder / file).is_file()}
            if manifest and states[key] == "fresh":
                assert files[key] == manifest["files"], key
    left = sorted(path.relative_to(root).as_posix() for path in root.rglob("*")
                  if path.is_file() and (".partial" in path.parts or path.name.endswith(".partial")))
    return json.dumps({"states": states, "files": files, "manifests": manifests, "left": left})


if __name__ == "__main__":
    _serve()
