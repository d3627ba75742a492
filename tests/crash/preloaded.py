"""A process that has imported everything and computed nothing, and forks one child per piece of work.

Importing torch, scikit-learn, Great Expectations, DVC and MLflow takes 10 s; a fork takes 10 ms. What the child then
runs is the real code. The process answers requests from its standard input, one at a time; as `python -m
tests.crash.preloaded` it is a server for the tests, whose own process has used torch's threads and must not fork.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.crash.points import Faults, install_in_dvc

MODULES = [
    "components.bundle",
    "components.evaluate",
    "components.finetune",
    "components.manifest",
    "components.report",
    "components.sign",
    "components.sources",
    "components.validate",
    "components.weights",
    "great_expectations",
    "pandas",
    "sklearn.mixture",
    "peft",
    "timm",
    "dvc.cli",
    "dvc.repo.reproduce",
    "dvc.commands.repro",
    "mlflow.pyfunc",
    "flows.publish",
    "flows.register",
    "flows.promote",
    "flows.mend",
]


def preload() -> None:
    """Import what the stages, DVC and the registry need."""
    for module in MODULES:
        importlib.import_module(module)


def fork(work: Callable[[], int], root: Path, env: Mapping[str, str], log: Path) -> int:
    """Run `work` in a child in the folder `root`, its output appended to `log`; returns the child's pid.

    The child dies with us: nobody else would end it.
    """
    parent = os.getpid()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        signal.set_wakeup_fd(-1)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(output, stream)
        os.chdir(root)
        os.environ.clear()
        os.environ.update(env)
        status = work()
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


def stage(arguments: Sequence[str], fault: str = "", report: Path | None = None) -> int:
    """What `python -m components.stages ARGUMENTS` does, with one fault; how often each point was reached goes to
    `report`.
    """
    from components import stages

    stages._PARENT = os.getppid()  # measured when this process was another one
    faults = Faults(fault)
    faults.install()
    faults.at("begin")
    status = stages.main(list(arguments))
    faults.at("end")
    if report is not None:
        Path(report).write_text(json.dumps(faults.reached))
    return status


class _ForkedCommand:
    """Stands in for subprocess.Popen where DVC starts a stage: the same child process, without the imports."""

    def __init__(self, command: Sequence[str], *, cwd: str, env: Mapping[str, str], **_: Any) -> None:
        words = shlex.split(command[-1])
        assert words[:3] == ["python", "-m", "components.stages"], words
        self.pid = fork(lambda: stage(words[3:]), Path(cwd), env, Path(env["CRASH_LOG"]))
        self.returncode = 0

    def communicate(self) -> None:
        _, status = os.waitpid(self.pid, 0)
        self.returncode = os.waitstatus_to_exitcode(status)


def dvc(*arguments: str, fault: str = "") -> int:
    """DVC's command line in this process, with one fault; its stages are forks of it."""
    import dvc.stage.run
    from dvc.cli import main

    install_in_dvc(fault)
    dvc.stage.run.subprocess = SimpleNamespace(Popen=_ForkedCommand)
    return int(main(list(arguments)))


def serve() -> None:
    """Answer requests {root, env, log, fault, and stage or dvc} with {"status": exit status, or minus a signal}."""
    preload()
    print(json.dumps({"ready": os.getpid()}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        pid = fork(partial(_answer, asked), Path(asked["root"]), asked["env"], Path(asked["log"]))
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)


def _answer(asked: Mapping[str, Any]) -> int:
    if "dvc" in asked:
        return dvc(*asked["dvc"], fault=asked["fault"])
    return stage(asked["stage"], asked["fault"], Path(asked["report"]) if asked["report"] else None)


if __name__ == "__main__":
    serve()
