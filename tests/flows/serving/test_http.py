"""The HTTP interface over a real tiny model: every form of request, every documented error."""

from __future__ import annotations

import io
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from mlflow.pyfunc import scoring_server
from PIL import Image

from flows.bench.request_plan import broken_images
from flows.registry.pyfunc_model import TaskRetrievalModel
from flows.registry.register import SIGNATURE
from flows.serving.app import create_app
from flows.serving.batcher import MicroBatcher
from flows.serving.metrics import Metrics
from flows.serving.middleware import ServiceMiddleware
from flows.serving.reload import Follower
from flows.serving.run import Options, load_version
from flows.serving.served_model import Folder
from flows.serving.service import Service
from tests.flows.serving.conftest import World

LIMIT = 8
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Site:
    """A client of the application, and what is behind it."""

    client: TestClient
    service: Service
    world: World

    def post(self, content: bytes, kind: str, route: str = "/predict") -> Any:
        return self.client.post(route, content=content, headers={"Content-Type": kind})

    def figure(self, name: str) -> float:
        lines = self.client.get("/metrics").text.splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + " ")), 0.0)


@asynccontextmanager
async def nothing(_app: FastAPI) -> AsyncIterator[None]:
    yield


@pytest.fixture(scope="module")
def site(world_template: World) -> Iterator[Site]:
    metrics, source = Metrics(), Folder(world_template.bundle)
    batcher = MicroBatcher(4, 0.005, LIMIT, 2, metrics.batch)
    follower = Follower(source, lambda version: load_version(source, Options(device="cpu"), version), metrics, 5.0)
    service = Service(batcher, follower, metrics, body_seconds=5.0)
    app = ServiceMiddleware(create_app(service, nothing), service, max_body=200_000)
    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.post("/predict", content=b"x", headers={"Content-Type": "image/png"}).status_code == 503
        assert client.get("/health").json()["status"] == "loading"
        assert client.get("/ping").status_code == 503
        follower.check()
        yield Site(client, service, world_template)
    batcher.close()


def test_every_planned_request_gets_its_planned_answer(site: Site) -> None:
    for planned in site.world.mixed:
        answer = site.post(planned.body, planned.content_type, planned.path)
        rows = answer.json().get("predictions", [answer.json()])
        found = tuple((row.get("task"), row.get("label")) for row in rows)
        assert (answer.status_code, found) == (planned.status, planned.answers)
        assert answer.headers["intaglio-model-version"] == site.service.model.version
    assert site.figure('intaglio_requests_total{route="/predict",status="422"}') > 0
    assert site.figure('intaglio_images_total{outcome="broken"}') > 0
    assert site.figure("intaglio_queue_images") == 0
    assert site.figure("intaglio_batch_images_count") > 0


def test_an_answer_in_full(site: Site) -> None:
    planned = next(planned for planned in site.world.plain if planned.answers[0][1])
    direct = site.client.post("/predict?top=3", content=planned.body, headers={"Content-Type": "image/png"}).json()
    assert (direct["task"], direct["label"]) == planned.answers[0]
    assert direct["model_version"].startswith("bundle-")
    assert direct["top"][0]["probability"] == pytest.approx(direct["probability"])
    assert len(direct["top"]) == 3
    assert 0 < direct["p_value"] <= 1
    listed = site.client.post("/predict?top=3", json={"images": [b64encode(planned.body).decode()]}).json()
    assert listed == {"model_version": direct.pop("model_version"), "predictions": [direct]}
    two = site.client.post("/predict", files=[("a", planned.body), ("b", b"broken")]).json()["predictions"]
    assert (two[0]["task"], "not an image" in two[1]["error"]) == (direct["task"], True)


def test_force_guesses_what_no_task_knows(site: Site) -> None:
    buffer = io.BytesIO()
    Image.effect_noise((40, 40), 200).convert("RGB").save(buffer, format="PNG")  # unlike any digit
    unknown = buffer.getvalue()
    answer = site.post(unknown, "image/png").json()
    forced = site.client.post("/predict?force=true", content=unknown, headers={"Content-Type": "image/png"})
    assert (answer["task"], answer["label"], answer["probability"]) == ("unknown", None, None)
    assert forced.json()["task"] == answer["top"][0]["task"]
    table = {"dataframe_records": [{"image": b64encode(unknown).decode()}], "params": {"force": True}}
    assert site.figure('intaglio_images_total{outcome="unknown"}') == 1
    assert site.client.post("/invocations", json=table).json()["predictions"][0]["label"] == forced.json()["label"]


