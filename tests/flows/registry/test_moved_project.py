"""A project that moves or is copied: every address in MLflow's real database follows, or none does."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from synthetic import Project

from components.errors import IntaglioError
from flows.registry.mlflow_store import aliases, bundle_of, connect, experiment_id, version_of
from flows.registry.moved_project import follow_project, former_root, local_path, relocated
from flows.registry.promote import promote, rollback
from flows.registry.status import status_lines
from flows.settings import MODEL
from tests.flows.registry.test_gates import GATES, metrics
from tests.flows.registry.test_promote import Registry

PLACES = ["elsewhere", "a place with spaces", "100% sure %20", "größe — 場所", "a#b;c'd\"e"]


def addresses(root: Path) -> list[str]:
    """Every text in the database that names a folder of the test, whatever its table."""
    found = []
    with closing(sqlite3.connect(root / "mlruns" / "mlflow.db")) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            for row in database.execute(f'SELECT * FROM "{table}"'):
                found += [text for text in row if isinstance(text, str) and "/mlruns" in text]
    return found


@pytest.fixture
def registry(fresh: Project) -> Registry:
    registry = Registry(fresh.root)
    registry.add(metrics())
    promote(registry.client, GATES)
    registry.add(metrics(accuracy_final=0.9))
    promote(registry.client, GATES)
    run_id = str(version_of(registry.client, "1").run_id)
    registry.client.create_logged_model(registry.experiment, name=MODEL, source_run_id=run_id)
    return registry


@pytest.mark.parametrize("name", PLACES)
def test_a_moved_project_is_usable_at_once(
    registry: Registry, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = registry.root.rename(tmp_path / name)
    client = connect(moved)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert f"the project was moved here from {registry.root}; " in said[0]
    assert (
        bundle_of(client, moved, "2")
        == next(moved.glob("mlruns/artifacts/models/*/artifacts")).parents[1]
        / str(version_of(client, "2").run_id)
        / "artifacts"
        / "artifacts"
        / "bundle"
    )
    assert not [text for text in addresses(moved) if str(local_path(text)).startswith(f"{registry.root}/")]
    # What MLflow itself finds through these addresses: metrics of old runs, a new run's artefacts, the model's files.
    third = client.create_run(experiment_id(client, moved)).info.run_id
    client.log_text(third, "new", "note.txt")
    assert (moved / "mlruns" / "artifacts" / third / "artifacts" / "note.txt").read_text() == "new"
    (model,) = client.search_logged_models([experiment_id(client, moved)])
    assert local_path(str(model.artifact_location)).is_relative_to(moved / "mlruns")
    assert rollback(client) == ("2", "1")
    assert promote(client, GATES, "2").verdict == "promoted"
    assert "champion" in "\n".join(status_lines(moved))
    connect(moved)
    assert capsys.readouterr().err == ""


def test_of_a_copy_only_the_copy_changes(
    registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (registry.root / "mlruns" / "mlflow.db").read_bytes()
    copy = Path(shutil.copytree(registry.root, tmp_path / "copy"))
    client = connect(copy)
    assert f"the project was copied here from {registry.root}; " in capsys.readouterr().err
    assert (registry.root / "mlruns" / "mlflow.db").read_bytes() == before
    rollback(client)
    assert (aliases(client)["champion"], aliases(connect(registry.root))["champion"]) == ("1", "2")
    assert bundle_of(client, copy, "1").is_relative_to(copy)
    assert capsys.readouterr().err == ""


def test_a_project_reached_through_a_link_has_not_moved(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(registry.root)
    assert former_root(tmp_path / "link") is None
    assert follow_project(tmp_path / "link") is None


def test_nothing_to_follow(fresh: Project, tmp_path: Path) -> None:
    assert follow_project(tmp_path) is None  # no database
    assert follow_project(fresh.root) is None  # no experiment yet


def test_an_artefact_store_of_the_users_own_choice_is_left_alone(registry: Registry) -> None:
    with closing(sqlite3.connect(registry.root / "mlruns" / "mlflow.db")) as database:
        database.execute("UPDATE experiments SET artifact_location = 's3://bucket/mlruns/things'")
        database.commit()
    assert follow_project(registry.root) is None


KILLED = """
import os, signal, sys
from pathlib import Path
import flows.registry.moved_project as moved
genuine, calls = moved.relocated, []
def killed(*arguments):
    calls.append(1)
    if len(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return genuine(*arguments)
moved.relocated = killed
opened = moved._open
def small(*arguments):
    connection = opened(*arguments)
    connection.execute("PRAGMA cache_size = 1")  # so that changed pages reach the disk before the commit
    return connection
moved._open = small
moved.follow_project(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("call", [1, 4, 9])
def test_a_killed_rewrite_changes_nothing(registry: Registry, tmp_path: Path, call: int) -> None:
    before = addresses(registry.root)
    moved = registry.root.rename(tmp_path / "elsewhere")
    done = subprocess.run([sys.executable, "-c", KILLED, str(moved), str(call)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert addresses(moved) == before
    assert former_root(moved) == registry.root
    move = follow_project(moved)
    assert move is not None
    assert move.former == registry.root
    assert move.addresses == sum(text != other for text, other in zip(before, addresses(moved), strict=True))


def test_a_database_that_cannot_change_is_one_line(registry: Registry, tmp_path: Path) -> None:
    moved = registry.root.rename(tmp_path / "elsewhere")
    with closing(sqlite3.connect(moved / "mlruns" / "mlflow.db", isolation_level=None)) as database:
        database.execute("CREATE TRIGGER fixed BEFORE UPDATE ON runs BEGIN SELECT RAISE(ABORT, 'read-only'); END")
    with pytest.raises(IntaglioError, match=r"mlflow\.db: read-only; "):
        follow_project(moved)
    assert former_root(moved) == registry.root
    (moved / "mlruns" / "mlflow.db").write_bytes(b"no database" * 1000)
    with pytest.raises(IntaglioError, match=r"not a database"):
        follow_project(moved)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("file:///a%20b/mlruns/artifacts/1", "file:///new%20place/mlruns/artifacts/1"),
        ("/a b/mlruns/0", "/new place/mlruns/0"),
        ("file:///a%20bc/mlruns", "file:///a%20bc/mlruns"),
        ("s3://a b/mlruns", "s3://a b/mlruns"),
        ("data/raw/mat", "data/raw/mat"),
        (None, None),
    ],
)
def test_an_address_keeps_its_form(address: str | None, expected: str | None) -> None:
    assert relocated(address, Path("/a b"), Path("/new place")) == expected
