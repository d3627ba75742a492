"""Log the stages' outputs to MLflow. Publishing twice changes nothing.

Stages do not log themselves: where DVC finds a result in its cache it skips the command, and what the command would
have logged would silently be missing.
"""

from __future__ import annotations

import math
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, Metric, Param
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from components.config import Config
from components.errors import IntaglioError
from components.io import read_json, sha256_file
from components.records.storage import read_card, record_folder
from flows.registry.mlflow_store import PARENT_KIND, TASK_KIND, experiment_id, runs

_REPORTS = ("metrics.json", "report.html", "predictions.parquet", "projection.parquet")
_BATCH = 100  # MLflow takes at most 100 parameters at a time, and 1,000 metrics


@dataclass(frozen=True)
class Publication:
    """The parent run of one state of the pipeline; `new` unless that state had been published before."""

    run_id: str
    dvc_lock_sha256: str
    new: bool


def publish(client: MlflowClient, root: Path, config: Config) -> Publication:
    """Log the present outputs: a parent run for the pipeline, a child run per task.

    The hash of dvc.lock identifies a state. Where a finished parent run has that hash nothing is logged. Runs that a
    killed process left unfinished are marked as failed: the caller holds the run lock, so no other process is logging.

    Args:
        client: of the project's tracking database.
        root: the project's folder.
        config: its params.yaml.

    Raises:
        IntaglioError: an output is missing.
    """
    experiment = experiment_id(client, root)
    for run in runs(client, experiment, "attributes.status = 'RUNNING'"):
        client.set_tag(run.info.run_id, "interrupted", "true")
        client.set_terminated(run.info.run_id, "FAILED")
    if known := find_publication(client, root):
        return known
    digest = _state(root)
    tags = {"dvc_lock_sha256": digest, "params_sha256": sha256_file(root / "params.yaml"), **_git_tags(root)}
    metrics = read_json(root / "reports" / "metrics.json")
    publisher = _Publisher(client, root, config, experiment, tags, metrics)
    try:
        return Publication(publisher.log_pipeline(), digest, new=True)
    except FileNotFoundError as error:
        raise IntaglioError(
            f"{error.filename}: vanished while it was being published; another DVC is at work: run again after it"
        ) from None


def find_publication(client: MlflowClient, root: Path) -> Publication | None:
    """Return the finished parent run of the present state, if there is one.

    Raises:
        IntaglioError: there is no dvc.lock.
    """
    digest = _state(root)
    condition = f"attributes.status = 'FINISHED' and tags.kind = '{PARENT_KIND}' and tags.dvc_lock_sha256 = '{digest}'"
    for run in runs(client, experiment_id(client, root), condition):
        return Publication(str(run.info.run_id), digest, new=False)
    return None


def _state(root: Path) -> str:
    lock = root / "dvc.lock"
    if not lock.is_file():
        raise IntaglioError(f"{lock}: file not found; `intaglio run` or `dvc repro` writes it")
    return sha256_file(lock)


