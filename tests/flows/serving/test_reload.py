"""Following the champion: what a new, a broken or an unreachable version changes, and what not."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from components.errors import IntaglioError
from flows.bench.scratch_server import make_champion
from flows.serving.metrics import Metrics
from flows.serving.reload import Follower
from flows.serving.run import Options, load_version
from flows.serving.served_model import Champion, Folder, ServedModel
from tests.flows.serving.conftest import DAMAGED, FOREIGN, OTHER, WHOLE, World


def follower_of(world: World) -> Follower:
    source = Champion(world.root)
    return Follower(source, lambda version: load_version(source, Options(device="cpu"), version), Metrics(), 0.05)


def version_of(follower: Follower) -> str:
    assert follower.model is not None
    return follower.model.version


def test_it_follows_the_alias_and_refuses_what_is_broken(world: World) -> None:
    follower = follower_of(world)
    follower.check()
    first = follower.model
    assert (version_of(follower), follower.trouble) == (str(WHOLE), "")
    follower.check()
    assert follower.model is first
    make_champion(world.client, DAMAGED)
    follower.check()
    assert follower.model is first
    assert follower.trouble.startswith(f"version {DAMAGED}: ")
    assert "damaged" in follower.trouble
    make_champion(world.client, FOREIGN)
    follower.check()
    assert follower.model is first
    assert follower.trouble == f"version {FOREIGN}: 'config'"
    make_champion(world.client, OTHER)
    follower.check()
    assert (version_of(follower), follower.trouble) == (str(OTHER), "")
    make_champion(world.client, DAMAGED)
    follower.check()
    make_champion(world.client, OTHER)  # a person takes the broken version back
    follower.check()
    assert (version_of(follower), follower.trouble) == (str(OTHER), "")
    text = follower.metrics.text().decode()
    assert 'intaglio_model_loads_total{outcome="refused"} 3.0' in text
    assert f'intaglio_model_info{{version="{OTHER}"}} 1.0' in text
    assert text.count("intaglio_model_info{") == 1


class Fake:
    """A source and a loader whose version and faults the test sets."""

    def __init__(self) -> None:
        self.version, self.broken, self.away = "1", False, False
        self.loads: list[str] = []

    def version_to_serve(self) -> str:
        if self.away:
            raise OSError("database is\nlocked")
        return self.version

    def bundle(self, version: str) -> Path:
        return Path(version)

    def load(self, version: str) -> ServedModel:
        self.loads.append(version)
        if self.broken:
            raise ValueError("half a file")
        return cast(ServedModel, SimpleNamespace(version=version))


def test_a_broken_version_is_tried_again_after_growing_pauses_and_served_once_repaired() -> None:
    fake = Fake()
    follower = Follower(fake, fake.load, Metrics(), 0.1)
    follower.check()
    fake.version, fake.broken = "2", True
    begin = time.monotonic()
    while time.monotonic() - begin < 1.0:
        follower.check()
        time.sleep(0.01)
    # At 0, 0.1, 0.3 and 0.7 s: every attempt costs the processor seconds with a real model.
    assert 2 <= fake.loads.count("2") <= 4
    assert (version_of(follower), follower.trouble) == ("1", "version 2: half a file")
    fake.broken = False
    while follower.trouble:
        assert time.monotonic() - begin < 20
        follower.check()
        time.sleep(0.01)
    assert version_of(follower) == "2"


def test_a_registry_that_is_away_changes_nothing() -> None:
    fake = Fake()
    follower = Follower(fake, fake.load, Metrics(), 0.1)
    fake.away = True
    follower.check()
    assert (follower.model, follower.trouble) == (None, "database is locked")
    fake.away = False
    follower.check()
    fake.away = True
    follower.check()
    assert (version_of(follower), follower.trouble) == ("1", "database is locked")
    assert "intaglio_registry_errors_total 2.0" in follower.metrics.text().decode()
    fake.away = False
    follower.check()
    assert follower.trouble == ""


def test_sources_that_have_nothing(tmp_path: Path, world: World) -> None:
    with pytest.raises(IntaglioError, match="no champion; `intaglio run` promotes one"):
        Champion(tmp_path).version_to_serve()
    world.client.delete_registered_model_alias("intaglio", "champion")
    with pytest.raises(IntaglioError, match="no champion"):
        Champion(world.root).version_to_serve()
    with pytest.raises(IntaglioError, match="not a bundle"):
        Folder(tmp_path).version_to_serve()
    assert Folder(world.bundle).version_to_serve() == Folder(world.bundle).version_to_serve()
