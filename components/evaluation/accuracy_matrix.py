"""The accuracy matrix R[t][j]: accuracy on task j's test images with tasks 0..t known, the task of an image unknown.

A row follows from the records and signatures of its tasks alone, which never change. So rows are kept in
.intaglio/evaluation, under a hash of what they follow from, and a new task costs one row. They may be deleted.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from components.config import Config
from components.errors import IntaglioError
from components.evaluation.retrieve import Retrieve
from components.evaluation.stream_scores import KnownTasks, StreamScores
from components.io import read_json, sha256_bytes, write_json
from components.revisions import REVISIONS

STORED = ".intaglio/evaluation/rows.json"


def accuracy_matrix(
    root: Path, scores: StreamScores, everything: KnownTasks, config: Config, retrieve: Retrieve
) -> list[list[float]]:
    """Return R[t][j], j <= t.

    Args:
        root: the project's folder.
        scores: of the test images.
        everything: the images where all tasks are known (`with_known`).
        config: of the project.
        retrieve: chooses the task of each image.
    """
    stored, keys = _stored(root), _keys(scores, config)
    rows: dict[str, list[float]] = {}
    for known, key in enumerate(keys, start=1):
        if key in stored:
            rows[key] = stored[key]
            continue
        part = everything if known == len(keys) else scores.with_known(config.shortlist, known)
        rows[key] = scores.per_task(scores.correct(retrieve(part)[1], part))
        if known < len(keys):
            print(f"evaluate: accuracy with {known} of {len(keys)} tasks known", flush=True)
    write_json(root / STORED, rows)
    return [rows[key] for key in keys]


def _keys(scores: StreamScores, config: Config) -> list[str]:
    """Return the hash of what each row follows from."""
    settings = config.model_dump(mode="json", include={"retrieval", "shortlist"})
    basis: list[Any] = [settings, REVISIONS["evaluate"]]
    keys = []
    for name in scores.names:
        basis.append(scores.cards[name].to_json())
        keys.append(sha256_bytes(json.dumps(basis, sort_keys=True).encode()))
    return keys


def _stored(root: Path) -> dict[str, list[float]]:
    try:
        rows = read_json(root / STORED)
    except IntaglioError:  # none yet, or torn: they are computed again
        return {}
    return rows if isinstance(rows, dict) else {}
