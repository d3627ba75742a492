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
    """Compare with the champion: the mean drop of a metric over the tasks that both have."""
    name = f"{metric.removesuffix('_accuracy')}_drop"
    if champion is None:
        return GateRow(name, None, maximum, True, "there is no champion to compare with")
    ours, theirs = metrics.get("per_task"), champion.get("per_task")
    if not isinstance(ours, Mapping) or not isinstance(theirs, Mapping):
        return _unmeasured(name, maximum)
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        return GateRow(name, None, maximum, True, "the champion has none of these tasks")
    drops = []
    for task in common:
        before, after = _number(theirs[task].get(metric)), _number(ours[task].get(metric))
        if before is None or after is None:
            return _unmeasured(name, maximum, f" for task {task}")
        drops.append(before - after)
    value = sum(drops) / len(drops)
    return _ceiling(name, value, maximum, f"{value:+.3f} over {len(common)} shared tasks")


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
