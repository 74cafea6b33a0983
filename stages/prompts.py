"""The prompts of the method: bracketed motion prompts, prompts with placeholders, and which word answers to which.

A person types "a [person] is riding a [horse]" for the clip and "<toy> is riding <dog> in the snow" for the wanted
video. Everything else that the networks read is made here. Words are counted as the prompt's whitespace words, the way
`Backbone.positions` counts them. Imports no torch.
"""
from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from .core.errors import BadInput
from .core.settings import check_prompt

_BRACKET = re.compile(r"\[([^\[\]]*)\]")
_PLACEHOLDER = re.compile(r"<([^<>\s]+)>")


def slug(text: str, length: int = 40) -> str:
    """A phrase as a file name: lower case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:length].strip("-") or "untitled"


def placeholder(name: str) -> str:
    """The token of a subject or actor: "toy" -> "<toy>", "tall person" -> "<tall-person>"."""
    return f"<{'-'.join(name.split())}>"


def placeholders(prompt: str) -> list[str]:
    """The subjects that a prompt names, each once: "<toy> is riding <dog>" -> ["toy", "dog"]."""
    return list(dict.fromkeys(_PLACEHOLDER.findall(prompt)))


@dataclass(frozen=True)
class MotionPrompt:
    """The sentence of the motion clip. text: as typed, actors in brackets; actors: their phrases in that order."""

    text: str
    actors: tuple[str, ...]

    @property
    def words(self) -> str:
        """The sentence in plain words: "a person is riding a horse"."""
        return _BRACKET.sub(lambda m: " ".join(m[1].split()), self.text)

    @property
    def tokens(self) -> str:
        """c_m, the sentence with the appearance tokens: "a <person> is riding a <horse>" (METHOD 3)."""
        return _BRACKET.sub(lambda m: placeholder(m[1]), self.text)

    def appearance(self, template: str = "A static video of {actors}.") -> str:
        """c_ap (supplement, Table 3c): "A static video of <person> and <horse>."."""
        if "{actors}" not in template:
            raise BadInput(f"the template '{template}' has no place for the actors",
                           'write it with {actors}, as in "A static video of {actors}."')
        return template.replace("{actors}", listed([placeholder(actor) for actor in self.actors]))


def motion_prompt(text: str) -> MotionPrompt:
    """Parse "a [person] is riding a [horse]". Raises BadInput where brackets are unbalanced, empty, missing or twice
    the same: every actor needs a name of its own, because it gets a token and a mask track of its own."""
    actors = tuple(" ".join(found.split()) for found in _BRACKET.findall(check_prompt(text)))
    rest = _BRACKET.sub("", text)
    if "[" in rest or "]" in rest or not all(actors):
        raise BadInput(f"the brackets of the motion prompt '{text}' do not close or are empty",
                       'write it like "a [person] is riding a [horse]"')
    if not actors:
        raise BadInput(f"the motion prompt '{text}' names no actor",
                       'put each moving thing into brackets: "a [person] is riding a [horse]"')
    twice = sorted({actor for actor in actors if [slug(a) for a in actors].count(slug(actor)) > 1})
    if twice:
        raise BadInput(f"the motion prompt names the actor '{twice[0]}' twice",
                       'tell the actors apart by their looks: "a [tall person] is chasing a [small person]"')
    return MotionPrompt(text, actors)


@dataclass(frozen=True)
class TargetPrompt:
    """c_tgt and c~_tgt (METHOD 5), aligned by word.

    text: c_tgt, as typed: "<toy> is riding <dog> in the snow". plain: c~_tgt with the class words in their places.
    subjects: names in order of first use. pairs: for each subject word of the prompt (name, its words in `text`, its
    words in `plain`), as ranges of whitespace words; a class of two words ("teddy bear") fills a range of two.
    """

    text: str
    plain: str
    subjects: tuple[str, ...]
    pairs: tuple[tuple[str, range, range], ...]


def target_prompt(text: str, classes: Mapping[str, str]) -> TargetPrompt:
    """Parse a prompt with placeholders. classes: {subject name: class words}, of every subject the project knows.

    Raises BadInput for a placeholder of an unknown subject, and for two in one whitespace word.
    """
    plain, subjects, pairs = [], [], []
    for index, word in enumerate(check_prompt(text).split()):
        names = _PLACEHOLDER.findall(word)
        if len(names) > 1:
            raise BadInput(f"'{word}' joins two subjects in one word", "put a space between them")
        if not names:
            plain.append(word)
            continue
        if names[0] not in classes:
            known = ", ".join(f"<{name}>" for name in classes) or "none yet"
            raise BadInput(f"the prompt '{text}' names <{names[0]}>, which is no subject here (known: {known})",
                           "add it under 'subjects:' in project.yaml, then run: "
                           f"videomage learn-subject {shlex.quote(names[0])} IMAGES...")
        filled = word.replace(f"<{names[0]}>", " ".join(classes[names[0]].split())).split()
        pairs.append((names[0], range(index, index + 1), range(len(plain), len(plain) + len(filled))))
        plain += filled
        if names[0] not in subjects:
            subjects.append(names[0])
    return TargetPrompt(" ".join(text.split()), " ".join(plain), tuple(subjects), tuple(pairs))


def roles(target: TargetPrompt, motion: MotionPrompt) -> dict[str, str]:
    """{actor: subject}: who plays whom. A subject plays the actor in whose place it stands, as far as the words around
    it are those of the motion prompt: in "a dog is riding a <toy>" the toy is the horse of "a [person] is riding a
    [horse]". Subjects that stand nowhere so take the actors that are left, in order. An actor may have none."""
    actors = [f"[{actor}]" for actor in motion.actors]
    sentence = [part for n, text in enumerate(_BRACKET.split(motion.text))
                for part in ([actors[n // 2]] if n % 2 else text.lower().split())]
    standing = {words.start: name for name, words, _ in target.pairs}
    placed: dict[str, str] = {}
    aligned = SequenceMatcher(None, sentence, target.text.lower().split(), autojunk=False)
    for _, a, b, c, d in aligned.get_opcodes():
        there = [part for part in sentence[a:b] if part in actors]
        placed |= dict(zip(there, [standing[n] for n in range(c, d) if n in standing]))
    left = [actor for actor in actors if actor not in placed]
    placed |= dict(zip(left, [name for name in target.subjects if name not in placed.values()]))
    return {actor: placed[f"[{actor}]"] for actor in motion.actors if f"[{actor}]" in placed}


def token_span(positions: Sequence[tuple[str, range]], words: range) -> range:
    """Whitespace words -> the range of token positions they cover. positions: what `Backbone.positions` gave.

    Raises BadInput where the words lie beyond what the text encoder reads.
    """
    there = [positions[word][1] for word in words if len(positions[word][1])]
    if not there:
        raise BadInput(f"the word '{positions[words.start][0]}' lies beyond what the text encoder reads",
                       "write a shorter prompt, or name the subjects earlier in it")
    return range(there[0].start, there[-1].stop)


def listed(names: Sequence[str]) -> str:
    """"a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else list(names))


def subject_prompt(name: str) -> str:
    """c_s of METHOD 2: "A <toy>"."""
    return f"A {placeholder(name)}"


def together_prompt(*names: str) -> str:
    """The prompt of a CutMix composition (METHOD 4): "A <toy> and a <dog>". Its word 1 + 3 n is the n-th subject."""
    return "A " + " and a ".join(map(placeholder, names))
