"""One tiny bundle for all tests of the command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flows.prediction.world import make_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, `pixels` and `photos`, learned by timm's smallest ViT; the images lie in the project around it."""
    return make_bundle(tmp_path_factory.mktemp("bulk") / "project")


@pytest.fixture(scope="session")
def images(bundle: Path) -> list[str]:
    """120 real images: 8x8 digits and squares of two photographs."""
    root = bundle.parents[1]
    return sorted(str(path) for folder in ("data/raw", "photos") for path in (root / folder).rglob("*.png"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
