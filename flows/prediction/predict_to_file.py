"""`intaglio predict --output FILE`: a run of hours, watched, interrupted and resumed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from components.config import UNKNOWN
from components.inference.batch import row_of
from components.inference.bundle import fingerprint
from components.inference.image_paths import as_text
from components.inference.prediction_schema import ERROR, FILE, TASK, TOP
from components.inference.resumable_output import Done, check_output, open_output, parts_folder
from flows.durations import duration
from flows.prediction.engines import predict_paths
from flows.prediction.request import PredictionRequest

LOG_SECONDS = 60.0  # between two lines where no bar can be drawn


def predict_to_file(request: PredictionRequest, output: Path, log_seconds: float = LOG_SECONDS) -> int:
    """Write every result to `output`, which appears when it is complete; images without a prediction are rows too.

    Args:
        request: what to predict, and how.
        output: the file, whose suffix names the format.
        log_seconds: between two lines of progress where standard error is no terminal.

    Raises:
        IntaglioError: the file exists, or was begun with another bundle or other inputs.
    """
    if not check_output(output, request.resume):
        print(f"{output} is complete already", file=sys.stderr)
        return 0
    columns = [field.name for field in FILE if field != TOP or request.top > 1]
    with (
        open_output(output, columns, _identity(request)) as rows,
        _hint_on_failure(output),
        _progress(request, log_seconds) as tally,
    ):
        tally.skipped = len(rows.done)
        for result in predict_paths(request, _not_done(iter(request.inputs), rows.done)):
            row = row_of(result)
            rows.add(row)
            tally.add(row)
        leftover = len(rows.done)
        rows.finish()
    for line in tally.lines(output, leftover):
        print(line, file=sys.stderr)
    return 0


def _identity(request: PredictionRequest) -> dict[str, Any]:
    """Return what must not change between a run and its resumption."""
    inputs = request.inputs
    return {
        "bundle": fingerprint(request.bundle),
        "folder": str(Path.cwd()),
        "paths": list(inputs.named),
        "list": inputs.listed,
        "column": inputs.column,
        "top": request.top,
        "force": request.force,
        "precision": request.precision,
    }


def _not_done(paths: Iterator[str], done: Done) -> Iterator[str]:
    return (path for path in paths if not done.take(as_text(path)))


@contextmanager
def _hint_on_failure(output: Path) -> Iterator[None]:
    """Print where the rows are, and how to go on, when the block raises."""
    try:
        yield
    except BaseException:
        if (folder := parts_folder(output)).is_dir():
            print(
                f"what is done lies in {folder}/part-*{output.suffix}, readable as it is; "
                f"the same command with --resume does the rest and writes {output}",
                file=sys.stderr,
            )
        raise


@dataclass
class _Tally:
    """Counts rows, and shows the count on a terminal's bar or as a line from time to time.

    Attributes:
        total: Images to predict, where that is known.
        bar: Where there is a terminal.
        log_seconds: Between two lines, where there is none.
        skipped: Rows of an earlier run.
        rows: Rows of this run.
        errors: Of these, those without a prediction.
        unknown: Of these, those of no known task.
    """

    total: int | None
    bar: Progress | None
    log_seconds: float
    skipped: int = 0
    rows: int = 0
    errors: int = 0
    unknown: int = 0
    _task: TaskID | None = None
    _start: float = field(default_factory=time.monotonic)
    _last: float = field(default_factory=time.monotonic)

    def add(self, row: dict[str, Any]) -> None:
        if self.rows == 0:  # what comes before is loading
            self._start = self._last = time.monotonic()
        self.rows += 1
        self.errors += ERROR.name in row
        self.unknown += row.get(TASK.name) == UNKNOWN
        if self.bar is not None:
            self._draw(self.bar)
        elif time.monotonic() - self._last > self.log_seconds:
            self._last = time.monotonic()
            print(f"{self.skipped + self.rows:,} images, {self.speed:.1f} images/s", file=sys.stderr, flush=True)

    def _draw(self, bar: Progress) -> None:
        if self._task is None:
            self._task = bar.add_task("predict", total=self.total, speed="")
        bar.update(self._task, completed=self.skipped + self.rows, speed=f"{self.speed:.1f} images/s")

    @property
    def speed(self) -> float:
        return self.rows / max(time.monotonic() - self._start, 1e-9)

    def lines(self, output: Path, leftover: int) -> Iterator[str]:
        """Yield what a user should know at the end."""
        before = f" after {self.skipped:,} of an earlier run" if self.skipped else ""
        seconds = duration(time.monotonic() - self._start)
        yield f"{output}: {self.rows:,} images{before} in {seconds}, {self.speed:.1f} images/s"
        if self.errors:
            yield f"{self.errors:,} could not be read: see the column `error`"
        if self.unknown:
            yield f"{self.unknown:,} are of no known task: `{UNKNOWN}`"
        if leftover:
            yield f"warning: {leftover:,} rows of the earlier run are of images that the inputs no longer name"


@contextmanager
def _progress(request: PredictionRequest, log_seconds: float) -> Iterator[_Tally]:
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Tally(None, None, log_seconds)
        return
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        yield _Tally(request.inputs.count(), bar, log_seconds)
