"""VideoMage from Python: the seven stages on files in a folder, without the command line.

    python examples/as_a_library.py FOLDER [--quick]

Every stage takes a project and options, leaves its files in the project and returns an Artifact; a stage whose inputs
and options have not changed returns at once. Inside each of these files stands a function on tensors (`learn_tokens`,
`learn_subject_tensors`, `learn_motion_tensors`, `fuse_loras`, `sample_video`) for those who bring a loop of their own.
"""
from __future__ import annotations

import argparse
import json
from pathlib import Path

from stages.core.workspace import Workspace
from stages.evaluate import evaluate
from stages.fuse import fuse
from stages.invert import invert
from stages.learn_motion import learn_motion
from stages.learn_subject import learn_subject
from stages.options import LearnSubjectOptions, resolve
from stages.sample import sample
from stages.segment import segment
from stages.sprites.example import write_example
from stages.sprites.looks import SUBJECTS

QUICK = {  # a few steps of everything: shows that it runs, not what it can do
    "invert": {"token_steps": 2, "inversion_steps": 2}, "learn-motion": {"steps": 2},
    "learn-subject": {"steps": 2, "auxiliary_count": 1, "video_steps": 2},
    "fuse": {"steps": 2, "videos": 1, "compositions": 2}, "sample": {"steps": 2, "tau": 1},
}


def hear(**facts: object) -> None:
    """A report: every stage calls it with its progress. The default is silence."""
    if "note" in facts or facts.get("step") == facts.get("of"):
        print("   ", ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                               for name, value in facts.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true", help="a few steps of everything")
    parser.add_argument("--base", default="sprites", help="sprites, or the folder of a base")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()

    files = write_example(asked.folder)                        # photos of two subjects and a clip, as you would bring
    project = Workspace(asked.folder) if (asked.folder / "project.yaml").exists() else Workspace.create(
        asked.folder, base=asked.base,
        subjects={name: {"class": SUBJECTS[name][1], "images": f"photos/{name}"} for name in files.subjects},
        motion={"name": files.motion, "clip": files.clip.name, "prompt": files.prompt},
        prompts=[files.wanted], options=QUICK if asked.quick else {})
    common = {"device": asked.device, "report": hear}

    print(segment(project, **common).path)
    print(invert(project, **common).path)
    for name in files.subjects:
        # options None means the project's own: its project.yaml over the base's preset over the paper's defaults
        options: LearnSubjectOptions = resolve("learn-subject", project.settings, {"lambda1": 0.25})
        print(learn_subject(project, name, options, **common).path)
    print(learn_motion(project, **common).path)
    print(fuse(project, files.subjects, **common).path)
    for video in sample(project, seed=1, **common):
        print(video.path)
    for score in evaluate(project, **common):
        found = json.loads(score.path.read_text())
        print(score.path, f"success {found['success']}", found["paper protocol"])


if __name__ == "__main__":
    main()
