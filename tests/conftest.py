"""Fixtures for all tests: quiet tools, and projects to run the orchestration on."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from prefect_servers import copy_database, make_database, server_in
from synthetic import Project, copy_of, make_project, shared_folder

from flows.settings import quiet_environment

# Before anything imports Prefect, MLflow or matplotlib, which read the environment once.
_HOME = tempfile.TemporaryDirectory(prefix="intaglio-tests-")
os.environ.update(quiet_environment(Path(_HOME.name)))

settings.register_profile("patient", deadline=None)  # how long an example takes says how busy the machine is
settings.load_profile("patient")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the recorded results of stages be written anew, after a revision was raised."""
    parser.addoption("--rewrite-golden", action="store_true", help="write tests/golden/revisions.json anew")


SLOWEST = ("system", "crash", "flows")  # folders whose files take minutes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: with one of them last, all workers but one would wait for it."""
    folders = [*SLOWEST, ""]
    items.sort(key=lambda item: next(i for i, name in enumerate(folders) if name in ("", item.path.parts[_DEPTH])))


_DEPTH = len(Path(__file__).parent.parts)


@pytest.fixture(scope="session")
def fresh_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of two tasks in which nothing has run, and an empty tracking database."""
    from flows.registry.mlflow_store import connect

    def make(root: Path) -> None:
        make_project(root)
        connect(root).search_experiments()  # the migrations of a new database take seconds

    return shared_folder(tmp_path_factory, "fresh", make)


@pytest.fixture(scope="session")
def done_template(fresh_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same project after `dvc repro`."""

    def make(root: Path) -> None:
        project = copy_of(fresh_template, root)
        project.dvc("repro")
        project.forget()

    return shared_folder(tmp_path_factory, "done", make)


@pytest.fixture(scope="session")
def prefect_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Prefect server's empty database: its migrations take ten seconds."""
    return shared_folder(tmp_path_factory, "prefect", make_database)


@pytest.fixture(scope="session")
def prefect_server(prefect_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one Prefect server for all tests of this process that run the flow."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    root = tmp_path_factory.mktemp("prefect")
    copy_database(prefect_template, root)
    server = server_in(root)  # it stays to the end of the process: Prefect sends its last lines of log then
    with temporary_settings({PREFECT_API_URL: f"{server.address}/api"}):
        yield server.address


@pytest.fixture
def fresh(fresh_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project in which nothing has run; the current folder is its root."""
    project = copy_of(fresh_template, tmp_path / "fresh")
    monkeypatch.chdir(project.root)
    return project


@pytest.fixture
def done(done_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project whose stages are all up to date and of which nothing is published; the current folder is its root."""
    project = copy_of(done_template, tmp_path / "done")
    monkeypatch.chdir(project.root)
    return project
