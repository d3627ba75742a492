"""Rows of experiments as tables: mean and spread over seeds and orders."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

METRICS = ("accuracy_final", "accuracy_incremental", "forgetting", "retrieval_accuracy", "task_aware_accuracy")
ALL = "all"  # images of a task: no cap
GROUP = ["stream", "method", "variant", "train", "test"]


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Summarise experiments: one row per method, variant and caps, best first.

    Returns:
        Columns GROUP; the mean and `_std` (NaN for one experiment) of each of METRICS; bytes_per_task,
        learning_seconds; and `experiments`, their number.
    """
    frame = rows.copy()
    for cap in ("train", "test"):
        frame[cap] = [ALL if pd.isna(count) else str(int(count)) for count in frame[cap]]
    grouped = frame.groupby(GROUP, sort=False)
    table = grouped[[*METRICS, "bytes_per_task", "learning_seconds"]].mean()
    for metric in METRICS:
        table[f"{metric}_std"] = grouped[metric].std()
    table["experiments"] = grouped.size()
    return table.reset_index().sort_values(["train", "test", "accuracy_final"], ascending=[True, True, False])


def markdown(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]


def percent(mean: Any, std: Any = None) -> str:
    """Format a share as a percentage, with its spread where there is one; "-" where there is nothing to measure."""
    if mean is None or math.isnan(mean):
        return "-"
    spread = "" if std is None or math.isnan(std) else f" ± {100 * std:.1f}"
    return f"{100 * mean:.1f}{spread}"


def size(count: float) -> str:
    """Format a number of bytes in the unit that fits."""
    return f"{count / 2**20:.2f} MB" if count >= 2**17 else f"{count / 2**10:.0f} KB"


def method_table(summary: pd.DataFrame) -> list[str]:
    """Return the comparison of one stream, as Markdown."""
    header = ["method", *METRICS, "kept per task", "learning, s", "experiments"]
    rows = []
    for row in summary.to_dict("records"):
        name = f"`{row['method']}`" + (f" ({row['variant']})" if row["variant"] else "")
        name = f"**{name}**" if name == "`intaglio`" else name
        metrics = [percent(row[metric], row[f"{metric}_std"]) for metric in METRICS]
        rows.append([name, *metrics, size(row["bytes_per_task"]), f"{row['learning_seconds']:.1f}", row["experiments"]])
    return markdown(header, rows)


def summary_lines(rows: pd.DataFrame) -> list[str]:
    """Return one line for each method, for a terminal."""
    lines = []
    for row in summarise(rows).to_dict("records"):
        figures = ", ".join(f"{metric} {percent(row[metric], row[f'{metric}_std'])}" for metric in METRICS)
        name = f"{row['stream']} {row['method']} {row['variant']}".strip()
        lines.append(f"{name}: {figures} (experiments: {row['experiments']})")
    return lines
