"""The retrieval rules side by side, on the images that are there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from components.bench.rules import compare_rules
from components.config import Config
from components.errors import IntaglioError
from components.evaluation.evaluate import evaluate
from components.io import read_json


def test_the_rule_in_use_has_the_figures_of_the_evaluation(learned: Path, config: Config) -> None:
    evaluate(learned, config)
    expected = read_json(learned / "reports/metrics.json")["rules"]["pooled"]
    found = compare_rules(learned, config)
    assert found["tasks"] == list(config.tasks)
    rows = {(row["rule"], row["prediction"]): row for row in found["rows"]}
    assert len(rows) == 4
    assert rows["pooled", "hard"]["accuracy_final"] == pytest.approx(expected["accuracy_final"], abs=1e-4)
    assert rows["dpgmm", "hard"] != rows["pooled", "hard"]


def test_tasks_without_images_are_left_out_and_named(learned: Path, config: Config) -> None:
    shutil.rmtree(learned / "images/middle")
    found = compare_rules(learned, config)
    assert found["left_out"] == ["middle"]
    shutil.rmtree(learned / "images")
    with pytest.raises(IntaglioError, match="no task has its images any more"):
        compare_rules(learned, config)
