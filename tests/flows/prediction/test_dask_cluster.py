"""`--engine dask`: the same rows as here, whatever happens to the workers."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import pandas as pd
import pytest
from distributed import Client, LocalCluster, WorkerPlugin

from components.errors import IntaglioError
from components.inference import batch, decoding
from components.inference.batch import WorkerSettings, predict_chunk
from components.inference.image_paths import listed_paths
from flows.cli.app import run_command

Capture = pytest.CaptureFixture[str]
IMPATIENT = {"distributed.comm.timeouts.connect": "1s"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        yield cluster


def predict(bundle: Path, *arguments: str) -> int:
    return run_command(["predict", "--bundle", str(bundle), "--device", "cpu", "--force", *arguments])


@pytest.fixture
def listed(folder: Path, images: list[str]) -> list[str]:
    """A list.txt of 1,200 paths, some of them broken, and the current folder's own a.png."""
    (folder / "a.png").write_bytes(Path(images[0]).read_bytes())
    paths = [*images, "nowhere.png", *images * 9, "a.png", "a.png"][:1200]
    Path("list.txt").write_text("\n".join(paths))
    return paths


def test_the_same_rows_in_the_same_order(bundle: Path, listed: list[str]) -> None:
    """By a cluster that the command starts itself."""
    assert predict(bundle, "--list", "list.txt", "--output", "here.parquet") == 0
    own = ("--engine", "dask", "--workers", "1")
    assert predict(bundle, "--list", "list.txt", "--output", "there.parquet", *own) == 0
    here, there = pd.read_parquet("here.parquet"), pd.read_parquet("there.parquet")
    assert list(there["path"]) == listed
    pd.testing.assert_frame_equal(here, there, atol=1e-4)


def test_killed_workers_lose_nothing(
    bundle: Path, cluster: LocalCluster, listed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = []

    def lines() -> Iterator[bytes]:
        """Standard input, during which workers die."""
        for number, path in enumerate(listed):
            if number in (800, 1100):
                worker = cluster.workers[number % 2]
                killed.append(worker.pid)
                os.kill(worker.pid, signal.SIGKILL)
            yield os.fsencode(f"{path}\n")

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=lines()))
    scheduled = ("--engine", "dask", "--scheduler", cluster.scheduler_address)
    assert predict(bundle, "-", "--output", "out.csv", *scheduled) == 0
    assert len(killed) == 2
    assert list(listed_paths(Path("out.csv"))) == listed
    table = pd.read_csv("out.csv")
    assert list(table.loc[table["error"].notna(), "path"]) == ["nowhere.png"]


class DeadlyFile(WorkerPlugin):
    """Has workers die of one file, as a decoder that crashes has them."""

    def setup(self, worker: Any) -> None:
        def deadly(paths: list[str], *arguments: Any) -> Any:
            if any(path.endswith("deadly.png") for path in paths):
                os.kill(os.getpid(), signal.SIGKILL)
            return decoding.decode(paths, *arguments)

        batch.decode = deadly

    def teardown(self, worker: Any) -> None:
        batch.decode = decoding.decode


def test_a_file_that_kills_its_worker_gets_an_error(bundle: Path, cluster: LocalCluster, folder: Path) -> None:
    Path("list.txt").write_text("\n".join(["nowhere.png", "deadly.png", "nothing.png"]))
    cluster.scheduler.allowed_failures = 0
    with Client(cluster, set_as_default=False) as client:
        client.register_plugin(DeadlyFile(), name="deadly")
        scheduled = ("--engine", "dask", "--scheduler", cluster.scheduler_address)
        assert predict(bundle, "--list", "list.txt", "--output", "out.csv", *scheduled) == 0
        client.unregister_worker_plugin("deadly")
    assert dict(pd.read_csv("out.csv")[["path", "error"]].itertuples(index=False)) == {
        "nowhere.png": "no such file",
        "deadly.png": "the worker that read this file died, every time",
        "nothing.png": "no such file",
    }


def test_a_worker_that_sees_another_bundle(bundle: Path) -> None:
    settings = WorkerSettings(bundle, "of another bundle", Path(), "cpu", "auto", 1, False)
    with pytest.raises(IntaglioError, match="another bundle than the one on the client's disk"):
        predict_chunk(settings, ["a.png"])


def test_a_scheduler_that_is_not_there(bundle: Path, folder: Path, capsys: Capture) -> None:
    with dask.config.set(IMPATIENT):
        assert predict(bundle, "a.png", "--engine", "dask", "--scheduler", "tcp://127.0.0.1:9") == 1
    assert "error: --scheduler tcp://127.0.0.1:9: cannot be reached" in capsys.readouterr().err


def test_a_scheduler_that_goes_away(
    bundle: Path, listed: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def lines(cluster: LocalCluster) -> Iterator[bytes]:
        for number, path in enumerate(listed):
            if number == 1000:
                cluster.close()
            yield os.fsencode(f"{path}\n")

    options = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0"}
    with dask.config.set(IMPATIENT), LocalCluster(**options) as cluster:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=lines(cluster)))
        scheduled = ("--engine", "dask", "--scheduler", cluster.scheduler_address)
        assert predict(bundle, "-", "--output", "out.csv", *scheduled) == 1
    err = capsys.readouterr().err
    assert "the same command with --resume does the rest" in err
    assert "error: the Dask cluster went away" in err


def test_without_dask(bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert predict(bundle, "a.png", "--engine", "dask") == 1
    assert "error: --engine dask needs Dask: pip install 'intaglio[cluster]'" in capsys.readouterr().err
