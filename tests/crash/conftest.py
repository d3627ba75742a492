"""One clean run of the tiny project for all crash tests, and the server that runs stages in children with faults."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from synthetic import shared_folder

from tests.crash.server import KILLED, Server, start_server
from tests.crash.world import artefacts, make_project

__all__ = ["KILLED", "Server", "World"]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with start_server(tmp_path_factory.mktemp("server") / "log") as started:
        yield started


@dataclass(frozen=True)
class World:
    """A project after a clean run of so many seconds, and the sha256 of every file in it."""

    root: Path
    clean: dict[str, str] = field(repr=False)
    seconds: float


@pytest.fixture(scope="session")
def clean_template(server: Server, tmp_path_factory: pytest.TempPathFactory) -> World:
    def make(folder: Path) -> None:
        make_project(folder / "project")
        begun = time.monotonic()
        assert server.dvc(folder / "project", "repro") == 0, server.printed()
        (folder / "seconds").write_text(str(time.monotonic() - begun))

    folder = shared_folder(tmp_path_factory, "clean", make)
    root = folder / "project"
    return World(root, artefacts(root), float((folder / "seconds").read_text()))


@pytest.fixture
def world(clean_template: World, tmp_path: Path) -> World:
    """A copy of the project that the test may break."""
    shutil.copytree(clean_template.root, tmp_path / "project", symlinks=True)
    return World(tmp_path / "project", clean_template.clean, clean_template.seconds)
