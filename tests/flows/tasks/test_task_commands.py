"""What the commands print: what was done, and what comes next."""

from __future__ import annotations

import json

import pytest
from synthetic import Project

from flows.cli.app import run_command
from flows.tasks.params_file import ParamsText
from tests.flows.tasks.stream_project import images


def test_each_command_says_what_it_did_and_what_comes_next(
    learned: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    root = learned.root
    later, pot = images(root / "images" / "later", "a", "c", count=1), images(root / "images" / "pot", "x")
    for command, *expected in [
        (
            f"update mat {later}",
            "update mat.1 of task mat: 2 images",
            "  a: 1",
            "  c: 1 (new class)",
            "no module changes",
        ),
        ("retrain hat", "task hat-2 will replace hat: 2 classes, 6 images", "hat serves until hat-2 has passed"),
        ("retire mat", "task mat is retired", "cup goes on using 1 of its directions", "`intaglio task retrain cup`"),
        ("retire mat", "task mat was retired already"),
        ("restore mat", "task mat is restored"),
        ("restore mat", "task mat was not retired"),
        ("archive cup", "task cup is archived; archived/cup.dvc tracks", "no stage needs images/cup any more"),
        ("archive cup --delete-images", "task cup was archived", "deleted: 6 images, 0 files"),
        (f"add pot {pot}", "task pot follows hat-2: 1 class, 3 images"),
        ("order mat pot", "nothing to change"),
    ]:
        assert run_command(["task", *command.split()]) == 0, capsys.readouterr()
        shown = capsys.readouterr().out
        for part in (*expected, "intaglio run"):
            assert part in shown, command
    assert list(ParamsText(root / "params.yaml").section("stream")) == ["tasks", "updates", "archived"]
    assert run_command(["task", "list"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == (
        ["task", "state", "generation", "classes", "images", "accuracy", "MB", "folder"]
    )
    assert run_command(["task", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["state"], row["folder_exists"]) for row in rows] == [
        ("mat", "learned", True),
        ("cup", "archived", False),
        ("hat", "learned, replaced by hat-2", True),
        ("hat-2", "new", True),
        ("pot", "new", True),
    ]
    assert run_command(["task", "show", "cup"]) == 0
    assert "cup: task 2, archived" in capsys.readouterr().out
    assert run_command(["task", "show", "mat", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["card"]["classes"] == ["a", "b"]
    assert run_command(["task", "retire", "sun"]) == 1
    assert "error: task 'sun': not in" in capsys.readouterr().err
