"""An archived task goes on answering and stays tracked, without its stages and without its images."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from synthetic import Project

import flows.tasks.archive_task
import flows.tasks.delete_images
from components.data.task_data import read_manifest
from components.errors import IntaglioError
from components.io import write_arrays
from components.params import load_config
from flows.pipeline.crash_recovery import forget_dropped_tasks
from flows.tasks.add_task import add_task
from flows.tasks.archive_task import archive_task
from flows.tasks.retrain_task import retrain_task
from flows.tasks.update_task import update_task
from tests.flows.tasks.stream_project import contents, images

LEFT = ("models/modules", "models/signatures", "models/records", "data/index")
CLEAN = "Data and pipelines are up to date."


def status(project: Project) -> str:
    return project.dvc("status").stdout.strip()


def test_what_an_archived_task_left_stays_tracked_and_the_next_task_is_learned(learned: Project) -> None:
    root = learned.root
    before = contents(root, *LEFT)
    done = archive_task(root, "mat")
    assert (done.changed, done.file, done.folders) == (True, Path("archived/mat.dvc"), ("images/mat",))
    config = load_config()
    assert (list(config.stream.tasks), list(config.stream.archived)) == (["cup", "hat"], ["mat"])
    assert config.tasks == ("mat", "cup", "hat")
    assert "mat: {folder: images/mat, previous: base}  # the task mat" in Path("params.yaml").read_text()
    shutil.rmtree(root / "images" / "mat")
    learned.dvc("repro")
    assert learned.executed() == ["evaluate", "report", "bundle"]  # those that read the section `stream`
    assert status(learned) == CLEAN
    assert contents(root, *LEFT) == before
    assert archive_task(root, "mat").changed is False  # again: nothing to do
    add_task(root, "pot", images(root / "images" / "pot", "x"))
    learned.forget()
    learned.dvc("repro")
    assert sorted(learned.executed())[:4] == ["bundle", "evaluate", "finetune@pot", "ingest@pot"]
    assert not [stage for stage in learned.executed() if "@" in stage and not stage.endswith("@pot")]
    assert contents(root, *LEFT).items() >= before.items()


def test_all_tasks_archived_and_their_images_gone(learned: Project) -> None:
    root = learned.root
    cache = root / ".intaglio" / "trunk" / "key"
    for task in ("mat", "cup"):
        digests = [bytes.fromhex(digest) for digest in read_manifest(root, task)["sha256"]]
        rows = np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(len(digests), -1)
        arrays = {"checksums": np.zeros(6, np.uint32), "pooled": np.zeros((6, 1), np.float32)}
        arrays |= {"images": rows, "tokens": np.zeros((6, 1, 1), np.float16)}
        write_arrays(cache / f"{task}.safetensors", arrays)
    (root / "images" / "mat" / "a" / "notes.txt").write_text("mine")
    before = contents(root, *LEFT)
    first = archive_task(root, "mat", delete=True).deleted
    assert first is not None
    assert (first.images, first.cached) == (6, 1)
    assert first.kept == {"images/mat": "its images are deleted; other files in it stay"}
    assert [path.name for path in cache.iterdir()] == ["cup.safetensors"]
    assert sorted(path.name for path in (root / "images" / "mat").rglob("*")) == ["a", "notes.txt"]
    for task in ("cup", "hat"):
        archive_task(root, task, delete=True)
        assert not (root / "images" / task).exists()
    for gone in ("data/manifests", "reports/validation", "reports/finetune"):
        assert not [path for path in (root / gone).iterdir() if path.name != ".gitignore"]
    learned.dvc("repro")
    assert learned.executed() == ["evaluate", "report", "bundle"]
    assert status(learned) == CLEAN
    assert contents(root, *LEFT) == before
    for name in LEFT:  # what DVC tracks comes back
        shutil.rmtree(root / name)
    learned.dvc("checkout")
    assert contents(root, *LEFT) == before
    update_task(root, "mat", images(root / "images" / "more", "a", "c"))
    add_task(root, "pot", images(root / "images" / "pot", "x"))
    learned.forget()
    learned.dvc("repro")
    assert {"update@mat.1", "finetune@pot"} < set(learned.executed())
    assert archive_task(root, "mat").changed  # the update as well
    assert list(load_config().stream.archived_updates) == ["mat.1"]
    learned.dvc("repro")
    assert status(learned) == CLEAN
    assert "models/records/mat.1" in (root / "archived" / "mat.dvc").read_text()


@pytest.mark.parametrize("point", ["before params.yaml", "before the deletions", "amid the deletions"])
def test_a_kill_is_healed_by_the_command_run_again(
    learned: Project, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    root, before = learned.root, contents(learned.root, *LEFT)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    place = {
        "before params.yaml": (flows.tasks.archive_task, "change_params"),
        "before the deletions": (flows.tasks.archive_task, "delete_images"),
        "amid the deletions": (flows.tasks.delete_images.shutil, "rmtree"),
    }[point]
    with monkeypatch.context() as patch:
        patch.setattr(*place, killed)
        with pytest.raises(KeyboardInterrupt):
            archive_task(root, "mat", delete=True)
    archive_task(root, "mat", delete=True)
    assert not (root / "images" / "mat").exists()
    assert not (root / "data" / "manifests" / "mat.parquet").exists()
    learned.dvc("repro")
    assert learned.executed() == ["evaluate", "report", "bundle"]
    assert status(learned) == CLEAN
    assert contents(root, *LEFT) == before


def test_a_run_after_a_kill_takes_the_first_step_back(learned: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.tasks.archive_task, "change_params", lambda *_: None)
    archive_task(learned.root, "mat")
    assert (learned.root / "archived" / "mat.dvc").is_file()
    before = contents(learned.root, *LEFT, "reports", "data")
    forget_dropped_tasks(learned.root, load_config())
    assert not (learned.root / "archived" / "mat.dvc").exists()
    assert contents(learned.root, *LEFT, "reports", "data") == before
    assert status(learned) == CLEAN


def test_images_that_stay(learned: Project, tmp_path: Path) -> None:
    root, outside = learned.root, tmp_path / "outside"
    shutil.move(root / "images" / "cup", outside)
    params = root / "params.yaml"
    params.write_text(params.read_text().replace("images/cup", str(outside)).replace("images/hat", "data/raw/hat"))
    shutil.move(root / "images" / "hat", root / "data" / "raw" / "hat")
    retrain_task(root, "mat")  # mat-2 learns from the images of mat
    kept = [archive_task(root, task, delete=True).deleted for task in ("mat", "cup", "hat")]
    reasons = [dict(deleted.kept) for deleted in kept if deleted]
    assert reasons[0] == {"images/mat": "it stays: mat-2 has its images there too; archive mat-2 as well"}
    assert f"you may delete it: `rm -r {outside}`" in reasons[1][str(outside)]
    assert "`fetch` would write it again" in reasons[2]["data/raw/hat"]
    for folder in (root / "images" / "mat", outside, root / "data" / "raw" / "hat"):
        assert len(list(folder.rglob("*.png"))) == 6


def test_what_is_refused_leaves_everything_alone(learned: Project) -> None:
    root = learned.root
    add_task(root, "pot", images(root / "images" / "pot", "x"))
    update_task(root, "mat", images(root / "images" / "more", "a"))
    shutil.rmtree(root / "models" / "records" / "hat")
    before = (root / "params.yaml").read_text()
    for task, message in [
        ("sun", "not in .*params.yaml; it has mat, cup, hat, pot"),
        ("pot", "was not learned yet; run `intaglio run` first"),
        ("mat", "models/signatures/mat.1 is not in dvc.lock; run `intaglio run` first"),
        ("hat", "models/records/hat: not found; run `dvc pull` or `intaglio run` first"),
    ]:
        with pytest.raises(IntaglioError, match=message):
            archive_task(root, task, delete=True)
    assert (root / "params.yaml").read_text() == before
    assert not (root / "archived").exists()
    assert len(list((root / "images").rglob("*.png"))) == 24
