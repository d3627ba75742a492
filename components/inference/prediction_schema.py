"""The fields of a prediction: the one list from which every output is derived.

A field is declared once, with its type and its meaning. Below, each output names the fields that it has, in its order:
files, the terminal, HTTP answers and MLflow's table. An image that cannot be read has only its path and its error; in a
table its other columns are null.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from components.config import UNKNOWN

if TYPE_CHECKING:
    from components.inference.predictor import Prediction

# The types are those of JSON; a file format maps them to its own.
STRING, NUMBER, OBJECT, ARRAY = "string", "number", "object", "array"


@dataclass(frozen=True)
class Field:
    """One field of a prediction.

    Attributes:
        name: As every output spells it, and as `Prediction` does.
        type: STRING, NUMBER, OBJECT (numbers by name) or ARRAY (of objects with the fields `items`).
        meaning: What it holds, in one sentence.
        nullable: Whether it is null where the image is of no known task.
        items: The fields of each object in an ARRAY.
    """

    name: str
    type: str
    meaning: str
    nullable: bool = False
    items: tuple[Field, ...] = ()


PATH = Field("path", STRING, "The image's path, as it was named or found below a named folder.")
TASK = Field(
    "task", STRING, f"The task that was retrieved for the image; `{UNKNOWN}` where the image is of no known task."
)
LABEL = Field("label", STRING, "The class that was predicted within the task.", nullable=True)
TASK_PROBABILITY = Field("task_probability", NUMBER, "The probability p(k|x) of the task.", nullable=True)
PROBABILITY = Field("probability", NUMBER, "The probability p(k|x) p(c|x,k) of the task and the class.", nullable=True)
P_VALUE = Field("p_value", NUMBER, "The conformal p-value of the image in the task that it is most typical of.")
P_VALUES = Field("p_values", OBJECT, "The p-values of the few tasks that the image is most typical of, by task.")
TOP = Field(
    "top",
    ARRAY,
    "The best guesses, best first, also where the image is of no known task.",
    items=(
        Field("task", STRING, "The task of the guess."),
        Field("label", STRING, "The class of the guess."),
        Field("probability", NUMBER, "The probability p(k|x) p(c|x,k) of the guess."),
    ),
)
ERROR = Field("error", STRING, "Why the image has no prediction, in one line.")

_SUMMARY = (TASK, LABEL, TASK_PROBABILITY, PROBABILITY, P_VALUE)
FILE = (PATH, *_SUMMARY, ERROR, TOP)  # CSV, parquet and JSON lines; TOP only where several guesses are asked for
TERMINAL = (PATH, *_SUMMARY, ERROR, TOP, P_VALUES)  # predict --json
HTTP = (*_SUMMARY, ERROR, P_VALUES, TOP)  # POST /predict
TABLE = (*_SUMMARY, ERROR)  # MLflow's model, and POST /invocations

FIELDS = (PATH, *_SUMMARY, P_VALUES, TOP, ERROR)


def names(fields: Sequence[Field]) -> list[str]:
    """Return the fields' names, in order."""
    return [field.name for field in fields]


def as_object(fields: Sequence[Field], result: Prediction | str) -> dict[str, Any]:
    """Return an image's values as JSON has them, in the order of `fields`; its path is the caller's to add.

    Args:
        fields: those that the output has.
        result: the image's prediction, or its error, of which ERROR alone is returned.
    """
    if isinstance(result, str):
        return {ERROR.name: result}
    return {field.name: _value(field, result) for field in fields if field not in (PATH, ERROR)}


def as_table_row(fields: Sequence[Field], result: Prediction | str) -> dict[str, Any]:
    """Return `as_object`, with None for every field that the image has no value for."""
    return dict.fromkeys(names(fields)) | as_object(fields, result)


def reference() -> Iterator[tuple[str, str, str]]:
    """Yield the name, the type and the meaning of every field, those within an array as `array[].field`."""
    for field in FIELDS:
        yield field.name, field.type + " or null" * field.nullable, field.meaning
        for item in field.items:
            yield f"{field.name}[].{item.name}", item.type, item.meaning


def _value(field: Field, prediction: Prediction) -> Any:
    value = getattr(prediction, field.name)
    if field.type == OBJECT:
        return dict(value)
    if field.type == ARRAY:
        return [dict(zip(names(field.items), item, strict=True)) for item in value]
    return value
