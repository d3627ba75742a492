"""The registered model: what it accepts, how it is saved, and that it loads without a pickle."""

from __future__ import annotations

import base64
import io
import json
import sys
import urllib.parse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow.pyfunc.model import PythonModelContext
from PIL import Image
from synthetic import Project

from components.data.images import Limits
from components.inference.image_values import source_of
from components.inference.prediction_schema import TABLE, names
from components.inference.predictor import Prediction
from components.params import load_config
from flows.registry.mlflow_store import aliases, connect, tags_of, version_of, versions
from flows.registry.publish import publish
from flows.registry.pyfunc_model import TaskRetrievalModel
from flows.registry.register import SERVING_PACKAGES, pinned_requirements, register
from flows.settings import tracking_uri


class FakePredictor:
    """Answers with the width of the image, so that a test sees which image an answer belongs to."""

    limits = Limits(max_pixels=10_000, max_bytes=100_000, min_side=2)
    loaded: Path | None = None
    device = ""

    @classmethod
    def load(cls, bundle: Path, device: str = "auto") -> FakePredictor:
        cls.loaded, cls.device = bundle, device
        return cls()

    def predict(self, images: Sequence[Image.Image], top: int = 1, force: bool = False) -> list[Prediction]:
        best = [(f"{image.width} wide", 0.5) for image in images]
        known = 0.5, (("first", 0.5),)
        return [
            Prediction("first", label, 0.75, share, *known, (("first", label, share),) * top) for label, share in best
        ]


@pytest.fixture
def fake_predictor(monkeypatch: pytest.MonkeyPatch) -> type[FakePredictor]:
    monkeypatch.setattr("components.inference.predictor.Predictor", FakePredictor)
    return FakePredictor


def png(width: int = 4, height: int = 3) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def model(fake_predictor: type[FakePredictor], tmp_path: Path) -> TaskRetrievalModel:
    model = TaskRetrievalModel()
    model.load_context(PythonModelContext({"bundle": str(tmp_path)}, None))
    assert fake_predictor.loaded == tmp_path
    return model


def predict(model: TaskRetrievalModel, cells: list[Any]) -> pd.DataFrame:
    return model.predict(PythonModelContext({}, None), pd.DataFrame({"image": pd.Series(cells, dtype=object)}))


def test_paths_bytes_base64_and_arrays(model: TaskRetrievalModel, tmp_path: Path) -> None:
    path = tmp_path / "5.png"
    path.write_bytes(png(5))
    text = base64.b64encode(png(6)).decode()
    cells = [
        str(path),
        path,
        png(7),
        bytearray(png(7)),
        text,
        f"data:image/png;base64,{text}",
        "\n".join([text[:20], text[20:]]),
        np.zeros((3, 8, 3), np.uint8),
        np.zeros((3, 8, 3), np.float32),
        [[[0, 0, 0]] * 9] * 2,
    ]
    answers = predict(model, cells)
    assert list(answers.columns) == names(TABLE)
    assert answers["error"].isna().all()
    widths = [5, 5, 7, 7, 6, 6, 6, 8, 8, 9]
    assert list(answers["label"]) == [f"{width} wide" for width in widths]


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("nowhere.png", "'nowhere.png': no such file, and not base64 text either"),
        ("data:image/png;base64,@@@", "not valid base64"),
        ("data:image/png;base64,", "empty image"),
        ("A" * 5000, "image"),
        ("x" * 300, "image|base64"),
        (b"not an image", "image"),
        (None, "got NoneType"),
        (3.5, "got float"),
        (["a.png", "b.png"], "H x W x 3"),
        ([[1, 2], [3]], "H x W x 3"),
        (np.zeros((4, 4)), r"got shape \(4, 4\)"),
        (np.zeros((0, 4, 3)), "got shape"),
        (np.full((4, 4, 3), 300), "0 to 255"),
        (np.full((4, 4, 3), np.nan), "0 to 255"),
        (np.full((4, 4, 3), 0.5), "multiply"),
        (np.zeros((1, 1, 3), np.uint8), "1"),
    ],
)
def test_a_bad_row_gets_an_error_and_the_others_an_answer(
    model: TaskRetrievalModel, cell: object, message: str
) -> None:
    answers = predict(model, [png(5), cell, png(6)])
    assert list(answers["label"].fillna("")) == ["5 wide", "", "6 wide"]
    error = str(answers["error"][1])
    assert pd.Series([error]).str.contains(message).all(), error
    assert "\n" not in error
    # Strict JSON, as the server sends it: null and never NaN.
    good, bad, _ = json.loads(json.dumps(answers.to_dict(orient="records"), allow_nan=False))
    assert (bad["task"], bad["label"], bad["probability"]) == (None, None, None)
    assert (good["probability"], good["error"]) == (0.5, None)


