"""Grounded-SAM2's decisions on scripted detections and scripted tracks of known truth, wrong ones too."""
from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.segmenters import Hint, Setup
from stages.segmenters.binding import Detection, Thing, assign, bind, overlaps, suppress, things
from stages.segmenters.tracks import MOST, ROUNDS, Track, draw

F, H, W = 20, 48, 64
SURE, SETUP = 8.0, Setup()


def walk(x, y, dx=0.0, width=10, height=20, seen=range(F)):
    """A rectangle that moves dx a frame -> its box in each frame of `seen`."""
    return {f: (x + dx * f, y, x + dx * f + width, y + height) for f in seen}


def mask_of(box, shape=(H, W)):
    mask = np.zeros(shape, bool)
    if box:
        left, top, right, bottom = (max(round(v), 0) for v in box)
        mask[top:bottom, left:right] = True
    return mask


def truth(boxes, count=F):
    return np.stack([mask_of(boxes.get(f)) for f in range(count)])


class Scripted:
    """A tracker that knows the world: it follows what lies under its last prompt inside the span, perfectly, but for
    what it is told to lose. loses: {object: the frame from which on it is lost unless a prompt is at or after it};
    strength: {object: logit inside}; empty: it never sees anything."""

    def __init__(self, *objects, loses=None, strength=None, empty=False):
        self.objects, self.loses, self.strength, self.empty = objects, loses or {}, strength or {}, empty
        self.calls = []

    def __call__(self, jobs):
        self.calls.append(list(jobs))
        return [self.follow(job) for job in jobs]

    def under(self, hint):
        """The number of the object that a prompt points at."""
        if hint.box is None:
            x, y = next((x, y) for x, y, inside in hint.points if inside)
            return next(k for k, boxes in enumerate(self.objects) if mask_of(boxes.get(hint.frame))[int(y), int(x)])
        return max(range(len(self.objects)), key=lambda k: overlaps(
            [hint.box], [self.objects[k].get(hint.frame, (0, 0, 0, 0))])[0, 0])

    def follow(self, job):
        inside = [hint for hint in job.prompts if job.first <= hint.frame <= job.last]
        k = self.under(inside[-1])
        span = range(job.first, job.last + 1)
        logits, score = np.full((len(span), H, W), -SURE, np.float16), np.full(len(span), -5.0, np.float32)
        for n, frame in enumerate(span):
            lost = frame >= self.loses.get(k, F) and not any(hint.frame >= self.loses[k] for hint in inside)
            if frame in self.objects[k] and not lost and not self.empty:
                logits[n][mask_of(self.objects[k][frame])] = self.strength.get(k, SURE)
                score[n] = 5.0
        return Track(job.first, logits, score)


def seen(boxes, score, words=1.0, frames=None):
    return [Detection(f, box, score, words) for f, box in boxes.items() if frames is None or f in frames]


def run(found, tracker, phrases=None, hints=(), setup=SETUP, count=F):
    return draw(found, list(hints), phrases or list(found), (count, H, W), tracker, setup)


# -- binding ----------------------------------------------------------------------------------------------------------
def test_the_assignment_against_all_assignments():
    rng = np.random.default_rng(0)
    for _ in range(200):
        value = rng.normal(size=rng.integers(1, 5, 2)).round(1)
        pairs = assign(value)
        used = [c for c in pairs if c is not None]
        assert len(set(used)) == len(used) and all(value[r, c] > 0 for r, c in enumerate(pairs) if c is not None)
        rows, columns = value.shape
        best = max(sum(value[r, c] for r, c in enumerate(cs) if c is not None)
                   for cs in itertools.product([None, *range(columns)], repeat=rows)
                   if len(set(cs) - {None}) == sum(c is not None for c in cs))
        assert sum(value[r, c] for r, c in enumerate(pairs) if c is not None) == pytest.approx(best)
    assert assign(np.zeros((0, 3))) == [] and assign(np.zeros((2, 0))) == [None, None]


