"""No dead link in the pages, none that cannot be reached, and no path of the code that does not exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
START = ROOT / "README.md"
NOTES = set((ROOT / "docs/results/notes").glob("*.md"))  # parts of the pages that `intaglio bench report` writes
PAGES = sorted({START, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")} - NOTES)
HISTORY = {page for page in PAGES if "history" in page.relative_to(ROOT).as_posix()}  # files as they were called then
FENCE = re.compile(r"^(```+).*?^\1$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
CODE_PATH = re.compile(r"`((?:components|flows|tests)/[\w./-]+)`")


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text())


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """Where the relative links of a page lead: file, and heading or nothing."""
    for target in LINK.findall(prose(page)):
        if "://" not in target and not target.startswith("mailto:"):
            path, _, heading = target.partition("#")
            yield (page.parent / path).resolve() if path else page, heading


def anchors(page: Path) -> set[str]:
    """The names under which GitHub finds the headings of a page."""
    found: set[str] = set()
    for heading in HEADING.findall(prose(page)):
        name = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        repeats = len([other for other in found if re.fullmatch(rf"{re.escape(name)}(-\d+)?", other)])
        found.add(f"{name}-{repeats}" if repeats else name)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_is_dead(page: Path) -> None:
    dead = [
        f"{target.relative_to(ROOT)}#{heading}"
        for target, heading in links(page)
        if not target.exists() or (heading and heading not in anchors(target))
    ]
    assert not dead


def test_every_page_is_reached_from_the_readme() -> None:
    reached, waiting = set[Path](), [START]
    while waiting:
        page = waiting.pop()
        if page not in reached:
            reached.add(page)
            waiting += [target for target, _ in links(page) if target.suffix == ".md" and target.is_file()]
    assert not {str(page.relative_to(ROOT)) for page in set(PAGES) - reached - {ROOT / "CHANGELOG.md"}}


@pytest.mark.parametrize("page", sorted(set(PAGES) - HISTORY), ids=lambda page: str(page.relative_to(ROOT)))
def test_a_path_of_the_code_exists(page: Path) -> None:
    assert not [path for path in CODE_PATH.findall(prose(page)) if not (ROOT / path).exists()]
