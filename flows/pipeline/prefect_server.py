"""The project's own Prefect server: started when needed, ended with the process that needed it.

Prefect would start an ephemeral server by itself, but in our own process group: the Ctrl-C that stops a run would stop
that server too, and Prefect would then try for minutes to report to it. And an ephemeral server runs no schedules.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

from components.errors import IntaglioError
from flows.pipeline import supervisor
from flows.settings import SCRATCH

SERVER = (sys.executable, "-m", "prefect", "server", "start")
START_SECONDS = 120.0  # 5 s usually, 15 s with a new database, more on a busy machine
_RESTARTS = 3  # of a server that ends in the middle of a run

_Process = subprocess.Popen[bytes]


@dataclass
class PrefectServer:
    """A Prefect server that a run reports to.

    The server ends after this process: Prefect sends its last lines of log while the interpreter shuts down.

    Attributes:
        address: where it listens, such as http://127.0.0.1:4200.
        process: the server's own, under a supervisor; None where it was started elsewhere.
        log: the file of its output.
        start: starts it again at the same address.
    """

    address: str
    process: _Process | None
    log: Path
    start: Callable[[], _Process] | None = None

    @contextmanager
    def attended(self) -> Iterator[None]:
        """Start our own server again if it ends during a run; the stages do not need it meanwhile.

        A run that fails because the server is lost ends this process with a line that says so.
        """
        threading.Thread(target=self._attend, daemon=True).start()
        before, logging.raiseExceptions = (
            logging.raiseExceptions,
            False,
        )  # or each log line that cannot be sent prints a stack trace
        try:
            yield
        except Exception as error:
            if isinstance(error, IntaglioError) or healthy(self.address):
                raise
            self._end_run(error)
        finally:
            logging.raiseExceptions = before

    def _attend(self) -> None:
        for _ in range(_RESTARTS):
            if self.process is None or self.start is None:
                return
            self.process.wait()
            print(f"Prefect's server ended (see the end of {self.log}); starting it again", flush=True)
            self.process = self.start()

    def _end_run(self, error: BaseException) -> NoReturn:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, IntaglioError):
            cause = cause.__context__  # the run's own failure, which Prefect could not report
        where = f" (see the end of {self.log})" if self.process else ""
        lost = f"Prefect's server {self.address} ended during the run{where}, and Prefect's record of the run with it"
        for line in [
            *str(cause or "").splitlines(),
            f"{lost}; whatever had finished is kept: run `intaglio run` again",
        ]:
            print(f"error: {line}", file=sys.stderr)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(1)  # at an ordinary exit Prefect would try for minutes to reach its server

    def wait(self, seconds: float = START_SECONDS) -> str:
        """Wait until the server answers, for so many seconds at most; return its address.

        Raises:
            IntaglioError: it ended, or does not answer in time.
        """
        deadline = time.monotonic() + seconds
        while self.process is None or self.process.poll() is None:
            if healthy(self.address):
                return self.address
            if self.process is None:
                raise IntaglioError(f"PREFECT_API_URL is {self.address}/api, but no Prefect server answers there")
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        raise IntaglioError(f"Prefect's server did not start; see the end of {self.log}")


def start_server(root: Path, schedules: bool = False, program: Sequence[str] = SERVER) -> PrefectServer:
    """Use the server that PREFECT_API_URL names, or start one with its data in `root` and let it name that.

    It returns at once, so that there is time to import Prefect while the server starts; then `wait()`.

    Args:
        root: the project's folder.
        schedules: whether a new server starts scheduled runs.
        program: the command that starts a server, without host and port.
    """
    log = root / SCRATCH / "prefect-server.log"
    if given := os.environ.get("PREFECT_API_URL"):
        return PrefectServer(given.removesuffix("/api"), None, log)
    port = _free_port()
    log.unlink(missing_ok=True)
    command = [*program, "--host", "127.0.0.1", "--port", str(port)]
    start = partial(_start, command, root, log, schedules)
    server = PrefectServer(f"http://127.0.0.1:{port}", start(), log, start)
    os.environ["PREFECT_API_URL"] = f"{server.address}/api"
    return server


def _start(command: Sequence[str], root: Path, log: Path, schedules: bool) -> _Process:
    switches = ("PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED", "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED")
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-S", supervisor.__file__, *command],
            cwd=root,
            env={**os.environ, **dict.fromkeys(switches, str(schedules).lower())},
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _free_port() -> int:
    """Return a port that the kernel picks: with a fixed one, two projects that start at once would share a server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def healthy(address: str) -> bool:
    """Return whether a Prefect server answers at an address."""
    try:
        with urllib.request.urlopen(f"{address}/api/health", timeout=5):
            return True
    except (OSError, ValueError):
        return False
