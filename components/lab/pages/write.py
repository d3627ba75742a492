"""docs/results from stored results: `intaglio bench report`.

The folder holds the tables of `bench quality` (quality/<stream>.parquet and .theory.json), what other benches wrote
(inference.json, train.json, train_<name>.json, serve.json ...), the figures of the default run (default_run.json) and
those of a long stream (stream.json), and for each page a text written by hand that opens it (notes/<page>.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from components.errors import IntaglioError
from components.io import read_json, read_table, write_bytes, write_text
from components.lab.figures import accuracy_figure, budget_figure, budget_rows, cost_figure, theory_figure, weeks_figure
from components.lab.pages import ablations, index, measurements, theory, weeks
from components.lab.tables import summarise

_HEAD = """# {title}

<!-- Written by `intaglio bench report` from the files in this folder: change those, not this page. -->
"""


def write_pages(folder: Path) -> list[Path]:
    """Write the pages of a folder of stored results, and its figures (figures/*.svg).

    Returns:
        What was written.

    Raises:
        IntaglioError: there are no results, or a file of them is damaged.
    """
    if not folder.is_dir():
        raise IntaglioError(f"{folder}: folder not found; expected stored results, as `intaglio bench quality` writes")
    tables = {path.stem: read_table(path) for path in sorted(folder.glob("quality/*.parquet"))}
    theories = {path.name.partition(".")[0]: read_json(path) for path in sorted(folder.glob("quality/*.theory.json"))}
    benches = {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}
    default_run, stream = benches.pop("default_run", None), benches.pop("stream", None)
    figures = _figures(tables, theories, benches) | ({"stream.svg": weeks_figure(stream)} if stream else {})
    written = []
    for name, content in figures.items():
        written.append(folder / "figures" / name)
        write_bytes(written[-1], content)
    pages = {
        "index": ("Results", index.lines(tables, default_run, stream is not None)),
        "default-run": ("The default run", measurements.lines({"default_run": default_run} if default_run else {})),
        "performance": ("What things cost", measurements.lines(benches)),
        "ablations": ("Ablations", ablations.lines(tables)),
        "theory": ("Theory beside practice", theory.lines(theories)),
    }
    if stream:
        pages["stream"] = ("A stream of many weeks", weeks.lines(stream))
    for name, (title, lines) in pages.items():
        written.append(folder / f"{name}.md")
        write_text(written[-1], "\n".join([_HEAD.format(title=title), *_note(folder, name), *lines]).rstrip() + "\n")
    return written


def _note(folder: Path, name: str) -> Iterable[str]:
    path = folder / "notes" / f"{name}.md"
    return [path.read_text().strip(), ""] if path.exists() else []


def _figures(
    tables: Mapping[str, pd.DataFrame], theories: Mapping[str, Any], benches: Mapping[str, Any]
) -> dict[str, bytes]:
    figures: dict[str, bytes] = {}
    summaries = {name: summarise(table) for name, table in tables.items()}
    if summaries:
        figures["accuracy.svg"] = accuracy_figure(summaries)
    if any(budget_rows(summary).any() for summary in summaries.values()):
        figures["budget.svg"] = budget_figure(summaries)
    if "inference" in benches:
        figures["cost.svg"] = cost_figure(benches["inference"]["rows"])
    return figures | {f"theory-{name}.svg": theory_figure(found) for name, found in theories.items()}
