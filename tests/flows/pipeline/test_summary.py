"""What a person reads: progress, closing lines, failures, and the Markdown page."""

from __future__ import annotations

import io

import pytest

from components.errors import IntaglioError
from flows.durations import duration
from flows.pipeline.progress import Progress
from flows.pipeline.summary import (
    Summary,
    as_markdown,
    certificate_lines,
    closing_lines,
    failure_lines,
    stage_counts,
)
from flows.registry.gates import GateRow
from flows.registry.promote import Decision

ROWS = (
    GateRow("accuracy_final", 0.8, 0.6, True, "0.800 reaches 0.600"),
    GateRow("forgetting", None, 0.1, False, "missing or not a finite number, so it blocks"),
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (3725, "1 h 02 min")],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_progress_counts_and_indents() -> None:
    stream = io.StringIO()
    progress = Progress(12, stream)
    progress.up_to_date(10)
    progress.started("evaluate")
    progress.printed("evaluate", "halfway")
    progress.finished("evaluate", "ran", 65)
    assert stream.getvalue().splitlines() == [
        "12 stages: 10 up to date, 2 to check or run",
        "[10/12 done, 0.0 s] evaluate ...",
        "    evaluate | halfway",
        "[11/12 done, 0.0 s] evaluate ran (1 min 05 s)",
    ]


def test_a_terminal_that_has_gone_away_stops_nothing() -> None:
    stream = io.StringIO()
    stream.close()
    Progress(1, stream).show("into the void")


@pytest.mark.parametrize(
    ("verdict", "champion", "sentence"),
    [
        ("promoted", "3", "version 3 did not pass its gates and was made champion by force"),
        ("blocked", "2", "version 3 did not pass its gates; champion: version 2"),
        ("blocked", None, "version 3 did not pass its gates; champion: none yet"),
        ("champion", "3", "version 3 is the champion"),
        ("kept", "2", "version 3 was champion before and does not come back by itself; champion: version 2"),
    ],
)
def test_closing_lines_say_where_to_look(verdict: str, champion: str | None, sentence: str) -> None:
    decision = Decision("3", verdict, ROWS, champion)  # type: ignore[arg-type]
    summary = Summary({"a": "ran", "b": "up to date"}, 12, decision=decision, metrics={"accuracy_final": 0.8})
    text = "\n".join(closing_lines(summary))
    assert sentence in text
    assert "2 stages in 12 s: 1 ran, 1 up to date" in text
    assert "accuracy_final 0.800" in text
    assert "BLOCKED  forgetting" in text
    for command in ("mlflow ui", "intaglio predict", "mlflow models serve", "reports/report.html"):
        assert command in text


def test_a_promotion_without_force() -> None:
    decision = Decision("3", "promoted", ROWS[:1], "3")
    assert "version 3 passed its gates and is the champion now" in "\n".join(
        closing_lines(Summary({}, 1, decision=decision))
    )


def test_an_unlooked_at_run_and_a_failed_one() -> None:
    assert "every stage is up to date" in "\n".join(closing_lines(Summary({}, 1)))
    summary = Summary({"a": "ran", "b": "failed"}, 3, {"b": "b: bad | worse"}, ["c", "d"])
    assert failure_lines(summary) == ["b: bad | worse", "not started, because of b: c, d"]
    assert stage_counts(summary) == "4 stages in 3.0 s: 1 ran, 1 failed, 2 not started"
    page = as_markdown(summary)
    assert "**b failed**: b: bad \\| worse" in page
    assert "Not started: c, d" in page
    assert failure_lines(Summary({}, 1, {"b": "bad"})) == ["bad"]


def test_the_page_has_metrics_gates_and_stages() -> None:
    summary = Summary(
        {"a": "ran"},
        3,
        decision=Decision("3", "blocked", ROWS, None),
        metrics={"accuracy_final": 0.8, "forgetting": None},
    )
    page = as_markdown(summary)
    assert "| accuracy_final | 0.8000 |" in page
    assert "| forgetting | **blocked** | missing or not a finite number, so it blocks |" in page
    assert "| a | ran |" in page


def test_the_certificate_in_plain_words_admits_a_broken_bound() -> None:
    facts = {"coverage": 0.991, "coverage_promised": 0.98, "held_out_images": 130}
    near = {"nearest": "digits", "delta": 12.8, "bound": 0.001, "measured": 0.025}
    metrics = {
        "tasks": ["letters", "cloth"],
        "certificate": {"tasks": {"letters": facts | near, "cloth": facts | near | {"measured": 0.0}}},
        "rejection": {"conformal": {"auroc": 0.94, "fpr95": 0.26}},
    }
    lines = certificate_lines(metrics)
    assert lines[0] == (
        "letters: kept in question for 99.1% of its test images (promised 98.0%, calibrated on 130 held-out images)"
    )
    assert lines[1].endswith("measured 0.025: these images are not as Gaussian as the model")
    assert lines[3].endswith("measured 0")
    assert lines[4] == "images of a task never learned, by conformal: AUROC 0.940, false positives at 95 % 0.260"
    assert len(certificate_lines({"tasks": ["only"], "certificate": {"tasks": {"only": facts}}})) == 1
    with pytest.raises(IntaglioError, match="run the stage evaluate"):
        certificate_lines({})
