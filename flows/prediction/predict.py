"""`intaglio predict`: which task an image belongs to and what it shows, for a few files or a hundred thousand."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from components.errors import IntaglioError
from components.inference.prediction_schema import TERMINAL
from flows.prediction.engines import predict_paths
from flows.prediction.request import DASK, LOCAL, PredictionRequest

if TYPE_CHECKING:
    from components.inference.batch import FileResult
    from components.inference.predictor import Prediction

_TABLE = 64  # rows of a table on the terminal


def predict(request: PredictionRequest) -> int:
    """Predict what a request names; returns the exit status.

    Raises:
        IntaglioError: the request contradicts itself or the disk.
    """
    _check(request)
    if request.output is not None:
        from flows.prediction.predict_to_file import predict_to_file

        return predict_to_file(request, request.output)
    failures = show(predict_paths(request, iter(request.inputs)), request.as_lines, request.top)
    return int(failures > 0)


def _check(request: PredictionRequest) -> None:
    if request.engine not in (LOCAL, DASK):
        raise IntaglioError(f"--engine {request.engine!r}: expected {LOCAL} or {DASK}")
    if request.scheduler and request.engine != DASK:
        raise IntaglioError(f"--scheduler is the address of a Dask cluster; it needs --engine {DASK}")
    if request.resume and request.output is None:
        raise IntaglioError("--resume needs --output FILE: what is done is known from there")
    if request.as_lines and request.output is not None:
        raise IntaglioError("--json prints to the terminal; for a file, --output FILE.jsonl is enough")
    request.inputs.check()


def as_json(result: FileResult) -> str:
    """Return one JSON line."""
    from components.inference.batch import row_of

    return json.dumps(row_of(result, TERMINAL))


def show(results: Iterator[FileResult], as_lines: bool, top: int) -> int:
    """Print every result as it comes; returns how many files had no prediction.

    Args:
        results: in the order of the images.
        as_lines: whether to print JSON lines instead of tables.
        top: guesses to print for each image.
    """
    failures, rows = 0, []
    for result in results:
        failures += result.prediction is None
        if as_lines:
            print(as_json(result), flush=True)
        elif result.prediction is None:
            print(f"{result.path}: {result.error}", file=sys.stderr)
        else:
            rows.append((result.path, result.prediction))
            if len(rows) == _TABLE:
                _print_table(rows, top)
                rows.clear()
    if rows:
        _print_table(rows, top)
    return failures


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _print_table(rows: Sequence[tuple[str, Prediction]], top: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("image", "task", "", "class", "", box=None, pad_edge=False)
    for path, found in rows:
        table.add_row(path, found.task, _percent(found.task_probability), found.label, _percent(found.probability))
        for task, label, share in found.top[1:top]:
            table.add_row("", task, "", label, f"{share:.0%}", style="dim")
    console = Console()
    # A pipe has no width: long paths must not be cut there.
    (console if console.is_terminal else Console(width=10_000)).print(table)
