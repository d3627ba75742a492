"""The report: one page with everything a run produced, reports/report.html.

It fetches nothing, and equal inputs give equal bytes: no clock, sorted order, choices by hash.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from PIL import Image

from components.config import Config
from components.data.images import ImageError, Limits, open_image
from components.data.task_data import read_manifest
from components.errors import IntaglioError
from components.io import read_json, read_table, sha256_bytes, write_text
from components.report import charts

NONE, MINUS = "\u2014", "\u2212"  # an em dash; a true minus sign
THUMBNAIL = 96  # pixels, the longer side
TINY = 48  # images smaller than this are shown as crisp squares instead of being smoothed
EXAMPLES = 240  # thumbnails on the page, over all tasks
EXAMPLES_PER_SIDE = 8  # of one task: at most so many right and so many wrong ones
CURVES = ("epoch", "train_loss", "val_loss", "val_accuracy")
PREDICTIONS = ("task", "path", "label", "retrieved_task", "predicted_label", "probability", "correct")
PROJECTION = ("kind", "task", "label", "x", "y", "cov_xx", "cov_xy", "cov_yy")
MEASURED = ("accuracy", "retrieval_accuracy", "task_aware_accuracy", "frozen_task_aware_accuracy", "test_images")
TRAINED = ("adapter_rank", "reused_directions", "truncation_error", "seconds")
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
class StageOutputs:
    """What the earlier stages left behind; mappings are by task, in order of arrival."""

    metrics: Mapping[str, Any]
    predictions: pd.DataFrame
    projection: pd.DataFrame
    manifests: Mapping[str, pd.DataFrame]
    validation: Mapping[str, Mapping[str, Any]]
    finetune: Mapping[str, Mapping[str, Any]]
    curves: Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class Example:
    """One test image: its thumbnail as a data URI ("" if it cannot be read), the truth and the prediction."""

    picture: str
    tiny: bool
    label: str
    predicted: str
    retrieved: str
    probability: float


@dataclass(frozen=True)
class ComparedMethod:
    """One row of the comparison; `kind` is ours, baseline or rule."""

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
    results = _read(root, config)
    tasks, metrics = config.tasks, results.metrics
    methods = list(_methods(metrics, config))
    page = _template().render(
        config=config,
        tasks=tasks,
        metrics=metrics,
        methods=methods,
        rival=_rival(methods),
        errors=_errors(results.predictions),
        accuracy=charts.accuracy_matrix(metrics.get("accuracy_matrix") or [], tasks),
        retrieval=charts.retrieval_matrix(results.predictions, tasks),
        map=charts.signature_map(results.projection, tasks),
        rows=[_task_row(task, results) for task in tasks],
        curves=charts.training_curves([(task, results.curves[task], _best_epoch(results, task)) for task in tasks]),
        examples=[_examples(root, config, task, results.predictions) for task in tasks],
        data=[_data_row(task, results) for task in tasks],
        sections=list(_sections(config)),
    )
    write_text(root / "reports" / "report.html", page)


def _read(root: Path, config: Config) -> StageOutputs:
    reports, tasks = root / "reports", config.tasks
    metrics = read_json(reports / "metrics.json")
    known = metrics.get("tasks") if isinstance(metrics, Mapping) else None
    if known is None or list(known) != list(tasks):
        raise IntaglioError(
            f"{reports / 'metrics.json'}: is about the tasks {known}, but params.yaml has {list(tasks)}; "
            "run the stage evaluate"
        )
    predictions = _table(reports / "predictions.parquet", PREDICTIONS)
    return StageOutputs(
        metrics=metrics,
        predictions=predictions[predictions["task"].isin(tasks)],
        projection=_table(reports / "projection.parquet", PROJECTION),
        manifests={task: read_manifest(root, task) for task in tasks},
        validation={task: read_json(reports / "validation" / task / "result.json") for task in tasks},
        finetune={task: read_json(reports / "finetune" / f"{task}.json") for task in tasks},
        curves={task: _curve(reports / "finetune" / f"{task}.csv") for task in tasks},
    )


def _table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    table = read_table(path)
    missing = [column for column in columns if column not in table]
    if missing:
        raise IntaglioError(f"{path}: columns {missing} are missing; run the stage evaluate")
    return table


def _curve(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
        return table.reindex(columns=CURVES).astype("float64")
    except FileNotFoundError:
        raise IntaglioError(f"{path}: file not found; run the stage that writes it") from None
    except (OSError, ValueError) as error:
        raise IntaglioError(f"{path}: not a table of numbers ({' '.join(str(error).split())})") from None


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
    """`value` as a float; None for what is absent, not a number or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def percent(value: object) -> str:
    """A fraction as "91.2%", or a dash."""
    share = _finite(value)
    return NONE if share is None else f"{100 * share:.1f}%"


def points(value: object) -> str:
    """A difference of fractions in percentage points with its sign: "+3.1"; or a dash."""
    share = _finite(value)
    if share is None:
        return NONE
    text = f"{100 * share:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text.replace("-", MINUS)


