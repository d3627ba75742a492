"""What a prediction costs with T tasks: the predictor as it ships, the frozen backbone, and loops over PEFT.

Everything runs in one process on the same decoded images, the engines taking turns, so that a busy machine slows all of
them alike; memory is measured in a fresh process each.
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from components.arrays import Embeddings, Indices, Pixels
from components.bench.gpu import device_name
from components.bench.machine import peak_memory_of, print_peak_memory
from components.bench.peft_import import PeftModel
from components.bench.synthetic_tasks import stretch
from components.config import BASE, Config
from components.data.images import Limits
from components.data.task_data import TaskData
from components.inference.predictor import Prediction, Predictor
from components.io import read_json
from components.modules.multi_module_vit import embed_pixels
from components.params import load_config
from components.retrieval.pooled import choose_task
from components.retrieval.shortlist import RetrievalResult, TaskRetriever
from components.vision.backbone import Vit, autocast, load_vit
from components.vision.pixel_batches import BATCH, pixel_batches

ENGINES = ("backbone", "shortlist", "shortlist_bf16", "shortlist_even", "exact", "peft_set_adapter", "peft_mixed")
TASKS = (2, 5, 10, 20, 50, 100)
Row = dict[str, Any]


@dataclass(frozen=True)
class TestImages:
    """Decoded test images (n, size, size, 3), with the true task and class of each."""

    pixels: Pixels
    tasks: tuple[str, ...]
    labels: tuple[str, ...]


@dataclass(frozen=True)
class _EvenTraffic:
    """A task retriever whose answers are replaced by tasks drawn evenly: a batch needs as many modules as it can."""

    task_retriever: TaskRetriever
    random: np.random.Generator

    @property
    def task_of_class(self) -> Indices:
        return self.task_retriever.task_of_class

    def find(self, trunk: Embeddings, tail: Callable[[Indices], Embeddings]) -> RetrievalResult:
        found = self.task_retriever.find(trunk, tail)
        tasks = self.random.integers(0, found.shortlist.shape[1], len(trunk))
        return replace(found, task=tasks, shortlist=tasks[:, None] == np.arange(found.shortlist.shape[1]))


def bench_inference(
    root: Path,
    tasks: Sequence[int] = TASKS,
    images: int = 192,
    rounds: int = 5,
    memory: bool = True,
    keep: Callable[[Row], None] = lambda found: None,
) -> Row:
    """Measure every engine for every number of tasks; the project at `root` has been run.

    Args:
        root: a project with models/, data/ and params.yaml.
        tasks: numbers of tasks T; beyond the project's own they are synthetic (components/bench/synthetic_tasks.py).
        images: test images a timed pass goes over; ways that run T passes an image take fewer of them.
        rounds: times that all engines take turns; the figures are medians.
        memory: whether to measure peak memory, one fresh process for each row.
        keep: is given what is measured so far after every T, so that a long run that is killed is not lost.
    """
    config = load_config(root / "params.yaml")
    rows: list[Row] = []
    found: Row = {
        "device": device_name(torch.device("cpu")),
        "backbone": config.backbone.model_dump(include={"image_size", "depth", "model"}),
        "images": images,
        "rounds": rounds,
        "rows": rows,
    }
    for count in tasks:
        rows += _rows(root, config, count, images, rounds, memory)
        keep(found)
    return found


def _rows(root: Path, config: Config, count: int, images: int, rounds: int, memory: bool) -> list[Row]:
    """Measure every engine with `count` tasks."""
    with tempfile.TemporaryDirectory(prefix="intaglio-bench-") as scratch:
        folder = Path(scratch)
        stretched = stretch(root, config, count, folder)
        rows = _measure(folder, stretched, test_images(root, config, count), images, rounds)
        for row in rows:
            if memory:
                row["peak_memory_mb"] = peak_memory_of(__name__, row["engine"], folder, root, count)
            print(_line(row), flush=True)
    return rows


def test_images(root: Path, config: Config, tasks: int) -> TestImages:
    """Decode the test images of the first tasks of a project, in an order drawn once.

    Args:
        root: the project.
        config: its configuration.
        tasks: their number; at most all of the project's.
    """
    data = [TaskData.read(root, config, task, "test") for task in config.tasks[:tasks]]
    paths = [path for images in data for path in images.paths]
    truth = [(images.task, images.classes[label]) for images in data for label in images.labels]
    order = np.random.default_rng(0).permutation(len(paths))
    batches = pixel_batches([paths[row] for row in order], config.backbone.image_size, Limits.of(config.data))
    names, labels = zip(*[truth[row] for row in order], strict=True)
    return TestImages(np.concatenate(list(batches)), names, labels)


@dataclass
class _Times:
    """Seconds of one engine: an image's share of each timed pass, and each of some images predicted alone."""

    images: int
    passes: list[float] = field(default_factory=list)
    single: list[float] = field(default_factory=list)


