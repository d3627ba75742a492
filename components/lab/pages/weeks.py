"""stream.md: what each week of a long stream cost, from what `intaglio bench stream` wrote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from components.lab.pages.measurements import facts, row_table
from components.lab.tables import markdown, percent

_EVENTS = ("add", "update", "retire", "nothing", "upgrade")
_EVERY = 10  # weeks from one row of the table to the next
_MOST = 40  # weeks of which each has a row
Row = Mapping[str, Any]


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Show the ratios, the weeks by kind of event, every tenth week, and the rivals."""
    weeks = found["weeks"]
    yield "![Seconds and accuracy of each week](figures/stream.svg)\n"
    yield from markdown(["ratio", "value"], [[f"`{name}`", _number(value)] for name, value in found["ratios"].items()])
    yield "\nWeeks by what happened; seconds and memory are medians:\n"
    yield from _by_event(weeks)
    shown = [row for row in weeks if len(weeks) <= _MOST or row["week"] % _EVERY == 0 or row is weeks[-1]]
    yield "\nWeeks:\n" if len(shown) == len(weeks) else f"\nEvery {_EVERY}th week, and the last:\n"
    yield from _weeks(shown)
    if found["rivals"]:
        yield "\nThe same stream, learned in other ways:\n"
        yield from row_table(found["rivals"])
    notes = str(found.get("notes", ""))
    yield f"\n{facts({key: value for key, value in found.items() if key not in ('ratios', 'notes')})} {notes}".rstrip()


def _by_event(weeks: Sequence[Row]) -> list[str]:
    table = []
    for event in _EVENTS:
        own = [row for row in weeks if row["event"] == event]
        if own:
            ends = [_number(float(row["seconds"])) for row in (own[0], own[-1])]
            middle = [_number(float(median(row[key] for row in own))) for key in ("seconds", "peak_memory_mb")]
            read = sum(row["images_read"] for row in own)
            table.append([event, str(len(own)), ends[0], middle[0], ends[1], middle[1], str(read)])
    return markdown(["event", "weeks", "first, s", "median, s", "last, s", "memory, MB", "images read"], table)


def _weeks(rows: Sequence[Row]) -> list[str]:
    header = ["week", "event", "seconds", "images read", "MB kept", "memory, MB"]
    figures = ("accuracy", "label_accuracy", "forgetting")
    table = [
        [
            str(row["week"]),
            row["event"],
            _number(float(row["seconds"])),
            str(row["images_read"]),
            f"{row['bytes_kept'] / 1e6:.1f}",
            f"{row['peak_memory_mb']:.0f}",
            *("-" if row[key] is None else percent(row[key]) for key in figures),
        ]
        for row in rows
    ]
    return markdown([*header, *(f"{key}, %" for key in figures)], table)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value < 10 else f"{value:.0f}"
