"""The accuracy matrix R[t,j] and every metric of docs/method.md, from one pass over the test images."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from components.backbone import choose_device, load_vit
from components.config import Config
from components.embed import Progress, embed_pixels, pixel_batches
from components.images import Limits
from components.io import write_json, write_table, write_text
from components.manifest import read_manifest, split_of
from components.modules import Modules
from components.retrieve import PooledRetriever, choose_task, log_posterior, shrunk_covariance
from components.signature import Classifier, Embeddings, Signature, read_signature

Matrix = NDArray[np.float64]
Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]

RULES = ("pooled", "dpgmm")


@dataclass(frozen=True)
class Scored:
    """Every test image (n of them, ordered by task) under every module: what all metrics are computed from.

    task (n,), label (n,): the truth, label an index into its task's classes. h0 (n, d). density (n, T): log p_k(h_k).
    best (n, T): the class that task k would choose; confidence (n, T): log of that class's probability in task k.
    """

    signatures: tuple[Signature, ...]
    task: Indices
    label: Indices
    paths: tuple[str, ...]
    h0: Embeddings
    density: Matrix
    best: Indices
    confidence: Matrix

    def scores(self, rule: str, known: int) -> Matrix:
        """Task scores (n, known) with only the first `known` tasks known."""
        if rule == "dpgmm":
            return self.density[:, :known]
        retriever = PooledRetriever.fit([signature.statistics for signature in self.signatures[:known]])
        return retriever.scores(self.h0)

    def correct(self, retrieved: Indices) -> Mask:
        """Whether task and class are right, (n,)."""
        rows = np.arange(len(self.task))
        return cast(Mask, (retrieved == self.task) & (self.best[rows, retrieved] == self.label))

    def per_task(self, values: NDArray[Any]) -> list[float]:
        """Mean of `values` (n,) over the test images of each task."""
        return [float(values[self.task == task].mean()) for task in range(len(self.signatures))]


def evaluate(root: Path, config: Config) -> None:
    """The `evaluate` stage: reports/metrics.json, the predictions, the plots' tables and the 2-D projection."""
    scored = score_test_images(root, config)
    soft = config.retrieval.prediction == "soft"
    known = len(config.tasks)
    scores = scored.scores(config.retrieval.rule, known)
    retrieved = choose_task(scores, scored.confidence if soft else None)
    metrics = summarise(scored, config.retrieval.rule, soft)
    write_json(root / "reports/metrics.json", metrics)
    predictions = _predictions(scored, scores, retrieved)
    write_table(root / "reports/predictions.parquet", predictions)
    write_table(root / "reports/projection.parquet", project(scored, config.seed))
    confusion = predictions[["task", "retrieved_task"]].rename(columns={"retrieved_task": "retrieved"})
    columns = ["accuracy", "retrieval_accuracy", "task_aware_accuracy"]
    accuracy = pd.DataFrame.from_dict(metrics["per_task"], orient="index")[columns].rename_axis("task").reset_index()
    for name, table in {"accuracy": accuracy, "retrieval": confusion}.items():
        text = io.StringIO()
        table.to_csv(text, index=False, lineterminator="\n")
        write_text(root / f"reports/plots/{name}.csv", text.getvalue())
    print(f"accuracy_final {metrics['accuracy_final']:.4f}, retrieval_accuracy {metrics['retrieval_accuracy']:.4f}")


def score_test_images(root: Path, config: Config) -> Scored:
    """Run every test image through the trunk once and through every module."""
    vit = load_vit(root / "models/backbone", config.backbone, config.embedding.depths, choose_device(config.device))
    modules = Modules(vit, root / "models/modules", config.tasks)
    signatures = tuple(read_signature(root / "models/signatures", task) for task in config.tasks)
    tables = {task: split_of(read_manifest(root, task), "test") for task in config.tasks}
    paths = [root / config.stream.tasks[task].folder / path for task, table in tables.items() for path in table["path"]]
    count, width = len(paths), vit.embedding_width
    h0 = np.empty((count, width), dtype=np.float32)
    density, confidence = np.empty((count, len(signatures))), np.empty((count, len(signatures)))
    best = np.empty((count, len(signatures)), dtype=np.int64)
    progress, done = Progress("evaluate: test images", count), 0
    for pixels in pixel_batches(paths, vit.image_size, Limits.of(config.data)):
        rows = slice(done, done + len(pixels))
        embedded = embed_pixels(modules, pixels, (None, *config.tasks))
        h0[rows] = embedded[None]
        for column, signature in enumerate(signatures):
            h = embedded[signature.task]
            log_probability = signature.classifier.log_probabilities(h)
            density[rows, column] = signature.mixture.log_density(h)
            best[rows, column] = log_probability.argmax(axis=1)
            confidence[rows, column] = log_probability.max(axis=1)
        done = rows.stop
        progress.at(done)
    task = np.repeat(np.arange(len(signatures)), [len(table) for table in tables.values()])
    label = np.array(
        [
            signature.classes.index(name)
            for signature, table in zip(signatures, tables.values(), strict=True)
            for name in table["label"]
        ],
        dtype=np.int64,
    )
    names = tuple(path for table in tables.values() for path in table["path"])
    return Scored(signatures, task, label, names, h0, density, best, confidence)


