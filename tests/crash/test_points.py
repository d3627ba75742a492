"""A stage killed at every named point of its life, or with its disk failing there: afterwards nothing is lost."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from tests.crash.conftest import KILLED, Server, World
from tests.crash.points import POINTS
from tests.crash.world import artefacts, differences

LITTER = re.compile(r"(^|/)\.[^/]+\.[a-z0-9_]{8}(/|$)")  # as .dvcignore has it
REPLACING = ("rename", "renamed", "remove")  # where old outputs make a difference
# stage -> what it writes
OUTPUTS = {
    "backbone": ["models/backbone", "models/modules/base"],
    "fetch": ["data/raw", "data/index/base.parquet"],
    "ingest photos": ["data/manifests/photos.parquet"],
    "validate photos": ["data/index/photos.parquet", "reports/validation/photos"],
    "finetune photos": ["models/modules/photos", "reports/finetune/photos.json", "reports/finetune/photos.csv"],
    "signature photos": ["models/signatures/photos"],
    "evaluate": [
        "reports/metrics.json",
        "reports/predictions.parquet",
        "reports/projection.parquet",
        "reports/plots/accuracy.csv",
        "reports/plots/retrieval.csv",
    ],
    "report": ["reports/report.html"],
    "bundle": ["models/bundle"],
}


def remove(root: Path, names: list[str]) -> None:
    for name in names:
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def reached(server: Server, root: Path, stage: str) -> list[tuple[str, int]]:
    """The first and the last time that each point is reached by a stage that is left alone."""
    report = root.parent / "reached.json"
    assert server.run(root, *stage.split(), report=report) == 0, server.printed()
    counts = json.loads(report.read_text())
    return [(point, number) for point in POINTS for number in sorted({1, counts[point]} - {0}) if counts[point]]


def check_whole(root: Path, clean: dict[str, str], outputs: list[str], where: str) -> None:
    """Every output is whole or not there at all; a temporary beside it belongs to no output."""
    found = {name: digest for name, digest in artefacts(root).items() if not LITTER.search(name)}
    for output in outputs:
        names = {name for name in clean if name == output or name.startswith(f"{output}/")}
        there = {name for name in found if name == output or name.startswith(f"{output}/")}
        assert there in (set(), names), (where, output, there ^ names)
        assert [name for name in there if found[name] != clean[name]] == [], where


@pytest.mark.parametrize("stage", OUTPUTS)
def test_a_stage_killed_anywhere_is_whole_or_absent_and_comes_back(server: Server, world: World, stage: str) -> None:
    root, outputs, words = world.root, OUTPUTS[stage], stage.split()
    report = (root / "reports/report.html").read_bytes()
    for fresh in (True, False):  # DVC removes the outputs first; a person who runs a stage by hand does not
        if fresh:
            remove(root, outputs)
        points = reached(server, root, stage)
        assert {point for point, _ in points} >= set(POINTS) - {"remove"}
        for point, number in points:
            if not fresh and point not in REPLACING:
                continue
            where = f"{stage}: kill@{point}:{number} {'on nothing' if fresh else 'over old outputs'}"
            if fresh:
                remove(root, outputs)
            assert server.run(root, *words, fault=f"kill@{point}:{number}") == KILLED, where
            check_whole(root, world.clean, outputs, where)
            assert server.run(root, *words) == 0, (where, server.printed())
            assert differences(root, world.clean) == [], where
    if stage == "report":  # it shows the seconds of training, so its bytes are compared here only
        assert (root / "reports/report.html").read_bytes() == report


@pytest.mark.parametrize("stage", OUTPUTS)
def test_a_disk_that_fails_is_one_line_and_costs_nothing(server: Server, world: World, stage: str) -> None:
    root, words = world.root, stage.split()
    # By the time of "remove" everything is in place. A read-only disk shows when the first file is made.
    points = [pair for pair in reached(server, root, stage) if pair[0] not in ("begin", "remove", "end")]
    faults = [("ENOSPC", *pair) for pair in points] + [("EROFS", "create", 1)]
    reason = {"ENOSPC": "no space left on device; free some space", "EROFS": "read-only file system; make it"}
    server.printed()
    for fault, point, number in faults:
        where = f"{stage}: {fault}@{point}:{number}"
        assert server.run(root, *words, fault=f"{fault}@{point}:{number}") == 1, (where, server.printed())
        printed = server.printed()
        assert reason[fault] in printed, (where, printed)
        assert "Traceback" not in printed, (where, printed)
        # The old outputs are still there, and nothing beside them.
        check_whole(root, world.clean, OUTPUTS[stage], where)
        assert set(artefacts(root)) <= set(world.clean), where
        assert server.run(root, *words) == 0, where
        assert differences(root, world.clean) == [], where
