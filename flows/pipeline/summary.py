"""Describe how a run ended, for the terminal and as a Prefect artefact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from components.errors import IntaglioError
from flows.durations import duration

if TYPE_CHECKING:
    from flows.registry.gates import GateRow
    from flows.registry.promote import Decision

REPORT = "reports/report.html"
TRACKING = "sqlite:///mlruns/mlflow.db"
_HEADLINE = ("accuracy_final", "retrieval_accuracy", "forgetting", "task_aware_accuracy")
_VERDICTS = {
    "promoted": "version {version} passed its gates and is the champion now",
    "forced": "version {version} did not pass its gates and was made champion by force",
    "blocked": "version {version} did not pass its gates; champion: {champion}",
    "champion": "version {version} is the champion",
    "kept": "version {version} was champion before and does not come back by itself; champion: {champion}",
}


@dataclass(frozen=True)
class Summary:
    """The result of one run.

    Attributes:
        outcomes: stage -> `up to date`, `ran`, `cached` or `failed`; empty where `dvc status` found no change at all.
        seconds: how long the run took.
        errors: failed stage -> why, in one line.
        not_started: stages that waited for a failed one.
        run_id: the MLflow run with the results.
        published_now: whether this run made that MLflow run.
        decision: what became of the model version.
        metrics: reports/metrics.json.
    """

    outcomes: Mapping[str, str]
    seconds: float
    errors: Mapping[str, str] = field(default_factory=dict)
    not_started: Sequence[str] = ()
    run_id: str | None = None
    published_now: bool = False
    decision: Decision | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)


def closing_lines(summary: Summary) -> list[str]:
    """Return what to print after a run that went through: the result, and where to look."""
    lines = ["", stage_counts(summary) if summary.outcomes else "nothing has changed: every stage is up to date"]
    lines += [f"{name} {value:.3f}" for name, value in _headline(summary)]
    if summary.decision:
        lines += ["", verdict(summary.decision), *gate_table(summary.decision.rows)]
    return [
        *lines,
        "",
        f"report      {REPORT}",
        f"tracking    mlflow ui --backend-store-uri {TRACKING}" + ("" if summary.published_now else " (nothing new)"),
        "classify    intaglio predict PATH...",
        f"serve       MLFLOW_TRACKING_URI={TRACKING} "
        "mlflow models serve -m models:/intaglio@champion --env-manager local",
    ]


def failure_lines(summary: Summary) -> list[str]:
    """Return what failed and what therefore did not start, one line each."""
    lines = list(summary.errors.values())
    if summary.not_started:
        lines.append(f"not started, because of {', '.join(summary.errors)}: {', '.join(summary.not_started)}")
    return lines


def stage_counts(summary: Summary) -> str:
    """Count the stages by outcome: `29 stages in 12 s: 3 ran, 1 cached, 25 up to date`."""
    counts = Counter(summary.outcomes.values())
    order = ("ran", "cached", "up to date", "failed")
    parts = [f"{counts[outcome]} {outcome}" for outcome in order if counts[outcome]]
    if summary.not_started:
        parts.append(f"{len(summary.not_started)} not started")
    total = len(summary.outcomes) + len(summary.not_started)
    return f"{total} stages in {duration(summary.seconds)}: {', '.join(parts)}"


def verdict(decision: Decision) -> str:
    """Return one sentence about the version."""
    champion = f"version {decision.champion}" if decision.champion else "none yet"
    forced = decision.verdict == "promoted" and not all(row.passed for row in decision.rows)
    sentence = _VERDICTS["forced" if forced else decision.verdict]
    return f"model intaglio: {sentence.format(version=decision.version, champion=champion)}"


def gate_table(rows: Sequence[GateRow]) -> list[str]:
    """Return one aligned line per gate."""
    width = max((len(row.name) for row in rows), default=0)
    return [f"  {'passed ' if row.passed else 'BLOCKED'}  {row.name:<{width}}  {row.sentence}" for row in rows]


def as_markdown(summary: Summary) -> str:
    """Return the summary as Markdown."""
    parts = ["# Continual fine-tuning", stage_counts(summary)]
    parts += [f"**{stage} failed**: {_cell(error)}" for stage, error in summary.errors.items()]
    if summary.not_started:
        parts.append(f"Not started: {', '.join(summary.not_started)}")
    if headline := _headline(summary):
        parts.append(_table(("metric", "value"), [(name, f"{value:.4f}") for name, value in headline]))
    if summary.decision:
        rows = [(row.name, "passed" if row.passed else "**blocked**", row.sentence) for row in summary.decision.rows]
        parts += [verdict(summary.decision), _table(("gate", "verdict", "why"), rows)]
    parts.append(_table(("stage", "outcome"), list(summary.outcomes.items())))
    return "\n\n".join(parts)


def _headline(summary: Summary) -> list[tuple[str, float]]:
    found = ((name, summary.metrics.get(name)) for name in _HEADLINE)
    return [(name, value) for name, value in found if isinstance(value, int | float)]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def certificate_lines(metrics: Mapping[str, Any]) -> list[str]:
    """Return the certificate of metrics.json in plain words.

    Raises:
        IntaglioError: the metrics hold none.
    """
    if "certificate" not in metrics:
        raise IntaglioError("reports/metrics.json holds no certificate; run the stage evaluate")
    lines = []
    for task in metrics["tasks"]:  # JSON keeps no order of arrival in an object
        facts = metrics["certificate"]["tasks"][task]
        lines.append(
            f"{task}: kept in question for {facts['coverage']:.1%} of its test images "
            f"(promised {facts['coverage_promised']:.1%}, calibrated on {facts['held_out_images']} held-out images)"
        )
        if "nearest" in facts:
            honest = "" if facts["measured"] <= facts["bound"] else ": these images are not as Gaussian as the model"
            lines.append(
                f"  told from its nearest task {facts['nearest']} (separation {facts['delta']:.1f}) with error below "
                f"{facts['bound']:.2g} under the fitted model; measured {facts['measured']:.2g}{honest}"
            )
    for way, facts in metrics.get("rejection", {}).items():
        figures = f"AUROC {facts['auroc']:.3f}, false positives at 95 % {facts['fpr95']:.3f}"
        lines.append(f"images of a task never learned, by {way}: {figures}")
    return lines
