"""MLflow's scoring protocol, read and written with MLflow's own code, so that its clients keep working."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server

from components.data.images import ImageError
from components.inference.prediction_schema import TABLE, as_table_row
from components.inference.predictor import Prediction
from flows.registry.register import SIGNATURE
from flows.serving.bodies import parse_json
from flows.serving.errors import malformed, unsupported

EXPECTED = "application/json, text/csv or application/vnd.apache.parquet"
_MESSAGE = 300  # characters of a foreign message: MLflow repeats the request's data in some


@dataclass(frozen=True)
class Invocation:
    """A request's column of images, still encoded, and whether an image of no known task gets the best guess."""

    encoded: tuple[object, ...]
    force: bool


def read_invocation(body: bytes, kind: str) -> Invocation:
    """Read dataframe_split, dataframe_records, inputs or instances as JSON; or a table as CSV or parquet.

    Raises:
        RequestError: 400 malformed, 415 another content type.
    """
    try:
        if kind == scoring_server.CONTENT_TYPE_JSON:
            return _from_json(parse_json(body))
        if kind == scoring_server.CONTENT_TYPE_CSV:
            text = io.StringIO(body.decode())
            return Invocation(_column(scoring_server.parse_csv_input(text)), force=False)
        if kind == scoring_server.CONTENT_TYPE_PARQUET:
            return Invocation(_column(pd.read_parquet(io.BytesIO(body))), force=False)
    except MlflowException as error:
        raise malformed(str(error.message)[:_MESSAGE]) from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise malformed(f"not a table that MLflow's protocol knows: {str(error)[:_MESSAGE]}") from None
    raise unsupported(kind, EXPECTED)


def _from_json(value: Mapping[str, Any]) -> Invocation:
    data = {key: item for key, item in value.items() if key in scoring_server.SUPPORTED_FORMATS}
    parsed = scoring_server.infer_and_parse_data(data, SIGNATURE.inputs)
    return Invocation(_column(parsed), force=bool((value.get("params") or {}).get("force", False)))


def _column(data: Any) -> tuple[object, ...]:
    """Return the column `image` of what MLflow's parsers return: a table, a list of rows, or columns."""
    if not isinstance(data, Mapping):
        table = pd.DataFrame(data)
        if "image" not in table:
            raise ValueError(f"expected a column named 'image', got {[str(name) for name in table.columns][:5]}")
        return tuple(table["image"])
    column = data["image"]
    if isinstance(column, np.ndarray) or (isinstance(column, list) and all(isinstance(value, str) for value in column)):
        return tuple(column)
    return (column,)  # one text, or one image as nested lists


def write_rows(rows: Sequence[Prediction | ImageError]) -> bytes:
    """Return the answer as MLflow's server writes it: one object with the fields of TABLE for every row."""
    results = [str(row) if isinstance(row, ImageError) else row for row in rows]
    return json.dumps({"predictions": [as_table_row(TABLE, result) for result in results]}).encode()
