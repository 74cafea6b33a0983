"""Prompts: what is typed, what the networks read, and which word answers to which."""
import pytest

from stages.core.errors import BadInput
from stages.prompts import (
    motion_prompt,
    placeholder,
    roles,
    slug,
    subject_prompt,
    target_prompt,
    together_prompt,
    token_span,
)


def test_motion_prompt_gives_the_papers_three_sentences():
    prompt = motion_prompt("a [person] is riding a [horse]")
    assert prompt.actors == ("person", "horse")
    assert prompt.words == "a person is riding a horse"
    assert prompt.tokens == "a <person> is riding a <horse>"
    assert prompt.appearance() == "A static video of <person> and <horse>."
    assert prompt.appearance("A video of {actors} being still.") == "A video of <person> and <horse> being still."


@pytest.mark.parametrize("text, expected", [
    ("[dancer] spins", "A static video of <dancer>."),
    ("a [cat] chases a [dog] and a [bird]", "A static video of <cat>, <dog> and <bird>."),
    ("a [tall person] waves", "A static video of <tall-person>."),
])
def test_appearance_prompt_for_any_number_of_actors(text, expected):
    assert motion_prompt(text).appearance() == expected


@pytest.mark.parametrize("text, says", [
    ("a person rides", "names no actor"), ("a [person rides", "do not close"), ("a [ ] rides", "empty"),
    ("a [person] meets a [Person]", "twice"), ("a person] rides a [horse]", "do not close"),
])
def test_motion_prompts_that_cannot_be_used(text, says):
    with pytest.raises(BadInput, match=says):
        motion_prompt(text)


def test_template_without_a_place_for_the_actors():
    with pytest.raises(BadInput, match="no place for the actors"):
        motion_prompt("a [cat] runs").appearance("A static video.")


def test_target_prompt_aligns_words_of_both_branches():
    target = target_prompt("<toy> is riding a <dog>, in the snow", {"toy": "teddy bear", "dog": "dog"})
    assert target.plain == "teddy bear is riding a dog, in the snow"
    assert target.subjects == ("toy", "dog")
    assert target.pairs == (("toy", range(0, 1), range(0, 2)), ("dog", range(4, 5), range(5, 6)))


def test_a_subject_named_twice_keeps_both_places():
    target = target_prompt("a <dog> beside the <dog>'s bowl", {"dog": "dog"})
    assert target.subjects == ("dog",)
    assert [words.start for _, words, _ in target.pairs] == [1, 4]
    assert target.plain == "a dog beside the dog's bowl"


def test_prompt_without_subjects_is_its_own_plain_form():
    assert target_prompt("a dog  runs", {}).plain == "a dog runs"


def test_unknown_and_joined_placeholders_are_named():
    with pytest.raises(BadInput, match="<cat>.*known: <dog>.*learn-subject cat"):
        target_prompt("a <cat>", {"dog": "dog"})
    with pytest.raises(BadInput, match="two subjects in one word"):
        target_prompt("<cat><dog>", {"dog": "dog", "cat": "cat"})


@pytest.mark.parametrize("text, person, horse", [
    ("<toy> is riding <dog> in the snow", "toy", "dog"),
    ("a <dog> is riding a <toy>", "dog", "toy"),                    # roles go by the words, not by the project's order
    ("A <toy>, is riding a big <dog>.", "toy", "dog"),
    ("a dog is riding a <toy>", None, "toy"),
    ("a <toy> is riding a bicycle", "toy", None),
    ("in the snow <toy> sits upon <dog>", "toy", "dog"),            # other words: by order
    ("a <toy> is riding a <toy>", "toy", "toy"),
    ("<toy> and <dog> and <cat>", "toy", "dog"),                    # no actor is left for the cat
    ("a dog is riding a horse", None, None),
])
def test_a_subject_plays_the_actor_in_whose_place_it_stands(text, person, horse):
    target = target_prompt(text, {"toy": "teddy bear", "dog": "dog", "cat": "cat"})
    cast = {"person": person, "horse": horse}
    assert roles(target, motion_prompt("a [person] is riding a [horse]")) == {a: s for a, s in cast.items() if s}


def test_token_span_covers_all_tokens_of_all_words():
    positions = [("teddy", range(1, 3)), ("bear", range(3, 4)), ("runs", range(4, 5))]
    assert token_span(positions, range(0, 2)) == range(1, 4)


def test_small_names():
    assert placeholder("tall person") == "<tall-person>"
    assert slug("A <toy> is riding!") == "a-toy-is-riding"
    assert slug("<>") == "untitled"
    assert subject_prompt("toy") == "A <toy>" and together_prompt("a", "b", "c") == "A <a> and a <b> and a <c>"
