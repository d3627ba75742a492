"""`intaglio predict --engine dask`: the same predictions by worker processes, of this machine or of a cluster.

Workers predict chunks of files, in order and a few ahead. Dask gives the chunks of a worker that died to another one.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from components.errors import IntaglioError
from components.inference.batch import FileResult, WorkerSettings, predict_chunk
from components.inference.bundle import fingerprint
from flows.prediction.request import PredictionRequest

_CHUNK = 128  # files a worker is given at a time
_AHEAD = 3  # chunks in hand for every thread of the cluster
_WORKERS = 2
_DEATHS = 5  # workers that may die over one chunk before its files are tried one by one
_ANY_PORT = "127.0.0.1:0"
_IGNORE_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"  # the command ends its workers itself


def predict_on_cluster(request: PredictionRequest, paths: Iterator[str]) -> Iterator[FileResult]:
    """Predict every path, in order.

    Raises:
        IntaglioError: Dask is not installed, the scheduler cannot be reached, or a worker sees another bundle.
    """
    settings = WorkerSettings(
        bundle=request.bundle.resolve(),
        fingerprint=fingerprint(request.bundle),
        folder=Path.cwd(),
        device=request.device,
        precision=request.precision,
        top=request.top,
        force=request.force,
    )
    with _client(request) as client, _explained(client):
        ahead: deque[tuple[tuple[str, ...], Any]] = deque()
        while chunk := tuple(islice(paths, _CHUNK)):
            ahead.append((chunk, _submit(client, settings, chunk)))
            if len(ahead) >= _AHEAD * max(1, sum(client.nthreads().values())):
                yield from _results(client, settings, *ahead.popleft())
        while ahead:
            yield from _results(client, settings, *ahead.popleft())


def _submit(client: Any, settings: WorkerSettings, chunk: tuple[str, ...]) -> Any:
    # Not pure: the same files may be asked for twice.
    return client.submit(predict_chunk, settings, chunk, pure=False)


def _results(client: Any, settings: WorkerSettings, chunk: tuple[str, ...], future: Any) -> list[FileResult]:
    from distributed import KilledWorker

    try:
        results: list[FileResult] = future.result()
        return results
    except KilledWorker:
        if len(chunk) == 1:
            return [FileResult(chunk[0], None, "the worker that read this file died, every time")]
    # One file of the chunk ends its worker: one by one shows which.
    return [one for path in chunk for one in _results(client, settings, (path,), _submit(client, settings, (path,)))]


@contextmanager
def _explained(client: Any) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, CancelledError) as error:
        if client.status == "running":  # not the cluster's fault
            raise
        raise IntaglioError(f"the Dask cluster went away ({' '.join(str(error).split()) or 'cancelled'})") from None


@contextmanager
def _client(request: PredictionRequest) -> Iterator[Any]:
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError:
        raise IntaglioError("--engine dask needs Dask: pip install 'intaglio[cluster]'") from None
    logging.getLogger("distributed").setLevel(logging.ERROR)  # the death of a worker needs no attention
    if request.scheduler:
        try:
            client = Client(request.scheduler, set_as_default=False)
        except (OSError, ValueError) as error:
            raise IntaglioError(f"--scheduler {request.scheduler}: cannot be reached ({error})") from None
        with client:
            yield client
        return
    workers = request.workers or _WORKERS
    threads = max(1, (os.cpu_count() or 1) // workers)
    settings = {
        "distributed.scheduler.allowed-failures": _DEATHS,
        "distributed.worker.preload": [_IGNORE_CTRL_C],
        "distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS": threads,
    }
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=workers, threads_per_worker=1, dashboard_address=_ANY_PORT, silence_logs=logging.ERROR
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client
