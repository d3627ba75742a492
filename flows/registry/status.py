"""Describe the champion, the versions and the last runs: `intaglio status`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from mlflow import MlflowClient

from flows.registry.mlflow_store import PARENT_KIND, aliases, connect, runs, tags_of, versions
from flows.settings import EXPERIMENT, MODEL

_SHOWN = 5


def status_lines(root: Path) -> list[str]:
    """Return what to print; one line where nothing has been published yet."""
    if not (root / "mlruns" / "mlflow.db").is_file():
        return ["nothing published yet; `intaglio run` does"]
    client = connect(root)
    return [*_version_lines(client), *_run_lines(client)]


def _version_lines(client: MlflowClient) -> Iterator[str]:
    by_version: dict[str, list[str]] = {}
    for alias, number in aliases(client).items():
        by_version.setdefault(number, []).append(alias)
    known = versions(client)
    yield f"model {MODEL}: {len(known)} version{'' if len(known) == 1 else 's'}"
    for version in known[:_SHOWN]:
        number, tags = str(version.version), tags_of(version)
        notes = [*by_version.get(number, []), f"gates {tags.get('gates', 'not run')}"]
        notes += [f"forced: {tags['forced']}"] if "forced" in tags else []
        notes += [f"rolled back {tags['rolled_back']}"] if "rolled_back" in tags else []
        yield f"  {number:>4}  {_when(version.creation_timestamp)}  {', '.join(notes)}"


def _run_lines(client: MlflowClient) -> Iterator[str]:
    experiment = client.get_experiment_by_name(EXPERIMENT)
    found = runs(client, experiment.experiment_id, f"tags.kind = '{PARENT_KIND}'") if experiment else []
    yield "last runs:"
    for run in found[:_SHOWN]:
        accuracy = run.data.metrics.get("accuracy_final")
        figure = "" if accuracy is None else f"  accuracy_final {accuracy:.3f}"
        yield f"  {_when(run.info.start_time)}  {run.info.status:<8}  {run.info.run_name}{figure}"


def _when(milliseconds: int) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000):%Y-%m-%d %H:%M}"
