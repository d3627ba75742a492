"""The short form of tests/crash/random_kills.py: eight runs."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.crash.conftest import Server, World
from tests.crash.random_kills import Template, play

RUNS = 8


@pytest.fixture(scope="module")
def template(clean_template: World) -> Template:
    return Template.of(clean_template.root, clean_template.seconds)


@pytest.mark.parametrize("number", range(RUNS))
def test_whatever_is_killed_the_end_is_the_same(
    server: Server, template: Template, tmp_path: Path, number: int
) -> None:
    result = play(server, template, tmp_path / "project", random.Random(f"short/{number}"), flow=False)
    assert result.problems == [], result
    assert result.kills > 0, result
