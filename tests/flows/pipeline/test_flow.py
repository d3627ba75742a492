"""The flow on a real DVC project with a real Prefect server: what runs, what does not, and what survives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect_servers import copy_database
from synthetic import REPOSITORY, Project

from components.errors import IntaglioError
from flows.pipeline import flow
from flows.pipeline.lock import run_lock
from flows.pipeline.prepared import prepared
from flows.registry.mlflow_store import PARENT_KIND, aliases, connect, experiment_id, runs, versions
from flows.tasks.add_task import add_task
from tests.crash.processes import descendants
from tests.flows.pipeline.test_stage_process import running, wait_for

pytestmark = pytest.mark.usefixtures("prefect_server")


def run_flow(project: Project) -> flow.Summary:
    """Run the flow for a project; a second attempt at a stage comes at once."""
    return flow.continual_finetuning(str(project.root), retry_delays=(0.0, 0.0))


def state(project: Project) -> tuple[int, int, dict[str, str]]:
    """How much is in the tracking database."""
    client = connect(project.root)
    return len(runs(client, experiment_id(client, project.root), "")), len(versions(client)), aliases(client)


def test_everything_once_and_then_nothing(fresh: Project, capsys: pytest.CaptureFixture[str]) -> None:
    summary = run_flow(fresh)
    assert sorted(fresh.executed()) == sorted(summary.outcomes)
    assert set(summary.outcomes.values()) == {"ran"}
    assert summary.decision is not None
    assert summary.decision.verdict == "promoted"
    shown = capsys.readouterr().out
    assert "[ 0/15 done" in shown
    assert "    evaluate | evaluate: begins" in shown
    assert "report      reports/report.html" in shown
    before = state(fresh)
    assert before == (3, 1, {"champion": "1"})
    fresh.forget()
    again = run_flow(fresh)
    assert fresh.executed() == []
    assert set(again.outcomes.values()) == {"up to date"}
    assert not again.published_now
    assert state(fresh) == before
    assert "up to date" in fresh.dvc("repro").stdout
    assert fresh.executed() == []


def test_what_was_prepared_is_not_prepared_again(done: Project) -> None:
    """As in `intaglio run`: nothing is cleared away, and DVC is not asked, between the preparation and the flow."""
    orphan, scratch = done.root / "data/manifests/dropped.parquet", done.root / ".intaglio/tmp/mine"
    with prepared(done.root):
        orphan.write_text("of a task that params.yaml does not name")
        scratch.write_text("a temporary file")
        done.measure('{"accuracy_final": 0.7}')
        assert run_flow(done).outcomes["evaluate"] == "up to date"
        assert orphan.exists()
        assert scratch.exists()
    assert run_flow(done).outcomes["evaluate"] == "ran"  # and a flow that Prefect runs alone prepares the project
    assert not orphan.exists()
    assert not scratch.exists()


def test_after_dvc_repro_only_publishing_is_left(done: Project) -> None:
    summary = run_flow(done)
    assert done.executed() == []
    assert summary.published_now
    assert aliases(connect(done.root)) == {"champion": "1"}
    with get_client(sync_client=True) as client:
        artifact = client.request("POST", "/artifacts/latest/filter", json={}).json()[0]
    assert artifact["key"] == "continual-finetuning"
    assert "| evaluate | up to date |" in artifact["data"]


def test_a_failed_stage_stops_what_needs_it_and_nothing_else(done: Project) -> None:
    done.measure('{"accuracy_final": 0.7}')
    done.fault("evaluate", "fail")
    (done.root / "data" / "manifests" / "second.parquet").write_text("changed by hand")
    with pytest.raises(IntaglioError) as caught:
        run_flow(done)
    first, second = str(caught.value).splitlines()
    assert first.startswith("evaluate: evaluate: bad.png: not an image")
    assert second == "not started, because of evaluate: report"
    assert done.executed().count("evaluate") == 1
    assert "report" not in done.executed()
    assert state(done) == (0, 0, {})
    (done.root / "faults" / "evaluate").unlink()
    done.forget()
    run_flow(done)
    assert done.executed() == ["evaluate", "report"]


def test_a_refused_task_that_is_dropped_leaves_no_trace(done: Project) -> None:
    run_flow(done)
    params = done.root / "params.yaml"
    before = params.read_text()
    for label in ("a", "b"):
        (done.root / "third" / label).mkdir(parents=True)
        (done.root / "third" / label / "0.png").touch()
    add_task(done.root, "third", done.root / "third")
    done.fault("validate@third", "fail")
    with pytest.raises(IntaglioError, match="validate@third"):
        run_flow(done)
    params.write_text(before)
    done.forget()
    run_flow(done)
    assert done.executed() == []


def test_a_fault_that_passes_is_tried_again(done: Project, capsys: pytest.CaptureFixture[str]) -> None:
    done.measure('{"accuracy_final": 0.7}')
    done.fault("evaluate", "transient once")
    summary = run_flow(done)
    assert done.executed() == ["evaluate", "evaluate", "report"]
    assert summary.outcomes["evaluate"] == "ran"
    assert "evaluate: the registry did not answer: a fault that may pass; trying again" in capsys.readouterr().out


def test_a_fault_that_does_not_pass_ends_the_run(done: Project) -> None:
    done.measure('{"accuracy_final": 0.7}')
    done.fault("evaluate", "transient")
    with pytest.raises(IntaglioError, match="evaluate: the registry did not answer"):
        run_flow(done)
    assert done.executed() == ["evaluate"] * 3


def test_a_bug_keeps_its_stack_trace(done: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    done.measure('{"accuracy_final": 0.7}')

    def broken(*_: object) -> str:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(flow, "run_stage", broken)
    with pytest.raises(ZeroDivisionError):
        run_flow(done)


def test_nothing_starts_with_a_mistake_in_params(done: Project) -> None:
    params = done.root / "params.yaml"
    params.write_text(params.read_text().replace("epochs:", "epoch:"))
    with pytest.raises(IntaglioError, match="unknown key"):
        run_flow(done)
    assert done.executed() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_stage(done: Project, number: signal.Signals) -> None:
    done.measure('{"accuracy_final": 0.7}')
    done.fault("evaluate", "sleep")

    def interrupt() -> None:
        wait_for(done.root / "alive")
        os.kill(os.getpid(), number)

    def end(*_: object) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, end)
    # A process in the background of a script inherits an ignored SIGINT, these tests included.
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    helper = threading.Thread(target=interrupt)
    helper.start()
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run_flow(done)
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGINT, ignored)
        helper.join()
    assert not running(int((done.root / "alive").read_text()))
    with run_lock(done.root):  # and the lock is free again
        pass


def test_a_killed_run_leaves_no_process_behind(done: Project, prefect_template: Path) -> None:
    """SIGKILL: the kernel closes a pipe, and the supervisors end the stage and Prefect's server."""
    copy_database(prefect_template, done.root)
    done.measure('{"accuracy_final": 0.7}')
    done.fault("evaluate", "sleep")
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    command = [sys.executable, "-c", "from flows.cli.app import main; main()", "run"]
    process = subprocess.Popen(command, cwd=done.root, env={**env, "PYTHONPATH": str(REPOSITORY)})
    try:
        wait_for(done.root / "alive")
        children = descendants(process.pid)
    finally:
        process.kill()
        process.wait()
    assert len(children) >= 5  # a supervisor with DVC and its stage, a supervisor with Prefect's server
    deadline = time.monotonic() + 20
    while any(running(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [pid for pid in children if running(pid)] == []
    (done.root / "faults" / "evaluate").unlink()
    done.forget()
    flow.continual_finetuning(str(done.root))
    assert done.executed() == ["evaluate", "report"]
    client = connect(done.root)
    parents = runs(client, experiment_id(client, done.root), f"tags.kind = '{PARENT_KIND}'")
    assert [run.info.status for run in parents] == ["FINISHED"]


def test_only_one_run_at_a_time(done: Project) -> None:
    holder = (
        "import sys, time; from pathlib import Path; from flows.pipeline.lock import run_lock\n"
        "with run_lock(Path.cwd()): print('held', flush=True); time.sleep(60)"
    )
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen([sys.executable, "-c", holder], cwd=done.root, env=env, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(IntaglioError, match=rf"process {process.pid} since .* is already running"):
            run_flow(done)
    finally:
        process.kill()  # the lock of a dead process is free
        process.wait()
        process.stdout.close()
    run_flow(done)
