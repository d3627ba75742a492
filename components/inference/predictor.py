"""Task, class and probabilities of new images, from a bundle."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from threadpoolctl import ThreadpoolController
from torch import Tensor

from components.arrays import Embeddings, Indices, Mask, Matrix, Pixels, Vector
from components.config import UNKNOWN, Backbone, Data, Embedding, Retrieval, Shortlist
from components.data.images import Limits, to_square
from components.errors import IntaglioError
from components.inference.bundle import INDEX, RETRIEVAL, verify_bundle
from components.io import read_arrays, read_json, sha256_file
from components.modules.multi_module_vit import CACHE_BYTES, MultiModuleViT
from components.retrieval.pooled import log_posterior
from components.retrieval.shortlist import RetrievalResult, TaskRetriever
from components.signatures.classifier import Classifier
from components.signatures.mixture import Mixture
from components.signatures.storage import read_classifier, read_mixture
from components.vision.backbone import autocast, choose_device, in_bfloat16, load_vit, multiplies_bfloat16
from components.vision.pixel_batches import BATCH

PRECISIONS = ("auto", "fp32", "bf16")
_LIKELY = 5  # tasks whose p-values a prediction names


@dataclass(frozen=True)
class Prediction:
    """What one image shows. How every output shows these fields: prediction_schema.py.

    Attributes:
        task: The retrieved task; `UNKNOWN` where the image is of no known task.
        label: The class within the task; None where the task is unknown.
        task_probability: p(k|x) of the task; None where it is unknown.
        probability: p(k|x) p(c|x,k) of the task and the class; None where the task is unknown.
        p_value: Conformal p-value in the task that the image is most typical of.
        p_values: (task, p-value) of the few tasks that the image is most typical of, best first.
        top: (task, label, probability) of the best few guesses, best first, also where the task is unknown.
    """

    task: str
    label: str | None
    task_probability: float | None
    probability: float | None
    p_value: float
    p_values: tuple[tuple[str, float], ...]
    top: tuple[tuple[str, str, float], ...]


@dataclass(frozen=True)
class Predictor:
    """A loaded bundle. Predictions do not depend on the other images of a call. One thread at a time.

    Attributes:
        engine: The backbone with the modules of all T tasks.
        tasks: The classes of each task, in the order of arrival.
        classifiers: One for each task, on its own embeddings h_k.
        mixtures: One for each task where the rule is dpgmm; else none.
        task_retriever: Which tasks an image could belong to.
        retrieval: The settings of the decision.
        limits: What an image may cost.
    """

    engine: MultiModuleViT
    tasks: Mapping[str, tuple[str, ...]]
    classifiers: tuple[Classifier, ...]
    mixtures: tuple[Mixture, ...]
    task_retriever: TaskRetriever
    retrieval: Retrieval
    limits: Limits

    @classmethod
    def load(
        cls, bundle: Path, device: str = "auto", precision: str = "auto", cache_bytes: int = CACHE_BYTES
    ) -> Predictor:
        """Read and verify a bundle.

        Args:
            bundle: its folder.
            device: auto, cpu, cuda or mps.
            precision: of matrix products, fp32 or bf16; auto: bf16 on cuda.
            cache_bytes: of modules that may lie on the device at a time.

        Raises:
            IntaglioError: it is damaged, or there is no such device or precision.
        """
        if precision not in PRECISIONS:
            raise IntaglioError(f"precision {precision!r}: expected one of {', '.join(PRECISIONS)}")
        sha256_of = cache(sha256_file)  # the bundle, its backbone and its modules each check their files
        verify_bundle(bundle, sha256_of)
        index = read_json(bundle / INDEX)
        config = index["config"]
        backbone = Backbone.model_validate(config["backbone"])
        embedding = Embedding.model_validate(config["embedding"])
        vit = load_vit(bundle / "backbone", backbone, embedding.depths, choose_device(device), sha256_of)
        if precision == "bf16" and vit.device.type == "cpu" and not multiplies_bfloat16(vit.device):
            warnings.warn("precision bf16: this processor has no instructions for it, fp32 is faster", stacklevel=2)
        if precision != "auto":
            vit = in_bfloat16(vit) if precision == "bf16" else replace(vit, half=False)
        retrieval = Retrieval.model_validate(config["retrieval"])
        shortlist = Shortlist.model_validate(config["shortlist"])
        order: list[str] = index["order"]
        signatures = [bundle / "signatures" / task for task in order]
        return cls(
            engine=MultiModuleViT.load(
                vit, bundle / "modules", order, cache_bytes, embedding.shared, sha256_of, index.get("frozen", ())
            ),
            # Bundles that were registered before labels could be joined or renamed have the classes' own names.
            tasks={task: tuple(index.get("labels", index["tasks"])[task]) for task in order},
            classifiers=tuple(read_classifier(folder) for folder in signatures),
            mixtures=tuple(read_mixture(folder) for folder in signatures) if retrieval.rule == "dpgmm" else (),
            task_retriever=TaskRetriever.from_arrays(read_arrays(bundle / RETRIEVAL), signatures, shortlist),
            retrieval=retrieval,
            limits=Limits.of(Data.model_validate(config["data"])),
        )

    @property
    def image_size(self) -> int:
        """Side of the square images that the backbone takes, in pixels."""
        return self.engine.vit.image_size

    def predict(self, images: Sequence[Image.Image], top: int = 1, force: bool = False) -> list[Prediction]:
        """Predict any number of images.

        Args:
            images: RGB, as `open_image` returns them.
            top: guesses for each image.
            force: whether an image of no known task gets the best guess.
        """
        found: list[Prediction] = []
        for start in range(0, len(images), BATCH):
            pixels = np.stack([to_square(image, self.image_size) for image in images[start : start + BATCH]])
            found += self.predict_pixels(pixels, top, force)
        return found

    def predict_pixels(self, pixels: Pixels, top: int = 1, force: bool = False) -> list[Prediction]:
        """Predict one batch.

        Args:
            pixels: (n, image_size, image_size, 3), uint8, RGB.
            top: guesses for each image.
            force: whether an image of no known task gets the best guess.
        """
        # The threads of NumPy's BLAS, waiting for more work, would take the cores from torch's.
        with _blas().limit(limits=1, user_api="blas"), torch.inference_mode(), autocast(self.engine.vit):
            tokens, trunk = self.engine.vit.trunk(pixels)
            found = self.task_retriever.find(_array(trunk), lambda rows: _array(self.engine.tail(tokens[rows])))
            running = self._modules_to_run(found)
            rows, tasks = np.nonzero(running)
            h = _array(self.engine.embed_each(tasks, tokens[rows], trunk[rows]))
        log_task = found.log_posterior
        if self.retrieval.rule == "dpgmm":
            log_task = self._log_posterior_of_densities(running, tasks, h)
        candidates: list[list[_Candidate]] = [[] for _ in pixels]
        for task in np.unique(tasks):
            pairs = np.flatnonzero(tasks == task)
            frozen = found.frozen[np.ix_(rows[pairs], self.task_retriever.task_of_class == task)]
            log_classes = self.classifiers[task].log_probabilities(h[pairs], frozen)
            for row, log_class in zip(rows[pairs], log_classes, strict=True):
                candidates[row].append(_Candidate(int(task), float(log_task[row, task]), log_class))
        return [self._prediction(found, row, candidates[row], top, force) for row in range(len(pixels))]

    def _modules_to_run(self, found: RetrievalResult) -> Mask:
        """Mark the modules that run, (n, T): the retrieved task's alone where no other could change the result."""
        if self.retrieval.rule == "pooled" and self.retrieval.prediction == "hard":
            return np.equal(found.task[:, None], np.arange(len(self.tasks)))
        return found.shortlist

    def _log_posterior_of_densities(self, running: Mask, tasks: Indices, h: Embeddings) -> Matrix:
        """Return log p(k|x) by the mixtures on h_k, (n, T), of the tasks whose module runs; -inf elsewhere."""
        density = np.full(running.shape, -np.inf)
        for task in np.unique(tasks):
            density[running[:, task], task] = self.mixtures[task].log_density(h[tasks == task])
        return log_posterior(density)

    def _prediction(
        self, found: RetrievalResult, row: int, candidates: Sequence[_Candidate], top: int, force: bool
    ) -> Prediction:
        if self.retrieval.prediction == "hard":
            candidates = [max(candidates, key=lambda candidate: candidate.log_task)]
        names, p_values = list(self.tasks), found.p_values[row]
        guesses = [
            (names[candidate.task], self.tasks[names[candidate.task]][column], candidate, float(log_class))
            for candidate in candidates
            for column, log_class in enumerate(candidate.log_class)
        ]
        guesses.sort(key=lambda guess: -(guess[2].log_task + guess[3]))
        likely = [int(k) for k in np.argsort(-p_values)[:_LIKELY] if not np.isnan(p_values[k])]
        prediction = Prediction(
            task=UNKNOWN,
            label=None,
            task_probability=None,
            probability=None,
            p_value=float(found.p_value[row]),
            p_values=tuple((names[k], float(p_values[k])) for k in likely),
            top=tuple((task, label, float(np.exp(c.log_task + log))) for task, label, c, log in guesses[:top]),
        )
        if found.unknown[row] and not force:
            return prediction
        task, label, best, log_class = guesses[0]
        return replace(
            prediction,
            task=task,
            label=label,
            task_probability=float(np.exp(best.log_task)),
            probability=float(np.exp(best.log_task + log_class)),
        )


@dataclass(frozen=True)
class _Candidate:
    """A task in question for one image: log p(k|x), and log p(c|x,k) of its classes (C,)."""

    task: int
    log_task: float
    log_class: Vector


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def _array(tensor: Tensor) -> Embeddings:
    array: Embeddings = tensor.float().cpu().numpy()
    return array
