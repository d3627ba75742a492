"""Predictions as the JSON of HTTP answers."""

from __future__ import annotations

import json
from typing import Any

from components.data.images import ImageError
from components.inference.prediction_schema import HTTP, as_object
from flows.serving.service import Answer, Answers


def one_answer(answers: Answers) -> tuple[int, bytes]:
    """Return status and body for a request with one image: 422 where it is broken."""
    row = answers.rows[0]
    status = 422 if isinstance(row, ImageError) else 200
    return status, json.dumps({"model_version": answers.version, **_fields(row)}).encode()


def many_answers(answers: Answers) -> bytes:
    """Return the body for a request with a list of images: a broken one has an `error` and does not affect others."""
    rows = [_fields(row) for row in answers.rows]
    return json.dumps({"model_version": answers.version, "predictions": rows}).encode()


def _fields(row: Answer) -> dict[str, Any]:
    return as_object(HTTP, str(row) if isinstance(row, ImageError) else row)
