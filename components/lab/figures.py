"""Figures of docs/results as small SVG files, the same bytes for the same results."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from components.lab.tables import ALL

# Text stays text, and neither date nor random identifiers get in: a figure changes only when its figures do.
_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "intaglio", "font.size": 9, "axes.spines.top": False}
_STYLE |= {"axes.spines.right": False, "figure.constrained_layout.use": True}


def accuracy_figure(summaries: Mapping[str, pd.DataFrame]) -> bytes:
    """Draw accuracy_final of every method ± one standard deviation, a panel per stream; uncapped rows, if any.

    Of a method with several variants, the plainest; a star marks one with settings of its own. Streams on which a
    single method ran have nothing to compare, and no panel unless there are no others.
    """
    summaries = {name: own for name, own in summaries.items() if own["method"].nunique() > 1} or summaries
    with mpl.rc_context(_STYLE):
        tallest = max(table["method"].nunique() for table in summaries.values())
        figure = Figure(figsize=(3.4 * min(3, len(summaries)), 0.19 * tallest * _rows(len(summaries)) + 1))
        for number, (stream, table) in enumerate(summaries.items(), start=1):
            axes = figure.add_subplot(_rows(len(summaries)), min(3, len(summaries)), number)
            whole = table[table["train"] == ALL]
            plainest = (whole if len(whole) else table).sort_values("variant", key=lambda own: own.str.len())
            ordered = plainest.drop_duplicates("method").sort_values("accuracy_final")
            names = [f"{row.method}{' *' if row.variant else ''}" for row in ordered.itertuples()]
            spread = 100 * ordered["accuracy_final_std"].fillna(0)
            axes.errorbar(100 * ordered["accuracy_final"], range(len(ordered)), xerr=spread, fmt="o", ms=3, lw=1)
            axes.set_yticks(range(len(ordered)), names, fontsize=7)
            axes.set_title(stream)
            axes.set_xlabel("accuracy_final, %")
            axes.grid(axis="x", alpha=0.3)
        return _svg(figure)


def budget_figure(summaries: Mapping[str, pd.DataFrame]) -> bytes:
    """Draw accuracy_final against the bytes kept of a task: `budget_rows` joined by a line, other methods grey.

    A ring: the default, where it is the mean of other seeds and orders than the line.
    A panel for each stream that has such rows.
    """
    with mpl.rc_context(_STYLE):
        tried = {name: table for name, table in summaries.items() if budget_rows(table).any()}
        figure = Figure(figsize=(3.4 * len(tried), 3))
        for number, (stream, table) in enumerate(tried.items(), start=1):
            axes = figure.add_subplot(1, len(tried), number)
            ours = budget_rows(table)
            plain = (table["method"] == "intaglio") & (table["variant"] == "")
            # Means over other seeds and orders are not comparable with the line's points.
            alike = plain & table["experiments"].isin(table[ours]["experiments"])
            own = table[ours | alike].sort_values("bytes_per_task")
            rest = table[~ours & ~plain & (table["variant"] == "")]
            other = table[plain & ~alike]
            axes.plot(other["bytes_per_task"] / 2**20, 100 * other["accuracy_final"], "o", ms=4, mfc="none", color="C0")
            axes.plot(rest["bytes_per_task"] / 2**20, 100 * rest["accuracy_final"], "o", ms=3, color="0.6")
            axes.plot(own["bytes_per_task"] / 2**20, 100 * own["accuracy_final"], "o-", ms=3, lw=1)
            floor = 100 * own["accuracy_final"].min()
            axes.set_ylim(floor - 8, 100 * max(own["accuracy_final"].max(), rest["accuracy_final"].max()) + 1)
            axes.set_title(stream)
            axes.set_xlabel("MB kept per task")
            axes.set_ylabel("accuracy_final, %")
            axes.grid(alpha=0.3)
        return _svg(figure)


def budget_rows(table: pd.DataFrame) -> pd.Series[bool]:
    """Tell which rows of a summary are ours with other numbers of directions stored."""
    named = table["variant"].str.contains("signature.scatter_rank|finetune.max_rank", regex=True)
    return named & (table["method"] == "intaglio")


def theory_figure(theory: Mapping[str, Any]) -> bytes:
    """Draw the confusion of every pair, bound and measured, against its separation; and separation against tasks."""
    delta, bound, gaussian, measured = (
        np.array(theory[key])[np.triu_indices(len(theory["tasks"]), 1)]
        for key in ("delta", "bound", "gaussian", "measured")
    )
    order = np.argsort(delta)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8, 3))
        left, right = figure.subplots(1, 2)
        left.semilogy(delta[order], np.maximum(bound[order], 1e-12), ".", label="bound")
        left.semilogy(delta[order], np.maximum(gaussian[order], 1e-12), "-", lw=1, label="its closest classes: Φ(-δ/2)")
        left.semilogy(delta, np.maximum(measured, 1e-12), "x", ms=4, label="measured (0 at the bottom)")
        left.set_xlabel("separation δ of a pair of tasks")
        left.set_ylabel("confusion of the pair")
        left.legend(fontsize=7)
        _against_tasks(right, theory["delta_by_tasks"])
        return _svg(figure)


def cost_figure(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Draw the throughput of every engine of `bench inference` against the number of tasks."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.5, 3), layout="constrained")
        axes = figure.subplots()
        for engine in dict.fromkeys(row["engine"] for row in rows):
            own = sorted((row["tasks"], row["ratio_to_backbone"]) for row in rows if row["engine"] == engine)
            axes.loglog(*zip(*own, strict=True), "o-", ms=3, lw=1, label=engine)
        axes.set_xlabel("tasks T")
        axes.set_ylabel("images/s, of the frozen backbone's")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        return _svg(figure)


def weeks_figure(found: Mapping[str, Any]) -> bytes:
    """Draw the seconds of each week by its event, and below them the accuracy, beside that of the rivals."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7, 5))
        above, below = figure.subplots(2, 1, sharex=True)
        weeks = found["weeks"]
        for event in dict.fromkeys(row["event"] for row in weeks):
            own = [(row["week"], row["seconds"]) for row in weeks if row["event"] == event]
            above.plot(*zip(*own, strict=True), "o", ms=3, label=event)
        above.set_ylim(bottom=0)
        above.set_ylabel("seconds")
        number = [row["week"] for row in weeks]
        for key, style in (("accuracy", "-"), ("label_accuracy", ":")):
            below.plot(number, [100 * row[key] for row in weeks], style, lw=1, color="C0", label=key)
        measured = [row for row in found["rivals"] if row["accuracy"] is not None]
        for rival in dict.fromkeys(row["rival"] for row in measured):
            own = [(row["week"], 100 * row["accuracy"]) for row in measured if row["rival"] == rival]
            below.plot(*zip(*own, strict=True), "s--", ms=3, lw=0.6, label=rival)
        below.set_xlabel("week")
        below.set_ylabel("accuracy, %")
        for axes in (above, below):
            axes.grid(alpha=0.3)
            axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
        return _svg(figure)


def _against_tasks(axes: Any, rows: Sequence[Mapping[str, float]]) -> None:
    tasks = [row["tasks"] for row in rows]
    for key, style in (("smallest", "-"), ("median", "--")):
        axes.plot(tasks, [row[key] for row in rows], style, lw=1, color="C0", label=f"{key} δ")
    axes.set_xlabel("tasks so far")
    axes.set_ylabel("separation δ", color="C0")
    other = axes.twinx()
    other.plot(tasks, [100 * row["retrieval_accuracy"] for row in rows], lw=1, color="C1")
    other.set_ylabel("retrieval_accuracy, %", color="C1")
    axes.legend(fontsize=7)


def _rows(panels: int) -> int:
    return -(-panels // 3)


def _svg(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
