"""The weeks of a long stream: what may be drawn, whatever the seed."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.bench.weeks import TEST, TRAIN, ClassSupply, Week, plan_weeks
from components.errors import IntaglioError

SUPPLY = [
    ClassSupply(source, f"{source} {label}", train, test)
    for source, classes, train, test in (("letters", 26, 150, 60), ("clipart", 20, 30, 12), ("greek", 24, 14, 6))
    for label in range(classes)
]
Plans = st.tuples(st.integers(1, 14), st.integers(0, 2**32))


def adds(weeks: tuple[Week, ...]) -> list[Week]:
    return [week for week in weeks if week.event == "add"]


@given(Plans)
def test_no_image_arrives_twice_and_no_class_belongs_to_two_tasks(drawn: tuple[int, int]) -> None:
    weeks = plan_weeks(SUPPLY, *drawn)
    arrived, owner = Counter[tuple[str, str, str, int]](), defaultdict[tuple[str, str], set[str]](set)
    for week in weeks:
        for part in week.batch:
            owner[week.source, part.label].add(week.task)
            for split, span in (("train", part.train), ("test", part.test)):
                arrived.update((week.source, part.label, split, place) for place in range(*span))
    assert max(arrived.values()) == 1
    assert all(len(tasks) == 1 for tasks in owner.values())
    supply = {(one.source, one.label): one for one in SUPPLY}
    assert all(place < getattr(supply[source, label], split) for source, label, split, place in arrived)


@given(Plans)
def test_tasks_are_small_and_updates_smaller(drawn: tuple[int, int]) -> None:
    weeks = plan_weeks(SUPPLY, *drawn)
    assert len(adds(weeks)) == drawn[0]
    assert len({week.task for week in adds(weeks)}) == drawn[0]
    assert all(3 <= len(week.batch) <= 5 for week in adds(weeks))
    assert all(part.images <= TRAIN + TEST for week in weeks for part in week.batch)
    assert all(5 <= week.images <= 20 for week in weeks if week.event == "update")
    assert all(not week.batch for week in weeks if week.event not in ("add", "update"))


@given(Plans)
def test_every_week_fits_the_weeks_before(drawn: tuple[int, int]) -> None:
    live = set[str]()
    for number, week in enumerate(plan_weeks(SUPPLY, *drawn), start=1):
        assert week.number == number
        if week.event == "add":
            live.add(week.task)
        elif week.event in ("update", "retire"):
            assert week.task in live
        if week.event == "retire":
            live.remove(week.task)
    assert live


@given(st.integers(2, 14), st.integers(0, 2**32))
def test_every_kind_of_week_happens_and_the_last_one_has_no_work(tasks: int, seed: int) -> None:
    weeks = plan_weeks(SUPPLY, tasks, seed)
    counts = Counter(week.event for week in weeks)
    assert counts["upgrade"] == 1
    assert counts["update"] >= 1
    assert counts["retire"] >= 1
    assert counts["nothing"] >= 2
    assert weeks[-1].event == "nothing"


@given(st.integers(3, 12), st.integers(0, 2**32))
def test_the_second_task_and_the_last_cost_the_same(tasks: int, seed: int) -> None:
    found = adds(plan_weeks(SUPPLY, tasks, seed))
    assert (found[1].source, found[1].images) == (found[-1].source, found[-1].images)
    assert len(found[1].batch) == len(found[-1].batch)


def test_the_seed_alone_draws() -> None:
    assert plan_weeks(SUPPLY, 10, 7) == plan_weeks(SUPPLY, 10, 7)
    assert plan_weeks(SUPPLY, 10, 7) != plan_weeks(SUPPLY, 10, 8)


def test_classes_of_few_images_are_left_out_and_too_few_classes_are_named() -> None:
    few = [ClassSupply("letters", f"few {label}", 7, 5) for label in range(30)]
    weeks = plan_weeks([*few, *SUPPLY], 10, 0)
    assert not any("few" in part.label for week in weeks for part in week.batch)
    with pytest.raises(IntaglioError, match=r"--tasks 30: the sources have 70 classes .* ask for 22 tasks"):
        plan_weeks(SUPPLY, 30, 0)
