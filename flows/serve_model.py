"""What `models:/intaglio@champion` loads: MLflow runs this file (models from code, nothing is pickled).

Input: a DataFrame with the column `image`; each cell is a path, base64 text (a data: URL too), bytes, or an H x W x 3
array or nested list of 0..255. Output: a DataFrame with COLUMNS. A row that cannot be read gets an error and nulls; the
others are predicted. An image that no task knows has the task `unknown`; `params={"force": True}` guesses there too.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext

if TYPE_CHECKING:
    import PIL.Image

    from components.predict import Prediction, Predictor

COLUMNS = ("task", "label", "task_probability", "probability", "p_value", "error")
_BATCH = 64  # images decoded at a time, whatever the request's size
_LONGEST_PATH = 4096


class TaskRetrievalModel(PythonModel):
    """Retrieves an image's task, then predicts its class in it."""

    predictor: Predictor

    def load_context(self, context: PythonModelContext) -> None:
        """Load the bundle that was logged with the model."""
        from components.predict import Predictor

        self.predictor = Predictor.load(Path(context.artifacts["bundle"]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Predict every row of the column `image`.

        Raises:
            ValueError: there is no such column.
        """
        if "image" not in model_input:
            raise ValueError(f"expected a column named 'image', got {[str(column) for column in model_input.columns]}")
        cells, force = list(model_input["image"]), bool((params or {}).get("force", False))
        rows: list[tuple[object, ...]] = []
        for start in range(0, len(cells), _BATCH):
            rows.extend(self._predict_batch(cells[start : start + _BATCH], force))
        # Objects, so that what is missing is None: the server would write NaN, which is not JSON.
        return pd.DataFrame(rows, columns=list(COLUMNS), index=model_input.index, dtype=object)

    def _predict_batch(self, cells: Sequence[object], force: bool) -> list[tuple[object, ...]]:
        from components.errors import IntaglioError
        from components.images import open_image

        images: list[PIL.Image.Image] = []
        errors: list[str | None] = []
        for cell in cells:
            try:
                images.append(open_image(source_of(cell), self.predictor.limits))
                errors.append(None)
            except (IntaglioError, OSError, ValueError) as error:
                errors.append(" ".join(str(error).split()) or type(error).__name__)
        predictions = iter(self.predictor.predict(images, force=force) if images else [])
        return [_row(next(predictions)) if error is None else (*[None] * 5, error) for error in errors]


def _row(prediction: Prediction) -> tuple[object, ...]:
    share = prediction.task_probability, prediction.probability, prediction.p_value
    return prediction.task, prediction.label, *share, None


def source_of(cell: object) -> Path | bytes:
    """A cell of the column `image` as something that `open_image` reads.

    Raises:
        ValueError: it is none of the four kinds.
    """
    if isinstance(cell, bytes | bytearray | memoryview):
        return bytes(cell)
    if isinstance(cell, Path):
        return cell
    if isinstance(cell, str):
        return _from_text(cell)
    if isinstance(cell, np.ndarray | list | tuple):
        return _from_array(cell)
    raise ValueError(f"expected a path, base64 text, bytes or an H x W x 3 array, got {type(cell).__name__}")


def _from_text(text: str) -> Path | bytes:
    if text.startswith("data:"):
        return _decoded(text.partition(",")[2])
    # Base64 of a JPEG begins with "/9j/" and may look like a path: what exists as a file is a file.
    if len(text) <= _LONGEST_PATH and "\0" not in text and _is_file(Path(text)):
        return Path(text)
    try:
        return _decoded(text)
    except ValueError:
        raise ValueError(f"{text[:80]!r}: no such file, and not base64 text either") from None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for the file system
        return False


def _decoded(text: str) -> bytes:
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not valid base64 text") from None
    if not data:
        raise ValueError("empty image")
    return data


def _from_array(values: object) -> bytes:
    """An array as the bytes of a PNG, so that every kind of input passes the same checks."""
    import io

    from PIL import Image

    try:
        array = np.asarray(values)
    except ValueError:
        raise ValueError("the nested lists are not an H x W x 3 array") from None
    if array.ndim != 3 or array.shape[2] != 3 or array.size == 0 or array.dtype.kind not in "iuf":
        raise ValueError(f"expected an H x W x 3 array of 0..255, got shape {array.shape} of {array.dtype}")
    if not np.isfinite(array).all() or array.min() < 0 or array.max() > 255:
        raise ValueError(f"expected values from 0 to 255, got {array.min()} to {array.max()}")
    if array.dtype.kind == "f" and not np.equal(array, np.round(array)).all():
        raise ValueError("expected whole numbers from 0 to 255, got fractions; multiply a 0..1 image by 255 and round")
    buffer = io.BytesIO()
    Image.fromarray(array.astype(np.uint8)).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


# MLflow runs this file under another name; importing it as flows.serve_model must not touch MLflow's state.
if __name__ != "flows.serve_model":
    mlflow.models.set_model(TaskRetrievalModel())
