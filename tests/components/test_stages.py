"""The stages' command line: what it runs, and how it fails."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from components.config import Config
from components.errors import TransientError
from components.inference import bundle
from components.io import sha256_file
from components.revisions import REVISIONS
from components.stages import main


def test_a_stage_runs_in_the_current_folder(learned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(learned)
    before = sha256_file(learned / "models/bundle/bundle.json")
    (learned / "models/bundle/bundle.json").unlink()
    assert main(["bundle"]) == 0
    assert sha256_file(learned / "models/bundle/bundle.json") == before
    assert main(["ingest", "low"]) == 0


def test_errors_are_lines_and_not_traces(
    learned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(learned)
    assert main(["finetune", "nobody"]) == 1
    assert "error: params.yaml has no task 'nobody'; it has low, middle, high" in capsys.readouterr().err
    (learned / "models/signatures/low/signature.json").unlink()
    assert main(["bundle"]) == 1
    assert capsys.readouterr().err.startswith("error: models/signatures/low/signature.json: file not found")


def test_a_passing_fault_has_its_own_status(learned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(root: Path, config: Config) -> None:
        raise TransientError("no answer")

    monkeypatch.chdir(learned)
    monkeypatch.setattr(bundle, "write_bundle", unreachable)
    assert main(["bundle"]) == 75


@pytest.mark.parametrize(("edit", "status"), [("temperature: 10.0", 75), ("max_forgetting: 0.10", 0)])
def test_settings_that_change_while_a_stage_runs_are_noticed(
    learned: Path, monkeypatch: pytest.MonkeyPatch, edit: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a stage does not read may change: nothing is run again for it."""
    monkeypatch.chdir(learned)
    shutil.copy(Path(__file__).parents[2] / "dvc.yaml", learned)
    write = bundle.write_bundle

    def edited_meanwhile(root: Path, config: Config) -> None:
        write(root, config)
        text = (root / "params.yaml").read_text()
        key = edit.partition(":")[0]
        (root / "params.yaml").write_text(re.sub(rf"{key}: [0-9.]+", f"{key}: 0.5", text))

    monkeypatch.setattr(bundle, "write_bundle", edited_meanwhile)
    assert main(["bundle", "--revision", str(REVISIONS["bundle"])]) == status
    assert ("params.yaml changed in shortlist while the stage bundle ran" in capsys.readouterr().err) == (status == 75)


def test_a_dvc_yaml_of_another_revision_is_refused(
    learned: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(learned)
    assert main(["bundle", "--revision", "999"]) == 1
    assert "intaglio init --upgrade" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["nothing"], ["finetune"], ["report", "low"]])
def test_wrong_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
