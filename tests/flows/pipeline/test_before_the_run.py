"""Where the project is, what is wrong with it, and who else is running it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from ruamel.yaml import YAML
from synthetic import Project

from components.errors import IntaglioError
from flows.pipeline.crash_recovery import recover
from flows.pipeline.lock import run_lock
from flows.pipeline.prepared import prepared
from flows.pipeline.up_to_date import summary_if_up_to_date
from flows.settings import find_root, stage_environment
from flows.tasks.preflight import preflight


def test_the_root_is_found_from_any_folder_inside(tmp_path: Path) -> None:
    inside = tmp_path / "project" / "a" / "b"
    inside.mkdir(parents=True)
    with pytest.raises(IntaglioError, match=r"no dvc\.yaml here or in a folder above"):
        find_root(inside)
    (tmp_path / "project" / "dvc.yaml").write_text("")
    with pytest.raises(IntaglioError, match="run `dvc init`"):
        find_root(inside)
    (tmp_path / "project" / ".dvc").mkdir()
    assert find_root(inside) == tmp_path / "project"


def test_python_of_a_stage_is_this_python(tmp_path: Path) -> None:
    env = stage_environment(tmp_path)
    found = subprocess.run(["python", "-c", "import sys; print(sys.prefix)"], env=env, capture_output=True, check=True)
    assert found.stdout.decode().strip() == sys.prefix
    assert env["DVC_NO_ANALYTICS"] == "true"


def test_what_the_user_has_set_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLCONFIGDIR", "/elsewhere")
    assert stage_environment(tmp_path)["MPLCONFIGDIR"] == "/elsewhere"


def test_every_missing_folder_is_a_line(fresh: Project) -> None:
    params = fresh.root / "params.yaml"
    text = params.read_text()
    text = text.replace("folder: data/raw/second", "folder: data/raw/other")
    params.write_text(
        text + "    third: {folder: my/images, previous: second}\n    fourth: {folder: dvc.yaml, previous: third}\n"
    )
    with pytest.raises(IntaglioError) as caught:
        preflight(fresh.root)
    other, third, fourth = str(caught.value).splitlines()
    assert "stream.tasks.second.folder: data/raw/other does not exist, and 'other' is not among fetch.tasks" in other
    assert "stream.tasks.third.folder: my/images does not exist" in third
    assert "stream.tasks.fourth.folder: dvc.yaml is a file" in fourth


def holders(*pids: int) -> str:
    reader = [{"pid": pid, "cmd": "dvc repro"} for pid in pids]
    return json.dumps({"write": {"/a": {"pid": pids[0], "cmd": "dvc repro"}, "/b": {}}, "read": {"/c": reader}})


def test_locks_of_dead_processes_are_forgotten_and_of_living_ones_kept(fresh: Project) -> None:
    table = fresh.root / ".dvc" / "tmp" / "rwlock"
    table.parent.mkdir(exist_ok=True)
    recover(fresh.root)  # no table, nothing to do
    zombie = subprocess.Popen(["true"])
    while Path(f"/proc/{zombie.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        pass
    gone = subprocess.Popen(["true"])
    gone.wait()
    for text in ("{torn", "[1]", '{"write": {"/a": {"cmd": 1}}}', holders(zombie.pid), holders(gone.pid)):
        table.write_text(text)
        recover(fresh.root)
        assert not table.exists(), text
    for text in ("{}", holders(gone.pid, os.getpid())):
        table.write_text(text)
        recover(fresh.root)
        assert table.exists(), text
    zombie.wait()


def test_a_torn_lock_file_is_one_that_dvc_can_read_again(done: Project) -> None:
    lock = done.root / "dvc.lock"
    whole = lock.read_text()
    begin = whole.index("  report:")  # the tail of the file is enough: later stages are like earlier ones
    cuts = {found.end() for found in re.finditer(r"\n|md5:|md5: \d|: [a-z]", whole) if found.end() >= begin}
    for cut in sorted(cuts):
        lock.write_text(whole[:cut])
        recover(done.root)
        stages = COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe").load(lock.read_text()))["stages"]
        files = [file for stage in stages.values() for file in [*stage.get("deps", []), *stage.get("outs", [])]]
        assert all(isinstance(file.get("md5", ""), str) for file in files), whole[:cut][-40:]
        assert len(stages) >= whole[:cut].count("\n    cmd: ") - 1  # at most the last one is given up
    lock.write_text(whole[: whole.rindex("md5: ") + 5] + "12")  # what DVC itself fails on
    done.forget()
    recover(done.root)
    done.dvc("repro")
    assert done.executed() == []
    assert lock.read_text() == whole


def test_temporaries_of_a_killed_dvc_go_and_start_no_stage_again(done: Project) -> None:
    from dvc_objects.fs.utils import tmp_fname

    folders = [done.root / name for name in ("models", "models/modules", "data/manifests", "reports")]
    for folder in folders:
        (folder / tmp_fname()).write_text("test")
    mine = folders[0] / ".mine.tmp"
    mine.write_text("a person's")
    done.forget()
    done.dvc("repro")
    assert done.executed() == []
    recover(done.root)
    assert [path for folder in folders for path in folder.glob(".*.tmp")] == [mine]
    mine.unlink()


def test_the_run_lock_is_taken_once_and_stale_files_are_no_lock(tmp_path: Path) -> None:
    (tmp_path / ".intaglio").mkdir()
    (tmp_path / ".intaglio" / "run.lock").write_text("process 1 since yesterday")
    with run_lock(tmp_path):
        assert f"process {os.getpid()} since" in (tmp_path / ".intaglio" / "run.lock").read_text()
        with pytest.raises(IntaglioError, match="is already running"), run_lock(tmp_path):
            pass
    with run_lock(tmp_path):
        pass


def test_a_project_that_was_never_published_is_not_up_to_date(done: Project) -> None:
    with prepared(done.root) as project:
        assert project.plan.to_run == frozenset()
        assert summary_if_up_to_date(project) is None
        (done.root / "mlruns" / "mlflow.db").unlink()
        assert summary_if_up_to_date(project) is None
