"""A process that has imported everything and computed nothing, and forks one child per piece of work.

Importing torch, scikit-learn, Great Expectations, DVC and MLflow takes 10 s; a fork takes 10 ms. What the child then
runs is the real code. The process answers requests from its standard input, one at a time; as `python -m
tests.crash.preloaded` it is a server for the tests, whose own process has used torch's threads and must not fork.
"""

from __future__ import annotations

import ctypes
import fcntl
import gc
import importlib
import json
import os
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial, partialmethod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jinja2

from tests.crash.points import STRUCK, Faults, install_in_dvc
from tests.crash.processes import descendants

_TEMPLATES = tempfile.TemporaryDirectory(prefix="templates-")
SECOND_WRITER = "SECOND WRITER"  # what a stage prints that finds another process at the same stage
MODULES = [
    "components.inference.bundle",
    "components.evaluation.evaluate",
    "components.training.finetune",
    "components.data.manifest",
    "components.report.report",
    "components.signatures.fit",
    "components.data.default_stream",
    "components.data.validate",
    "components.vision.pretrained",
    "components.params",
    "components.stages",
    "great_expectations",
    "great_expectations.render.renderer.site_builder",
    "pyarrow.dataset",
    "pyarrow.parquet",
    "pandas",
    "sklearn.mixture",
    "timm",
    "dvc.cli",
    "dvc.repo.reproduce",
    "dvc.cli.parser",
    "dvc.commands.repro",
    "networkx",
    "scmrepo.git",
    "mlflow.pyfunc",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "alembic.command",
    "flows.registry.publish",
    "flows.registry.register",
    "flows.registry.promote",
    "flows.pipeline.crash_recovery",
    "flows.pipeline.lock",
]


def preload() -> None:
    """Import what the stages, DVC and the registry need."""
    for module in MODULES:
        importlib.import_module(module)
    # Great Expectations compiles its templates anew for every page: half of the time of a validation.
    bytecode = jinja2.FileSystemBytecodeCache(_TEMPLATES.name)
    jinja2.Environment.__init__ = partialmethod(jinja2.Environment.__init__, bytecode_cache=bytecode)  # type: ignore[assignment]
    gc.freeze()  # or the first collection of every child would write to all pages of memory, and so copy them


def fork(work: Callable[[], int], root: Path, env: Mapping[str, str], log: Path) -> int:
    """Run `work` in a child in the folder `root`, its output appended to `log`; returns the child's pid.

    The child dies with us: no other process would end it.
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
    place = Path(".intaglio/writers")
    place.mkdir(parents=True, exist_ok=True)
    with (place / "-".join(arguments)).open("w") as writer:
        try:
            fcntl.flock(writer, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{SECOND_WRITER}: {' '.join(arguments)}", flush=True)
        return _faulty_stage(arguments, fault, report)


def _faulty_stage(arguments: Sequence[str], fault: str, report: Path | None) -> int:
    from components import stages

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
        target, _, fault = env.get("CRASH_STAGE_FAULT", "").partition("=")
        struck = fault if target == " ".join(words[3:]) else ""
        self.pid = fork(lambda: stage(words[3:], struck), Path(cwd), env, Path(env["CRASH_LOG"]))
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


def conclude() -> int:
    """What `intaglio run` does after the last stage, without Prefect: publish, register, judge, promote."""
    from components.params import load_config
    from flows.pipeline.crash_recovery import recover
    from flows.pipeline.lock import run_lock
    from flows.registry.mlflow_store import connect
    from flows.registry.promote import settle
    from flows.registry.publish import publish
    from flows.registry.register import register

    root = Path.cwd()
    with run_lock(root):
        recover(root)
        config, client = load_config(), connect(root)
        version = register(client, root, config, publish(client, root, config))
        print(f"version {version}: {settle(client, config.gates, version).verdict}", flush=True)
    return 0


def recovered(*arguments: str, fault: str = "") -> int:
    """What `intaglio run` does before the first stage, and then DVC's command line."""
    from flows.pipeline.crash_recovery import recover
    from flows.pipeline.lock import run_lock

    with run_lock(Path.cwd()):
        recover(Path.cwd())
        return dvc(*arguments, fault=fault)


def serve() -> None:
    """Answer requests with {"status": exit status, or minus a signal}.

    A request names root, env, log, fault, and the work: stage, dvc, recovered (each with arguments) or conclude. With
    `after` and `whom` that child is killed after so many seconds: itself, the last process below it, or all of them.
    """
    preload()
    print(json.dumps({"ready": os.getpid()}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        pid = fork(partial(_answer, asked), Path(asked["root"]), asked["env"], Path(asked["log"]))
        if "after" in asked:
            _strike(pid, asked["after"], asked["whom"], Path(asked["log"]))
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)


def _strike(pid: int, after: float, whom: str, log: Path) -> None:
    """SIGKILL after a while, unless the child `pid` ended before; it stays to be waited for."""
    deadline = time.monotonic() + after
    while time.monotonic() < deadline:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        time.sleep(0.005)
    with log.open("a") as file:
        file.write(f"{STRUCK}\n")
    family = [pid, *descendants(pid)]
    for victim in {"leader": family[:1], "last": family[-1:], "all": family}[whom]:
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)


def _answer(asked: Mapping[str, Any]) -> int:
    if "dvc" in asked:
        return dvc(*asked["dvc"], fault=asked["fault"])
    if "recovered" in asked:
        return recovered(*asked["recovered"], fault=asked["fault"])
    if "conclude" in asked:
        return conclude()
    return stage(asked["stage"], asked["fault"], Path(asked["report"]) if asked["report"] else None)


if __name__ == "__main__":
    serve()