def test_overlaps_against_counted_pixels():
    rng = np.random.default_rng(1)
    low = rng.integers(0, 30, (8, 2))
    boxes = [tuple(map(int, (*a, *(a + rng.integers(1, 18, 2))))) for a in low]
    got = overlaps(boxes[:5], boxes[3:])
    for a, b in np.ndindex(got.shape):
        one, two = mask_of(boxes[a]), mask_of(boxes[3 + b])
        assert got[a, b] == pytest.approx((one & two).sum() / (one | two).sum())
    assert got[3, 0] == 1 and overlaps([(0, 0, 0, 0)], [(0, 0, 0, 0)])[0, 0] == 0


def test_of_doubles_the_best_is_kept():
    boxes = [Detection(0, (0, 0, 10, 20), 0.5), Detection(0, (1, 0, 10, 20), 0.9), Detection(0, (30, 0, 40, 20), 0.4),
             Detection(0, (5, 0, 15, 20), 0.6)]
    assert suppress(boxes) == [boxes[1], boxes[3], boxes[2]]                     # IoU of 1 and 3 is 1/3


def test_things_are_linked_over_frames_and_gaps():
    a, b = walk(2, 4, 2.0), walk(45, 10, -1.5, seen=[0, 1, 2, 9, 10])
    found = things({"person": seen(a, 0.5) + seen(b, 0.6)})
    assert [thing.boxes for thing in found] == [b, a], "the surer of a frame comes first"


def test_what_shares_no_phrase_is_never_one_thing():
    boxes = walk(5, 5)
    found = things({"dog": seen(boxes, 0.5, frames=[0, 1]), "cat": seen(boxes, 0.5, frames=[2, 3])})
    assert [list(thing.answers) for thing in found] == [["dog"], ["cat"]]


def test_two_names_each_on_both_people_end_on_different_people():
    """Greedy choice would give "tall person" the first and leave "small person" nothing."""
    one, two = walk(5, 4), walk(40, 4)
    found = {"tall person": seen(one, 0.9) + seen(two, 0.85), "small person": seen(one, 0.8) + seen(two, 0.3)}
    own = bind(things(found), list(found))
    assert own["tall person"][0].boxes == two and own["small person"][0].boxes == one
    assert [len(some) for some in own.values()] == [1, 1]


def test_binding_against_all_bindings():
    rng = np.random.default_rng(2)
    for _ in range(20):
        score = rng.random((3, 4)).round(3) * (rng.random((3, 4)) < 0.7)
        some = [Thing() for _ in range(4)]
        for p, t in zip(*np.nonzero(score)):
            some[t].join({f"p{p}": Detection(0, (10 * t, 0, 10 * t + 8, 9), score[p, t])})
        own = bind(some, ["p0", "p1", "p2"])
        taken = [own[f"p{p}"][0].evidence(f"p{p}") if own[f"p{p}"] else 0 for p in range(3)]
        best = max(sum(score[p, t] for p, t in enumerate(ts)) for ts in itertools.permutations(range(4), 3))
        assert sum(taken) == pytest.approx(best)
        listed = [id(thing) for things in own.values() for thing in things]
        assert len(set(listed)) == len(listed) == (score.any(0)).sum()


# -- one thing through a clip -----------------------------------------------------------------------------------------
def test_tracking_begins_in_the_best_frame_and_ties_go_to_the_earliest():
    boxes = walk(5, 5, 1.0)
    found = {"dog": [Detection(f, box, 0.7 if f in (6, 11) else 0.5) for f, box in boxes.items()]}
    tracker = Scripted(boxes)
    got = run(found, tracker)["dog"]
    assert tracker.calls == [[type(tracker.calls[0][0])((Hint("dog", 6, boxes[6]),), 0, F - 1)]]
    assert np.array_equal(got.masks, truth(boxes)) and got.notes == ()
    (only,) = got.instances
    assert only.taken and (only.frame, only.box, only.confidence) == (6, boxes[6], 0.7)
    assert np.allclose(got.confidence, 1 / (1 + np.exp(-SURE)))


def test_a_detector_that_flickers_and_flares_once():
    boxes, poster = walk(5, 5, 2.0), walk(50, 2)
    found = {"dog": seen(boxes, 0.45, frames=range(0, F, 3)) + seen(poster, 0.95, frames=[4])}
    got = run(found, Scripted(boxes, poster))["dog"]
    assert np.array_equal(got.masks, truth(boxes))
    assert [one.taken for one in got.instances] == [True, False]
    assert got.notes == ("1 of 2 things that answer to 'dog' is taken",)


