"""The stage `validate`: Great Expectations on a task's manifest.

It writes a report for people, a result for the pipeline, and an index of known images. Only this module imports Great
Expectations, and only when it validates: the import takes seconds.
"""

from __future__ import annotations

import datetime
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from components.config import Config
from components.data.expectations import (
    COLUMNS,
    INDEX_COLUMNS,
    SPLITS,
    Check,
    annotate,
    class_checks,
    image_checks,
    per_class,
)
from components.data.validation_pages import Outcome, index_page, keep_one_page, message
from components.errors import IntaglioError
from components.io import atomic_folder, read_table, scratch_folder, write_json, write_table

MIN_EXPECTATIONS = 10  # a suite that lost its expectations would pass
_KEPT = 20  # examples in result.json and on the pages


def validate(root: Path, config: Config, task: str) -> None:
    """Check a task's manifest; write reports/validation/<task> and, if it may be learned, data/index/<task>.parquet.

    Args:
        root: the project's folder.
        config: knows the task before this one, and the limits.
        task: its name in params.yaml.

    Raises:
        IntaglioError: a critical expectation failed; one line for each, naming files. The report is written first.
        RuntimeError: an expectation could not be evaluated, which is a bug and says nothing about the data.
    """
    if task not in config.stream.tasks:
        raise IntaglioError(f"task {task!r} is not in params.yaml; known: {', '.join(config.stream.tasks)}")
    index = root / "data" / "index"
    manifest = read_table(root / "data" / "manifests" / f"{task}.parquet")
    lacking = [column for column in COLUMNS if column not in manifest]
    if lacking:
        raise IntaglioError(f"{task}: the manifest lacks {', '.join(lacking)}; run the stage ingest again")
    earlier = read_table(index / f"{config.task(task).previous}.parquet")
    known = pd.concat([earlier, *_images_of_updates(root, config)], ignore_index=True)
    known = known[~known["task"].isin(config.replaced_by(task))]  # a new generation may learn from the same images
    with atomic_folder(root / "reports" / "validation" / task) as folder:
        outcomes = [
            *run_checks(
                "images", annotate(manifest, known, config.data), image_checks(config.data), "path", folder / "docs"
            ),
            *run_checks("classes", per_class(manifest), class_checks(config.data), "label", folder / "docs"),
        ]
        if len(outcomes) < MIN_EXPECTATIONS:
            raise RuntimeError(f"only {len(outcomes)} expectations were evaluated, at least {MIN_EXPECTATIONS} exist")
        result = _result(task, manifest, outcomes)
        (folder / "docs" / "index.html").write_text(index_page(task, outcomes), encoding="utf-8")
        write_json(folder / "result.json", result)
    met = sum(outcome.success for outcome in outcomes)
    print(f"validate {task}: {met} of {len(outcomes)} expectations met", flush=True)
    for warning in result["warnings"]:
        print(f"warning: {warning}", flush=True)
    if result["critical_failures"]:
        (index / f"{task}.parquet").unlink(missing_ok=True)
        raise IntaglioError("\n".join(result["critical_failures"]))
    rows = manifest.assign(task=task)[list(INDEX_COLUMNS)]
    write_table(index / f"{task}.parquet", pd.concat([earlier, rows], ignore_index=True))


def validate_update(root: Path, config: Config, name: str, manifest: pd.DataFrame, classes: Sequence[str]) -> list[str]:
    """Check the images of an update: each must be new to the project, and a class that is new needs enough of them.

    Args:
        root: the project's folder.
        config: knows the limits.
        name: of the update.
        manifest: of its images.
        classes: that the task had before.

    Returns:
        Warnings, a line each.

    Raises:
        IntaglioError: a critical expectation failed; one line for each, naming files.
    """
    known = pd.concat([_images_of_tasks(root, config), *_images_of_updates(root, config, but=name)], ignore_index=True)
    new = per_class(manifest[~manifest["label"].isin(classes)])
    with scratch_folder(root / "reports" / "validation" / name) as folder:
        outcomes = run_checks(
            "images", annotate(manifest, known, config.data), image_checks(config.data), "path", folder
        )
        if len(new):
            outcomes += run_checks("classes", new, class_checks(config.data), "label", folder)
    result = _result(name, manifest, outcomes)
    if result["critical_failures"]:
        raise IntaglioError("\n".join(result["critical_failures"]))
    return list(result["warnings"])


def _images_of_tasks(root: Path, config: Config) -> pd.DataFrame:
    """Return the index of the last validated task, which holds the images of all before it."""
    paths = [root / "data" / "index" / f"{task}.parquet" for task in config.chain]
    return read_table([path for path in paths if path.is_file()][-1])


def _images_of_updates(root: Path, config: Config, but: str = "") -> Iterator[pd.DataFrame]:
    """Yield the images of every update that was learned, as an index holds them."""
    for name, update in config.updates.items():
        path = root / "data" / "manifests" / f"{name}.parquet"
        if name != but and path.is_file():
            yield read_table(path).assign(task=update.task)[list(INDEX_COLUMNS)]


