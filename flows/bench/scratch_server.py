"""A server for measurements: a scratch project with its own registry, and `intaglio serve` in a child process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient

from components.errors import IntaglioError
from flows.registry.mlflow_store import CHAMPION, connect
from flows.settings import MODEL, artifact_root, quiet_environment

_START_SECONDS = 120.0  # 5 s usually; much more on a busy machine
_STOP_SECONDS = 60.0
_COMMAND = [sys.executable, "-c", "from flows.cli.app import main; main()", "serve"]


def scratch_registry(root: Path, bundles: Sequence[Path]) -> MlflowClient:
    """Make `root` a project whose registry has one version for every bundle; version 1 is champion.

    Nothing is copied: a version's files are a link to its bundle.
    """
    (root / ".dvc").mkdir(parents=True)
    (root / "dvc.yaml").write_text("stages: {}\n")
    client = connect(root)
    client.create_registered_model(MODEL)
    for number, bundle in enumerate(bundles, start=1):
        files = artifact_root(root) / f"version-{number}"
        (files / "artifacts").mkdir(parents=True)
        (files / "artifacts" / "bundle").symlink_to(bundle.resolve(), target_is_directory=True)
        client.create_model_version(MODEL, source=files.as_uri())
    make_champion(client, 1)
    return client


def make_champion(client: MlflowClient, number: int) -> None:
    """Move the champion's alias to a version."""
    client.set_registered_model_alias(MODEL, CHAMPION, str(number))


@dataclass(frozen=True)
class ServerProcess:
    """`intaglio serve` as a process of its own; `log` has what it printed."""

    process: subprocess.Popen[bytes]
    log: Path

    def output(self) -> str:
        """Return what it printed so far."""
        return self.log.read_text()

    def address(self) -> str:
        """Wait until it is ready, and return its address.

        Raises:
            IntaglioError: it ended, or is not ready in time.
        """
        deadline = time.monotonic() + _START_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            for line in self.output().splitlines():
                if line.startswith("ready: "):
                    return line.rpartition(" ")[2]
            time.sleep(0.05)
        raise IntaglioError(f"the server did not start; its last output: {self.output()[-300:]}")

    def stop(self) -> int:
        """Send SIGTERM, wait for the end, and return the exit status."""
        self.process.terminate()
        return self.process.wait(_STOP_SECONDS)


@contextmanager
def serving(root: Path, log: Path, *options: str) -> Iterator[ServerProcess]:
    """Run a server of the project at `root` on a free port of this machine, for as long as the block runs."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*_COMMAND, "--port", "0", *options],
            cwd=root,
            env={**quiet_environment(root), **os.environ},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        yield ServerProcess(process, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
