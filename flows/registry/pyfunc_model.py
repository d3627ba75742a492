"""What `models:/intaglio@champion` loads: MLflow runs this file (models from code, nothing is pickled).

Input: a DataFrame with the column `image`; each value is a path, base64 text (a data: URL too), bytes, or an H x W x 3
array or nested list of 0..255. Output: a DataFrame with the columns TABLE. A row that cannot be read gets an error and
nulls; the others are predicted. An image of no known task has the task `unknown`; `params={"force": True}` guesses
there too.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from components.inference.prediction_schema import TABLE, as_table_row, names

if TYPE_CHECKING:
    import PIL.Image

    from components.inference.predictor import Prediction, Predictor

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

        Args:
            context: MLflow's; not used here.
            model_input: a table with the column `image`.
            params: `force`: whether an image of no known task gets the best guess.

        Raises:
            ValueError: there is no such column.
        """
        if "image" not in model_input:
            raise ValueError(f"expected a column named 'image', got {[str(column) for column in model_input.columns]}")
        values, force = list(model_input["image"]), bool((params or {}).get("force", False))
        results: list[Prediction | str] = []
        for start in range(0, len(values), _BATCH):
            results.extend(self._predict_batch(values[start : start + _BATCH], force))
        rows = [as_table_row(TABLE, result) for result in results]
        # Objects, so that what is missing is None: the server would write NaN, which is not JSON.
        return pd.DataFrame(rows, columns=names(TABLE), index=model_input.index, dtype=object)

    def _predict_batch(self, values: Sequence[object], force: bool) -> list[Prediction | str]:
        """Return the prediction of each image, or its error."""
        from components.data.images import ImageError
        from components.inference.image_values import open_value

        opened: list[PIL.Image.Image | str] = []
        for value in values:
            try:
                opened.append(open_value(value, self.predictor.limits, files=True))
            except ImageError as error:
                opened.append(str(error))
        images = [image for image in opened if not isinstance(image, str)]
        with self._turn:
            predictions = iter(self.predictor.predict(images, force=force) if images else [])
        return [image if isinstance(image, str) else next(predictions) for image in opened]


# MLflow runs this file under another name; importing it as flows.registry.pyfunc_model must not touch MLflow's state.
if __name__ != "flows.registry.pyfunc_model":
    mlflow.models.set_model(TaskRetrievalModel())
