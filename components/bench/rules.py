"""Every retrieval rule and kind of prediction beside each other, on the test images that are there.

All have the same modules. The paper's rule and the prediction `soft` need each image under each module. So they need
pictures, and their cost grows with the square of the number of tasks. Tasks whose images are gone are left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from components.bench.machine import provenance
from components.config import Config
from components.data.task_data import image_folders
from components.errors import IntaglioError
from components.evaluation.all_modules import embed_under_all_modules
from components.evaluation.baselines import result_row
from components.evaluation.retrieve import retrieve_exactly
from components.evaluation.stream_scores import StreamScores, read_stream_scores


def compare_rules(root: Path, config: Config) -> dict[str, Any]:
    """Measure accuracy and retrieval of each rule, every task scored in full.

    Args:
        root: the project's folder.
        config: of the project.

    Returns:
        `rows`, one for each rule and kind of prediction; `tasks` that took part; `left_out`, whose images are gone; and
        where it was measured.

    Raises:
        IntaglioError: no task has its images, or an artefact is missing or damaged.
    """
    every = read_stream_scores(root, config)
    there = [k for k, images in enumerate(every.images) if has_all_images(root, config, images.task, images.names)]
    if not there:
        raise IntaglioError("no task has its images any more; the rules are compared on pictures")
    scores = StreamScores(tuple(every.signatures[k] for k in there), tuple(every.images[k] for k in there), every.cards)
    modules = embed_under_all_modules(root, config, scores)
    known = scores.with_known(config.shortlist, len(there))
    rows = []
    for rule in ("pooled", "dpgmm"):
        for prediction in ("hard", "soft"):
            retrieval = config.retrieval.model_copy(update={"rule": rule, "prediction": prediction})
            retrieved = retrieve_exactly(scores, config.model_copy(update={"retrieval": retrieval}), modules)
            row = result_row(scores, retrieved, scores.correct(retrieved, known))
            rows.append({"rule": rule, "prediction": prediction} | {name: round(x, 4) for name, x in row.items()})
    left_out = [name for k, name in enumerate(every.names) if k not in there]
    return provenance(__name__) | {"tasks": scores.names, "left_out": left_out, "rows": rows}


def has_all_images(root: Path, config: Config, task: str, names: tuple[str, ...]) -> bool:
    """Return whether every test image of a task is still a file.

    Args:
        root: the project's folder.
        config: knows the folders.
        task: its name.
        names: of the images.
    """
    folders = image_folders(root, config, task)
    return bool(np.all([any((folder / name).is_file() for folder in folders) for name in names]))
