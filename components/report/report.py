"""The report: one page with everything that a run produced, reports/report.html.

The page loads nothing else. Equal inputs give equal bytes: no clock, sorted order, choices by hash.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from components.config import Config, Task
from components.io import write_text
from components.report.charts import accuracy_matrix, retrieval_matrix, training_curves
from components.report.examples import examples_of
from components.report.signature_map import signature_map
from components.report.stage_outputs import StageOutputs, read_stage_outputs

NONE, MINUS = "\u2014", "\u2212"  # an em dash; a true minus sign
MEASURED = ("accuracy", "retrieval_accuracy", "task_aware_accuracy", "frozen_task_aware_accuracy", "test_images")
TRAINED = ("adapter_rank", "reused_directions", "truncation_error")
NAMES = {
    "nearest_class_mean": "Nearest class mean, frozen features",
    "frozen_lda": "LDA over all classes, frozen features",
    "pooled": "One pooled covariance, frozen features",
    "dpgmm": "DP-GMM, adapted features (the paper's rule)",
    "conformal": "Conformal, by the signatures",
    "mahalanobis": "Mahalanobis distance",
    "max_softmax": "Largest softmax",
}


@dataclass(frozen=True)
class ComparedMethod:
    """One row of the comparison.

    Attributes:
        kind: ours, baseline or rule.
        name: Its title on the page.
        accuracy: Final average accuracy, in [0, 1].
        retrieval: Share of test images whose task was retrieved.
        in_use: Whether it is the rule that the settings choose.
    """

    kind: str
    name: str
    accuracy: float | None
    retrieval: float | None
    in_use: bool = False


def write_report(root: Path, config: Config) -> None:
    """Write reports/report.html under `root` from the outputs of the earlier stages.

    Raises:
        IntaglioError: an output is missing, is corrupt, or belongs to another stream of tasks.
    """
    outputs = read_stage_outputs(root, config)
    tasks, metrics = config.tasks, outputs.metrics
    methods = list(_methods(metrics, config))
    page = _template().render(
        config=config,
        tasks=tasks,
        metrics=metrics,
        methods=methods,
        baseline=_best_baseline(methods),
        errors=_errors(outputs.predictions),
        accuracy=accuracy_matrix(metrics.get("accuracy_matrix") or [], tasks),
        retrieval=retrieval_matrix(outputs.predictions, tasks),
        map=signature_map(outputs.projection, tasks),
        rows=[_task_row(task, outputs) for task in tasks],
        curves=training_curves([(task, outputs.curves[task], _best_epoch(task, outputs)) for task in tasks]),
        examples=[examples_of(root, config, task, outputs.predictions) for task in tasks],
        data=[_data_row(task, outputs) for task in tasks],
        sections=list(_sections(config)),
    )
    write_text(root / "reports" / "report.html", page)


def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,  # class names come from folder names: anything may stand in them
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, points=points, number=number, title=title)
    return environment.get_template("report.html.j2")


def _finite(value: object) -> float | None:
    """Return `value` as a float; None for what is absent, not a number or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def percent(value: object) -> str:
    """Format a fraction as "91.2%"; what is not known as a dash."""
    share = _finite(value)
    return NONE if share is None else f"{100 * share:.1f}%"


def points(value: object) -> str:
    """Format a difference of fractions in percentage points with its sign: "+3.1"; what is not known as a dash."""
    share = _finite(value)
    if share is None:
        return NONE
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", MINUS)


def number(value: object) -> str:
    """Format a count as "12,345", another number with three significant digits, what is not known as a dash."""
    amount = _finite(value)
    if amount is None:
        return NONE
    if amount.is_integer():
        return f"{int(amount):,}".replace("-", MINUS)
    return f"{amount:,.0f}" if abs(amount) >= 100 else f"{amount:.3g}"


def title(name: str) -> str:
    """Return a method's name on the page: its known name, or its key in plain words."""
    return NAMES.get(name) or name[:1].upper() + name[1:].replace("_", " ")


def _methods(metrics: Mapping[str, Any], config: Config) -> Iterator[ComparedMethod]:
    yield ComparedMethod(
        "ours", "Intaglio", _finite(metrics.get("accuracy_final")), _finite(metrics.get("retrieval_accuracy"))
    )
    for kind, group in (("baseline", "baselines"), ("rule", "rules")):
        rows = metrics.get(group) or {}
        for name, row in sorted((name, row) for name, row in rows.items() if isinstance(row, Mapping)):
            accuracy, retrieval = _finite(row.get("accuracy_final")), _finite(row.get("retrieval_accuracy"))
            yield ComparedMethod(
                kind, title(name), accuracy, retrieval, kind == "rule" and name == config.retrieval.rule
            )


def _best_baseline(methods: Sequence[ComparedMethod]) -> ComparedMethod | None:
    known = [method for method in methods if method.kind == "baseline" and method.accuracy is not None]
    return max(known, key=lambda method: method.accuracy or 0.0, default=None)


def _errors(predictions: pd.DataFrame) -> dict[str, int]:
    """Count the test images that are right, wrong within the right task, and retrieved for another task."""
    correct = predictions["correct"].astype(bool)
    found = predictions["task"] == predictions["retrieved_task"]
    right, wrong_class = int((correct & found).sum()), int((~correct & found).sum())
    return {"all": len(predictions), "right": right, "wrong_class": wrong_class, "wrong_task": int((~found).sum())}


def _best_epoch(task: str, outputs: StageOutputs) -> int | None:
    best = _finite(outputs.cards[task].training.get("best_epoch"))
    return None if best is None else int(best)


def _task_row(task: str, outputs: StageOutputs) -> dict[str, Any]:
    """Collect the figures of one task; what is not known is None."""
    measured = (outputs.metrics.get("per_task") or {}).get(task, {})
    row = {name: _finite(measured.get(name)) for name in MEASURED}
    row |= {name: _finite(outputs.cards[task].training.get(name)) for name in TRAINED}
    adapted, frozen = row["task_aware_accuracy"], row["frozen_task_aware_accuracy"]
    gain = None if adapted is None or frozen is None else adapted - frozen
    return {"task": task, "gain": gain, **row}


def _data_row(task: str, outputs: StageOutputs) -> dict[str, Any]:
    """Collect images per split, classes, size and the validation's findings from the card."""
    card = outputs.cards[task]
    ends = [f"{width}\u00d7{height}" for width, height in card.sizes]
    return {
        "task": task,
        "splits": [card.count(split) for split in ("train", "val", "test")],
        "classes": len(card.classes),
        "unreadable": card.unreadable,
        "size": " \u2026 ".join(dict.fromkeys(ends)) or NONE,
        "success": card.validation.get("success"),
        "expectations": card.validation.get("expectations") or 0,
        "failures": list(card.validation.get("critical_failures") or []),
        "warnings": list(card.validation.get("warnings") or []),
    }


def _sections(config: Config) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield params.yaml as (section, rows of key and value); the scalars at its top level come first."""
    values = config.model_dump()
    values.pop("stream")
    yield "general", [(key, _plain(value)) for key, value in values.items() if not isinstance(value, dict)]
    for section, rows in values.items():
        if isinstance(rows, dict):
            yield section, [(key, _plain(value)) for key, value in rows.items()]
    yield "stream", [(name, _place(config.task(name))) for name in config.chain]


def _place(task: Task) -> str:
    notes = ["retired"] * task.retired + [f"in place of {task.replaces}"] * bool(task.replaces)
    return ", ".join([f"{task.folder} (after {task.previous})", *notes])


def _plain(value: object) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(str(item) for item in value) or NONE
    return NONE if value is None else str(value)
