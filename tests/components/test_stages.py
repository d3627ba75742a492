"""The stages' command line: what it runs, and how it fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.config import Config
from components.errors import TransientError
from components.inference import bundle
from components.io import sha256_file
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


@pytest.mark.parametrize("arguments", [["nothing"], ["finetune"], ["report", "low"]])
def test_wrong_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