def accuracy_matrix(scored: Scored, rule: str, soft: bool) -> list[list[float]]:
    """R[t][j], j <= t: accuracy on task j's test images with tasks 0..t known, the task of an image unknown."""
    matrix = []
    for known in range(1, len(scored.signatures) + 1):
        scores = scored.scores(rule, known)
        retrieved = choose_task(scores, scored.confidence[:, :known] if soft else None)
        matrix.append(scored.per_task(scored.correct(retrieved))[:known])
    return matrix


def stream_metrics(matrix: Sequence[Sequence[float]], sizes: Sequence[int]) -> dict[str, float | None]:
    """The metrics of docs/method.md, that R[t][j] (j <= t) and the tasks' test sizes determine.

    `forgetting` and `backward_transfer` are None for a single task: there is nothing to forget.
    """
    last = len(matrix) - 1
    earlier = range(last)
    return {
        "accuracy_final": float(np.mean(matrix[last])),
        "accuracy_final_weighted": float(np.average(matrix[last], weights=sizes)),
        "accuracy_incremental": float(np.mean([np.mean(row) for row in matrix])),
        "forgetting": _mean(max(matrix[t][j] for t in range(j, last + 1)) - matrix[last][j] for j in earlier),
        "backward_transfer": _mean(matrix[last][j] - matrix[j][j] for j in earlier),
    }


def _mean(values: Any) -> float | None:
    found = list(values)
    return float(np.mean(found)) if found else None


def summarise(scored: Scored, rule: str, soft: bool) -> dict[str, Any]:
    """All of reports/metrics.json."""
    names = [signature.task for signature in scored.signatures]
    sizes = np.bincount(scored.task, minlength=len(names))
    matrix = accuracy_matrix(scored, rule, soft)
    retrieved = choose_task(scored.scores(rule, len(names)), scored.confidence if soft else None)
    right_task = retrieved == scored.task
    columns = {
        "accuracy": scored.per_task(scored.correct(retrieved)),
        "retrieval_accuracy": scored.per_task(right_task),
        "task_aware_accuracy": scored.per_task(scored.correct(scored.task)),
        "frozen_task_aware_accuracy": scored.per_task(_frozen_task_aware(scored)),
    }
    return {
        "tasks": names,
        "classes": sum(len(signature.classes) for signature in scored.signatures),
        "test_images": len(scored.task),
        **stream_metrics(matrix, sizes.tolist()),
        "retrieval_accuracy": float(right_task.mean()),
        "task_aware_accuracy": float(np.mean(columns["task_aware_accuracy"])),
        "frozen_task_aware_accuracy": float(np.mean(columns["frozen_task_aware_accuracy"])),
        "accuracy_matrix": matrix,
        "rules": {name: _rule_row(scored, name, soft) for name in RULES},
        "baselines": baselines(scored),
        "per_task": {
            name: {key: values[row] for key, values in columns.items()} | {"test_images": int(sizes[row])}
            for row, name in enumerate(names)
        },
    }


def _rule_row(scored: Scored, rule: str, soft: bool) -> dict[str, float]:
    scores = scored.scores(rule, len(scored.signatures))
    retrieved = choose_task(scores, scored.confidence if soft else None)
    return _row(scored, retrieved, scored.correct(retrieved))


def _row(scored: Scored, retrieved: Indices, correct: Mask) -> dict[str, float]:
    return {
        "accuracy_final": float(np.mean(scored.per_task(correct))),
        "retrieval_accuracy": float((retrieved == scored.task).mean()),
    }


def baselines(scored: Scored) -> dict[str, dict[str, float]]:
    """What the frozen backbone alone reaches over all classes at once, on the same embeddings h_0.

    nearest_class_mean: cosine to the class means (SimpleCIL); frozen_lda: linear discriminant analysis with the
    pooled covariance.
    """
    tasks = [signature.statistics for signature in scored.signatures]
    retriever = PooledRetriever.fit(tasks)
    means = np.concatenate([statistics.means for statistics in tasks])
    h = scored.h0.astype(np.float64)
    cosine = (h / np.linalg.norm(h, axis=1, keepdims=True)) @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
    first = np.concatenate([[0], np.cumsum([len(statistics.means) for statistics in tasks])])[:-1]
    truth = first[scored.task] + scored.label
    found: Mapping[str, Matrix] = {
        "nearest_class_mean": cosine,
        "frozen_lda": retriever.class_scores(scored.h0),
    }
    return {
        name: _row(scored, retriever.owner[scores.argmax(axis=1)], scores.argmax(axis=1) == truth)
        for name, scores in found.items()
    }


