"""A tiny learned bundle, and the command as a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.crash.world import TASKS, environment, make_project

_STAGES = [
    "backbone",
    "fetch",
    *[f"{stage} {task}" for stage in ("ingest", "finetune", "signature") for task in TASKS],
    "bundle",
]
_LEARN = """
import sys
from components.stages import main
for stage in sys.argv[1:]:
    assert main(stage.split()) == 0, stage
"""


def make_bundle(root: Path) -> Path:
    """A project at `root` with two tasks learned by timm's smallest ViT; returns the folder of its bundle."""
    make_project(root)
    command = [sys.executable, "-c", _LEARN, *_STAGES]
    done = subprocess.run(command, cwd=root, env=environment(root), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return root / "models" / "bundle"


def start(folder: Path, *arguments: str, rows: int = 4096) -> subprocess.Popen[str]:
    """Start the console command in `folder`, in a group of its own; its output's parts have `rows` rows."""
    # A process in the background of a script inherits an ignored SIGINT, these tests included.
    signals = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    few_rows = (
        "from functools import partial; from flows.prediction import predict_to_file as command; "
        f"command.open_output = partial(command.open_output, part_rows={rows})"
    )
    code = f"{signals}; {few_rows}; from flows.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=environment(folder),
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
