"""Champion and challenger in a real registry: gates, force, rollback, and a kill in between."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from synthetic import Project

from components.errors import IntaglioError
from flows.registry.mlflow_store import CHALLENGER, aliases, bundle_of, connect, experiment_id, tags_of, version_of
from flows.registry.promote import promote, rollback, settle, standing
from flows.registry.status import status_lines
from flows.settings import MODEL
from tests.flows.registry.test_gates import GATES, metrics


class Registry:
    """A real registry to which versions are added without any training."""

    def __init__(self, root: Path) -> None:
        self.root, self.client = root, connect(root)
        self.experiment = experiment_id(self.client, root)
        self.client.create_registered_model(MODEL)

    def add(self, measured: dict[str, Any] | None) -> str:
        run = self.client.create_run(self.experiment, run_name="a run", tags={"kind": "pipeline"}).info.run_id
        if measured is not None:
            self.client.log_text(run, json.dumps(measured), "metrics.json")
        self.client.set_terminated(run, "FINISHED")
        files = self.root / "mlruns" / "artifacts" / "models" / run / "artifacts"
        (files / "artifacts" / "bundle").mkdir(parents=True)
        number = str(self.client.create_model_version(MODEL, source=files.as_uri(), run_id=run).version)
        self.client.set_registered_model_alias(MODEL, CHALLENGER, number)
        return number

    @property
    def champion(self) -> str | None:
        return aliases(self.client).get("champion")

    def tags(self, number: str) -> dict[str, str]:
        return tags_of(version_of(self.client, number))


@pytest.fixture
def registry(fresh: Project) -> Registry:
    return Registry(fresh.root)


def test_the_first_good_version_becomes_champion(registry: Registry) -> None:
    number = registry.add(metrics())
    decision = promote(registry.client, GATES)
    assert (decision.verdict, decision.version, decision.champion) == ("promoted", number, number)
    assert aliases(registry.client) == {"champion": number}
    tags = registry.tags(number)
    assert tags["gates"] == "passed"
    assert tags["gate.accuracy_final"] == "passed: 0.800 reaches 0.600"
    assert tags["previous_champion"] == ""
    run_id = str(version_of(registry.client, number).run_id)
    logged = json.loads(Path(registry.client.download_artifacts(run_id, f"gates/version-{number}.json")).read_text())
    assert [gate["passed"] for gate in logged["gates"]] == [True] * 6


@pytest.mark.parametrize("measured", [metrics(accuracy_final=float("nan")), metrics(accuracy_final=0.1), {}, [], None])
def test_a_blocked_version_changes_nothing(registry: Registry, measured: dict[str, Any] | None) -> None:
    first = registry.add(metrics())
    promote(registry.client, GATES)
    second = registry.add(measured)
    decision = settle(registry.client, GATES, second)
    assert decision.verdict == "blocked"
    assert aliases(registry.client) == {"champion": first, "challenger": second}
    assert registry.tags(second)["gates"] == "blocked"
    # The same question is not asked twice; another threshold is another question.
    asked = registry.tags(second)["gates_sha256"]
    assert standing(registry.client, GATES, second) == decision
    assert standing(registry.client, GATES.model_copy(update={"max_forgetting": 0.5}), second) is None
    assert registry.tags(second)["gates_sha256"] == asked


def test_force_overrules_a_gate_and_says_why(registry: Registry) -> None:
    number = registry.add(metrics(accuracy_final=0.1))
    decision = promote(registry.client, GATES, force="the floor is out of date")
    assert decision.verdict == "promoted"
    tags = registry.tags(number)
    assert tags["forced"] == "the floor is out of date"
    assert tags["gates"] == "blocked"
    assert tags["gate.accuracy_final"] == "BLOCKED: 0.100 is below 0.600"


def test_rollback_returns_to_the_one_before_and_stays_there(registry: Registry) -> None:
    first, second = registry.add(metrics()), ""
    promote(registry.client, GATES)
    second = registry.add(metrics(accuracy_final=0.9))
    assert settle(registry.client, GATES, second).verdict == "promoted"
    assert settle(registry.client, GATES, second).verdict == "champion"
    assert rollback(registry.client) == (second, first)
    assert registry.champion == first
    assert "rolled_back" in registry.tags(second)
    # The next scheduled run finds the same state, and does not bring back what a person took away.
    assert settle(registry.client, GATES, second).verdict == "kept"
    assert registry.champion == first
    with pytest.raises(IntaglioError, match="first champion"):
        rollback(registry.client)
    assert registry.champion == first
    # A person can.
    assert promote(registry.client, GATES, second).verdict == "promoted"
    assert registry.champion == second
    assert "rolled_back" not in registry.tags(second)
    assert rollback(registry.client) == (second, first)


def test_promoting_the_champion_again_is_no_event(registry: Registry) -> None:
    number = registry.add(metrics())
    promote(registry.client, GATES)
    assert promote(registry.client, GATES, number).verdict == "champion"
    assert registry.tags(number)["previous_champion"] == ""


def test_what_is_not_there_is_one_line(registry: Registry) -> None:
    with pytest.raises(IntaglioError, match="no challenger"):
        promote(registry.client, GATES)
    with pytest.raises(IntaglioError, match="no champion"):
        rollback(registry.client)
    with pytest.raises(IntaglioError, match="no version 7; known versions: none"):
        promote(registry.client, GATES, "7")


class Killed(BaseException):
    """Stands for a SIGKILL between two statements."""


@pytest.mark.parametrize(
    ("statement", "after"),
    [
        ("log_dict", 0),
        *(("set_model_version_tag", after) for after in (0, 6, 8, 9, 10)),
        ("set_registered_model_alias", 0),
        ("delete_registered_model_alias", 0),
    ],
)
def test_a_kill_anywhere_leaves_a_champion(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, statement: str, after: int
) -> None:
    first = registry.add(metrics())
    promote(registry.client, GATES)
    second = registry.add(metrics())
    genuine, calls = getattr(MlflowClient, statement), [0]

    def killed(*arguments: Any, **more: Any) -> Any:
        calls[0] += 1
        if calls[0] > after:
            raise Killed
        return genuine(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, statement, killed)
        try:
            settle(registry.client, GATES, second)
        except Killed:
            assert registry.champion in (first, second)
    assert settle(registry.client, GATES, second).verdict in ("promoted", "champion")
    assert registry.champion == second
    assert registry.tags(second)["previous_champion"] == first
    assert rollback(registry.client) == (second, first)


def test_a_kill_during_rollback_leaves_a_champion(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    first = registry.add(metrics())
    promote(registry.client, GATES)
    second = registry.add(metrics())
    promote(registry.client, GATES)

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_registered_model_alias", killed)
        with pytest.raises(Killed):
            rollback(registry.client)
    assert registry.champion == second
    assert rollback(registry.client) == (second, first)


def test_a_version_whose_files_are_gone_is_one_line(registry: Registry) -> None:
    number = registry.add(metrics())
    folder = bundle_of(registry.client, registry.root, number)
    assert folder.is_dir()
    folder.rmdir()
    with pytest.raises(IntaglioError, match="are gone"):
        bundle_of(registry.client, registry.root, number)


def test_status_names_champion_versions_and_runs(registry: Registry, tmp_path: Path) -> None:
    registry.add(metrics())
    promote(registry.client, GATES)
    second = registry.add(metrics(accuracy_final=0.1))
    promote(registry.client, GATES, force="a trial")
    rollback(registry.client)
    shown = "\n".join(status_lines(registry.root))
    assert "model intaglio: 2 versions" in shown
    assert "champion, gates passed" in shown
    assert "gates blocked, forced: a trial, rolled back" in shown
    assert shown.count("FINISHED") == 2
    assert second in shown
    assert status_lines(tmp_path) == ["nothing published yet; `intaglio run` does"]
