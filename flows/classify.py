"""`intaglio predict`: which task an image belongs to and what it shows, for a few files or a hundred thousand."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import IntaglioError

if TYPE_CHECKING:
    from components.bulk import Answer
    from components.inputs import Inputs
    from components.predict import Prediction

_TABLE = 64  # rows of a table on the terminal
LOCAL, DASK = "local", "dask"


@dataclass(frozen=True)
class Request:
    """What is asked of `intaglio predict`.

    workers: processes that decode (engine local) or that predict (engine dask); None: as many as seems good.
    scheduler: address of a running Dask cluster. output: the file for the results, None for standard output.
    """

    inputs: Inputs
    bundle: Path
    device: str = "auto"
    precision: str = "auto"
    top: int = 1
    force: bool = False
    engine: str = LOCAL
    workers: int | None = None
    scheduler: str | None = None
    output: Path | None = None
    resume: bool = False
    as_lines: bool = False


def champion_bundle(root: Path) -> Path:
    """The folder with the champion's bundle.

    Raises:
        IntaglioError: there is no champion yet.
    """
    database = root / "mlruns" / "mlflow.db"
    if database.is_file():
        from flows.tracking import CHAMPION, aliases, bundle_of, connect

        client = connect(root)
        champion = aliases(client).get(CHAMPION)
        if champion:
            return bundle_of(client, root, champion)
    raise IntaglioError(
        f"{root}: no champion yet; `intaglio run` promotes one, or name a bundle's folder with `--bundle DIR`"
    )


def bundle_folder(named: Path | None) -> Path:
    """The bundle that was named, or the champion's of the project around the current folder.

    Raises:
        IntaglioError: there is no such folder, no project or no champion.
    """
    if named is not None:
        if not named.is_dir():
            raise IntaglioError(f"{named}: folder not found; a bundle is the folder that the stage `bundle` writes")
        return named
    from flows.settings import be_quiet, find_root

    root = find_root()
    be_quiet(root)
    return champion_bundle(root)


def predict(request: Request) -> int:
    """Answer a request; returns the exit status.

    Raises:
        IntaglioError: the request contradicts itself or the disk.
    """
    _check(request)
    if request.output is not None:
        from flows.classify_file import predict_to_file

        return predict_to_file(request, request.output)
    failures = show(answered(request, iter(request.inputs)), request.as_lines, request.top)
    return int(failures > 0)


def answered(request: Request, paths: Iterator[str]) -> Iterator[Answer]:
    """An answer for every path, in order, by the engine that is asked for."""
    if request.engine == DASK:
        from flows.cluster import answers_by_cluster

        yield from answers_by_cluster(request, paths)
        return
    from components.bulk import answers
    from components.decode import Decoders
    from components.predict import Predictor

    predictor = Predictor.load(request.bundle, request.device, request.precision)
    with closing(Decoders(predictor.image_size, predictor.limits, request.workers)) as decoders:
        yield from answers(predictor, decoders.batches(paths), request.top, request.force)


def _check(request: Request) -> None:
    if request.engine not in (LOCAL, DASK):
        raise IntaglioError(f"--engine {request.engine!r}: expected {LOCAL} or {DASK}")
    if request.scheduler and request.engine != DASK:
        raise IntaglioError(f"--scheduler is the address of a Dask cluster; it needs --engine {DASK}")
    if request.resume and request.output is None:
        raise IntaglioError("--resume needs --output FILE: what is done is known from there")
    if request.as_lines and request.output is not None:
        raise IntaglioError("--json prints to the terminal; for a file, --output FILE.jsonl is enough")
    request.inputs.check()


def as_json(answer: Answer) -> str:
    """One JSON line."""
    from components.bulk import row_of

    row: dict[str, Any] = row_of(answer)
    if answer.prediction is not None:
        row["p_values"] = dict(answer.prediction.p_values)
    return json.dumps(row)


def show(answers: Iterator[Answer], as_lines: bool, top: int) -> int:
    """Print every answer; returns how many files had no prediction."""
    failures, rows = 0, []
    for answer in answers:
        failures += answer.prediction is None
        if as_lines:
            print(as_json(answer), flush=True)
        elif answer.prediction is None:
            print(f"{answer.path}: {answer.error}", file=sys.stderr)
        else:
            rows.append((answer.path, answer.prediction))
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
