"""The short form of tests/crash/random_kills.py; the long one is `make crash`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.crash.conftest import Server, World
from tests.crash.random_kills import Template, play, summary

RUNS = 5


@pytest.mark.timeout(600)
def test_killed_anywhere_the_end_is_the_same(server: Server, clean_template: World, tmp_path: Path) -> None:
    template = Template.of(clean_template.root, clean_template.seconds)
    results = [
        play(server, template, tmp_path / f"run-{number}", random.Random(f"short/{number}"), flow=False)
        for number in range(RUNS)
    ]
    assert [result for result in results if result.problems] == []
    assert sum(result.kills for result in results) >= RUNS, summary(results)
