"""docs/results.md from stored results: `intaglio bench report`.

The folder holds sections written by hand (NN-name.md), the tables of `bench quality` (quality/<stream>.parquet and
.theory.json) and what the other benches wrote (inference.json, serve.json, train.json and train_MACHINE.json). Every
table names its source.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from components.errors import IntaglioError
from components.io import read_json, read_table, write_bytes, write_text
from components.lab.figures import accuracy_figure, budget_figure, budget_rows, cost_figure, theory_figure
from components.lab.method_registry import METHODS
from components.lab.stream import known_streams, load_stream
from components.lab.tables import ALL, markdown, method_table, percent, summarise

_TITLES = {"inference": "Cost of a prediction", "train": "Cost of training", "serve": "The server under load"}
_HEAD = """# Results

<!-- Written by `intaglio bench report` from docs/results/: change those files, not this one. -->
"""


def write_results(folder: Path, page: Path) -> list[Path]:
    """Write the page and its figures (`folder`/figures/*.svg).

    Returns:
        What was written.

    Raises:
        IntaglioError: there are no results, or a file of them is damaged.
    """
    if not folder.is_dir():
        raise IntaglioError(f"{folder}: folder not found; expected stored results, as `intaglio bench quality` writes")
    tables = {path.stem: read_table(path) for path in sorted(folder.glob("quality/*.parquet"))}
    theories = {path.name.partition(".")[0]: read_json(path) for path in sorted(folder.glob("quality/*.theory.json"))}
    figures: dict[str, bytes] = {}
    if tables:
        summaries = {name: summarise(table) for name, table in tables.items()}
        figures["accuracy.svg"] = accuracy_figure(summaries)
        if any(budget_rows(summary).any() for summary in summaries.values()):
            figures["budget.svg"] = budget_figure(summaries)
    figures |= {f"theory-{name}.svg": theory_figure(found) for name, found in theories.items()}
    benches = {name: read_json(path) for name, path in _benches(folder)}
    if "inference" in benches:
        figures["cost.svg"] = cost_figure(benches["inference"]["rows"])
    sections = [_HEAD]
    sections += [path.read_text().strip() + "\n" for path in sorted(folder.glob("[0-9]*.md"))]
    if tables:
        sections.append("\n".join(_quality(tables)) + "\n")
    if theories:
        sections.append("\n".join(_theories(theories)) + "\n")
    sections += ["\n".join(_bench(name, found)) + "\n" for name, found in benches.items()]
    for name, content in figures.items():
        write_bytes(folder / "figures" / name, content)
    write_text(page, "\n".join(sections))
    return [page, *(folder / "figures" / name for name in figures)]


def _quality(tables: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    yield "## Methods compared\n"
    yield (
        "Mean ± standard deviation over seeds (other validation splits and starts) and orders of the tasks, in %. All "
        "methods see the same embeddings (the depths and poolings of params.yaml) and splits. Settings of baselines "
        "were chosen on the validation images of all tasks at once, which favours them: in use, those of later tasks "
        "do not exist yet. Test images were used for nothing but these tables. Seconds are those of the cell: a module "
        "or a discriminant that another cell had made before is not counted.\n"
    )
    yield "A star: the method was measured with settings of its own alone, which its table names.\n"
    yield "![accuracy_final of every method on every stream](results/figures/accuracy.svg)\n"
    if any(budget_rows(table).any() for table in tables.values()):
        yield (
            "Accuracy against bytes: `signature.scatter_rank` and `finetune.max_rank` varied, other methods grey; a "
            "ring is the default over more seeds.\n"
        )
        yield "![accuracy_final against the bytes kept of a task](results/figures/budget.svg)\n"
    for stream in sorted(tables, key=_declared_order):
        yield from _stream_section(stream, tables[stream])
    used = {method for table in tables.values() for method in table["method"]}
    yield "### The methods\n"
    yield from markdown(["name", "what it is"], [(f"`{n}`", own.what) for n, own in METHODS.items() if n in used])


def _stream_section(stream: str, table: pd.DataFrame) -> Iterator[str]:
    yield f"### Stream `{stream}`\n"
    if stream in known_streams():
        yield load_stream(stream).spec.description + "\n"
    summary = summarise(table)
    for (train, test), part in summary.groupby(["train", "test"], sort=False):
        caps = [f"{count} {kind} images per task" for kind, count in (("training", train), ("test", test))]
        yield (
            f"At most {' and '.join(caps)}.\n"
            if ALL not in (train, test)
            else f"Images per task: training {train}, test {test}.\n"
        )
        yield from method_table(part)
        yield ""
    for source in table[["command", "machine", "date"]].drop_duplicates().itertuples():
        yield f"- `{source.command}`; {source.machine}; {source.date}"
    yield ""


def _theories(theories: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "## Theory beside practice\n"
    yield (
        "Separation δ: distance of the closest classes of two tasks in units of the pooled spread. `bound`: the "
        "Bhattacharyya union bound on telling the two apart. `measured`: the share of both tasks' test images that "
        "prefer the other. Excess kurtosis is 0 for a Gaussian. Coverage: the share of test images whose own task "
        "stays in question, which needs no Gaussian. A bound below the measured confusion is one that the data break.\n"
    )
    for stream in sorted(theories, key=_declared_order):
        found = theories[stream]
        yield f"### Stream `{stream}`\n"
        yield f"`{found['command']}`; {found['machine']}; {found['date']}; seed 0, declared order.\n"
        yield f"![bound and measured confusion, δ against tasks](results/figures/theory-{stream}.svg)\n"
        yield from _pairs(found)
        yield ""
        yield from _coverage(found["coverage"])
        yield ""


def _pairs(found: Mapping[str, Any], shown: int = 6) -> Iterator[str]:
    """The pairs that are confused most, and the kurtosis of both."""
    tasks, measured = found["tasks"], np.array(found["measured"])
    rows, columns = np.triu_indices(len(tasks), 1)
    broken = sum(found["bound"][j][k] < measured[j, k] for j, k in zip(rows, columns, strict=True))
    yield f"The bound is broken by {broken} of {len(rows)} pairs. The pairs that are confused most:\n"
    worst = np.argsort(-measured[rows, columns], kind="stable")[:shown]
    table = []
    for j, k in zip(rows[worst], columns[worst], strict=True):
        spread = " / ".join(f"{found['kurtosis'][tasks[n]]['median']:.1f}" for n in (j, k))
        bound, error = found["bound"][j][k], percent(measured[j, k])
        table.append([f"{tasks[j]} / {tasks[k]}", f"{found['delta'][j][k]:.1f}", f"{bound:.1e}", f"{error} %", spread])
    yield from markdown(["pair", "δ", "bound", "measured", "excess kurtosis (median)"], table)


def _coverage(rows: list[Mapping[str, Any]]) -> list[str]:
    header = ["promised", "coverage", "worst task", "tasks in question", "unknown"]
    table = [
        [
            f"{percent(row['promised'])} %",
            f"{percent(row['coverage'])} %",
            f"{row['worst_task']}, {percent(row['worst'])} %",
            f"{row['shortlist_size']:.2f}",
            f"{percent(row['unknown_rate'])} %",
        ]
        for row in rows
    ]
    return markdown(header, table)


def _benches(folder: Path) -> Iterator[tuple[str, Path]]:
    """The benches' files, by what was measured, then by where."""
    for name in _TITLES:
        for path in [folder / f"{name}.json", *sorted(folder.glob(f"{name}_*.json"))]:
            if path.exists():
                yield path.stem, path


def _bench(name: str, found: Mapping[str, Any]) -> Iterator[str]:
    """Any bench's JSON: its plain facts as one line, every list of rows as a table."""
    kind, _, machine = name.partition("_")
    yield f"## {_TITLES[kind]}{f' ({machine.upper()})' if machine else ''}\n"
    command = found.get("command", f"intaglio bench {name} --json docs/results/{name}.json")
    plain = {key: value for key, value in found.items() if not isinstance(value, list | dict)}
    facts = "; ".join(f"{key} {value}" for key, value in plain.items() if key != "command")
    yield f"`{command}`; {facts}.\n"
    if name == "inference":
        yield "![Throughput of every engine against the number of tasks](results/figures/cost.svg)\n"
    for key, value in found.items():
        rows = [value] if isinstance(value, dict) else value
        if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
            if key != "rows":
                yield f"{key.replace('_', ' ')}:\n"
            header = list(dict.fromkeys(key for row in rows for key in row if not isinstance(row[key], list)))
            yield from markdown(header, [[_plain(row.get(column)) for column in header] for row in rows])
            yield ""


def _plain(value: Any) -> str:
    if value is None:
        return "-"
    return (f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}") if isinstance(value, float) else str(value)


def _declared_order(stream: str) -> tuple[int, str]:
    preferred = ("shift", "split", "mixed", "long20", "long50", "recurring", "omniglot")
    return (preferred.index(stream) if stream in preferred else len(preferred), stream)
