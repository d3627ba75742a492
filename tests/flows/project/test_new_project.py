"""`intaglio init`: a new project, what it refuses, a kill half-way, and the way to its first task."""

from __future__ import annotations

import os
import subprocess
import tomllib
from pathlib import Path

import pytest
from synthetic import REPOSITORY, run

from components.errors import IntaglioError
from components.params import load_config
from flows.project import new_project, template_files
from flows.project.new_project import DVC_CONFIG, init_project
from flows.project.template_files import PACKAGED, new_params, template_text
from flows.settings import find_root


def test_an_empty_stream_leads_to_the_first_task(tmp_path: Path) -> None:
    made = init_project(tmp_path / "a project")
    root = tmp_path / "a project"
    assert find_root(root) == root
    assert {entry.name for entry in root.iterdir()} == {
        *(path.partition("/")[0] for path in PACKAGED),
        ".git",
        ".dvc",
    }
    for path in PACKAGED:
        if path != "params.yaml":
            assert (root / path).read_bytes() == (REPOSITORY / path).read_bytes()
    assert "`intaglio task add NAME FOLDER` makes a folder of images the first task" in made.lines[-1]
    config = load_config(root / "params.yaml", empty=True)
    assert (config.tasks, config.fetch.tasks) == ((), ())
    with pytest.raises(IntaglioError, match=r"there is no task yet; `intaglio task add NAME FOLDER`"):
        load_config(root / "params.yaml")
    run(["git", "add", "--all"], root)  # what is to be kept can be kept
    assert ".intaglio" in (root / ".gitignore").read_text()


def test_the_default_stream_is_that_of_the_package(tmp_path: Path) -> None:
    made = init_project(tmp_path / "p", default_stream=True)
    assert (made.root / "params.yaml").read_bytes() == (REPOSITORY / "params.yaml").read_bytes()
    assert "`intaglio run` fetches the default stream" in made.lines[-1]


def test_the_settings_and_comments_of_an_empty_stream_are_those_of_the_package() -> None:
    comment = "# The first task, whose module is a second view in h_0; `base`: the frozen network alone"
    lines, new = template_text("params.yaml").splitlines(), new_params(False).splitlines()
    assert [line for line in new if line not in lines] == [
        "  tasks: []",
        f"  shared: first              {comment}",
        "  tasks: {}",
    ]


def test_an_empty_repository_is_used_and_one_around_as_well(tmp_path: Path) -> None:
    run(["git", "init", "-q"], tmp_path)
    inner = init_project(tmp_path / "inner")
    assert not inner.own_repository
    assert not (inner.root / ".git").exists()
    own = tmp_path / "own"
    own.mkdir()
    run(["git", "init", "-q"], own)
    assert init_project(own).own_repository


def test_what_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "holiday.jpg").touch()
    (tmp_path / "full" / ".gitignore").write_text("my own\n")
    (tmp_path / "file").touch()
    with pytest.raises(
        IntaglioError, match=r"full: is not empty \(\.gitignore, holiday\.jpg\); name a new or an empty"
    ):
        init_project(tmp_path / "full")
    assert sorted(entry.name for entry in (tmp_path / "full").iterdir()) == [".gitignore", "holiday.jpg"]
    with pytest.raises(IntaglioError, match="is a file"):
        init_project(tmp_path / "file")
    init_project(tmp_path / "p")
    with pytest.raises(IntaglioError, match=r"is a project already; `intaglio init --upgrade .*p` brings"):
        init_project(tmp_path / "p")
    with pytest.raises(IntaglioError, match="is within the project"):
        init_project(tmp_path / "p" / "below")


class Killed(BaseException):
    """Stands for a SIGKILL between two steps."""


STEPS = len(PACKAGED) + 3  # the files, git init, dvc init, and DVC's settings


@pytest.mark.parametrize("step", range(STEPS))
def test_killed_half_way_the_next_call_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    count = [0]

    def after_some(name: str) -> None:
        genuine = getattr(new_project, name)

        def killed(*arguments: object) -> object:
            if count[0] == step:
                if name == "_run" and "dvc" in arguments[0]:  # type: ignore[operator]
                    (tmp_path / "p" / ".dvc" / "tmp").mkdir(parents=True)  # a part of what it makes
                raise Killed
            count[0] += 1
            return genuine(*arguments)

        patch.setattr(new_project, name, killed)

    with monkeypatch.context() as patch:
        after_some("write_text")
        after_some("_run")
        with pytest.raises(Killed):
            init_project(tmp_path / "p", default_stream=True)
    assert not (tmp_path / "p" / "dvc.yaml").exists()
    (tmp_path / "p" / ".params.yaml.abcd1234").touch()  # as a killed write leaves it
    root = init_project(tmp_path / "p").root  # another stream is no obstacle either
    assert load_config(root / "params.yaml", empty=True).tasks == ()
    assert (root / ".dvc" / "config").read_text() == DVC_CONFIG
    assert subprocess.run(["git", "status"], cwd=root, capture_output=True, check=False).returncode == 0


def test_the_files_of_a_killed_call_are_known_by_their_content(tmp_path: Path) -> None:
    root = tmp_path / "p"
    (root / ".dvc" / "cache" / "files").mkdir(parents=True)
    (root / "mlruns").mkdir()
    (root / "mlruns" / "mlflow.db").touch()
    with pytest.raises(IntaglioError, match=r"\(\.dvc/cache, mlruns/mlflow\.db\)"):
        init_project(root)


def test_a_failing_tool_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(IntaglioError, match="git: not found"):
        init_project(tmp_path / "p")
    (tmp_path / "git").write_text("#!/bin/sh\necho 'no space left' >&2\nexit 128\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin{os.pathsep}/usr/bin")
    with pytest.raises(IntaglioError, match=r"`git init` failed: no space left; correct that and run"):
        init_project(tmp_path / "p")


def test_the_wheel_carries_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert build["force-include"] == {path: f"flows/project/template/{name}" for path, name in PACKAGED.items()}
    assert (REPOSITORY / ".dvc" / "config").read_text() == DVC_CONFIG
    # As it is installed: beside the module, and nothing around it.
    installed = tmp_path / "site" / "flows" / "project"
    (installed / "template").mkdir(parents=True)
    (installed / "template" / "gitignore").write_text("installed\n")
    monkeypatch.setattr(template_files, "__file__", str(installed / "template_files.py"))
    assert template_text(".gitignore") == "installed\n"
    with pytest.raises(IntaglioError, match=r"the installation lacks dvc\.yaml"):
        template_text("dvc.yaml")


def test_a_clone_with_tasks_of_its_own_has_no_default_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = template_text("params.yaml").replace("  tasks:\n", "  tasks:\n    mine: {folder: /x, previous: emoji}\n")
    (tmp_path / "params.yaml").write_text(changed)
    monkeypatch.setattr(template_files, "template_path", lambda name: tmp_path / name)
    with pytest.raises(IntaglioError, match="has other tasks than the default stream"):
        new_params(True)
    assert "mine" not in new_params(False)
