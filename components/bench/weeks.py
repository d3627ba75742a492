"""The weeks of a long stream, drawn by a seed: which classes make a task, and what happens in each week.

    classes of each source --> tasks of 3 to 5 classes --> add, update, retire or nothing, week after week

No class is in two tasks, and no image in two weeks. Tasks of equal size stand at both ends, so that the cost of adding
one can be compared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from components.errors import IntaglioError

Event = Literal["add", "update", "retire", "nothing", "upgrade"]

SIZES, SHARES = (3, 4, 5), (0.4, 0.4, 0.2)  # classes of a task, and how often
TRAIN, TEST = 28, 10  # images of a class that a new task takes, at most
FEWEST_TRAIN, FEWEST_TEST = 8, 2  # of a class that is used at all
MORE_FROM, MORE_TO = 5, 20  # images of an update
COMPARED_AT = 6  # tasks after which a week without work is compared with the last one
_BETWEEN = 0.25  # probability of another event before the next task is added, again and again
_OTHERS: tuple[Event, ...] = ("update", "retire", "nothing")
_OTHER_SHARES = (0.55, 0.2, 0.25)
_NEW_CLASS = 0.3  # share of updates that bring a new class
_COMPARED, _TWIN = 3, 4  # tasks of equal size at each end, at most, and their number of classes


@dataclass(frozen=True)
class ClassSupply:
    """A class of a source, and how many images there are to learn from and to test with."""

    source: str
    label: str
    train: int
    test: int


@dataclass(frozen=True)
class ClassBatch:
    """Images of one class that arrive in a week: places among its training and its test images, from and to."""

    label: str
    train: tuple[int, int]
    test: tuple[int, int]

    @property
    def images(self) -> int:
        """Return their number."""
        return self.train[1] - self.train[0] + self.test[1] - self.test[0]


@dataclass(frozen=True)
class Week:
    """What happens in a week.

    Attributes:
        number: of the week, from 1.
        event: what happens.
        task: that it happens to; "" for none.
        source: of the task's images.
        batch: the images that arrive.
    """

    number: int
    event: Event
    task: str = ""
    source: str = ""
    batch: tuple[ClassBatch, ...] = ()

    @property
    def images(self) -> int:
        """Return the number of images that arrive."""
        return sum(part.images for part in self.batch)


@dataclass(frozen=True)
class _Group:
    """Classes of one source that make a task."""

    source: str
    classes: tuple[ClassSupply, ...]


def plan_weeks(supply: Sequence[ClassSupply], tasks: int, seed: int) -> tuple[Week, ...]:
    """Draw the weeks of a stream in which `tasks` tasks are added.

    The software is upgraded once, when half of the tasks are there. There is a week without work after the sixth task,
    and the last week is one. Every other kind of event happens at least once where there are two tasks.

    Args:
        supply: the classes that may be used.
        tasks: number of tasks to add.
        seed: of all that is drawn.

    Raises:
        IntaglioError: the classes are too few.
    """
    random = np.random.default_rng(seed)
    usable = [one for one in supply if one.train >= FEWEST_TRAIN and one.test >= FEWEST_TEST]
    ends = min(_COMPARED, (tasks - 1) // 2)
    for compared, smallest in ((ends, False), (ends, True), (0, True)):  # the last one makes the most tasks
        twins = _twins(usable, compared, random)
        taken = {one for group in twins for one in group.classes}
        others = _groups([one for one in usable if one not in taken], random, smallest)
        if (most := len(others) + len(twins)) >= tasks:
            break
    else:
        raise IntaglioError(
            f"--tasks {tasks}: the sources have {len(usable)} classes of enough images, which make {most} tasks; "
            f"name more folders with --data, or ask for {most} tasks"
        )
    others, ends = others[: tasks - len(twins)], len(twins) // 2
    return _Drawing(random, usable, [*others[:1], *twins[:ends], *others[1:], *twins[ends:]]).weeks()


def _twins(supply: Sequence[ClassSupply], ends: int, random: np.random.Generator) -> list[_Group]:
    """Return twice `ends` tasks of one source and size, for the second place on and for the end; fewer if need be.

    Args:
        supply: the classes that may be used.
        ends: tasks wanted at each end.
        random: draws the classes.
    """
    alike = defaultdict[tuple[str, int], list[ClassSupply]](list)
    for one in supply:
        alike[one.source, _first_batch(one).images].append(one)
    found = [classes for _, classes in sorted(alike.items(), key=lambda item: -item[0][1])]  # many images first
    classes = max(found, key=lambda own: min(ends, len(own) // (2 * _TWIN)), default=[])
    drawn = [classes[place] for place in random.permutation(len(classes))]
    count = 2 * min(ends, len(drawn) // (2 * _TWIN))
    return [_Group(drawn[0].source, tuple(drawn[_TWIN * n : _TWIN * (n + 1)])) for n in range(count)]


def _groups(supply: Sequence[ClassSupply], random: np.random.Generator, smallest: bool) -> list[_Group]:
    """Divide the classes of each source into tasks, in an order that mixes the sources.

    Args:
        supply: the classes.
        random: draws sizes and order.
        smallest: make tasks of the smallest size only, so that there are more of them.
    """
    by_source, groups = defaultdict[str, list[ClassSupply]](list), list[_Group]()
    for one in supply:
        by_source[one.source].append(one)
    for source, classes in by_source.items():
        left = [classes[place] for place in random.permutation(len(classes))]
        while len(left) >= SIZES[0]:
            size = SIZES[0] if smallest else min(len(left), int(random.choice(SIZES, p=SHARES)))
            groups.append(_Group(source, tuple(left[:size])))
            left = left[size:]
    return [groups[place] for place in random.permutation(len(groups))]


def _first_batch(one: ClassSupply) -> ClassBatch:
    return ClassBatch(one.label, (0, min(TRAIN, one.train)), (0, min(TEST, one.test)))


@dataclass
class _Drawing:
    """The drawing of the weeks, as far as it is.

    Attributes:
        random: draws everything.
        supply: the classes that may be used.
        groups: the tasks in order of arrival.
    """

    random: np.random.Generator
    supply: Sequence[ClassSupply]
    groups: Sequence[_Group]
    _found: list[Week] = field(default_factory=list)
    _live: dict[str, str] = field(default_factory=dict)  # task -> its source
    _classes: dict[str, list[ClassSupply]] = field(default_factory=dict)  # of each task
    _used: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)  # training and test images of a class

    def weeks(self) -> tuple[Week, ...]:
        """Draw all weeks."""
        counts = defaultdict[str, int](int)
        tasks = len(self.groups)
        for number, group in enumerate(self.groups, start=1):
            while number > 2 and self.random.random() < _BETWEEN:
                self._happens(_OTHERS[self.random.choice(len(_OTHERS), p=_OTHER_SHARES)])
            counts[group.source] += 1
            self._add(f"{group.source}_{counts[group.source]}", group)
            if number == (tasks + 1) // 2:
                self._append("upgrade")
            if number == COMPARED_AT:
                self._append("nothing")
        missing: list[Event] = ["nothing"] if tasks < COMPARED_AT else []
        missing += [event for event in ("update", "retire") if event not in {week.event for week in self._found}]
        for event in (*missing, "nothing"):
            self._happens(event)
        return tuple(self._found)

    def _append(self, event: Event, task: str = "", batch: Sequence[ClassBatch] = ()) -> None:
        source = self._live.get(task, "")
        self._found.append(Week(len(self._found) + 1, event, task, source, tuple(batch)))
        for part in batch:
            self._used[source, part.label] = part.train[1], part.test[1]

    def _add(self, task: str, group: _Group) -> None:
        self._live[task], self._classes[task] = group.source, list(group.classes)
        self._append("add", task, [_first_batch(one) for one in group.classes])

    def _happens(self, event: Event) -> None:
        """Let an event happen to a task that is drawn; to none where no task allows it."""
        if event == "update":
            self._update()
        elif event == "retire" and len(self._live) > 1:
            task = self._drawn(list(self._live))
            self._append("retire", task)
            del self._live[task]
        elif event == "nothing":
            self._append("nothing")

    def _update(self) -> None:
        """Bring more images of a known class, or a new class, to a task that has some left."""
        more = {task: found for task in self._live if (found := self._known_with_more(task))}
        new = {task: found for task in self._live if (found := self._new_classes(task))}
        if new and (not more or self.random.random() < _NEW_CLASS):
            task = self._drawn(list(new))
            one = new[task][self.random.integers(len(new[task]))]
            self._classes[task].append(one)
            train = min(one.train, MORE_TO - TEST // 2)
            self._append("update", task, [ClassBatch(one.label, (0, train), (0, min(one.test, TEST // 2)))])
        elif more:
            task = self._drawn(list(more))
            one = more[task][self.random.integers(len(more[task]))]
            count = int(self.random.integers(MORE_FROM, MORE_TO + 1))
            train, test = self._used[one.source, one.label]
            tested = min(one.test - test, count // 5)
            learned = min(one.train - train, count - tested)
            self._append("update", task, [ClassBatch(one.label, (train, train + learned), (test, test + tested))])

    def _known_with_more(self, task: str) -> list[ClassSupply]:
        return [one for one in self._classes[task] if one.train - self._used[one.source, one.label][0] >= MORE_FROM]

    def _new_classes(self, task: str) -> list[ClassSupply]:
        """Return classes of the task's source that no task has or will have."""
        taken = {(one.source, one.label) for group in self.groups for one in group.classes}
        taken |= {(one.source, one.label) for classes in self._classes.values() for one in classes}
        return [one for one in self.supply if one.source == self._live[task] and (one.source, one.label) not in taken]

    def _drawn(self, names: Sequence[str]) -> str:
        return names[int(self.random.integers(len(names)))]