@pytest.mark.parametrize(
    ("content", "kind", "status", "message"),
    [
        (b"{", "application/json", 400, "not valid JSON"),
        (b"\xff\xfe", "application/json", 400, "not valid JSON"),
        (b"[" * 100_000, "application/json", 400, "not valid JSON"),
        (b"[1]", "application/json", 400, "expected a JSON object, got list"),
        (b"{}", "application/json", 400, 'expected {"image": base64}'),
        (b'{"images": []}', "application/json", 400, "at least one"),
        (b'{"images": "abc"}', "application/json", 400, "got the keys"),
        (b'{"image": "a", "x": 1}', "application/json", 400, "got the keys"),
        (b'{"image": 3}', "application/json", 422, "expected base64 text or an H x W x 3 array, got int"),
        (b'{"image": "/etc/hostname"}', "application/json", 422, "not valid base64"),
        (b'{"image": "pyproject.toml"}', "application/json", 422, "not valid base64"),
        (b"x", "", 415, "expected image/*"),
        (b"x", "text/html", 415, "'text/html'"),
        (b"x", "multipart/form-data", 400, "multipart"),
        (b"x", "multipart/form-data; boundary=b", 400, "form"),
        (b"--b\r\n\r\n", "multipart/form-data; boundary=b", 400, "form"),
        (b"x", "image/png", 422, "not an image"),
        (b"", "image/png", 422, "empty"),
        (b"x" * 200_001, "image/png", 413, "larger than 200000 bytes"),
        (b'{"images": ["a","a","a","a","a","a","a","a","a"]}', "application/json", 413, "more than 8 images"),
    ],
)
def test_an_error_names_what_is_wrong(site: Site, content: bytes, kind: str, status: int, message: str) -> None:
    answer = site.post(content, kind)
    assert (answer.status_code, set(answer.json()) - {"model_version"}) == (status, {"error"})
    assert message in answer.json()["error"]
    assert site.service.batcher.depth == 0


@pytest.mark.parametrize(
    ("content", "kind", "status", "message"),
    [
        (b"{", "application/json", 400, "not valid JSON"),
        (b"{}", "application/json", 400, "exactly one of the input fields"),
        (b'{"inputs": 3}', "application/json", 400, "table"),
        (b'{"inputs": {"picture": ["a"]}}', "application/json", 400, "image"),
        (b'{"dataframe_split": 3}', "application/json", 400, "split format"),
        (b'{"dataframe_split": {"columns": ["x"], "data": [[1]]}}', "application/json", 400, "'image'"),
        (b'{"inputs": ["a"], "instances": ["a"]}', "application/json", 400, "exactly one"),
        (b'{"inputs": ["a"], "params": 3}', "application/json", 400, "table"),
        (b"\xff", "text/csv", 400, "table"),
        (b"picture\nabc\n", "text/csv", 400, "'image'"),
        (b"no parquet", "application/vnd.apache.parquet", 400, "table"),
        (b"x", "image/png", 415, "application/json, text/csv"),
    ],
)
def test_an_error_of_mlflow_s_protocol_names_what_is_wrong(
    site: Site, content: bytes, kind: str, status: int, message: str
) -> None:
    answer = site.post(content, kind, "/invocations")
    assert (answer.status_code, set(answer.json())) == (status, {"error"})
    assert message in answer.json()["error"]


