"""Around every request: a limit on its body, its figures, a line of log, and `Connection: close` while draining."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.serving.errors import too_large
from flows.serving.service import Service

_access = logging.getLogger("intaglio.access")
ROUTES = frozenset({"/predict", "/invocations", "/ping", "/health", "/metrics", "/model", "/openapi.json"})


@dataclass(frozen=True)
class ServiceMiddleware:
    """The outermost layer of the application."""

    app: ASGIApp
    service: Service
    max_body: int

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and count it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if self.service.draining:  # so that a client opens its next connection to another server
                    message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        try:
            await self.app(scope, self._bounded(receive), sending)
        finally:
            self._note(scope, status, time.perf_counter() - start)

    def _bounded(self, receive: Receive) -> Receive:
        """Wrap `receive` to raise 413 once the body is larger than `max_body`, whatever its head declared."""
        size = 0

        async def receiving() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self.max_body:
                raise too_large(self.max_body)
            return message

        return receiving

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        path = scope["path"]
        self.service.metrics.request(path if path in ROUTES else "other", status, seconds)
        if _access.isEnabledFor(logging.INFO):
            line = {"method": scope["method"], "path": path, "status": status, "ms": round(1e3 * seconds, 1)}
            _access.info(json.dumps(line))
