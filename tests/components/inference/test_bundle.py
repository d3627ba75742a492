"""What a bundle is checked for when it is loaded, and how often."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from components.errors import IntaglioError
from components.inference.predictor import Predictor
from components.io import read_json, sha256_file, write_json

opened: Counter[Path] = Counter()
_counting = False


def _count(event: str, arguments: tuple[Any, ...]) -> None:
    """Count what Python opens. Of arrays that is hashing alone: safetensors reads them by its own code."""
    if _counting and event == "open" and isinstance(arguments[0], str | Path):
        opened[Path(arguments[0])] += 1


@contextmanager
def counting() -> Iterator[None]:
    """Count in `opened` for the length of the block."""
    global _counting
    opened.clear()
    _counting = True
    try:
        yield
    finally:
        _counting = False


@pytest.fixture(scope="module", autouse=True)
def _hook() -> None:
    sys.addaudithook(_count)  # Python has no way to remove one


@pytest.mark.parametrize("shared", ["base", "low"])
def test_weights_adapters_and_signatures_are_hashed_once(learned: Path, shared: str) -> None:
    bundle = learned / "models/bundle"
    index = read_json(bundle / "bundle.json")
    index["config"]["embedding"]["shared"] = shared
    write_json(bundle / "bundle.json", index)
    with counting():
        Predictor.load(bundle, "cpu")
    arrays = [name for name in index["files"] if name.endswith(".safetensors")]
    assert {name: opened[bundle / name] for name in arrays} == dict.fromkeys(arrays, 1)


@pytest.mark.parametrize("name", ["backbone/backbone.safetensors", "modules/low/adapter/adapter_model.safetensors"])
def test_damage_is_found(learned: Path, name: str) -> None:
    path = learned / "models/bundle" / name
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(IntaglioError, match=r"safetensors: damaged \(its sha256 is not the one in bundle.json\)"):
        Predictor.load(path.parents[len(Path(name).parts) - 1], "cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("backbone/backbone.safetensors", r"damaged \(sha256 differs from backbone.json\); run the stage 'backbone'"),
        ("modules/low/adapter/adapter_model.safetensors", r"missing or damaged \(sha256\); run the stage 'finetune'"),
    ],
)
def test_damage_from_before_the_bundle_was_written_is_found(learned: Path, name: str, message: str) -> None:
    """The index agrees with the file, what stands beside the file does not."""
    bundle = learned / "models/bundle"
    data = (bundle / name).read_bytes()
    (bundle / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    index = read_json(bundle / "bundle.json")
    index["files"][name] = sha256_file(bundle / name)
    write_json(bundle / "bundle.json", index)
    with pytest.raises(IntaglioError, match=message):
        Predictor.load(bundle, "cpu")
