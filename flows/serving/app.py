"""The HTTP interface: the routes, and the one form of every error."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException as StarletteError
from starlette.requests import ClientDisconnect

from flows.serving.answers import many_answers, one_answer
from flows.serving.batcher import AnswerOptions
from flows.serving.bodies import media_type, read_body, read_images
from flows.serving.errors import RequestError
from flows.serving.invocations import read_invocation, write_rows
from flows.serving.service import Answers, Service

VERSION_HEADER = "intaglio-model-version"
_TOP = 100

router = APIRouter()
Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(service: Service, lifespan: Lifespan) -> FastAPI:
    """Build the application over a service."""
    # No pages for the browser: FastAPI's load their scripts from a foreign host. /openapi.json is there.
    app = FastAPI(title="Intaglio", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.service = service
    app.include_router(router)
    for known in (RequestError, RequestValidationError, StarletteError, ClientDisconnect):
        app.add_exception_handler(known, _refused)
    app.add_exception_handler(Exception, _failed)
    return app


_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"image": {"type": "string", "format": "binary"}}}
            },
            "application/json": {
                "schema": {
                    "oneOf": [
                        {"type": "object", "required": ["image"], "properties": {"image": {"type": "string"}}},
                        {
                            "type": "object",
                            "required": ["images"],
                            "properties": {"images": {"type": "array", "items": {"type": "string"}}},
                        },
                    ]
                }
            },
        },
    }
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "Malformed: the body is not what its content type says."},
    408: {"description": "The body did not arrive in time."},
    413: {"description": "The body is too large, or has too many images."},
    415: {"description": "Another content type."},
    422: {"description": "The image cannot be read."},
    503: {"description": "Overloaded, loading or draining; Retry-After says when to try again."},
}


@router.post("/predict", openapi_extra=_BODY, responses=_ERRORS)
async def predict(request: Request, top: Annotated[int, Query(ge=1, le=_TOP)] = 1, force: bool = False) -> Response:
    """Predict one image (raw bytes, a form with one file, {"image": base64}) or several ({"images": [...]})."""
    service = _service(request)
    with service.batcher.receiving():
        images = await read_images(request, service.body_seconds, service.batcher.limit)
    answers = await _unless_gone(request, service.answer(images.encoded, AnswerOptions(top, force)))
    status, body = (200, many_answers(answers)) if images.several else one_answer(answers)
    return _json(body, status, answers.version)


@router.post("/invocations", responses=_ERRORS)
async def invocations(request: Request) -> Response:
    """Predict a table with the column `image`, by MLflow's scoring protocol."""
    service = _service(request)
    with service.batcher.receiving():
        body = await read_body(request, service.body_seconds)
        invocation = await asyncio.to_thread(read_invocation, body, media_type(request))
    options = AnswerOptions(force=invocation.force)
    answers = await _unless_gone(request, service.answer(invocation.encoded, options))
    return _json(write_rows(answers.rows), 200, answers.version)


@router.get("/health")
async def health(request: Request) -> Response:
    """Return 200 while requests are accepted; 503 while the first model is loaded, and after a signal to stop."""
    service = _service(request)
    model = service.follower.model
    state = {
        "status": service.status,
        "model_version": model and model.version,
        "trouble": service.follower.trouble or None,
        "uptime_seconds": round(time.monotonic() - service.started, 1),
    }
    return JSONResponse(state, 200 if service.status == "ready" else 503)


@router.get("/ping")
async def ping(request: Request) -> Response:
    """Return the status of /health, under MLflow's name for it."""
    return Response("\n", 200 if _service(request).status == "ready" else 503, media_type="application/json")


@router.get("/model")
async def model(request: Request) -> Response:
    """Describe the version that is served, its tasks and their classes."""
    served = _service(request).model
    facts = {
        "version": served.version,
        "loaded_at": datetime.fromtimestamp(served.loaded_at, UTC).isoformat(timespec="seconds"),
        "image_size": served.predictor.image_size,
        "tasks": {task: list(classes) for task, classes in served.predictor.tasks.items()},
    }
    return JSONResponse(facts)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Return the figures for Prometheus."""
    return Response(_service(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _json(body: bytes, status: int, version: str) -> Response:
    return Response(body, status, {VERSION_HEADER: version}, "application/json")


async def _unless_gone(request: Request, answering: Coroutine[Any, Any, Answers]) -> Answers:
    """Return the answers, unless the client hangs up first: then work that has not begun is cancelled.

    Raises:
        ClientDisconnect: the client hung up.
    """
    answer, gone = asyncio.create_task(answering), asyncio.create_task(_hung_up(request))
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        answer.cancel()
        gone.cancel()


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _refused(_request: Request, error: Exception) -> Response:
    """Give every expected error one form, of whatever library it comes."""
    if isinstance(error, RequestError):
        headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        return JSONResponse({"error": str(error)}, error.status, headers)
    if isinstance(error, StarletteError):
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)
    if isinstance(error, RequestValidationError):
        faults = [f"{fault['loc'][-1]}: {fault['msg']}" for fault in error.errors()]
        return JSONResponse({"error": "; ".join(faults)}, 400)
    return JSONResponse({"error": "the client went away"}, 499)


async def _failed(_request: Request, _error: Exception) -> Response:
    """Answer after a bug: the log has its trace, the client gets a body of the usual form."""
    return JSONResponse({"error": "internal error; the server's log has more"}, 500)
