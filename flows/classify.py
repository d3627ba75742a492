"""`intaglio predict`: which task an image belongs to and what it shows, for files, folders and patterns."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from components.errors import IntaglioError

if TYPE_CHECKING:
    import PIL.Image

    from components.predict import Prediction, Predictor

BATCH = 64  # images in memory at a time


@dataclass(frozen=True)
class Classified:
    """One file's prediction, or why there is none."""

    path: Path
    prediction: Prediction | None
    error: str = ""


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


def expand(arguments: Sequence[str]) -> Iterator[Path]:
    """The files that the arguments name: files as they are, folders with all images below, patterns matched.

    A path that does not exist, and a pattern or folder without any file, comes back as it is: it gets its own error.
    """
    from components.images import image_files

    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            yield from image_files(path) or [path]
        elif path.exists() or not _is_pattern(path):
            yield path
        else:
            files = [file for match in _matches(path) for file in (image_files(match) if match.is_dir() else [match])]
            yield from files or [path]


def _is_pattern(path: Path) -> bool:
    return any(character in str(path) for character in "*?[")


def _matches(pattern: Path) -> list[Path]:
    try:
        return sorted(Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))))
    except ValueError:  # such as a**b
        return []


def classify(predictor: Predictor, paths: Iterator[Path], top: int, force: bool = False) -> Iterator[Classified]:
    """Predict file by file, in batches; a file that cannot be used yields its error and stops nothing."""
    while batch := list(islice(paths, BATCH)):
        yield from _classify_batch(predictor, batch, top, force)


def _classify_batch(predictor: Predictor, batch: Sequence[Path], top: int, force: bool) -> Iterator[Classified]:
    from components.images import open_image

    images: list[PIL.Image.Image] = []
    errors: dict[Path, str] = {}
    for path in batch:
        try:
            images.append(open_image(path, predictor.limits))
        except (IntaglioError, OSError) as error:
            errors[path] = _reason(path, error)
    predictions = iter(predictor.predict(images, top=top, force=force) if images else [])
    for path in batch:
        if path in errors:
            yield Classified(path, None, errors[path])
        else:
            yield Classified(path, next(predictions))


def _reason(path: Path, error: Exception) -> str:
    if not path.exists():
        return "no such file, and no file matches" if _is_pattern(path) else "no such file"
    if path.is_dir():
        return "no images in this folder"
    return " ".join(str(error).split()).removeprefix(f"{path}: ")


def as_json(result: Classified) -> str:
    """One JSON line."""
    if result.prediction is None:
        return json.dumps({"path": str(result.path), "error": result.error})
    found = result.prediction
    row = {
        "path": str(result.path),
        "task": found.task,
        "label": found.label,
        "task_probability": found.task_probability,
        "probability": found.probability,
        "p_value": found.p_value,
        "p_values": dict(found.p_values),
        "top": [{"task": task, "label": label, "probability": share} for task, label, share in found.top],
    }
    return json.dumps(row)


def show(results: Iterator[Classified], as_lines: bool, top: int) -> int:
    """Print every result; returns how many files had none."""
    failures, rows = 0, []
    for result in results:
        failures += result.prediction is None
        if as_lines:
            print(as_json(result), flush=True)
        elif result.prediction is None:
            print(f"{result.path}: {result.error}", file=sys.stderr)
        else:
            rows.append((str(result.path), result.prediction))
            if len(rows) == BATCH:
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
