"""Training killed anywhere goes on from its last checkpoint; its module is the uninterrupted one to the last bit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.crash.conftest import KILLED, Server, World
from tests.crash.test_points import remove
from tests.crash.world import differences

STAGE = ("finetune", "pixels")  # 57 images in batches of 16, for 3 epochs: 12 steps
MODULE = "models/modules/pixels"


def checkpoints(root: Path) -> list[Path]:
    """The files, oldest first; the world's environment asks for one after every step."""
    return sorted((root / ".intaglio/checkpoints").rglob("*.safetensors"))


def resumed_at(printed: str) -> int:
    """The step after which training went on, by what it printed; 0 if it began anew."""
    found = re.search(r"goes on after step (\d+) of 12", printed)
    return int(found[1]) if found else 0


@pytest.fixture
def forgotten(world: World) -> World:
    """The project after a clean run, without the module of `pixels`."""
    remove(world.root, [MODULE])
    return world


def kill_after_step(server: Server, root: Path, step: int) -> None:
    """Kill training the moment that the checkpoint of this step stands: before, only checkpoints are renamed."""
    assert server.run(root, *STAGE, fault=f"kill@renamed:{step}") == KILLED, server.printed()
    assert int(checkpoints(root)[-1].name[:12]) == step
    server.printed()


def finish(server: Server, world: World) -> int:
    """Let the stage run to its end, with the clean run's bytes; returns the step after which it went on."""
    assert server.run(world.root, *STAGE) == 0, server.printed()
    assert differences(world.root, world.clean) == []
    assert not (world.root / ".intaglio/checkpoints" / "pixels").exists()
    return resumed_at(server.printed())


@pytest.mark.parametrize("step", [1, 3, 4, 5, 8, 11, 12])  # ends of epochs and their neighbours, the last step
def test_a_kill_after_any_step_costs_no_step_and_no_bit(server: Server, forgotten: World, step: int) -> None:
    kill_after_step(server, forgotten.root, step)
    assert finish(server, forgotten) == step


def test_a_run_that_is_killed_again_and_again_arrives(server: Server, forgotten: World) -> None:
    for _ in range(4):  # each time at the third checkpoint since it came back
        assert server.run(forgotten.root, *STAGE, fault="kill@renamed:3") == KILLED, server.printed()
    server.printed()
    assert finish(server, forgotten) == 12


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(server: Server, forgotten: World, damage: str) -> None:
    kill_after_step(server, forgotten.root, 6)
    _damage(checkpoints(forgotten.root)[-1], damage)
    assert finish(server, forgotten) == 5


def test_with_every_checkpoint_damaged_training_begins_anew(server: Server, forgotten: World) -> None:
    kill_after_step(server, forgotten.root, 6)
    for path in checkpoints(forgotten.root):
        _damage(path, "flipped")
    assert finish(server, forgotten) == 0


def _damage(path: Path, damage: str) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"truncated": content[:-7], "flipped": content, "empty": b""}[damage])


def test_checkpoints_of_other_settings_are_swept_and_not_used(server: Server, forgotten: World) -> None:
    params = forgotten.root / "params.yaml"
    before = params.read_bytes()
    yaml = YAML()
    changed = yaml.load(before)
    changed["finetune"]["weight_decay"] = 0.5
    with params.open("w") as file:
        yaml.dump(changed, file)
    kill_after_step(server, forgotten.root, 6)
    params.write_bytes(before)
    assert finish(server, forgotten) == 0


def test_a_full_disk_at_a_checkpoint_is_one_line_and_costs_no_step(server: Server, forgotten: World) -> None:
    assert server.run(forgotten.root, *STAGE, fault="ENOSPC@write:7") == 1
    assert "no space left on device; free some space and run again" in server.printed()
    assert finish(server, forgotten) == 6
