"""Two at work on one project: the second waits, or is refused with one line; what comes out is whole."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from prefect_servers import copy_database
from synthetic import REPOSITORY, Project

from flows.pipeline import flow
from flows.registry.mlflow_store import aliases, connect, versions
from tests.flows.pipeline.test_stage_process import wait_for


def start(project: Project, *command: str) -> subprocess.Popen[str]:
    """A command of a person at another terminal."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    env |= {"PYTHONPATH": str(REPOSITORY), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, *command], cwd=project.root, env=env, text=True, **pipes)


def intaglio(project: Project, *arguments: str) -> subprocess.Popen[str]:
    return start(project, "-c", "from flows.cli.app import main; main()", *arguments)


def test_beside_a_run_everything_that_writes_is_refused_with_one_line(done: Project, prefect_template: Path) -> None:
    copy_database(prefect_template, done.root)
    done.measure('{"accuracy_final": 0.7}')
    done.fault("evaluate", "pause")
    first = intaglio(done, "run")
    try:
        wait_for(done.root / "alive")  # Prefect's server has to start first
        for command in (["run"], ["promote"], ["rollback"]):
            second = intaglio(done, *command)
            printed = second.communicate(timeout=120)[1].splitlines()
            assert second.returncode == 1
            assert len(printed) == 1, printed
            assert f"process {first.pid} since" in printed[0]
            assert printed[0].endswith("is already running this project's pipeline; wait for it or stop it")
    finally:
        (done.root / "go").touch()
        out, err = first.communicate(timeout=240)
    assert first.returncode == 0, (out, err)
    assert done.executed() == ["evaluate", "report"]
    client = connect(done.root)
    assert len(versions(client)) == 1
    assert aliases(client) == {"champion": "1"}


@pytest.mark.usefixtures("prefect_server")
def test_a_run_beside_dvc_repro_waits_for_its_stage(done: Project) -> None:
    done.measure('{"accuracy_final": 0.7}')
    done.fault("evaluate", "pause")
    other = start(done, "-m", "dvc", "repro")
    wait_for(done.root / "alive")
    release = threading.Timer(8.0, (done.root / "go").touch)
    release.start()
    try:
        summary = flow.continual_finetuning(str(done.root), retry_delays=(5.0, 30.0))
    finally:
        release.join()
        out, err = other.communicate(timeout=120)
    assert summary.decision is not None
    assert summary.decision.verdict == "promoted"
    # `dvc repro` does not wait: it either finished, or named the file that the run was using.
    assert other.returncode == 0 or "is busy, it is being blocked by" in err, (out, err)
    assert sorted(done.executed()) == ["evaluate", "report"]
    assert "up to date" in done.dvc("repro").stdout
