"""What a run would do: why, and what it never does unasked, on a real DVC project."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest
from synthetic import Project

from components.data.folder_changes import FolderChanges, folder_changes
from components.errors import IntaglioError
from components.io import sha256_bytes, write_table
from components.params import load_config
from flows.planning.plan import Plan, make_plan
from flows.planning.timings import expected_seconds, record_seconds


def plan_of(project: Project, *retrain: str) -> Plan:
    return make_plan(project.root, load_config(project.root / "params.yaml"), retrain)


def replace_in(project: Project, old: str, new: str) -> None:
    path = project.root / "params.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


def own_folder(project: Project, task: str) -> None:
    """Give a task that nothing but its owner writes a folder of its own, and have it learned."""
    shutil.copytree(project.root / "data/raw" / task, project.root / "own" / task)
    replace_in(project, f"data/raw/{task}", f"own/{task}")
    project.dvc("repro", "-q")
    project.forget()


def test_a_fresh_project_runs_all_and_a_finished_one_nothing(fresh: Project, done: Project) -> None:
    plan = plan_of(fresh)
    assert len(plan.to_run) == len(plan.dag.stages) == 15
    assert plan.lines[0] == "backbone: has not run yet"
    assert plan.lines[-1] == "15 of 15 stages to run, how long is not known yet"
    assert plan_of(done).lines == ["nothing to run: every stage is up to date"]


def test_settings_that_changed_are_named_and_learned_tasks_stay(done: Project) -> None:
    replace_in(done, "rank: 8", "rank: 4")
    plan = plan_of(done)
    assert plan.to_run == frozenset()
    assert plan.lines == [
        "first stays as it was learned: finetune.rank from 8 to 4 (and after it second); "
        "`intaglio run --retrain first` would train it again",
        "second stays as it was learned: finetune.rank from 8 to 4; "
        "`intaglio run --retrain second` would train it again",
        "nothing to run: every stage is up to date",
    ]


def test_the_word_lets_a_task_be_trained_again_with_all_that_rests_on_it(done: Project) -> None:
    replace_in(done, "rank: 8", "rank: 4")
    with pytest.raises(IntaglioError, match=r"--retrain first: the modules of second .* `intaglio task retrain first`"):
        plan_of(done, "first")
    with pytest.raises(IntaglioError, match="--retrain third: is no learned task with images here; these are: first"):
        plan_of(done, "third")
    plan = plan_of(done, "first", "second")
    assert {"finetune@first", "finetune@second", "evaluate"} <= plan.to_run
    assert plan.reasons["finetune@second"] == "finetune.rank from 8 to 4"
    alone = plan_of(done, "second")
    assert "finetune@first" not in alone.to_run
    assert "finetune@second" in alone.to_run


def test_a_folder_that_is_gone_holds_nothing_up(done: Project) -> None:
    own_folder(done, "second")
    shutil.rmtree(done.root / "own/second")
    assert plan_of(done).lines == ["nothing to run: every stage is up to date"]


def test_a_folder_that_changed_is_told_and_left_alone(done: Project) -> None:
    own_folder(done, "second")
    (done.root / "own/second/a/new.png").write_text("new")
    plan = plan_of(done)
    assert plan.to_run == frozenset()
    assert "second stays as it was learned: " in plan.lines[0]


def test_another_backbone_under_learned_tasks_is_refused(done: Project) -> None:
    replace_in(done, "image_size: 70", "image_size: 84")
    with pytest.raises(IntaglioError, match=r"image_size from 70 to 84, but first, second were learned on the"):
        plan_of(done)


def test_an_output_that_was_deleted_comes_back_from_the_cache(done: Project) -> None:
    shutil.rmtree(done.root / "models/modules/first")
    plan = plan_of(done)
    assert "finetune@first" in plan.to_run
    done.dvc("repro", "-q")
    assert done.executed() == []


def test_a_plan_says_how_long_it_takes(done: Project) -> None:
    assert expected_seconds(done.root, ["finetune@first"]) == (0, ["finetune"])
    record_seconds(done.root, "finetune@first", 10)
    record_seconds(done.root, "finetune@second", 20)
    assert expected_seconds(done.root, ["finetune@first"]) == (10, [])
    assert expected_seconds(done.root, ["finetune@first", "finetune@third", "record@third"]) == (25, ["record"])
    (done.root / ".intaglio/timings.json").write_text("{")
    assert expected_seconds(done.root, ["finetune@first"]) == (0, ["finetune"])


@pytest.fixture
def images(tmp_path):  # type: ignore[no-untyped-def]
    """A folder of two classes of three images, and the manifest of it."""
    for label in ("cat", "dog"):
        for number in range(3):
            path = tmp_path / "pets" / label / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{label} {number}")
    names = [f"{label}/{number}.png" for label in ("cat", "dog") for number in range(3)]
    digests = [sha256_bytes((tmp_path / "pets" / name).read_bytes()) for name in names]
    write_table(tmp_path / "manifest.parquet", pd.DataFrame({"path": names, "sha256": digests}))
    return tmp_path / "pets", pd.DataFrame({"path": names, "sha256": digests})


def test_every_kind_of_change_in_a_folder_is_told_by_name(images) -> None:  # type: ignore[no-untyped-def]
    folder, manifest = images
    assert folder_changes(folder, manifest) == FolderChanges((), (), (), ())
    (folder / "cat/0.png").rename(folder / "dog/9.png")
    (folder / "cat/1.png").unlink()
    (folder / "dog/0.png").write_text("other bytes")
    (folder / "bird").mkdir()
    (folder / "bird/1.png").write_text("a bird")
    found = folder_changes(folder, manifest)
    assert found == FolderChanges(("bird/1.png",), ("cat/1.png",), (("cat/0.png", "dog/9.png"),), ("dog/0.png",))
    assert found.lines == [
        "1 image added to bird",
        "1 image removed from cat",
        "1 image moved: cat/0.png to dog/9.png",
        "1 image changed: dog/0.png",
    ]
