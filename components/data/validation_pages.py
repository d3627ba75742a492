"""The pages of a validation: what was looked for and found, for people, without anything that a page would load."""

from __future__ import annotations

import html
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from components.data.expectations import Check

_NAMED = 3  # examples in a message
_ROWS = {"path": ("image", "images"), "label": ("class", "classes")}  # what a row is called, by the column naming it
# The pages are cut off from the network, so this is all their style.
_STYLE = """
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 72rem; padding: 1rem; color: #1d2733; }
nav img, nav.navbar .navbar-brand, .sticky, footer { display: none; }
.container { padding-top: 0; }
.ge-section { margin: 0 0 1rem; padding: 0; }
.alert { background: #eef1f5; border-left: 4px solid #6b7a8d; padding: .5rem 1rem; margin: 1rem 0 .5rem; }
h5 { font-size: 1.1rem; margin: 0; } h6 { font-size: 1rem; margin: .5rem 0; }
table { border-collapse: collapse; width: 100%; } th, td { padding: .3rem .6rem; text-align: left; }
tr { border-top: 1px solid #d5dbe3; } .table-responsive, .show-scrollbars { overflow-x: auto; }
.badge { background: #eef1f5; border-radius: 3px; padding: 0 .3em; } .text-success, .met { color: #1a7f37; }
.text-danger, .failed { color: #b3261e; } .text-warning, .warned { color: #9a6700; }
.fa-check-circle::before, .fa-check::before { content: "\\2713"; } .fa-times::before { content: "\\2717"; }
.fa-exclamation-circle::before { content: "!"; } i { font-style: normal; font-weight: bold; }
a[data-toggle=collapse], .collapse { display: none; }
ol.breadcrumb { list-style: none; padding: 0; display: flex; gap: 1rem; }
</style>
"""


@dataclass(frozen=True)
class Outcome:
    """What a check found.

    Attributes:
        check: the check.
        type: the expectation's type, as Great Expectations calls it.
        row: what a row is, by the column that names it: "path" of an image or "label" of a class.
        success: whether the expectation was met.
        unexpected: number of rows that fail it.
        observed: the value that was found, where the expectation is about the whole table.
        examples: up to 20 rows that fail, by name and detail.
    """

    check: Check
    type: str
    row: str
    success: bool
    unexpected: int
    observed: object
    examples: list[str] = field(default_factory=list)


def message(task: str, outcome: Outcome) -> str:
    """Return one line about a check that failed: task, rows, problem, names and remedy."""
    check = outcome.check
    if not outcome.examples:
        return f"{task}: {check.problem} (found: {outcome.observed}); {check.remedy}"
    thing = _ROWS[outcome.row][outcome.unexpected != 1]
    named = ", ".join(outcome.examples[:_NAMED])
    more = f" and {outcome.unexpected - _NAMED} more" if outcome.unexpected > _NAMED else ""
    return f"{task}: {outcome.unexpected} {thing} {check.problem}: {named}{more}; {check.remedy}"


def keep_one_page(docs: Path, name: str) -> None:
    """Keep the one page that Great Expectations built for `name`, without anything that it would load.

    Its pages take styles and scripts from a dozen hosts, and bring megabytes of fonts and logos.
    """
    (built,) = (docs / name / "validations").rglob("*.html")
    page = built.read_text(encoding="utf-8")
    page = re.sub(r"<script\b.*?</script>|<link\b[^>]*>|<style\b.*?</style>|<img\b[^>]*>", "", page, flags=re.DOTALL)
    page = re.sub(r'href="[^"#]*/expectations/[^"]*"', 'href="#"', page)
    page = re.sub(r'href="[^"#]*index\.html"', 'href="index.html"', page)
    page = re.sub(r"<footer\b.*?</footer>", "", page, flags=re.DOTALL)
    page = re.sub(r"\d{8}T\d{6}\.\d+Z|(/ )?2000-01-01T[0-9:]+Z", "", page)
    numbers, known = count(), dict[str, str]()
    page = re.sub(
        r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
        lambda found: known.setdefault(found[0], f"id{next(numbers)}"),
        page,
    )
    (docs / f"{name}.html").write_text(page.replace("</head>", f"{_STYLE}</head>", 1), encoding="utf-8")
    shutil.rmtree(docs / name)


def index_page(task: str, outcomes: Sequence[Outcome]) -> str:
    """Return the page that lists every check of a task and leads to the detailed pages."""
    rows = ["<tr><th></th><th>Looked for</th><th>Found</th><th>Expectation</th><th>Column</th></tr>"]
    for outcome in outcomes:
        status = "met" if outcome.success else "failed" if outcome.check.critical else "warned"
        column = outcome.check.arguments.get("column", "")
        sought = f"{_ROWS[outcome.row][1]} {outcome.check.problem}" if column else outcome.check.problem
        cells = (sought, "" if outcome.success else message(task, outcome), outcome.type, column)
        shown = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        rows.append(f'<tr><td class="{status}">{status}</td>{shown}</tr>')
    title = html.escape(f"Validation of {task}")
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>{_STYLE}</head><body>'
        f'<h1>{title}</h1><p>In detail: <a href="images.html">images</a>, <a href="classes.html">classes</a></p>'
        f'<div class="table-responsive"><table>{"".join(rows)}</table></div></body></html>\n'
    )
