"""`intaglio task order`: one chain again, after two branches added a task each.

        +-- a -- a2                                          (before)
    x --+
        +-- b                 x -- a -- a2 -- b              (after `task order a b`)

What follows the first name stays as it was learned. The others are learned again after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from components.errors import IntaglioError
from flows.lock_file import LockFile
from flows.tasks.params_file import ParamsText, change_params


@dataclass(frozen=True)
class Order:
    """What was put in order.

    Attributes:
        moved: task -> the task that it follows now; empty where nothing had to change.
        again: learned tasks whose modules must be trained again, because another module comes before them now.
    """

    moved: Mapping[str, str]
    again: tuple[str, ...]


def order_tasks(root: Path, names: Sequence[str]) -> Order:
    """Let tasks that follow the same one follow each other, each with all that follows it.

    Args:
        root: the project's folder.
        names: of the tasks, in the order that they shall have.

    Raises:
        IntaglioError: the names are no such tasks, or one that would be learned again is archived.
    """
    params = root / "params.yaml"
    stream = ParamsText(params).section("stream")  # not load_config, which refuses the fork
    archived = stream.get("archived") or {}
    every = {**(stream.get("tasks") or {}), **archived}
    _check_names(params, every, names)
    if all(first in _before(every, second) for first, second in pairwise(names)):
        return Order({}, ())
    _check_fork(every, names)
    branches = [_branch(every, name) for name in names]
    behind = [name for branch in branches[1:] for name in branch]
    if fixed := [name for name in behind if name in archived]:
        raise IntaglioError(
            f"task {fixed[0]!r}: is archived and cannot be learned again; put its branch first in `task order`"
        )
    ends = dict(zip(names[1:], (branch[-1] for branch in branches[:-1]), strict=True))
    change_params(params, lambda text: _follow(text, ends))
    lock = LockFile.read(root)
    return Order(ends, tuple(name for name in behind if lock.has_learned(name)))


def _follow(text: ParamsText, ends: Mapping[str, str]) -> None:
    for name, end in ends.items():
        text.section("stream")["tasks"][name]["previous"] = end


def _check_names(params: Path, every: Mapping[str, Any], names: Sequence[str]) -> None:
    if len(set(names)) < max(2, len(names)):
        raise IntaglioError(f"task order {' '.join(names)}: expected two different tasks or more, first to last")
    for name in names:
        if name not in every:
            raise IntaglioError(f"task {name!r}: not in {params}; it has {', '.join(every)}")


def _check_fork(every: Mapping[str, Any], names: Sequence[str]) -> None:
    """Check that the tasks are all those that follow one task."""
    before = {every[name]["previous"] for name in names}
    if len(before) > 1:
        follow = ", ".join(f"{name} follows {every[name]['previous']!r}" for name in names)
        raise IntaglioError(
            f"task order: {follow}; expected tasks that follow the same one, as two branches leave them"
        )
    others = [name for name, task in every.items() if task["previous"] in before and name not in names]
    if others:
        raise IntaglioError(f"task order: {', '.join(others)} follows {before.pop()!r} too; name it as well")


def _before(every: Mapping[str, Any], name: str) -> set[str]:
    """Return all tasks that a task follows."""
    found = set[str]()
    while name in every and (name := every[name]["previous"]) not in found:
        found.add(name)
    return found


def _branch(every: Mapping[str, Any], name: str) -> list[str]:
    """Return a task and all that follows it."""
    branch = [name]
    while followers := [other for other, task in every.items() if task["previous"] == branch[-1]]:
        if len(followers) > 1:
            raise IntaglioError(
                f"task order: {' and '.join(followers)} both follow {branch[-1]!r}; "
                f"run `intaglio task order {' '.join(followers)}` first"
            )
        if followers[0] in branch:
            raise IntaglioError(f"stream.tasks: {', '.join(branch)} follow each other in a circle; correct `previous`")
        branch.append(followers[0])
    return branch
