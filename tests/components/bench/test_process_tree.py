"""A command is measured with the processes that it starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.bench.process_tree import run_measured, tree_memory_mb

CHILD = "import time; held = b'x' * 150_000_000; time.sleep(1)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}]); print('done'); sys.exit(3)"


def test_the_memory_of_a_child_counts(tmp_path: Path) -> None:
    done = run_measured([sys.executable, "-c", PARENT], tmp_path, os.environ)
    assert (done.status, done.output) == (3, "done\n")
    assert done.seconds > 1
    assert 150 < done.peak_memory_mb < 400


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
def test_a_process_that_has_ended_has_no_memory() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert tree_memory_mb(process.pid) == 0
    assert tree_memory_mb(os.getpid()) > 10
