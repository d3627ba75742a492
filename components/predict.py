"""Task, class and probabilities of new images, from a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from components.backbone import choose_device, load_vit
from components.bundle import INDEX, verify_bundle
from components.config import Backbone, Data, Embedding, Retrieval
from components.embed import BATCH, Pixels, precision
from components.images import Limits, to_square
from components.io import read_arrays, read_json
from components.modules import Modules
from components.retrieve import PooledRetriever, choose_task, log_posterior
from components.signature import Classifier, Mixture, read_classifier, read_mixture

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Prediction:
    """One image: the retrieved task and its p(k|x), the class and its p(k|x) p(c|x,k), and the best few, best first."""

    task: str
    label: str
    task_probability: float
    probability: float
    top: tuple[tuple[str, str, float], ...]


@dataclass(frozen=True)
class Predictor:
    """A loaded bundle. Predictions do not depend on the other images of a call."""

    modules: Modules
    tasks: Mapping[str, tuple[str, ...]]
    classifiers: Mapping[str, Classifier]
    mixtures: Mapping[str, Mixture]
    retriever: PooledRetriever
    retrieval: Retrieval
    limits: Limits

    @classmethod
    def load(cls, bundle: Path, device: str = "auto") -> Predictor:
        """Read and verify a bundle.

        Raises:
            IntaglioError: it is damaged, or the device does not exist.
        """
        verify_bundle(bundle)
        index = read_json(bundle / INDEX)
        config = index["config"]
        backbone = Backbone.model_validate(config["backbone"])
        depths = Embedding.model_validate(config["embedding"]).depths
        vit = load_vit(bundle / "backbone", backbone, depths, choose_device(device))
        order: list[str] = index["order"]
        return cls(
            modules=Modules(vit, bundle / "modules", order),
            tasks={task: tuple(index["tasks"][task]) for task in order},
            classifiers={task: read_classifier(bundle / "signatures" / task) for task in order},
            mixtures={task: read_mixture(bundle / "signatures" / task) for task in order},
            retriever=PooledRetriever.from_arrays(read_arrays(bundle / "retrieval.safetensors")),
            retrieval=Retrieval.model_validate(config["retrieval"]),
            limits=Limits.of(Data.model_validate(config["data"])),
        )

    def predict(self, images: Sequence[Image.Image], top: int = 1) -> list[Prediction]:
        """Predict RGB images, as `open_image` returns them."""
        found: list[Prediction] = []
        for start in range(0, len(images), BATCH):
            size = self.modules.vit.image_size
            pixels = np.stack([to_square(image, size) for image in images[start : start + BATCH]])
            found += self._predict_batch(pixels, top)
        return found

    def _predict_batch(self, pixels: Pixels, top: int) -> list[Prediction]:
        names = list(self.tasks)
        with torch.inference_mode(), precision(self.modules.vit):
            tokens, trunk = self.modules.vit.trunk(pixels)
            classes: dict[int, Matrix] = {}
            if self.retrieval.rule == "pooled" and self.retrieval.prediction == "hard":
                scores = self.retriever.scores(self._embed(None, tokens, trunk))
                retrieved = choose_task(scores)
                for number in np.unique(retrieved):
                    rows = np.flatnonzero(retrieved == number)
                    h = self._embed(names[number], tokens[rows], trunk[rows])
                    classes[number] = np.full((len(pixels), len(self.tasks[names[number]])), -np.inf)
                    classes[number][rows] = self.classifiers[names[number]].log_probabilities(h)
            else:
                scores, classes = self._exhaustive(tokens, trunk)
                best = np.stack([classes[number].max(axis=1) for number in range(len(names))], axis=1)
                retrieved = choose_task(scores, best if self.retrieval.prediction == "soft" else None)
        posterior = log_posterior(scores)
        return [self._prediction(row, int(k), posterior[row], classes, top) for row, k in enumerate(retrieved)]

    def _exhaustive(self, tokens: Tensor, trunk: Tensor) -> tuple[Matrix, dict[int, Matrix]]:
        scores: list[NDArray[np.float64]] = []
        classes: dict[int, Matrix] = {}
        for number, task in enumerate(self.tasks):
            h = self._embed(task, tokens, trunk)
            classes[number] = self.classifiers[task].log_probabilities(h)
            scores.append(self.mixtures[task].log_density(h))
        if self.retrieval.rule == "pooled":
            return self.retriever.scores(self._embed(None, tokens, trunk)), classes
        return np.stack(scores, axis=1), classes

    def _embed(self, task: str | None, tokens: Tensor, trunk: Tensor) -> NDArray[np.float32]:
        embedded: NDArray[np.float32] = self.modules.embed(task, tokens, trunk).float().cpu().numpy()
        return embedded

    def _prediction(
        self, row: int, task: int, posterior: NDArray[np.float64], classes: Mapping[int, Matrix], top: int
    ) -> Prediction:
        names = list(self.tasks)
        shown = classes if self.retrieval.prediction == "soft" else {task: classes[task]}
        joint = [
            (names[number], self.tasks[names[number]][column], float(np.exp(posterior[number] + value)))
            for number, table in shown.items()
            for column, value in enumerate(table[row])
        ]
        ranked = sorted(joint, key=lambda item: -item[2])[:top]
        label = self.tasks[names[task]][int(classes[task][row].argmax())]
        probability = float(np.exp(posterior[task] + classes[task][row].max()))
        return Prediction(names[task], label, float(np.exp(posterior[task])), probability, tuple(ranked))
