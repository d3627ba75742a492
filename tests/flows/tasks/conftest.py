"""A project of three learned tasks, made once for all tests of the verbs."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic import Project, copy_of, shared_folder

from tests.flows.tasks.stream_project import commit, make_stream_project


@pytest.fixture(scope="session")
def learned_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of the tasks mat, cup and hat after `dvc repro`."""

    def make(root: Path) -> None:
        project = make_stream_project(root, "mat", "cup", "hat")
        project.dvc("repro")
        project.forget()
        commit(root)

    return shared_folder(tmp_path_factory, "learned", make)


@pytest.fixture
def learned(learned_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy of that project; the current folder is its root."""
    project = copy_of(learned_template, tmp_path / "learned")
    monkeypatch.chdir(project.root)
    return project