def run_checks(name: str, table: pd.DataFrame, checks: Sequence[Check], key: str, docs: Path) -> list[Outcome]:
    """Evaluate `checks` on `table`, in order; write the page docs/<name>.html.

    Args:
        name: of the page.
        table: a row per image or class.
        checks: what to evaluate.
        key: the column that names a row.
        docs: the folder of the pages.

    Raises:
        RuntimeError: an expectation could not be evaluated.
    """
    with _silent():
        results = _evaluate(name, table, checks, key, docs)
    outcomes = [_outcome(check, results[position], table, key) for position, check in enumerate(checks)]
    keep_one_page(docs, name)
    return outcomes


def _evaluate(name: str, table: pd.DataFrame, checks: Sequence[Check], key: str, docs: Path) -> dict[int, Any]:
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx
    from great_expectations.checkpoint.actions import UpdateDataDocsAction
    from great_expectations.core.run_identifier import RunIdentifier

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False, "metric_calculations": False}  # type: ignore[assignment]
    store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str((docs / name).resolve())}
    context.add_data_docs_site(name, {"class_name": "SiteBuilder", "store_backend": store})  # type: ignore[typeddict-item]
    batches = context.data_sources.add_pandas(name).add_dataframe_asset(name)
    expectations = [
        getattr(gx.expectations, check.expectation)(**check.arguments, meta={"position": position})
        for position, check in enumerate(checks)
    ]
    suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=expectations))
    definition = gx.ValidationDefinition(
        name=name, data=batches.add_batch_definition_whole_dataframe(name), suite=suite
    )
    checkpoint = context.checkpoints.add(
        gx.Checkpoint(
            name=name,
            validation_definitions=[context.validation_definitions.add(definition)],
            actions=[UpdateDataDocsAction(name="docs", site_names=[name])],
            result_format={
                "result_format": "SUMMARY",
                "partial_unexpected_count": _KEPT,
                "unexpected_index_column_names": [key],
            },
        )
    )
    # A fixed time: the same manifest gives the same report.
    run = RunIdentifier(run_name=name, run_time=datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC))
    found = checkpoint.run(batch_parameters={"dataframe": table}, run_id=run)
    (validation,) = found.run_results.values()
    evaluated: list[Any] = validation.results
    results = {result.expectation_config.meta["position"]: result for result in evaluated}
    if len(results) != len(checks):
        raise RuntimeError(f"{name}: {len(results)} of {len(checks)} expectations were evaluated")
    return results


def _outcome(check: Check, result: Any, table: pd.DataFrame, key: str) -> Outcome:
    raised = _exceptions(result.exception_info)
    if raised:
        raise RuntimeError(f"{check.expectation} {dict(check.arguments)} could not be evaluated: {raised[0]}")
    found = result.result
    names = [str(row[key]) for row in found.get("partial_unexpected_index_list") or []]
    details = dict(zip(table[key], table[check.detail], strict=True)) if check.detail and names else {}
    return Outcome(
        check=check,
        type=result.expectation_config.type,
        row=key,
        success=bool(result.success),
        unexpected=int(found.get("unexpected_count") or 0),
        observed=found.get("observed_value"),
        examples=[f"{name} ({_text(details[name])})" if name in details else name for name in names],
    )


def _exceptions(info: Mapping[str, Any]) -> list[str]:
    """List the messages in an expectation's exception_info: one entry, or one per metric."""
    entries = [info] if "raised_exception" in info else list(info.values())
    return [str(entry["exception_message"]) for entry in entries if entry["raised_exception"]]


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float | np.floating) else str(value)


def _result(task: str, manifest: pd.DataFrame, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    failed = [outcome for outcome in outcomes if not outcome.success]
    critical = [message(task, outcome) for outcome in failed if outcome.check.critical]
    splits, labels = manifest["split"].value_counts(), manifest["label"].value_counts()
    return {
        "task": task,
        "success": not critical,
        "critical_failures": critical,
        "warnings": [message(task, outcome) for outcome in failed if not outcome.check.critical],
        "statistics": {"evaluated": len(outcomes), "met": len(outcomes) - len(failed), "failed": len(failed)},
        "expectations": [
            {
                "type": outcome.type,
                "column": outcome.check.arguments.get("column"),
                "critical": outcome.check.critical,
                "success": outcome.success,
                "unexpected_count": outcome.unexpected,
                "examples": outcome.examples,
            }
            for outcome in outcomes
        ],
        "summary": {
            "images": len(manifest),
            "classes": int(manifest["label"].nunique()),
            "per_split": {split: int(splits.get(split, 0)) for split in SPLITS},
            "per_class": {str(label): int(number) for label, number in labels.items()},
        },
    }


@contextmanager
def _silent() -> Iterator[None]:
    """Keep Great Expectations from printing; what it finds is in the result."""
    logger = logging.getLogger("great_expectations")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
