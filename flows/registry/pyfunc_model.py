"""What `models:/intaglio@champion` loads: MLflow runs this file (models from code, nothing is pickled).

Input: a DataFrame with the column `image`; each cell is a path, base64 text (a data: URL too), bytes, or an H x W x 3
array or nested list of 0..255. Output: a DataFrame with COLUMNS. A row that cannot be read gets an error and nulls; the
others are predicted. An image that no task knows has the task `unknown`; `params={"force": True}` guesses there too.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext

if TYPE_CHECKING:
    import PIL.Image

    from components.inference.predictor import Prediction, Predictor

COLUMNS = ("task", "label", "task_probability", "probability", "p_value", "error")
_BATCH = 64  # images decoded at a time, whatever the request's size


class TaskRetrievalModel(PythonModel):
    """Retrieves an image's task, then predicts its class in it."""

    predictor: Predictor

    def __init__(self) -> None:
        # MLflow's server calls `predict` from several threads at once; a Predictor takes one at a time.
        self._turn = threading.Lock()

    def load_context(self, context: PythonModelContext) -> None:
        """Load the bundle that was logged with the model."""
        from components.inference.predictor import Predictor

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
        from components.data.images import ImageError
        from components.inference.image_values import open_cell

        images: list[PIL.Image.Image] = []
        errors: list[str | None] = []
        for cell in cells:
            try:
                images.append(open_cell(cell, self.predictor.limits, files=True))
                errors.append(None)
            except ImageError as error:
                errors.append(str(error))
        with self._turn:
            predictions = iter(self.predictor.predict(images, force=force) if images else [])
        return [_row(next(predictions)) if error is None else (*[None] * 5, error) for error in errors]


def _row(prediction: Prediction) -> tuple[object, ...]:
    share = prediction.task_probability, prediction.probability, prediction.p_value
    return prediction.task, prediction.label, *share, None


# MLflow runs this file under another name; importing it as flows.registry.pyfunc_model must not touch MLflow's state.
if __name__ != "flows.registry.pyfunc_model":
    mlflow.models.set_model(TaskRetrievalModel())
