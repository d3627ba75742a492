"""Judge whether a new model version may become champion. Pure: numbers in, verdicts out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.config import Gates

_ROUNDING = 1e-9  # so that a drop of 0.80 - 0.77 passes a gate of 0.03


@dataclass(frozen=True)
class GateRow:
    """One gate's verdict.

    Attributes:
        name: of the gate.
        value: what was measured; None where it is missing, or where there is nothing to measure.
        threshold: from params.yaml.
        passed: whether the gate lets the version through.
        sentence: why, for a person.
    """

    name: str
    value: float | None
    threshold: float
    passed: bool
    sentence: str


def judge(gates: Gates, metrics: Mapping[str, Any], champion: Mapping[str, Any] | None) -> tuple[GateRow, ...]:
    """Compare a challenger's metrics.json with the thresholds and with the present champion's.

    A number that is missing, null or not finite blocks: what was not measured was not passed.

    Args:
        gates: the thresholds from params.yaml.
        metrics: the challenger's metrics.json.
        champion: the champion's metrics.json; None when there is no champion yet.
    """
    return (
        _floor("accuracy_final", _number(metrics.get("accuracy_final")), gates.min_accuracy_final),
        _floor("retrieval_accuracy", _number(metrics.get("retrieval_accuracy")), gates.min_retrieval_accuracy),
        _forgetting(metrics, gates.max_forgetting),
        _drop("accuracy", metrics, champion, gates.max_accuracy_drop),
        _drop("retrieval_accuracy", metrics, champion, gates.max_retrieval_drop),
        _lost_tasks(metrics, champion),
        *_certificate(metrics, gates),
    )


def passed(rows: Sequence[GateRow]) -> bool:
    """Return whether every gate let the challenger through; no gate at all lets nothing through."""
    return bool(rows) and all(row.passed for row in rows)


def _floor(name: str, value: float | None, minimum: float) -> GateRow:
    if value is None:
        return _unmeasured(name, minimum)
    good = value >= minimum - _ROUNDING
    return GateRow(name, value, minimum, good, f"{value:.3f} {'reaches' if good else 'is below'} {minimum:.3f}")


def _ceiling(name: str, value: float, maximum: float, shown: str) -> GateRow:
    good = value <= maximum + _ROUNDING
    return GateRow(name, value, maximum, good, f"{shown} {'is within' if good else 'exceeds'} {maximum:.3f}")


def _forgetting(metrics: Mapping[str, Any], maximum: float) -> GateRow:
    value, tasks = _number(metrics.get("forgetting")), metrics.get("tasks")
    if value is not None:
        return _ceiling("forgetting", value, maximum, f"{value:.3f}")
    if isinstance(tasks, Sequence) and len(tasks) == 1:
        return GateRow("forgetting", None, maximum, True, "a single task has nothing to forget")
    return _unmeasured("forgetting", maximum)


def _drop(metric: str, metrics: Mapping[str, Any], champion: Mapping[str, Any] | None, maximum: float) -> GateRow:
    """Compare with the champion: the mean drop of a metric over the tasks that both have.

    A task that replaces another is compared with the one that it replaces.
    """
    name = f"{metric.removesuffix('_accuracy')}_drop"
    if champion is None:
        return GateRow(name, None, maximum, True, "there is no champion to compare with")
    ours, theirs = metrics.get("per_task"), champion.get("per_task")
    if not isinstance(ours, Mapping) or not isinstance(theirs, Mapping):
        return _unmeasured(name, maximum)
    shared = _shared_tasks(metrics, ours, theirs)
    if not shared:
        lost = _lost(metrics, champion)
        why = "no task of the champion is here to compare with" if lost else "the champion's tasks were all left out"
        return GateRow(name, None, maximum, not lost, why)
    drops = []
    for task, before_task in shared:
        before, after = _number(theirs[before_task].get(metric)), _number(ours[task].get(metric))
        if before is None or after is None:
            return _unmeasured(name, maximum, f" for task {task}")
        drops.append(before - after)
    value = sum(drops) / len(drops)
    return _ceiling(name, value, maximum, f"{value:+.3f} over {len(shared)} shared tasks")


def _shared_tasks(
    metrics: Mapping[str, Any], ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Pair each of the challenger's tasks with the champion's of that name, or with the one that it replaces."""
    replaces = _mapping(metrics, "replaces")
    pairs = [(task, task if task in theirs else replaces.get(task, task)) for task in sorted(ours)]
    return [(task, before) for task, before in pairs if before in theirs]


