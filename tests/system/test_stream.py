"""A stream that lives: images go, more arrive, tasks retire, a colleague clones. The tests are steps of one story."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.io import read_json, sha256_file
from tests.system.tiny_project import Terminal, lay_out_tiny_project, write_negative_digits

LEFT = ("models/modules", "models/signatures", "models/records")


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """A project whose two tasks were learned."""
    root = tmp_path_factory.mktemp("stream") / "project"
    lay_out_tiny_project(root)
    found = Terminal(root)
    plan = found.types("plan")
    assert "finetune@photos: has not run yet" in plan
    assert "champion" in found.types("run")
    yield found
    shutil.rmtree(root.parent)


def left_by_tasks(root: Path) -> dict[str, str]:
    """The sha256 of every file that tasks left."""
    files = [path for folder in LEFT for path in (root / folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): sha256_file(path) for path in files if path.name != ".gitignore"}


def commit(root: Path) -> None:
    (root / ".gitignore").write_text("mlruns/\n.intaglio/\n")
    for command in (["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "step"]):
        subprocess.run(["git", *command], cwd=root, check=True, capture_output=True)


def metrics_of(root: Path) -> dict[str, object]:
    found: dict[str, object] = read_json(root / "reports/metrics.json")
    return found


def ran(shown: str) -> set[str]:
    """The stages that a run executed."""
    return {line.split("] ")[1].split(" ran ")[0] for line in shown.splitlines() if "] " in line and " ran (" in line}


def test_the_next_task_is_learned_after_the_images_of_an_earlier_one_are_gone(terminal: Terminal) -> None:
    root, before = terminal.root, left_by_tasks(terminal.root)
    measured = metrics_of(root)
    kept = root.parent / "kept"
    shutil.move(root / "photos", kept)
    write_negative_digits({0: root / "negatives/zero", 1: root / "negatives/one"})
    terminal.types("task", "add", "negatives", "negatives")
    shown = terminal.types("run")
    stages = {f"{kind}@negatives" for kind in ("ingest", "validate", "finetune", "signature", "record")}
    assert ran(shown) == stages | {"evaluate", "report", "bundle"}
    after = left_by_tasks(root)
    assert {name: after[name] for name in before} == before
    now = metrics_of(root)
    assert now["tasks"] == ["pixels", "photos", "negatives"]
    assert now["accuracy_matrix"][:2] == measured["accuracy_matrix"]  # type: ignore[index]
    assert "image files are gone" in (root / "reports/report.html").read_text()
    lines = terminal.types("predict", str(kept), "--json", "--force").splitlines()
    tasks = [json.loads(line)["task"] for line in lines if line.startswith("{")]
    assert tasks.count("photos") > 0.7 * len(tasks) > 30


def test_more_images_and_a_new_class_change_no_module_and_no_other_task(terminal: Terminal) -> None:
    root, before = terminal.root, left_by_tasks(terminal.root)
    write_negative_digits({2: root / "more/two"})
    assert "new class" in terminal.types("task", "update", "negatives", "more")
    assert ran(terminal.types("run")) == {"update@negatives.1", "evaluate", "report", "bundle"}
    after = left_by_tasks(root)
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[2] for name in after.keys() - before.keys()} == {"negatives.1"}
    lines = terminal.types("predict", str(root / "more/two"), "--json", "--force").splitlines()
    answers = [json.loads(line) for line in lines if line.startswith("{")]
    assert [answer["task"] for answer in answers].count("negatives") > 0.7 * len(answers) > 15
    assert "two" in {answer["label"] for answer in answers}


def test_a_task_retires_and_comes_back(terminal: Terminal) -> None:
    root, before = terminal.root, left_by_tasks(terminal.root)
    whole = (root / "reports/predictions.parquet").read_bytes()
    terminal.types("task", "retire", "photos")
    shown = terminal.types("run")
    assert ran(shown) == {"evaluate", "report", "bundle"}
    assert "passed   lost_tasks" in shown
    assert metrics_of(root)["tasks"] == ["pixels", "negatives"]
    terminal.types("task", "restore", "photos")
    terminal.types("run")
    assert left_by_tasks(root) == before
    assert (root / "reports/predictions.parquet").read_bytes() == whole


def test_a_lost_line_in_params_is_no_retirement(terminal: Terminal) -> None:
    path = terminal.root / "params.yaml"
    text = path.read_text()
    lines = [line for line in text.splitlines() if "negatives" not in line and not line.strip().startswith("updates")]
    path.write_text("\n".join(lines) + "\n")
    shown = terminal.types("run")
    assert "BLOCKED  lost_tasks" in shown
    assert "negatives" in shown
    path.write_text(text)
    assert "champion" in terminal.types("run")  # what the lost line left comes back from DVC's cache


def test_everything_works_after_all_images_are_gone(terminal: Terminal) -> None:
    root, before = terminal.root, left_by_tasks(terminal.root)
    answers = metrics_of(root)
    for task in ("pixels", "photos", "negatives"):
        terminal.types("task", "archive", task, "--delete-images")
    shutil.rmtree(root / ".intaglio/trunk")
    assert "finetune" not in terminal.types("plan")
    terminal.dvc("repro")
    assert "up to date" in terminal.dvc("status")
    assert left_by_tasks(root) == before
    assert metrics_of(root)["per_task"] == answers["per_task"]
    assert "pixels: kept in question" in terminal.types("certificate")
    write_negative_digits({3: root / "again/two"})
    terminal.types("task", "update", "negatives", "again")
    write_negative_digits({4: root / "late/four"})
    terminal.types("task", "add", "late", "late")
    assert {"update@negatives.2", "finetune@late"} <= ran(terminal.types("run"))
    after = left_by_tasks(root)
    assert {name: after[name] for name in before} == before
    states = {row["name"]: row["state"] for row in json.loads(terminal.types("task", "list", "--json"))}
    assert states == {"pixels": "archived", "photos": "archived", "negatives": "archived", "late": "learned"}


def test_a_colleague_goes_on_from_a_clone(terminal: Terminal) -> None:
    root, before = terminal.root, left_by_tasks(terminal.root)
    store, clone = root.parent / "store", root.parent / "clone"
    terminal.dvc("remote", "add", "-d", "store", str(store))
    terminal.dvc("push")
    commit(root)
    subprocess.run(["git", "clone", "-q", str(root), str(clone)], check=True)
    colleague = Terminal(clone)
    assert "dvc pull" in colleague.types("run", status=1)
    colleague.dvc("pull")
    shown = colleague.types("run")
    assert ran(shown) == set()
    assert "version 1 passed its gates" in shown
    assert left_by_tasks(clone) == before


def test_a_project_goes_on_where_it_was_moved(terminal: Terminal) -> None:
    moved = terminal.root.parent / "moved here"
    shutil.move(terminal.root, moved)
    try:
        assert "champion" in Terminal(moved).types("run")
        assert "champion" in Terminal(moved).types("status")
    finally:
        shutil.move(moved, terminal.root)