def test_people_who_cross_keep_their_names():
    left, right = walk(2, 4, 2.4, height=24), walk(50, 14, -2.4, height=14)
    rng = np.random.default_rng(3)
    found = {"tall person": [], "small person": []}
    for f in range(F):
        for phrase, own in (("tall person", left), ("small person", right)):
            for boxes in (left, right):
                found[phrase].append(Detection(f, boxes[f], (0.6 if boxes is own else 0.5) + rng.uniform(-0.04, 0.04)))
    got = run(found, Scripted(left, right, strength={0: 9.0}))
    assert np.array_equal(got["tall person"].masks, truth(left))
    assert np.array_equal(got["small person"].masks, truth(right) & ~truth(left)), "the likelier one has the pixel"
    assert not got["tall person"].notes and not got["small person"].notes


def test_words_tell_a_red_car_from_a_blue_one():
    red, blue = walk(2, 4), walk(40, 4)
    found = {"red car": seen(red, 0.6) + seen(blue, 0.65, 0.5), "blue car": seen(red, 0.7, 0.5) + seen(blue, 0.6)}
    got = run(found, Scripted(red, blue))
    assert np.array_equal(got["red car"].masks, truth(red)) and np.array_equal(got["blue car"].masks, truth(blue))
    alone = run({"red car": found["red car"]}, Scripted(red, blue))["red car"]
    assert np.array_equal(alone.masks, truth(red)) and len(alone.instances) == 2


def test_one_photo():
    boxes = walk(5, 5, seen=[0])
    got = run({"dog": seen(boxes, 0.5), "cat": [Detection(0, boxes[0], 0.2)]}, Scripted(boxes), count=1)
    assert np.array_equal(got["dog"].masks, truth(boxes, 1)) and got["dog"].confidence.shape == (1,)
    assert got["cat"].notes == ("'cat' was not found: the best box has a confidence of 0.20, and the box threshold is "
                                "0.3",)


# -- lost and returning -----------------------------------------------------------------------------------------------
def test_what_leaves_and_returns_is_found_again():
    here = [*range(8), *range(13, F)]
    boxes = walk(5, 5, 1.0, seen=here)
    tracker = Scripted(boxes, loses={0: 13})
    got = run({"dog": [Detection(f, b, 0.8 if f == 2 else 0.5) for f, b in boxes.items()]}, tracker)["dog"]
    assert np.array_equal(got.masks, truth(boxes)) and not got.masks[8:13].any()
    assert (got.confidence[8:13] == 0).all() and (got.confidence[here] > 0.9).all()
    assert got.notes == ("'dog' was lost in frames 8 to 19 and found again in frame 13",)
    first, again = tracker.calls
    assert [hint.frame for hint in again[0].prompts] == [2, 13] and (again[0].first, again[0].last) == (8, 19)
    assert [one.taken for one in got.instances] == [True], "it is the same dog"


def test_a_retry_never_repeats_a_prompt():
    """The tracker loses the thing where it is pointed at, and shows it beside: the first prompt was tried as well."""
    boxes = walk(5, 5)

    class Blink(Scripted):
        def follow(self, job):
            track = super().follow(job)
            track.score[[hint.frame - job.first for hint in job.prompts if job.first <= hint.frame <= job.last]] = -1
            return track

    tracker = Blink(boxes)
    run({"dog": [Detection(f, b, 0.9 if f == 9 else 0.5) for f, b in boxes.items()]}, tracker)
    assert [[hint.frame for hint in job.prompts] for jobs in tracker.calls for job in jobs] == [[9]]
    lost = Blink(boxes, loses={0: 15})
    run({"dog": [Detection(f, b, 0.9 if f == 9 else 0.5) for f, b in boxes.items()]}, lost)
    assert [[hint.frame for hint in job.prompts] for jobs in lost.calls for job in jobs] == [[9], [9, 15]]


def test_without_detections_it_stays_lost():
    boxes = walk(5, 5, 1.0)
    tracker = Scripted(boxes, loses={0: 13})
    got = run({"dog": seen(boxes, 0.5, frames=range(8))}, tracker)["dog"]
    assert got.masks.any((1, 2)).tolist() == [f < 13 for f in range(F)] and len(tracker.calls) == 1


