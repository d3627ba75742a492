"""`intaglio bench quality`: run a grid of the laboratory, keep its rows, and log them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from components.bench.gpu import device_name
from components.bench.machine import provenance
from components.config import Config
from components.io import read_table, write_json, write_table
from components.lab.experiment import Row, run_experiment
from components.lab.grid import GridPlan, Laboratory, PreparedStream, flat_row, run_plan
from components.lab.method_registry import METHODS, method_entry
from components.lab.stream import load_stream
from components.lab.task_sequence import Caps, make_task_sequence
from components.lab.theory import theory
from components.params import load_config, with_settings
from components.vision.backbone import choose_device

DATA_VARIABLE = "INTAGLIO_DATA"
_KEY = ["stream", "method", "variant", "seed", "order", "train", "test"]


@dataclass(frozen=True)
class QualityRequest:
    """What the command line asked for.

    Attributes:
        streams: names of streams, or paths of YAML files.
        methods: names of methods.
        seeds: number of seeds.
        orders: number of orders of the tasks.
        caps: images per task at most.
        settings: other values of params.yaml, such as finetune.rank=4.
        data: folders of zips or image folders.
        jobs: processes.
    """

    streams: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: int
    orders: int
    caps: Caps
    settings: tuple[str, ...]
    data: tuple[Path, ...]
    jobs: int


def laboratory(root: Path, data: Sequence[Path], settings: Sequence[str] = ()) -> Laboratory:
    """Return the project's laboratory, under .intaglio/lab.

    Args:
        root: the project.
        data: folders of zips or image folders, searched before $INTAGLIO_DATA and the fetched sets.
        settings: other values of params.yaml.
    """
    given = [Path(part) for part in os.environ.get(DATA_VARIABLE, "").split(os.pathsep) if part]
    places = (*data, *given, root / "data" / "raw")
    return Laboratory(
        root, root / ".intaglio" / "lab", places, with_settings(load_config(root / "params.yaml"), settings)
    )


def chosen_methods(names: str) -> tuple[str, ...]:
    """Resolve a comma-separated list of methods; `all`, and `frozen` for those that train nothing, are groups.

    Raises:
        IntaglioError: an unknown method.
    """
    groups = {"all": list(METHODS), "frozen": [name for name, own in METHODS.items() if not own.adapted]}
    found = [method for name in names.split(",") for method in groups.get(name, [name])]
    for name in found:
        method_entry(name)
    return tuple(dict.fromkeys(found))


def quality(root: Path, request: QualityRequest, out: Path) -> pd.DataFrame:
    """Run the grid of each stream, and add its rows to `out`/<stream>.parquet: one row per experiment.

    Args:
        root: the project.
        request: streams, methods, seeds, orders and settings.
        out: folder of the tables.

    Returns:
        The rows of this run, of all streams; column `variant` names what --set changed.
    """
    lab = laboratory(root, request.data, request.settings)
    tables = []
    for name in request.streams:
        declared = load_stream(name)
        plan = GridPlan(declared, request.methods, request.seeds, request.orders, request.caps)
        rows = run_plan(lab, plan, request.jobs)
        origin = _provenance(lab.config, run_experiment.__module__) | {"variant": " ".join(request.settings)}
        table = pd.DataFrame([origin | flat_row(row) for row in rows])
        store_rows(out / f"{declared.name}.parquet", table)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def store_rows(path: Path, rows: pd.DataFrame) -> None:
    """Add rows to a table; a row of the same experiment is replaced."""
    known = [read_table(path)] if path.exists() else []
    table = pd.concat([*known, rows], ignore_index=True).drop_duplicates(_KEY, keep="last")
    write_table(path, table.sort_values(_KEY, ignore_index=True))


def write_theory(root: Path, request: QualityRequest, out: Path) -> None:
    """Write `out`/<stream>.theory.json: what is promised and what is measured, for seed 0 and the declared order.

    Args:
        root: the project.
        request: streams, caps and settings.
        out: folder of the files.
    """
    lab = laboratory(root, request.data, request.settings)
    for name in request.streams:
        declared = load_stream(name)
        stream = PreparedStream(lab, declared, request.caps)
        sequence = make_task_sequence(stream.table, stream.embedded, 0, 0, request.caps)
        found = theory(sequence, lab.config, 0)
        write_json(
            out / f"{declared.name}.theory.json",
            _provenance(lab.config, theory.__module__) | {"description": declared.spec.description} | found,
        )


def log_rows(root: Path, table: pd.DataFrame) -> int:
    """Log one MLflow run per row, in MLflow's experiment `intaglio-laboratory`; rows that are there are left alone.

    Returns:
        The number of new runs.
    """
    from flows.registry.mlflow_store import connect, runs

    client = connect(root)
    name = "intaglio-laboratory"
    experiment = client.get_experiment_by_name(name)
    place = str(experiment.experiment_id) if experiment else str(client.create_experiment(name))
    known = {run.data.tags.get("experiment") for run in runs(client, place, "attributes.status = 'FINISHED'")}
    logged = 0
    rows: list[Row] = [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
    for row in rows:
        tag = " ".join(f"{key}={row[key]}" for key in [*_KEY, "settings"])
        values = {key: float(value) for key, value in row.items() if _is_metric(key, value)}
        tag += f" accuracy_final={values['accuracy_final']}"
        if tag in known:
            continue
        run = client.create_run(place, run_name=f"{row['stream']} {row['method']}", tags={"experiment": tag})
        for key in (*_KEY, "settings", "command", "date", "machine", "code"):
            client.log_param(run.info.run_id, key, str(row[key])[:500])
        for key, value in values.items():
            client.log_metric(run.info.run_id, key, value)
        client.set_terminated(run.info.run_id, "FINISHED")
        logged += 1
    return logged


def _is_metric(key: str, value: object) -> bool:
    return key not in _KEY and isinstance(value, int | float) and value == value  # a missing metric is NaN


def _provenance(config: Config, code: str) -> dict[str, str]:
    device, found = choose_device(config.device), provenance(code)
    return found if device.type == "cpu" else found | {"machine": f"{found['machine']}, {device_name(device)}"}
