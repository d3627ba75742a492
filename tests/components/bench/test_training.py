"""The benchmark of training on a small stream: the same work in every way, at another price."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.bench.training import COMPARED, bench_train
from components.bench.training_ways import WAYS


def test_every_way_learns_the_same(stream: Path) -> None:
    found = bench_train(stream, blocks=2, images=32, epochs=2, tasks=3, memory=False)
    rows = {row["method"]: row for row in found["rows"]}
    assert tuple(rows) == WAYS
    assert found["images"] == 32
    assert all(row["images_per_second"] > 0 and row["epoch_seconds"] > 0 for row in rows.values())
    assert rows["cached"]["loss"] == pytest.approx(rows["uncached"]["loss"], rel=1e-3)
    for rival in ("peft_same_blocks", "peft_patch_dropout"):
        assert rows["cached"]["loss"] == pytest.approx(rows[rival]["loss"], rel=0.1)
    assert rows["frozen_forward"]["loss"] is None
    assert rows["peft_same_blocks"]["speedup_over_peft_same_blocks"] == 1
    assert [row["task"] for row in found["task_cost"]] == [1, 2, 3]
    assert found["task_cost_ratio"] > 0
    assert "curve" not in found


def test_loss_against_time_of_shorter_trainings(stream: Path) -> None:
    found = bench_train(
        stream,
        blocks=2,
        images=32,
        epochs=4,
        tasks=0,
        lengths=[1, 2],
        seeds=2,
        ways=COMPARED,
        settings=["finetune.patch_dropout=0.25"],
    )
    assert found["patch_dropout"] == 0.25
    assert all(row["peak_memory_mb"] > 0 for row in found["rows"])
    assert [row["method"] for row in found["rows"] if row["loss_std"] > 0] == list(COMPARED)
    curve = {(row["method"], row["epochs"]): row for row in found["curve"]}
    assert set(curve) == {(way, length) for way in COMPARED for length in (1, 2, 4)}
    for way in COMPARED:
        assert curve[way, 1]["seconds_after_first"] == 0 < curve[way, 2]["seconds_after_first"]
        assert curve[way, 4]["loss"] == next(row["loss"] for row in found["rows"] if row["method"] == way)
        assert curve[way, 4]["loss"] < curve[way, 1]["loss"]
    ours, rival = ([curve[way, length] for length in (2, 4)] for way in COMPARED)
    as_good = [row["seconds_after_first"] for row in ours if row["loss"] <= rival[-1]["loss"]]
    expected = round(rival[-1]["seconds_after_first"] / min(as_good), 3) if as_good else None
    assert found["equal_loss_speedup"] == expected
