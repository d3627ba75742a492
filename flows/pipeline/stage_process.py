"""Run one stage of dvc.yaml as a process group that ends with this process at the latest."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from components.errors import TRY_AGAIN, IntaglioError, TransientError
from flows.pipeline import supervisor
from flows.pipeline.lock import lock_descriptors
from flows.planning.dag import BUSY
from flows.settings import stage_environment

Outcome = Literal["ran", "cached"]

_POLL_SECONDS = 0.1
_EXIT_STATUS = re.compile(r"ERROR: failed to reproduce .* exited with (-?\d+)$")
_RUNNING = re.compile(r"Running stage '")
_CHATTER = re.compile(
    r"\s*$|> |Running stage '|Stage '.*' (didn't change|is cached)|Data and pipelines are up to date\.|Use `dvc push`"
    r"|(Updating|Generating) lock file|WARNING: Process '.*' had been killed\. "
    r"|To track the changes with git, run:|\s+git add |To enable auto staging|\s+dvc config core\.autostage"
    r"|ERROR: failed to reproduce '.*': failed to run"
)


class StageStoppedError(IntaglioError):
    """The run was cancelled while the stage was running."""


def run_stage(root: Path, stage: str, on_line: Callable[[str], None], stop: threading.Event) -> Outcome:
    """Run `dvc repro --single-item STAGE` and pass on the stage's own output line by line.

    `--wait-for-lock` with `--single-item` is the one combination that lets independent stages run side by side.

    Args:
        root: the project's folder.
        stage: the stage's name in the resolved dvc.yaml, such as `finetune@animals`.
        on_line: receives every line of the stage's output, from another thread; DVC's chatter is left out.
        stop: when set, the stage is killed.

    Returns:
        "ran", or "cached" where DVC found the result up to date or in its cache.

    Raises:
        TransientError: the stage exited with 75, or another DVC process holds one of its files.
        StageStoppedError: `stop` was set.
        IntaglioError: the stage failed; the message holds its `error:` lines and the command that resumes.
    """
    command = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", stage]
    output = _Output(on_line)
    status = _supervise(command, root, output, stop)
    if status != 0 and stop.is_set():
        raise StageStoppedError(f"{stage}: stopped; `intaglio run` starts it again")
    if status != 0:
        raise failure(stage, output.tail)
    return "ran" if output.ran else "cached"


class _Output:
    """The output of a stage: passed on, and its end kept for the error message."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self.on_line, self.ran = on_line, False
        self.tail: deque[str] = deque(maxlen=200)

    def consume(self, lines: Iterable[str]) -> None:
        for line in lines:
            line = line.rstrip()
            self.tail.append(line)
            self.ran = self.ran or bool(_RUNNING.match(line))
            if not _CHATTER.match(line):
                self.on_line(line)


def _supervise(command: list[str], root: Path, output: _Output, stop: threading.Event) -> int:
    process = subprocess.Popen(
        [sys.executable, "-S", supervisor.__file__, *command],
        cwd=root,
        env=stage_environment(root),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        pass_fds=lock_descriptors(root),
    )
    reader = threading.Thread(target=output.consume, args=(process.stdout,), daemon=True)
    reader.start()
    try:
        while process.poll() is None and not stop.wait(_POLL_SECONDS):
            pass
    finally:
        _end(process)
        reader.join(supervisor.GRACE_SECONDS)
    return process.returncode


def _end(process: subprocess.Popen[str]) -> None:
    """Have the supervisor end the command, if it still runs; then end what is left of the group."""
    if process.stdin:
        process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(2 * supervisor.GRACE_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def failure(stage: str, output: Iterable[str]) -> IntaglioError:
    """Return the error for a failed stage.

    Args:
        stage: its name.
        output: the last lines of DVC and the stage. The reason is the stage's own `error:` lines; without any, the last
            line that is not DVC's chatter.
    """
    lines = [line for line in output if line.strip()]
    own = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
    reason = "; ".join(own) or _last_line(lines)
    status = _exit_status(lines)
    if status == TRY_AGAIN:
        return TransientError(f"{stage}: {reason}")
    if status is None and any(BUSY.search(line) for line in lines):
        return TransientError(f"{stage}: another DVC process holds one of its files ({reason})")
    ending = "" if own or status is None else f" (exit status {status})"
    return IntaglioError(
        f"{stage}: {reason}{ending}. Once that is put right, `intaglio run` resumes here and repeats no finished stage "
        f"(this one alone: `dvc repro --single-item {stage}`)"
    )


def _last_line(lines: Sequence[str]) -> str:
    printed = [line for line in lines if not _CHATTER.match(line)] or [*lines] or ["no output"]
    return printed[-1].strip()


def _exit_status(lines: Sequence[str]) -> int | None:
    """Return the status with which the stage ended, as DVC reports it; None if DVC did not run it."""
    found = [match[1] for match in map(_EXIT_STATUS.match, lines) if match]
    return int(found[-1]) if found else None
