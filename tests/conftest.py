"""Fixtures for all tests: quiet tools, and projects to run the orchestration on."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from synthetic import Project, copy_of, make_project

from flows.settings import quiet_environment

# Before anything imports Prefect, MLflow or matplotlib, which read the environment once.
_HOME = tempfile.TemporaryDirectory(prefix="intaglio-tests-")
os.environ.update(quiet_environment(Path(_HOME.name)))

settings.register_profile("patient", deadline=None)  # how long an example takes says how busy the machine is
settings.load_profile("patient")


@pytest.fixture(scope="session")
def fresh_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of two tasks in which nothing has run, and an empty tracking database."""
    from flows.registry.mlflow_store import connect

    root = make_project(tmp_path_factory.mktemp("fresh")).root
    connect(root).search_experiments()  # the migrations of a new database take seconds: once per session
    return root


@pytest.fixture(scope="session")
def done_template(fresh_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same project after `dvc repro`."""
    project = copy_of(fresh_template, tmp_path_factory.mktemp("done") / "project")
    project.dvc("repro")
    project.forget()
    return project.root


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


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """One Prefect server with a database of its own for all tests that run the flow."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield
