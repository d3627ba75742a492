"""The resolved dvc.yaml as ordered stages."""

from __future__ import annotations

from synthetic import Project

from flows.dag import changed_stages, read_dag


def test_stages_come_after_what_they_read(fresh: Project) -> None:
    dag = read_dag(fresh.root)
    names = [stage.name for stage in dag.stages]
    assert len(names) == 13
    for stage in dag.stages:
        assert all(names.index(name) < names.index(stage.name) for name in stage.upstream)
    finetune = next(stage for stage in dag.stages if stage.name == "finetune@second")
    assert finetune.upstream == {"backbone", "finetune@first", "validate@second"}


def test_changes_of_an_untouched_and_of_a_finished_project(fresh: Project, done: Project) -> None:
    assert len(changed_stages(done.root)) == 0


def test_everything_of_a_new_project_is_changed(fresh: Project) -> None:
    assert changed_stages(fresh.root) == {stage.name for stage in read_dag(fresh.root).stages}
