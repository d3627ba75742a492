"""The verbs about learned tasks: each changes params.yaml once, and no other task's stages run."""

from __future__ import annotations

import difflib
import shutil
from pathlib import Path

import pytest
from synthetic import Project

from components.errors import IntaglioError
from components.params import load_config
from flows.pipeline.crash_recovery import forget_dropped_tasks
from flows.tasks.add_task import add_task
from flows.tasks.archive_task import archive_task
from flows.tasks.order_tasks import order_tasks
from flows.tasks.retire_task import Reuse, restore_task, retire_task
from flows.tasks.retrain_task import retrain_task
from flows.tasks.task_table import fact_lines, table_lines, task_facts, task_rows
from flows.tasks.update_task import update_task
from tests.flows.tasks.stream_project import contents, images

LEFT = ("models/modules", "models/signatures", "models/records", "data/index")


def added_lines(root: Path, before: str) -> list[str]:
    after = (root / "params.yaml").read_text()
    return [line for line in difflib.ndiff(before.splitlines(), after.splitlines()) if line[0] in "+-"]


def test_an_update_runs_alone_and_changes_no_module(learned: Project) -> None:
    root, before = learned.root, contents(learned.root, *LEFT)
    text = (root / "params.yaml").read_text()
    one = images(root / "images" / "later", "c", count=1)
    added = update_task(root, "mat", one)
    assert (added.name, added.folder, added.images, added.new_classes) == ("mat.1", "images/later", {"c": 1}, ("c",))
    assert added_lines(root, text) == [
        "+   updates:",
        "+     mat.1: {folder: images/later, task: mat, previous: mat}",
    ]
    more = update_task(root, "mat", images(root / "images" / "still later", "c", "a"))
    assert (more.name, more.new_classes) == ("mat.2", ())  # `c` is known from the update that has not run
    learned.dvc("repro")
    assert learned.executed() == ["update@mat.1", "update@mat.2", "evaluate", "report", "bundle"]
    assert contents(root, *LEFT).items() > before.items()
    assert load_config().generation("mat") == "mat.2"
    assert update_task(root, "mat", images(root / "images" / "last", "c")).name == "mat.3"


def test_what_cannot_be_updated(learned: Project) -> None:
    root = learned.root
    add_task(root, "pot", images(root / "images" / "pot", "x"))
    retire_task(root, "cup")
    retrain_task(root, "hat")
    good = images(root / "images" / "good", "a")
    update_task(root, "mat", images(root / "images" / "taken", "a"))
    before = (root / "params.yaml").read_text()
    for task, folder, message in [
        ("sun", good, "not in .*params.yaml; it has mat, cup, hat, pot, hat-2"),
        ("pot", good, "was not learned yet; run `intaglio run` first"),
        ("cup", good, "is retired; run `intaglio task restore cup` first"),
        ("hat", good, "was replaced by hat-2; update that one"),
        ("mat", root / "nowhere", "no such folder"),
        ("mat", root / "images" / "taken", "already the folder of update 'mat.1'"),
        ("mat", root / "images" / "cup", "already the folder of task 'cup'"),
        ("mat", root, "holds the project itself"),
    ]:
        with pytest.raises(IntaglioError, match=message) as caught:
            update_task(root, task, folder)
        assert "\n" not in str(caught.value)
    assert (root / "params.yaml").read_text() == before


def test_a_task_is_retrained_at_the_end_and_no_other_module_changes(learned: Project) -> None:
    root, before = learned.root, contents(learned.root, *LEFT)
    update_task(root, "mat", images(root / "images" / "later", "a", count=1))
    new = retrain_task(root, "mat")
    assert (new.name, new.replaces, new.folder, new.left_out) == ("mat-2", "mat", "images/mat", ("images/later",))
    assert load_config().tasks == ("cup", "hat", "mat-2")
    with pytest.raises(IntaglioError, match="'mat-2': is the next generation of 'mat' already; run `intaglio run`"):
        retrain_task(root, "mat")
    learned.dvc("repro")
    ran = [stage for stage in learned.executed() if stage != "update@mat.1" and "@" in stage]
    assert {stage.partition("@")[2] for stage in ran} == {"mat-2"}
    assert contents(root, *LEFT).items() > before.items()
    third = retrain_task(root, "mat", images(root / "images" / "better", "a", "b"))
    assert (third.name, third.replaces) == ("mat-3", "mat-2")
    assert load_config().tasks == ("cup", "hat", "mat-3")
    assert retire_task(root, "mat-3").instead == "mat-2"
    shutil.rmtree(root / "images" / "cup")
    with pytest.raises(IntaglioError, match="the images of task 'cup' are gone; name others"):
        retrain_task(root, "cup")


def test_retired_and_restored(learned: Project) -> None:
    root, before = learned.root, (learned.root / "params.yaml").read_text()
    done = retire_task(root, "mat")
    assert (done.changed, done.reused_by) == (True, (Reuse("cup", 1), Reuse("hat", 1)))
    assert load_config().tasks == ("cup", "hat")
    assert retire_task(root, "mat").changed is False
    learned.dvc("repro")
    assert learned.executed() == ["evaluate", "report", "bundle"]
    archive_task(root, "hat")
    retire_task(root, "hat")  # an archived one too
    with pytest.raises(IntaglioError, match="'cup': is the last one that answers"):
        retire_task(root, "cup")
    with pytest.raises(IntaglioError, match=r"not in .*params\.yaml"):
        restore_task(root, "sun")
    assert restore_task(root, "hat").changed
    assert restore_task(root, "mat").changed
    assert restore_task(root, "mat").changed is False
    assert load_config().tasks == ("mat", "cup", "hat")
    assert "retired" not in (root / "params.yaml").read_text()
    assert before.partition("stream:")[0] == (root / "params.yaml").read_text().partition("stream:")[0]


