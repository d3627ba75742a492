"""The console command: what it prints, where, and with which exit status."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from synthetic import Project

from components.errors import IntaglioError
from flows.cli import app
from flows.cli.app import run_command
from flows.pipeline import flow
from flows.prediction.request import champion_bundle
from flows.registry.mlflow_store import aliases, connect
from tests.flows.registry.test_pyfunc_model import png


@pytest.fixture
def given_server(monkeypatch: pytest.MonkeyPatch, prefect_server: str) -> None:
    """PREFECT_API_URL names the tests' own Prefect server, so that no command starts one."""
    monkeypatch.setenv("PREFECT_API_URL", f"{prefect_server}/api")


@contextmanager
def subprocesses() -> Iterator[list[list[str]]]:
    """The command lines of the processes that this one starts meanwhile."""
    started: list[list[str]] = []
    _LISTENERS.append(started)
    try:
        yield started
    finally:
        _LISTENERS.remove(started)


_LISTENERS: list[list[list[str]]] = []


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "subprocess.Popen":
        for started in _LISTENERS:
            started.append([str(word) for word in arguments[1]])


sys.addaudithook(_listen)


@pytest.mark.usefixtures("given_server")
def test_a_life_with_the_command(
    done: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(done.root / "data")  # any folder inside the project will do
    assert run_command(["status"]) == 0
    assert "nothing published yet" not in capsys.readouterr().out  # the fixture's empty database
    with subprocesses() as started:
        assert run_command(["run"]) == 0
    assert [command[-2:] for command in started if "dvc" in command] == [["status", "--json"]]  # once
    assert "version 1 passed its gates" in capsys.readouterr().out
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")  # where no server answers: no flow from here on
    monkeypatch.chdir(done.root)
    assert run_command(["run"]) == 0
    assert "nothing has changed: every stage is up to date" in capsys.readouterr().out
    assert run_command(["promote"]) == 1
    assert "error: model intaglio: there is no challenger" in capsys.readouterr().err
    assert run_command(["promote", "--version", "1"]) == 0
    assert "version 1 is the champion" in capsys.readouterr().out
    assert run_command(["rollback"]) == 1
    assert "version 1 is the first champion" in capsys.readouterr().err
    assert run_command(["status"]) == 0
    assert "champion, gates passed" in capsys.readouterr().out
    assert champion_bundle(done.root).name == "bundle"
    assert done.executed() == []


@pytest.mark.usefixtures("given_server")
def test_a_blocked_version_its_promotion_by_force_and_the_way_back(
    done: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["run"]) == 0
    done.measure('{"accuracy_final": 0.1}')
    assert run_command(["run"]) == 0
    assert "version 2 did not pass its gates; champion: version 1" in capsys.readouterr().out
    assert aliases(connect(done.root)) == {"champion": "1", "challenger": "2"}
    assert run_command(["run"]) == 0
    assert "nothing has changed" in capsys.readouterr().out
    assert run_command(["promote"]) == 1
    assert "BLOCKED  accuracy_final" in capsys.readouterr().out
    assert run_command(["promote", "--force"]) == 1
    assert "error: --force needs --reason" in capsys.readouterr().err
    assert run_command(["promote", "--force", "--reason", "a trial"]) == 0
    assert "by force" in capsys.readouterr().out
    assert run_command(["rollback"]) == 0
    assert "champion: version 1 again; version 2 was rolled back" in capsys.readouterr().out
    assert run_command(["run"]) == 0
    assert "does not come back by itself; champion: version 1" in capsys.readouterr().out


def test_mistakes_are_lines_on_stderr(fresh: Project, capsys: pytest.CaptureFixture[str]) -> None:
    params = fresh.root / "params.yaml"
    params.write_text(params.read_text().replace("epochs:", "epoch:"))
    assert run_command(["run"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert all(line.startswith("error: ") for line in shown.err.splitlines())
    assert "unknown key" in shown.err


def test_outside_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    for command in (["run"], ["status"], ["rollback"], ["task", "list"], ["predict", "x.png"], ["serve-schedule"]):
        assert run_command(command) == 1
        assert "no dvc.yaml here or in a folder above" in capsys.readouterr().err


def test_wrong_usage_and_help() -> None:
    assert run_command(["run", "--nonsense"]) == 2
    assert run_command(["nonsense"]) == 2
    assert run_command(["predict"]) == 2
    assert run_command(["--help"]) == 0


@pytest.mark.parametrize(
    ("raised", "status"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143), (SystemExit("x"), 1)]
)
def test_interrupts(
    fresh: Project,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raised: BaseException,
    status: int,
) -> None:
    def interrupted(*_: Any) -> None:
        raise raised

    monkeypatch.setattr("flows.pipeline.prepared.preflight", interrupted)
    assert run_command(["run"]) == status
    assert ("interrupted" in capsys.readouterr().err) == (status > 128)


def test_main_ends_the_process_with_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["intaglio", "--help"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as caught:
            app.main()
        assert caught.value.code == 0
        with pytest.raises(SystemExit) as caught:
            signal.raise_signal(signal.SIGTERM)
        assert caught.value.code == 143
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["version"]) == 0
    assert capsys.readouterr().out == f"intaglio {importlib.metadata.version('intaglio')}\n"


def test_own_tasks(fresh: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / "own" / name).mkdir(parents=True)
        (tmp_path / "own" / name / "1.png").write_bytes(png())
    assert run_command(["task", "add", "mine", str(tmp_path / "own")]) == 0
    shown = capsys.readouterr().out
    assert "task mine follows second: 2 classes, 2 images" in shown
    assert "intaglio run" in shown
    assert run_command(["task", "list"]) == 0
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[1:]] == [
        ["1", "first"],
        ["2", "second"],
        ["3", "mine"],
    ]


def test_predict_without_a_champion_or_a_bundle(fresh: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["predict", "x.png"]) == 1
    assert "no champion yet; `intaglio run` promotes one" in capsys.readouterr().err
    (fresh.root / "mlruns" / "mlflow.db").unlink()
    with pytest.raises(IntaglioError, match="no champion yet"):
        champion_bundle(fresh.root)
    assert run_command(["predict", "x.png", "--bundle", "nowhere"]) == 1
    assert "error: nowhere: folder not found" in capsys.readouterr().err


@pytest.mark.usefixtures("given_server")
def test_the_schedule_is_checked_and_served(
    fresh: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served: dict[str, Any] = {}
    monkeypatch.setattr(flow.continual_finetuning, "serve", lambda **options: served.update(options))
    assert run_command(["serve-schedule", "--cron", "now"]) == 1
    assert "error: --cron 'now': not a cron expression" in capsys.readouterr().err
    assert run_command(["serve-schedule"]) == 0
    assert served["cron"] == "0 3 * * *"
    assert served["parameters"] == {"root": str(fresh.root)}
    assert f"pages at {os.environ['PREFECT_API_URL'].removesuffix('/api')}; Ctrl-C" in capsys.readouterr().out
