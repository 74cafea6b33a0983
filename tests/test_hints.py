"""stages/hints.py: what a person points at, as typed."""
from __future__ import annotations

import pytest

from stages.core.errors import VideomageError
from stages.hints import hints_of
from stages.segmenters import Hint

ACTORS, SIZES = ("tall person", "horse"), [(320, 576)] * 24


def read(boxes=(), points=(), actors=ACTORS, frame=0):
    return hints_of(boxes, points, actors, frame=frame, sizes=SIZES)


def test_boxes_and_points_of_one_actor_and_frame_are_one_hint():
    assert read(["horse=40,30,200,180"], ["horse=120,90", "horse!=60,40.5", "tall person@7=1, 2"]) == [
        Hint("horse", 0, (40, 30, 200, 180), ((120, 90, True), (60, 40.5, False))),
        Hint("tall person", 7, None, ((1, 2, True),))]
    assert read(["horse=0,0,5,5", "horse@3=0,0,6,6"], frame=2) == [
        Hint("horse", 2, (0, 0, 5, 5)), Hint("horse", 3, (0, 0, 6, 6))]
    assert read(["1,2,3,4"], actors=("dog",)) == [Hint("dog", 0, (1, 2, 3, 4))]


@pytest.mark.parametrize("boxes, points, words", [
    (["horse=1,2,3"], [], "cannot be read. write it like ACTOR=LEFT,TOP,RIGHT,BOTTOM"),
    (["horse"], [], "cannot be read"), (["horse=1,2,3,x"], [], "cannot be read"),
    (["horse=1..2,2,3,4"], [], "cannot be read"),
    (["1,2,3,4"], [], "does not say which of tall person, horse"),
    (["hors=1,2,3,4"], [], "names 'hors', which is not looked for. did you mean 'horse'"),
    (["horse@24=1,2,3,4"], [], "means frame 24, and there are 24. name one of 0 to 23"),
    (["horse=1,2,600,4"], [], "lies outside the frames, which are 576 x 320"),
    (["horse=30,2,20,4"], [], "is no box"), (["horse!=1,2,3,4"], [], "not where it is not"),
    (["horse=1,2,3,4", "horse=1,2,3,5"], [], "a second box for 'horse' in frame 0"),
    ([], ["horse!=5,5"], "only say where it is not"), ([], ["horse=5,-5"], "outside the frames")])
def test_what_cannot_be_meant_is_refused(boxes, points, words):
    with pytest.raises(VideomageError) as refused:
        read(boxes, points)
    assert words.lower() in str(refused.value).lower()
