"""The project's own Prefect server."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from prefect_servers import copy_database, end
from synthetic import Project

from components.errors import IntaglioError
from flows.pipeline.prefect_server import healthy, start_server
from tests.flows.pipeline.test_stage_process import wait_for

ASLEEP = (sys.executable, "-c", "import time; time.sleep(600)")


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new home for the server; PREFECT_API_URL is as before afterwards."""
    (tmp_path / ".intaglio").mkdir()
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / ".intaglio"))
    monkeypatch.setenv("PREFECT_API_URL", "")


def test_it_answers_and_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    own = start_server(tmp_path)
    try:
        address = own.wait()
        assert os.environ["PREFECT_API_URL"] == f"{address}/api"
        # A later call uses it, and has nothing to end.
        later = start_server(tmp_path)
        assert (later.wait(), later.process) == (address, None)
    finally:
        end(own)
    with pytest.raises(IntaglioError, match=r"PREFECT_API_URL is http://127.*, but no Prefect server answers"):
        later.wait()


def test_a_server_that_dies_in_the_middle_of_a_run_comes_back_and_the_run_ends_well(
    done: Project, prefect_template: Path
) -> None:
    copy_database(prefect_template, done.root)
    done.measure('{"accuracy_final": 0.7}')
    done.fault("evaluate", "pause")
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    output = done.root / "output"
    with output.open("w") as file:
        command = [sys.executable, "-c", "from flows.cli.app import main; main()", "run"]
        process = subprocess.Popen(command, cwd=done.root, env=env, stdout=file, stderr=file)
    try:
        wait_for(done.root / "alive")
        address = output.read_text().partition("during the run: ")[2].split()[0]
        os.kill(_listener(int(address.rpartition(":")[2])), signal.SIGKILL)
        deadline = time.monotonic() + 120
        while not ("starting it again" in output.read_text() and healthy(address)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        (done.root / "go").touch()
        assert process.wait(120) == 0, output.read_text()
    finally:
        process.kill()
    assert "version 1 passed its gates" in output.read_text()
    assert "Traceback" not in output.read_text()
    with closing(sqlite3.connect(done.root / ".intaglio" / "prefect.db")) as database:
        assert database.execute("select state_name from flow_run").fetchall() == [("Completed",)]


def _listener(port: int) -> int:
    """The pid of the process that was told to listen on a port, the youngest one that names it."""
    named = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if f"--port\0{port}\0".encode() in path.read_bytes()
    ]
    return max(named)


def test_a_server_that_does_not_start(tmp_path: Path) -> None:
    broken = (sys.executable, "-c", "import sys; sys.exit('no room on the device')")
    with pytest.raises(IntaglioError, match=r"did not start; see the end of .*prefect-server\.log"):
        start_server(tmp_path, program=broken).wait()
    assert "no room" in (tmp_path / ".intaglio" / "prefect-server.log").read_text()


def test_a_server_that_never_answers(tmp_path: Path) -> None:
    silent = start_server(tmp_path, program=ASLEEP)
    with pytest.raises(IntaglioError, match="did not start"):
        silent.wait(seconds=0.3)
    end(silent)


def test_projects_that_start_at_once_have_servers_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    servers = []
    for _ in range(5):
        monkeypatch.setenv("PREFECT_API_URL", "")
        servers.append(start_server(tmp_path, program=ASLEEP))  # the address is chosen before anything listens on it
    assert len({own.address for own in servers}) == 5
    for own in servers:
        end(own)
