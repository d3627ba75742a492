"""The project's own Prefect server: started when needed, gone with the process that needed it.

Prefect would start an ephemeral server by itself, but in our own process group: the Ctrl-C that stops a run would stop
that server too, and Prefect would then try for minutes to report to it. And an ephemeral server runs no schedules.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from components.errors import IntaglioError
from flows import leash
from flows.settings import SCRATCH

_START_SECONDS = 120  # 5 s usually, 15 s with a new database, more on a busy machine


@dataclass(frozen=True)
class PrefectServer:
    """A server at `address`. `process` is None where it is not ours.

    The process dies with us, after us: Prefect still sends its last lines of log while the interpreter shuts down.
    """

    address: str
    process: subprocess.Popen[bytes] | None
    log: Path

    def wait(self) -> str:
        """Wait until the server answers; returns its address.

        Raises:
            IntaglioError: it ended, or does not answer in time.
        """
        deadline = time.monotonic() + _START_SECONDS
        while self.process is None or self.process.poll() is None:
            if _healthy(self.address):
                return self.address
            if self.process is None:
                raise IntaglioError(f"PREFECT_API_URL is {self.address}/api, but no Prefect server answers there")
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        raise IntaglioError(f"Prefect's server did not start; its last words are in {self.log}")


def start_server(root: Path, schedules: bool = False) -> PrefectServer:
    """Let PREFECT_API_URL lead to a server: the one it names already, or a new one with its data in `root`.

    It returns at once, so that there is time to import Prefect while the server starts; then `wait()`.

    Args:
        root: the project's folder.
        schedules: whether a new server starts scheduled runs.
    """
    log = root / SCRATCH / "prefect-server.log"
    if given := os.environ.get("PREFECT_API_URL"):
        return PrefectServer(given.removesuffix("/api"), None, log)
    port = _free_port()
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    switches = ("PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED", "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED")
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-S", leash.__file__, *command],
            cwd=root,
            env={**os.environ, **dict.fromkeys(switches, str(schedules).lower())},
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    os.environ["PREFECT_API_URL"] = f"{address}/api"
    return PrefectServer(address, process, log)


def _free_port() -> int:
    """A port that the kernel picks: with a fixed one, two projects that start at once would share one's server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/api/health", timeout=5):
            return True
    except (OSError, ValueError):
        return False
