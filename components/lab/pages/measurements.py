"""performance.md and default-run.md: what a bench wrote, as a line of facts and a table for each list of rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from components.lab.tables import markdown

_TITLES = {
    "inference": "Cost of a prediction",
    "retrieval": "Cost of retrieval",
    "train": "Cost of training",
    "serve": "The server under load",
}
_FIRST_FACTS = ("command", "machine", "date", "code")
_NAMES = ("method", "engine", "way", "task", "metric", "score")  # columns that say what a row is about
Row = Mapping[str, Any]


def lines(benches: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Show every bench: predictions first, then training, the server, and what else was measured."""
    for name in sorted(benches, key=_order):
        found = benches[name]
        yield f"## {found.get('title') or _TITLES.get(name, name)}\n"
        if name == "inference":
            yield "![Throughput of every engine against the number of tasks](figures/cost.svg)\n"
        yield from _tables(found)
        yield f"{facts(found)}\n"


def facts(found: Mapping[str, Any]) -> str:
    """Say in one line what made a bench's rows: command, machine, date, code, then its other facts."""
    plain = {key: value for key, value in found.items() if not _is_table(value) and key != "title"}
    ordered = {key: plain.pop(key) for key in _FIRST_FACTS if key in plain} | plain
    return "; ".join(_fact(key, value) for key, value in ordered.items()) + "."


def row_table(rows: Sequence[Row]) -> list[str]:
    """Return rows as a Markdown table: names first, then whole numbers; lists within a row are left out."""
    columns = dict.fromkeys(key for row in rows for key in row if not isinstance(row[key], list))
    header = sorted(columns, key=lambda column: (column not in _NAMES, not _whole([row.get(column) for row in rows])))
    return markdown(header, [[_text(row.get(column)) for column in header] for row in rows])


def _whole(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int) for value in values)


def _tables(found: Mapping[str, Any]) -> Iterator[str]:
    for key, value in sorted(found.items(), key=lambda item: item[0] != "rows"):
        if _is_table(value):
            if key != "rows":
                yield f"{key.replace('_', ' ')}:\n"
            yield from row_table([value] if isinstance(value, dict) else value)
            yield ""


def _is_table(value: Any) -> bool:
    """Tell a list of rows, or a row of many figures, from a fact."""
    if isinstance(value, dict):
        return any(isinstance(own, dict | list) for own in value.values())
    return isinstance(value, list)


def _fact(key: str, value: Any) -> str:
    if key == "command":
        return f"`{value}`"
    return str(value) if key in ("machine", "date") else f"{key.replace('_', ' ')} {_text(value)}"


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_text(own)}" for key, own in value.items())
    return (f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}") if isinstance(value, float) else str(value)


def _order(name: str) -> tuple[int, str]:
    kinds = list(_TITLES)
    kind = name.partition("_")[0]
    return (kinds.index(kind) if kind in kinds else len(kinds), name)
