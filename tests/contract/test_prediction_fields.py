"""The fields of a prediction, in every output that shows one: prediction_schema.py is the only list of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.data.images import ImageError
from components.inference.batch import FileResult, row_of
from components.inference.prediction_files import COLUMNS, FORMATS
from components.inference.prediction_schema import (
    ARRAY,
    ERROR,
    FIELDS,
    FILE,
    HTTP,
    NUMBER,
    OBJECT,
    PATH,
    STRING,
    TABLE,
    TERMINAL,
    TOP,
    Field,
    names,
    reference,
)
from components.inference.predictor import Prediction
from components.inference.resumable_output import open_output
from flows.prediction.predict import as_json
from flows.registry.register import SIGNATURE
from flows.serving.answers import many_answers, one_answer
from flows.serving.invocations import write_rows
from flows.serving.service import Answers

GUESSES = (("birds", "robin", 0.5), ("cars", "van", 0.25))
KNOWN = Prediction("birds", "robin", 0.75, 0.5, 0.25, (("birds", 0.25), ("cars", 0.125)), GUESSES)
UNKNOWN = Prediction("unknown", None, None, None, 0.01, (("cars", 0.01),), GUESSES)
BROKEN = ImageError("not an image")
RESULTS = [FileResult("a.png", KNOWN), FileResult("b.png", UNKNOWN), FileResult("c.png", None, str(BROKEN))]


def kind(value: Any) -> str:
    """The JSON type of a value."""
    kinds: dict[type, str] = {str: STRING, float: NUMBER, dict: OBJECT, list: ARRAY}
    return kinds[type(value)]


def check(row: Mapping[str, Any], expected: Sequence[Field]) -> None:
    """Hold a row of JSON against the fields that it must have, in order."""
    assert list(row) == names(expected)
    for field in expected:
        if row[field.name] is None:
            assert field.nullable
        else:
            assert kind(row[field.name]) == field.type
        if field.type == ARRAY:
            for item in row[field.name]:
                check(item, field.items)


def test_the_published_names_and_types() -> None:
    """What clients and stored tables rely on: to change one of these lines is to break them."""
    assert [(name, kind) for name, kind, _ in reference()] == [
        ("path", "string"),
        ("task", "string"),
        ("label", "string or null"),
        ("task_probability", "number or null"),
        ("probability", "number or null"),
        ("p_value", "number"),
        ("p_values", "object"),
        ("top", "array"),
        ("top[].task", "string"),
        ("top[].label", "string"),
        ("top[].probability", "number"),
        ("error", "string"),
    ]
    assert all(meaning.endswith(".") for _, _, meaning in reference())
    assert set(FIELDS) == {*FILE, *TERMINAL, *HTTP, *TABLE}


def test_a_prediction_has_these_fields() -> None:
    assert {field.name for field in fields(Prediction)} == set(names(FIELDS)) - {PATH.name, ERROR.name}


@pytest.mark.parametrize("result", RESULTS[:2], ids=["known", "unknown"])
def test_rows_and_json_lines(result: FileResult) -> None:
    check(row_of(result), [field for field in FILE if field != ERROR])
    check(json.loads(as_json(result)), [field for field in TERMINAL if field != ERROR])


def test_a_file_that_cannot_be_read_has_a_path_and_an_error() -> None:
    assert row_of(RESULTS[2]) == json.loads(as_json(RESULTS[2])) == {"path": "c.png", "error": "not an image"}


@pytest.mark.parametrize("suffix", FORMATS)
def test_files(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"out{suffix}"
    with open_output(file, names(FILE), {}) as output:
        for result in RESULTS:
            output.add(row_of(result))
        output.finish()
    if suffix == ".jsonl":
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        assert [list(line) for line in lines] == [names(FILE)] * 3
        assert lines[1]["top"] == row_of(RESULTS[1])["top"]
    elif suffix == ".csv":
        assert list(pd.read_csv(file).columns) == names(FILE)
    else:
        schema = pq.read_schema(file)
        assert schema == pa.schema(list(COLUMNS.items()))
        assert schema.names == names(FILE)
        assert schema.field(TOP.name).type.value_type.names == names(TOP.items)


def test_http_answers() -> None:
    status, body = one_answer(Answers("7", (KNOWN,)))
    assert status == 200
    found = json.loads(body)
    assert found.pop("model_version") == "7"
    success = [field for field in HTTP if field != ERROR]
    check(found, success)
    first, second, third = json.loads(many_answers(Answers("7", (KNOWN, UNKNOWN, BROKEN))))["predictions"]
    assert first == found
    check(second, success)
    check(third, [ERROR])


def test_mlflow_s_table() -> None:
    columns = SIGNATURE.outputs.to_dict()
    assert [column["name"] for column in columns] == names(TABLE)
    assert [column["type"] for column in columns] == [{STRING: "string", NUMBER: "double"}[f.type] for f in TABLE]
    known, unknown, broken = json.loads(write_rows([KNOWN, UNKNOWN, BROKEN]))["predictions"]
    for row in (known, unknown):
        assert list(row) == names(TABLE)
        assert row.pop(ERROR.name) is None
        check(row, [field for field in TABLE if field != ERROR])
    assert broken == dict.fromkeys(names(TABLE)) | {"error": "not an image"}
