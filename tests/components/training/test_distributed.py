"""Several processes that train one module: the losses of one, the same bytes after a kill, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from components.data.manifest import read_manifest, split_of
from components.io import sha256_file
from components.modules.low_rank import read_component
from components.training.checkpoint import SECONDS_VARIABLE
from components.training.distributed import ProcessGroup

PATIENCE = 120.0  # seconds, on a busy machine


@given(st.integers(0, 40), st.integers(1, 6))
def test_the_shares_of_a_batch_are_the_batch(rows: int, count: int) -> None:
    shares = [ProcessGroup(rank, count).share(torch.arange(rows)) for rank in range(count)]
    assert torch.cat(shares).tolist() == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_two_processes_learn_what_one_does_and_so_they_do_after_kills(learned: Path) -> None:
    images = len(split_of(read_manifest(learned, "high"), "train"))
    # The last batch has one image: of two processes one has no share in it.
    change(learned, batch_size=next(size for size in range(2, images) if images % size == 1))
    finish(start(learned))  # with as many threads as each of the two will have: sums in another order differ
    curve, component = losses(learned), read_component(learned / "models/modules/high")
    change(learned, processes=2)
    assert finish(start(learned)).count("3/3") == 1  # only the first one prints
    # Sums in another order; Adam, which divides by a gradient's size, makes most of it where gradients vanish.
    np.testing.assert_allclose(losses(learned), curve, rtol=1e-3)
    for layer, update in read_component(learned / "models/modules/high").items():
        np.testing.assert_allclose(update.b @ update.a, component[layer].b @ component[layer].a, atol=1e-4)
    clean = digests(learned)
    kill_one_process(learned)
    kill_the_launcher(learned)
    assert "goes on after step" in finish(start(learned))
    assert digests(learned) == clean


def kill_one_process(root: Path) -> None:
    """The stage ends with one line that names it, and no process is left."""
    stage = start(root, checkpoint_seconds="0")
    until(lambda: checkpoints(root))
    pids = workers(stage)
    os.kill(pids[1], signal.SIGKILL)
    _, error = stage.communicate(timeout=PATIENCE)
    assert stage.returncode == 1
    assert [line for line in error.splitlines() if line.startswith("error: ")] == [
        f"error: training process 1 of 2 (pid {pids[1]}) was ended by SIGKILL, so the others were stopped; if the "
        "machine ran out of memory, lower finetune.processes; started again, training goes on from its last checkpoint"
    ]
    until(lambda: not any(map(runs, pids)))


def kill_the_launcher(root: Path) -> None:
    """The kernel ends the processes with it."""
    before = max(checkpoints(root))
    stage = start(root, checkpoint_seconds="0")
    until(lambda: max(checkpoints(root)) > before)
    pids = workers(stage)
    assert len(pids) == 2
    stage.kill()
    stage.communicate(timeout=PATIENCE)
    until(lambda: not any(map(runs, pids)))


def test_an_error_of_all_processes_is_printed_once(learned: Path) -> None:
    change(learned, processes=2, learning_rate=9.0, head_learning_rate=9.0, batch_size=2)
    stage = start(learned)
    _, error = stage.communicate(timeout=PATIENCE)
    assert stage.returncode == 1
    assert error.count("error: ") == 1
    assert "error: task 'high': training diverged" in error


def start(root: Path, checkpoint_seconds: str = "10") -> subprocess.Popen[str]:
    """The stage `finetune high`, as DVC starts it."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DVC_STAGE": "finetune@high", SECONDS_VARIABLE: checkpoint_seconds}
    command = [sys.executable, "-m", "components.stages", "finetune", "high"]
    return subprocess.Popen(command, cwd=root, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(stage: subprocess.Popen[str]) -> str:
    """What a stage printed to its end, which must be a success."""
    output, error = stage.communicate(timeout=PATIENCE)
    assert stage.returncode == 0, error
    return output


def change(root: Path, **values: object) -> None:
    """Other settings in the section `finetune` of params.yaml."""
    yaml, path = YAML(), root / "params.yaml"
    params = yaml.load(path)
    params["finetune"].update(values)
    yaml.dump(params, path)


def losses(root: Path) -> pd.DataFrame:
    """The loss curves of the training."""
    return pd.read_csv(root / "reports/finetune/high.csv")[["train_loss", "val_loss"]]


def digests(root: Path) -> dict[str, str]:
    """The files of the module, and the curve."""
    files = [*(root / "models/modules/high").rglob("*.*"), root / "reports/finetune/high.csv"]
    return {path.name: sha256_file(path) for path in files}


def checkpoints(root: Path) -> list[str]:
    """The names of the checkpoints, which begin with their step."""
    return [path.name for path in root.glob(".intaglio/checkpoints/high/*/[0-9]*-*.safetensors")]


def workers(stage: subprocess.Popen[str]) -> list[int]:
    """The pids of the processes that a stage has started, by rank."""
    children = Path(f"/proc/{stage.pid}/task/{stage.pid}/children").read_text().split()
    return sorted(map(int, children), key=lambda pid: b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())


def until(there: Callable[[], object]) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + PATIENCE
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def runs(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
