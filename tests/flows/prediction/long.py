"""Many images through `intaglio predict`, killed at random and resumed: every image once, memory constant.

    python -m tests.flows.prediction.long --images 100000 --kills 10 --json long.json

The images are hard links to a few real ones, so that a hundred thousand of them cost no space; every 500th is damaged.
Without --bundle a tiny one is learned first; with --bundle DIR --source FOLDER it is the real one on real images.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import psutil

from tests.flows.prediction.world import make_bundle, start

DAMAGED = 500  # every so many images
_FOLDER = 1000  # images in a folder
_WARM_UP = 0.1  # share of a process's life after its first part, which is not held against its memory


@dataclass
class Life:
    """One process of the run: seconds since its start, with its own resident memory and that of all its children."""

    ended: str = "killed"
    samples: list[tuple[float, float, float]] = field(default_factory=list)  # seconds, MB, MB with the decoders
    working: float | None = None  # seconds until its first part

    def spread(self, column: int) -> tuple[float, float, float] | None:
        """Lowest, median and highest memory after the warm-up, in MB; None where it lived too short."""
        if self.working is None:
            return None
        last = self.samples[-1][0]
        begin = self.working + _WARM_UP * (last - self.working)
        found = sorted(sample[column] for sample in self.samples if begin <= sample[0] <= last - 1)
        return (found[0], found[len(found) // 2], found[-1]) if len(found) > 10 else None


def link_images(folder: Path, sources: Sequence[Path], count: int) -> list[Path]:
    """`count` files below `folder`: links to the sources in turn, and now and then rubbish."""
    rubbish = folder / ".rubbish"
    folder.mkdir(parents=True)
    rubbish.write_bytes(sources[0].read_bytes()[:60])
    files = []
    for number in range(count):
        file = folder / f"{number // _FOLDER:04}" / f"{number:07}.png"
        file.parent.mkdir(exist_ok=True)
        os.link(rubbish if number % DAMAGED == 7 else _here(folder, sources[number % len(sources)]), file)
        files.append(file)
    return files


def _here(folder: Path, source: Path) -> Path:
    """A copy of `source` on the file system of `folder`, where links to it are possible."""
    copy = folder / ".sources" / f"{source.parent.name}-{source.name}"
    if not copy.exists():
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(source.read_bytes())
    return copy


def predict(arguments: Sequence[str], output: Path, rows: int, kill_after: int | None, draw: random.Random) -> Life:
    """Run the command; with `kill_after`, kill it that many parts later, at any moment between two parts."""
    life, begun = Life(), time.monotonic()
    parts = output.with_name(f"{output.name}.parts")
    before = _count(parts)
    process = start(output.parent, *arguments, "--output", str(output), "--resume", rows=rows)
    watched = psutil.Process(process.pid)
    family: list[psutil.Process] = []
    while process.poll() is None:
        time.sleep(0.1)
        now = time.monotonic() - begun
        try:
            family = watched.children(recursive=True)
            own, others = _memory(watched), sum(map(_memory, family))
        except psutil.NoSuchProcess:
            continue
        if own == 0:  # it has ended this instant
            continue
        life.samples.append((round(now, 2), round(own, 1), round(own + others, 1)))
        if life.working is None and _count(parts) > before:
            life.working = now
        if kill_after is not None and _count(parts) - before >= kill_after:
            time.sleep(draw.uniform(0, 0.5))
            process.send_signal(signal.SIGKILL)
            break
    _, err = process.communicate()
    if process.returncode == 0:
        life.ended = err.strip()
    else:
        assert process.returncode == -signal.SIGKILL, err
    _gone, alive = psutil.wait_procs(family, timeout=30)
    assert not alive, f"left behind: {alive}"
    return life


def _memory(process: psutil.Process) -> float:
    try:
        return float(process.memory_info().rss) / 2**20
    except psutil.NoSuchProcess:
        return 0.0


def _count(parts: Path) -> int:
    return len(list(parts.glob("part-*"))) if parts.is_dir() else 0


def check(output: Path, files: Sequence[Path], sources: int) -> None:
    """Every file once, an error where it is damaged, and equal answers for links to one image."""
    table = pd.read_parquet(output)
    assert Counter(table["path"]) == Counter(str(file) for file in files)
    number = table["path"].str.extract(r"(\d{7})\.png$")[0].astype(int)
    damaged = number % DAMAGED == 7
    assert (table["error"].notna() == damaged).all()
    whole = table[~damaged]
    answers = whole.groupby(number[~damaged] % sources)["task"]
    assert (answers.nunique(dropna=False) == 1).all()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.flows.prediction.long", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--rows", type=int, default=1024, help="rows in a part; fewer than as shipped, to kill between")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bundle", type=Path, help="default: a tiny one, learned now")
    parser.add_argument("--source", type=Path, help="a folder of .png images to link to, for --bundle")
    parser.add_argument("--json", type=Path, help="where to write the memory over time")
    given = parser.parse_args()
    draw = random.Random(given.seed)
    with tempfile.TemporaryDirectory(prefix="intaglio-long-") as scratch:
        bundle = given.bundle.resolve() if given.bundle else make_bundle(Path(scratch) / "project")
        sources = sorted((given.source or bundle.parents[1]).resolve().rglob("*.png"))[:500]
        files = link_images(Path(scratch) / "images", sources, given.images)
        output = Path(scratch) / "out.parquet"
        arguments = ["predict", str(Path(scratch) / "images"), "--bundle", str(bundle)]
        parts = max(1, given.images // given.rows // (given.kills + 1))
        lives = []
        for turn in range(given.kills + 1):
            last = turn == given.kills
            lives.append(predict(arguments, output, given.rows, None if last else draw.randint(0, 2 * parts - 1), draw))
            print(_line(turn, lives[-1]), flush=True)
            if output.exists():
                break
        check(output, files, len(sources))
    print(f"{given.images} images in {len(lives)} processes: every image once")
    if given.json:
        record = [{"ended": life.ended, "working": life.working, "samples": life.samples} for life in lives]
        given.json.write_text(json.dumps(record))


def _line(turn: int, life: Life) -> str:
    shown = [f"{name} {_span(life.spread(column))}" for name, column in (("itself", 1), ("with decoders", 2))]
    return f"process {turn}: {life.samples[-1][0]:.0f} s, memory {', '.join(shown)}; {life.ended}"


def _span(found: tuple[float, float, float] | None) -> str:
    if found is None:
        return "-"
    low, median, high = found
    return f"{median:.0f} MB ({100 * (low / median - 1):+.1f} % to {100 * (high / median - 1):+.1f} %)"


if __name__ == "__main__":
    sys.exit(main())