def test_more_rows_than_a_batch_keep_their_order_and_index(model: TaskRetrievalModel) -> None:
    frame = pd.DataFrame({"image": [png(3 + number % 7) for number in range(150)]}, index=range(1000, 1150))
    answers = model.predict(PythonModelContext({}, None), frame)
    assert list(answers.index) == list(frame.index)
    assert list(answers["label"]) == [f"{3 + number % 7} wide" for number in range(150)]


def test_only_bad_rows_and_no_rows(model: TaskRetrievalModel) -> None:
    assert predict(model, ["nowhere"])["error"].notna().all()
    assert list(predict(model, []).columns) == names(TABLE)
    with pytest.raises(ValueError, match="a column named 'image'"):
        model.predict(PythonModelContext({}, None), pd.DataFrame({"picture": ["x"]}))


def test_a_name_that_no_file_system_takes_is_not_a_file() -> None:
    with pytest.raises(ValueError, match="no such file"):
        source_of("é" * 3000, files=True)


@pytest.fixture
def registered(done: Project) -> tuple[Project, str]:
    client, config = connect(done.root), load_config(done.root / "params.yaml")
    (done.root / ".intaglio").mkdir(exist_ok=True)
    publication = publish(client, done.root, config)
    return done, register(client, done.root, config, publication)


def test_registering_twice_makes_one_version(registered: tuple[Project, str]) -> None:
    project, number = registered
    client, config = connect(project.root), load_config(project.root / "params.yaml")
    publication = publish(client, project.root, config)
    client.delete_registered_model_alias("intaglio", "challenger")  # as a kill before the alias would leave it
    assert register(client, project.root, config, publication) == number
    assert len(versions(client)) == 1
    assert aliases(client) == {"challenger": number}
    assert tags_of(version_of(client, number))["tasks"] == "first,second"


def test_the_saved_model_holds_its_code_and_no_pickle(registered: tuple[Project, str]) -> None:
    project, number = registered
    files = Path(urllib.parse.urlparse(str(version_of(connect(project.root), number).source)).path)
    assert (files / "code" / "flows" / "registry" / "pyfunc_model.py").is_file()
    assert (files / "code" / "components" / "inference" / "predictor.py").is_file()
    assert (files / "artifacts" / "bundle" / "bundle.json").is_file()
    suffixes = {path.suffix for path in files.rglob("*")}
    assert not suffixes & {".pkl", ".pickle", ".pyc", ".pt", ".pth", ".bin"}
    requirements = (files / "requirements.txt").read_text().split()
    assert requirements == pinned_requirements()
    assert not any(mark in line for line in requirements for mark in ("://", "@", "+"))
    assert {line.partition("==")[0] for line in requirements} == set(SERVING_PACKAGES)
    described = yaml.safe_load((files / "MLmodel").read_text())
    inputs = json.loads(described["signature"]["inputs"])
    assert inputs == [{"type": "any", "name": "image", "required": True}]
    assert [column["name"] for column in json.loads(described["signature"]["outputs"])] == names(TABLE)
    assert not list((project.root / ".intaglio").glob("tmp/*"))


def test_it_loads_without_pickle_and_predicts_its_input_example(
    registered: tuple[Project, str], fake_predictor: type[FakePredictor], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, number = registered
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(tracking_uri(project.root))
    try:
        model = mlflow.pyfunc.load_model(f"models:/intaglio/{number}")
    finally:
        mlflow.set_tracking_uri(before)
    assert fake_predictor.loaded is not None
    assert (fake_predictor.loaded / "bundle.json").is_file()
    example = model.input_example
    assert isinstance(example, pd.DataFrame)
    assert list(model.predict(example)["label"]) == ["32 wide"]
    mixed = pd.DataFrame({"image": pd.Series([png(5), "nowhere", np.zeros((3, 8, 3), np.uint8)], dtype=object)})
    assert list(model.predict(mixed)["label"].fillna("")) == ["5 wide", "", "8 wide"]


def test_a_lean_installation_pins_what_it_has() -> None:
    (line,) = pinned_requirements(("numpy", "not-installed-anywhere"))
    assert line == f"numpy=={np.__version__}"