@dataclass(frozen=True)
class _Publisher:
    """Everything that the runs of one state share.

    Attributes:
        client: of the tracking database.
        root: the project's folder.
        config: its settings.
        experiment: id of the experiment.
        tags: of every run.
        metrics: reports/metrics.json.
    """

    client: MlflowClient
    root: Path
    config: Config
    experiment: str
    tags: Mapping[str, str]
    metrics: Mapping[str, Any]

    def log_pipeline(self) -> str:
        name = f"{len(self.config.tasks)} tasks, {self.tags['dvc_lock_sha256'][:8]}"
        parent = self._create(name, {"kind": PARENT_KIND})
        overall = {name: value for name, value in self.metrics.items() if name != "per_task"}
        steps = [
            Metric("accuracy_after_task", sum(row) / len(row), _now(), step)
            for step, row in enumerate(self.metrics.get("accuracy_matrix", []), start=1)
            if row and None not in row
        ]
        # The names of classes are no names of parameters: MLflow refuses most characters in those.
        settings = self.config.model_dump(mode="json", exclude={"stream": {"labels"}})
        self._log(parent, settings, [*_metrics(overall), *steps])
        for position, task in enumerate(self.config.tasks, start=1):
            self._log_task(parent, task, position)
        for report in _REPORTS:
            self.client.log_artifact(parent, str(self.root / "reports" / report))
        for description in ("params.yaml", "dvc.yaml", "dvc.lock"):
            self.client.log_artifact(parent, str(self.root / description), "pipeline")
        if _state(self.root) != self.tags["dvc_lock_sha256"]:
            raise IntaglioError(
                f"{self.root / 'dvc.lock'}: changed while its results were being published; another DVC is at work: "
                "run again after it"
            )
        self.client.set_terminated(parent, "FINISHED")
        return parent

    def _log_task(self, parent: str, task: str, position: int) -> None:
        """Log a task's run, once for each generation; later states add a step to it.

        Args:
            parent: the run of the present state.
            task: its name.
            position: in the order of arrival, from 1.
        """
        generation, known = self.config.generation(task), len(self.config.tasks)
        card = read_card(self.root, generation)
        digest = sha256_file(record_folder(self.root, generation) / "card.json")
        measured = list(_metrics(self.metrics.get("per_task", {}).get(task, {}), step=known))
        condition = f"attributes.status = 'FINISHED' and tags.kind = '{TASK_KIND}' and tags.card_sha256 = '{digest}'"
        if before := runs(self.client, self.experiment, condition):
            self._log(str(before[0].info.run_id), {}, measured)
            return
        data = str(card.updates[-1]["manifest"] if card.updates else card.digests["manifest"])
        passed = str(bool(card.validation.get("success"))).lower()
        tags = {"kind": TASK_KIND, "task": task, "generation": generation, "card_sha256": digest, "data_sha256": data}
        run = self._create(generation, {**tags, "validation_success": passed, MLFLOW_PARENT_RUN_ID: parent})
        training = {name: value for name, value in card.training.items() if name != "curve"}
        self._log(
            run,
            {"position": position, **self.config.task(task).model_dump(), "finetune": self.config.finetune},
            [*_metrics(training), *measured, *_curves(card.training.get("curve") or [])],
        )
        folder = self.config.task(task).folder
        dataset = Dataset(name=generation, digest=data[:36], source_type="local", source=folder)
        self.client.log_inputs(run, datasets=[DatasetInput(dataset)])
        signature = self.root / "models" / "signatures" / generation
        self.client.log_artifacts(run, str(self.root / "models" / "modules" / task), "module")
        self.client.log_artifacts(run, str(signature), "signature")
        self.client.log_artifact(run, str(signature / "centroids.safetensors"), "centroids")
        self.client.log_artifact(run, str(record_folder(self.root, generation) / "card.json"))
        self.client.set_terminated(run, "FINISHED")

    def _create(self, name: str, tags: Mapping[str, str]) -> str:
        return str(self.client.create_run(self.experiment, run_name=name, tags={**self.tags, **tags}).info.run_id)

    def _log(self, run: str, params: Mapping[str, Any], metrics: Sequence[Metric]) -> None:
        pairs = [Param(key, str(value)) for key, value in _flat(params)]
        for start in range(0, len(pairs), _BATCH):
            self.client.log_batch(run, params=pairs[start : start + _BATCH])
        for start in range(0, len(metrics), _BATCH):
            self.client.log_batch(run, metrics=metrics[start : start + _BATCH])


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested sections as dotted names: `finetune.rank`."""
    sections = tree if isinstance(tree, Mapping) else tree.model_dump(mode="json")
    for key, value in sections.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) or hasattr(value, "model_dump"):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _metrics(values: Mapping[str, Any], step: int = 0) -> Iterator[Metric]:
    """Yield every finite number, nested ones under dotted names; null (nothing to measure) is left out."""
    for name, value in _flat(values):
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield Metric(name, float(value), _now(), step)


def _curves(curve: Sequence[Mapping[str, Any]]) -> Iterator[Metric]:
    """Yield the columns of a training curve, one step per epoch."""
    for row in curve:
        for column, value in row.items():
            if column != "epoch" and value is not None and math.isfinite(float(value)):
                yield Metric(f"epoch_{column}", float(value), _now(), int(row["epoch"]))


def _git_tags(root: Path) -> dict[str, str]:
    commit = _git(root, "rev-parse", "HEAD") or "none"
    dirty = bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    return {"git_commit": commit + ("+dirty" if dirty else ""), "mlflow.source.git.commit": commit}


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _now() -> int:
    return int(time.time() * 1000)
