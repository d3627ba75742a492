"""Prefect servers for the tests, as `intaglio run` starts them."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from flows.pipeline.prefect_server import PrefectServer, start_server

DATABASE = Path(".intaglio", "prefect.db")


def server_in(root: Path) -> PrefectServer:
    """A server that answers, with its data in `root`. It ends with this process, if nothing ends it before."""
    (root / ".intaglio").mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(root / ".intaglio"))
        patch.setenv("PREFECT_API_URL", "")  # which starting a server changes
        server = start_server(root)
    server.wait()
    return server


def end(server: PrefectServer) -> None:
    """Close the pipe to a server, as the kernel does when we die, and wait for its end."""
    assert server.process is not None
    assert server.process.stdin is not None
    server.process.stdin.close()
    server.process.wait(20)


def make_database(root: Path) -> None:
    """Give `root` the empty database of a server that has run once."""
    end(server_in(root))
    with closing(sqlite3.connect(root / DATABASE)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # so that one file holds everything


def copy_database(template: Path, root: Path) -> None:
    """Let a server in `root` begin with a copy of that database."""
    (root / DATABASE).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(template / DATABASE, root / DATABASE)
