"""Each stage's output on a small input, as numbers that are recorded beside the stage's revision.

A change that moves a number without a raised revision fails here. What depends on the processor, all that a network
computes, is compared within a few percent; names, shapes, counts and choices exactly. After raising a revision:
`pytest tests/components/records/test_revisions.py --rewrite-golden`.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from components.config import Config, Fetch, Update
from components.data.default_stream import fetch
from components.data.manifest import ingest
from components.data.validate import validate
from components.evaluation.evaluate import evaluate
from components.inference.bundle import write_bundle
from components.io import read_arrays, read_json, read_table
from components.records.update import update
from components.report.report import write_report
from components.revisions import REVISIONS
from tests.components.records.test_update import digits_in

GOLDEN = Path(__file__).parents[2] / "golden" / "revisions.json"
NEAR = 0.05  # of a number that a processor's arithmetic moves


def facts_of(folder: Path) -> dict[str, Any]:
    """Shapes and mean magnitudes of every array, columns and counts of every table, under a folder."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".safetensors":
            for key, array in sorted(read_arrays(path).items()):
                found[f"{name}:{key}"] = [list(array.shape), str(array.dtype), magnitude(array)]
        elif path.suffix == ".parquet":
            table = read_table(path)
            found[name] = [list(table.columns), len(table)]
        elif path.suffix == ".json" and path.name not in ("bundle.json", "module.json", "card.json"):
            found[name] = sorted(read_json(path))
    return found


def magnitude(array: np.ndarray) -> float:
    return float(np.abs(array.astype(np.float64)).mean()) if array.size else 0.0


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def plain(page: str) -> str:
    """A page without its pictures and numbers, which follow from what the network computes."""
    return re.sub(r"[\d.,%−+-]+", "#", re.sub(r"data:image/webp;base64,[^\"]*|<path[^>]*>|<circle[^>]*>", "", page))


@pytest.fixture
def numbers(learned: Path, config: Config) -> dict[str, Any]:
    """What every stage wrote for the tiny stream."""
    one = config.model_copy(update={"fetch": Fetch(tasks=("pixels",), images_per_class=3)})
    fetch(learned, one)
    fetched = sorted(path.relative_to(learned).as_posix() for path in (learned / "data/raw").rglob("*.*"))
    ingest(learned, config, "low")
    validate(learned, config, "middle")
    digits_in(learned / "more", {0: 6})
    updates = {"low.1": Update(folder="more", task="low", previous="low")}
    changed = config.model_copy(update={"stream": config.stream.model_copy(update={"updates": updates})})
    update(learned, changed, "low.1")
    evaluate(learned, config)
    write_report(learned, config)
    write_bundle(learned, config)
    manifest = read_table(learned / "data/manifests/low.parquet")
    verdict = read_json(learned / "reports/validation/middle/result.json")
    metrics = read_json(learned / "reports/metrics.json")
    return {
        "backbone": facts_of(learned / "models/backbone"),
        "fetch": digest(json.dumps([(name, digest_of(learned / name)) for name in fetched])),
        "ingest": digest(manifest.drop(columns="sha256").to_csv()),
        "validate": digest(json.dumps([verdict["expectations"], verdict["warnings"]], sort_keys=True)),
        "finetune": facts_of(learned / "models/modules/middle"),
        "signature": facts_of(learned / "models/signatures/middle"),
        "record": facts_of(learned / "models/records/middle"),
        "update": facts_of(learned / "models/records/low.1") | facts_of(learned / "models/signatures/low.1"),
        "evaluate": {"keys": sorted(pd.json_normalize(metrics).columns), "accuracy_final": metrics["accuracy_final"]},
        "report": digest(plain((learned / "reports/report.html").read_text())),
        "bundle": facts_of(learned / "models/bundle"),
    }


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def is_near(found: Any, expected: Any) -> bool:
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(is_near(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(is_near, found, expected))
    if isinstance(expected, float):
        return bool(found == pytest.approx(expected, rel=NEAR, abs=1e-6))
    return bool(found == expected)


def test_no_result_changes_without_a_new_revision(numbers: dict[str, Any], request: pytest.FixtureRequest) -> None:
    now = {stage: {"revision": REVISIONS[stage], "result": numbers[stage]} for stage in REVISIONS}
    if request.config.getoption("--rewrite-golden"):
        GOLDEN.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n")
    golden = json.loads(GOLDEN.read_text())
    assert golden.keys() == now.keys()
    for stage, recorded in golden.items():
        assert recorded["revision"] == REVISIONS[stage], f"record {stage}'s results anew with --rewrite-golden"
        same = is_near(now[stage]["result"], recorded["result"])
        assert same, f"the result of {stage} changed: raise its revision in components/revisions.py"
