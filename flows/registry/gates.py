"""What a new model version must show before it becomes champion. Pure: numbers in, verdicts out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.config import Gates

_ROUNDING = 1e-9  # so that a drop of 0.80 - 0.77 passes a gate of 0.03


@dataclass(frozen=True)
class GateRow:
    """One gate's verdict. `value` is None where it is missing, or where there is nothing to measure."""

    name: str
    value: float | None
    threshold: float
    passed: bool
    sentence: str


def judge(gates: Gates, metrics: Mapping[str, Any], champion: Mapping[str, Any] | None) -> tuple[GateRow, ...]:
    """Hold a challenger's metrics.json against the floors and against the present champion's.

    A number that is missing, null or not finite blocks: what was not measured was not passed.

    Args:
        gates: the thresholds from params.yaml.
        metrics: the challenger's metrics.json.
        champion: the champion's metrics.json; None when there is no champion yet.
    """
    return (
        _floor("accuracy_final", metrics, gates.min_accuracy_final),
        _floor("retrieval_accuracy", metrics, gates.min_retrieval_accuracy),
        _forgetting(metrics, gates.max_forgetting),
        _drop("accuracy", metrics, champion, gates.max_accuracy_drop),
        _drop("retrieval_accuracy", metrics, champion, gates.max_retrieval_drop),
        *_certificate(metrics, gates),
    )


def passed(rows: Sequence[GateRow]) -> bool:
    """Whether every gate let the challenger through; no gate at all lets nothing through."""
    return bool(rows) and all(row.passed for row in rows)


def _floor(name: str, metrics: Mapping[str, Any], minimum: float) -> GateRow:
    value = _number(metrics.get(name))
    if value is None:
        return _unmeasured(name, minimum)
    good = value >= minimum - _ROUNDING
    return GateRow(name, value, minimum, good, f"{value:.3f} {'reaches' if good else 'is below'} {minimum:.3f}")


def _forgetting(metrics: Mapping[str, Any], maximum: float) -> GateRow:
    value, tasks = _number(metrics.get("forgetting")), metrics.get("tasks")
    if value is None and isinstance(tasks, Sequence) and len(tasks) == 1:
        return GateRow("forgetting", None, maximum, True, "a single task has nothing to forget")
    if value is None:
        return _unmeasured("forgetting", maximum)
    good = value <= maximum + _ROUNDING
    return GateRow(
        "forgetting", value, maximum, good, f"{value:.3f} {'is within' if good else 'exceeds'} {maximum:.3f}"
    )


def _drop(metric: str, metrics: Mapping[str, Any], champion: Mapping[str, Any] | None, maximum: float) -> GateRow:
    name = f"{metric.removesuffix('_accuracy')}_drop"
    if champion is None:
        return GateRow(name, None, maximum, True, "there is no champion to compare with")
    ours, theirs = metrics.get("per_task"), champion.get("per_task")
    if not isinstance(ours, Mapping) or not isinstance(theirs, Mapping):
        return _unmeasured(name, maximum)
    common = sorted(ours.keys() & theirs.keys())
    if not common:
        return GateRow(name, None, maximum, True, "the champion knows none of these tasks")
    drops = []
    for task in common:
        before, after = _number(theirs[task].get(metric)), _number(ours[task].get(metric))
        if before is None or after is None:
            return _unmeasured(name, maximum, f" for task {task}")
        drops.append(before - after)
    value = sum(drops) / len(drops)
    good = value <= maximum + _ROUNDING
    verdict = f"{value:+.3f} over {len(common)} shared tasks {'is within' if good else 'exceeds'} {maximum:.3f}"
    return GateRow(name, value, maximum, good, verdict)


def _certificate(metrics: Mapping[str, Any], gates: Gates) -> Iterator[GateRow]:
    """The worst task's coverage, and the largest certified confusion of two tasks, where they are asked for."""
    certificate = metrics.get("certificate")
    tasks = certificate.get("tasks") if isinstance(certificate, Mapping) else None
    rows = list(tasks.values()) if isinstance(tasks, Mapping) else []
    if (minimum := gates.min_coverage) is not None:
        found = [_number(row.get("coverage")) for row in rows]
        known = [value for value in found if value is not None]
        if not known or len(known) < len(found):
            yield _unmeasured("coverage", minimum)
        else:
            yield _floor("coverage", {"coverage": min(known)}, minimum)
    if (maximum := gates.max_confusion_bound) is not None:
        found = [_number(row.get("bound")) for row in rows if "nearest" in row]
        known = [value for value in found if value is not None]
        if not rows or len(known) < len(found):
            yield _unmeasured("confusion_bound", maximum)
        else:
            worst = max(known, default=0.0)
            good = worst <= maximum + _ROUNDING
            sentence = f"{worst:.2g} {'is within' if good else 'exceeds'} {maximum:.3f}"
            yield GateRow("confusion_bound", worst, maximum, good, sentence)


def _unmeasured(name: str, threshold: float, where: str = "") -> GateRow:
    return GateRow(name, None, threshold, False, f"missing or not a finite number{where}, so it blocks")


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
