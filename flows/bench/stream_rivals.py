"""The same stream learned in other ways, at some of its weeks: what they cost, and how often they are right.

frozen_lda    no training: the week's images are embedded, and discriminants over all classes follow from statistics
joint         one module and one classifier for all classes, trained on the images of all weeks, which are kept for it
all_modules   evaluation as it was before records: every test image through every module (cost alone, computed)
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from components.bench.weeks import Week
from components.config import Cache, Config
from components.data.images import Limits
from components.io import read_json, sha256_bytes, write_bytes, write_json
from components.lab.embedded_images import EmbeddedImages, open_embedded_images, tail_of
from components.lab.method_registry import method_entry
from components.lab.module_store import ModuleStore
from components.lab.task_sequence import Caps, make_task_sequence
from components.params import load_config
from components.records.storage import read_card
from components.retrieval.pooled import PooledRetriever
from components.signatures.statistics import Statistics
from components.signatures.storage import read_signature
from components.vision.backbone import Vit, choose_device, load_vit
from components.vision.trunk_cache import TrunkCache
from flows.bench.week_images import SourceImages

Row = dict[str, Any]


class StreamRivals:
    """The rivals of one project, and their figures so far."""

    def __init__(self, root: Path, folder: Path, images: SourceImages, file: Path) -> None:
        """Read the figures so far.

        Args:
            root: of the project, whose backbone they use.
            folder: where they keep images and modules.
            images: of all sources.
            file: of the figures.
        """
        self._root, self._folder, self._images, self._file = root, folder, images, file
        self.rows: list[Row] = list(read_json(file)) if file.is_file() else []

    def compare(self, weeks: Sequence[Week], is_present: bool) -> None:
        """Measure all rivals in the last of the weeks so far, unless that was done.

        Args:
            weeks: those so far.
            is_present: whether the project is at this week's end; otherwise its figures are those of a later week.
        """
        if not is_present or any(row["week"] == weeks[-1].number for row in self.rows):
            return
        table = self._table(weeks)
        for row in (*self._frozen(weeks), self._joint(table)):
            self.rows.append({"week": weeks[-1].number} | row)
            print(f"  {row['rival']}: {row['seconds']:.1f} s, accuracy {row['accuracy']}", flush=True)
        write_json(self._file, self.rows)

    @cached_property
    def _config(self) -> Config:
        """Return the settings, which are the same in every week; the tasks are not."""
        return load_config(self._root / "params.yaml")

    @cached_property
    def _vit(self) -> Vit:
        config = self._config
        device = choose_device(config.device)
        return load_vit(self._root / "models/backbone", config.backbone, config.embedding.depths, device)

    def _table(self, weeks: Sequence[Week]) -> pd.DataFrame:
        """Write the images of all tasks that answer, and return their table as the laboratory reads it."""
        retired = {week.task for week in weeks if week.event == "retire"}
        rows = []
        for week in weeks:
            for part in week.batch if week.task not in retired else ():
                for split, item in self._images.of(week.source, part):
                    content = item.read()
                    digest = sha256_bytes(content)
                    path = f"images/{digest}{Path(item.name).suffix.lower()}"
                    if not (self._folder / path).is_file():
                        write_bytes(self._folder / path, content)
                    group = f"{week.source}|{item.group}"
                    rows.append([week.task, part.label, split, group, path, digest])
        return pd.DataFrame(rows, columns=["task", "label", "split", "group", "path", "sha256"])

    def _embedded(self, table: pd.DataFrame, folder: Path, cache: Cache) -> EmbeddedImages:
        paths = [self._folder / path for path in table["path"]]
        limits, digests = Limits.of(self._config.data), table["sha256"].tolist()
        return open_embedded_images(self._vit, folder / "tails", digests, paths, limits, TrunkCache.of(folder, cache))

    def _frozen(self, weeks: Sequence[Week]) -> list[Row]:
        """Measure what the last images that arrived cost the frozen network, and all test images every module."""
        arrived = [week for week in weeks if week.batch][-1]
        table = self._table([arrived])
        config = load_config(self._root / "params.yaml")  # its tasks are those of this week
        known = [
            (read_signature(self._root / "models/signatures", generation), read_card(self._root, generation))
            for generation in map(config.generation, config.tasks)
        ]
        with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
            start = time.perf_counter()
            embedded = self._embedded(table, Path(scratch), Cache())
            train = (table["split"] == "train").to_numpy()
            labels, names = pd.factorize(table["label"][train])
            Statistics.fit(embedded.h0[train], labels.astype(np.int64), len(names))
            PooledRetriever.fit([signature.statistics.first(card.frozen_width) for signature, card in known])
            frozen_seconds = time.perf_counter() - start
            start = time.perf_counter()
            tail_of(self._vit, self._vit.tail, embedded.tokens)
            image_seconds = (time.perf_counter() - start) / len(table)
        metrics = read_json(self._root / "reports/metrics.json")
        passes = metrics["test_images"] * len(config.tasks)
        lda = {"accuracy": metrics["baselines"]["frozen_lda"]["accuracy_final"]}
        how = f"{len(table)} images of week {arrived.number} embedded, statistics and discriminants of all classes"
        before = f"computed: {passes} passes of {1000 * image_seconds:.2f} ms, measured on {len(table)} images"
        return [
            {"rival": "frozen_lda", "seconds": round(frozen_seconds, 2), **lda, "how": how},
            {"rival": "all_modules", "seconds": round(passes * image_seconds, 2), "accuracy": None, "how": before},
        ]

    def _joint(self, table: pd.DataFrame) -> Row:
        """Train one module and one classifier on the images of all weeks, as `joint_lora` of the laboratory does."""
        config = self._config
        start = time.perf_counter()
        embedded = self._embedded(table, self._folder, config.cache)
        sequence = make_task_sequence(table, embedded, config.seed, 0, Caps())
        method = method_entry("joint_lora").make(ModuleStore(self._root, self._folder, config), config.seed, {})
        for task in sequence.tasks:
            method.learn(task)
        method.stored_bytes()  # trains: this method learns when it is first asked for something
        seconds = time.perf_counter() - start
        correct = []
        for number, part in enumerate(sequence.test):
            answer = method.predict(part.images)
            correct.append(float(((answer.task == number) & (answer.label == part.labels)).mean()))
        how = f"{len(table)} images of all weeks; the trunk's outputs of earlier comparisons are kept"
        accuracy = float(np.mean(correct))
        return {"rival": "joint", "seconds": round(seconds, 2), "accuracy": accuracy, "how": how}
