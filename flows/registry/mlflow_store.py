"""The tracking database and the model registry: where they are, and the names used in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion

from components.errors import IntaglioError
from components.io import atomic_file
from flows.registry.moved_project import follow_project, local_path
from flows.settings import EXPERIMENT, MODEL, artifact_root, tracking_uri

CHAMPION = "champion"
CHALLENGER = "challenger"
PARENT_KIND = "pipeline"
TASK_KIND = "task"


def connect(root: Path) -> MlflowClient:
    """Return a client of the project's own database; the first use creates it.

    Where the project was moved or copied, the database's addresses are made to lead to `root` before.

    Raises:
        IntaglioError: the project was moved, and the database cannot be changed.
    """
    artifact_root(root).mkdir(parents=True, exist_ok=True)
    uri = tracking_uri(root)
    database = root / "mlruns" / "mlflow.db"
    if not database.exists():
        with atomic_file(database) as temporary:  # MLflow takes seconds to make its tables, and cannot go on half-way
            MlflowClient(tracking_uri=f"sqlite:///{temporary}").search_experiments()
    follow_project(root)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def experiment_id(client: MlflowClient, root: Path) -> str:
    """Return the experiment's id; its artefacts are under mlruns/artifacts."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return str(client.create_experiment(EXPERIMENT, artifact_location=artifact_root(root).as_uri()))
    return str(experiment.experiment_id)


def runs(client: MlflowClient, experiment: str, condition: str) -> list[Run]:
    """Return the runs that satisfy a filter, newest first.

    Args:
        client: of the project's tracking database.
        experiment: the experiment's id.
        condition: MLflow's filter; "" for all.
    """
    found: list[Run] = []
    token: str | None = None
    while True:
        page = client.search_runs([experiment], condition, order_by=["attributes.start_time DESC"], page_token=token)
        found.extend(page)
        token = page.token
        if not token:
            return found


def versions(client: MlflowClient) -> list[ModelVersion]:
    """Return all versions of the model, newest first."""
    found = client.search_model_versions(f"name='{MODEL}'")
    return sorted(found, key=lambda version: -int(version.version))


def aliases(client: MlflowClient) -> dict[str, str]:
    """Map each alias to its version; empty while nothing is registered."""
    models = client.search_registered_models(f"name='{MODEL}'")
    return {alias: str(version) for model in models for alias, version in model.aliases.items()}


def version_of(client: MlflowClient, number: str) -> ModelVersion:
    """Return one version of the model.

    Raises:
        IntaglioError: there is no such version.
    """
    for version in versions(client):
        if str(version.version) == number:
            return version
    known = ", ".join(str(version.version) for version in versions(client)) or "none"
    raise IntaglioError(f"model {MODEL}: there is no version {number}; known versions: {known}")


def tags_of(version: ModelVersion) -> dict[str, str]:
    """Return a version's tags."""
    return cast(dict[str, str], dict(version.tags))


def tag_version(client: MlflowClient, number: str, tags: dict[str, Any]) -> None:
    """Set several tags of a version.

    Args:
        client: of the project's registry.
        number: the version's number.
        tags: name -> value, written as text.
    """
    for key, value in tags.items():
        client.set_model_version_tag(MODEL, number, key, str(value))


def bundle_of(client: MlflowClient, root: Path, number: str) -> Path:
    """Return the local folder of a version's bundle.

    Args:
        client: of the project's registry.
        root: the project's folder.
        number: the version's number.

    Raises:
        IntaglioError: its files are gone.
    """
    folder = local_path(str(version_of(client, number).source)) / "artifacts" / "bundle"
    if not folder.is_dir():
        raise IntaglioError(
            f"{folder}: the files of model {MODEL} version {number} are gone; "
            f"use `--bundle {(root / 'models' / 'bundle')}`"
        )
    return folder