def test_two_branches_make_one_chain(learned: Project) -> None:
    root, params = learned.root, learned.root / "params.yaml"
    for name in ("one", "two", "three"):
        images(root / "images" / name, "x")
    branches = (
        "    one: {folder: images/one, previous: hat}\n"
        "    one-more: {folder: images/two, previous: one}\n"
        "    other: {folder: images/three, previous: hat}\n"
    )
    params.write_text(params.read_text() + branches)
    with pytest.raises(IntaglioError, match=r"`previous: one-more` for other, or run `intaglio task order one other`"):
        load_config()
    for names, message in [
        (("one",), "expected two different tasks"),
        (("one", "sun"), "'sun': not in"),
        (("one", "cup"), "one follows 'hat', cup follows 'mat'"),
    ]:
        with pytest.raises(IntaglioError, match=message):
            order_tasks(root, names)
    done = order_tasks(root, ["one", "other"])
    assert (done.moved, done.again) == ({"other": "one-more"}, ())
    assert load_config().chain == ("mat", "cup", "hat", "one", "one-more", "other")
    assert order_tasks(root, ["one", "other"]).moved == {}
    params.write_text(params.read_text().replace("previous: mat}", "previous: base}"))  # cup was learned
    assert order_tasks(root, ["mat", "cup"]).again == ("cup", "hat")


def test_the_table_and_the_card(learned: Project) -> None:
    root = learned.root
    add_task(root, "pot", images(root / "images" / "pot", "x"))
    archive_task(root, "mat", delete=True)
    retire_task(root, "cup")
    update_task(root, "hat", images(root / "images" / "later", "a"))
    rows = task_rows(root)
    assert [(row.place, row.name, row.state, row.generation) for row in rows] == [
        (1, "mat", "archived", "mat"),
        (2, "cup", "learned, retired", "cup"),
        (3, "hat", "learned", "hat.1"),
        (4, "pot", "new", "pot"),
    ]
    assert [(row.classes, row.images, row.accuracy) for row in rows] == [(2, 6, 0.5)] * 3 + [(None, None, None)]
    lines = table_lines(rows)
    assert len(lines) == 5
    assert lines[1].endswith("images/mat (gone)")
    assert rows[0].bytes > rows[3].bytes == 0
    shown = "\n".join(fact_lines(task_facts(root, "mat")))
    assert "mat: task 1, archived, generation mat" in shown
    assert "  a: 3" in shown
    assert "hat reuses 1 of its directions" in shown
    assert "no card yet" in "\n".join(fact_lines(task_facts(root, "pot")))
    with pytest.raises(IntaglioError, match="'sun': not in"):
        task_facts(root, "sun")


def test_a_new_stream_asks_before_it_drops_what_was_learned(learned: Project) -> None:
    root = learned.root
    archive_task(root, "mat")
    update_task(root, "hat", images(root / "images" / "later", "a"))
    before = (root / "params.yaml").read_text()
    new = images(root / "images" / "new", "x")
    with pytest.raises(IntaglioError, match=r"would drop what was learned of mat, cup, hat: .* --drop-learned"):
        add_task(root, "sun", new, first=True)
    with pytest.raises(IntaglioError, match="'cup': a dropped task of this name left"):
        add_task(root, "cup", new, first=True, drop_learned=True)
    assert (root / "params.yaml").read_text() == before
    assert add_task(root, "sun", new, first=True, drop_learned=True).dropped == ("mat", "cup", "hat")
    stream = load_config().stream
    assert (list(stream.tasks), stream.dropped) == (["sun"], ("mat", "cup", "hat"))
    assert (stream.archived, stream.updates, list((root / "archived").iterdir())) == ({}, {}, [])
    with pytest.raises(IntaglioError, match="'mat': a dropped task of this name left"):
        add_task(root, "mat", root / "images" / "mat")
    forget_dropped_tasks(root, load_config())
    assert sorted(contents(root, *LEFT, "data/manifests", "reports/validation")) == [
        "data/index/base.parquet",
        "models/modules/base/module.json",
    ]
    add_task(root, "mat", root / "images" / "mat")
    assert load_config().stream.dropped == ("cup", "hat")


def test_recovery_keeps_every_generation(learned: Project) -> None:
    root = learned.root
    archive_task(root, "cup")
    retire_task(root, "mat")
    update_task(root, "hat", images(root / "images" / "later", "a"))
    learned.dvc("repro")
    everything = (*LEFT, "data/manifests", "reports", "archived")
    before = contents(root, *everything)
    (root / "models" / "records" / "hat.2").mkdir()
    forget_dropped_tasks(root, load_config())
    assert contents(root, *everything) == before
    assert not (root / "models" / "records" / "hat.2").exists()
