"""`intaglio doctor`: every check in good and in bad condition."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from synthetic import Project, run

from components.params import load_config
from flows.cli.app import run_command
from flows.pipeline.lock import run_lock
from flows.project import machine_checks, project_checks
from flows.project.check_result import CheckResult, gigabytes
from flows.project.doctor import examine
from flows.project.machine_checks import TorchProbe, check_packages, check_python, check_tools, device_check
from flows.project.new_project import init_project
from flows.project.project_checks import (
    check_cache,
    check_disk,
    check_lock_file,
    check_params,
    check_permissions,
    check_prefect,
    check_registry,
    check_remote,
    check_run_lock,
    check_tasks,
)
from flows.registry.mlflow_store import connect, experiment_id


def by_name(rows: tuple[CheckResult, ...]) -> dict[str, CheckResult]:
    assert len({row.name for row in rows}) == len(rows)
    return {row.name: row for row in rows}


def test_a_whole_project_has_one_line_a_check(done: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 15
    assert {line.split()[0] for line in lines} <= {"ok", "warn"}
    assert run_command(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["failed"] == 0
    assert [row["name"] for row in document["checks"]] == [line[6:19].strip() for line in lines]


def test_a_failed_check_ends_with_1_and_every_problem_has_a_fix(
    done: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (done.root / "dvc.lock").write_text("schema: '2.0'\nstages:\n  backb")
    (done.root / "mlruns" / "mlflow.db").write_bytes(b"torn" * 5000)
    (done.root / ".dvc" / "config").write_text("[core\n")
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    assert run_command(["doctor"]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert [line[6:19].strip() for line in failed] == ["Prefect", "dvc.lock", "mlruns", "DVC remote"]
    assert all("; fix: " in line for line in failed)


def test_outside_of_a_project_the_machine_is_checked(tmp_path: Path) -> None:
    project = by_name(examine(tmp_path))["project"]
    assert (project.state, project.fix) == ("warn", "intaglio init FOLDER makes one")
    (tmp_path / "dvc.yaml").touch()
    project = by_name(examine(tmp_path))["project"]
    assert (project.state, project.fix) == ("FAIL", "dvc init")


def test_a_new_project_is_whole_and_waits_for_a_task(tmp_path: Path) -> None:
    rows = by_name(examine(init_project(tmp_path / "p").root))
    assert {row.state for row in rows.values()} == {"ok", "warn"}
    assert rows["params.yaml"].fix == "intaglio task add NAME FOLDER"


def test_python_and_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_python().state == "ok"
    assert check_python((3, 9, 1)).state == "FAIL"
    assert check_packages().state == "ok"

    def installed(name: str) -> str:
        if name == "timm":
            raise PackageNotFoundError(name)
        return "0.1" if name == "torch" else machine_checks.installed_version(name)

    row = check_packages(installed)
    assert row.state == "FAIL"
    assert "torch 0.1 (expected >=" in row.found
    assert "timm missing" in row.found
    assert "'torch>=" in row.fix

    def missing(name: str) -> Any:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(machine_checks, "distribution", missing)
    assert (check_python().state, check_packages().state) == ("FAIL", "FAIL")


def test_git_and_dvc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert check_tools().state == "ok"
    monkeypatch.setenv("PATH", str(tmp_path))
    row = check_tools()
    assert (row.state, row.found) == ("FAIL", "git not found")


REPORT = {"torch": "2.9", "cuda": None, "gpus": [], "mps": False, "warned": []}


@pytest.mark.parametrize(
    ("report", "wanted", "driver", "state", "found"),
    [
        ({}, "auto", "", "ok", "torch 2.9 on cpu"),
        ({"gpus": ["H200"], "cuda": "12.8"}, "auto", "550.1", "ok", "torch 2.9 on H200, driver 550.1"),
        ({"gpus": ["H200"], "cuda": "12.8"}, "cpu", "550.1", "ok", "torch 2.9 on cpu, driver 550.1"),
        ({}, "auto", "550.1", "warn", "the GPU is not used: torch is built without CUDA"),
        ({"cuda": "13.0", "warned": ["driver too old"]}, "auto", "470", "warn", "the GPU is not used: driver too old"),
        ({}, "cuda", "", "FAIL", "asks for 'cuda', which is not here"),
        ({"mps": True}, "auto", "", "ok", "torch 2.9 on mps"),
    ],
)
def test_the_device(report: dict[str, Any], wanted: str, driver: str, state: str, found: str) -> None:
    row = device_check(REPORT | report, wanted, driver)
    assert row.state == state
    assert found in row.found
    assert bool(row.fix) == (state != "ok")


def test_a_torch_that_breaks_or_hangs_is_a_line() -> None:
    broken = TorchProbe.start("raise OSError('libcuda.so.1: cannot open')").check()
    assert (broken.state, broken.found) == ("FAIL", "torch does not load: OSError: libcuda.so.1: cannot open")
    hanging = TorchProbe.start("import time; time.sleep(60)").check(patience=0.2)
    assert (hanging.state, hanging.found) == ("FAIL", "torch did not load in 0.2 s")


def test_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gigabytes(1_234_000_000) == "1.2 GB"
    assert gigabytes(12_300_000) == "12.3 MB"
    for free, state in ((10**11, "ok"), (10**9, "warn"), (10**6, "FAIL")):
        usage = shutil._ntuple_diskusage(10**12, 0, free)  # type: ignore[attr-defined]
        monkeypatch.setattr(project_checks.shutil, "disk_usage", lambda _, usage=usage: usage)
        assert check_disk({"the project": tmp_path}).state == state


def test_permissions(fresh: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_permissions(fresh.root).state == "ok"

    def refused(dir: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(project_checks.tempfile, "TemporaryFile", refused)
    row = check_permissions(fresh.root)
    assert row.state == "FAIL"
    assert f"{fresh.root / 'mlruns'} (Permission denied)" in row.found


@pytest.mark.parametrize("text", ["stages:\n  a:\n    cmd", "stages:\n  a: [\n", "words\n", "stages:\n  a: cmd\n"])
def test_a_torn_lock_file(done: Project, text: str) -> None:
    assert check_lock_file(done.root).state == "ok"
    (done.root / "dvc.lock").write_text(text)
    assert check_lock_file(done.root).state == "FAIL"
    (done.root / "dvc.lock").unlink()
    assert check_lock_file(done.root).state == "ok"


def test_params(fresh: Project) -> None:
    row, config = check_params(fresh.root)
    assert (row.state, row.found) == ("ok", "2 tasks")
    assert config is not None
    params = fresh.root / "params.yaml"
    params.write_text(params.read_text().replace("seed: 0", "seed: -1").replace("\n  rank: 8", "\n  rank: 0"))
    row, config = check_params(fresh.root)
    assert (row.state, config) == ("FAIL", None)
    assert row.found.endswith("(and 1 more)")


def test_tasks_have_images_or_a_record(done: Project) -> None:
    config = load_config(done.root / "params.yaml")
    assert check_tasks(done.root, config).found == "2 learned"
    shutil.rmtree(done.root / "data" / "raw" / "second")
    (done.root / "models" / "records" / "second").mkdir(parents=True, exist_ok=True)
    row = check_tasks(done.root, config)
    assert (row.state, row.found) == ("ok", "2 learned, 1 without images, which their records replace")
    shutil.rmtree(done.root / "models" / "records" / "second")
    row = check_tasks(done.root, config)
    assert (row.state, row.found) == ("FAIL", "neither images nor a record: second")
    (done.root / "dvc.lock").unlink()
    params = done.root / "params.yaml"
    params.write_text(params.read_text().replace("data/raw/second", "elsewhere"))
    row = check_tasks(done.root, load_config(params))
    assert row.state == "FAIL"
    assert row.found.startswith("stream.tasks.second.folder: elsewhere does not exist")


def test_the_remote_and_the_cache(done: Project, tmp_path: Path) -> None:
    row, cache = check_remote(done.root)
    assert (row.state, cache) == ("warn", done.root / ".dvc" / "cache")
    assert check_cache(cache).found.startswith("0.")
    assert check_cache(cache, seconds=0).found.startswith("more than ")
    assert check_cache(tmp_path / "none").found.startswith("0.0 MB in 0 files")
    done.dvc("remote", "add", "store", str(tmp_path / "store"))
    assert check_remote(done.root)[0].found == "none is the default (known: store)"
    done.dvc("remote", "default", "store")
    done.dvc("cache", "dir", str(tmp_path / "cache"))
    row, cache = check_remote(done.root)
    assert (row.state, cache.resolve()) == ("ok", (tmp_path / "cache").resolve())
    assert row.found.startswith("store: ")


def test_the_registry(fresh: Project, tmp_path: Path) -> None:
    experiment_id(connect(fresh.root), fresh.root)
    assert check_registry(fresh.root).state == "ok"
    moved = Path(shutil.copytree(fresh.root, tmp_path / "moved"))
    row = check_registry(moved)
    assert row.state == "warn"
    assert row.found.startswith(f"was made in {fresh.root}; ")
    with closing(sqlite3.connect(moved / "mlruns" / "mlflow.db")) as database:  # nothing was changed by looking
        assert fresh.root.as_uri() in database.execute("SELECT artifact_location FROM experiments").fetchall()[1][0]
    connect(moved)
    assert check_registry(moved).state == "ok"
    (moved / "mlruns" / "mlflow.db").unlink()
    assert check_registry(moved).found == "nothing published yet"


def test_prefect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert check_prefect().state == "ok"
    for answers, state in ((True, "ok"), (False, "FAIL")):
        monkeypatch.setenv("PREFECT_API_URL", "http://server:4200/api")
        monkeypatch.setattr(project_checks, "healthy", lambda address, answers=answers: answers)
        assert check_prefect().state == state


def test_a_run_at_work_is_seen_and_not_disturbed(fresh: Project) -> None:
    assert check_run_lock(fresh.root).state == "ok"
    with run_lock(fresh.root):
        row = check_run_lock(fresh.root)
        assert row.state == "warn"
        assert "runs this project's pipeline" in row.found
    assert check_run_lock(fresh.root).state == "ok"


def test_a_checked_project_is_unchanged(done: Project) -> None:
    run(["git", "add", "--all"], done.root)
    before = {path: path.stat().st_mtime_ns for path in done.root.rglob("*") if path.is_file()}
    examine(done.root)
    assert {path: path.stat().st_mtime_ns for path in done.root.rglob("*") if path.is_file()} == before
