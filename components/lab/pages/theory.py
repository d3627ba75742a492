"""theory.md: separation, bound and coverage of every stream, beside what its test images show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from components.lab.pages.index import stream_order
from components.lab.pages.measurements import facts
from components.lab.tables import markdown, percent

_SHOWN = 6  # pairs of tasks


def lines(theories: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Show, for every stream, the pairs that are confused most, and the coverage of the shortlist."""
    for stream in sorted(theories, key=stream_order):
        found = theories[stream]
        yield f"## Stream `{stream}`\n"
        yield f"![bound and measured confusion, δ against tasks](figures/theory-{stream}.svg)\n"
        yield from _pairs(found)
        yield ""
        yield from _coverage(found["coverage"])
        yield f"\n{facts({key: found[key] for key in ('command', 'machine', 'date', 'code') if key in found})}\n"


def _pairs(found: Mapping[str, Any]) -> Iterator[str]:
    """Tabulate the pairs that are confused most, with the kurtosis of both tasks."""
    tasks, bound, measured = found["tasks"], np.array(found["bound"]), np.array(found["measured"])
    pairs = np.triu_indices(len(tasks), 1)
    broken = int((bound[pairs] < measured[pairs]).sum())
    yield f"The bound is below the measured confusion for {broken} of {len(pairs[0])} pairs. The most confused pairs:\n"
    table = []
    for place in np.argsort(-measured[pairs], kind="stable")[:_SHOWN]:
        j, k = pairs[0][place], pairs[1][place]
        spread = " / ".join(f"{found['kurtosis'][tasks[n]]['median']:.1f}" for n in (j, k))
        error = f"{percent(measured[j, k])} %"
        table.append([f"{tasks[j]} / {tasks[k]}", f"{found['delta'][j][k]:.1f}", f"{bound[j, k]:.1e}", error, spread])
    yield from markdown(["pair", "δ", "bound", "measured", "excess kurtosis (median)"], table)


def _coverage(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    header = ["promised", "coverage", "worst task", "tasks in the shortlist", "unknown"]
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