def _lost_tasks(metrics: Mapping[str, Any], champion: Mapping[str, Any] | None) -> GateRow:
    """Block a challenger that lacks a task of the champion, unless a person left it out on purpose."""
    name, most = "lost_tasks", 0.0
    if champion is None:
        return GateRow(name, None, most, True, "there is no champion to compare with")
    if not _tasks(metrics) or not _tasks(champion):
        return GateRow(name, None, most, False, "the tasks of one of the two are not known, so it blocks")
    lost = _lost(metrics, champion)
    if lost:
        line = "its line" if len(lost) == 1 else "their lines"
        sentence = (
            f"{', '.join(lost)} of the champion {'is' if len(lost) == 1 else 'are'} missing; "
            f"if that is meant, `intaglio task retire {lost[0] if len(lost) == 1 else 'NAME'}`, "
            f"or restore {line} in params.yaml"
        )
        return GateRow(name, float(len(lost)), most, False, sentence)
    left_out = {task: why for task, why in _mapping(metrics, "left_out").items() if task in _tasks(champion)}
    reasons = ", ".join(f"{task} ({why})" for task, why in sorted(left_out.items()))
    good = f"left out on purpose: {reasons}" if reasons else "every task of the champion is here"
    return GateRow(name, 0.0, most, True, good)


def _lost(metrics: Mapping[str, Any], champion: Mapping[str, Any]) -> list[str]:
    """Return the champion's tasks that the challenger neither has, nor replaces, nor lacks on purpose."""
    ours = _tasks(metrics)
    replaced = {old for new, old in _mapping(metrics, "replaces").items() if new in ours}
    return sorted(_tasks(champion) - ours - replaced - _mapping(metrics, "left_out").keys())


def _tasks(metrics: Mapping[str, Any]) -> set[str]:
    listed = metrics.get("tasks")
    names = set(listed) if isinstance(listed, Sequence) and not isinstance(listed, str) else set()
    return names | _mapping(metrics, "per_task").keys()


def _mapping(metrics: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = metrics.get(key)
    return value if isinstance(value, Mapping) else {}


def _certificate(metrics: Mapping[str, Any], gates: Gates) -> Iterator[GateRow]:
    """Yield the gates on the certificate that params.yaml asks for: the worst coverage, the largest confusion."""
    certificate = metrics.get("certificate")
    tasks = certificate.get("tasks") if isinstance(certificate, Mapping) else None
    rows = list(tasks.values()) if isinstance(tasks, Mapping) else []
    if gates.min_coverage is not None:
        coverages = _all_numbers(row.get("coverage") for row in rows)
        yield _floor("coverage", min(coverages) if coverages else None, gates.min_coverage)
    if gates.max_confusion_bound is not None:
        bounds = _all_numbers(row.get("bound") for row in rows if "nearest" in row)
        if not rows or bounds is None:
            yield _unmeasured("confusion_bound", gates.max_confusion_bound)
        else:
            worst = max(bounds, default=0.0)  # a single task has no other to be confused with
            yield _ceiling("confusion_bound", worst, gates.max_confusion_bound, f"{worst:.2g}")


def _unmeasured(name: str, threshold: float, where: str = "") -> GateRow:
    return GateRow(name, None, threshold, False, f"missing or not a finite number{where}, so it blocks")


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _all_numbers(values: Iterable[Any]) -> list[float] | None:
    """Return the values as numbers; None if any is missing or not finite."""
    numbers = [_number(value) for value in values]
    found = [number for number in numbers if number is not None]
    return found if len(found) == len(numbers) else None
