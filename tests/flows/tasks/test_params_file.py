"""A change of params.yaml is whole or not at all, and all else in the file stays as it was."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest
from synthetic import REPOSITORY

from components.config import Task, Update
from components.errors import IntaglioError
from components.params import load_config
from flows.tasks.params_file import ParamsText, change_params, entries, move_entry, task_entry, update_entry

TASKS = """stream:
    # The tasks
    tasks:
        a: {folder: "my a", previous: base}   # mine
        # about b
        b:
            folder: b  # here
            previous: a

# What follows is another section
"""


@pytest.fixture
def params(tmp_path: Path) -> Path:
    """A file whose section `stream` is the first one, has another indent, and is followed by a comment."""
    head = (REPOSITORY / "params.yaml").read_text().partition("stream:\n")[0]
    path = tmp_path / "params.yaml"
    path.write_text(f"# Mine\n{TASKS}{head.replace('shared: digits_low', 'shared: a')}")
    return path


def changes(before: str, after: str) -> list[str]:
    return [line for line in difflib.ndiff(before.splitlines(), after.splitlines()) if line[0] in "+-"]


def test_lines_are_added_where_they_belong(params: Path) -> None:
    before = params.read_text()

    def change(text: ParamsText) -> None:
        stream = text.section("stream")
        entries(stream, "tasks")["c"] = task_entry(Task(folder="c", previous="b", replaces="a"))
        entries(stream, "updates")["a.1"] = update_entry(Update(folder="more", task="a", previous="a"))

    change_params(params, change)
    assert changes(before, params.read_text()) == [
        "+         c: {folder: c, previous: b, replaces: a}",
        "+     updates:",
        "+         a.1: {folder: more, task: a, previous: a}",
    ]
    assert load_config(params).generation("a") == "a.1"


def test_an_entry_moves_with_its_comment_and_back(params: Path) -> None:
    before = params.read_text()
    change_params(params, lambda text: move_entry(text.section("stream"), "a", "tasks", "archived"))
    after = params.read_text()
    assert [line.strip() for line in changes(before, after) if line[0] == "+"][1] == (
        '+         a: {folder: "my a", previous: base}   # mine'
    )
    assert load_config(params).chain == ("a", "b")
    change_params(params, lambda text: move_entry(text.section("stream"), "a", "archived", "tasks"))
    assert load_config(params).stream.archived == {}
    assert after.partition("# What follows")[2] == params.read_text().partition("# What follows")[2]


def test_an_empty_mapping_is_filled_line_by_line(params: Path) -> None:
    params.write_text(params.read_text().replace("    # The tasks\n", "    updates: {}\n"))

    def change(text: ParamsText) -> None:
        entries(text.section("stream"), "updates")["a.1"] = update_entry(Update(folder="x", task="a", previous="a"))

    change_params(params, change)
    assert "    updates:\n        a.1: {folder: x, task: a, previous: a}\n" in params.read_text()


def test_a_file_that_works_is_never_replaced_by_one_that_does_not(params: Path) -> None:
    before = params.read_text()

    def change(text: ParamsText) -> None:
        text.section("stream")["tasks"]["b"]["previous"] = "nowhere"

    with pytest.raises(IntaglioError, match=r"params\.yaml: stream\.tasks\.b\.previous is 'nowhere'"):
        change_params(params, change)
    assert params.read_text() == before
    assert list(params.parent.iterdir()) == [params]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 0\n", "expected a section 'stream:'"),
        ("stream: {tasks\n", "not valid YAML"),
        ("stream:\n  tasks:\n<<<<<<< HEAD\n    a: {}\n=======\n    b: {}\n>>>>>>> other\n", "marks of a conflict"),
    ],
)
def test_what_cannot_be_changed_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(IntaglioError, match=message) as caught:
        change_params(tmp_path / "params.yaml", lambda params: params.section("stream").clear())
    assert "\n" not in str(caught.value)
    assert (tmp_path / "params.yaml").read_text() == text
