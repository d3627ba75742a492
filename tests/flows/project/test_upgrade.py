"""`intaglio init --upgrade`: only dvc.yaml changes, and what changed is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic import Project

from components.errors import IntaglioError
from flows.pipeline.lock import run_lock
from flows.project.template_files import template_text
from flows.project.upgrade import KEPT, upgrade_project

OLD = """\
stages:
  backbone:
    cmd: python -m components.stages backbone
  mine:
    cmd: echo
"""


def everything_but(root: Path, *names: str) -> dict[str, bytes]:
    files = [path for path in root.iterdir() if path.is_file() and path.name not in names]
    return {path.name: path.read_bytes() for path in files}


def test_only_dvc_yaml_changes_and_what_changed_is_told(fresh: Project) -> None:
    (fresh.root / "dvc.yaml").write_text(OLD)
    before = everything_but(fresh.root, "dvc.yaml")
    lines = upgrade_project(fresh.root)
    assert (fresh.root / "dvc.yaml").read_text() == template_text("dvc.yaml")
    assert (fresh.root / KEPT).read_text() == OLD
    assert everything_but(fresh.root, "dvc.yaml") == before
    assert lines[1].startswith("  stages added: fetch, ingest, ")
    assert lines[2:4] == ["  stages removed: mine", "  stages changed: backbone"]
    assert lines[-1] == "next: `intaglio plan` shows what would run, and why"
    assert upgrade_project(fresh.root) == [f"{fresh.root / 'dvc.yaml'}: is that of the installed version already"]


def test_a_comment_is_no_change_and_broken_yaml_is_replaced(fresh: Project) -> None:
    (fresh.root / "dvc.yaml").write_text(template_text("dvc.yaml") + "# a remark\n")
    assert "  only comments or layout changed" in upgrade_project(fresh.root)
    (fresh.root / "dvc.yaml").write_text("stages: [")
    assert any(line.startswith("  stages added: backbone, ") for line in upgrade_project(fresh.root))


def test_what_params_yaml_needs_is_told(fresh: Project) -> None:
    params = fresh.root / "params.yaml"
    params.write_text(params.read_text().replace("  label_smoothing:", "  label_smothing:"))
    told = [line for line in upgrade_project(fresh.root) if line.startswith("to do: ")]
    assert any("finetune.label_smothing: unknown key (did you mean 'label_smoothing'?)" in line for line in told)


def test_a_running_pipeline_is_left_alone(fresh: Project) -> None:
    (fresh.root / "dvc.yaml").write_text(OLD)
    with run_lock(fresh.root), pytest.raises(IntaglioError, match="is already running"):
        upgrade_project(fresh.root)
    assert (fresh.root / "dvc.yaml").read_text() == OLD
