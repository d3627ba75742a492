"""index.md: today's figures, one table for the default run and one for each stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd

from components.lab.pages.measurements import facts, row_table
from components.lab.stream import known_streams, load_stream
from components.lab.tables import method_table, summarise

_ORDER = ("shift", "split", "mixed", "long20", "long50", "recurring", "omniglot", "hard")
_LINKS = (
    "More: [the default run](default-run.md), [what things cost](performance.md), [ablations](ablations.md) and "
    "[the methods](ablations.md#the-methods), [theory beside practice](theory.md), [history](history.md)."
)
_STREAM_LINK = "What a week costs after many: [a long stream](stream.md)."
ABLATIONS = ("intaglio_", "signature_")  # ablations of ours, on a page of their own


def lines(
    tables: Mapping[str, pd.DataFrame], default_run: Mapping[str, Any] | None, long_stream: bool = False
) -> Iterator[str]:
    """Compare ours with its rivals on the default run and on every stream, with default settings.

    Args:
        tables: the rows of each stream.
        default_run: its figures, if stored.
        long_stream: whether there is a page of a long stream.
    """
    yield f"{_LINKS} {_STREAM_LINK if long_stream else ''}".rstrip() + "\n"
    if default_run:
        yield "## The default run\n"
        yield from row_table(default_run["methods"])
        yield f"\n{facts(default_run)}\n"
    if tables:
        yield "![accuracy_final of every method on every stream](figures/accuracy.svg)\n"
    for stream in sorted(tables, key=stream_order):
        table = tables[stream]
        own = table[(table["variant"] == "") & ~table["method"].str.startswith(ABLATIONS)]
        if len(own):
            yield f"## Stream `{stream}`: {_description(stream)}\n"
            yield from method_table(summarise(own))
            yield f"\n{source(own)}\n"


def stream_order(stream: str) -> tuple[int, str]:
    """Order streams as pages show them, unknown ones last."""
    return (_ORDER.index(stream) if stream in _ORDER else len(_ORDER), stream)


def source(rows: pd.DataFrame) -> str:
    """Say in one line what makes these rows of one stream: command, machine, date and code."""
    methods = list(dict.fromkeys(summarise(rows)["method"]))
    words = [f"--stream {rows['stream'].iloc[0]} --method {','.join(methods)}"]
    words += [f"--{name}s {rows[name].max() + 1}" for name in ("seed", "order")]
    for name in ("train", "test"):
        if rows[name].notna().any():
            words.append(f"--{name}-images {int(rows[name].max())}")
    machines = [
        f"{machine} ({', '.join(f'`{method}`' for method in dict.fromkeys(own['method']))})"
        for machine, own in rows.groupby("machine", sort=True)
    ]
    codes = ", ".join(sorted(set(rows["code"])))
    return f"`intaglio bench quality {' '.join(words)}`; {'; '.join(machines)}; {rows['date'].max()}; code {codes}."


def _description(stream: str) -> str:
    text = load_stream(stream).spec.description if stream in known_streams() else ""
    return text[:1].lower() + text[1:].rstrip(".")
