"""What `sample` is asked for, as plans: one for each prompt and seed. Imports no torch: --dry-run needs none."""
from __future__ import annotations

from collections.abc import Mapping, Sequence

from . import STAGES
from .core.errors import UsageError
from .core.workspace import Plan, Workspace
from .options import SampleOptions, resolve
from .prompts import TargetPrompt, placeholders, target_prompt


def target_of(project: Workspace, prompt: str) -> TargetPrompt:
    """c_tgt and c~_tgt of a prompt, with the class words that the project knows. Raises BadInput for an unknown one."""
    return target_prompt(prompt, {name: project.subject(name).class_word for name in placeholders(prompt)})


def sample_plans(project: Workspace, prompts: Sequence[str] | None, options: SampleOptions | None = None, *,
                 subjects: Sequence[str] | None = None, motion: str | None = None, seed: int = 0,
                 base: Mapping[str, str] | None = None, reserve: bool = True, names: Sequence[str] | None = None
                 ) -> list[Plan]:
    """options.count plans for each prompt (None: those of project.yaml), with seeds seed, seed + 1, ...

    subjects: whose LoRA runs (their fused one, for several); None: those that the prompt names. motion: None the
    project's, "none" none. reserve: keep the numbers of new samples for them. names: what to call them, in that order;
    None: by number and prompt, an order that was given before by its name. Raises UsageError without a prompt, or
    where a prompt names a subject outside `subjects`.
    """
    options = options or resolve("sample", project.settings)
    texts = list(prompts or project.settings.prompts)
    if not texts:
        raise UsageError("there is no prompt", 'give one, "<toy> is riding <dog> in the snow", or write prompts into '
                         "project.yaml")
    without = motion == "none" or (motion is None and not project.settings.motions)
    wanted = None if without else project.motion(motion).name
    plans = []
    for text in texts:
        target = target_of(project, text)
        absent = [name for name in target.subjects if subjects and name not in subjects]
        if absent:
            raise UsageError(f"the prompt '{text}' names <{absent[0]}>, which is not among --subjects",
                             "add it there, or leave --subjects out")
        request = {"prompt": target.text, "subjects": sorted(subjects or target.subjects),
                   "motion": wanted}
        for index in range(options.count):
            name = names[len(plans)] if names else project.sample_name(
                STAGES["sample"], options, request=request, seed=seed + index, reserve=reserve)
            plans.append(project.plan(STAGES["sample"], name, options, seed=seed + index, base=base, request=request))
    return plans
