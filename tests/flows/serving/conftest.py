"""A registry with four versions of a tiny real model: two whole ones, a damaged one, and one of another format."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient

from components.inference.predictor import Predictor
from components.params import load_config
from flows.bench.load_generator import Planned
from flows.bench.request_plan import mixed_plan, plain_plan, test_files
from flows.bench.scratch_server import scratch_registry
from flows.registry.mlflow_store import connect
from tests.components.conftest import learned_template, stream_template, tiny_weights  # noqa: F401 - fixtures

WHOLE, OTHER, DAMAGED, FOREIGN = 1, 2, 3, 4


@dataclass(frozen=True)
class World:
    """A project with a registry, the bundle behind versions 1 and 2, and requests with the answers expected."""

    root: Path
    bundle: Path
    plain: list[Planned]
    mixed: list[Planned]

    @property
    def client(self) -> MlflowClient:
        """The registry."""
        return connect(self.root)


@pytest.fixture(scope="session")
def world_template(
    learned_template: Path,  # noqa: F811 - the fixture
    tmp_path_factory: pytest.TempPathFactory,
) -> World:
    """The world as it begins: version 1 is champion."""
    folder, bundle = tmp_path_factory.mktemp("serving"), learned_template / "models" / "bundle"
    damaged, foreign = folder / "damaged", folder / "foreign"
    shutil.copytree(bundle, damaged)
    adapter = next(damaged.glob("modules/*/adapter/adapter_model.safetensors"))
    adapter.write_bytes(adapter.read_bytes()[:-1] + b"\x01")
    foreign.mkdir()
    (foreign / "bundle.json").write_text('{"files": {}, "format": "of another age"}')
    scratch_registry(folder / "project", [bundle, bundle, damaged, foreign])
    files = test_files(learned_template, load_config(learned_template / "params.yaml"), 60)
    plain = plain_plan(files, Predictor.load(bundle, "cpu"))
    return World(folder / "project", bundle, plain, mixed_plan(plain))


@pytest.fixture
def world(world_template: World, tmp_path: Path) -> World:
    """A registry of the test's own."""
    shutil.copytree(world_template.root, tmp_path / "project", symlinks=True)
    return World(tmp_path / "project", world_template.bundle, world_template.plain, world_template.mixed)
