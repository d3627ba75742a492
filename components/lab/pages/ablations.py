"""ablations.md: every stored row that is not in the index, beside ours with default settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pandas as pd

from components.lab.figures import budget_rows
from components.lab.method_registry import METHODS
from components.lab.pages.index import ABLATIONS, stream_order
from components.lab.tables import markdown, method_table, summarise

_RUN = ["command", "machine", "date", "code"]


def lines(tables: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    """Show, for every stream, the rows with other settings and the parts of ours, then all methods by name."""
    if any(budget_rows(summarise(table)).any() for table in tables.values()):
        yield "![accuracy_final against the bytes kept of a task](figures/budget.svg)\n"
    for stream in sorted(tables, key=stream_order):
        table = tables[stream]
        varied = (table["variant"] != "") | table["method"].str.startswith(ABLATIONS)
        if varied.any():
            yield f"## Stream `{stream}`\n"
            yield from method_table(summarise(table[varied | (table["method"] == "intaglio")]))
            yield ""
            yield from _sources(table[varied])
            yield ""
    used = {method for table in tables.values() for method in table["method"]}
    yield "## The methods\n"
    yield from markdown(["name", "what it is"], [(f"`{n}`", own.what) for n, own in METHODS.items() if n in used])


def _sources(rows: pd.DataFrame) -> Iterator[str]:
    """List what made the rows: each command once, with the rows that it made."""
    for (command, machine, date, code), own in rows.groupby(_RUN, sort=False):
        pairs = own[["method", "variant"]].drop_duplicates().to_dict("records")
        names = [f"`{pair['method']}`" + (f" ({pair['variant']})" if pair["variant"] else "") for pair in pairs]
        yield f"- {', '.join(names)}: `{command}`; {machine}; {date}; code {code}"