def test_a_bystander_is_not_taken_for_the_one_that_left():
    gone, other = walk(5, 5, seen=range(10)), walk(40, 5)
    tracker = Scripted(gone, other)
    got = run({"person": seen(gone, 0.9) + seen(other, 0.4, frames=range(5, F))}, tracker)["person"]
    assert np.array_equal(got.masks, truth(gone)) and len(tracker.calls) == 1
    assert [one.taken for one in got.instances] == [True, False]


def test_what_another_track_explains_is_no_return():
    """The dog leaves, and the cat that stays answers to "dog" too: by name, or pointed at by a person."""
    dog, cat = walk(5, 5, seen=range(10)), walk(40, 5, 0.2)
    found = {"dog": seen(dog, 0.9) + seen(cat, 0.5, frames=range(12, F)), "cat": seen(cat, 0.8)}
    for hints in ([], [Hint("cat", 0, cat[0])]):
        tracker = Scripted(dog, cat)
        got = run({name: some for name, some in found.items() if name == "dog" or not hints}, tracker, ["dog", "cat"],
                  hints)
        assert np.array_equal(got["dog"].masks, truth(dog)) and np.array_equal(got["cat"].masks, truth(cat))
        assert len(tracker.calls) == 1 and not got["dog"].notes


def test_the_rounds_are_bounded():
    """The detector sees something in every frame, and the tracker nothing after the prompt."""
    boxes = walk(5, 5)

    class Stubborn(Scripted):
        def follow(self, job):
            track = super().follow(job)
            track.score[0 if job.first else 1:] = -1
            return track

    tracker = Stubborn(boxes)
    got = run({"dog": [Detection(f, b, 0.9 if f == 0 else 0.5) for f, b in boxes.items()]}, tracker)["dog"]
    assert len(tracker.calls) == 1 + ROUNDS
    prompts = [[hint.frame for hint in job.prompts] for (job,) in tracker.calls]
    assert prompts == [[0], [0, 1], [0, 2], [0, 3]], "each elsewhere; what was of no use is not said again"
    assert got.masks.any((1, 2)).tolist() == [True] + [False] * (F - 1) and got.notes == ()


# -- several things ---------------------------------------------------------------------------------------------------
def test_one_of_three_or_all():
    people = [walk(2, 4, 0.5), walk(25, 10, 0.3), walk(50, 4, -0.2)]
    found = {"person": [one for boxes, score in zip(people, (0.5, 0.8, 0.6)) for one in seen(boxes, score)]}
    one = run(found, Scripted(*people))["person"]
    assert np.array_equal(one.masks, truth(people[1]))
    assert [(i.taken, i.confidence) for i in one.instances] == [(True, 0.8), (False, 0.6), (False, 0.5)]
    assert one.notes == ("1 of 3 things that answer to 'person' is taken",)
    every = run(found, Scripted(*people), setup=Setup(instances="all"))["person"]
    assert np.array_equal(every.masks, truth(people[0]) | truth(people[1]) | truth(people[2]))
    assert [i.taken for i in every.instances] == [True] * 3 and every.notes == ()


def test_the_one_that_is_not_taken_is_shown_where_it_is():
    """Two people change places from one frame to the next: what the detector links stays in its place."""
    places = walk(5, 4), walk(40, 4)
    one, two = ({f: places[k if f < 10 else 1 - k][f] for f in range(F)} for k in (0, 1))
    found = {"person": seen(places[0], 0.9) + seen(places[1], 0.5, frames=range(10)) + seen(
        places[1], 0.8, frames=range(10, F))}
    got = run(found, Scripted(one, two))["person"]
    assert np.array_equal(got.masks, truth(one))
    assert [(i.taken, i.frame, i.box) for i in got.instances] == [(True, 0, one[0]), (False, 0, two[0])]


