"""`intaglio serve`: the process around the application, from the socket to the exit status."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

import uvicorn
from fastapi import FastAPI

from components.errors import IntaglioError
from flows.serving.app import create_app
from flows.serving.batcher import MicroBatcher
from flows.serving.metrics import Metrics
from flows.serving.middleware import ServiceMiddleware
from flows.serving.reload import Follower
from flows.serving.served_model import ServedModel, Source
from flows.serving.service import Service

_KEEP_ALIVE = 75  # seconds; longer than a proxy's usual 60, so that it is the proxy that closes an idle connection
_BACKLOG = 2048  # connections that wait for the loop
_DECODERS = 4  # at most: they share the processor with the model

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """How to serve.

    Attributes:
        host: Address to listen on.
        port: 0 for any free one.
        batch: Images predicted together at most.
        delay: Seconds that an image waits for others at most.
        queue: Images held at most; more are refused with 503.
        device: auto, cpu, cuda or mps.
        precision: auto, fp32 or bf16.
        poll: Seconds between two checks of the version to serve.
        max_body: Bytes of a request's body at most.
        body_seconds: Seconds that a body may take to arrive.
        drain: Seconds of service after the first signal to stop, while /health returns 503.
        grace: Seconds that running requests have to end after that.
        access_log: Whether to log one JSON line for each request.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    batch: int = 32
    delay: float = 0.005
    queue: int = 256
    device: str = "auto"
    precision: str = "auto"
    poll: float = 5.0
    max_body: int = 16 * 2**20
    body_seconds: float = 30.0
    drain: float = 1.0
    grace: float = 30.0
    access_log: bool = False


def serve(options: Options, source: Source) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises:
        IntaglioError: the address is taken, or the first version cannot be loaded.
    """
    _log_to_stderr(options.access_log)
    with _listener(options) as listener:
        process = _Process(options, source)
        process.run(listener)
    if process.fatal:
        raise IntaglioError(process.fatal)


class _Process:
    """The process from its start to its end: load, serve, drain."""

    def __init__(self, options: Options, source: Source) -> None:
        metrics = Metrics()
        batcher = MicroBatcher(
            options.batch, options.delay, options.queue, min(_DECODERS, os.cpu_count() or 1), metrics.batch
        )
        metrics.depth_of(lambda: batcher.depth)
        follower = Follower(source, partial(load_version, source, options), metrics, options.poll)
        self.fatal = ""
        self._options = options
        self._service = Service(batcher, follower, metrics, options.body_seconds)
        self._follower = threading.Thread(target=self._follow, name="follower", daemon=True)
        app = ServiceMiddleware(create_app(self._service, self._lifespan), self._service, options.max_body)
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=max(1, round(options.grace)),
            )
        )

    def run(self, listener: socket.socket) -> None:
        """Serve until a signal to stop, or until the first version turns out to be broken."""
        self._address = _address(listener)
        print(f"listening on {self._address}", flush=True)
        self._server.run(sockets=[listener])
        # The loop no longer handles signals: another one now would turn an orderly end into a failure.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)

    @asynccontextmanager
    async def _lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):  # in place of uvicorn's, which stop at once
            loop.add_signal_handler(number, self._drain, loop)
        self._follower.start()
        yield
        await asyncio.to_thread(self._service.close, self._follower)

    def _drain(self, loop: asyncio.AbstractEventLoop) -> None:
        """Handle a signal to stop: after the first, /health returns 503 for a while; the second stops at once."""
        if self._service.draining:
            self._stop()
            return
        self._service.draining = True
        _log.info("draining: %d images are being answered", self._service.batcher.depth)
        loop.call_later(self._options.drain, self._stop)

    def _stop(self) -> None:
        self._server.should_exit = True

    def _follow(self) -> None:
        follower = self._service.follower
        follower.check()
        if follower.model is None:
            self.fatal = follower.trouble
            self._stop()
            return
        if self._service.draining:
            return
        print(f"ready: version {follower.model.version} on {self._address}", flush=True)
        follower.follow()


def load_version(source: Source, options: Options, version: str) -> ServedModel:
    """Load a version with the device, the precision and the batch of `options`.

    Args:
        source: has the version's bundle.
        options: how to serve.
        version: its name.

    Raises:
        IntaglioError: it is broken.
    """
    return ServedModel.load(version, source.bundle(version), options.device, options.precision, options.batch)


def _listener(options: Options) -> socket.socket:
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    try:
        return socket.create_server((options.host, options.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        where = f"{options.host}:{options.port}"
        raise IntaglioError(
            f"{where}: cannot listen there ({error.strerror or error}); choose another --port, or 0 for any free one"
        ) from None


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _log_to_stderr(access: bool) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (
        ("flows.serving", logging.INFO),
        ("intaglio.access", logging.INFO if access else logging.WARNING),
        ("uvicorn", logging.WARNING),
    ):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)
