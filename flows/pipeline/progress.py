"""What a person at the terminal sees of a run: which stage of how many, how long, and what it prints."""

from __future__ import annotations

import sys
import threading
import time
from contextlib import suppress
from typing import TextIO

from flows.durations import duration


class Progress:
    """The progress of a run of `total` stages, printed line by line; safe to call from several threads."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self._total, self._done = total, 0
        self._stream = stream or sys.stdout
        self._lock = threading.Lock()
        self._begun = time.monotonic()

    def show(self, line: str) -> None:
        """Print one line at once. A terminal that has gone away does not stop the run."""
        with self._lock, suppress(OSError, ValueError):
            print(line, file=self._stream, flush=True)

    def up_to_date(self, count: int) -> None:
        """Count the stages that need not be looked at."""
        self._done += count
        todo = self._total - count
        rest = f"{todo} to check or run" if todo else "nothing to run"
        self.show(f"{self._total} stages: {count} up to date, {rest}")

    def started(self, stage: str) -> None:
        """Show that a stage begins."""
        self.show(f"{self._position} {stage} ...")

    def printed(self, stage: str, line: str) -> None:
        """Show one line that a stage printed."""
        self.show(f"    {stage} | {line}")

    def finished(self, stage: str, outcome: str, seconds: float) -> None:
        """Count a stage that ended, and show how.

        Args:
            stage: its name.
            outcome: `ran` or `cached`.
            seconds: how long it took.
        """
        with self._lock:
            self._done += 1
        self.show(f"{self._position} {stage} {outcome} ({duration(seconds)})")

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._begun

    @property
    def _position(self) -> str:
        width = len(str(self._total))
        return f"[{self._done:>{width}}/{self._total} done, {duration(self.elapsed)}]"
