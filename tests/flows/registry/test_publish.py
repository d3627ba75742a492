"""Stage outputs in MLflow: everything once, and nothing twice."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from synthetic import Project

from components.errors import IntaglioError
from components.io import sha256_file
from components.params import load_config
from flows.registry.mlflow_store import PARENT_KIND, TASK_KIND, connect, experiment_id, runs
from flows.registry.publish import publish


def of_kind(client: MlflowClient, root: Path, kind: str) -> list[Run]:
    return runs(client, experiment_id(client, root), f"tags.kind = '{kind}'")


def artifacts(client: MlflowClient, run_id: str, path: str | None = None) -> set[str]:
    found: set[str] = set()
    for item in client.list_artifacts(run_id, path):
        found |= artifacts(client, run_id, item.path) if item.is_dir else {item.path}
    return found


def test_a_parent_and_a_child_per_task(done: Project) -> None:
    client, config = connect(done.root), load_config(done.root / "params.yaml")
    publication = publish(client, done.root, config)
    parent = client.get_run(publication.run_id)
    assert parent.info.status == "FINISHED"
    assert parent.data.params["finetune.rank"] == str(config.finetune.rank)
    assert parent.data.metrics["accuracy_final"] == 0.8
    assert parent.data.metrics["baselines.nearest_class_mean.accuracy_final"] == 0.5
    assert len(client.get_metric_history(publication.run_id, "accuracy_after_task")) == 2
    tags = parent.data.tags
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=done.root, capture_output=True, text=True, check=True
    ).stdout
    assert tags["git_commit"] == head.strip()
    assert tags["dvc_lock_sha256"] == sha256_file(done.root / "dvc.lock")
    assert tags["params_sha256"] == sha256_file(done.root / "params.yaml")
    assert {"metrics.json", "report.html", "pipeline/dvc.lock"} <= artifacts(client, publication.run_id)
    children = {run.data.tags["task"]: run for run in of_kind(client, done.root, TASK_KIND)}
    assert set(children) == {"first", "second"}
    child = children["second"]
    assert child.data.tags["mlflow.parentRunId"] == publication.run_id
    assert child.data.tags["data_sha256"] == sha256_file(done.root / "data/manifests/second.parquet")
    assert child.data.tags["card_sha256"] == sha256_file(done.root / "models/records/second/card.json")
    assert child.data.tags["validation_success"] == "true"
    assert child.data.params["previous"] == "first"
    assert child.data.metrics["val_accuracy"] == 0.9
    assert child.data.metrics["retrieval_accuracy"] == 0.95
    assert [point.value for point in client.get_metric_history(child.info.run_id, "epoch_train_loss")] == [2.0, 1.0]
    assert child.inputs.dataset_inputs[0].dataset.name == "second"
    assert artifacts(client, child.info.run_id) == {
        "module/adapter/adapter_config.json",
        "module/component.safetensors",
        "signature/signature.json",
        "signature/centroids.safetensors",
        "centroids/centroids.safetensors",
        "card.json",
    }


def test_a_task_that_did_not_change_keeps_its_run_and_gets_a_step(done: Project) -> None:
    client, config = connect(done.root), load_config(done.root / "params.yaml")
    first = publish(client, done.root, config)
    done.measure('{"accuracy_final": 0.7}')
    done.dvc("repro", "-q")
    second = publish(client, done.root, config)
    assert second.run_id != first.run_id
    runs = of_kind(client, done.root, TASK_KIND)
    assert sorted(run.data.tags["task"] for run in runs) == ["first", "second"]
    history = client.get_metric_history(runs[0].info.run_id, "retrieval_accuracy")
    assert [point.step for point in history] == [2, 2]


def test_publishing_twice_changes_nothing(done: Project) -> None:
    client, config = connect(done.root), load_config(done.root / "params.yaml")
    first = publish(client, done.root, config)
    files = sorted(path for path in (done.root / "mlruns" / "artifacts").rglob("*"))
    second = publish(client, done.root, config)
    assert (first.new, second.new) == (True, False)
    assert first.run_id == second.run_id
    assert len(of_kind(client, done.root, PARENT_KIND)) == 1
    assert sorted(path for path in (done.root / "mlruns" / "artifacts").rglob("*")) == files


def test_a_killed_publication_is_marked_and_made_anew(done: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    client, config = connect(done.root), load_config(done.root / "params.yaml")

    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_artifacts", killed)
        with pytest.raises(Killed):
            publish(client, done.root, config)
    assert {run.info.status for run in runs(client, experiment_id(client, done.root), "")} == {"RUNNING"}
    publication = publish(client, done.root, config)
    assert publication.new
    by_status = {run.info.run_id: run.info.status for run in of_kind(client, done.root, PARENT_KIND)}
    assert sorted(by_status.values()) == ["FAILED", "FINISHED"]
    assert by_status[publication.run_id] == "FINISHED"


def test_null_is_left_out_and_not_logged_as_nan(done: Project) -> None:
    done.measure('{"forgetting": null, "accuracy_matrix": [[0.5], [null, 0.5]]}')
    done.dvc("repro")
    client = connect(done.root)
    publication = publish(client, done.root, load_config(done.root / "params.yaml"))
    assert "forgetting" not in client.get_run(publication.run_id).data.metrics
    assert len(client.get_metric_history(publication.run_id, "accuracy_after_task")) == 1


def test_without_git_and_without_results(done: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    client, config = connect(done.root), load_config(done.root / "params.yaml")
    shutil.rmtree(done.root / ".git")
    publication = publish(client, done.root, config)
    assert client.get_run(publication.run_id).data.tags["git_commit"] == "none"
    monkeypatch.setenv("PATH", str(done.root))  # no git program at all
    (done.root / "dvc.lock").write_text("another state")
    assert publish(client, done.root, config).new
    (done.root / "dvc.lock").unlink()
    with pytest.raises(IntaglioError, match=r"dvc\.lock: file not found"):
        publish(client, done.root, config)
