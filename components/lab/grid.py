"""A grid of experiments (stream x method x seed x order): finished ones are kept, the others are computed.

An experiment is one file, written whole: a killed run loses only what was being computed.
"""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from components.config import Config
from components.data.images import Limits
from components.fingerprint import code_fingerprint
from components.io import read_json, sha256_bytes, write_json
from components.lab.build import build_stream
from components.lab.embedded_images import EmbeddedImages, open_embedded_images
from components.lab.experiment import Row, run_experiment, validation_accuracy
from components.lab.method_registry import Settings, method_entry
from components.lab.module_store import ModuleStore
from components.lab.stream import DeclaredStream
from components.lab.task_sequence import Caps, make_task_sequence
from components.vision.backbone import choose_device, load_vit
from components.vision.trunk_cache import TrunkCache


@dataclass(frozen=True)
class Laboratory:
    """The places: the backbone under `root`, images in `data`, all that the laboratory keeps under `folder`."""

    root: Path
    folder: Path
    data: tuple[Path, ...]
    config: Config


@dataclass(frozen=True)
class GridPlan:
    """The experiments to run on one stream.

    Attributes:
        stream: the declared stream.
        methods: names of methods.
        seeds: number of seeds, from 0.
        orders: number of orders of the tasks, from 0, the declared one.
        caps: images per task at most.
    """

    stream: DeclaredStream
    methods: tuple[str, ...]
    seeds: int
    orders: int
    caps: Caps


@dataclass(frozen=True)
class Experiment:
    """One method on one seed and order."""

    method: str
    seed: int
    order: int


class PreparedStream:
    """A stream ready to be learned: its table, its embeddings, and a store of modules."""

    def __init__(self, laboratory: Laboratory, declared: DeclaredStream, caps: Caps) -> None:
        """Build and embed the stream where that was not done yet."""
        self.laboratory, self.declared, self.caps = laboratory, declared, caps
        limits = Limits.of(laboratory.config.data)
        folder = laboratory.folder / "streams" / declared.name
        self.table = build_stream(declared, laboratory.data, folder, limits)
        self.embedded = self._embed(folder, limits)
        self.store = ModuleStore(laboratory.root, laboratory.folder, laboratory.config)

    def run(self, experiment: Experiment) -> Row:
        """Compute one experiment, or read its stored result."""
        method, seed, order = experiment.method, experiment.seed, experiment.order
        path = self._place("experiments", experiment)
        where = f"{self.declared.name} {method} seed {seed} order {order}"
        if path.exists():
            print(f"{where}: found", flush=True)
            return dict(read_json(path))
        settings = self.tuned(method)
        print(f"{where}: computing", flush=True)
        sequence = make_task_sequence(self.table, self.embedded, seed, order, self.caps)
        row = run_experiment(method_entry(method), sequence, self.store, seed, settings)
        row = {"stream": self.declared.name, **asdict(experiment), "settings": settings, **asdict(self.caps), **row}
        write_json(path, row)
        print(f"{where}: accuracy_final {row['accuracy_final']:.4f}, {row['learning_seconds']:.0f} s", flush=True)
        return row

    def tuned(self, method: str) -> Settings:
        """Choose the point of a method's grid, once per stream: the best on validation images of seed 0, order 0."""
        chosen = method_entry(method)
        if len(chosen.grid) == 1:
            return chosen.grid[0]
        path = self._place("tuned", Experiment(method, 0, 0))
        if not path.exists():
            sequence = make_task_sequence(self.table, self.embedded, 0, 0, self.caps)
            tried = [validation_accuracy(chosen, sequence, self.store, 0, point) for point in chosen.grid]
            best = chosen.grid[max(range(len(tried)), key=tried.__getitem__)]
            write_json(path, {"grid": chosen.grid, "validation_accuracy": tried, "chosen": best})
        return dict(read_json(path)["chosen"])

    def _embed(self, folder: Path, limits: Limits) -> EmbeddedImages:
        config = self.laboratory.config
        device = choose_device(config.device)
        vit = load_vit(self.laboratory.root / "models/backbone", config.backbone, config.embedding.depths, device)
        images = self.table.drop_duplicates("sha256")
        paths = [folder / path for path in images["path"]]
        cache = TrunkCache.of(self.laboratory.root, config.cache)
        return open_embedded_images(
            vit, self.laboratory.folder / "tails", images["sha256"].tolist(), paths, limits, cache
        )

    def _place(self, kind: str, experiment: Experiment) -> Path:
        """Name the file of a result after all that determines it, the code included."""
        config = self.laboratory.config
        facts = {
            "images": sha256_bytes(self.table.to_csv(index=False).encode()),
            "code": code_fingerprint(run_experiment.__module__),
            "caps": asdict(self.caps),
            "experiment": asdict(experiment),
            "grid": method_entry(experiment.method).grid,
            "config": config.model_dump(include={"backbone", "embedding", "finetune", "signature"}),
        }
        digest = sha256_bytes(json.dumps(facts, sort_keys=True).encode())[:16]
        name = f"{experiment.method}-{experiment.seed}-{experiment.order}-{digest}.json"
        return self.laboratory.folder / kind / self.declared.name / name


def run_plan(laboratory: Laboratory, plan: GridPlan, jobs: int) -> list[Row]:
    """Run all experiments of a plan.

    Args:
        laboratory: where everything lies, and the settings.
        plan: the experiments.
        jobs: processes, which divide the seeds among them: experiments of one seed share modules.

    Returns:
        One row per experiment, in a fixed order.
    """
    stream = PreparedStream(laboratory, plan.stream, plan.caps)
    groups = [
        [Experiment(m, seed, order) for order in range(plan.orders) for m in plan.methods] for seed in range(plan.seeds)
    ]
    if jobs == 1:
        return [stream.run(experiment) for group in groups for experiment in group]
    for method in plan.methods:
        stream.tuned(method)  # once, not in every process
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        threads = max(1, torch.get_num_threads() // jobs)
        found = {pool.submit(_run_group, laboratory, plan, group, threads): n for n, group in enumerate(groups)}
        rows: dict[int, list[Row]] = {found[future]: future.result() for future in as_completed(found)}
    return [row for number in sorted(rows) for row in rows[number]]


def _run_group(laboratory: Laboratory, plan: GridPlan, group: Sequence[Experiment], threads: int) -> list[Row]:
    torch.set_num_threads(threads)
    stream = PreparedStream(laboratory, plan.stream, plan.caps)
    return [stream.run(experiment) for experiment in group]


def flat_row(row: Row) -> dict[str, Any]:
    """Reduce an experiment's result to a row of a table: numbers and names alone."""
    return {key: value for key, value in row.items() if not isinstance(value, dict | list)} | {
        "settings": json.dumps(row["settings"], sort_keys=True)
    }
