"""The files of a signature, written whole or not at all, with as few digits as keep its accuracy.

shared.safetensors (counts, class means, compact scatter), mixture.safetensors, support.safetensors,
trunk_support.safetensors, classifier.safetensors, centroids.safetensors (for readers, not for prediction) and
signature.json.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from components.arrays import Arrays
from components.io import atomic_folder, read_arrays, read_json, write_arrays, write_json
from components.signatures.classifier import Classifier, from_float16, in_float16
from components.signatures.conformal import Calibration
from components.signatures.mixture import Mixture
from components.signatures.scatter import CompactScatter, dense, from_int8, in_int8
from components.signatures.signature import Signature
from components.signatures.statistics import Statistics
from components.signatures.support import Support


def write_signature(folder: Path, signature: Signature, scatter_rank: int, name: str | None = None) -> None:
    """Write a signature to a folder of its own.

    Args:
        folder: of all signatures.
        signature: to store.
        scatter_rank: how many directions its scatter keeps (`CompactScatter`).
        name: of its folder; None: the task's name, which it has until the task is updated.
    """
    mixture, statistics, classifier = signature.mixture, signature.statistics, signature.classifier
    scatter = CompactScatter.of(dense(statistics.scatter), scatter_rank)
    means: Arrays = {"counts": statistics.counts, "means": statistics.means.astype(np.float16)}
    with atomic_folder(folder / (name or signature.task)) as temporary:
        write_arrays(temporary / "shared.safetensors", means | scatter.to_arrays())
        write_arrays(temporary / "mixture.safetensors", _mixture_arrays(mixture))
        # In the space of the embeddings, for a person to inspect.
        centroids: Arrays = {"centroids": mixture.centroids.astype(np.float16), "weights": mixture.weights}
        write_arrays(temporary / "centroids.safetensors", centroids)
        write_support(temporary / "support.safetensors", signature.support)
        if signature.trunk_support:
            write_support(temporary / "trunk_support.safetensors", signature.trunk_support)
        write_classifier(temporary, classifier)
        facts = {"task": signature.task, "classes": signature.classes, "centroids": len(mixture.weights)}
        facts |= {} if signature.module else {"module": False}
        write_json(temporary / "signature.json", facts)


def write_support(path: Path, support: Support) -> None:
    """Write a support, whose mixture is `rounded`."""
    write_arrays(path, _mixture_arrays(support.mixture) | {"held_out_scores": support.calibration.scores})


def write_classifier(folder: Path, classifier: Classifier) -> None:
    """Write a classifier, which is `rounded`, to a signature's folder."""
    coef, unit = in_float16(classifier.coef)
    arrays: Arrays = {"coef": coef, "coef_unit": np.array([unit]), "intercept": classifier.intercept}
    write_arrays(folder / "classifier.safetensors", arrays | {"temperature": np.array([classifier.temperature])})


def read_signature(folder: Path, name: str) -> Signature:
    """Read the signature in `folder`/<name>, where the name is that of a task or of an update.

    Raises:
        IntaglioError: a file is missing or damaged.
    """
    facts = read_json(folder / name / "signature.json")
    shared = read_arrays(folder / name / "shared.safetensors")
    scatter = CompactScatter.from_arrays(shared)
    statistics = Statistics(shared["counts"], shared["means"].astype(np.float64), scatter)
    return Signature(
        facts["task"],
        tuple(facts["classes"]),
        statistics,
        read_mixture(folder / name),
        read_support(folder / name / "support.safetensors"),
        read_support(trunk) if (trunk := folder / name / "trunk_support.safetensors").exists() else None,
        read_classifier(folder / name),
        facts.get("module", True),
    )


def read_mixture(folder: Path) -> Mixture:
    """Read the mixture of a signature's folder."""
    return _mixture(read_arrays(folder / "mixture.safetensors"))


def read_support(path: Path) -> Support:
    """Read what `write_support` wrote.

    Raises:
        IntaglioError: the file is missing or damaged.
    """
    arrays = read_arrays(path)
    return Support(_mixture(arrays), Calibration(arrays["held_out_scores"]))


def _mixture_arrays(mixture: Mixture) -> Arrays:
    """Return the arrays of a mixture's file: int8 for the axes, nearly all of it, and float32 (`Mixture.rounded`)."""
    arrays = {
        "weights": mixture.weights,
        "means": mixture.means,
        "variances": mixture.variances,
        "center": mixture.center,
        "noise": np.array([mixture.noise]),
    }
    single: Arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    axes, step = in_int8(mixture.axes)
    return single | {"axes": axes, "axes_step": step}


def _mixture(arrays: Arrays) -> Mixture:
    weights, means, variances, center, noise = (
        arrays[name].astype(np.float64) for name in ("weights", "means", "variances", "center", "noise")
    )
    axes = arrays["axes"]
    # Models that were registered before axes were int8 have them in float16.
    axes = from_int8(axes, arrays["axes_step"]) if "axes_step" in arrays else axes.astype(np.float64)
    return Mixture(weights, means, variances, center, axes, float(noise[0]))


def read_classifier(folder: Path) -> Classifier:
    """Read the classifier of a signature's folder."""
    arrays = read_arrays(folder / "classifier.safetensors")
    coef = arrays["coef"]
    # Models that were registered before coefficients were float16 have them in float32.
    coef = from_float16(coef, float(arrays["coef_unit"][0])) if "coef_unit" in arrays else coef.astype(np.float64)
    return Classifier(coef, arrays["intercept"], float(arrays["temperature"][0]))
