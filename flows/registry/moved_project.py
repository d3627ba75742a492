"""A project that was moved or copied: MLflow's database holds absolute addresses, which have to follow it."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlparse

from components.errors import IntaglioError
from flows.settings import EXPERIMENT, artifact_root

# Where MLflow keeps addresses of artefacts, as seen in the tables of 3.17.2; older ones lack some of the columns.
_ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("datasets", "dataset_source"),
    ("workspaces", "default_artifact_root"),
    ("workspaces", "trace_archival_location"),
)
_RECORDED = "SELECT artifact_location FROM experiments WHERE name = ?"
_ARTIFACTS = artifact_root(Path()).parts
_BUSY_SECONDS = 60.0


@dataclass(frozen=True)
class Move:
    """A project's former folder, and the number of addresses that followed it to the present one."""

    former: Path
    addresses: int


def former_root(root: Path) -> Path | None:
    """Return the folder in which the project's MLflow database was made; None where that is `root`.

    Raises:
        IntaglioError: the database cannot be read.
    """
    database = _database(root)
    if not database.is_file():
        return None
    with _faults_explained(database), closing(_open(database)) as connection:
        return _former_root(connection, root)


def follow_project(root: Path) -> Move | None:
    """Make every address in the project's MLflow database lead to `root`, and say so in one line.

    All of them change in one transaction: a process that is killed on the way leaves the database as it was. Nothing
    happens where the database was made in `root`; the question costs one SELECT. Of a copy, only the copy's database
    changes.

    Raises:
        IntaglioError: the database cannot be read, or it must change and cannot be written.
    """
    if former_root(root) is None:
        return None
    database = _database(root)
    with _faults_explained(database), closing(_open(database)) as connection:
        connection.execute("BEGIN IMMEDIATE")  # a second process waits here, and then finds nothing left to do
        former = _former_root(connection, root)
        if former is None:
            return None
        move = Move(former, _rewrite(connection, former, root))
        connection.commit()
    verb = "copied" if _database(former).is_file() else "moved"
    print(
        f"{database}: the project was {verb} here from {former}; {move.addresses} addresses of runs and models follow",
        file=sys.stderr,
    )
    return move


def local_path(address: str) -> Path:
    """Return the path that a file:// address names; MLflow also writes bare paths."""
    return Path(unquote(urlparse(address).path)) if address.startswith("file:") else Path(address)


def relocated(address: str | None, former: Path, root: Path) -> str | None:
    """Return an address below `former` as one below `root`, in the same form; any other as it is.

    Args:
        address: a file:// address, a bare path, another address, or None.
        former: the project's folder until now.
        root: its present folder.
    """
    if address is None or not address.startswith(("file:", "/")):
        return address
    path = local_path(address)
    if not path.is_relative_to(former):
        return address
    present = root / path.relative_to(former)
    return present.as_uri() if address.startswith("file:") else str(present)


def _rewrite(connection: sqlite3.Connection, former: Path, root: Path) -> int:
    connection.create_function("relocated", 1, lambda address: relocated(address, former, root), deterministic=True)
    changed = 0
    for table, column in _ADDRESSES:
        if column in {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}:
            statement = f"UPDATE {table} SET {column} = relocated({column}) WHERE {column} IS NOT relocated({column})"
            changed += connection.execute(statement).rowcount
    return changed


def _former_root(connection: sqlite3.Connection, root: Path) -> Path | None:
    if not list(connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'experiments'")):
        return None
    row = connection.execute(_RECORDED, (EXPERIMENT,)).fetchone()
    recorded, present = local_path(str(row[0])) if row else artifact_root(root), artifact_root(root)
    former = recorded.parents[1] if len(recorded.parts) > len(_ARTIFACTS) else recorded
    if recorded == present or artifact_root(former) != recorded or _is_same_folder(recorded, present):
        return None  # at home, or in a store of the user's choice
    return former


def _is_same_folder(one: Path, other: Path) -> bool:
    """Return whether two paths lead to one folder, as they do where a link stands in one of them."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def _database(root: Path) -> Path:
    return root / "mlruns" / "mlflow.db"


def _open(database: Path) -> sqlite3.Connection:
    """Open an existing database; for writing too where that is allowed, since what a killed writer left is undone."""
    return sqlite3.connect(f"{database.as_uri()}?mode=rw", uri=True, timeout=_BUSY_SECONDS, isolation_level=None)


@contextmanager
def _faults_explained(database: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise IntaglioError(
            f"{database}: {error}; make the file and its folder readable and writable, and end what holds it"
        ) from None
    except sqlite3.DatabaseError as error:
        raise IntaglioError(f"{database}: {error}; restore it from a backup, or set it aside to begin anew") from None
