"""The grid: finished experiments are kept, however a run ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.errors import IntaglioError
from components.io import read_json, read_table
from components.lab.experiment import Row
from components.lab.grid import Experiment, GridPlan, Laboratory, PreparedStream, run_plan
from components.lab.method_registry import METHODS
from components.lab.stream import load_stream
from components.lab.task_sequence import Caps
from components.params import with_settings
from flows.bench.quality import QualityRequest, chosen_methods, quality

METHOD_NAMES = ("frozen_ncm", "frozen_slda", "intaglio_frozen")


def figures(rows: list[Row]) -> list[Row]:
    return [{key: value for key, value in row.items() if not key.endswith("seconds")} for row in rows]


@pytest.fixture
def own(laboratory: Laboratory, tmp_path: Path) -> Laboratory:
    """A laboratory with nothing computed yet."""
    return Laboratory(laboratory.root, tmp_path / "own", laboratory.data, laboratory.config)


def plan(project: Path, seeds: int = 2, orders: int = 2, methods: tuple[str, ...] = METHOD_NAMES) -> GridPlan:
    return GridPlan(load_stream(str(project / "small.yaml")), methods, seeds, orders, Caps())


def test_a_second_run_computes_nothing_and_returns_the_same(
    own: Laboratory, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run_plan(own, plan(project), jobs=1)
    assert capsys.readouterr().out.count(": computing") == len(first) == 12
    assert run_plan(own, plan(project), jobs=1) == first
    assert capsys.readouterr().out.count(": found") == 12
    more = run_plan(own, plan(project, seeds=3), jobs=1)
    assert capsys.readouterr().out.count(": computing") == 6
    assert len(more) == 18


def test_processes_give_what_one_process_gives(own: Laboratory, project: Path, tmp_path: Path) -> None:
    alone = Laboratory(own.root, tmp_path / "alone", own.data, own.config)
    one, two = (run_plan(lab, plan(project, orders=1), jobs) for lab, jobs in ((alone, 1), (own, 2)))
    assert figures(one) == figures(two)


_CHILD = """
import sys
from pathlib import Path
from components.params import load_config
from components.lab.task_sequence import Caps
from components.lab.grid import GridPlan, Laboratory, run_plan
from components.lab.stream import load_stream
root, folder = Path(sys.argv[1]), Path(sys.argv[2])
laboratory = Laboratory(root, folder, (root / "zips",), load_config(root / "params.yaml"))
run_plan(laboratory, GridPlan(load_stream(str(root / "small.yaml")), ("frozen_ncm", "intaglio_own"), 2, 2, Caps()), 1)
"""


def test_a_killed_grid_goes_on_where_it_was(project: Path, own: Laboratory, tmp_path: Path) -> None:
    command = [sys.executable, "-c", _CHILD, str(project), str(own.folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUNBUFFERED": "1"}
    stored = own.folder / "experiments" / "small"
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    end = time.monotonic() + 120
    while len(list(stored.glob("[!.]*.json"))) < 3 and time.monotonic() < end and child.poll() is None:
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    finished = {path.name: path.read_bytes() for path in stored.glob("[!.]*.json")}
    assert 3 <= len(finished) < 8
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.count(": found") == len(finished)
    assert done.stdout.count(": computing") == 8 - len(finished)
    after = {path.name: path.read_bytes() for path in stored.glob("[!.]*.json")}
    assert len(after) == 8
    assert finished.items() <= after.items()
    clean = Laboratory(project, tmp_path / "clean", own.data, own.config)
    expected = run_plan(clean, plan(project, methods=("frozen_ncm", "intaglio_own")), jobs=1)
    assert figures(expected) == figures([read_json(stored / name) for name in _in_order(expected, after)])


def _in_order(rows: list[Row], names: dict[str, bytes]) -> list[str]:
    starts = [f"{row['method']}-{row['seed']}-{row['order']}-" for row in rows]
    return [name for start in starts for name in names if name.startswith(start)]


def test_settings_are_chosen_on_validation_once_and_recorded(own: Laboratory, project: Path) -> None:
    stream = PreparedStream(own, load_stream(str(project / "small.yaml")), Caps())
    row = stream.run(Experiment("frozen_slda", 1, 1))
    (record,) = (own.folder / "tuned" / "small").glob("*.json")
    facts = read_json(record)
    tried = facts["validation_accuracy"]
    assert facts["grid"][tried.index(max(tried))] == facts["chosen"] == row["settings"]
    assert len(tried) == len(METHODS["frozen_slda"].grid)


def test_a_change_of_settings_is_another_experiment(
    own: Laboratory, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_plan(own, plan(project, 1, 1, ("signature_dpgmm",)), jobs=1)
    changed = Laboratory(own.root, own.folder, own.data, with_settings(own.config, ["signature.components=2"]))
    run_plan(changed, plan(project, 1, 1, ("signature_dpgmm",)), jobs=1)
    assert capsys.readouterr().out.count(": computing") == 2


@pytest.mark.parametrize(
    "setting", ["finetune.rank", "finetune.rnak=4", "rank=4", "finetune.rank=-1", "finetune.rank=x"]
)
def test_an_impossible_setting_is_refused(laboratory: Laboratory, setting: str) -> None:
    with pytest.raises(IntaglioError, match="--set"):
        with_settings(laboratory.config, [setting])


def test_methods_are_named_or_grouped() -> None:
    assert chosen_methods("all") == tuple(METHODS)
    assert "intaglio" not in chosen_methods("frozen")
    with pytest.raises(IntaglioError, match="known: "):
        chosen_methods("frozen_ncm,magic")


def test_quality_writes_rows_with_their_origin(project: Path, tmp_path: Path) -> None:
    request = QualityRequest(
        (str(project / "small.yaml"),), ("frozen_ncm",), 1, 2, Caps(test=5), (), (project / "zips",), jobs=1
    )
    rows = quality(project, request, tmp_path)
    stored = read_table(tmp_path / "small.parquet")
    assert len(stored) == len(rows) == 2
    assert {"command", "code", "machine", "date", "accuracy_final", "bytes_per_task", "learning_seconds"} <= set(stored)
