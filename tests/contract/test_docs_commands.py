"""The commands and settings that pages name exist, also where running them would take hours or a cluster."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from components.config import Config
from flows.cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("[th]*/*.md"))]
BLOCK = re.compile(r"^```(?:bash|text|ini)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ASSIGNMENT = re.compile(r"[A-Z_]+=.*")
BEFORE = {"|", "&&", "until", "do", "$"}  # words after which a command begins
AFTER = {"|", "&&", ">", ">>", "2>&1"}  # and words that end it
SECTIONS = "|".join(Config.model_fields)
SETTING = re.compile(rf"(?:`|--set |-S '?)({SECTIONS})\.(\w+)(?=[`=:])")


def commands(text: str) -> Iterator[str]:
    """Every `intaglio ...` in the blocks of a page."""
    for block in BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            if "intaglio " in line:
                yield from _of_line(line)


def _of_line(line: str) -> Iterator[str]:
    try:
        words = shlex.split(line, comments=True)
    except ValueError:  # output, or a part of a script
        return
    for position, word in enumerate(words):
        before = words[position - 1] if position else "$"
        if word.rpartition("/")[2] == "intaglio" and (before in BEFORE or ASSIGNMENT.fullmatch(before)):
            end = next((at for at, found in enumerate(words) if at > position and found in AFTER), len(words))
            last = [found.removesuffix(";") for found in words[position + 1 : end]]
            yield shlex.join(last[: last.index("do")] if "do" in last else last)


FOUND = sorted({(page.relative_to(ROOT).as_posix(), line) for page in PAGES for line in commands(page.read_text())})


def test_commands_were_found() -> None:
    assert len(FOUND) > 50


@pytest.mark.parametrize(("page", "line"), FOUND)
def test_a_command_is_understood(page: str, line: str) -> None:
    command, words = typer.main.get_command(app), shlex.split(line)
    while hasattr(command, "commands"):
        assert words[0] in command.commands, f"{page}: there is no command {words[0]!r}"
        command, words = command.commands[words[0]], words[1:]
    command.make_context("intaglio", list(words))  # raises on an unknown option, a wrong type or a missing argument


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_setting_exists(page: Path) -> None:
    def known(section: str, key: str) -> bool:
        return key in getattr(Config.model_fields[section].annotation, "model_fields", {})

    named = SETTING.findall(page.read_text())
    assert not [f"{section}.{key}" for section, key in named if not known(section, key)]