@pytest.fixture(scope="module")
def mlflow_server(world_template: World, tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    """MLflow's own server over the same bundle."""
    folder = tmp_path_factory.mktemp("model") / "model"
    mlflow.pyfunc.save_model(
        folder,
        python_model=Path(__file__).parents[3] / "flows" / "registry" / "pyfunc_model.py",
        artifacts={"bundle": str(world_template.bundle)},
        signature=SIGNATURE,
        pip_requirements=[],
    )
    return TestClient(scoring_server.init(mlflow.pyfunc.load_model(str(folder))))


def requests_of_mlflow(site: Site) -> Iterator[tuple[bytes, str]]:
    first, second = (b64encode(planned.body).decode() for planned in site.world.plain[:2])
    pixels = [[[(x * 8 + y) % 256] * 3 for x in range(20)] for y in range(20)]
    for value in (
        {"dataframe_split": {"columns": ["image"], "data": [[first], ["broken"], [second]]}},
        {"dataframe_split": {"columns": ["image", "more"], "data": [[first, 1]]}, "params": {"force": True}},
        {"dataframe_split": {"columns": ["image"], "data": []}},
        {"dataframe_records": [{"image": first}, {"image": None}, {"image": pixels}]},
        {"inputs": [{"image": first}, {"image": second}]},
        {"inputs": {"image": first}},
        {"instances": [{"image": first}, {"image": second}]},
        {"instances": [{"image": pixels}, {"image": pixels}]},
    ):
        yield json.dumps(value).encode(), "application/json"
    table = pd.DataFrame({"image": [first, second]})
    yield table.to_parquet(index=False), "application/vnd.apache.parquet"


def test_it_answers_mlflow_s_clients_as_mlflow_s_server_does(site: Site, mlflow_server: TestClient) -> None:
    for content, kind in requests_of_mlflow(site):
        expected = mlflow_server.post("/invocations", content=content, headers={"Content-Type": kind})
        answer = site.post(content, kind, "/invocations")
        assert (expected.status_code, answer.status_code) == (200, 200)
        for row, other in zip(answer.json()["predictions"], expected.json()["predictions"], strict=True):
            assert list(row) == list(other)
            numbers = {name: value for name, value in other.items() if isinstance(value, float)}
            assert {name: row[name] for name in numbers} == pytest.approx(numbers, rel=1e-4)
            same = set(other) - set(numbers) - {"error"}
            assert {name: row[name] for name in same} == {name: other[name] for name in same}
            assert bool(row["error"]) == bool(other["error"])
    assert (site.client.get("/ping").status_code, site.client.get("/ping").text) == (200, "\n")


def test_more_forms_than_mlflow_s_server_reads(site: Site) -> None:
    texts = [b64encode(planned.body).decode() for planned in site.world.plain[:3]]
    for value in ({"inputs": {"image": texts}}, {"inputs": texts}, {"instances": texts}):
        rows = site.client.post("/invocations", json=value).json()["predictions"]
        assert [(row["task"], row["label"]) for row in rows] == [p.answers[0] for p in site.world.plain[:3]]
    table = pd.DataFrame({"image": texts}).to_csv(index=False).encode()
    # Which images share a batch, hence the last bits of a probability, is a matter of time.
    for row, other in zip(site.post(table, "text/csv", "/invocations").json()["predictions"], rows, strict=True):
        numbers = {name: value for name, value in other.items() if isinstance(value, float)}
        assert {name: row[name] for name in numbers} == pytest.approx(numbers, rel=1e-4)
        assert (row["task"], row["label"], row["error"]) == (other["task"], other["label"], other["error"])


def test_health_model_and_unknown_routes(site: Site) -> None:
    health = site.client.get("/health")
    assert (health.status_code, health.json()["status"], health.json()["trouble"]) == (200, "ready", None)
    model = site.client.get("/model").json()
    assert model["tasks"].keys() == {"low", "middle", "high"}
    assert (model["version"], model["image_size"]) == (health.json()["model_version"], 32)
    assert site.client.get("/nowhere").json() == {"error": "Not Found"}
    assert site.client.get("/predict").status_code == 405
    assert "/predict" in site.client.get("/openapi.json").json()["paths"]
    assert site.client.post("/predict?top=0", content=b"x", headers={"Content-Type": "image/png"}).status_code == 400
    assert site.figure('intaglio_requests_total{route="other",status="404"}') == 1


def test_a_bug_is_a_500_and_leaves_the_server_whole(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    good = site.world.plain[0]

    def out_of_memory(*_: Any, **__: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(type(site.service.model.predictor), "predict_pixels", out_of_memory)
        answer = site.post(good.body, "image/png")
    assert (answer.status_code, answer.json()) == (500, {"error": "internal error; the server's log has more"})
    assert site.post(good.body, "image/png").status_code == 200


def test_broken_images_are_broken_in_many_ways(site: Site) -> None:
    for content in broken_images(site.world.plain[0].body):
        assert site.post(content, "application/octet-stream").status_code == 422


def test_the_pyfunc_answers_from_many_threads_at_once(world_template: World) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from mlflow.pyfunc.model import PythonModelContext

    model = TaskRetrievalModel()
    model.load_context(PythonModelContext({"bundle": str(world_template.bundle)}, None))

    def ask(number: int) -> list[tuple[str, str | None]]:
        some = world_template.plain[number % 7 :: 3]
        frame = pd.DataFrame({"image": [planned.body for planned in some]})
        found = model.predict(PythonModelContext({}, None), frame)
        return list(zip(found["task"], found["label"], strict=True))

    with ThreadPoolExecutor(8) as pool:
        for number, answers in enumerate(pool.map(ask, range(48))):
            assert answers == [planned.answers[0] for planned in world_template.plain[number % 7 :: 3]]