def _measure(folder: Path, config: Config, known: TestImages, images: int, rounds: int) -> list[Row]:
    count = len(config.tasks)
    ways = {engine: _way(engine, folder, config) for engine in ENGINES}
    times = _take_turns(ways, known.pixels, count, images, rounds)
    quality = _qualities(folder, known)
    base = float(np.median(times["backbone"].passes))
    return [
        {
            "engine": engine,
            "tasks": count,
            "images_per_second": round(1 / float(np.median(own.passes)), 2),
            "ratio_to_backbone": round(base / float(np.median(own.passes)), 4),
            "p50_ms": round(1e3 * float(np.median(own.single)), 2),
            "p99_ms": round(1e3 * float(np.quantile(own.single, 0.99)), 2),
            "timed_images": own.images,
            "agreement_with_exact": quality.get(engine, {}).get("agreement_with_exact"),
            "accuracy_final": quality.get(engine, {}).get("accuracy_final"),
            "peak_memory_mb": None,
        }
        for engine, own in times.items()
    ]


def _take_turns(
    ways: Mapping[str, Callable[[Pixels], object]], pixels: Pixels, tasks: int, images: int, rounds: int
) -> dict[str, _Times]:
    # A way that runs T passes for an image would take hours on all of them: it gets fewer, at least one batch of 16.
    few = max(16, images // tasks)
    times = {engine: _Times(min(few if _grows(engine) else images, len(pixels))) for engine in ways}
    for turn in range(rounds + 1):
        for engine, way in ways.items():
            if turn > 1 and _grows(engine) and tasks > 10:
                continue  # one round has hundreds of passes already
            own = pixels[: times[engine].images]
            seconds = sum(_timed(way, own[first : first + BATCH]) for first in range(0, len(own), BATCH))
            if turn:  # the first turn warms up
                times[engine].passes.append(seconds / len(own))
                alone = range(1 if _grows(engine) else 8)
                times[engine].single += [_timed(way, own[row : row + 1]) for row in alone]
    return times


def _qualities(folder: Path, known: TestImages) -> dict[str, Mapping[str, float]]:
    """Compare the engines' answers with those of the predictor without shortcuts.

    Modules that are not chosen change no answer; they run where time is measured.
    """
    predictor = Predictor.load(folder / "models/bundle", "cpu")
    half = Predictor.load(folder / "models/bundle", "cpu", "bf16")
    exact = _answers(_without_shortcuts(predictor), known.pixels)
    return {
        "shortlist": _quality(_answers(predictor, known.pixels), exact, known),
        "shortlist_bf16": _quality(_answers(half, known.pixels), exact, known),
        "exact": _quality(exact, exact, known),
    }


def _grows(engine: str) -> bool:
    return engine in ("exact", "peft_set_adapter")


def _timed(way: Callable[[Pixels], object], pixels: Pixels) -> float:
    start = time.perf_counter()
    way(pixels)
    return time.perf_counter() - start


def _way(engine: str, folder: Path, config: Config) -> Callable[[Pixels], object]:
    """Prepare one way to predict a batch of pixels, with its own backbone."""
    if engine == "backbone":
        vit = _vit(folder, config)
        return lambda pixels: _backbone(vit, pixels)
    if engine.startswith("peft"):
        model, vit = _peft(folder, config)
        predictor = Predictor.load(folder / "models/bundle", "cpu")
        naive = _set_adapter if engine == "peft_set_adapter" else _mixed
        return lambda pixels: naive(model, vit, predictor, pixels)
    predictor = Predictor.load(folder / "models/bundle", "cpu", "bf16" if engine == "shortlist_bf16" else "fp32")
    if engine == "shortlist_even":
        even = _EvenTraffic(predictor.task_retriever, np.random.default_rng(0))
        predictor = replace(predictor, task_retriever=cast(TaskRetriever, even))
    if engine == "exact":
        return lambda pixels: _exact(predictor, pixels)
    return predictor.predict_pixels


def _vit(folder: Path, config: Config) -> Vit:
    return load_vit(folder / "models/backbone", config.backbone, config.embedding.depths, torch.device("cpu"))


def _backbone(vit: Vit, pixels: Pixels) -> Embeddings:
    with torch.inference_mode(), autocast(vit):
        tokens, trunk = vit.trunk(pixels)
        return cast(Embeddings, torch.cat([trunk, vit.tail(tokens)], dim=1).float().numpy())


def _without_shortcuts(predictor: Predictor) -> Predictor:
    """Return the same predictor without its shortcuts: no early decision, no cap."""
    settings = predictor.task_retriever.settings.model_copy(
        update={"cap": len(predictor.tasks), "early_margin": np.inf}
    )
    return replace(predictor, task_retriever=replace(predictor.task_retriever, settings=settings))


def _exact(predictor: Predictor, pixels: Pixels) -> RetrievalResult:
    """Score every task in full, and run every module and score its classes; the trunk runs once."""
    embedded = embed_pixels(predictor.engine, pixels, (None, *predictor.tasks))
    for task, classifier in zip(predictor.tasks, predictor.classifiers, strict=True):
        classifier.log_probabilities(embedded[task])
    return _find(_without_shortcuts(predictor).task_retriever, embedded[None])


def _find(task_retriever: TaskRetriever, h0: Embeddings) -> RetrievalResult:
    width = task_retriever.trunk_width
    return task_retriever.find(h0[:, :width], lambda rows: h0[rows, width:])


def _peft(folder: Path, config: Config) -> tuple[PeftModel, Vit]:
    """Load every task's adapter with plain PEFT."""
    vit, model = _vit(folder, config), cast(PeftModel, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, task in enumerate(config.tasks):
            adapter = str(folder / "models/modules" / task / "adapter")
            if number == 0:
                model = PeftModel.from_pretrained(vit.model, adapter, adapter_name=f"m{number}")
            else:
                model.load_adapter(adapter, adapter_name=f"m{number}")
    model.requires_grad_(False).eval()
    return model, vit


def _set_adapter(model: PeftModel, vit: Vit, predictor: Predictor, pixels: Pixels) -> Indices:
    """Run the loop that a user would write: the whole network once for each task, then the best score."""
    scores = []
    for number in range(len(predictor.tasks)):
        model.set_adapter(f"m{number}", inference_mode=True)
        log_class = predictor.classifiers[number].log_probabilities(_backbone(vit, pixels))
        scores.append(log_class.max(axis=1))
    return choose_task(np.stack(scores, axis=1))


def _mixed(model: PeftModel, vit: Vit, predictor: Predictor, pixels: Pixels) -> Embeddings:
    """Run PEFT's mixed batch: one frozen pass to retrieve, one pass with an adapter name for every image.

    With a shared module, the tail runs a second time for h_0.
    """
    with torch.inference_mode(), autocast(vit):
        with model.disable_adapter():
            tokens, trunk = vit.trunk(pixels)
            parts = [trunk, vit.tail(tokens)]
        if predictor.engine.shared != BASE:
            model.set_adapter(f"m{list(predictor.tasks).index(predictor.engine.shared)}", inference_mode=True)
            parts.append(vit.tail(tokens))
        h0 = cast(Embeddings, torch.cat(parts, dim=1).float().numpy())
    found = _find(predictor.task_retriever, h0)
    hooks = cast(Any, model.base_model)._enable_peft_forward_hooks
    with hooks(adapter_names=[f"m{task}" for task in found.task]):
        return _backbone(vit, pixels)


def _answers(predictor: Predictor, pixels: Pixels) -> list[Prediction]:
    starts = range(0, len(pixels), BATCH)
    return [one for first in starts for one in predictor.predict_pixels(pixels[first : first + BATCH])]


def _quality(answers: Sequence[Prediction], exact: Sequence[Prediction], known: TestImages) -> Mapping[str, float]:
    """Measure agreement in task, class and `unknown`; and accuracy_final, the mean over tasks, no image `unknown`."""
    same = [(one.task, one.label) == (other.task, other.label) for one, other in zip(answers, exact, strict=True)]
    truth = zip(known.tasks, known.labels, strict=True)
    right = np.array([one.top[0][:2] == pair for one, pair in zip(answers, truth, strict=True)])
    names = np.array(known.tasks)
    accuracy = np.mean([right[names == task].mean() for task in np.unique(names)])
    return {"agreement_with_exact": round(float(np.mean(same)), 5), "accuracy_final": round(float(accuracy), 5)}


def _one_batch(engine: str, folder: Path, root: Path, tasks: int) -> None:
    config = load_config(root / "params.yaml")
    order = read_json(folder / "models/bundle/bundle.json")["order"]
    one = next(iter(config.stream.tasks.values()))
    stream = {
        name: one.model_copy(update={"previous": previous})
        for previous, name in zip([BASE, *order], order, strict=False)
    }
    stretched = config.model_copy(update={"stream": config.stream.model_copy(update={"tasks": stream})})
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, *[config.backbone.image_size] * 2, 3), dtype=np.uint8)
    _way(engine, folder, stretched)(pixels[: 8 if _grows(engine) and tasks > 10 else BATCH])
    print_peak_memory()


def _line(row: Row) -> str:
    memory = "" if row["peak_memory_mb"] is None else f", {row['peak_memory_mb']:.0f} MB"
    agreement = "" if row["agreement_with_exact"] is None else f", agreement {row['agreement_with_exact']:.4f}"
    speed = f"{row['images_per_second']:8.1f} images/s, {row['ratio_to_backbone']:.3f} of the backbone"
    return f"T = {row['tasks']:>3}  {row['engine']:<16} {speed}{agreement}{memory}"


if __name__ == "__main__":
    _one_batch(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
