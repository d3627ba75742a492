"""The resolved dvc.yaml as ordered stages, and which of them may start when."""

from __future__ import annotations

import subprocess
import sys

import pytest
from synthetic import Project

from components.errors import IntaglioError, TransientError
from flows.pipeline.stage_scheduler import StageScheduler
from flows.planning.dag import Dag, Stage, StageStatus, read_dag, stage_status
from flows.settings import stage_environment
from tests.flows.pipeline.test_stage_process import wait_for


def chain(*names: str) -> Dag:
    """Stages that each wait for the one before."""
    before: list[frozenset[str]] = [frozenset(), *(frozenset({name}) for name in names)]
    return Dag(tuple(Stage(name, upstream) for name, upstream in zip(names, before, strict=False)))


def test_stages_come_after_what_they_read(fresh: Project) -> None:
    dag = read_dag(fresh.root)
    names = [stage.name for stage in dag.stages]
    assert len(names) == 15
    for stage in dag.stages:
        assert all(names.index(name) < names.index(stage.name) for name in stage.upstream)
    finetune = next(stage for stage in dag.stages if stage.name == "finetune@second")
    assert finetune.upstream == {"backbone", "finetune@first", "validate@second"}
    assert finetune.needs_device
    assert "report" in dag.downstream(["ingest@first"])
    assert "ingest@second" not in dag.downstream(["ingest@first"])


def test_changes_follow_what_dvc_says(done: Project) -> None:
    assert stage_status(done.root) == {}
    done.measure('{"accuracy_final": 0.7}')
    (status,) = stage_status(done.root).items()
    assert status == ("evaluate", StageStatus({"measured.json": "modified"}, (), {}, False))


def test_a_broken_dvc_yaml_is_one_line(fresh: Project) -> None:
    (fresh.root / "dvc.yaml").write_text("stages:\n  one:\n    comand: true\n")
    with pytest.raises(IntaglioError) as caught:
        read_dag(fresh.root)
    assert str(caught.value).startswith(f"{fresh.root / 'dvc.yaml'}: ")
    assert "\n" not in str(caught.value)
    with pytest.raises(IntaglioError, match="dvc status failed"):
        stage_status(fresh.root)


def test_the_most_urgent_stage_starts_first() -> None:
    free = Stage("report", frozenset())
    dag = Dag((free, *chain("ingest@a", "validate@a", "finetune@a").stages))
    assert [stage.name for stage in dag.by_urgency()] == ["ingest@a", "validate@a", "report", "finetune@a"]


def test_only_one_stage_has_the_device() -> None:
    dag = Dag(tuple(Stage(name, frozenset()) for name in ("finetune@a", "signature@b", "ingest@c")))
    scheduler = StageScheduler(dag, {"finetune@a", "signature@b", "ingest@c"}, workers=3)
    first, second, third = scheduler.next_stage(), scheduler.next_stage(), scheduler.next_stage()
    assert first is not None
    assert second is not None
    assert (first.name, second.name, third) == ("finetune@a", "ingest@c", None)
    scheduler.finished("finetune@a", "ran")
    following = scheduler.next_stage()
    assert following is not None
    assert following.name == "signature@b"


def test_no_more_stages_than_workers() -> None:
    dag = Dag(tuple(Stage(name, frozenset()) for name in ("a", "b", "c")))
    scheduler = StageScheduler(dag, {"a", "b", "c"}, workers=2)
    assert [
        stage and stage.name for stage in (scheduler.next_stage(), scheduler.next_stage(), scheduler.next_stage())
    ] == [
        "a",
        "b",
        None,
    ]


def test_only_the_stages_of_the_plan_are_looked_at() -> None:
    scheduler = StageScheduler(chain("a", "b", "c"), {"b", "c", "not a stage.dvc"}, workers=2)
    assert scheduler.outcomes == {"a": "up to date"}
    stage = scheduler.next_stage()
    assert stage is not None
    assert stage.name == "b"
    assert scheduler.next_stage() is None
    scheduler.finished("b", "cached")
    assert scheduler.next_stage() is not None


def test_what_waits_for_a_failed_stage_never_starts() -> None:
    dag = Dag((*chain("a", "b", "c").stages, Stage("free", frozenset())))
    scheduler = StageScheduler(dag, {"a", "b", "c", "free"}, workers=1)
    assert scheduler.next_stage() is not None
    scheduler.failed("a", IntaglioError("a: broken"))
    stage = scheduler.next_stage()
    assert stage is not None
    assert stage.name == "free"
    scheduler.finished("free", "ran")
    assert scheduler.next_stage() is None
    assert not scheduler.running
    assert scheduler.not_started == ["b", "c"]
    assert scheduler.outcomes == {"a": "failed", "free": "ran"}


def test_where_another_dvc_works_for_long_the_question_ends_with_one_line(done: Project) -> None:
    done.measure('{"accuracy_final": 0.7}')
    done.fault("evaluate", "pause")
    command = [sys.executable, "-m", "dvc", "repro"]
    with subprocess.Popen(command, cwd=done.root, env=stage_environment(done.root), stdout=subprocess.DEVNULL) as other:
        wait_for(done.root / "alive")
        try:
            with pytest.raises(TransientError, match="another DVC process"):
                stage_status(done.root, patience=0.0)
        finally:
            (done.root / "go").touch()
    assert other.returncode == 0
    assert stage_status(done.root) == {}
