"""Register a new version of the model: the bundle, and the code that loads it."""

from __future__ import annotations

import base64
import io
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import mlflow.pyfunc
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LoggedModelStatus
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import AnyType, ColSpec, DataType, ParamSchema, ParamSpec, Schema

import components
import flows
from components.config import Config
from components.inference.prediction_schema import NUMBER, STRING, TABLE
from flows.registry.mlflow_store import CHALLENGER, experiment_id, tags_of, version_of, versions
from flows.registry.moved_project import local_path
from flows.registry.publish import Publication
from flows.settings import MODEL, scratch_folder

# What the registered model imports when it is loaded and called.
SERVING_PACKAGES = (
    "mlflow",
    "numpy",
    "pandas",
    "pillow",
    "pyarrow",
    "pydantic",
    "ruamel.yaml",
    "safetensors",
    "scikit-learn",
    "timm",
    "torch",
    "torchvision",
)
_MLFLOW_TYPES = {STRING: "string", NUMBER: "double"}
# A path, base64 text, bytes and an array share one column, so the column has no single type.
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(AnyType(), "image")]),  # type: ignore[no-untyped-call]
    outputs=Schema([ColSpec(_MLFLOW_TYPES[field.type], field.name, required=False) for field in TABLE]),
    params=ParamSchema([ParamSpec("force", DataType.boolean, default=False)]),
)


def register(client: MlflowClient, root: Path, config: Config, publication: Publication) -> str:
    """Register the bundle as a new version and point the alias `challenger` at it; a published state only once.

    Args:
        client: of the project's registry.
        root: the project's folder.
        config: its params.yaml.
        publication: the MLflow run of the state.

    Returns:
        The version's number.
    """
    if known := find_version(client, publication):
        if "gates" not in tags_of(version_of(client, known)):  # killed before it was judged, or had its alias
            client.set_registered_model_alias(MODEL, CHALLENGER, known)
        return known
    if not client.search_registered_models(f"name='{MODEL}'"):
        client.create_registered_model(MODEL, description="One frozen vision transformer, one module per task.")
    source, model_id = _saved_model(client, root, publication.run_id) or _log_model(client, root, publication.run_id)
    tags = {"dvc_lock_sha256": publication.dvc_lock_sha256, "tasks": ",".join(config.tasks)}
    created = client.create_model_version(MODEL, source=source, run_id=publication.run_id, tags=tags, model_id=model_id)
    number = str(created.version)
    client.set_registered_model_alias(MODEL, CHALLENGER, number)
    return number


def find_version(client: MlflowClient, publication: Publication) -> str | None:
    """Return the version that was registered from a publication, if there is one."""
    return next((str(known.version) for known in versions(client) if known.run_id == publication.run_id), None)


def _saved_model(client: MlflowClient, root: Path, run_id: str) -> tuple[str, str] | None:
    """Return what a killed run had saved whole and not registered; remove what it had saved in part."""
    for logged in client.search_logged_models([experiment_id(client, root)], f"source_run_id = '{run_id}'"):
        if logged.status == LoggedModelStatus.READY:
            return str(logged.artifact_location), str(logged.model_id)
        shutil.rmtree(local_path(str(logged.artifact_location)), ignore_errors=True)
        client.delete_logged_model(str(logged.model_id))
    return None


def _log_model(client: MlflowClient, root: Path, run_id: str) -> tuple[str, str]:
    """Save the model and upload it; return where it lies, and its id."""
    logged = client.create_logged_model(experiment_id(client, root), name=MODEL, source_run_id=run_id)
    location, model_id = str(logged.artifact_location), str(logged.model_id)
    place = scratch_folder(root)
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice about type hints that a DataFrame model cannot follow
        folder = Path(scratch) / "model"
        mlflow.pyfunc.save_model(
            folder,
            python_model=Path(flows.__path__[0]) / "registry" / "pyfunc_model.py",
            artifacts={"bundle": str(root / "models" / "bundle")},
            code_paths=[flows.__path__[0], components.__path__[0]],
            signature=SIGNATURE,
            input_example=pd.DataFrame({"image": [_example_image()]}),
            pip_requirements=pinned_requirements(),
            mlflow_model=Model(artifact_path=location, model_uuid=model_id, run_id=run_id, model_id=model_id),
        )
        client.log_model_artifacts(model_id, str(folder))
    client.finalize_logged_model(model_id, "READY")
    return location, model_id


def pinned_requirements(packages: Sequence[str] = SERVING_PACKAGES) -> list[str]:
    """Pin every package that serving needs as `name==version`, as installed here, without a label such as +cpu."""
    found = []
    for package in packages:
        try:
            found.append(f"{package}=={version(package).partition('+')[0]}")
        except PackageNotFoundError:  # a lean installation that serves with less
            continue
    return found


def _example_image() -> str:
    """Return a small picture as base64 text, as a JSON request holds it."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((32, 32)).convert("RGB").save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