def _frozen_task_aware(scored: Scored) -> Mask:
    """Whether LDA on the frozen h_0 is right when the task is given, (n,): what adaptation has to beat."""
    correct = np.zeros(len(scored.task), dtype=bool)
    for number, signature in enumerate(scored.signatures):
        statistics = signature.statistics
        freedom = float(statistics.counts.sum()) - len(statistics.counts)
        classifier = Classifier.from_covariance(statistics.means, shrunk_covariance(statistics.scatter, freedom))
        own = scored.task == number
        chosen = classifier.log_probabilities(scored.h0[own]).argmax(axis=1)
        correct[own] = chosen == scored.label[own]
    return correct


def _predictions(scored: Scored, scores: Matrix, retrieved: Indices) -> pd.DataFrame:
    rows, names = np.arange(len(scored.task)), [signature.task for signature in scored.signatures]
    task_probability = np.exp(log_posterior(scores)[rows, retrieved])
    best = scored.best[rows, retrieved]
    table = {
        "task": [names[task] for task in scored.task],
        "path": scored.paths,
        "label": [scored.signatures[k].classes[c] for k, c in zip(scored.task, scored.label, strict=True)],
        "retrieved_task": [names[task] for task in retrieved],
        "predicted_label": [scored.signatures[k].classes[c] for k, c in zip(retrieved, best, strict=True)],
        "task_probability": task_probability,
        "probability": task_probability * np.exp(scored.confidence[rows, retrieved]),
        "task_score": scores[rows, retrieved],
        "correct": scored.correct(retrieved),
        "retrieved": retrieved == scored.task,
    }
    return pd.DataFrame(table | {f"score:{name}": scores[:, column] for column, name in enumerate(names)})


def project(scored: Scored, seed: int, limit: int = 150) -> pd.DataFrame:
    """The signatures in two dimensions, as seen from the centre of all class means in the whitened space of h_0.

    Only directions from the centre are shown: distances between domains are so much larger than those within one that
    a linear map would show the domains alone. The axes are the two principal ones of the class means' directions.

    Returns:
        At most `limit` test images of each task (kind "point"), and every class mean (kind "centroid") with the
        covariance of its own test images in the picture.
    """
    retriever = PooledRetriever.fit([signature.statistics for signature in scored.signatures])
    center = retriever.centers.mean(axis=0)
    # Only within the span of the class means: elsewhere is nothing but noise, of which 1,500 dimensions have plenty.
    _, _, span = np.linalg.svd(retriever.centers - center, full_matrices=False)
    means = _directions((retriever.centers - center) @ span.T)
    _, _, axes = np.linalg.svd(means - means.mean(axis=0), full_matrices=False)
    axes = np.vstack([axes, np.zeros((2, axes.shape[1]))])[:2]
    axes *= np.where(axes.sum(axis=1, keepdims=True) < 0, -1, 1)  # SVD leaves the sign open
    means = means @ axes.T
    images = _directions((scored.h0.astype(np.float64) @ retriever.whitener - center) @ span.T) @ axes.T
    random = np.random.default_rng(seed)
    records: list[dict[str, Any]] = []
    for number, signature in enumerate(scored.signatures):
        rows = np.flatnonzero(scored.task == number)
        for row in np.sort(random.choice(rows, min(limit, len(rows)), replace=False)):
            label = signature.classes[scored.label[row]]
            records.append(_record("point", signature.task, label, images[row]))
        for column, label in enumerate(signature.classes):
            own = images[rows[scored.label[rows] == column]]
            spread = np.cov(own.T) if len(own) > 1 else np.zeros((2, 2))
            place = means[np.flatnonzero(retriever.owner == number)[column]]
            covariance = {"cov_xx": spread[0, 0], "cov_xy": spread[0, 1], "cov_yy": spread[1, 1]}
            records.append(_record("centroid", signature.task, label, place) | covariance)
    return pd.DataFrame(records)


def _directions(vectors: Matrix) -> Matrix:
    return cast(Matrix, vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


def _record(kind: str, task: str, label: str, place: NDArray[np.float64]) -> dict[str, Any]:
    return {"kind": kind, "task": task, "label": label, "x": place[0], "y": place[1]}
