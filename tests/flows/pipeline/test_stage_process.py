"""One stage as a process group: what it reports, and that nothing of it survives."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from synthetic import Project

from components.errors import IntaglioError, TransientError
from flows.pipeline.stage_process import StageStoppedError, failure, run_stage


def running(pid: int) -> bool:
    """Whether a process lives; a zombie that was not reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(path: Path, seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not (path.is_file() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)


def test_a_stage_runs_once_and_its_own_lines_are_passed_on(done: Project) -> None:
    done.measure('{"accuracy_final": 0.7}')
    lines: list[str] = []
    assert run_stage(done.root, "evaluate", lines.append, threading.Event()) == "ran"
    assert [line for line in lines if "is empty" not in line] == ["evaluate: begins", "evaluate: done"]
    assert run_stage(done.root, "evaluate", lines.append, threading.Event()) == "cached"
    done.measure("{}")  # what DVC has in its cache it does not compute again
    assert run_stage(done.root, "evaluate", lines.append, threading.Event()) == "cached"
    assert done.executed() == ["evaluate"]


@pytest.mark.parametrize(
    ("orders", "kind", "message"),
    [
        (
            "fail",
            IntaglioError,
            r"evaluate: evaluate: bad\.png: not an image\. Once that is put right, `intaglio run` resumes",
        ),
        ("crash", IntaglioError, r"evaluate: RuntimeError: a bug \(exit status 1\)"),
        ("transient", TransientError, "evaluate: the registry did not answer"),
    ],
)
def test_a_failure_is_one_line(done: Project, orders: str, kind: type[Exception], message: str) -> None:
    done.measure('{"accuracy_final": 0.7}')
    done.fault("evaluate", orders)
    with pytest.raises(kind, match=message) as caught:
        run_stage(done.root, "evaluate", lambda _: None, threading.Event())
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


def test_a_file_in_use_by_another_dvc_is_a_fault_that_passes() -> None:
    lines = ["ERROR: 'models/backbone' is busy, it is being blocked by:", "  (PID 1): dvc repro"]
    assert isinstance(failure("evaluate", lines), TransientError)


def test_a_stage_that_prints_nothing_fails_with_a_message() -> None:
    assert "evaluate: no output" in str(failure("evaluate", []))


def test_stopping_kills_even_a_stage_that_ignores_sigterm(done: Project) -> None:
    done.measure('{"accuracy_final": 0.7}')
    done.fault("evaluate", "stubborn")
    stop = threading.Event()

    def stop_when_it_runs() -> None:
        wait_for(done.root / "beat")
        stop.set()

    helper = threading.Thread(target=stop_when_it_runs)
    helper.start()
    with pytest.raises(StageStoppedError, match="evaluate: stopped"):
        run_stage(done.root, "evaluate", lambda _: None, stop)
    helper.join()
    pid = int((done.root / "alive").read_text())
    assert not running(pid)
    beat = (done.root / "beat").read_text()
    time.sleep(0.3)
    assert (done.root / "beat").read_text() == beat
    # The next attempt finds no lock in its way and no second writer beside it.
    (done.root / "faults" / "evaluate").unlink()
    assert run_stage(done.root, "evaluate", lambda _: None, threading.Event()) == "ran"