def number(value: object) -> str:
    """A count as "12,345", another number with three significant digits, or a dash."""
    amount = _finite(value)
    if amount is None:
        return NONE
    if amount.is_integer():
        return f"{int(amount):,}".replace("-", MINUS)
    return f"{amount:,.0f}" if abs(amount) >= 100 else f"{amount:.3g}"


def title(name: str) -> str:
    """What a method is called on the page: its known name, or its key in plain words."""
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


def _rival(methods: Sequence[ComparedMethod]) -> ComparedMethod | None:
    """The best baseline."""
    known = [method for method in methods if method.kind == "baseline" and method.accuracy is not None]
    return max(known, key=lambda method: method.accuracy or 0.0, default=None)


def _errors(predictions: pd.DataFrame) -> dict[str, int]:
    """How many test images are right, wrong within the right task, and lost to another task."""
    correct = predictions["correct"].astype(bool)
    found = predictions["task"] == predictions["retrieved_task"]
    right, wrong_class = int((correct & found).sum()), int((~correct & found).sum())
    return {"all": len(predictions), "right": right, "wrong_class": wrong_class, "wrong_task": int((~found).sum())}


def _best_epoch(results: StageOutputs, task: str) -> int | None:
    best = _finite(results.finetune[task].get("best_epoch"))
    return None if best is None else int(best)


def _task_row(task: str, results: StageOutputs) -> dict[str, Any]:
    """Everything about one task in one mapping; what is not known is None."""
    measured = (results.metrics.get("per_task") or {}).get(task, {})
    row = {name: _finite(measured.get(name)) for name in MEASURED}
    row |= {name: _finite(results.finetune[task].get(name)) for name in TRAINED}
    adapted, frozen = row["task_aware_accuracy"], row["frozen_task_aware_accuracy"]
    gain = None if adapted is None or frozen is None else adapted - frozen
    return {"task": task, "gain": gain, **row}


def _data_row(task: str, results: StageOutputs) -> dict[str, Any]:
    """Images per split, classes and size from the manifest; findings from the validation."""
    manifest, verdict = results.manifests[task], results.validation[task]
    readable = manifest[manifest["readable"].astype(bool)]
    sizes = sorted({(int(w), int(h)) for w, h in zip(readable["width"], readable["height"], strict=True)})
    ends = [f"{w}\u00d7{h}" for w, h in (sizes[:1] + sizes[-1:])]
    return {
        "task": task,
        "splits": [int((readable["split"] == split).sum()) for split in ("train", "val", "test")],
        "classes": readable["label"].nunique(),
        "unreadable": len(manifest) - len(readable),
        "size": " \u2026 ".join(dict.fromkeys(ends)) or NONE,
        "success": verdict.get("success"),
        "expectations": len(verdict.get("expectations") or []),
        "failures": list(verdict.get("critical_failures") or []),
        "warnings": list(verdict.get("warnings") or []),
    }


def _examples(root: Path, config: Config, task: str, predictions: pd.DataFrame) -> dict[str, Any]:
    """Some right predictions, spread over the classes, and the wrong ones that were most confident."""
    side = min(EXAMPLES_PER_SIDE, max(1, EXAMPLES // (2 * len(config.tasks))))
    table = predictions[predictions["task"] == task]
    correct = table["correct"].astype(bool)
    right, wrong = table[correct], table[~correct]
    right = right.assign(draw=[sha256_bytes(str(path).encode()) for path in right["path"]]).sort_values("draw")
    right = right.assign(turn=right.groupby("label").cumcount()).sort_values(["turn", "draw"])
    wrong = wrong.sort_values(["probability", "path"], ascending=[False, True])
    folder, limits = root / config.stream.tasks[task].folder, Limits.of(config.data)
    return {
        "task": task,
        "count_right": len(right),
        "count_wrong": len(wrong),
        "right": [_example(folder, limits, row) for row in right.head(side).itertuples()],
        "wrong": [_example(folder, limits, row) for row in wrong.head(side).itertuples()],
    }


def _example(folder: Path, limits: Limits, row: Any) -> Example:
    retrieved = "" if row.retrieved_task == row.task else str(row.retrieved_task)
    picture, tiny = _thumbnail(folder / str(row.path), limits)
    return Example(picture, tiny, str(row.label), str(row.predicted_label), retrieved, float(row.probability))


def _thumbnail(path: Path, limits: Limits) -> tuple[str, bool]:
    """A data URI, and whether the image is tiny; "" where the image is gone or cannot be decoded."""
    try:
        image = open_image(path, limits)
    except (ImageError, OSError):
        return "", False
    tiny = max(image.size) < TINY
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=tiny, quality=78, method=6)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode(), tiny


def _sections(config: Config) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """params.yaml as (section, rows of key and value); the scalars at its top level come first."""
    values = config.model_dump()
    stream = values.pop("stream")["tasks"]
    yield "general", [(key, _plain(value)) for key, value in values.items() if not isinstance(value, dict)]
    for section, rows in values.items():
        if isinstance(rows, dict):
            yield section, [(key, _plain(value)) for key, value in rows.items()]
    yield "stream.tasks", [(task, f"{row['folder']} (after {row['previous']})") for task, row in stream.items()]


def _plain(value: object) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(str(item) for item in value) or NONE
    return NONE if value is None else str(value)
