"""From the body of a request to the images in it, still encoded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from starlette.exceptions import HTTPException as StarletteError

from flows.serving.errors import malformed, too_slow, unsupported

EXPECTED = "image/*, application/octet-stream, multipart/form-data or application/json"


@dataclass(frozen=True)
class RequestImages:
    """A request's images, still encoded; `several`: they came as a list, also where the list has one."""

    encoded: tuple[object, ...]
    several: bool


async def read_images(request: Request, seconds: float, most: int) -> RequestImages:
    """Read the images of a request: raw bytes, uploaded files, or JSON with base64 text.

    Args:
        request: its body is not read yet.
        seconds: that the body may take to arrive.
        most: uploaded files at most.

    Raises:
        RequestError: 400 malformed, 408 too slow, 413 too large, 415 another content type.
    """
    kind = media_type(request)
    if kind == "multipart/form-data":
        return await _uploaded(request, seconds, most)
    if kind.startswith("image/") or kind == "application/octet-stream":
        return RequestImages((await read_body(request, seconds),), several=False)
    if kind == "application/json":
        body = await read_body(request, seconds)
        return from_json(await asyncio.to_thread(parse_json, body))
    raise unsupported(kind, EXPECTED)


def media_type(request: Request) -> str:
    """Return the content type without its parameters, in lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_body(request: Request, seconds: float) -> bytes:
    """Read the whole body.

    Raises:
        RequestError: 408, it did not arrive in time; 413, it is too large.
    """
    try:
        async with asyncio.timeout(seconds):
            return await request.body()
    except TimeoutError:
        raise too_slow(seconds) from None


def parse_json(body: bytes) -> Mapping[str, Any]:
    """Parse a JSON object.

    Raises:
        RequestError: 400, the body is something else.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise malformed(f"not valid JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise malformed(f"expected a JSON object, got {type(value).__name__}")
    return value


def from_json(value: Mapping[str, Any]) -> RequestImages:
    """Return the images of {"image": text} or {"images": [text, ...]}.

    Raises:
        RequestError: 400, neither of them, or something beside it.
    """
    if set(value) == {"image"}:
        return RequestImages((value["image"],), several=False)
    if set(value) == {"images"} and isinstance(value["images"], list) and value["images"]:
        return RequestImages(tuple(value["images"]), several=True)
    expected = 'expected {"image": base64} or {"images": [base64, ...]} with at least one'
    raise malformed(f"{expected}; got the keys {sorted(value)[:5]}")


async def _uploaded(request: Request, seconds: float, most: int) -> RequestImages:
    try:
        async with asyncio.timeout(seconds), request.form(max_files=most) as form:
            files = [item for _, item in form.multi_items() if not isinstance(item, str)]
            encoded = tuple([await file.read() for file in files])
    except TimeoutError:
        raise too_slow(seconds) from None
    except StarletteError as error:
        raise malformed(f"not a valid multipart form: {error.detail}") from None
    if not encoded:
        raise malformed("the form has no file; send one, such as `curl -F image=@photo.jpg`")
    return RequestImages(encoded, several=len(encoded) > 1)
