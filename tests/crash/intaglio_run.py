"""The whole command `intaglio run`, as a person starts it, and a kill in the middle of it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tests.crash.processes import descendants, twice_at_work
from tests.crash.world import environment

_LONGEST = 600.0  # seconds; a run that hangs is a finding, not a wait
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Attempt:
    """How the command ended, whether we killed it, what it printed, and at which stages two processes were seen."""

    status: int
    struck: bool
    output: str
    twice: tuple[str, ...]


def command() -> list[str]:
    """The console command, with this interpreter."""
    return [sys.executable, "-c", "from flows.cli.app import main; main()", "run"]


def run_intaglio(root: Path, after: float = _LONGEST, whom: str = "all", dice: random.Random | None = None) -> Attempt:
    """Run it; after some seconds SIGKILL its leader, `any` process of it, or `all`."""
    twice: set[str] = set()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command(), cwd=root, env=environment(root), stdout=output, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + after
        while process.poll() is None and time.monotonic() < deadline:
            twice.update(twice_at_work(root))
            time.sleep(_POLL_SECONDS)
        family = [process.pid, *descendants(process.pid)]
        if struck := process.poll() is None:
            chosen = {"leader": family[:1], "all": family}.get(whom) or [(dice or random).choice(family)]
            for victim in chosen:
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
        status = process.wait(_LONGEST)
        output.seek(0)
        return Attempt(status, struck, output.read(), tuple(sorted(twice)))
