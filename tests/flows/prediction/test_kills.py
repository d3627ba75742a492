"""The short form of tests/flows/prediction/long.py: a real command, killed for good and resumed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pandas as pd

from components.inference.image_paths import listed_paths
from tests.flows.prediction.long import check, link_images, predict
from tests.flows.prediction.world import start


def test_killed_at_random_every_image_comes_once(bundle: Path, images: list[str], tmp_path: Path) -> None:
    files = link_images(tmp_path / "images", [Path(image) for image in images], 1500)
    output, draw = tmp_path / "out.parquet", random.Random(1)
    arguments = ["predict", str(tmp_path / "images"), "--bundle", str(bundle), "--workers", "1"]
    for parts in (3, None):
        predict(arguments, output, 64, parts, draw)
    check(output, files, len(images))


def test_ctrl_c_while_standard_input_is_open(bundle: Path, images: list[str], tmp_path: Path) -> None:
    """A terminal sends it to the whole group, decoders too; what was predicted is kept."""
    arguments = ("predict", "-", "--bundle", str(bundle), "--output", "out.csv", "--workers", "1")
    process = start(tmp_path, *arguments, rows=64)
    assert process.stdin is not None
    process.stdin.write("\n".join(images * 4))
    process.stdin.flush()
    parts = tmp_path / "out.csv.parts"
    deadline = time.monotonic() + 120
    while not list(parts.glob("part-*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert "what is done lies in out.csv.parts/part-*.csv" in err
    assert "Traceback" not in err
    assert sum(len(pd.read_csv(part)) for part in parts.glob("part-*")) >= 64

    process = start(tmp_path, *arguments, "--resume")
    _, err = process.communicate("\n".join(images * 4))
    assert process.returncode == 0, err
    assert Counter(listed_paths(tmp_path / "out.csv")) == Counter(images * 4)
