"""The gates: what blocks, what passes, and what they say."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.config import Gates
from flows.registry.gates import GateRow, judge, passed

GATES = Gates(
    min_accuracy_final=0.6,
    min_retrieval_accuracy=0.85,
    max_forgetting=0.1,
    max_accuracy_drop=0.03,
    max_retrieval_drop=0.03,
)


def metrics(**changes: Any) -> dict[str, Any]:
    good: dict[str, Any] = {
        "tasks": ["a", "b"],
        "accuracy_final": 0.8,
        "retrieval_accuracy": 0.95,
        "forgetting": 0.02,
        "per_task": {task: {"accuracy": 0.8, "retrieval_accuracy": 0.95} for task in ("a", "b")},
    }
    return good | changes


def row(name: str, challenger: dict[str, Any], champion: dict[str, Any] | None = None) -> GateRow:
    return next(row for row in judge(GATES, challenger, champion) if row.name == name)


def test_good_numbers_pass_without_and_with_a_champion() -> None:
    assert passed(judge(GATES, metrics(), None))
    rows = judge(GATES, metrics(), metrics())
    assert passed(rows)
    assert [row.name for row in rows] == [
        "accuracy_final",
        "retrieval_accuracy",
        "forgetting",
        "accuracy_drop",
        "retrieval_drop",
        "lost_tasks",
    ]
    assert all(row.sentence for row in rows)


@pytest.mark.parametrize("name", ["accuracy_final", "retrieval_accuracy", "forgetting"])
@pytest.mark.parametrize("value", [math.nan, math.inf, None, "0.9", True])
def test_what_is_not_a_finite_number_blocks(name: str, value: object) -> None:
    verdict = row(name, metrics(**{name: value}))
    assert not verdict.passed
    assert verdict.value is None
    assert verdict.sentence == "missing or not a finite number, so it blocks"


@pytest.mark.parametrize("name", ["accuracy_final", "retrieval_accuracy", "forgetting"])
def test_a_missing_metric_blocks(name: str) -> None:
    incomplete = metrics()
    del incomplete[name]
    assert not row(name, incomplete).passed


def test_floors_and_ceilings_include_their_threshold() -> None:
    assert row("accuracy_final", metrics(accuracy_final=0.6)).passed
    below = row("accuracy_final", metrics(accuracy_final=0.59))
    assert not below.passed
    assert below.sentence == "0.590 is below 0.600"
    assert row("forgetting", metrics(forgetting=0.1)).passed
    assert row("forgetting", metrics(forgetting=0.11)).sentence == "0.110 exceeds 0.100"


def test_one_task_has_nothing_to_forget() -> None:
    assert row("forgetting", metrics(tasks=["a"], forgetting=None)).passed
    assert not row("forgetting", metrics(tasks=["a", "b"], forgetting=None)).passed
    assert not row("forgetting", metrics(tasks=None, forgetting=None)).passed


def test_the_drop_is_over_the_tasks_that_both_know() -> None:
    champion = metrics(per_task={"a": {"accuracy": 0.9, "retrieval_accuracy": 1.0}, "old": {"accuracy": 1.0}})
    verdict = row("accuracy_drop", metrics(left_out={"old": "retired"}), champion)
    assert verdict.value == pytest.approx(0.1)
    assert not verdict.passed
    assert verdict.sentence == "+0.100 over 1 shared tasks exceeds 0.030"
    assert row("retrieval_drop", metrics(), champion).value == pytest.approx(0.05)


def test_rounding_does_not_block() -> None:
    challenger = metrics(per_task={"a": {"accuracy": 0.77, "retrieval_accuracy": 0.92}})
    champion = metrics(per_task={"a": {"accuracy": 0.80, "retrieval_accuracy": 0.95}})
    assert passed(judge(GATES, challenger, champion))


@pytest.mark.parametrize("value", [math.nan, None])
def test_a_number_missing_for_one_task_blocks_the_comparison(value: float | None) -> None:
    broken = metrics(per_task={"a": {"accuracy": value, "retrieval_accuracy": 0.95}})
    for challenger, champion in ((broken, metrics()), (metrics(), broken)):
        verdict = row("accuracy_drop", challenger, champion)
        assert not verdict.passed
        assert "for task a" in verdict.sentence


def test_a_champion_without_metrics_blocks() -> None:
    assert not row("accuracy_drop", metrics(), {}).passed
    assert not row("lost_tasks", metrics(), {}).passed
    assert not row("lost_tasks", {}, metrics()).passed


OTHER = {"tasks": ["mat"], "per_task": {"mat": {"accuracy": 0.9, "retrieval_accuracy": 0.9}}}


def test_a_lost_task_blocks_and_says_what_to_do() -> None:
    champion = metrics(tasks=["a", "b", "mat"])
    verdict = row("lost_tasks", metrics(), champion)
    assert (verdict.passed, verdict.value) == (False, 1.0)
    assert verdict.sentence == (
        "mat of the champion is missing; if that is meant, `intaglio task retire mat`, "
        "or restore its line in params.yaml"
    )
    two = row("lost_tasks", metrics(), metrics(tasks=["a", "b", "wood", "mat"]))
    assert two.sentence.startswith(
        "mat, wood of the champion are missing; if that is meant, `intaglio task retire NAME`"
    )


@pytest.mark.parametrize("why", ["retired", "dropped", "replaced by mat2"])
def test_a_task_left_out_on_purpose_is_not_lost(why: str) -> None:
    verdict = row("lost_tasks", metrics(left_out={"mat": why}), metrics(tasks=["a", "b", "mat"]))
    assert verdict.passed
    assert verdict.sentence == f"left out on purpose: mat ({why})"


def test_a_replaced_task_is_compared_with_its_new_generation() -> None:
    champion = metrics(
        tasks=["a", "old"], per_task={name: {"accuracy": 0.9, "retrieval_accuracy": 0.95} for name in ("a", "old")}
    )
    new = {"a": {"accuracy": 0.9, "retrieval_accuracy": 0.95}, "new": {"accuracy": 0.5, "retrieval_accuracy": 0.95}}
    challenger = metrics(tasks=["a", "new"], per_task=new, replaces={"new": "old"})
    assert row("lost_tasks", challenger, champion).passed
    verdict = row("accuracy_drop", challenger, champion)
    assert verdict.value == pytest.approx(0.2)
    assert not verdict.passed
    assert not row("lost_tasks", metrics(tasks=["a"], replaces={"new": "old"}), champion).passed  # the new one is away
    # Once the champion has the new generation, that is what counts.
    assert row("accuracy_drop", challenger, challenger).value == pytest.approx(0.0)


def test_without_a_shared_task_no_drop_passes_in_silence() -> None:
    rows = {found.name: found for found in judge(GATES, metrics(), OTHER)}
    for name in ("accuracy_drop", "retrieval_drop", "lost_tasks"):
        assert not rows[name].passed, name
    assert rows["accuracy_drop"].sentence == "no task of the champion is here to compare with"
    meant = judge(GATES, metrics(left_out={"mat": "dropped"}), OTHER)
    assert passed(meant)


def test_no_gate_lets_nothing_through() -> None:
    assert not passed([])


@given(st.floats(), st.floats(), st.floats())
def test_a_floor_passes_exactly_what_reaches_it(accuracy: float, retrieval: float, forgetting: float) -> None:
    rows = judge(GATES, metrics(accuracy_final=accuracy, retrieval_accuracy=retrieval, forgetting=forgetting), None)
    expected = (
        math.isfinite(accuracy) and accuracy >= 0.6 - 1e-9,
        math.isfinite(retrieval) and retrieval >= 0.85 - 1e-9,
        math.isfinite(forgetting) and forgetting <= 0.1 + 1e-9,
    )
    assert tuple(row.passed for row in rows[:3]) == expected


def certified(coverage: object, bound: object) -> dict[str, Any]:
    other = {"coverage": 0.99, "nearest": "a", "bound": 0.01}
    return metrics(certificate={"tasks": {"a": {"coverage": coverage, "nearest": "b", "bound": bound}, "b": other}})


@pytest.mark.parametrize(
    ("coverage", "bound", "expected"),
    [
        (0.95, 0.02, [True, True]),
        (0.85, 0.02, [False, True]),
        (0.95, 0.2, [True, False]),
        (None, math.nan, [False, False]),
    ],
)
def test_the_certificate_can_be_required(coverage: object, bound: object, expected: list[bool]) -> None:
    gates = GATES.model_copy(update={"min_coverage": 0.9, "max_confusion_bound": 0.1})
    rows = judge(gates, certified(coverage, bound), None)[-2:]
    assert [row.name for row in rows] == ["coverage", "confusion_bound"]
    assert [row.passed for row in rows] == expected


def test_a_certificate_that_is_required_and_missing_blocks() -> None:
    gates = GATES.model_copy(update={"min_coverage": 0.9, "max_confusion_bound": 0.1})
    assert [row.passed for row in judge(gates, metrics(), None)[-2:]] == [False, False]


def test_a_single_task_has_no_other_to_be_confused_with() -> None:
    gates = GATES.model_copy(update={"max_confusion_bound": 0.1})
    alone = metrics(certificate={"tasks": {"a": {"coverage": 0.99}}})
    assert judge(gates, alone, None)[-1].passed
