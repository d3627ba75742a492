"""The pages of docs/results: made from what is stored, complete, and the same for the same results."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from synthetic import REPOSITORY

from components.errors import IntaglioError
from components.io import read_table, write_json, write_text
from components.lab.grid import GridPlan, Laboratory, PreparedStream, flat_row, run_plan
from components.lab.pages.write import write_pages
from components.lab.stream import load_stream
from components.lab.task_sequence import Caps, TaskSequence
from components.lab.theory import theory
from flows.bench.quality import store_rows

METHOD_NAMES = ("frozen_ncm", "frozen_slda", "intaglio_frozen")
ORIGIN = {"command": "intaglio bench quality", "code": "c0ffee", "machine": "a machine", "date": "2026-01-01"}
RESULTS = REPOSITORY / "docs" / "results"
DATE = re.compile(r"\b20\d\d-\d\d-\d\d\b")


@pytest.fixture(scope="module")
def rows(laboratory: Laboratory, project: Path) -> pd.DataFrame:
    """Rows of a small stream, as `bench quality` stores them."""
    plan = GridPlan(load_stream(str(project / "small.yaml")), METHOD_NAMES, 2, 2, Caps())
    return pd.DataFrame([ORIGIN | {"variant": ""} | flat_row(row) for row in run_plan(laboratory, plan, jobs=1)])


def test_pages_show_every_stored_row_with_its_origin(rows: pd.DataFrame, tmp_path: Path) -> None:
    stored = tmp_path / "quality" / "small.parquet"
    store_rows(stored, rows)
    store_rows(stored, rows)
    assert len(read_table(stored)) == len(rows)
    write_text(tmp_path / "notes" / "index.md", "Written by hand.\n")
    write_pages(tmp_path)
    index, ablations = ((tmp_path / f"{name}.md").read_text() for name in ("index", "ablations"))
    for expected in (
        "Written by hand.",
        "`frozen_ncm`",
        "`frozen_slda`",
        "--stream small --method",
        "--seeds 2 --orders 2",
        "a machine",
        "2026-01-01",
        "code c0ffee",
        "| 4 |",
    ):
        assert expected in index
    assert "intaglio_frozen" not in index
    assert "`intaglio_frozen`" in ablations


def test_measurements_have_a_table_their_facts_and_a_figure(tmp_path: Path) -> None:
    speeds = [("backbone", 2, 1.0), ("backbone", 50, 1.0), ("shortlist", 50, 0.84), ("shortlist", 2, 0.9)]
    rows = [{"engine": engine, "tasks": tasks, "ratio_to_backbone": ratio} for engine, tasks, ratio in speeds]
    write_json(tmp_path / "inference.json", ORIGIN | {"device": "a device", "rows": rows})
    write_pages(tmp_path)
    page = (tmp_path / "performance.md").read_text()
    assert "| engine | tasks | ratio_to_backbone |" in page
    assert "| shortlist | 50 | 0.84 |" in page
    assert "`intaglio bench quality`; a machine; 2026-01-01; code c0ffee; device a device." in page
    assert "shortlist" in (tmp_path / "figures" / "cost.svg").read_text()


def test_a_long_stream_has_a_page_and_a_figure(tmp_path: Path) -> None:
    plain = {"stages": {}, "bytes_kept": 2_500_000, "peak_memory_mb": 900.4, "label_accuracy": 0.7}
    weeks = [
        plain | {"week": 1, "event": "add", "seconds": 41.2, "images_read": 150, "accuracy": 0.9, "forgetting": None},
        plain | {"week": 2, "event": "nothing", "seconds": 3.21, "images_read": 0, "accuracy": 0.6, "forgetting": 0.1},
    ]
    rivals = [{"week": 2, "rival": "joint", "seconds": 80.5, "accuracy": 0.5, "how": "x"}]
    ratios = {"add_at_end_to_add_at_2": None, "nothing_at_end_to_nothing_at_6": 1.25}
    figures = {"device": "a device", "weeks": weeks, "rivals": rivals, "ratios": ratios, "command": "intaglio bench"}
    write_json(tmp_path / "stream.json", figures)
    assert tmp_path / "stream.md" in write_pages(tmp_path)
    page = (tmp_path / "stream.md").read_text()
    for expected in (
        "| `nothing_at_end_to_nothing_at_6` | 1.25 |",
        "| add | 1 | 41 | 41 | 41 | 900 | 150 |",
        "| 2 | nothing | 3.21 | 0 | 2.5 | 900 | 60.0 | 70.0 | 10.0 |",
        "joint",
        "`intaglio bench`; device a device.",
    ):
        assert expected in page
    assert "label_accuracy" in (tmp_path / "figures" / "stream.svg").read_text()
    assert "stream" not in (tmp_path / "performance.md").read_text()


def test_the_same_results_give_the_same_bytes(rows: pd.DataFrame, tmp_path: Path) -> None:
    store_rows(tmp_path / "quality" / "small.parquet", rows)
    before = {path: path.read_bytes() for path in write_pages(tmp_path)}
    assert {path: path.read_bytes() for path in write_pages(tmp_path)} == before


def test_accuracy_against_bytes_is_drawn_where_it_was_measured(rows: pd.DataFrame, tmp_path: Path) -> None:
    store_rows(tmp_path / "quality" / "small.parquet", rows)
    assert tmp_path / "figures" / "budget.svg" not in write_pages(tmp_path)
    cut = rows.head(2).assign(method="intaglio", variant="finetune.max_rank=4")
    store_rows(tmp_path / "quality" / "small.parquet", cut)
    assert tmp_path / "figures" / "budget.svg" in write_pages(tmp_path)
    assert "figures/budget.svg" in (tmp_path / "ablations.md").read_text()


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(IntaglioError, match="folder not found"):
        write_pages(tmp_path / "nowhere")


def test_theory_is_symmetric_complete_and_shown(
    lab_stream: PreparedStream, sequence: TaskSequence, tmp_path: Path
) -> None:
    found = theory(sequence, lab_stream.laboratory.config, 0)
    count = len(found["tasks"])
    assert [len(found[key]) for key in ("delta", "bound", "gaussian", "measured")] == [count] * 4
    assert found["delta"][0][1] == pytest.approx(found["delta"][1][0])
    assert [row["tasks"] for row in found["delta_by_tasks"]] == [2, 3, 4]
    coverage = [row["coverage"] for row in found["coverage"]]
    assert coverage == sorted(coverage, reverse=True)
    write_json(tmp_path / "quality" / "small.theory.json", ORIGIN | {"description": "x"} | found)
    write_pages(tmp_path)
    assert "theory-small.svg" in (tmp_path / "theory.md").read_text()
    assert (tmp_path / "figures" / "theory-small.svg").read_bytes().startswith(b"<?xml")


@pytest.fixture(scope="module")
def written_again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's own pages, made once more from its stored results."""
    folder = tmp_path_factory.mktemp("results")
    shutil.copytree(RESULTS, folder, dirs_exist_ok=True)
    for path in write_pages(folder):
        assert path.is_file()
    return folder


@pytest.mark.parametrize("name", ["index", "default-run", "performance", "ablations", "theory"])
def test_the_projects_pages_are_those_of_its_stored_results(written_again: Path, name: str) -> None:
    assert (RESULTS / f"{name}.md").read_text() == (written_again / f"{name}.md").read_text()


def test_the_index_is_short_and_dates_each_table_once() -> None:
    text = (RESULTS / "index.md").read_text()
    assert len(text.splitlines()) <= 150
    assert (
        len(DATE.findall(text))
        == len(re.findall(r"^\|---", text, re.MULTILINE))
        == len(re.findall(r"^`(intaglio|make)", text, re.MULTILINE))
    )