def test_a_crowd_is_cut_short_and_said_so():
    crowd = [walk(2 + 8 * (k % 7), 2 + 14 * (k // 7), width=5, height=9) for k in range(MOST + 2)]
    found = {"bird": [one for k, boxes in enumerate(crowd) for one in seen(boxes, 0.5 + 0.01 * k, frames=[3, 4])]}
    got = run(found, Scripted(*crowd), setup=Setup(instances="all"))["bird"]
    assert sum(one.taken for one in got.instances) == MOST and len(got.instances) == MOST + 2
    assert got.notes == (f"{MOST} of {MOST + 2} things that answer to 'bird' are taken",)
    assert np.array_equal(got.masks[0], sum(truth(boxes)[0] for boxes in crowd[2:]) > 0)


def test_two_tracks_of_one_thing_go_to_the_surer_phrase():
    """Boxes too different to be one thing for the eye of the detector: the whole robot, and its upper part."""
    robot = walk(20, 4, 1.0, height=30)
    part = {f: (b[0], b[1], b[2], b[1] + 16) for f, b in robot.items()}
    got = run({"toy": seen(part, 0.5), "robot": seen(robot, 0.7)}, Scripted(robot))
    assert np.array_equal(got["robot"].masks, truth(robot)) and not got["toy"].masks.any()
    assert got["toy"].notes == ("'toy' (0.50) is the same thing as 'robot' (0.70), which keeps it",)
    assert (got["toy"].confidence == 0).all() and not got["robot"].notes
    pointed = run({"robot": seen(robot, 0.7)}, Scripted(robot), ["toy", "robot"], [Hint("toy", 3, part[3])])
    assert pointed["toy"].masks.any() and not pointed["robot"].masks.any(), "a person is surer than the detector"


def test_the_phrase_that_is_meant_as_a_whole_keeps_the_thing():
    robot = walk(20, 4, 1.0, height=30)
    part = {f: (b[0], b[1], b[2], b[1] + 16) for f, b in robot.items()}
    got = run({"toy car": seen(part, 0.7, 0.5), "robot": seen(robot, 0.6)}, Scripted(robot))
    assert np.array_equal(got["robot"].masks, truth(robot)) and not got["toy car"].masks.any()
    assert got["toy car"].notes == ("'toy car' (0.70 for 50% of its words) is the same thing as 'robot' (0.60), which "
                                    "keeps it",)


@pytest.mark.parametrize("shared", [1, 4, 5])
def test_a_chance_meeting_makes_no_two_tracks_one(shared):
    """A woman is where a man was in some of her ten frames: in half of them or more they are one."""
    man = walk(5, 5, 1.0, seen=range(10))
    woman = {f: man[f] if f < 10 else (45, 5, 55, 25) for f in range(10 - shared, 20 - shared)}
    found = {"man": seen(man, 0.8, frames=range(10 - shared)), "woman": seen(woman, 0.7, frames=range(10, F))}
    got = run(found, Scripted(man, woman))
    assert np.array_equal(got["man"].masks, truth(man))
    alone = truth(woman)
    alone[:10] = False
    assert np.array_equal(got["woman"].masks, alone if shared < 5 else truth({}))
    assert got["woman"].notes == (() if shared < 5 else (
        "'woman' (0.70) is the same thing as 'man' (0.80), which keeps it",))


@pytest.mark.parametrize("order", list(itertools.permutations(["person", "hat"])))
@pytest.mark.parametrize("logits", [(9.0, 8.0), (20.0, 18.0), (20.0, 20.0), (18.0, 20.0)])
def test_what_lies_within_another(order, logits):
    """Of logits that are all a probability of 1 in float32, and in either order."""
    person = walk(20, 4, 1.0, width=20, height=36)
    hat = {f: (b[0] + 6, b[1], b[2] - 6, b[1] + 6) for f, b in person.items()}
    found = {"person": seen(person, 0.7), "hat": seen(hat, 0.6)}
    got = run({name: found[name] for name in order}, Scripted(person, hat, strength=dict(enumerate(logits))))
    assert list(got) == list(order) and got["person"].instances[0].taken and not got["person"].notes
    if logits[1] > logits[0]:
        assert np.array_equal(got["hat"].masks, truth(hat)) and got["hat"].instances[0].taken and not got["hat"].notes
        assert np.array_equal(got["person"].masks, truth(person) & ~truth(hat))
    else:
        assert np.array_equal(got["person"].masks, truth(person)) and not got["hat"].masks.any()
        assert got["hat"].notes == ("'hat' lies within 'person', which is surer there",)
        assert [one.taken for one in got["hat"].instances] == [False]


def test_what_lies_within_several_others():
    one, two, bag = walk(10, 4), walk(20, 4), walk(16, 8, width=8, height=6)
    found = {"man": seen(one, 0.6), "woman": seen(two, 0.6), "bag": seen(bag, 0.5)}
    got = run(found, Scripted(one, two, bag, strength={0: 9.0, 1: 9.0, 2: 3.0}))
    assert not got["bag"].masks.any()
    assert got["bag"].notes == ("'bag' lies within 'man' and 'woman', which are surer there",)


def test_the_order_of_the_phrases_decides_nothing():
    rng, notes = np.random.default_rng(5), 0
    for _ in range(30):
        objects = [walk(rng.uniform(0, 50), rng.uniform(0, 25), rng.uniform(-2, 2), width=rng.uniform(6, 14),
                        height=rng.uniform(8, 20)) for _ in range(rng.integers(1, 4))]
        found = {name: [Detection(f, box, rng.uniform(0.31, 1), rng.choice([0.5, 1.0])) for boxes in objects
                        for f, box in boxes.items() if rng.random() < 0.8] for name in ("a", "b", "c")}
        first, *others = [run({name: found[name] for name in names}, Scripted(*objects))
                          for names in itertools.permutations(found)]
        notes += sum(len(one.notes) for one in first.values())
        for other in others:
            for name, one in first.items():
                assert np.array_equal(one.masks, other[name].masks)
                assert (one.instances, one.notes) == (other[name].instances, other[name].notes)
    assert notes >= 20, "they do get into each other's way"


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_masks_are_where_the_track_is_inside(threshold):
    """Both ends of the threshold too: a probability of 1 in float32 is not above 1."""
    logits = np.random.default_rng(6).normal(0, 20, (F, H, W)).astype(np.float16)
    logits[:, 0, :3] = (40, -40, np.log(9))
    track = Track(0, logits, np.ones(F, np.float32))
    got = run({}, lambda jobs: [track], ["a"], [Hint("a", 0, (0, 0, 9, 9))], Setup(threshold=threshold))["a"]
    assert np.array_equal(got.masks, track.inside(threshold))
    assert got.masks.all() == (threshold == 0) and got.masks.any() == (threshold < 1)
    assert bool(got.notes) == (threshold == 1)


def test_one_thing_tracked_twice_for_one_phrase_counts_once():
    robot = walk(20, 4, 1.0, height=30)
    part = {f: (b[0], b[1], b[2], b[1] + 12) for f, b in robot.items()}
    got = run({"robot": seen(robot, 0.7) + seen(part, 0.4)}, Scripted(robot), setup=Setup(instances="all"))["robot"]
    assert np.array_equal(got.masks, truth(robot)) and [one.confidence for one in got.instances] == [0.7]
    assert got.notes == ()


def test_a_thing_has_one_name():
    dog = walk(20, 4, 1.0)
    tracker = Scripted(dog)
    got = run({"dog": seen(dog, 0.7), "cat": seen(dog, 0.4)}, tracker)
    assert np.array_equal(got["dog"].masks, truth(dog)) and not got["cat"].masks.any()
    assert got["cat"].notes == ("what answers to 'cat' (0.40 in frame 0) is 'dog' already",)
    assert len(tracker.calls[0]) == 1 and got["cat"].instances == ()


@pytest.mark.parametrize("order", list(itertools.permutations("abc")))
def test_the_note_names_who_has_the_thing(order):
    """The one that holds the box it quotes, and that box is a find: of another a word is above the threshold."""
    one, two = walk(5, 5), walk(40, 5)
    found = {"a": seen(one, 0.9), "c": seen(two, 0.9),
             "b": seen(two, 0.6, frames=range(3)) + seen(one, 0.5, frames=range(3)) + [Detection(7, one[7], 0.8, 0.0)]}
    got = run({name: found[name] for name in order}, Scripted(one, two))["b"]
    assert got.notes == ("what answers to 'b' (0.60 in frame 0) is 'c' already",) and not got.masks.any()


def test_each_pixel_goes_to_the_likeliest_phrase():
    rng = np.random.default_rng(4)
    logits = rng.normal(0, 2, (3, F, H, W)).astype(np.float16)
    score = np.where(rng.random((3, F)) < 0.8, 1.0, -1.0).astype(np.float32)
    names, setup = ["a", "b", "c"], Setup(threshold=0.6)
    hints = [Hint(name, 0, (20.0 * k, 0, 20.0 * k + 10, 10)) for k, name in enumerate(names)]
    got = run({}, lambda jobs: [Track(0, logits[k].copy(), score[k]) for k in range(3)], names, hints, setup)
    chance = 1 / (1 + np.exp(-logits.astype(np.float64))) * (score > 0)[..., None, None]
    for k, name in enumerate(names):
        want = np.array([[[chance[k, f, y, x] > 0.6 and chance[k, f, y, x] == chance[:, f, y, x].max()
                           for x in range(W)] for y in range(H)] for f in range(F)])
        ties = ((chance == chance.max(0)).sum(0) > 1) & (chance.max(0) > 0.6)
        assert ((got[name].masks == want) | ties).all() and ties.mean() < 0.02
        for f in range(F):
            own = got[name].masks[f]
            assert got[name].confidence[f] == pytest.approx(chance[k, f][own].mean() if own.any() else 0, abs=1e-6)
    assert (sum(got[name].masks.astype(int) for name in names) <= 1).all()


# -- not found, pointed at --------------------------------------------------------------------------------------------
def test_not_found_says_how_near_it_was():
    got = run({"dragon": [Detection(4, (0, 0, 5, 5), 0.1), Detection(7, (0, 0, 9, 9), 0.27)], "elf": []}, Scripted())
    assert got["dragon"].notes == ("'dragon' was not found: the best box has a confidence of 0.27 in frame 7, and the "
                                   "box threshold is 0.3",)
    assert got["elf"].notes == ("'elf' was not found",)
    for one in got.values():
        assert not one.masks.any() and one.masks.shape == (F, H, W) and not one.instances and not one.confidence.any()
    found = run({"dragon": [Detection(7, (0, 0, 9, 9), 0.27)]}, Scripted(walk(0, 0)), setup=Setup(box_threshold=0.25))
    assert found["dragon"].masks.any()


def test_a_box_without_a_word_is_no_find():
    got = run({"dragon": seen(walk(5, 5), 0.4, 0.0)}, Scripted())["dragon"]
    assert got.notes == ("'dragon' was not found: none of its words is surer than the text threshold (best 0.40)",)
    assert not got.masks.any()


def test_hints_take_the_place_of_detections():
    one, two = walk(5, 5), walk(40, 5)
    hints = [Hint("dog", 3, None, ((45.0, 10.0, True), (8.0, 8.0, False))), Hint("dog", 9, two[9])]
    tracker = Scripted(one, two)
    got = run({"cat": seen(one, 0.5)}, tracker, ["cat", "dog"], hints)
    assert np.array_equal(got["dog"].masks, truth(two)) and np.array_equal(got["cat"].masks, truth(one))
    assert tracker.calls[0][1].prompts == tuple(hints)
    (taken,) = got["dog"].instances
    assert taken.taken and taken.confidence == 1 and taken.frame == 3 and overlaps([taken.box], [two[3]])[0, 0] == 1


def test_where_the_tracker_sees_nothing():
    boxes = walk(5, 5)
    got = run({"dog": seen(boxes, 0.5)}, Scripted(boxes, empty=True))["dog"]
    assert got.notes == ("SAM2 sees no 'dog' where it is pointed at, in frame 0",)
    assert not got.masks.any() and not got.instances


# -- tracks -----------------------------------------------------------------------------------------------------------
def test_probabilities_are_those_of_interpolated_logits():
    logits = np.random.default_rng(5).normal(0, 3, (2, 8, 8)).astype(np.float16)
    track = Track(4, logits, np.array([1.0, -1.0], np.float32))
    alone = torch.from_numpy(logits[:1]).float()[None]
    want = torch.nn.functional.interpolate(alone, (H, W), mode="bilinear").sigmoid()
    assert np.allclose(1 / (1 + np.exp(-track.at(4, (H, W)))), want[0, 0].numpy(), atol=1e-5)
    assert track.at(5, (H, W)) is None and track.at(3, (H, W)) is None
    assert track.inside(0.5)[0].sum() == (logits[0] > 0).sum() and not track.inside(0.0)[1].any()


def test_the_logic_needs_no_torch():
    code = "import sys, stages.segmenters.tracks; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parent.parent                                   # from where `stages` is ours
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=root).returncode == 0
