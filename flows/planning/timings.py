"""How long each stage took when it last ran, in .intaglio/timings.json, so that a plan can say how long it takes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import mean

from components.errors import IntaglioError
from components.io import read_json, write_json
from flows.settings import SCRATCH


def record_seconds(root: Path, stage: str, seconds: float) -> None:
    """Remember how long a stage took."""
    write_json(_path(root), read_timings(root) | {stage: round(seconds, 1)})


def expected_seconds(root: Path, stages: Iterable[str]) -> tuple[float, list[str]]:
    """Return how long stages will take, one after the other, and the kinds of stages of which none ever ran here.

    A stage that never ran itself is expected to take the mean of its kind: of `finetune@new`, that of all finetunes.
    """
    known, total, unknown = read_timings(root), 0.0, dict[str, None]()
    for stage in stages:
        kind = stage.partition("@")[0]
        alike = [seconds for name, seconds in known.items() if name.partition("@")[0] == kind]
        if stage in known or alike:
            total += known.get(stage, mean(alike))
        else:
            unknown[kind] = None
    return total, [*unknown]


def read_timings(root: Path) -> dict[str, float]:
    """Return the seconds of each stage when it last ran, by its name; of none where nothing is known."""
    try:
        known = read_json(_path(root))
    except IntaglioError:  # none yet, or torn by a kill
        return {}
    return known if isinstance(known, dict) else {}


def _path(root: Path) -> Path:
    return root / SCRATCH / "timings.json"
